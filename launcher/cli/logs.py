"""`launcher logs`: a job's log as `run` shows it; and the lines of logs as both show them."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from launcher.cli.command import Command, Tell, of_each
from launcher.core.errors import ConfigError, LauncherError, Wrong
from launcher.core.lines import Line, Terminal
from launcher.core.redact import LineRedactor
from launcher.core.state import state_directory
from launcher.core.terminal import log_line
from launcher.run.naming import load_named
from launcher.run.record import RunRecord
from launcher.slurm.logs import LogFollower

_PART = 256 << 10
"""Characters of the lines that are given at a time."""


class LogLines:
    """The lines of a job's log as they are shown: without secrets and control characters, behind a label."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._redactor = LineRedactor(os.environ)

    def shown(self, lines: Sequence[str]) -> list[str]:
        text = log_line("\n".join(self._redactor.redact([f"{self._prefix}{line}" for line in lines])))
        return text.split("\n") if lines else []


@dataclass(frozen=True)
class LogPart:
    """Lines of a run's log that follow those before; ``label`` tells runs apart where there are several."""

    run: str
    lines: tuple[str, ...] = ()
    label: str = ""
    wrong: tuple[Wrong, ...] = ()


class _Log:
    """One run's log, from its beginning on."""

    def __init__(self, record: RunRecord, label: str, *, wait: bool) -> None:
        self._record, self._label = record, label
        self._shown = LogLines()
        self._follower: LogFollower | None = None
        self.over = False
        self._look()
        if self._follower is None and not wait:
            raise ConfigError("this run has no job yet, hence no log", where=f"run {record.id}")

    def _look(self) -> None:
        if self._follower is None and (path := self._record.log_path) is not None:
            self._follower = LogFollower(path)

    def read(self, *, wait: bool) -> Iterator[LogPart]:
        """What is new. It is over when the run is, or at once where nobody waits. Raises LauncherError."""
        over = self._record.fields.has_ended or not wait
        self._look()
        while self._follower is not None and ((lines := self._follower.read_new()) or self._follower.behind):
            yield from self._parts(lines)
        if over and self._follower is not None:
            yield from self._parts(self._follower.flush())
        self.over = over
        if not over:
            self._record = RunRecord.load(self._record.directory.parent, self._record.id)

    def _parts(self, lines: Sequence[str]) -> Iterator[LogPart]:
        shown, part, size = self._shown.shown(lines), [], 0
        for line in shown:
            part.append(line)
            size += len(line)
            if size > _PART:
                yield LogPart(self._record.id, tuple(part), self._label)
                part, size = [], 0
        if part:
            yield LogPart(self._record.id, tuple(part), self._label)


def show(value: LogPart, terminal: Terminal) -> Iterator[str]:
    label = f"{value.label}  | " if value.label else ""
    return (Line(f"{label}{line}", raw=True) for line in value.lines)


@partial(Command, LogPart, show=show)
def logs(arguments: argparse.Namespace, tell: Tell) -> Iterator[LogPart]:
    """The logs of jobs; with --follow until the runs have ended."""
    runs, follow, several = (
        state_directory(os.environ, arguments.state) / "runs",
        arguments.follow,
        len(arguments.runs) > 1,
    )
    opened, wrong = of_each(
        arguments.runs,
        lambda name: _Log(record := load_named(runs, name), record.id if several else "", wait=follow),
    )
    yield from (LogPart(one.of, wrong=(one,)) for one in wrong)
    while opened:
        for log in opened:
            try:
                yield from log.read(wait=follow)
            except LauncherError:
                if not several:
                    raise
                log.over = True
        opened = [log for log in opened if not log.over]
        if opened:
            time.sleep(0.5)
