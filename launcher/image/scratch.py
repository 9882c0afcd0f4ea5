"""Where an import writes what it needs for a while: enough space, a place of its own, and what killed ones left."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.core.publish import TEMPORARY_SUFFIX, dead_temporaries, temporary_name
from launcher.image.request import ImageRequest


@contextlib.contextmanager
def private_directory(parent: Path | None) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory for enroot's temporaries that no other import shares, below ``parent``; gone afterwards.

    Gives it and the environment that makes enroot use it. Without it imports meet in one cache, and what a killed one
    leaves (1.9 GB each time, enroot 4.1.2) cannot be told from what a live one needs: the name bears host and pid, for
    `dead_temporaries`. Raises OSError.
    """
    parent = parent or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    private = temporary_name(parent / "enroot")
    private.mkdir(mode=0o700)
    try:
        own = {f"ENROOT_{name}_PATH": private / name.lower() for name in ("TEMP", "RUNTIME", "CACHE", "DATA")}
        for path in own.values():
            path.mkdir(mode=0o700)
        # GNU parallel, which enroot runs, buffers in TMPDIR; its and enroot's messages are read, so in English.
        environment = {**own, "TMPDIR": own["ENROOT_TEMP_PATH"], "LC_ALL": "C"}
        yield private, {name: str(value) for name, value in environment.items()}
    finally:
        _remove(private)


def _remove(tree: Path) -> None:
    """Remove a tree in which layers may have left directories that even their owner may not write."""
    for directory, names, _ in os.walk(tree):
        for path in (Path(directory, name) for name in names):
            with contextlib.suppress(OSError):
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(tree, ignore_errors=True)


def check_space(directory: Path, wanted: int, where: str) -> None:
    """A free block and inode in ``directory``, and ``wanted`` bytes. Raises ImageError, or OSError from statvfs."""
    status = os.statvfs(directory)
    if not status.f_blocks:  # some FUSE file systems do not tell
        return
    free = status.f_bavail * status.f_frsize
    inodes = status.f_favail > 0 or not status.f_files  # btrfs counts none
    if inodes and free >= max(wanted, 1):
        return
    what = f"{free / 2**30:.1f} GiB free" if inodes else "no inode free"
    left = dead_temporaries(directory)
    raise ImageError(
        f"not enough space for an import: {what} in {directory}"
        + (f", {wanted / 2**30:.1f} GiB wanted" if wanted else ""),
        where=where,
        hint="free space there" + (f"; killed imports left {', '.join(p.name for p in left)}" if left else ""),
    )


def check_directory(final: Path) -> None:
    """Make a file where ``final`` will be, since access(2) knows nothing of root-squash. Raises OSError."""
    probe = temporary_name(final)
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    probe.unlink()


def storage_error(error: OSError, request: ImageRequest) -> ImageError:
    """What the file system refused during an import, and what to do."""
    place = Path(error.filename or request.squash.parent)
    if place.name.endswith(TEMPORARY_SUFFIX):
        place = place.parent
    hints = {
        errno.ENOENT: "create the directory, or correct images.directory in the runner file",
        errno.ENOTDIR: "correct images.directory in the runner file: a part of it is a file",
        errno.EACCES: "make the directory writable for the user who imports",
        errno.EPERM: "make the directory writable for the user who imports",
        errno.EROFS: "import on a host that may write there (images.import-on in the runner file)",
        errno.ENOSPC: "free space there",
        errno.EDQUOT: "free space there, or have the quota raised",
    }
    return ImageError(
        f"cannot import {request.reference}: {place}: {error.strerror}",
        where=request.where or str(request.squash),
        hint=hints.get(error.errno or 0, "try again; look at the log of the file system"),
    )
