"""Many jobs at once, and what asking about them costs."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.slurm.client import JobKey, JobState, Phase
from launcher.slurm.poller import JobPoller, Pace
from tests.faults.slurm_cases.fault_cluster import FATES, FaultCluster
from tests.faults.slurm_cases.tally import Case, Tally
from tests.slurm.following import rounds

WINDOWS = {1: 120.0, 50: 120.0, 1000: 300.0}
"""Jobs, and the seconds for which they are watched: most of the questions of a job's first minute come in it."""


def _submit(fault_cluster: FaultCluster, seconds: Sequence[float]) -> list[JobKey]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda n: fault_cluster.submit(seconds[n], FATES[n % 3]), range(len(seconds))))


def _thousand(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """Short jobs watched together, with the pace of a real cluster: a wrong end, or none, is a wrong outcome."""
    tally = Tally(f"{trials} short jobs watched at once")
    jobs = _submit(fault_cluster, [0.5 + n % 10 for n in range(trials)])
    began, cpu = time.time(), _cpu()
    answers = fault_cluster.watch(jobs, pace=Pace(), seconds=600, timeout=30)
    for complaints in answers.values():
        tally.trial(*complaints)
    calls = fault_cluster.programs.calls(began)
    counts = ", ".join(f"{sum(c.name == n for c in calls)} {n}" for n in ("squeue", "sacct", "scontrol"))
    tally.note = f"{counts}; {_cpu() - cpu:.1f} s of CPU in {time.time() - began:.0f} s"
    return [tally]


def _cost(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """Queries an hour of watching 1, 50 and 1,000 running jobs in a window, beside a loop of one squeue a job."""
    tallies = []
    for count, window in WINDOWS.items():
        tally = Tally(f"watching {count} running jobs for {window:.0f} s")
        jobs = _submit(fault_cluster, [window + 600] * count)
        began, cpu, memory = time.time(), _cpu(), _rss()
        states = _watch_for(fault_cluster, jobs, window)
        calls = fault_cluster.programs.calls(began)
        took = time.time() - began
        not_alive = [s for s in states.values() if s.phase is not Phase.ALIVE]
        tally.trial(f"{len(not_alive)} of them not alive: {not_alive[0].describe()}" if not_alive else "")
        tally.note = (
            f"{len(calls)} calls, {3600 * len(calls) / took:.0f} an hour; {_cpu() - cpu:.2f} s of CPU, "
            f"{_rss() - memory:.1f} MiB more"
        )
        loops = _loop(fault_cluster, jobs[:50])
        tally.note += f"; a loop of squeue -j: {360 * count} an hour, {loops * 1000:.1f} ms of CPU each"
        fault_cluster.command("scancel", "-u", fault_cluster.command("id", "-un"))
        tallies.append(tally)

    return tallies


def _watch_for(fault_cluster: FaultCluster, jobs: list[JobKey], seconds: float) -> dict[JobKey, JobState]:
    states: dict[JobKey, JobState] = {}
    for answer in rounds(_poller(fault_cluster, jobs), seconds=seconds):
        states.update(answer.states)
    return states


def _poller(fault_cluster: FaultCluster, jobs: list[JobKey]) -> JobPoller:
    """At the pace of a real cluster."""
    poller = JobPoller(fault_cluster.scheduler(30))
    for job in jobs:
        poller.watch(job)
    return poller


def _loop(fault_cluster: FaultCluster, jobs: list[JobKey]) -> float:
    """CPU seconds of one `squeue -j` on this machine, by so many."""
    began = _cpu()
    for job in jobs:
        fault_cluster.command("squeue", "-h", "-j", job.id, "-o", "%T")
    return (_cpu() - began) / len(jobs)


def _delay(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """From the moment at which a job's script ends to the moment at which we know, at the pace of a real cluster."""
    tally = Tally("delay from a job's end to our knowing it")
    jobs = _submit(fault_cluster, [20 + (60 if trials > 20 else 10) * n / trials for n in range(trials)])
    known: dict[JobKey, float] = {}
    for answer in rounds(_poller(fault_cluster, jobs)):
        known.update({change.job: time.time() for change in answer.changes if change.ended})
    delays = sorted(known[job] - (fault_cluster.marks / job.token).stat().st_mtime for job in jobs)
    for delay in delays:
        tally.trial("" if 0 <= delay < 60 else f"known {delay:.1f} s after the end")
    p99 = delays[min(len(delays) - 1, int(0.99 * len(delays)))]
    tally.note = f"median {delays[len(delays) // 2]:.1f} s, 99th percentile {p99:.1f} s"
    return [tally]


def _cpu() -> float:
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _rss() -> float:
    """MiB that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


CASES = (
    Case("1,000 short jobs watched at once", _thousand, trials=1000),
    # Each of a thousand step daemons would read all of /proc every 30 s: that is not what is measured.
    Case("cost of watching", _cost, trials=1, cluster=("--nodes", "9", "--set", "JobAcctGatherFrequency=0")),
    Case("delay of knowing", _delay, trials=200),
)
