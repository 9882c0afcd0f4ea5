"""Rendered scripts, run as Slurm would run them: on this host, with stand-ins for what starts containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.container.job_script import render
from launcher.container.planned import ContainerJob
from launcher.plan.plan import Plan
from tests.container.plans import SCRIPT, a_container, a_job, a_plan
from tests.container.stand_ins import StandIns
from tests.people import Person
from tests.result.documents import fixed

ID = "77"


@dataclass
class JobHost:
    """A node: a workspace with the benchmark's script, the stand-ins, and jobs of this test."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: Person | None = None
    """Whose jobs they are, and all that is in ``root``; None for this one."""

    def __post_init__(self) -> None:
        self.stand_ins = StandIns(self.root / "stand ins")
        self.script = self.workspace / SCRIPT
        self.script.parent.mkdir(parents=True)
        self.benchmark(f"cat > $RESULT_FILENAME.json <<'END'\n{json.dumps(fixed(4))}\nEND")

    @property
    def workspace(self) -> Path:
        return self.root / "work space"

    @property
    def own(self) -> Path:
        """The job's own directory."""
        return self.root / "runs" / ID

    def benchmark(self, text: str) -> None:
        """What the benchmark's script does."""
        self.script.write_text(text + "\n")

    def plan(self, job: ContainerJob | None = None, **changes: Any) -> Plan:
        mounts = {"/workspace": "{workspace}"}
        return a_plan(self.workspace, job or a_job(container=a_container(mounts=mounts)), **changes)

    def start(self, plan: Plan) -> subprocess.Popen[str]:
        script = self.root / "job.sh"
        script.write_text(render(plan, self.root / "runs"))
        if self.user is not None:
            for path in (self.root, *self.root.rglob("*")):
                os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)
        environment = {
            "PATH": self.stand_ins.path,
            "HOME": str(self.root),
            "SLURM_JOB_ID": ID,
            **ContainerJob.of(plan).environment,
            **self.environment,
        }
        return start_script(script, environment, self.root, **self.identity())

    def identity(self) -> dict[str, Any]:
        """Arguments of Popen that make a program the user's."""
        return {} if self.user is None else {"user": self.user.uid, "group": self.user.gid, "extra_groups": []}

    def run(self, plan: Plan, code: int = 0) -> str:
        """Run the script to its end; what it printed, after the exit code was what is expected."""
        with self.start(plan) as process:
            said, _ = process.communicate(timeout=120)
        assert process.returncode == code, f"exit {process.returncode}, expected {code}:\n{said}"
        return said

    def facts(self) -> dict[str, str]:
        lines = (self.own / "facts.txt").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


def _heed_signals() -> None:
    """Also where the tests run under nohup, or beside a shell that ignores Ctrl-C."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start_script(script: Path, environment: Mapping[str, str], cwd: Path, **identity: Any) -> subprocess.Popen[str]:
    """Start a rendered job script as Slurm does: a session of its own, one stream for all that it says."""
    return subprocess.Popen(
        ["bash", str(script)],
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_signals,
        **identity,
    )


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def left(marker: str) -> list[str]:
    """Processes of this host whose command line or environment has the marker, but for this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text and int(entry.name) != os.getpid():
            found.append(text[:200].decode(errors="replace"))
    return found
