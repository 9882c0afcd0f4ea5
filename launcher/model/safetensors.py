"""The header of a safetensors file: one small read tells whether the file is whole.

The format (huggingface/safetensors, README): eight bytes, little-endian, the length N of the header; N bytes of JSON,
``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {…}}``; then the data, to the last byte.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

HEADER_LIMIT = 100_000_000
"""Longest header that the reference reader accepts, in bytes."""

LFS_POINTER = b"version https://git-lfs"
"""The beginning of a file that `git clone` without git-lfs leaves in place of the real one."""


class DamagedFile(Exception):
    """A file is not what its name promises; the message says why in a few words."""


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """The size of a safetensors file in bytes, the names of its tensors, and their bytes by dtype."""

    size: int
    tensors: frozenset[str]
    bytes_by_dtype: Mapping[str, int]


def wrong_size(size: int, expected: int) -> str:
    """How much a file of ``size`` bytes is too short or too long."""
    by = abs(size - expected)
    return f"{by} byte{'' if by == 1 else 's'} too {'short' if size < expected else 'long'}"


def open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file that has content and is no Git-LFS pointer; return its descriptor and size in bytes.

    Raises DamagedFile otherwise. The caller closes the descriptor.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        broken = path.is_symlink() and not path.exists()
        raise DamagedFile("a link to nothing" if broken else str(error.strerror).lower()) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile("not a regular file")
        if status.st_size == 0:
            raise DamagedFile("empty")
        if os.pread(descriptor, len(LFS_POINTER), 0) == LFS_POINTER:
            raise DamagedFile("a Git-LFS pointer, not the file itself")
    except OSError as error:
        os.close(descriptor)
        raise DamagedFile(str(error.strerror).lower()) from None
    except DamagedFile:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def read_header(path: Path) -> Header:
    """Read and check a file's header.

    Raises DamagedFile when the file is truncated, longer than its header says, or another kind of file.
    """
    descriptor, size = open_regular(path)
    try:
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if size < 8 or length > HEADER_LIMIT:
            raise DamagedFile("not a safetensors file")
        if 8 + length > size:
            raise DamagedFile(f"truncated within its header ({size} bytes)")
        raw = os.pread(descriptor, length, 8)
    except OSError as error:
        raise DamagedFile(str(error.strerror).lower()) from None
    finally:
        os.close(descriptor)
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=_Tensor) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedFile("not a safetensors file: its header is not the JSON it should be") from None
    expected = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size != expected:
        raise DamagedFile(f"{wrong_size(size, expected)} ({size} bytes)")
    by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        by_dtype[tensor.dtype] += tensor.data_offsets[1] - tensor.data_offsets[0]
    return Header(size, frozenset(tensors), by_dtype)
