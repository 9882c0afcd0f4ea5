"""A job's log: followed while it grows, for a person to read; at its end, read for the exit code that the job wrote
there.

The lines that are followed decide nothing about the job.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO

from launcher.core.reading import open_regular, read_end
from launcher.slurm.client import LOST, JobKey, JobState, Phase

READ_SIZE = 1 << 20
"""Bytes read in one call; this bounds the memory."""

TAIL_SIZE = 4096
"""Bytes of a log's end that are searched for a marker: lines of Slurm's daemons about the job's end may follow it."""

CLOCK_SLACK = 60.0
"""Seconds by which the clock of the node that writes the log may be behind that of Slurm."""

LONGEST_LINE = 1 << 16
"""A longer line, in bytes, is returned in pieces: progress bars may never send a newline."""

LONGEST_BACKLOG = 64 << 20
"""Unread bytes that a reader may be behind. Of more only the end is read: the reader cannot keep up."""

KEPT_BACKLOG = 1 << 20
"""Bytes of the end that are read then."""


class LogFollower:
    """Returns the complete lines that a file gained since the last call. It never waits, and raises no error about the
    file.

    The file may appear late, may be replaced by another (its inode changes: the rest of the old one is read first), or
    be truncated (it is read from its start). It is opened anew whenever there is nothing to read: over NFS only an
    open asks the server for the length of the file. A file that is truncated and grows past the old place between two
    calls looks as if it only grew: log rotation that copies and truncates can lose lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._inode: tuple[int, int] | None = None
        self._offset = 0
        self._partial = b""
        self._full = False

    def read_new(self) -> list[str]:
        """The new lines, without line ends; at most READ_SIZE bytes of them. Call again for more: an empty list
        means that there is nothing now. A last line without its newline is kept until `flush`."""
        lines: list[str] = []
        chunk = self._read()
        if not chunk:
            if self._reopen():
                lines = self.flush()
            chunk = self._read()
        return lines + self._split_lines(chunk)

    @property
    def behind(self) -> bool:
        """Whether the last read returned as many bytes as it may: there is probably more."""
        return self._full

    def catch_up(self, most: int | None = None) -> list[str]:
        """Skip to the last KEPT_BACKLOG bytes when more than ``most`` are unread; the line that is returned says so.

        The next `read_new` reads on from there. The rest of a line that was cut is skipped too.
        """
        if self._file is None:
            self._reopen()
        if self._file is None:
            return []
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size - self._offset <= (LONGEST_BACKLOG if most is None else most):
                return []
            offset = max(self._offset, size - KEPT_BACKLOG)
            self._file.seek(max(0, offset - 1))
            rest_of_line = self._file.read(LONGEST_LINE + 1)
        except OSError:
            return []
        offset += max(0, rest_of_line.find(b"\n"))
        skipped, self._offset = offset - self._offset, offset
        return [
            *self.flush(),
            f"[launcher: {skipped} bytes of this log are left out here; all of it is in {self.path}]",
        ]

    def flush(self) -> list[str]:
        """The last line without its newline; to be called when the log has ended."""
        partial, self._partial = self._partial, b""
        return [_text(partial)] if partial else []

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> bytes:
        self._full = False
        if self._file is None:
            return b""
        try:
            self._file.seek(self._offset)
            chunk = self._file.read(READ_SIZE)
        except OSError:  # ESTALE, EIO: opening it anew finds what is there now
            self.close()
            return b""
        self._offset += len(chunk)
        self._full = len(chunk) == READ_SIZE
        return chunk

    def _reopen(self) -> bool:
        """Open the path again; True when that is another file now, or a shorter one, to be read from its start.

        The old file stays open until then, so that the new one cannot get its inode number.
        """
        try:
            fresh = open_regular(self.path, buffered=False)
        except OSError:
            return False
        try:
            status = os.fstat(fresh.fileno())
        except OSError:
            fresh.close()
            return False
        self.close()
        inode = (status.st_dev, status.st_ino)
        is_new = inode != self._inode or status.st_size < self._offset
        if is_new:
            self._offset = 0
        self._file, self._inode = fresh, inode
        return is_new

    def _split_lines(self, chunk: bytes) -> list[str]:
        *lines, partial = (self._partial + chunk).split(b"\n")
        whole = len(partial) - len(partial) % LONGEST_LINE if len(partial) > LONGEST_LINE else 0
        lines += [partial[at : at + LONGEST_LINE] for at in range(0, whole, LONGEST_LINE)]
        self._partial = partial[whole:]
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    """A line for a person: of a progress bar's overwritten line only the last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


class EndMarkers:
    """Reads the exit marker in jobs' logs; a log is read again only when it has changed.

    ``end`` matches the marker; its group ``code`` is the exit code when that is not 0. When ``begin`` follows the
    marker, the job was requeued.
    """

    def __init__(self, end: re.Pattern[str], *, begin: str) -> None:
        self._end, self._begin = end, begin
        self._read_states: dict[Path, tuple[tuple[int, int], JobState | None]] = {}

    def read(self, job: JobKey, log: Path) -> JobState | None:
        """The job's end, as a state with the word LOST; None while its log has no marker.

        A log that was last written before the job was submitted belongs to another job.
        """
        try:
            status = log.stat()
            version = status.st_mtime_ns, status.st_size
            cached = self._read_states.get(log)
            if cached is None or cached[0] != version:
                is_ours = job.submitted is None or status.st_mtime >= job.submitted - CLOCK_SLACK
                cached = self._read_states[log] = version, self._state(log, status) if is_ours else None
        except OSError:
            return None
        return cached[1]

    def _state(self, log: Path, status: os.stat_result) -> JobState | None:
        text = read_end(log, TAIL_SIZE)[0].decode(errors="replace")
        markers = list(self._end.finditer(text))
        if not markers or self._begin in text[markers[-1].end() :]:
            return None
        code = int(markers[-1]["code"] or 0)
        return JobState(
            Phase.TERMINAL,
            LOST,
            exit_code=(code, 0),
            reason=f"Slurm does not tell how the job ended; its log says that it ended with exit code {code}",
            ended=status.st_mtime,
            source=log.name,
        )
