"""What exists at a checkpoint's destination and beside it: the checkpoint, staging directories, their lock; and `gc`.

All these names are defined here and in manifest.py. `remove_leftovers` removes only what dead stagings left: neither a
checkpoint nor anything that a live process writes.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import xxhash

from launcher.core.errors import ModelError
from launcher.core.lease import LEASE, Lock, LockOwner, LockPace, read_owner
from launcher.core.leftovers import Leftover, try_remove
from launcher.core.process import ProcessIdentity, host_label, pid_exists
from launcher.core.publish import temporary_pattern, utc_timestamp, write_json
from launcher.core.reading import read_json
from launcher.core.rights import inherit_rights, make_directories, os_error_hint
from launcher.model.checkpoint import examine
from launcher.model.copy import journal_directory
from launcher.model.manifest import MANIFEST_NAME, STAGING_NAME, WORK_DIRECTORY, Manifest
from launcher.model.source import Source

_LOCK_NAME = re.compile(r"\.(?P<name>.+)\.staging\.lock")
_LOCK_TEMPORARY = temporary_pattern(_LOCK_NAME.pattern)
_DAY = 86400.0


@dataclass(frozen=True)
class StagingOwner:
    """``owner.json``: the process that stages, and its source. ``listing`` is a hash of the files' paths and sizes."""

    process: ProcessIdentity
    source: str
    revision: str | None
    listing: str
    began: str


def existing_manifest(destination: Path, source: Source) -> Manifest | None:
    """The manifest of the checkpoint at the destination, if it is the source's; None when nothing is there.

    Raises ModelError when something else is there.
    """
    if not os.path.lexists(destination):
        return None
    remove_work_directory(destination)
    where = str(destination)
    manifest = Manifest.read(destination)
    if manifest is None:
        if destination.is_dir() and not any(destination.iterdir()):
            return None  # rename(2) replaces an empty directory
        report = examine(destination, precision=None)
        if report.whole:
            hint = "`launcher model stage DESTINATION` without --from reads it and writes its manifest"
            raise ModelError("a checkpoint without a manifest is there", where=where, hint=hint)
        problems = "; ".join(report.problems[:5])
        hint = "move it away: a running job may read it, so it is not overwritten"
        raise ModelError(f"what is there was not staged by us, and is not whole: {problems}", where=where, hint=hint)
    if differences := manifest.differences(destination):
        hint = "move it away, then stage again"
        raise ModelError("staged, and damaged since: " + "; ".join(differences[:10]), where=where, hint=hint)
    if difference := _difference(manifest, source):
        hint = "stage to another path: a checkpoint is never replaced"
        raise ModelError(f"another checkpoint is there: {difference}", where=where, hint=hint)
    return manifest


def _difference(manifest: Manifest, source: Source) -> str | None:
    """A difference between the source and the checkpoint of the manifest; None when they are the same."""
    present, wanted = {e.path: e for e in manifest.files}, {f.path: f for f in source.files}
    if manifest.revision and source.revision and manifest.revision != source.revision:
        return f"revision {manifest.revision}, and {source.revision} is requested"
    if unmatched := sorted(present.keys() ^ wanted.keys()):
        return f"{unmatched[0]} is only {'there' if unmatched[0] in present else 'in the source'}"
    for path, file in wanted.items():
        entry = present[path]
        if entry.size != file.size:
            return f"{path} has {entry.size} bytes, in the source {file.size}"
        hashes = (file.hash, entry.hash) if source.part_size == manifest.part_size else (None, None)
        for stated, actual in (hashes, (file.sha256, entry.sha256)):
            if stated and actual and stated != actual:
                return f"{path} has another content"
    return None


def remove_work_directory(destination: Path) -> None:
    """Remove what is not needed after the publication. Several processes may do so at once; `gc` removes the rest."""
    if (destination / MANIFEST_NAME).exists():
        shutil.rmtree(destination / WORK_DIRECTORY, ignore_errors=True)


def lock_path(destination: Path) -> Path:
    """The lock of a destination: a hidden file beside it."""
    return destination.with_name(f".{destination.name}.staging.lock")


def staging_directories(destination: Path) -> list[Path]:
    """The staging directories of a destination, made by running and by dead processes."""
    entries = [entry for entry in os.scandir(destination.parent) if entry.is_dir(follow_symlinks=False)]
    names = [(Path(entry.path), STAGING_NAME.fullmatch(entry.name)) for entry in entries]
    return sorted(path for path, match in names if match and match["name"] == destination.name)


