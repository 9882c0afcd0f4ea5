"""Files that killed processes leave in directories which several people use, and their removal."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.core.rights import cannot_remove, describe_os_error


@dataclass(frozen=True)
class Leftover:
    """A file or directory of ``size`` bytes that is not needed any more: ``why`` is the proof, or names its owner.

    ``keep`` says why it has to stay: it may be in use, or only another user may remove it.
    """

    path: Path
    size: int
    why: str
    keep: str | None = None

    @classmethod
    def of(cls, path: Path, why: str, keep: str | None = None) -> Leftover:
        """The path with its size now; ``keep`` also when this user may not remove it."""
        return cls(path, disk_usage(path), why, keep or cannot_remove(path))


def disk_usage(path: Path) -> int:
    """Bytes that a file or tree occupies. Missing files count nothing."""
    below = [Path(root, name) for root, _, names in os.walk(path) for name in names]
    total = 0
    for file in (path, *below):
        with contextlib.suppress(OSError):
            total += file.lstat().st_blocks * 512  # POSIX leaves the unit open; Linux counts in 512 bytes (stat(2))
    return total


def try_remove(path: Path) -> str | None:
    """Remove a file or directory. Returns why it is still there, None when it is gone."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        if os.path.lexists(path):
            return cannot_remove(path) or f"cannot be removed: {describe_os_error(error, error.filename or path)}"
    return None
