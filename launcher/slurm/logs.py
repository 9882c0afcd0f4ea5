"""A job's log: followed while it grows, for a person to read, and read at its end for how the job says that it ended.

Nothing about a job is decided by the lines that are followed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO

from launcher.core.reading import open_regular, read_end
from launcher.slurm.client import LOST, JobKey, JobState, Phase

READ_SIZE = 1 << 20
"""Bytes read in one call; they bound the memory that is needed."""

TAIL_SIZE = 4096
"""Bytes of a log's end that are read for a marker: lines of Slurm's own daemons about the job's end follow it."""

CLOCK_SLACK = 60.0
"""Seconds by which the clock of the node that writes the log may be behind that of Slurm."""

LONGEST_LINE = 1 << 16
"""A longer line, in bytes, is returned in pieces: progress bars may never send a newline."""

LONGEST_BACKLOG = 64 << 20
"""Bytes that may wait to be read; of more, only the end is read on, since whoever reads cannot keep up."""

KEPT_BACKLOG = 1 << 20
"""Bytes of the end that are then left to be read."""


class LogFollower:
    """Returns the complete lines that a file gained since the last call; never waits, and raises nothing for the file.

    The file may appear late, may be replaced by another (its inode changes: the rest of the old one is read first), or
    be truncated (it is read from its start). It is opened anew whenever there is nothing to read: over NFS only an
    open asks the server for the length of the file. A file that is truncated and grows past the old place between two
    calls looks as if it only grew: log rotation that copies and truncates can lose lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._inode: tuple[int, int] | None = None
        self._place = 0
        self._held = b""
        self._full = False

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

    @property
    def behind(self) -> bool:
        """Whether the last read found as much as a read may give: there is probably more."""
        return self._full

    def catch_up(self, most: int | None = None) -> list[str]:
        """Leave out what is before the last KEPT_WHEN_BEHIND bytes, when more than ``most`` wait; say so in a line.

        What was written since is read when asked for next. Where a line was cut, its rest is left out too.
        """
        if self._file is None:
            self._open_anew()
        if self._file is None:
            return []
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size - self._place <= (LONGEST_BACKLOG if most is None else most):
                return []
            place = max(self._place, size - KEPT_BACKLOG)
            self._file.seek(max(0, place - 1))
            cut = self._file.read(LONGEST_LINE + 1)
        except OSError:
            return []
        place += max(0, cut.find(b"\n"))
        skipped, self._place = place - self._place, place
        return [
            *self.flush(),
            f"[launcher: {skipped} bytes of this log are left out here; all of it is in {self.path}]",
        ]

    def flush(self) -> list[str]:
        """The line that was held back; to be called when the log has ended."""
        held, self._held = self._held, b""
        return [_text(held)] if held else []

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
            self._file.seek(self._place)
            chunk = self._file.read(READ_SIZE)
        except OSError:  # ESTALE, EIO: opening it anew finds what is there now
            self.close()
            return b""
        self._place += len(chunk)
        self._full = len(chunk) == READ_SIZE
        return chunk

    def _open_anew(self) -> bool:
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
        begins = inode != self._inode or status.st_size < self._place
        if begins:
            self._place = 0
        self._file, self._inode = fresh, inode
        return begins

    def _cut(self, chunk: bytes) -> list[str]:
        *lines, held = (self._held + chunk).split(b"\n")
        whole = len(held) - len(held) % LONGEST_LINE if len(held) > LONGEST_LINE else 0
        lines += [held[at : at + LONGEST_LINE] for at in range(0, whole, LONGEST_LINE)]
        self._held = held[whole:]
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    """A line for a person: only the last of what a progress bar wrote over itself."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


class EndMarkers:
    """Reads jobs' logs for how they ended by their own word; a log is read again only when it has changed.

    ``end`` is the marker, whose group ``code`` is the exit code when it is not 0. A log that says ``begin`` after it is
    that of a job that was requeued.
    """

    def __init__(self, end: re.Pattern[str], *, begin: str) -> None:
        self._end, self._begin = end, begin
        self._seen: dict[Path, tuple[tuple[int, int], JobState | None]] = {}

    def read(self, job: JobKey, log: Path) -> JobState | None:
        """The job's end, as a state that is LOST; None while its log does not tell it.

        A log that was last written before the job was submitted belongs to another job.
        """
        try:
            status = log.stat()
            version = status.st_mtime_ns, status.st_size
            known = self._seen.get(log)
            if known is None or known[0] != version:
                is_ours = job.submitted is None or status.st_mtime >= job.submitted - CLOCK_SLACK
                known = self._seen[log] = version, self._state(log, status) if is_ours else None
        except OSError:
            return None
        return known[1]

    def _state(self, log: Path, status: os.stat_result) -> JobState | None:
        text = read_end(log, TAIL_SIZE)[0].decode(errors="replace")
        found = list(self._end.finditer(text))
        if not found or self._begin in text[found[-1].end() :]:
            return None
        code = int(found[-1]["code"] or 0)
        return JobState(
            Phase.TERMINAL,
            LOST,
            exit_code=(code, 0),
            reason=f"Slurm does not tell how the job ended; its log says that it ended with exit code {code}",
            ended=status.st_mtime,
            source=log.name,
        )