def staging_directory(source: Source, destination: Path, *, adopt: bool, log: Callable[[str], None]) -> Path:
    """A staging directory for this process: with ``adopt`` that of a dead process for the same source, else a new one.

    Adopting renames it to a new token: if its process was only stopped, its paths are gone when it continues.
    """
    text = "\n".join(f"{file.path}\0{file.size}" for file in sorted(source.files, key=lambda file: file.path))
    listing = xxhash.xxh3_128(text.encode()).hexdigest()
    own = StagingOwner(ProcessIdentity.current(), source.name, source.revision, listing, utc_timestamp())
    new = destination.with_name(f"{destination.name}.staging.{secrets.token_hex(6)}")
    for candidate in staging_directories(destination) if adopt else ():
        is_ours = candidate.stat().st_uid == os.geteuid()  # nobody may write to another user's directory
        owner = read_json(_owner_file(candidate), StagingOwner) if is_ours else None
        if owner and replace(owner, process=own.process, began=own.began) == own and owner.process.alive() is not True:
            candidate.rename(new)
            log(f"going on with what pid {owner.process.pid} on {owner.process.host} had staged since {owner.began}")
            break
    make_directories(journal_directory(new))
    inherit_rights(new)
    write_json(_owner_file(new), asdict(own))
    return new


def _owner_file(staging: Path) -> Path:
    return staging / WORK_DIRECTORY / "owner.json"


def leftovers(directory: Path) -> list[Leftover]:
    """What stagings left among the checkpoints of a directory, and who left it; nothing is changed. Raises ModelError.

    This cannot tell whether a staging of another host is dead; `remove_leftovers` learns that from the lock.
    """
    return [item for items in _leftovers_by_destination(directory).values() for item in items]


def _leftovers_by_destination(directory: Path) -> dict[Path, list[Leftover]]:
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        message = f"cannot be listed: {error.strerror}"
        raise ModelError(message, where=str(directory), hint=os_error_hint(error, directory)) from None
    by_destination: dict[Path, list[Leftover]] = {}
    for destination, item in filter(None, map(_leftover, paths)):
        by_destination.setdefault(destination, []).append(item)
    return by_destination


def _leftover(path: Path) -> tuple[Path, Leftover] | None:
    """The leftover at a path, with its destination; None if no staging made it. The name decides."""
    is_directory, owner, live = path.is_dir() and not path.is_symlink(), "unknown", False
    if is_directory and (name := STAGING_NAME.fullmatch(path.name)):
        if staging := read_json(_owner_file(path), StagingOwner):
            owner = f"pid {staging.process.pid} on {staging.process.host}, since {staging.began}, from {staging.source}"
            live = staging.process.alive() is True
    elif name := _LOCK_NAME.fullmatch(path.name):
        holder = LockOwner.from_json((read_owner(path) or (b"", 0))[0])
        owner, live = str(holder), holder.host == socket.gethostname() and not holder.is_dead
    elif name := _LOCK_TEMPORARY.fullmatch(path.name):
        # It is dead when its process is; if that ran on another host, after a day.
        is_here = name["host"] == host_label()
        live = pid_exists(int(name["pid"])) if is_here else time.time() - path.lstat().st_mtime < _DAY
        owner = f"pid {name['pid']} on {name['host']}"
    elif is_directory and (path / WORK_DIRECTORY).is_dir() and (path / MANIFEST_NAME).exists():
        return path, Leftover.of(path / WORK_DIRECTORY, "a finished staging")
    else:
        return None
    return path.with_name(name["name"]), Leftover.of(path, owner, "it is running" if live else None)


def remove_leftovers(
    directory: Path, *, wait: float = LEASE * 1.1, log: Callable[[str], None] = lambda text: None
) -> list[Leftover]:
    """Remove what dead stagings left. Returns all leftovers, with ``keep`` set for those that were not removed.

    A staging is dead when we get its destination's lock: its owner released it, or is proven dead, or did not renew it
    within the lock's lease. For stagings of other hosts ``wait`` (seconds) has to exceed the lease; ``log`` gets a line
    then. An owner that is seen to live ends the wait. Raises ModelError.
    """
    handled = []
    for destination, items in _leftovers_by_destination(directory).items():
        if all(item.keep for item in items):
            handled += items
            continue
        with Lock(
            lock_path(destination),
            what="removing dead stagings",
            wait=wait,
            pace=LockPace(for_proof=True),
            on_wait=lambda owner: log(f"looking for {wait:.0f} s at the most whether it lives: {owner}"),
        ) as lock:
            for item in items:
                keep = f"held by {lock.owner}" if lock.owner else item.keep
                if keep is None and item.path != lock_path(destination):  # the lock goes with its release
                    keep = try_remove(item.path)
                handled.append(replace(item, keep=keep))
    return handled
