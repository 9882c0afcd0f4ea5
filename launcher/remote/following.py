"""A run as it goes on, for somebody who looks from elsewhere: its events and its job's log from an offset, then its
end.

All of it is in files, so that whoever was cut off goes on where they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from launcher.core.errors import ResultError
from launcher.core.reading import open_regular
from launcher.result.summary_file import read_document
from launcher.run.record import RunRecord

EACH = 0.5
"""Seconds between two looks."""
PART = 128 << 10
"""Bytes that are read at once."""
ALONE = 20.0
"""Seconds that a run may have no driver: one that is just being started, or taken over."""


def follow(
    state: Path, run: str, events: int, log: int, *, sleep: Callable[[float], None] = time.sleep
) -> Generator[Any, None, Any]:
    """``{"events": […], "log": […], "at": [events, log]}`` whenever there is something new, ``at`` being the offsets
    for the next time; the value is how the run ended, see `end_of`. Raises ConfigError when there is no such run.

    A run that nobody drives ends the stream: its state is then ``left``.
    """
    record = RunRecord.load(state / "runs", run)
    alone = 0.0
    while True:
        record.reload()
        # What was written before the end is read after the end was seen.
        ended, driven = record.ended, record.fields.owner is not None and record.fields.owner.alive() is not False
        alone = 0.0 if driven else alone + EACH
        over = ended or alone > ALONE
        while True:
            new, told = _lines(record.directory / "events.jsonl", events, over)
            path = record.log_path
            shown, logged = _lines(path, log, over) if path is not None else ([], log)
            if (events, log) == (told, logged):
                break
            events, log = told, logged
            yield {"events": list(_events(new)), "log": shown, "at": [events, log]}
        if over:
            return end_of(record)
        sleep(EACH)


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


def end_of(record: RunRecord) -> dict[str, Any]:
    """How a run ended: its state, exit code, error, verdict and summary, as its record has them."""
    fields, error = record.fields, record.fields.error
    code = fields.exit_code if fields.exit_code is not None else 1  # none: its driver was killed at the last moment
    told = None
    if error is not None:
        told = {"layer": error.layer, "message": error.message, "where": error.where, "hint": error.hint, "exit": code}
    summary = None
    with contextlib.suppress(ResultError):
        summary = read_document(record.directory)
    return {
        "state": fields.state if record.ended else "left",
        "exit": code,
        "error": told,
        "verdict": str(fields.verdict) if fields.verdict is not None else "",
        "summary": summary,
        "directory": str(record.directory),
    }
