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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, RemoteError
from launcher.core.publish import fsync, make_private, private_opener
from launcher.core.reading import open_regular, sha256_of
from launcher.remote.bundle import MOST_FILES, inside
from launcher.remote.session import Session

PART = 256 << 10
"""Bytes of a file in one message."""
_IN_A_MESSAGE = 200
_LEFT_OUT = (".lock", ".flock")


@dataclass(frozen=True)
class Entry:
    """A file of a run: its path in the run's directory, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


def listed(state: Path, name: str) -> Generator[Any, None, Any]:
    """The far side: the files of a run or sweep, as events of some entries each; the value is its place in the state
    directory. Raises ConfigError when there is none of that name."""
    place = next((f"{kind}/{name}" for kind in ("runs", "sweeps") if (state / kind / name).is_dir()), None)
    if place is None or "/" in name or name.startswith("."):
        raise ConfigError(f"there is no run or sweep {name}", where=str(state), hint="launcher status")
    found: list[list[Any]] = []
    for path in _files(state / place):
        with contextlib.suppress(OSError):
            entry = [path.relative_to(state / place).as_posix(), path.stat().st_size, sha256_of(path)]
            found.append(entry)
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


def sent(state: Path, place: str, wanted: list[Any]) -> Generator[Any, None, Any]:
    """The far side: bytes of files, ``[path, offset, size]`` each, one after the other. Raises RemoteError, OSError."""
    root = inside(state, place)
    for name, offset, size in wanted:
        with open_regular(inside(root, name), follow=False) as file:
            file.seek(int(offset))
            left = int(size) - int(offset)
            while left > 0:
                part = file.read(min(PART, left))
                if not part:
                    raise RemoteError("it became shorter while it was read", where=str(name), hint="try again")
                left -= len(part)
                yield part


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
            entries += map(_entry, next(stream))
        except StopIteration as end:
            if end.value not in (f"runs/{name}", f"sweeps/{name}"):
                raise RemoteError("it names another place than that of this run", where=name) from None
            place = inside(directory, end.value)
            break
        except (TypeError, ValueError) as error:
            raise RemoteError("it lists files in another way than ours") from error
        if len(entries) > MOST_FILES:
            raise RemoteError(f"it has more than {MOST_FILES} files", where=name)
    make_private(place)
    lacking = [entry for entry in entries if not _is_here(inside(place, entry.path), entry)]
    size, free = sum(entry.size for entry in lacking), shutil.disk_usage(place).free
    if size > free:
        raise ConfigError(f"{size >> 20} MiB do not fit into the {free >> 20} MiB that are free", where=str(place))
    parts = {entry: _part(place, entry) for entry in lacking}
    offsets = {entry: min(part.stat().st_size, entry.size) if part.exists() else 0 for entry, part in parts.items()}
    wanted = [[entry.path, offsets[entry], entry.size] for entry in lacking]
    source = session.stream("send", place=place.relative_to(directory).as_posix(), wanted=wanted)
    done = sum(offsets.values())
    for entry in lacking:
        digest = hashlib.sha256()
        for count in _receive(source, parts[entry], offsets[entry], entry, digest):
            done += count
            tell(done, size)
        if digest.hexdigest() != entry.sha256:
            parts[entry].unlink()
            raise RemoteError("it arrived changed", where=entry.path, hint="try again")
        parts[entry].replace(inside(place, entry.path))
    if next(source, None) is not None:
        raise RemoteError("it sends more than it announced", where=name)
    fsync(place)
    return place


def _entry(value: Any) -> Entry:
    path, size, digest = value
    if not isinstance(size, int) or size < 0 or not isinstance(path, str) or len(str(digest)) != 64:
        raise ValueError(value)
    return Entry(path, size, str(digest))


def _is_here(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256


def _part(place: Path, entry: Entry) -> Path:
    """Where a file is written until it is whole: a name that the next attempt finds again."""
    return inside(place, entry.path).with_name(f".{entry.sha256[:32]}.fetched")


def _receive(source: Iterator[Any], part: Path, offset: int, entry: Entry, digest: hashlib._Hash) -> Iterator[int]:
    """Write a file's bytes as they come; how many came each time. ``digest`` gets all of them, also those that were
    here. Raises RemoteError for what was not announced."""
    make_private(part.parent)
    with open(part, "r+b" if offset else "wb", opener=private_opener) as file:
        for start in range(0, offset, PART):
            digest.update(file.read(min(PART, offset - start)))
        file.truncate()
        while offset < entry.size:
            data = next(source, None)
            if not isinstance(data, bytes) or offset + len(data) > entry.size:
                raise RemoteError("it sends other bytes than it announced", where=entry.path)
            file.write(data)
            digest.update(data)
            offset += len(data)
            yield len(data)
        file.flush()
        os.fsync(file.fileno())
