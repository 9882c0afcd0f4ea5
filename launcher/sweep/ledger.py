"""The files of a sweep: ``sweep.json`` published whole, ``events.jsonl`` appended, requests of people, and the lock.

    <state>/sweeps/<id>/
        sweep.json       what is wanted; never changed
        events.jsonl     one line per decision, on the disk before its effect
        requests/        what people asked of the driver (pause, add …); the driver makes events of them
        driver           the owner file of whoever drives the sweep (launcher/core/lease.py), beside driver.flock

Only who holds the lock appends events: the driver; without one `add` and `cancel`. Readers lock nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.core.errors import ConfigError, LauncherError, closest
from launcher.core.lease import Lock, LockOwner, LockPace, read_owner
from launcher.core.publish import (
    append_line,
    dead_temporaries,
    make_private,
    publishing_directory,
    write_bytes,
)
from launcher.core.reading import open_regular, read_file
from launcher.sweep.schema import DECODE_LINE, DECODE_SWEEP, SCHEMA, Added, Event, Line, Requested, Sweep

NEW_LINE = b"\n"

LARGEST = 256 << 20
"""Bytes of one file of a ledger: 10,000 points have some 10 MB."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def check_id(name: str) -> str:
    """The id itself, if it can be a directory's name and the beginning of run ids. Raises ConfigError."""
    if not _ID.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a sweep's name", hint="letters, digits, '.', '_' and '-', at most 60")
    return name


@dataclass
class Ledger:
    """One sweep's directory. ``unread`` says which lines of its events could not be read, once `events` was called."""

    directory: Path
    sweep: Sweep
    unread: tuple[str, ...] = ()

    @classmethod
    def create(cls, sweeps: Path, sweep: Sweep, events: Iterable[Event] = ()) -> Ledger:
        """Publish a new sweep, whole, with its first events. Raises ConfigError when the name is taken, or the disk
        does not take it."""
        directory = sweeps / check_id(sweep.id)
        try:
            make_private(sweeps)
            with publishing_directory(directory, whole=lambda there: False) as temporary:
                temporary.mkdir(mode=0o700)
                (temporary / "requests").mkdir(mode=0o700)
                content = msgspec.json.format(msgspec.json.encode(sweep), indent=1)
                write_bytes(temporary / "sweep.json", content + b"\n")
                if lines := b"".join(msgspec.json.encode(event) + b"\n" for event in events):
                    write_bytes(temporary / "events.jsonl", lines)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                message = f"there is a sweep {sweep.id} already"
                hint = f"launcher sweep resume {sweep.id}, or another --name"
                raise ConfigError(message, where=str(directory), hint=hint) from None
            message = f"the sweep's ledger cannot be made: {error.strerror}"
            raise ConfigError(message, where=str(directory)) from None
        return cls(directory, sweep)

    @classmethod
    def load(cls, sweeps: Path, name: str) -> Ledger:
        """Read a sweep's ledger. Raises ConfigError naming the nearest sweep, or what is wrong with the file."""
        directory = sweeps / check_id(name)
        path = directory / "sweep.json"
        try:
            content = read_file(path, LARGEST)
        except (FileNotFoundError, NotADirectoryError):
            near = closest(name, names(sweeps))
            hint = f"did you mean {near}?" if near else "launcher sweep list"
            raise ConfigError(f"there is no sweep {name}", where=str(sweeps), hint=hint) from None
        except OSError as error:
            raise ConfigError(f"the sweep cannot be read: {error.strerror}", where=str(path)) from None
        return cls(directory, _read_sweep(content, path, name))

    @property
    def id(self) -> str:
        return self.sweep.id

    def events(self) -> list[Line]:
        """The decisions, in order. A line that a kill or a full disk has cut is passed over, and `unread` says so."""
        reader = EventReader(self)
        events = reader.new(torn=True)
        self.unread = tuple(reader.unread)
        return events

    def append(self, event: Event) -> None:
        """Write a decision down, durably, before its effect. Raises LauncherError when the disk does not take it."""
        path = self.directory / "events.jsonl"
        try:
            append_line(path, msgspec.json.encode(event), durable=True)
        except OSError as error:
            message = f"the sweep's ledger cannot be written: {error.strerror}"
            raise LauncherError(message, where=str(path), hint="make room, then launcher sweep resume") from None

    def lock(self, *, wait: float = 0.0) -> Lock:
        """The lock of whoever drives the sweep; a dead owner's is broken at once, a silent one's after its lease."""
        lease, flock = self.sweep.policy.lease, self.directory / "driver.flock"
        pace = LockPace(lease, beat=lease / 12, poll=min(1.0, lease / 10))
        return Lock(self.directory / "driver", what=f"drives sweep {self.id}", wait=wait, flock_path=flock, pace=pace)

    @property
    def take_over_patience(self) -> float:
        """Seconds that prove an owner on another host gone, with what a lock needs to look."""
        return self.sweep.policy.lease + 30.0

    def driver(self) -> LockOwner | None:
        """Who drives the sweep, as far as that can be told from here; None for nobody."""
        owner_file = read_owner(self.directory / "driver")
        owner = LockOwner.from_json(owner_file[0]) if owner_file is not None else None
        return None if owner is None or owner.is_dead else owner

    def add_request(self, request: Requested | Added) -> None:
        """Ask the driver for something. Raises OSError."""
        requests = self.directory / "requests"
        make_private(requests)
        write_bytes(requests / f"{time.time_ns():020d}-{os.getpid()}.json", msgspec.json.encode(request))

    def requests(self) -> Iterator[tuple[Path, Requested | Added | None]]:
        """What was asked and not yet answered, oldest first; None for a file that holds no request."""
        with contextlib.suppress(OSError):
            for path in sorted((self.directory / "requests").glob("*.json")):
                request = None
                with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    line = DECODE_LINE.decode(read_file(path, LARGEST))
                    request = line if isinstance(line, (Requested, Added)) else None
                yield path, request


