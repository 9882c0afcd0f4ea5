"""Driving the launcher as a user does: its program, an environment, a state directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "minimaxm3-fp8-gb200-dynamo-vllm"
ONE = ("-k", KEY, "--seq", "1k1k", "--topology", "1P1D DEP4/TP4")
"""Selects one benchmark, of concurrencies 1, 4, 8, 16."""


@dataclass
class Desk:
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
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=self.workspace,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
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

    def wait_for(self, what: Callable[[Mapping[str, Any]], bool], run_id: str = "r", seconds: float = 40) -> None:
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
