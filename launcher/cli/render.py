"""What people see: plans, runs and tables by rich (plain text where there is no terminal), and what goes on."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from launcher.cli.output import Output
from launcher.core import lines
from launcher.core.github import GitHub
from launcher.core.lines import Terminal, print_lines
from launcher.core.redact import redact
from launcher.core.terminal import coloured, console, one_line, printable, styled

if TYPE_CHECKING:  # a plan pays for nothing that only a run needs
    from launcher.cli.logs import LogLines
    from launcher.model.copy import Progress
    from launcher.run.finish import Outcome
    from launcher.run.record import Event

_LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

_BARS = 12
"""Bars of single files that are shown at once in a terminal."""

_COLOURS = {"log": "2", "error": "31", "warning": "33", "job": "36", "end": "1"}
"""Codes of a terminal for the kinds of lines."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    terminal = Terminal.of(sys.stdout)
    print_lines(lines.table(columns, rows, terminal.width), terminal)


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
        self._total = self._bars.add_task(f"{self._what}, {files} files", total=size)

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


class Console:
    """Writes events and job logs to standard output; job logs between ``::stop-commands::`` marks where GitHub reads.

    ``labels`` names runs for people; with a single run no label is shown. ``output`` is what standard output is
    meanwhile: logs wait for room in it, and events never do.
    """

    def __init__(self, labels: Mapping[str, str], github: GitHub | None, output: Output | None = None) -> None:
        self._labels, self._github, self._output = labels, github, output
        self._colour = coloured(sys.stdout)
        self._began: float | None = None
        self._gone = False
        self._logs: dict[str, LogLines] = {}

    def event(self, event: Event) -> None:
        """Show an event as a line: seconds since the first one, run, text."""
        self._began = event.time if self._began is None else self._began
        if event.kind == "verdict" or (event.kind == "stage" and event.data.get("state") == "done"):
            return
        run = self._label(event.run, "  ")
        mark = {"error": "error: ", "warning": "warning: "}.get(event.kind, "")
        # Further lines are indented: none of them can be taken for an event.
        text = redact(event.text, os.environ).replace("\n", "\n          ")
        self._say(f"{event.time - self._began:7.1f}s  {run}{mark}{text}", event.kind)

    def log(self, run: str, lines: Sequence[str]) -> None:
        """Show new lines of a job's log, as one block. Waits while a slow reader has enough to read."""
        if not lines:
            return
        if self._output is not None:
            self._output.wait_for_room()
        from launcher.cli.logs import LogLines

        logs = self._logs.setdefault(run, LogLines(self._label(run, "") + "  | "))
        shown = logs.shown(lines)
        if self._github is None:
            self._say_all(shown, "log")
            return
        with self._unheard(), self._github.job_log() as write:
            write("\n".join(shown))

    def outcomes(self, runs: Path, outcomes: Sequence[Outcome]) -> None:
        """Show how runs ended: the table of results, where they are, and what to try next."""
        from launcher.result.summary import write_table
        from launcher.result.summary_file import read_document

        with self._unheard():
            sys.stdout.write("\n")
            found = [summary for outcome in outcomes if (summary := read_document(runs / outcome.run))]
            write_table(found)
        for outcome in outcomes:
            if outcome.error is not None:
                label = self._label(outcome.run, ": ").lstrip()
                self._say(f"{label}{redact(str(outcome.error), os.environ)}", "error")
                self._say(f"{label}verdict: {one_line(redact(str(outcome.verdict), os.environ))}", "end")
        good = [o for o in outcomes if o.error is None]
        self._say("")
        self._say(f"{len(good)} of {len(outcomes)} runs succeeded. Records and results: {runs}")
        if outcomes:
            chosen = next((o for o in outcomes if o.error is not None), outcomes[0])
            self._say(f"Next: launcher status {chosen.run}   (or: launcher logs {chosen.run})")

    def _label(self, run: str, after: str) -> str:
        if len(self._labels) < 2:
            return ""
        width = max(len(label) for label in self._labels.values())
        return f"{self._labels.get(run, run):{width}}{after}"

    def _say(self, text: str, kind: str = "") -> None:
        """What is said, of one line or a few, where there are colours in that of its kind."""
        self._say_all(printable(text).split("\n"), kind)

    def _say_all(self, lines: Sequence[str], kind: str) -> None:
        code = _COLOURS.get(kind) if self._colour else None
        text = "".join(f"\033[{code}m{line}\033[0m\n" if code else f"{line}\n" for line in lines)
        with self._unheard():
            if not self._gone:
                # One write: several threads say lines.
                styled(sys.stdout).write(text)
                sys.stdout.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        """A terminal that was closed, or a reader that has gone, must not end a run: its job has to be watched, or
        cancelled, and what is said is in its record. A full disk behind standard output is the same to us."""
        try:
            yield
        except OSError:
            self._gone = True
