"""Which parts of a file are at the destination: a line for each, so that a copy that was killed goes on from there.

A line is a claim, not a proof: it can have survived a crash that its data did not. Whoever resumes reads the part again
and compares.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import xxhash

from launcher.model.source import SourceFile


class Journal:
    """The finished parts of one file, with their digests (16 bytes)."""

    def __init__(self, head: bytes, parts: dict[int, bytes], descriptor: int) -> None:
        self.parts = parts
        self._head, self._descriptor = head, descriptor

    @classmethod
    def open(cls, directory: Path, file: SourceFile, part_size: int) -> Journal:
        """Open or begin the file's journal; one of another size, stamp or part size is begun anew. Raises OSError."""
        path = directory / xxhash.xxh3_128(file.path.encode()).hexdigest()
        head = f"{file.size} {file.stamp} {part_size}\n".encode()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        if not content.startswith(head):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            content = b""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if not content:
            os.write(descriptor, head)
        elif not content.endswith(b"\n"):
            os.write(descriptor, b"\n")  # after a line that was cut off
        return cls(head, _parts(content[len(head) :]), descriptor)

    def note(self, index: int, digest: bytes) -> None:
        """Note a finished part, in one write: lines of several threads do not mix (open(2), O_APPEND)."""
        os.write(self._descriptor, f"{index} {digest.hex()}\n".encode())

    def discard(self) -> None:
        """Forget all parts."""
        self.parts = {}
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, self._head)

    def close(self) -> None:
        os.close(self._descriptor)


def _parts(content: bytes) -> dict[int, bytes]:
    found = {}
    for line in content.split(b"\n"):
        number, _, digest = line.partition(b" ")
        if number.isdigit() and len(digest) == 32:
            with contextlib.suppress(ValueError):
                found[int(number)] = bytes.fromhex(digest.decode(errors="replace"))
    return found
