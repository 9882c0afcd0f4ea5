"""A run as it goes on, for somebody who looks from elsewhere: its events and its job's log from an offset, then its
end.

All of it is in files, so that whoever was cut off goes on where they were.
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
"""Seconds between two looks."""
PART = 128 << 10
"""Bytes that are read at once."""
DRIVERLESS_SECONDS = 20.0
"""Seconds that a run may have no driver: one that is just being started, or taken over."""


class RunUpdate(msgspec.Struct, frozen=True):
    """What is new of a run: its events, its log's lines, and both files' offsets for the next time."""

    events: list[dict[str, Any]]
    log: list[str]
    at: tuple[int, int]


class RunEnd(msgspec.Struct, frozen=True):
    """How a run ended, as its record has it: ``error`` as a message carries it. A ``state`` of ``left`` is of one that
    nobody drives and that has not ended."""

    state: str
    exit: int
    error: dict[str, Any] | None
    verdict: str
    summary: dict[str, Any] | None
    directory: str


def follow(
    state: Path, run: str, offsets_: Sequence[int] = (0, 0), *, sleep: Callable[[float], None] = time.sleep
) -> Generator[RunUpdate, None, RunEnd]:
    """Yields a `RunUpdate` whenever a run's files have grown; returns its `RunEnd`, also when nobody drives the run any
    more. Raises ConfigError when there is no such run."""
    record, (events, log) = RunRecord.load(state / "runs", run), offsets_
    driverless = 0.0
    while True:
        record.reload()
        # What was written before the end is read after the end was seen.
        ended, driven = (
            record.fields.has_ended,
            record.fields.owner is not None and record.fields.owner.alive() is not False,
        )
        driverless = 0.0 if driven else driverless + POLL_SECONDS
        is_over = ended or driverless > DRIVERLESS_SECONDS
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
    """Whole lines from an offset, and the offset after them. A file that is shorter now is read from its start."""
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
    error_fields = None
    if error is not None:
        error_fields = {
            "layer": error.layer,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
            "exit": code,
        }
    summary = None
    with contextlib.suppress(ResultError):
        summary = read_document(record.directory)
    verdict = str(fields.verdict) if fields.verdict is not None else ""
    return RunEnd(
        fields.state if record.fields.has_ended else "left", code, error_fields, verdict, summary, str(record.directory)
    )
