"""What happens to jobs in Slurm: requeued, held, suspended, timed out, ended by another, their ids given out again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from launcher.slurm.client import JobKey, Phase
from tests.faults.slurm_cases.fault_cluster import BAD, FATES, GOOD, Fate, FaultCluster
from tests.faults.slurm_cases.tally import Case, Tally

CANCELLED = Fate("exit 0", "CANCELLED", (0, 15))
TIMEOUT = Fate("exit 0", "TIMEOUT", (0, 0))


def _running(fault_cluster: FaultCluster, job: JobKey) -> str:
    state = fault_cluster.until(job, lambda s: s.word == "RUNNING")
    return "" if state.word == "RUNNING" else f"{job} does not run: {state.describe()}"


def _alive_for(fault_cluster: FaultCluster, job: JobKey, seconds: float) -> str:
    """Whether the job is never told to have ended, while it has not."""
    scheduler, deadline = fault_cluster.scheduler(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = scheduler.poll([job])[job]
        if state.phase is Phase.TERMINAL:
            return f"{job} was told {state.describe()}"
        time.sleep(0.1)
    return ""


def _requeue(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """The second life counts: the first one's record is no end. It waits two minutes for its begin time (22.05)."""
    tally = Tally("scontrol requeue")
    jobs, told = [], {}
    for number in range(trials):
        job = fault_cluster.submit(4, FATES[number % 3], "--requeue")
        told[job] = _running(fault_cluster, job)
        if number % 2:
            time.sleep(2.2)  # beyond the tolerance of submit times
        fault_cluster.command("scontrol", "requeue", job.id)
        told[job] = told[job] or _alive_for(fault_cluster, job, 1.0)
        jobs.append(job)
    for job, complaints in fault_cluster.watch(jobs, seconds=240).items():
        tally.trial(told[job], *complaints)
    return [tally]


