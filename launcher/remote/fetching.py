"""Copies runs and sweeps from a login node: each file is checked by size and hash, and gets its name when it is whole.

An interrupted copy is continued. A copied run or sweep lies as in a state directory, so that `report` and `results`
can read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from launcher.core.errors import ConfigError, RemoteError
from launcher.core.publish import fsync, make_private, private_opener
from launcher.core.reading import open_regular
from launcher.remote.bundle import MOST_FILES, path_below
from launcher.remote.messages import typed
from launcher.remote.session import Session

PART = 256 << 10
"""Bytes of a file in one message."""
_ENTRIES_PER_MESSAGE = 200
_LEFT_OUT = (".lock", ".flock")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A file of a run: its path in the run's directory, and its size in bytes."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0)]


def list_files(state: Path, name: str) -> Generator[Any, None, Any]:
    """The far side: yields the files of a run or sweep, some entries at a time; returns its path below the state
    directory. Raises ConfigError when there is no such run or sweep."""
    place = next((f"{kind}/{name}" for kind in ("runs", "sweeps") if (state / kind / name).is_dir()), None)
    if place is None or "/" in name or name.startswith("."):
        raise ConfigError(f"there is no run or sweep {name}", where=str(state), hint="launcher status")
    entries: list[list[Any]] = []
    for top, below, names in os.walk(state / place):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for path in (Path(top, name) for name in sorted(names) if not name.startswith(".")):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and path.suffix not in _LEFT_OUT:
                    entries.append([path.relative_to(state / place).as_posix(), status.st_size])
            if len(entries) == _ENTRIES_PER_MESSAGE:
                yield entries
                entries = []
    yield entries
    return place


def send_files(state: Path, place: str, wanted: list[Any]) -> Generator[Any, None, Any]:
    """The far side: for each ``[path, offset, size]`` yields the file's bytes from the offset, then the SHA-256 of its
    first ``size`` bytes. Raises RemoteError, OSError."""
    root = path_below(state, place)
    for name, offset, size in wanted:
        position, digest = 0, hashlib.sha256()
        with open_regular(path_below(root, name), follow=False) as file:
            while position < int(size):
                part = file.read(min(PART, (int(size) if position >= int(offset) else int(offset)) - position))
                if not part:
                    raise RemoteError("it became shorter while it was read", where=str(name), hint="try again")
                digest.update(part)
                if position >= int(offset):
                    yield part
                position += len(part)
        yield digest.hexdigest()


def fetch(
    session: Session, name: str, directory: Path, progress: Callable[[int, int], None] = lambda done, all: None
) -> Path:
    """Copy a run or sweep to the state directory ``directory``; returns its path. Files that are here are kept.

    ``progress`` is called with the bytes that are here and the bytes of all files. Raises LauncherError; what arrived
    until then is kept, and the next attempt continues there.
    """
    entries: list[Entry] = []
    stream = session.stream("list", name=name)
    while True:
        try:
            entries += typed(next(stream), list[Entry], name)
        except StopIteration as end:
            if end.value not in (f"runs/{name}", f"sweeps/{name}"):
                raise RemoteError("it names another place than that of this run", where=name) from None
            place = path_below(directory, end.value)
            break
        if len(entries) > MOST_FILES:
            raise RemoteError(f"it has more than {MOST_FILES} files", where=name)
    make_private(place)
    local = {entry: _local_bytes(path_below(place, entry.path), entry.size) for entry in entries}
    size = sum(entry.size for entry in entries)
    missing, free = size - sum(count for _, count in local.values()), shutil.disk_usage(place).free
    if missing > free:
        raise ConfigError(f"{missing >> 20} MiB do not fit into the {free >> 20} MiB that are free", where=str(place))
    while local:
        wanted = [[entry.path, count, entry.size] for entry, (_, count) in local.items()]
        source = session.stream("send", place=place.relative_to(directory).as_posix(), wanted=wanted)
        retry = dict[Entry, tuple[Path, int]]()
        for entry, (file, count) in local.items():
            final, digest = path_below(place, entry.path), hashlib.sha256()
            for received in _receive(source, file, count, entry, digest):
                missing -= received
                progress(size - missing, size)
            if next(source, None) == digest.hexdigest():
                file.replace(final)
                continue
            file.unlink()
            if not count:
                raise RemoteError("it arrived changed", where=entry.path, hint="try again")
            retry[entry] = (_part(final), 0)
        if next(source, None) is not None:
            raise RemoteError("it sends more than it announced", where=name)
        local = retry
    fsync(place)
    return place


def _part(final: Path) -> Path:
    """The path of a file until it is whole; the next attempt finds it by this name."""
    return final.with_name(f".{hashlib.sha256(final.name.encode()).hexdigest()[:32]}.fetched")


def _local_bytes(final: Path, size: int) -> tuple[Path, int]:
    """The path that has a file's bytes here, and how many: the whole file, a part of it, or none."""
    if final.is_file() and not final.is_symlink() and final.stat().st_size == size:
        return final, size
    part = _part(final)
    return part, min(part.stat().st_size, size) if part.is_file() else 0


def _receive(source: Iterator[Any], file: Path, offset: int, entry: Entry, digest: hashlib._Hash) -> Iterator[int]:
    """Write a file's bytes as they arrive; yields the number of each piece. ``digest`` is updated with all bytes, also
    those that were here. Raises RemoteError for bytes that were not announced."""
    make_private(file.parent)
    with open(file, "r+b" if offset else "wb", opener=private_opener) as out:
        for start in range(0, offset, PART):
            digest.update(out.read(min(PART, offset - start)))
        if offset == entry.size:
            return
        out.truncate()
        while offset < entry.size:
            data = next(source, None)
            if not isinstance(data, bytes) or offset + len(data) > entry.size:
                raise RemoteError("it sends other bytes than it announced", where=entry.path)
            out.write(data)
            digest.update(data)
            offset += len(data)
            yield len(data)
        out.flush()
        os.fsync(out.fileno())
