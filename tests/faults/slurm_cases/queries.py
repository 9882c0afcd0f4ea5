"""squeue, sacct and scontrol that fail now and then, or for minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Timer

from tests.faults.slurm_cases.fault_cluster import FATES, FaultCluster
from tests.faults.slurm_cases.tally import Case, Tally

OUTAGE = 300.0
SHORT_OUTAGE = 3.0


def _some(per_mille: int, name: str) -> Case:
    def attempt(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
        began = time.time()

        def one(number: int) -> Sequence[str]:
            """A watcher for each job, so that what fails is never the same for two of them."""
            job = fault_cluster.submit(1 + number % 4, FATES[number % 3])
            return fault_cluster.watch([job])[job]

        with fault_cluster.programs.failing(per_mille):
            tally = Tally(name).each(trials, one, fault_cluster.at_once)
        calls = fault_cluster.programs.calls(began)
        failed = sum(call.name == "failed" for call in calls)
        tally.note = f"{failed} of {len(calls) - failed} calls of Slurm's programs failed"
        return [tally]

    return Case(name, attempt, trials=200, short=6 if per_mille > 100 else 0)


def _outage(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    seconds = OUTAGE if trials > 10 else SHORT_OUTAGE
    tally = Tally(f"nobody answers for {seconds:.0f} s")
    jobs = [fault_cluster.submit(2 + n % 4, FATES[n % 3]) for n in range(trials)]
    back: list[float] = []
    with fault_cluster.programs.failing(1000):
        rates = list(fault_cluster.programs.directory.glob("*.rate"))

        def restore() -> None:
            back.append(time.time())
            for rate in rates:
                rate.write_text("0\n")

        timer = Timer(seconds, restore)
        timer.start()
        answers = fault_cluster.watch(jobs, seconds=seconds + 120, early=lambda job: not back)
        timer.cancel()
    for complaints in answers.values():
        tally.trial(*complaints)
    tally.note = f"known {time.time() - back[0]:.1f} s after the first answers" if back else ""
    return [tally]


CASES = (
    _some(10, "squeue, sacct and scontrol fail 1 % of calls"),
    _some(300, "squeue, sacct and scontrol fail 30 % of calls"),
    Case("squeue and sacct fail for five minutes", _outage, trials=20, short=6),
)
