"""Following a job's log while it grows. What the log says decides nothing about the job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

READ_AT_ONCE = 1 << 20
"""Bytes read in one call: what bounds the memory."""

LONGEST_LINE = 1 << 16
"""Bytes of a line before it is given out in pieces; progress bars may never send a newline."""


class LogFollower:
    """Gives the complete lines that a file gained since the last call; never blocks, never raises for the file.

    The file may come late, be replaced by another (its inode changes: what the old one still held is read first), or
    be truncated (it is read from its start). Whenever there is nothing to read it is opened anew: over NFS only an
    open asks the server how long the file is now. A file that is truncated and grows past the old place between two
    calls looks like one that grew: rotation by copying and truncating can lose lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._inode: tuple[int, int] | None = None
        self._place = 0
        self._held = b""

    def read_new(self) -> list[str]:
        """The new lines, without line ends; at most READ_AT_ONCE bytes of them. Call again for more: an empty list
        means that there is nothing now. A last line without its newline is held back until `flush`."""
        lines: list[str] = []
        chunk = self._read()
        if not chunk:
            if self._open_anew():
                lines = self.flush()
            chunk = self._read()
        return lines + self._cut(chunk)

    def flush(self) -> list[str]:
        """The line that was held back, when the log is known to have ended."""
        held, self._held = self._held, b""
        return [_text(held)] if held else []

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> bytes:
        if self._file is None:
            return b""
        try:
            self._file.seek(self._place)
            chunk = self._file.read(READ_AT_ONCE)
        except OSError:  # ESTALE, EIO: opening it anew finds what is there now
            self.close()
            return b""
        self._place += len(chunk)
        return chunk

    def _open_anew(self) -> bool:
        """Open what the path leads to now; True when that is another file, or a shorter one, to be read from its start.

        The old file stays open until then, so that its inode cannot be given to its successor.
        """
        try:
            fresh = self.path.open("rb", buffering=0)
        except OSError:
            return False
        try:
            status = os.fstat(fresh.fileno())
        except OSError:
            fresh.close()
            return False
        self.close()
        inode = (status.st_dev, status.st_ino)
        begins = inode != self._inode or status.st_size < self._place
        if begins:
            self._place = 0
        self._file, self._inode = fresh, inode
        return begins

    def _cut(self, chunk: bytes) -> list[str]:
        *lines, held = (self._held + chunk).split(b"\n")
        while len(held) > LONGEST_LINE:
            lines.append(held[:LONGEST_LINE])
            held = held[LONGEST_LINE:]
        self._held = held
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    """A line for a person: of what a progress bar wrote over itself, the last."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
