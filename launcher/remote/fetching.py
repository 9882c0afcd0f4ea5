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
_IN_A_MESSAGE = 200
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
    found: list[list[Any]] = []
    for path in _files(state / place):
        with contextlib.suppress(OSError):
            found.append([path.relative_to(state / place).as_posix(), path.stat().st_size])
        if len(found) == _IN_A_MESSAGE:
            yield found
            found = []
    yield found
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
        at, digest = 0, hashlib.sha256()
        with open_regular(path_below(root, name), follow=False) as file:
            while at < int(size):
                part = file.read(min(PART, (int(size) if at >= int(offset) else int(offset)) - at))
                if not part:
                    raise RemoteError("it became shorter while it was read", where=str(name), hint="try again")
                digest.update(part)
                if at >= int(offset):
                    yield part
                at += len(part)
        yield digest.hexdigest()


def fetch(
    session: Session, name: str, directory: Path, tell: Callable[[int, int], None] = lambda done, all: None
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
    here = {entry: _here(path_below(place, entry.path), entry.size) for entry in entries}
    size = sum(entry.size for entry in entries)
    lacking, free = size - sum(count for _, count in here.values()), shutil.disk_usage(place).free
    if lacking > free:
        raise ConfigError(f"{lacking >> 20} MiB do not fit into the {free >> 20} MiB that are free", where=str(place))
    while here:
        wanted = [[entry.path, count, entry.size] for entry, (_, count) in here.items()]
        source = session.stream("send", place=place.relative_to(directory).as_posix(), wanted=wanted)
        again = dict[Entry, tuple[Path, int]]()
        for entry, (file, count) in here.items():
            final, digest = path_below(place, entry.path), hashlib.sha256()
            for more in _receive(source, file, count, entry, digest):
                lacking -= more
                tell(size - lacking, size)
            if next(source, None) == digest.hexdigest():
                file.replace(final)
                continue
            file.unlink()
            if not count:
                raise RemoteError("it arrived changed", where=entry.path, hint="try again")
            again[entry] = (_part(final), 0)
        if next(source, None) is not None:
            raise RemoteError("it sends more than it announced", where=name)
        here = again
    fsync(place)
    return place


def _part(final: Path) -> Path:
    """Where a file is written until it is whole: a name that the next attempt finds again."""
    return final.with_name(f".{hashlib.sha256(final.name.encode()).hexdigest()[:32]}.fetched")


def _here(final: Path, size: int) -> tuple[Path, int]:
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
