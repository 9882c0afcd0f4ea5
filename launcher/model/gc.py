"""Removing what dead stagings left, and nothing else: neither a checkpoint nor what a live process writes."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.core.errors import ModelError
from launcher.core.lease import LEASE, Lock, LockOwner
from launcher.core.process import host_label, pid_exists
from launcher.core.publish import temporary_pattern
from launcher.model.destination import destination_of, is_lock, lock_path, owner_of, size_of
from launcher.model.manifest import MANIFEST_NAME, STAGING_NAME, WORK_DIRECTORY

_PART = temporary_pattern(r".+\.staging\.lock")
_DAY = 86400.0


@dataclass(frozen=True)
class Leftover:
    """What a staging left: a path, its size in bytes, whose it was. ``keep`` says why it must not be removed."""

    path: Path
    bytes: int
    owner: str
    keep: str | None = None


def leftovers(directory: Path) -> list[Leftover]:
    """What stagings left among the checkpoints of a directory; nothing is changed. Raises ModelError.

    Whether a staging of another host is dead cannot be told here; `remove_leftovers` learns it from the lock.
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
        elif is_lock(path):
            found.append(_lock(path))
        elif part := _PART.fullmatch(entry.name):
            found.append(_part(path, part["host"], int(part["pid"])))
        elif (
            entry.is_dir(follow_symlinks=False) and (path / WORK_DIRECTORY).is_dir() and (path / MANIFEST_NAME).exists()
        ):
            found.append(Leftover(path / WORK_DIRECTORY, size_of(path / WORK_DIRECTORY), "a finished staging"))
    return found


def remove_leftovers(directory: Path, *, wait: float = LEASE * 1.1) -> list[Leftover]:
    """Remove what dead stagings left; return what was found, with ``keep`` set where it was not removed.

    A staging is dead when its destination's lock can be had: its owner released it, or is proven dead, or did not touch
    it for the lock's lease. For stagings of other hosts ``wait`` (seconds) has to exceed that. Raises ModelError.
    """
    found = leftovers(directory)
    done: dict[Path, Leftover] = {}
    for destination in sorted({d for item in found if (d := destination_of(item.path))}):
        mine = [item for item in found if destination_of(item.path) == destination]
        if all(item.keep for item in mine):
            continue
        with Lock(lock_path(destination), what="removing dead stagings", wait=wait) as held:
            for item in mine:
                keep = f"held by {held.owner}" if held.owner else item.keep
                if not is_lock(item.path):
                    done[item.path] = replace(item, keep=keep or _remove(item.path))
                elif held.owner:
                    done[item.path] = replace(item, keep=keep)
    for item in found:
        if item.path not in done and not item.keep and not is_lock(item.path):
            done[item.path] = replace(item, keep=_remove(item.path))
    return [done.get(item.path, item) for item in found]


def _remove(path: Path) -> str | None:
    """Remove a directory or file; why it is still there, or None when it is gone."""
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
        return Leftover(path, size_of(path), "unknown")
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
