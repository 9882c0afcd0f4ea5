"""Removing what dead stagings left. Only that: a checkpoint is never removed, nor what a live process writes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ModelError
from launcher.core.lease import LEASE, Lock, LockOwner
from launcher.core.process_identity import host_label, pid_exists
from launcher.core.publish import temporary_pattern
from launcher.model.destination import lock_path, owner_of
from launcher.model.manifest import NAME, STAGING_NAME, WORK, size_of

_LOCK = re.compile(r"\.(?P<name>.+)\.staging\.lock")
_PART = temporary_pattern(r".+\.staging\.lock")
_DAY = 86400.0


@dataclass(frozen=True)
class Leftover:
    """What a staging left: a path, its size in bytes, whose it was; ``keep`` says why it is not to be removed."""

    path: Path
    bytes: int
    owner: str
    keep: str | None = None


def leftovers(directory: Path) -> list[Leftover]:
    """What stagings left among the checkpoints of a directory; nothing is touched. Raises ModelError.

    Whether one of another host is dead cannot be seen from here; `collect` finds out by its lock.
    """
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise ModelError(f"cannot be listed: {error.strerror}", where=str(directory)) from None
    found = []
    for entry in entries:
        path = Path(entry.path)
        if STAGING_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            found.append(_staging(path))
        elif _LOCK.fullmatch(entry.name):
            found.append(_lock(path))
        elif part := _PART.fullmatch(entry.name):
            found.append(_part(path, part["host"], int(part["pid"])))
        elif entry.is_dir(follow_symlinks=False) and (path / WORK).is_dir() and (path / NAME).exists():
            found.append(Leftover(path / WORK, size_of(path / WORK), "a finished staging"))
    return found


def collect(
    directory: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    wait: float = LEASE * 1.1,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Leftover]:
    """Remove what dead stagings left; gives what was found, with ``keep`` set where it was not removed.

    A staging is dead when its destination's lock can be had: its owner let it go, or is proven dead, or did not touch
    it for the lock's lease, which ``wait`` (seconds) has to exceed for stagings of other hosts. Raises ModelError.
    """
    found = leftovers(directory)
    done: dict[Path, Leftover] = {}
    for destination in sorted({d for item in found if (d := _destination(item.path))}):
        mine = [item for item in found if _destination(item.path) == destination]
        if all(item.keep for item in mine):
            continue
        lock = Lock(lock_path(destination), what="removing dead stagings", wait=wait, sleep=sleep)
        with lock as held:
            for item in mine:
                if STAGING_NAME.fullmatch(item.path.name):
                    keep = f"held by {held.owner}" if held.owner else item.keep or _remove(item.path)
                    done[item.path] = Leftover(item.path, item.bytes, item.owner, keep)
                elif held.owner:
                    done[item.path] = Leftover(item.path, item.bytes, item.owner, f"held by {held.owner}")
        say(f"{destination}: looked at")
    for item in found:
        if item.path not in done and not item.keep and not _LOCK.fullmatch(item.path.name):
            done[item.path] = Leftover(item.path, item.bytes, item.owner, _remove(item.path))
    return [done.get(item.path, item) for item in found]


def _destination(path: Path) -> Path | None:
    """The destination that a staging directory or a lock belongs to."""
    found = STAGING_NAME.fullmatch(path.name) or _LOCK.fullmatch(path.name)
    return path.with_name(found["name"]) if found else None


def _remove(path: Path) -> str | None:
    """Remove a directory or file; why it is still there, or None. A directory goes out of its name first."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    return None


def _staging(path: Path) -> Leftover:
    owner = owner_of(path)
    if owner is None:
        return Leftover(path, size_of(path), "nobody says")
    process = owner.process
    said = f"pid {process.pid} on {process.host}, since {owner.began}, from {owner.source}"
    alive = process.alive()
    return Leftover(path, size_of(path), said, "it is running" if alive else None)


def _lock(path: Path) -> Leftover:
    try:
        owner = LockOwner.from_json(path.read_bytes())
    except OSError:
        owner = LockOwner()
    here = owner.process is not None and owner.process.host == socket.gethostname()
    live = here and not owner.is_dead
    return Leftover(path, size_of(path), str(owner), "it is running" if live else None)


def _part(path: Path, host: str, pid: int) -> Leftover:
    """A lock's temporary: dead with its process, or after a day where that is of another host."""
    here = host == host_label()
    live = pid_exists(pid) if here else time.time() - path.lstat().st_mtime < _DAY
    return Leftover(path, size_of(path), f"pid {pid} on {host}", "it may be running" if live else None)
