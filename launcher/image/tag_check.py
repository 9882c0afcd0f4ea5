"""What the registry says before an import, and of an image that is there already."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ImageError
from launcher.image.reference import Reference
from launcher.image.request import ImageRequest

if TYPE_CHECKING:  # urllib is for those who import
    from launcher.image.registry import Manifest, Registry

_LEAST_FINAL, _LEAST_TEMPORARY = 0.5, 2.0
"""Bytes per downloaded byte that an import is sure to need. Seen with zstd-3: the squash file is as large as the layers
or somewhat smaller; the temporaries hold the layers again compressed, and unpacked, which is twice to three times more.
"""


@dataclass(frozen=True)
class Moved:
    """The tag names another image now: ``what`` says both, ``squash`` is where that one belongs."""

    what: str
    squash: Path


def before_import(
    request: ImageRequest, registry: Registry | None, where: str, say: Callable[[str], None]
) -> Manifest | None:
    """Look the image up. None, and a fact, when the registry says nothing: enroot may still reach it.

    Raises ImageError for what will not pass.
    """
    if registry is None:
        return None
    from launcher.image.registry import Unreachable

    try:
        return registry.manifest(Reference.parse(request.uri), request.architecture, where=where)
    except Unreachable as error:
        say(f"not looked up before the import: {error.message}")
        return None


def compare(
    request: ImageRequest, digest: str | None, index: str | None, registry: Registry
) -> Moved | tuple[str, ...]:
    """What the tag names now, against the ``digest`` that is there: facts, or that it moved. A digest cannot move.

    With ``moved_tag: fail`` a tag that moved raises ImageError. A registry that does not answer is a fact, since a
    whole image is there.
    """
    reference = Reference.parse(request.uri)
    where = request.where or str(request.squash)
    if reference.digest:
        return ()
    try:
        now = registry.tag_digest(reference, where=where)
        if now is not None and now in (digest, index):
            return ()
        manifest = registry.manifest(reference, request.architecture, where=where)
    except ImageError as error:
        return (f"whether the tag names another image now is not known: {error.message}",)
    if digest is None:
        return (f"of which digest {request.squash.name} is was never recorded; the tag names {manifest.digest} now",)
    if manifest.is_named(digest):
        return ()
    what = f"{request.squash.name} is of {digest}, and the tag names {manifest.digest} now"
    if request.moved_tag == "fail":
        hint = f"name the digest in place of the tag, or set images.moved-tag to keep or refresh; {reference.uri}"
        raise ImageError(what, where=where, hint=hint)
    return Moved(what, refreshed_name(request.squash, manifest.digest))


def refreshed_name(squash: Path, digest: str) -> Path:
    """``x.sqsh`` → ``x@0123456789ab.sqsh``: the place for an image of the same tag, of that digest."""
    stem = re.sub(r"@[0-9a-f]{12}$", "", squash.name.removesuffix(".sqsh"))
    return squash.with_name(f"{stem}@{digest.removeprefix('sha256:')[:12]}.sqsh")


def enough_space(manifest: Manifest, final: Path, temporary: Path, where: str) -> None:
    """Refuse an import that is sure to run out of space. Raises ImageError, or OSError from statvfs."""
    wanted = {final: _LEAST_FINAL, temporary: _LEAST_TEMPORARY}
    if final.stat().st_dev == temporary.stat().st_dev:
        wanted = {final: _LEAST_FINAL + _LEAST_TEMPORARY}
    for directory, times in wanted.items():
        status = os.statvfs(directory)
        free, least = status.f_bavail * status.f_frsize, times * manifest.size
        if status.f_blocks and free < least:
            raise ImageError(
                f"not enough space for an import: {free / 2**30:.1f} GiB free in {directory}, and an image of"
                f" {manifest.size / 2**30:.1f} GiB compressed needs {least / 2**30:.1f} GiB there at the least",
                where=where,
                hint="free space there, or name another directory (images.directory, images.temporary)",
            )
