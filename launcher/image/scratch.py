"""What an import needs of file systems: enough space, and a place of its own for enroot's temporaries."""

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
from launcher.image.reference import PlannedImage

_LEAST_FINAL, _LEAST_TEMPORARY = 0.5, 2.0
"""Bytes per downloaded byte that an import is sure to need. Seen with zstd-3: the squash file is as large as the layers
or somewhat smaller; the temporaries hold the layers again compressed, and unpacked, which is twice to three times more.
"""


@contextlib.contextmanager
def private_directory(parent: str | None) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory for enroot's temporaries that no other import shares, below ``parent``; gone afterwards.

    Gives it and the environment that makes enroot use it. Raises OSError.
    """
    # Without it imports meet in one cache, and what a killed one leaves (1.9 GB each time, enroot 4.1.2) cannot be told
    # from what a live one needs. The name bears host and pid, by which `dead_temporaries` knows it.
    place = Path(parent or tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    private = temporary_name(place / "enroot")
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


def check_space(final: Path, temporary: Path | None, size: int | None, where: str) -> None:
    """Refuse an import that is sure to run out of space in the directories ``final`` and ``temporary``.

    ``size`` is how many bytes are downloaded, None when that is not known; ``temporary`` is None when it is on another
    host. Raises ImageError, or OSError from statvfs.
    """
    wanted = {final: _LEAST_FINAL}
    if temporary is not None:
        shared = final.stat().st_dev == temporary.stat().st_dev
        wanted |= {final: _LEAST_FINAL + _LEAST_TEMPORARY} if shared else {temporary: _LEAST_TEMPORARY}
    for directory, times in wanted.items():
        status = os.statvfs(directory)
        if not status.f_blocks:  # some FUSE file systems do not tell
            continue
        free, least = status.f_bavail * status.f_frsize, times * (size or 0)
        inodes = status.f_favail > 0 or not status.f_files  # btrfs counts none
        if inodes and free >= max(least, 1):
            continue
        what = f"{free / 2**30:.1f} GiB free" if inodes else "no inode free"
        if size:
            need = f"needs {least / 2**30:.1f} GiB there at the least"
            what += f" in {directory}, and an image of {size / 2**30:.1f} GiB compressed {need}"
        else:
            what += f" in {directory}"
        left = ", ".join(path.name for path in dead_temporaries(directory))
        raise ImageError(
            f"not enough space for an import: {what}",
            where=where,
            hint="free space there, or name another directory (images.directory, images.temporary)"
            + (f"; killed imports left {left}" if left else ""),
        )


def check_directory(final: Path) -> None:
    """Make a file where ``final`` will be, since access(2) knows nothing of root-squash. Raises OSError."""
    probe = temporary_name(final)
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    probe.unlink()


def storage_error(error: OSError, image: PlannedImage) -> ImageError:
    """What the file system refused during an import, and what to do."""
    place = Path(error.filename or image.squash_path.parent)
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
        f"cannot import {image.reference}: {place}: {error.strerror}",
        where=image.error_location,
        hint=hints.get(error.errno or 0, "try again; look at the log of the file system"),
    )
