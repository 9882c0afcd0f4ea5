"""Driving the launcher as a user does, by its program or in this process: an environment, a state directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import environment_of
from launcher.benchmark.expand import Selection
from launcher.cli import helping, main
from launcher.cli.arguments import parser
from launcher.core.process import ProcessIdentity
from launcher.project import Project

KEY = "minimaxm3-fp8-gb200-dynamo-vllm"
ONE = ("-k", KEY, "--seq", "1k1k", "--topology", "1P1D DEP4/TP4")
"""Selects one benchmark, of concurrencies 1, 4, 8, 16."""


@dataclass
class LauncherUser:
    """A user's place: a state directory, a workspace, and an environment that knows nothing of other clusters."""

    root: Path
    runner: str = "local"
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def workspace(self) -> Path:
        path = self.root / "workspace"
        path.mkdir(exist_ok=True)
        return path

    def environment(self, **more: str) -> dict[str, str]:
        dropped = ("SLURM", "SBATCH", "GITHUB_", "LAUNCHER_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        return {
            **kept,
            "HOME": str(self.root),
            "LAUNCHER_STATE": str(self.state),
            "NO_COLOR": "1",
            **self.extra,
            **more,
        }

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start the launcher as a process, which heeds a hang-up also where the tests run under nohup."""
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=self.workspace,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def launcher(self, *arguments: str, code: int = 0, timeout: float = 120, **more: str) -> str:
        """Run to the end; the output, after the exit code was what is expected."""
        with self.start(*arguments, **more) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == code, f"exit {process.returncode}, expected {code}:\n{out}"
        return out

    def run(self, *arguments: str, code: int = 0, run_id: str = "r", **more: str) -> str:
        """`launcher run` of one benchmark."""
        return self.launcher("run", *ONE, "--runner", self.runner, "--run-id", run_id, *arguments, code=code, **more)

    def record(self, run_id: str = "r") -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.state / "runs" / run_id / "run.json").read_text())
        return value

    def summary(self, run_id: str = "r") -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.state / "runs" / run_id / "summary.json").read_text())
        return value

    def run_ids(self) -> list[str]:
        """The runs that have a record. A record is made whole under a hidden name first, which is no run."""
        runs = self.state / "runs"
        return sorted(path.name for path in runs.iterdir() if not path.name.startswith(".")) if runs.is_dir() else []

    def forget_runs(self) -> None:
        """End what is left of earlier runs, and remove them; images, checkpoints and the cache of checkouts stay."""
        if self.alive_jobs():
            self.launcher("cleanup")
        for name in ("runs", "jobs", "srt-slurm", "workspaces"):
            shutil.rmtree(self.state / name, ignore_errors=True)
        shutil.rmtree(self.workspace)

    def alive_jobs(self) -> list[str]:
        """Processes of the embedded scheduler's jobs that still run, seen without asking the launcher."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                text = command + (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            ours = str(self.state / "jobs") in text and "launcher" in command and int(entry.name) != os.getpid()
            if ours and ProcessIdentity.of(int(entry.name)).alive():
                found.append(command.replace("\0", " "))
        return found

    def wait_for(self, what: Callable[[Mapping[str, Any]], bool], run_id: str = "r", seconds: float = 120) -> None:
        """Until the record says so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if what(self.record(run_id)):
                    return
            except FileNotFoundError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {self.record(run_id)}")


class _Copied(io.StringIO):
    """What is written to it is written to ``to`` as well."""

    to: io.StringIO

    def write(self, text: str) -> int:
        self.to.write(text)
        return super().write(text)


class InProcessUser(LauncherUser):
    """The same user, whose commands run in this process: what they say and their exit codes are the same. ``printed``
    is what the last one wrote to standard output alone."""

    printed = ""

    def launcher(self, *arguments: str, code: int = 0, timeout: float = 120, **more: str) -> str:
        """Run one command to its end; the output, after the exit code was what is expected."""
        out, alone = io.StringIO(), _Copied()
        alone.to = out
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(alone), contextlib.redirect_stderr(out):
            patch.chdir(self.workspace)
            environment = self.environment(**more)
            for name in os.environ.keys() - environment.keys():
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            exit_code = main(arguments)
        self.printed = alone.getvalue()
        assert exit_code == code, f"exit {exit_code}, expected {code}:\n{out.getvalue()}"
        return out.getvalue()


def valid_lines(user: InProcessUser, command: str, *, whole: bool = False) -> list[dict[str, Any]]:
    """The lines of JSON that a command printed last, or all as one (``whole``); each agrees with its schema."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(dict(helping.commands_with_schemas(parser()))[command].schema)
    values: list[dict[str, Any]] = [
        json.loads(line) for line in ([user.printed] if whole else user.printed.splitlines())
    ]
    for value in values:
        validator.validate(value)
    return values


def running(record: Mapping[str, Any]) -> bool:
    """Whether a record says that its job runs."""
    return bool(record["state"] == "running")


def one_benchmark(session: Project) -> Benchmark:
    """What `ONE` selects."""
    entries = session.matrix().entries(Selection(keys=[KEY], sequences=["1k1k"], nodes="multi"))
    return next(entry.benchmark for entry in entries if entry.benchmark.topology == "1P1D DEP4/TP4")


def github_environment(user: LauncherUser) -> dict[str, str]:
    """The variables of a GitHub job of InferenceX's workflow that asks for one benchmark; its files are in ``root``."""
    session = Project.open({"HOME": str(user.root)}, workspace=str(user.workspace))
    for name in ("output", "summary"):
        (user.root / name).write_text("")
    return {
        **environment_of(one_benchmark(session)),
        "RUNNER_NAME": "local_0",
        "RESULT_FILENAME": "RESULT",
        "GITHUB_ACTIONS": "true",
        "GITHUB_RUN_ID": "77",
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_WORKSPACE": str(user.workspace),
        "GITHUB_OUTPUT": str(user.root / "output"),
        "GITHUB_STEP_SUMMARY": str(user.root / "summary"),
        "HF_TOKEN": "hf_secretsecret",
    }
