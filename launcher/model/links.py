"""Where the links of a checkpoint lead, as a job sees them: it mounts a directory, perhaps under another name."""

from __future__ import annotations

import os
from pathlib import Path
from posixpath import dirname, isabs, join, normpath

_MOST = 40
"""Links in a row that Linux follows."""


def way_out(directory: Path, name: str, mounted: tuple[str, ...]) -> str | None:
    """Where a file of a directory leads that a job would not find; None when all its links stay within.

    A relative link that stays below the directory is found under whatever name that is mounted; any other one only
    below ``mounted``, directories that the job sees under the same paths.
    """
    root, at = os.path.realpath(directory), name
    for _ in range(_MOST):
        step = _first_link(root, at)
        if step is None:
            return None
        link, rest = step
        target = str(Path(root, link).readlink())
        within = normpath(join(dirname(link), target, rest))
        if not isabs(target) and not within.startswith(".."):
            at = within
            continue
        absolute = normpath(join(root, dirname(link), target, rest))
        real = os.path.realpath(absolute)
        seen = any(all(_is_below(path, tree) for path in (absolute, real, root)) for tree in mounted)
        return None if seen else target
    return None  # a circle, which whoever opens the file says


def _first_link(root: str, at: str) -> tuple[str, str] | None:
    """The first part of a path below ``root`` that is a link, and what follows it."""
    parts = at.split("/")
    for end in range(1, len(parts) + 1):
        part = "/".join(parts[:end])
        if Path(root, part).is_symlink():
            return part, "/".join(parts[end:])
    return None


def _is_below(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")
