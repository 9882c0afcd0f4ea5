"""All points of a state directory's runs, remembered in a file of SQLite that can be removed at any time.

The records are what is true. A run is read again when its record has changed, and forgotten when that is gone. Where
the state directory lies on a network's file system there is no such file, since its locks are not to be trusted: then
all records are read each time, with the same answer.
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
"""Of the file: one of another version is made anew."""

_FILES = ("run.json", "summary.json", "results")
"""What a run is read from: it is finished in this order, and its results may be aggregated again at any time."""

_PATIENCE = 5.0
"""Seconds to wait for another launcher that writes to the file."""


class _Remembered(msgspec.Struct, frozen=True, array_like=True):
    """A run and its points, or why it cannot be read."""

    run: Run | None
    points: tuple[Point, ...] = ()
    problem: str = ""


Wanted = Callable[[str], bool]
"""Whether a run of this key of the matrix is asked for."""

_DECODER = msgspec.json.Decoder(_Remembered)


def gather_history(
    state: Path, since: float = 0.0, keys: Sequence[str] = (), mounts: Path = MOUNT_TABLE
) -> ReportInput:
    """The points of all runs that began at ``since`` or later (Unix seconds), of matrix keys that match a glob.

    Raises ConfigError when the runs cannot be listed.
    """
    gathered = ReportInput(sources=[str(state)])

    @cache  # of thousands of runs, few have keys of their own
    def wanted(key: str) -> bool:
        return not keys or any(fnmatch.fnmatchcase(key, glob) for glob in keys)

    kind = file_system_type(state.resolve(), mounts)
    found = None
    if kind and not is_network(kind):
        with contextlib.suppress(
            sqlite3.Error, OSError, UnicodeError, msgspec.MsgspecError
        ):  # nobody's file is worth a report
            found = _ask(state, since, wanted)
    for one in found if found is not None else _read_all(state, since, wanted):
        if one.run is None:
            gathered.problems.append(one.problem)
        else:
            gathered.add(one.run, one.points)
    return gathered


def _mark(path: str) -> str:
    """What changes whenever a file does, or what is in a directory; "" where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  there are tens of thousands
    except OSError:
        return ""
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _marks(state: Path) -> dict[str, str]:
    """The runs that there are, with what changes whenever their records do."""
    found = {}
    try:
        with os.scandir(state / "runs") as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    marks = [_mark(f"{entry.path}/{name}") for name in _FILES]
                    if marks[0]:  # what is not UTF-8 is no run's id, and is said to have no record
                        found[os.fsencode(entry.name).decode(errors="backslashreplace")] = " ".join(marks)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"the runs cannot be listed: {error.strerror}", where=str(state / "runs")) from None
    return found


def _read(directory: Path) -> tuple[float, str, _Remembered]:
    """A run as its record says: when it began, its key in the matrix, itself."""
    try:
        fields = fields_of(directory)
        run, points = read_run(directory, fields)
    except ConfigError as error:
        return 0.0, "", _Remembered(None, (), f"run {directory.name}: {error.message}")
    return fields.created, run.key, _Remembered(run, tuple(points))


def _read_all(state: Path, since: float, wanted: Wanted) -> list[_Remembered]:
    read = [_read(state / "runs" / name) for name in _marks(state)]
    chosen = [one for one in read if one[2].run is None or (one[0] >= since and wanted(one[1]))]
    return [one for _, _, one in sorted(chosen, key=lambda each: each[0])]


def _ask(state: Path, since: float, wanted: Wanted) -> list[_Remembered]:
    """Bring the file up to date, and ask it. Raises sqlite3.Error, OSError."""
    path = state / NAME
    make_private(state)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        return _asked(path, state, since, wanted)
    except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError):  # it is locked, or the disk is full
            raise
        path.unlink()  # it is damaged, of another launcher, or none of ours: records have it all
        return _asked(path, state, since, wanted)


def _asked(path: Path, state: Path, since: float, wanted: Wanted) -> list[_Remembered]:
    with contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE)) as database:
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            with database:
                database.execute("DROP TABLE IF EXISTS runs")
                columns = "id TEXT PRIMARY KEY, mark TEXT, began REAL, key TEXT, said BLOB"
                database.execute(f"CREATE TABLE runs ({columns})")
                database.execute("CREATE INDEX by_time ON runs (began)")
                database.execute(f"PRAGMA user_version = {_VERSION}")
        known = dict(database.execute("SELECT id, mark FROM runs"))
        there = _marks(state)
        with database:
            gone = [(name,) for name in known if name not in there]
            database.executemany("DELETE FROM runs WHERE id = ?", gone)
            for name, mark in there.items():
                if known.get(name) != mark:
                    began, key, one = _read(state / "runs" / name)
                    row = (name, mark, began, key, msgspec.json.encode(one))
                    database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", row)
        database.create_function("wanted", 1, wanted)
        asked = "SELECT said FROM runs WHERE began = 0 OR (began >= ? AND wanted(key)) ORDER BY began"
        return [_DECODER.decode(said) for (said,) in database.execute(asked, (since,))]
