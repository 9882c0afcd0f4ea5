"""What lies at a checkpoint's destination and beside it: the checkpoint, staging directories, and their lock.

The names of all of these are decided here and in manifest.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.core.errors import ModelError
from launcher.core.process import ProcessIdentity
from launcher.model.checkpoint import examine
from launcher.model.manifest import MANIFEST_NAME, STAGING_NAME, WORK_DIRECTORY, Manifest
from launcher.model.source import Source

_LOCK_NAME = re.compile(r"\.(?P<name>.+)\.staging\.lock")


@dataclass(frozen=True)
class StagingOwner:
    """``owner.json``: which process stages, and what. ``listing`` is a hash of the files' paths and sizes."""

    process: ProcessIdentity
    source: str
    revision: str | None
    listing: str
    began: str


def existing_manifest(destination: Path, source: Source) -> Manifest | None:
    """The manifest of the checkpoint at the destination when it is that of the source; None when nothing is there.

    Raises ModelError when something else is there.
    """
    if not os.path.lexists(destination):
        return None
    remove_work_directory(destination)
    where = str(destination)
    manifest = Manifest.read(destination)
    if manifest is None:
        if not destination.is_dir():
            raise ModelError("expected a directory or nothing there, found something else", where=where)
        if not any(destination.iterdir()):
            return None  # rename(2) replaces an empty directory
        report = examine(destination, precision=None)
        if report.whole:
            hint = "`launcher model stage DESTINATION` without --from reads it and writes its manifest"
            raise ModelError("a checkpoint without a manifest is there", where=where, hint=hint)
        said = "; ".join(report.problems[:5])
        hint = "move it away: a running job may read it, so it is not overwritten"
        raise ModelError(f"what is there was not staged by us, and is not whole: {said}", where=where, hint=hint)
    if found := manifest.differences(destination):
        hint = "move it away, then stage again"
        raise ModelError("staged, and damaged since: " + "; ".join(found[:10]), where=where, hint=hint)
    if other := _other(manifest, source):
        hint = "stage to another path: a checkpoint is never replaced"
        raise ModelError(f"another checkpoint is there: {other}", where=where, hint=hint)
    return manifest


def _other(manifest: Manifest, source: Source) -> str | None:
    """How the source's checkpoint differs from that of the manifest; None when it is the same."""
    there, wanted = {e.path: e for e in manifest.files}, {f.path: f for f in source.files}
    if manifest.revision and source.revision and manifest.revision != source.revision:
        return f"revision {manifest.revision}, and {source.revision} is asked for"
    if odd := sorted(there.keys() ^ wanted.keys()):
        return f"{odd[0]} is only {'there' if odd[0] in there else 'in the source'}"
    for path, file in wanted.items():
        if there[path].size != file.size:
            return f"{path} has {there[path].size} bytes, in the source {file.size}"
        comparable = file.hash and source.part_size == manifest.part_size
        if (comparable and file.hash != there[path].hash) or (
            file.sha256 and there[path].sha256 and file.sha256 != there[path].sha256
        ):
            return f"{path} has another content"
    return None


def remove_work_directory(destination: Path) -> None:
    """Remove what nobody needs after the publication. Several processes may do it at once; `gc` removes the rest."""
    if (destination / MANIFEST_NAME).exists():
        shutil.rmtree(destination / WORK_DIRECTORY, ignore_errors=True)


def lock_path(destination: Path) -> Path:
    """The lock of a destination: beside it, hidden."""
    return destination.with_name(f".{destination.name}.staging.lock")


def is_lock(path: Path) -> bool:
    """Whether the path has the name of a destination's lock."""
    return _LOCK_NAME.fullmatch(path.name) is not None


def new_staging_directory(destination: Path) -> Path:
    """A name beside the destination that nobody else has."""
    return destination.with_name(f"{destination.name}.staging.{secrets.token_hex(6)}")


def destination_of(path: Path) -> Path | None:
    """The destination of a staging directory or of a lock; None for other names."""
    found = STAGING_NAME.fullmatch(path.name) or _LOCK_NAME.fullmatch(path.name)
    return path.with_name(found["name"]) if found else None


def staging_directories(destination: Path) -> list[Path]:
    """The staging directories of this destination, of running and of dead processes."""
    entries = [entry for entry in os.scandir(destination.parent) if STAGING_NAME.fullmatch(entry.name)]
    paths = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(path for path in paths if destination_of(path) == destination)


def owner_of(staging: Path) -> StagingOwner | None:
    """Who fills this staging directory; None when its owner file is missing or damaged."""
    try:
        return msgspec.json.decode((staging / WORK_DIRECTORY / "owner.json").read_bytes(), type=StagingOwner)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def size_of(path: Path) -> int:
    """Bytes that a file or tree occupies. What is not there, or vanishes meanwhile, counts nothing."""
    found = [path] if not path.is_dir() else [Path(root, name) for root, _, names in os.walk(path) for name in names]
    total = 0
    for file in found:
        with contextlib.suppress(OSError):
            total += file.lstat().st_blocks * 512  # POSIX leaves the unit open; Linux counts in 512 bytes (stat(2))
    return total
