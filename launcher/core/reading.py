"""Reading files that others may have written or damaged: only regular files, and only so much of them.

A pipe of a file's name would hold the reader for ever, a device or a file of many gigabytes would fill its memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_file(path: Path | str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises OSError for anything else, and never waits."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or what no file system can hold
        raise OSError(errno.EINVAL, f"the path cannot be one: {error}", str(path)) from None
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", str(path))
        parts, left = [], most + 1
        while left > 0 and (part := os.read(handle, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        if left <= 0:
            raise OSError(errno.EFBIG, f"it has more than {most / 1e6:g} MB", str(path))
        return b"".join(parts)
    finally:
        os.close(handle)
