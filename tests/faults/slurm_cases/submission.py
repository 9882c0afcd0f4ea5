"""sbatch that accepts a job and then does not say so as it should: one job, found again, and its results."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.slurm_cases.desk import LabDesk
from tests.faults.slurm_cases.lab import Lab
from tests.faults.slurm_cases.tally import Case, Tally

SAID = {
    "lost": "sbatch accepts, and then fails to answer",
    "banner": "sbatch prints a banner before and after",
    "cluster": "sbatch prints id;cluster",
    "nothing": "sbatch accepts, and prints nothing",
}


def _sbatch(way: str, trials: int, short: int) -> Case:
    def attempt(lab: Lab, trials: int) -> Sequence[Tally]:
        desk = LabDesk.at(lab).prepared()

        def one(number: int) -> Sequence[str]:
            run_id = desk.new_id()
            desk.run("--conc", "4", run_id=run_id, LAB_SBATCH=way)
            return desk.one_good_job(run_id)

        return [Tally(SAID[way]).each(trials, one)]

    return Case(SAID[way], attempt, trials=trials, short=short)


CASES = (
    _sbatch("lost", 200, 2),
    _sbatch("banner", 30, 0),
    _sbatch("cluster", 30, 0),
    _sbatch("nothing", 30, 2),
)
