"""Figures of watching jobs, on a real cluster: parts of ``python -m scripts.measure_slurm`` with SLURM_CONF set.

What is watched is one job that runs and others that wait (held), since a thousand running ones would measure this
machine; the pace is that of running jobs. Jobs are this module's own, and cancelled at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.core.process import run
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.native import choose_backend
from launcher.slurm.poller import JobPoller
from launcher.slurm.shared import SharedPoller
from launcher.srtctl.kind import end_markers
from tests.commands import ScriptedCommands
from tests.slurm.following import rounds

MARKER = "printf '✓ Sweep completed successfully\\nEnd: %s\\n====\\n' \"$(date)\""


def queries(argv: list[str]) -> int:
    """Questions an hour of one watcher, beside a loop of one ``squeue -j`` a job every 10 s."""
    parser = argparse.ArgumentParser(prog="queries", description=queries.__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 50, 1000])
    parser.add_argument("--seconds", type=float, default=300.0, help="of each way and number")
    asked = parser.parse_args(argv)
    print(f"{'jobs':>5}  {'way':24} {'questions an hour':>17}   which, in {asked.seconds:.0f} s")
    for number in asked.jobs:
        with _jobs(number) as jobs:
            for backend in backends():
                counts = _watched(backend, jobs, asked.seconds)
                _say(number, f"launcher, {backend}", counts, asked.seconds)
            _say(number, "squeue -j each, 10 s", _looped(jobs, asked.seconds), asked.seconds)
    return 0


def watch(argv: list[str]) -> int:
    """CPU seconds and memory of a process that does nothing but watch, with all that it starts."""
    parser = argparse.ArgumentParser(prog="watch", description=watch.__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.child:
        backend, ids = asked.child
        jobs = [JobKey(*_pair(word)) for word in Path(ids).read_text().split()]
        counts = _watched(backend, jobs, asked.minutes * 60)
        own, started = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cpu = [usage.ru_utime + usage.ru_stime for usage in (own, started)]
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(
            f"{backend:9} {len(jobs)} jobs, {asked.minutes:g} min: {cpu[0]:.2f} CPU s of its own (starting included), "
            f"{cpu[1]:.2f} of the programs that ended, {own.ru_maxrss / 1024:.0f} MiB at most; {told}"
        )
        return 0
    with _jobs(asked.jobs) as jobs, tempfile.NamedTemporaryFile("w") as ids:
        ids.write("\n".join(f"{job.id}:{job.token}" for job in jobs))
        ids.flush()
        for backend in backends():
            words = ["--minutes", str(asked.minutes), "--child", backend, ids.name]
            subprocess.run([sys.executable, "-m", "scripts.measure_slurm", "watch", *words], check=True)
    return 0


def delay(argv: list[str]) -> int:
    """From a job's last line to our knowing its end: each job has a watcher of its own, as each launcher has."""
    parser = argparse.ArgumentParser(prog="delay", description=delay.__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="of each way")
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--seconds", type=float, nargs=2, default=[60.0, 150.0], help="how long they live")
    asked = parser.parse_args(argv)
    print(
        f"{'backend':9} {'poller':7} {'marker':7} {'median':>7} {'p99':>7} {'most':>7}   seconds, of {asked.jobs} jobs"
    )
    for backend in backends():
        for poller in ("own", "shared"):
            for marker in ("seen", "none"):
                late: list[float] = []
                while len(late) < asked.jobs:
                    number = min(asked.at_once, asked.jobs - len(late))
                    late += _delays(backend, poller == "shared", marker == "seen", number, asked.seconds)
                late.sort()
                figures = statistics.median(late), late[min(len(late) - 1, int(len(late) * 0.99))], late[-1]
                print(f"{backend:9} {poller:7} {marker:7} " + " ".join(f"{f:7.2f}" for f in figures), flush=True)
    return 0


def backends() -> list[str]:
    return ["commands", *(["pyslurm"] if choose_backend()[0] is not None else [])]


