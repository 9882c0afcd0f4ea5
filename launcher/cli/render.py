"""What people see: plans, runs and tables by rich (plain text where there is no terminal), and what goes on."""

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
def progress_shown(stream: TextIO, what: str = "staging") -> Iterator[Progress]:
    """Show how a copy goes on: bars in a terminal, a plain line every 30 s elsewhere."""
    if not stream.isatty():
        yield ProgressLines(stream, what)
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console(stream), transient=True) as bars:
        yield _ProgressBars(bars, what)


class ProgressLines:
    """``12.3 of 40.0 GB (31 %), 1.20 GB/s, 23 s left, 5 of 64 files``: a line now and then, and one at the end."""

    def __init__(self, stream: TextIO, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._what, self._clock = stream, what, clock
        self._lock = threading.Lock()
        self._files = self._size = self._there = self._resumed = self._done = 0
        self._by_file: dict[str, int] = {}
        self._began = self._told = clock()

    def begin(self, files: int, size: int) -> None:
        self._files, self._size = files, size
        self._began = self._told = self._clock()

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        with self._lock:
            self._there += count
            self._resumed += count if resumed else 0
            there = self._by_file.get(path, 0) + count
            self._by_file[path] = there
            self._done += there >= size > there - count or size == 0
            now = self._clock()
            if now - self._told >= _LINE_EVERY or self._there >= self._size > 0:
                self._told = now
                self._line(now - self._began)

    def _line(self, seconds: float) -> None:
        rate = (self._there - self._resumed) / seconds if seconds > 0 else 0.0
        left = f", {(self._size - self._there) / rate:.0f} s left" if rate and self._there < self._size else ""
        self._stream.write(
            f"{self._what}: {self._there / 1e9:.1f} of {self._size / 1e9:.1f} GB "
            f"({100 * self._there // max(self._size, 1)} %), {rate / 1e9:.2f} GB/s{left}, "
            f"{self._done} of {self._files} files\n"
        )
        self._stream.flush()


class _ProgressBars:
    """A bar for the whole, and one for each of the first few files that are not finished."""

    def __init__(self, bars: Any, what: str) -> None:
        self._bars, self._what = bars, what
        self._lock = threading.Lock()
        self._there: dict[str, int] = {}
        self._shown: dict[str, Any] = {}
        self._total: Any = None

    def begin(self, files: int, size: int) -> None:
        self._total = self._bars.add_task(f"{self._what}, {count_of(files, 'file')}", total=size)

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        with self._lock:
            self._bars.advance(self._total, count)
            there = self._there[path] = self._there.get(path, 0) + count
            if there >= size:
                if path in self._shown:
                    self._bars.remove_task(self._shown.pop(path))
            elif path in self._shown:
                self._bars.update(self._shown[path], completed=there)
            elif len(self._shown) < _BARS:
                self._shown[path] = self._bars.add_task(one_line(path), total=size, completed=there)
