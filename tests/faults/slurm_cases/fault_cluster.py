"""A cluster of our own, programs before the real ones on PATH, daemons that can be ended, and jobs with known ends."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.slurm.client import JobKey, JobState, Phase
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.native import SlurmNative, choose_backend
from launcher.slurm.poller import JobPoller, Pace
from tests.conftest import cluster, cluster_environment, free_ports
from tests.faults.slurm_cases.programs import Programs
from tests.slurm.following import rounds

QUICK = Pace(first=0.3, running=1.0, pending=1.0)


@dataclass(frozen=True)
class Fate:
    """How a job ends: its script's last words, and what has to be said of it."""

    script: str
    word: str
    code: tuple[int, int]


GOOD = Fate("exit 0", "COMPLETED", (0, 0))
BAD = Fate("exit 3", "FAILED", (3, 0))
KILLED = Fate("kill -9 $$", "FAILED", (0, 9))
FATES = (GOOD, BAD, KILLED)


class FaultCluster:
    """One cluster in one directory, until `down`."""

    def __init__(self, directory: Path, options: Sequence[str], backend: str = "commands", at_once: int = 4) -> None:
        """``backend`` is how Slurm is asked, by the watcher here and by launchers; ``at_once`` how many of these go on
        together. Raises RuntimeError where the cluster does not start, or the backend cannot be used, with the reason.
        """
        self.directory = directory
        self.backend = backend
        self.at_once = at_once
        self.preparing: dict[str, threading.Lock] = defaultdict(threading.Lock)
        nodes = int(options[options.index("--nodes") + 1])
        self._options = [*options, "--port", str(free_ports(nodes + 2))]
        self.cluster = directory / "cluster"
        self.marks = directory / "marks"
        self.marks.mkdir(parents=True)
        self.fates: dict[JobKey, Fate] = {}
        self.restart()
        real = cluster_environment(self.cluster)
        self.programs = Programs(directory / "programs", real)
        self.real = real
        self.environ = {**real, "PATH": f"{self.programs.directory}:{real['PATH']}"}
        self._by_library = backend == "pyslurm"
        if self._by_library:
            native, why = choose_backend(environ=self.environ)
            if native is None:
                self.down()
                raise RuntimeError(f"not by pyslurm: {why}")

    def restart(self) -> None:
        """Start what of the cluster does not run."""
        answer = cluster("up", self.cluster, *self._options)
        if answer.returncode:
            raise RuntimeError(answer.stderr.strip())

    def down(self) -> None:
        cluster("down", self.cluster)

    def pid(self, daemon: str) -> int:
        """Of a daemon, by the name that `scripts/cluster` gives it (a node's name for its slurmd)."""
        return int((self.cluster / "pids" / daemon).read_text().split()[0])

    def kill(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon, and return when it is gone."""
        pid = self.pid(daemon)
        os.kill(pid, number)
        deadline = time.monotonic() + 20
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.02)

    @contextmanager
    def without(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """A while without a daemon."""
        self.kill(daemon, number)
        try:
            yield
        finally:
            self.restart()

    def command(self, *argv: str, check: bool = True) -> str:
        """Run one of Slurm's real programs."""
        done = subprocess.run(argv, env=self.real, capture_output=True, text=True, timeout=90, cwd=self.directory)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, seconds: float, fate: Fate, *options: str) -> JobKey:
        """A job that works for some seconds, leaves its mark, and ends as its fate says."""
        token = f"lab-{secrets.token_hex(5)}"
        script = f"sleep {seconds}; touch {self.marks}/{token}; {fate.script}"
        argv = ("sbatch", "--parsable", f"--comment={token}", "--output=/dev/null", *options, "--wrap", script)
        job = JobKey(self.command(*argv), time.time(), token)
        self.fates[job] = fate
        return job

    def scheduler(self, timeout: float = 3.0) -> SlurmCommands:
        """What is tried: through the programs on PATH, or through pyslurm, for what of it goes that way."""
        if self._by_library:
            return SlurmNative(environ=self.environ, timeout=timeout)
        return SlurmCommands(environ=self.environ, timeout=timeout)

    def marked(self, job: JobKey) -> bool:
        """Whether the job's script has come to its end: the truth, by the job itself."""
        return (self.marks / job.token).exists()

    def watch(
        self,
        jobs: Sequence[JobKey],
        *,
        pace: Pace = QUICK,
        seconds: float = 120.0,
        early: Callable[[JobKey], bool] | None = None,
        timeout: float = 3.0,
    ) -> dict[JobKey, list[str]]:
        """Watch jobs to their ends, and give for each what was said wrongly: an end before the end, or another end.

        ``early`` says that an end told now is too early; by default that is one before the job's mark.
        """
        too_early = early or (lambda job: not self.marked(job))
        wrong: dict[JobKey, list[str]] = {job: [] for job in jobs}
        states: dict[JobKey, JobState] = {}
        poller = JobPoller(self.scheduler(timeout), pace=pace)
        for job in jobs:
            poller.watch(job)
        for answer in rounds(poller, seconds=seconds):
            states.update(answer.states)
            for change in answer.changes:
                if change.ended and too_early(change.job):
                    wrong[change.job].append(f"{change.job} was told {change.state.describe()} before its end")
        for job in jobs:
            state, fate = states.get(job), self.fates[job]
            if state is None or state.phase is not Phase.TERMINAL:
                wrong[job].append(f"{job} had no end within {seconds:.0f} s: {state and state.describe()}")
            elif state.word != fate.word or state.exit_code not in (fate.code, None):
                wrong[job].append(f"{job} was told {state.describe()}, and its end was {fate.word} {fate.code}")
            elif state.succeeded != (fate is GOOD):
                wrong[job].append(f"{job} was told {'good' if state.succeeded else 'bad'}")
        return wrong

    def until(self, job: JobKey, condition: Callable[[JobState], bool], seconds: float = 60.0) -> JobState:
        """Ask until the answer is as wanted; the last answer."""
        scheduler = self.scheduler()
        deadline = time.monotonic() + seconds
        while not condition(state := scheduler.poll([job])[job]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return state

    def jobs_of(self, token: str) -> list[tuple[str, str]]:
        """(id, state) of every job that carries a token, seen by the real squeue and sacct."""
        found: dict[str, str] = {}
        accounts = self.command("sacct", "-X", "-n", "-P", "-S", "now-1days", "-o", "JobIDRaw,State,Comment")
        for line in accounts.splitlines():
            job, state, comment = line.split("|", 2)
            if comment == token:
                found[job] = state.split()[0]
        for line in self.command("squeue", "-h", "--states=all", "-o", "%A|%T|%k").splitlines():
            job, state, comment = line.split("|", 2)
            if comment == token:
                found[job] = state
        return sorted(found.items())


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def alive(jobs: Sequence[tuple[str, str]]) -> list[str]:
    """Ids among `FaultCluster.jobs_of` that have not ended."""
    return [job for job, state in jobs if re.match("PENDING|RUNNING|CONFIGURING|COMPLETING|SUSPENDED", state)]