def scheduler_of(backend: str, runner: ScriptedCommands) -> Scheduler:
    native = choose_backend(runner=runner)[0] if backend == "pyslurm" else None
    runner.calls.clear()
    return native or SlurmCommands(runner=runner)


class _Polls:
    """Counts the rounds of a scheduler that asks the controller without a program."""

    def __init__(self, inner: Scheduler) -> None:
        self.inner, self.name, self.number = inner, inner.name, 0

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.number += 1
        return self.inner.poll(jobs)


@contextlib.contextmanager
def _jobs(number: int) -> Iterator[list[JobKey]]:
    with tempfile.TemporaryDirectory() as place:
        options = ["--output=/dev/null", "--wrap", "sleep 86400"]
        jobs = []
        try:
            for n in range(number):
                token = f"w{os.getpid()}-{n}"
                held = ["--hold"] if n else []
                said = run(["sbatch", "--parsable", f"--comment={token}", *held, *options], timeout=60, cwd=Path(place))
                jobs.append(JobKey(said.stdout.strip(), None, token))
            yield jobs
        finally:
            run(["scancel", *(job.id for job in jobs)], timeout=60)


def _pair(word: str) -> tuple[str, None, str]:
    job, _, token = word.partition(":")
    return job, None, token


def _watched(backend: str, jobs: Sequence[JobKey], seconds: float) -> Counter[str]:
    runner = ScriptedCommands(None)
    polls = _Polls(scheduler_of(backend, runner))
    until = time.monotonic() + seconds
    # Held jobs are not to be given up.
    poller = JobPoller(polls)  # type: ignore[arg-type]
    for job in jobs:
        poller.watch(job)
    while time.monotonic() < until:
        poller.poll(held=jobs)
        time.sleep(1.0)
    assert len(poller.watched) == len(jobs)
    counts = Counter(call[0] for call in runner.calls)
    if backend == "pyslurm":
        counts["slurmctld"] = polls.number
    return counts


def _looped(jobs: Sequence[JobKey], seconds: float) -> Counter[str]:
    began, number = time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        for job in jobs:
            run(["squeue", "-h", "-j", job.id, "-o", "%T"], timeout=30)
            number += 1
            if time.monotonic() >= began + seconds:
                break
        time.sleep(max(0.0, min(now + 10, began + seconds) - time.monotonic()))
    return Counter(squeue=number)


def _say(jobs: int, way: str, counts: Counter[str], seconds: float) -> None:
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{jobs:5}  {way:24} {counts.total() * 3600 / seconds:17.0f}   {told}", flush=True)


def _delays(backend: str, shared: bool, marked: bool, number: int, seconds: Sequence[float]) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        place, late = Path(name), [0.0] * number

        def follow(n: int) -> None:
            log, token = place / f"{n}.log", f"d{os.getpid()}-{random.randrange(10**9)}"
            script = f"sleep {random.uniform(*seconds)}; {MARKER}; date +%s.%N > {place}/end-{n}"
            argv = ["sbatch", "--parsable", f"--comment={token}", f"--output={log}", "--wrap", script]
            job = JobKey(run(argv, timeout=60, cwd=place).stdout.strip(), time.time(), token)
            scheduler: Scheduler = scheduler_of(backend, ScriptedCommands(None))
            if shared:
                scheduler = SharedPoller(scheduler, place / "poller", cluster=os.environ["SLURM_CONF"])
            markers = end_markers()
            poller = JobPoller(scheduler)
            poller.watch(job)
            read = markers.read if marked else lambda job, log: None
            for answer in rounds(poller, markers=lambda: {job: end} if (end := read(job, log)) else {}):
                state = answer.states[job]
            assert state.phase is Phase.TERMINAL and state.succeeded, state
            late[n] = time.time() - float((place / f"end-{n}").read_text())

        threads = [threading.Thread(target=follow, args=(n,)) for n in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return late
