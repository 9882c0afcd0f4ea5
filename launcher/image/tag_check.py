"""What the tag of an image that is there names now, by its registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ImageError
from launcher.image.reference import Reference
from launcher.image.squash import Sidecar

if TYPE_CHECKING:  # urllib is for those who import
    from launcher.image.registry import Registry


@dataclass(frozen=True)
class TagMoved:
    """The tag names another image now: ``what`` says both, ``squash`` is where that one belongs."""

    what: str
    squash: Path


def check_tag(
    squash: Path, known: Sidecar, registry: Registry, architecture: str | None, *, where: str
) -> TagMoved | tuple[str, ...]:
    """Whether the tag of ``squash`` still names the image that is ``known`` to be there: facts, or that it moved.

    A digest cannot move. A registry that does not answer is a fact, since a whole image is there. ``where`` is the
    place that errors point to.
    """
    reference = Reference.parse(known.uri)
    if reference.digest:
        return ()
    try:
        now = registry.tag_digest(reference, where=where)
        if now is not None and now in (known.digest, known.index):
            return ()
        manifest = registry.manifest(reference, architecture, where=where)
    except ImageError as error:
        return (f"whether the tag names another image now is not known: {error.message}",)
    if known.digest is None:
        return (f"of which digest {squash.name} is was never recorded; the tag names {manifest.digest} now",)
    if manifest.is_named(known.digest):
        return ()
    what = f"{squash.name} is of {known.digest}, and the tag names {manifest.digest} now"
    return TagMoved(what, refreshed_name(squash, manifest.digest))


def refreshed_name(squash: Path, digest: str) -> Path:
    """``x.sqsh`` → ``x@0123456789ab.sqsh``: the place for an image of the same tag, of that digest."""
    stem = re.sub(r"@[0-9a-f]{12}$", "", squash.name.removesuffix(".sqsh"))
    return squash.with_name(f"{stem}@{digest.removeprefix('sha256:')[:12]}.sqsh")
