"""Reading files that others may have written or damaged: only regular files, up to a bound.

A pipe in place of a file would block the reader for ever; a device or a file of many gigabytes would fill its memory.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import threading
from pathlib import Path
from typing import IO, Any, TypeVar

Kind = TypeVar("Kind")

LARGEST_RESULT = 1 << 31
"""Bytes of a raw result: the latencies of twenty million tokens are some 400 MB."""


def open_regular(path: Path | str, *, buffered: bool = True, follow: bool = True) -> IO[bytes]:
    """Open a regular file for reading, also through a link if ``follow``. Raises OSError for anything else, and never
    waits."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except ValueError as error:  # a NUL, or what no file system can hold
        raise OSError(errno.EINVAL, f"the path cannot be one: {error}", str(path)) from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", str(path))
        return os.fdopen(handle, "rb", -1 if buffered else 0)
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path | str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises OSError for anything else, and never waits."""
    with open_regular(path) as file:
        large = os.fstat(file.fileno()).st_size > most
        content = b"" if large else file.read(most + 1)
    if large or len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most / 1e6:g} MB", str(path))
    return content


def read_end(path: Path | str, size: int) -> tuple[bytes, bool]:
    """The last ``size`` bytes of a regular file, and whether there is more before them. Raises OSError."""
    with open_regular(path) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - size))
        return file.read(size), length > size


def open_text(path: Path | str, *, newline: str | None = None, errors: str = "strict") -> IO[str]:
    """A regular file of UTF-8, open to be read line by line. Raises OSError for anything else, and never waits."""
    return io.TextIOWrapper(open_regular(path), encoding="utf-8", newline=newline, errors=errors)


def load_json(path: Path | str, most: int = 64 << 20) -> Any:
    """The JSON of a file that anybody may have written, in UTF-8 and of at most ``most`` bytes; NaN is read as well.
    Raises OSError, and ValueError where it is none."""
    try:
        return json.loads(read_file(path, most).decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_PREPARED: set[Any] = set()
_PREPARING = threading.Lock()


def prepare_type(kind: Kind) -> Kind:
    """The type itself, prepared so that msgspec may decode it in any thread.

    msgspec analyses a type when it first decodes it. Two threads that do so at once end the process by SIGSEGV (0.22;
    seen once in three hundred such meetings).
    """
    if kind not in _PREPARED:
        import msgspec

        with _PREPARING:
            msgspec.json.Decoder(kind)
            _PREPARED.add(kind)
    return kind


def read_json(path: Path | str, kind: type[Kind], most: int = 1 << 20) -> Kind | None:
    """A JSON file of one of our types; None when it is missing, or is not of that type."""
    import msgspec

    try:
        return msgspec.json.decode(read_file(path, most), type=prepare_type(kind))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