class EventReader:
    """Reads the events of a ledger, each once. ``unread`` says which lines could not be read."""

    def __init__(self, ledger: Ledger) -> None:
        self._path = ledger.directory / "events.jsonl"
        self._at = self._line = 0
        self.unread: list[str] = []
        self.cut = ""
        """What is said of a last line that has no end, which may be under way."""

    def new(self, *, torn: bool = False) -> list[Line]:
        """The events since the last call; what has no end yet counts with ``torn`` alone. Raises ConfigError."""
        try:
            with open_regular(self._path) as file:
                file.seek(self._at)
                if len(content := file.read(LARGEST + 1)) > LARGEST:
                    raise OSError(errno.EFBIG, f"there are more than {LARGEST / 1e6:g} MB of them")
        except FileNotFoundError:
            return []
        except OSError as error:
            message = f"the sweep's events cannot be read: {error.strerror}"
            raise ConfigError(message, where=str(self._path)) from None
        complete = content if torn else content[: content.rfind(NEW_LINE) + 1]
        self._at += len(complete)
        self.cut = (
            f"line {self._line + complete.count(NEW_LINE) + 1} of events.jsonl is cut" if complete != content else ""
        )
        events: list[Line] = []
        for line in complete.removesuffix(NEW_LINE).split(NEW_LINE) if complete else ():
            self._line += 1
            if line.strip():
                try:
                    event = DECODE_LINE.decode(line)
                    if not _plain(run := getattr(event, "run", "a-run")):
                        raise msgspec.ValidationError(f"{run!r} is no run's id")
                    events.append(event)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    self.unread.append(f"line {self._line} of events.jsonl is passed over: {error}")
        return events


def _plain(name: str) -> bool:
    """Whether a name stands for something in a directory, and nothing elsewhere."""
    return name not in ("", ".", "..") and not {"/", "\0"} & {*name}


def _read_sweep(content: bytes, path: Path, name: str) -> Sweep:
    try:
        schema = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).get("schema", b"null")
        if bytes(schema) != str(SCHEMA).encode():
            message = f"the sweep cannot be read: expected schema {SCHEMA}, and it is {bytes(schema).decode()}"
            raise ConfigError(message, where=str(path), hint="another version of the launcher wrote it")
        sweep = DECODE_SWEEP.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the sweep cannot be read: {error}", where=str(path)) from None
    if sweep.id != name:
        raise ConfigError(f"it is of sweep {sweep.id!r}, and its directory is {name!r}", where=str(path))
    return sweep


def names(sweeps: Path) -> list[str]:
    """The sweeps that there are, by name. Raises nothing."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in sweeps.iterdir() if _ID.fullmatch(path.name) and path.is_dir())
    return []


def dead_creations(sweeps: Path) -> list[Path]:
    """What killed launchers left of sweeps that they were creating."""
    try:
        return list(dead_temporaries(sweeps))
    except OSError:
        return []
