"""`launcher logs`: a job's log as `run` shows it; and the lines of logs as both show them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from launcher.core.errors import ConfigError
from launcher.core.redact import LineRedactor
from launcher.core.state import state_directory
from launcher.core.terminal import log_line
from launcher.run.record import RunRecord
from launcher.slurm.logs import LogFollower


class LogLines:
    """The lines of a job's log as they are shown: without secrets and control characters, behind a label."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._redactor = LineRedactor(os.environ)

    def shown(self, lines: Sequence[str]) -> list[str]:
        text = log_line("\n".join(self._redactor.redact([f"{self._prefix}{line}" for line in lines])))
        return text.split("\n") if lines else []


def logs(arguments: argparse.Namespace) -> int:
    """Print the job's log; with --follow until the run has ended."""
    runs, follower = state_directory(os.environ, arguments.state) / "runs", None
    shown = LogLines()

    def write(lines: Sequence[str]) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in shown.shown(lines)))
        sys.stdout.flush()

    while True:
        record = RunRecord.load(runs, arguments.run)
        if follower is None and (path := record.log_path) is not None:
            follower = LogFollower(path)
        if follower is None and not arguments.follow:
            raise ConfigError("this run has no job yet, hence no log", where=f"run {record.id}")
        while follower is not None and ((lines := follower.read_new()) or follower.behind):
            write(lines)
        if record.ended or not arguments.follow:
            if follower is not None:
                write(follower.flush())
            return 0
        time.sleep(0.5)
