"""All points of a state directory's runs, cached in an SQLite file that may be removed at any time.

The records are the source of truth: a run is read again when its record has changed, and leaves the cache when its
record is gone. A state directory on a network file system has no cache, since locks are unreliable there; all records
are read each time then, with the same result.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import msgspec

from launcher.core.errors import ConfigError
from launcher.core.mounts import MOUNT_TABLE, file_system_type, is_network
from launcher.core.publish import make_private
from launcher.report.document import ReportInput, Run
from launcher.report.points import Point
from launcher.report.records import fields_of, read_run

NAME = "history.sqlite"

_VERSION = 3
"""Version of the cache: a file of another version is rebuilt."""

_FILES = ("run.json", "summary.json", "results")
"""The files that a run is read from. Its results may be aggregated again at any time."""

_PATIENCE = 5.0
"""Seconds to wait for another launcher that writes to the file."""


class _CachedRun(msgspec.Struct, frozen=True, array_like=True):
    """A run and its points, or the problem of reading it."""

    run: Run | None
    points: tuple[Point, ...] = ()
    problem: str = ""


KeyFilter = Callable[[str], bool]
"""Whether runs of this matrix key are requested."""

_DECODER = msgspec.json.Decoder(_CachedRun)


def gather_history(
    state: Path, since: float = 0.0, keys: Sequence[str] = (), mounts: Path = MOUNT_TABLE
) -> ReportInput:
    """The points of all runs that began at ``since`` (Unix seconds) or later and whose matrix key matches a glob.

    Raises ConfigError if the runs cannot be listed.
    """
    gathered = ReportInput(sources=[str(state)])

    @cache  # thousands of runs have few different keys
    def matches(key: str) -> bool:
        return not keys or any(fnmatch.fnmatchcase(key, glob) for glob in keys)

    kind = file_system_type(state.resolve(), mounts)
    runs = None
    if kind and not is_network(kind):
        # A broken cache must not prevent a report.
        with contextlib.suppress(sqlite3.Error, OSError, UnicodeError, msgspec.MsgspecError):
            runs = _read_cached(state, since, matches)
    for cached in runs if runs is not None else _read_all(state, since, matches):
        if cached.run is None:
            gathered.problems.append(cached.problem)
        else:
            gathered.add(cached.run, cached.points)
    return gathered


def _mark(path: str) -> str:
    """A text that changes with the file or the directory's content; "" if it does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116  there are tens of thousands
    except OSError:
        return ""
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _marks(state: Path) -> dict[str, str]:
    """The ids of all runs, each with a text that changes when its record does."""
    marks_by_id = {}
    try:
        with os.scandir(state / "runs") as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    marks = [_mark(f"{entry.path}/{name}") for name in _FILES]
                    if marks[0]:  # a name that is not UTF-8 is no run id; it is reported as having no record
                        marks_by_id[os.fsencode(entry.name).decode(errors="backslashreplace")] = " ".join(marks)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"the runs cannot be listed: {error.strerror}", where=str(state / "runs")) from None
    return marks_by_id


def _read(directory: Path) -> tuple[float, str, _CachedRun]:
    """When a run began, its matrix key, and the run with its points."""
    try:
        fields = fields_of(directory)
        run, points = read_run(directory, fields)
    except ConfigError as error:
        return 0.0, "", _CachedRun(None, (), f"run {directory.name}: {error.message}")
    return fields.created, run.key, _CachedRun(run, tuple(points))


def _read_all(state: Path, since: float, matches: KeyFilter) -> list[_CachedRun]:
    runs = [_read(state / "runs" / name) for name in _marks(state)]
    chosen = [entry for entry in runs if entry[2].run is None or (entry[0] >= since and matches(entry[1]))]
    return [cached for _, _, cached in sorted(chosen, key=lambda entry: entry[0])]


def _read_cached(state: Path, since: float, matches: KeyFilter) -> list[_CachedRun]:
    """Update the cache and query it. Raises sqlite3.Error, OSError."""
    path = state / NAME
    make_private(state)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        return _update_and_query(path, state, since, matches)
    except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError):  # it is locked, or the disk is full
            raise
        path.unlink()  # it is damaged or not a cache; the records have all data
        return _update_and_query(path, state, since, matches)


def _update_and_query(path: Path, state: Path, since: float, matches: KeyFilter) -> list[_CachedRun]:
    with contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE)) as database:
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            with database:
                database.execute("DROP TABLE IF EXISTS runs")
                columns = "id TEXT PRIMARY KEY, mark TEXT, began REAL, key TEXT, said BLOB"
                database.execute(f"CREATE TABLE runs ({columns})")
                database.execute("CREATE INDEX by_time ON runs (began)")
                database.execute(f"PRAGMA user_version = {_VERSION}")
        known = dict(database.execute("SELECT id, mark FROM runs"))
        marks = _marks(state)
        with database:
            gone = [(name,) for name in known if name not in marks]
            database.executemany("DELETE FROM runs WHERE id = ?", gone)
            for name, mark in marks.items():
                if known.get(name) != mark:
                    began, key, cached = _read(state / "runs" / name)
                    row = (name, mark, began, key, msgspec.json.encode(cached))
                    database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", row)
        database.create_function("wanted", 1, matches)
        query = "SELECT said FROM runs WHERE began = 0 OR (began >= ? AND wanted(key)) ORDER BY began"
        return [_DECODER.decode(content) for (content,) in database.execute(query, (since,))]
