"""sbatch that accepts a job and then does not say so as it should: one job, found again, and its results."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.slurm_cases.fault_cluster import FaultCluster
from tests.faults.slurm_cases.tally import Case, Tally
from tests.faults.slurm_cases.user import RUN, ClusterUser

SAID = {
    "lost": "sbatch accepts, and then fails to answer",
    "banner": "sbatch prints a banner before and after",
    "cluster": "sbatch prints id;cluster",
    "nothing": "sbatch accepts, and prints nothing",
}


def _sbatch(way: str, trials: int, short: int) -> Case:
    def attempt(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
        user = ClusterUser.at(fault_cluster).prepared()

        def one(number: int) -> Sequence[str]:
            run_id = user.new_id()
            user.run("--conc", "4", run_id=run_id, LAB_SBATCH=way)
            return user.one_good_job(run_id)

        return [Tally(SAID[way]).each(trials, one)]

    return Case(SAID[way], attempt, trials=trials, short=short)


def _killed(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """Who stands between sbatch and the job's release is killed; what is left lets one job run to its results."""
    user = ClusterUser.at(fault_cluster).prepared()

    def shim(number: int) -> Sequence[str]:
        run_id = user.new_id()
        user.run("--conc", "4", run_id=run_id, LAB_SBATCH="shim")
        return [*user.one_good_job(run_id), *_released_once(user, run_id)]

    def everybody(number: int) -> Sequence[str]:
        run_id = user.new_id()
        code = user.start("run", *RUN, "--run-id", run_id, LAB_SBATCH="everybody").wait(timeout=60)
        held = [state for _, state in fault_cluster.jobs_of(run_id)]
        user.launcher("resume", run_id, LAB_SBATCH="as it is")
        wrong = [] if (code, held) == (-9, ["PENDING"]) else [f"{run_id}: launcher ended with {code}, jobs {held}"]
        return [*wrong, *user.one_good_job(run_id), *_released_once(user, run_id)]

    def scontrol(number: int) -> Sequence[str]:
        run_id = user.new_id()
        with fault_cluster.programs.failing(600, "scontrol"):
            user.run("--conc", "4", run_id=run_id)
        return user.one_good_job(run_id)

    each = max(1, trials // 3)
    return [
        Tally("sbatch of ours killed after the job was accepted").each(each, shim, 2),
        Tally("launcher, srtctl and sbatch killed then, and resumed").each(each, everybody, 2),
        Tally("scontrol fails 60 % while the job is released").each(each, scontrol, 1),
    ]


def _released_once(user: ClusterUser, run_id: str) -> list[str]:
    job = user.record(run_id)["job"]
    calls = [
        c for c in user.fault_cluster.programs.calls() if c.name == "scontrol" and c.arguments == f"release {job['id']}"
    ]
    right = len(calls) == 1 and job["held"] is False
    return [] if right else [f"{run_id}: job {job['id']} was released {len(calls)} times, held is {job['held']}"]


CASES = (
    _sbatch("lost", 200, 2),
    _sbatch("banner", 30, 0),
    _sbatch("cluster", 30, 0),
    _sbatch("nothing", 30, 2),
    Case("killed between sbatch and release", _killed, trials=60, short=3),
)
