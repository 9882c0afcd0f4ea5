"""Runs and sweeps of a login node, brought here: each file whole, by size and hash, under its name or not at all.

What a cut connection left is gone on with. Each brought run or sweep lies as in a state directory, so that `report` and
`results` read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
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
    """A file of a run: its path in the run's directory, and bytes."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0)]


def list_files(state: Path, name: str) -> Generator[Any, None, Any]:
    """The far side: the files of a run or sweep, as events of some entries each; the value is its place in the state
    directory. Raises ConfigError when there is none of that name."""
    place = next((f"{kind}/{name}" for kind in ("runs", "sweeps") if (state / kind / name).is_dir()), None)
    if place is None or "/" in name or name.startswith("."):
        raise ConfigError(f"there is no run or sweep {name}", where=str(state), hint="launcher status")
    entries: list[list[Any]] = []
    for path in _files(state / place):
        with contextlib.suppress(OSError):
            entries.append([path.relative_to(state / place).as_posix(), path.stat().st_size])
        if len(entries) == _ENTRIES_PER_MESSAGE:
            yield entries
            entries = []
    yield entries
    return place


def _files(directory: Path) -> Iterator[Path]:
    for top, below, names in os.walk(directory):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(top, name)
            if path.is_file() and not path.is_symlink() and not name.startswith(".") and path.suffix not in _LEFT_OUT:
                yield path


def send_files(state: Path, place: str, wanted: list[Any]) -> Generator[Any, None, Any]:
    """The far side: of files, ``[path, offset, size]`` each, the bytes from there on, and then the SHA-256 of all
    ``size`` bytes. Raises RemoteError, OSError."""
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
    """Bring a run or sweep to ``directory``; where it is then. What is here already is not fetched again.

    ``tell`` is told bytes that are here, of all. Raises LauncherError; then what came so far stays for the next time.
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
            for count_received in _receive(source, file, count, entry, digest):
                missing -= count_received
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
    """Where a file is written until it is whole: a name that the next attempt finds again."""
    return final.with_name(f".{hashlib.sha256(final.name.encode()).hexdigest()[:32]}.fetched")


def _local_bytes(final: Path, size: int) -> tuple[Path, int]:
    """Where the bytes of a file are that are here already, and how many: all of it, a part of it, or none."""
    if final.is_file() and not final.is_symlink() and final.stat().st_size == size:
        return final, size
    part = _part(final)
    return part, min(part.stat().st_size, size) if part.is_file() else 0


def _receive(source: Iterator[Any], file: Path, offset: int, entry: Entry, digest: hashlib._Hash) -> Iterator[int]:
    """Write a file's bytes as they come; how many came each time. ``digest`` gets all of them, also those that were
    here. Raises RemoteError for what was not announced."""
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
