"""The progress of a copy or a verification on standard error: bars by rich in a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from launcher.core.lines import count_of
from launcher.core.terminal import console, one_line

if TYPE_CHECKING:  # a plan pays for nothing that only a run needs
    from launcher.model.copy import Progress

_LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

_BARS = 12
"""Bars of single files that are shown at once in a terminal."""


@contextlib.contextmanager
def show_progress(stream: TextIO, verb: str = "staging") -> Iterator[Progress]:
    """Show the progress of a copy: bars in a terminal, a plain line every 30 s elsewhere."""
    if not stream.isatty():
        yield ProgressLines(stream, verb)
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console(stream), transient=True) as bars:
        yield _ProgressBars(bars, verb)


class ProgressLines:
    """``12.3 of 40.0 GB (31 %), 1.20 GB/s, 23 s left, 5 of 64 files``: a line now and then, and one at the end."""

    def __init__(self, stream: TextIO, verb: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._verb, self._clock = stream, verb, clock
        self._lock = threading.Lock()
        self._files = self._size = self._copied = self._resumed = self._done = 0
        self._by_file: dict[str, int] = {}
        self._start = self._last_line = clock()

    def begin(self, files: int, size: int) -> None:
        self._files, self._size = files, size
        self._start = self._last_line = self._clock()

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        with self._lock:
            self._copied += count
            self._resumed += count if resumed else 0
            copied = self._by_file.get(path, 0) + count
            self._by_file[path] = copied
            self._done += copied >= size > copied - count or size == 0
            now = self._clock()
            if now - self._last_line >= _LINE_EVERY or self._copied >= self._size > 0:
                self._last_line = now
                self._write_line(now - self._start)

    def _write_line(self, seconds: float) -> None:
        rate = (self._copied - self._resumed) / seconds if seconds > 0 else 0.0
        left = f", {(self._size - self._copied) / rate:.0f} s left" if rate and self._copied < self._size else ""
        self._stream.write(
            f"{self._verb}: {self._copied / 1e9:.1f} of {self._size / 1e9:.1f} GB "
            f"({100 * self._copied // max(self._size, 1)} %), {rate / 1e9:.2f} GB/s{left}, "
            f"{self._done} of {self._files} files\n"
        )
        self._stream.flush()


class _ProgressBars:
    """A bar for all files together, and one for each of the first few unfinished files."""

    def __init__(self, bars: Any, verb: str) -> None:
        self._bars, self._verb = bars, verb
        self._lock = threading.Lock()
        self._copied: dict[str, int] = {}
        self._file_bars: dict[str, Any] = {}
        self._total: Any = None

    def begin(self, files: int, size: int) -> None:
        self._total = self._bars.add_task(f"{self._verb}, {count_of(files, 'file')}", total=size)

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        with self._lock:
            self._bars.advance(self._total, count)
            copied = self._copied[path] = self._copied.get(path, 0) + count
            if copied >= size:
                if path in self._file_bars:
                    self._bars.remove_task(self._file_bars.pop(path))
            elif path in self._file_bars:
                self._bars.update(self._file_bars[path], completed=copied)
            elif len(self._file_bars) < _BARS:
                self._file_bars[path] = self._bars.add_task(one_line(path), total=size, completed=copied)