def _hold(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    tally = Tally("scontrol hold, release")
    jobs, told = [], {}
    for number in range(trials):
        job = fault_cluster.submit(1, FATES[number % 3], "--hold", "--requeue")
        state = fault_cluster.until(job, lambda s: s.hopeless, seconds=10)
        told[job] = "" if state.hopeless else f"{job} is held, and said to be {state.describe()}"
        told[job] = told[job] or _alive_for(fault_cluster, job, 0.3)
        jobs.append(job)
    for job in jobs:
        fault_cluster.command("scontrol", "release", job.id)
    for job, complaints in fault_cluster.watch(jobs).items():
        tally.trial(told[job], *complaints)
    return [tally]


def _suspend(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    tally = Tally("scontrol suspend, resume")
    jobs, told = [], {}
    for number in range(trials):
        job = fault_cluster.submit(3, FATES[number % 3])
        told[job] = _running(fault_cluster, job)
        fault_cluster.command("scontrol", "suspend", job.id)
        told[job] = told[job] or _alive_for(fault_cluster, job, 0.5)
        state = fault_cluster.scheduler().poll([job])[job]
        told[job] = told[job] or ("" if state.word == "SUSPENDED" else f"{job}: {state.describe()}")
        jobs.append(job)
    for job in jobs:
        fault_cluster.command("scontrol", "resume", job.id)
    for job, complaints in fault_cluster.watch(jobs).items():
        tally.trial(told[job], *complaints)
    return [tally]


def _ended(name: str, fate: Fate, options: Sequence[str], end: Callable[[FaultCluster, JobKey], None]) -> Case:
    def attempt(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
        tally = Tally(name)
        jobs = [fault_cluster.submit(600, fate, *options) for _ in range(trials)]
        told = {job: _running(fault_cluster, job) for job in jobs}
        for job in jobs:
            end(fault_cluster, job)
        for job in jobs:
            state = fault_cluster.until(job, lambda s: s.phase is Phase.TERMINAL, seconds=200)
            said = "" if (state.word, state.succeeded) == (fate.word, False) else f"{job}: {state.describe()}"
            tally.trial(told[job], said)
        return [tally]

    return Case(name, attempt, trials=20 if fate is CANCELLED else 4, short=4 if fate is CANCELLED else 0)


def _cancel(fault_cluster: FaultCluster, job: JobKey) -> None:
    fault_cluster.command("scancel", job.id)


def _memory(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """A real limit needs cgroups, which need root and are one tree for a machine: JobAcctGather samples instead, each
    second. Every second job then ignores SIGTERM, as an engine does that is busy."""
    tally = Tally("memory limit, enforced by sampling (no cgroups here)")
    grows = "import time; x = b'x' * (120 << 20); time.sleep(60)"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    said = set()
    while tally.trials < trials:
        many = min(8, trials - tally.trials)
        scripts = [f'python3 -c "{deaf if n % 2 else ""}{grows}"' for n in range(many)]
        jobs = [fault_cluster.submit(0, Fate(s, "OUT_OF_MEMORY", (0, 125)), "--mem=40M", "--nodes=1") for s in scripts]
        for job in jobs:
            state = fault_cluster.until(job, lambda s: s.phase is Phase.TERMINAL, seconds=90)
            said.add(f"{state.describe().partition(' on ')[0]}")
            bad = state.phase is Phase.TERMINAL and not state.succeeded
            tally.trial("" if bad else f"{job}: {state.describe()}")
    tally.note = f"told as {', '.join(sorted(said))}"
    return [tally]


def _wrapped(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """An id that belongs to another job by now: the first is answered by its own record, and the second is not ended.

    MaxJobId is 40, and a finished job is purged soon, so that ids come round every 25 jobs.
    """
    tally = Tally("job ids wrap round")
    shared = 0
    first: dict[str, JobKey] = {}
    while tally.trials < trials:
        jobs = [fault_cluster.submit(0.2, FATES[n % 3]) for n in range(5)]
        for job, complaints in fault_cluster.watch(jobs, seconds=60).items():
            old = first.get(job.id)
            if old is None:
                tally.trial(*complaints)
            else:
                shared += 1
                tally.trial(*complaints, _as_before(fault_cluster, old))
            first[job.id] = job
        if shared and not shared % 2:
            tally.trial(_not_anothers(fault_cluster, first))
        time.sleep(1)
    tally.note = f"{shared} times an id was given out again"
    return [tally]


def _as_before(fault_cluster: FaultCluster, old: JobKey) -> str:
    state, fate = fault_cluster.scheduler().poll([old])[old], fault_cluster.fates[old]
    fitting = state.phase is Phase.UNKNOWN or (state.word, state.exit_code) == (fate.word, fate.code)
    return "" if fitting else f"{old}, whose id has gone round, was told {state.describe()}, and was {fate.word}"


def _not_anothers(fault_cluster: FaultCluster, earlier: dict[str, JobKey]) -> str:
    """Cancelling a job of the past must not end the one that has its id now."""
    job = fault_cluster.submit(30, GOOD)
    old = earlier.get(job.id)
    complaint = ""
    if old is not None:
        fault_cluster.scheduler().cancel([old])
        time.sleep(0.5)
        state = fault_cluster.scheduler().poll([job])[job]
        complaint = "" if state.phase is Phase.ALIVE else f"{job} was ended in the place of an older one"
    fault_cluster.command("scancel", job.id)
    fault_cluster.until(job, lambda s: s.phase is Phase.TERMINAL)
    fault_cluster.fates[job] = BAD
    earlier.pop(job.id, None)
    return complaint


CASES = (
    _ended("scancel by another", CANCELLED, (), _cancel),
    Case("hold and release", _hold, trials=20),
    Case("suspend and resume", _suspend, trials=20),
    Case("requeue", _requeue, trials=12),
    _ended("time limit", TIMEOUT, ("--time=1",), lambda fault_cluster, job: None),
    Case(
        "job ids wrap round",
        _wrapped,
        trials=100,
        cluster=("--nodes", "3", "--set", "FirstJobId=16", "MaxJobId=40", "MinJobAge=2"),
    ),
    Case(
        "memory limit",
        _memory,
        trials=16,
        cluster=(
            *("--nodes", "3", "--set", "SelectTypeParameters=CR_Core_Memory"),
            *("JobAcctGatherParams=OverMemoryKill", "JobAcctGatherFrequency=task=1"),
        ),
    ),
)
