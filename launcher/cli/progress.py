"""How a copy goes on: bars in a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from launcher.model.copy import Progress

EVERY = 30.0
_SHOWN = 12
"""Bars of single files at once."""


@contextmanager
def showing(stream: TextIO, what: str = "staging") -> Iterator[Progress]:
    """A Progress for the stream."""
    if not stream.isatty():
        yield Lines(stream, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        yield _InTerminal(bars, what)


class Lines:
    """``12.3 of 40.0 GB (31 %), 1.20 GB/s, 23 s left, 5 of 64 files``, at most every ``every`` seconds, and at the
    end."""

    def __init__(
        self, stream: TextIO, what: str, *, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._what, self._every, self._clock = stream, what, every, clock
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
            if now - self._told >= self._every or self._there >= self._size > 0:
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


class _InTerminal:
    def __init__(self, bars: Any, what: str) -> None:
        self._bars, self._what = bars, what
        self._tasks: dict[str, Any] = {}
        self._total: Any = None
        self._lock = threading.Lock()

    def begin(self, files: int, size: int) -> None:
        self._total = self._bars.add_task(f"{self._what}, {files} files", total=size)

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        with self._lock:
            self._bars.advance(self._total, count)
            if path not in self._tasks:
                self._tasks[path] = self._bars.add_task(path, total=size, visible=self._shown() < _SHOWN)
            if (task := self._tasks[path]) is None:
                return  # it is finished
            self._bars.advance(task, count)
            if self._bars.tasks[self._bars.task_ids.index(task)].finished:
                self._bars.remove_task(task)
                self._tasks[path] = None
                self._next()

    def _next(self) -> None:
        """Show a file that waited for room."""
        for task in self._bars.tasks:
            if not task.visible and self._shown() < _SHOWN:
                self._bars.update(task.id, visible=True)
                return

    def _shown(self) -> int:
        return sum(1 for task in self._bars.tasks if task.visible) - 1  # one is the total's
