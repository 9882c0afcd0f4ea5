"""A cluster that tests submit to: what they run on it, and how they ask about it."""

from __future__ import annotations

import re
import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from launcher.core.process import run
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler
from launcher.slurm.commands import SlurmCommands
from tests.commands import real_commands
from tests.conftest import SlurmCluster


class Cluster:
    def __init__(self, given: SlurmCluster, work: Path) -> None:
        self.environ = dict(given.env)
        self.directory: Path = given.directory
        self.nodes: int = given.nodes
        self.work = work
        self.runner = real_commands()
        self.scheduler: Scheduler = SlurmCommands(runner=self.runner, environ=self.environ)
        self.submitted: list[JobKey] = []

    def command(self, *argv: str) -> str:
        done = run(argv, timeout=60, env=self.environ, cwd=self.work)
        assert done.ok, done
        return done.stdout.strip()

    def submit(self, script: str, *options: str, component: str = "") -> JobKey:
        """Submit a script; with the option of a second component as a heterogeneous job."""
        token = f"run-{secrets.token_hex(4)}"
        second = [":", component] if component else []
        job = self.command("sbatch", "--parsable", f"--comment={token}", *options, "--wrap", script, *second)
        self.submitted.append(JobKey(job, time.time(), token))
        return self.submitted[-1]

    def state(self, job: JobKey) -> JobState:
        return self.scheduler.poll([job])[job]

    def until(self, job: JobKey, condition: Callable[[JobState], bool], seconds: float = 120.0) -> JobState:
        end = time.monotonic() + seconds
        while not condition(state := self.state(job)):
            assert time.monotonic() < end, state.describe()
            time.sleep(0.1)
        return state

    def end(self, job: JobKey) -> JobState:
        return self.until(job, lambda state: state.phase is Phase.TERMINAL)

    def close(self) -> None:
        for job in self.submitted:
            subprocess.run(["scancel", job.id], env=self.environ, timeout=60, check=False)

    @property
    def controller(self) -> int:
        """The pid of slurmctld."""
        return int((self.directory / "run" / "slurmctld.pid").read_text())

    @property
    def port(self) -> str:
        conf = (self.directory / "etc" / "slurm.conf").read_text()
        found = re.search(r"^SlurmctldPort=(\d+)$", conf, re.MULTILINE)
        assert found is not None
        return found[1]
