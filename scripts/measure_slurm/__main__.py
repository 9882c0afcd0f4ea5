"""Figures of asking Slurm, on a real cluster: ``python -m scripts.measure_slurm NAME …`` with SLURM_CONF set.

queries  questions an hour for 1, 50 and 1,000 jobs, beside a loop of squeue (watching.py, --help)
watch    CPU and memory of watching 1,000 jobs for 10 minutes
delay    from a job's end to our knowing it: both backends, own and shared poller, with and without an exit marker
shared   1, 5 and 20 launcher processes that each watch a job, with and without a shared poller: questions a minute, and
         how long after a job's end its launcher knows it
cost     one poll of 1, 100 and 1000 jobs, by the commands and by pyslurm (with 1000 jobs held in the cluster)
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.core.process import Completed, run
from launcher.slurm.client import JobKey, Scheduler
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.native import choose_backend
from launcher.slurm.shared import SharedPoller
from scripts.measure_slurm import watching
from tests.slurm.following import follow

COUNTED = (90.0, 150.0)
"""Seconds after the start in which questions are counted: the pauses have grown, and no job has ended."""

ENDS = (160.0, 220.0)


def main(argv: list[str]) -> int:
    with_options = {"queries": watching.queries, "watch": watching.watch, "delay": watching.delay}
    if argv[0] in with_options:
        return with_options[argv[0]](argv[1:])
    return {"shared": shared, "cost": cost, "one": one}[argv[0]](*argv[1:])


def submit(script: str, *options: str, cwd: Path) -> JobKey:
    token = f"f{random.randrange(10**9)}"
    said = run(["sbatch", "--parsable", f"--comment={token}", *options, "--wrap", script], timeout=60, cwd=cwd)
    return JobKey(said.stdout.strip(), time.time(), token)


def shared() -> int:
    """All cases at once, each with files of its own."""
    with tempfile.TemporaryDirectory() as name:
        directory, start = Path(name), time.time()
        cases = [(number, shared) for number in (1, 5, 20) for shared in ("alone", "shared")]
        launchers = []
        for number, how in cases:
            place = directory / f"{number}-{how}"
            place.mkdir()
            for n in range(number):
                seconds = random.uniform(*ENDS)
                job = submit(f"sleep {seconds}; date +%s.%N > {place}/end-{n}", cwd=place)
                arguments = [job.id, job.token, str(place), str(n), how]
                launchers.append(subprocess.Popen([sys.executable, "-m", __spec__.name, "one", *arguments]))
        for launcher in launchers:
            launcher.wait()
        print(f"{'launchers':>9} {'':7} {'squeue/min':>10} {'sacct/min':>9}   end to known, median and longest")
        for number, how in cases:
            place = directory / f"{number}-{how}"
            asked = [line.split() for line in (place / "asked").read_text().splitlines()]
            begin = start + COUNTED[0]
            counted = [program for at, program in asked if 0 <= float(at) - begin < COUNTED[1] - COUNTED[0]]
            minutes = (COUNTED[1] - COUNTED[0]) / 60
            rates = [counted.count(program) / minutes for program in ("squeue", "sacct")]
            late = [
                float((place / f"known-{n}").read_text()) - float((place / f"end-{n}").read_text())
                for n in range(number)
            ]
            print(
                f"{number:9} {how:7} {rates[0]:10.1f} {rates[1]:9.1f}   "
                f"{statistics.median(late):.1f} s, {max(late):.1f} s"
            )
    return 0


def one(job: str, token: str, place: str, number: str, how: str) -> int:
    """One launcher: it watches one job at the pace of real runs."""

    def runner(
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed:
        with (Path(place) / "asked").open("a") as file:
            file.write(f"{time.time()} {argv[0]}\n")
        return run(argv, timeout=timeout, cwd=cwd, env=env, input=input)

    scheduler: Scheduler = SlurmCommands(runner=runner)
    if how == "shared":
        scheduler = SharedPoller(scheduler, Path(place) / "poller", cluster=os.environ["SLURM_CONF"])

    follow(scheduler, [JobKey(job, None, token)])
    (Path(place) / f"known-{number}").write_text(str(time.time()))
    return 0


def cost() -> int:
    with tempfile.TemporaryDirectory() as name:
        jobs = [submit("true", "--hold", cwd=Path(name)) for _ in range(1000)]
        try:
            native, why = choose_backend()
            backends = {"commands": SlurmCommands(), **({why: native} if native else {})}
            print(f"{'jobs':>5} {'backend':40} {'seconds':>8} {'CPU s':>8}   median of 15 polls")
            for number in (1, 100, 1000):
                for backend, scheduler in backends.items():
                    times = [_timed(scheduler, jobs[:number]) for _ in range(15)]
                    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
                    print(f"{number:5} {backend:40} {wall:8.4f} {cpu:8.4f}")
        finally:
            run(["scancel", *(job.id for job in jobs)], timeout=60)
    return 0


def _timed(scheduler: Scheduler, jobs: Sequence[JobKey]) -> tuple[float, float]:
    """Seconds, and CPU seconds of ours and of the programs that ended."""
    cpu, began = _cpu(), time.perf_counter()
    states = scheduler.poll(jobs)
    seconds = time.perf_counter() - began
    assert all(state.word == "PENDING" for state in states.values()), states
    return seconds, _cpu() - cpu


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
