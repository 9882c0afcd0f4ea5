"""Follows a run from another machine: its events and its job's log from an offset, then its end.

Everything is read from files, so a client whose connection was lost continues at its last offsets.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import ResultError
from launcher.core.reading import open_regular
from launcher.result.summary_file import read_document
from launcher.run.record import RunRecord

POLL_SECONDS = 0.5
"""Seconds between two reads."""
PART = 128 << 10
"""Bytes that are read at once."""
DRIVERLESS_SECONDS = 20.0
"""Seconds that a run may have no driver before it counts as left: a driver may be starting, or taking over."""


class RunUpdate(msgspec.Struct, frozen=True):
    """New events of a run, new lines of its log, and the next offsets in both files."""

    events: list[dict[str, Any]]
    log: list[str]
    at: tuple[int, int]


class RunEnd(msgspec.Struct, frozen=True):
    """The end of a run, from its record; ``error`` has the fields of a message. The ``state`` ``left`` means that the
    run has not ended and has no driver."""

    state: str
    exit: int
    error: dict[str, Any] | None
    verdict: str
    summary: dict[str, Any] | None
    directory: str


def follow(
    state: Path, run: str, at: Sequence[int] = (0, 0), *, sleep: Callable[[float], None] = time.sleep
) -> Generator[RunUpdate, None, RunEnd]:
    """Yields a `RunUpdate` whenever a run's files have grown; returns its `RunEnd`, also when the run is left.

    ``at`` are the offsets in its events and its log. Raises ConfigError when there is no such run.
    """
    record, (events, log) = RunRecord.load(state / "runs", run), at
    driverless = 0.0
    while True:
        record.reload()
        # The end is looked for before the files are read, so that everything written before the end is read.
        owner = record.fields.owner
        driverless = 0.0 if owner is not None and owner.alive() is not False else driverless + POLL_SECONDS
        is_over = record.fields.has_ended or driverless > DRIVERLESS_SECONDS
        while True:
            event_lines, events_end = _lines(record.directory / "events.jsonl", events, is_over)
            path = record.log_path
            log_lines, log_end = _lines(path, log, is_over) if path is not None else ([], log)
            if (events, log) == (events_end, log_end):
                break
            events, log = events_end, log_end
            yield RunUpdate(list(_events(event_lines)), log_lines, (events, log))
        if is_over:
            return _run_end(record)
        sleep(POLL_SECONDS)


def _lines(path: Path, offset: int, all_of_it: bool) -> tuple[list[str], int]:
    """Whole lines from an offset, and the offset after them. A file that became shorter is read from its start."""
    try:
        with open_regular(path, buffered=False) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(offset := offset if 0 <= offset <= size else 0)
            part = file.read(PART)
    except OSError:
        return [], offset
    if not (all_of_it and len(part) < PART):
        part = part[: part.rfind(b"\n") + 1] or (part if len(part) == PART else b"")
    lines = [line.rpartition(b"\r")[2].decode(errors="replace") for line in part.split(b"\n")]
    return lines[:-1] if lines[-1] == "" else lines, offset + len(part)


def _events(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def _run_end(record: RunRecord) -> RunEnd:
    fields, error = record.fields, record.fields.error
    code = fields.exit_code if fields.exit_code is not None else 1  # none: its driver was killed at the last moment
    summary = None
    with contextlib.suppress(ResultError):
        summary = read_document(record.directory)
    return RunEnd(
        state=fields.state if fields.has_ended else "left",
        exit=code,
        error=None if error is None else {**msgspec.to_builtins(error), "exit": code},
        verdict=str(fields.verdict) if fields.verdict is not None else "",
        summary=summary,
        directory=str(record.directory),
    )
