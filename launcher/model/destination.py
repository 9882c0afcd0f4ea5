"""What is at a checkpoint's destination and beside it: the checkpoint, stagings and their owners, their lock."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.core.errors import ModelError
from launcher.core.process_identity import ProcessIdentity
from launcher.model.checkpoint import examine
from launcher.model.manifest import NAME, STAGING_NAME, WORK, Manifest
from launcher.model.source import Source


@dataclass(frozen=True)
class StagingOwner:
    """``owner.json``: who stages, and what. ``listing`` is the files' paths and sizes, hashed."""

    process: ProcessIdentity
    source: str
    revision: str | None
    listing: str
    began: str


def settle(destination: Path, source: Source) -> Manifest | None:
    """The manifest of what is at the destination if it is what the source holds; None when there is nothing.

    Raises ModelError when something else is there.
    """
    if not os.path.lexists(destination):
        return None
    finish(destination)
    where = str(destination)
    manifest = Manifest.read(destination)
    if manifest is None:
        if not destination.is_dir():
            raise ModelError("something else than a directory is there", where=where)
        if not any(destination.iterdir()):
            return None  # rename(2) replaces an empty directory
        verdict = examine(destination, precision=None)
        if verdict.whole:
            hint = "`launcher model stage DESTINATION` without --from reads it and writes its manifest"
            raise ModelError("a checkpoint without a manifest is there", where=where, hint=hint)
        said = "; ".join(verdict.problems[:5])
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
    """In what the source's checkpoint is another one than that of the manifest; None when it is the same."""
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


def finish(destination: Path) -> None:
    """Remove what is of no use after a publication. Several may do it at once; what is left, `gc` removes."""
    if (destination / NAME).exists():
        shutil.rmtree(destination / WORK, ignore_errors=True)


def lock_path(destination: Path) -> Path:
    """Where the lock of a destination lies: beside it, hidden."""
    return destination.with_name(f".{destination.name}.staging.lock")


def staging_directories(destination: Path) -> list[Path]:
    """Directories of stagings to this destination that are there now, running or dead."""
    found = []
    for entry in os.scandir(destination.parent):
        match = STAGING_NAME.fullmatch(entry.name)
        if match and match["name"] == destination.name and entry.is_dir(follow_symlinks=False):
            found.append(Path(entry.path))
    return sorted(found)


def owner_of(staging: Path) -> StagingOwner | None:
    """Who makes this staging directory; None when it does not say."""
    try:
        return msgspec.json.decode((staging / WORK / "owner.json").read_bytes(), type=StagingOwner)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
