"""The live view of a sweep in a terminal: it redraws the lines that changed, and takes keys.

It shows an `Overview`, and its keys send the same requests to the sweep's driver as `launcher sweep pause` does; so it
works in the driver's own terminal and in any other one. rich lays the text out; 80 columns are enough.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from launcher.core.errors import LauncherError
from launcher.core.terminal import one_line
from launcher.run.log_lines import tail
from launcher.sweep.overview import RANK, JobLine, Overview, age, header_lines

REFRESH_INTERVAL = 1.0
"""Seconds between two overviews."""

MAX_ERRORS = 200
"""Errors that are kept while the view is open."""

KEYS = "p pause  g go on  d drain  s stop  ↑↓ choose  l log  q close"
_STYLES = {"running": "green", "ok": "dim", "failed": "red", "missing": "red", "unknown": "yellow", "queued": "cyan"}


def visible_jobs(sweep: Overview, count: int) -> list[JobLine]:
    """The first ``count`` jobs: those that live, then those that failed, then the others."""
    order = sorted(sweep.jobs, key=lambda job: (RANK.index(job.state), job.since or 0.0))
    return order[: max(1, count)]


class View:
    """Makes the lines of the screen from an overview, for a width and height."""

    def __init__(self) -> None:
        self.selected = 0
        """The number of the job that the cursor is on."""
        self.log = ""
        """The path of the log that is shown in place of the jobs."""
        self.message = ""
        self.error = ""
        """The last error of the driver; those of jobs are in the overview."""

    def lines(self, sweep: Overview, width: int, height: int, now: float) -> list[str]:
        """The lines with the codes of their styles; none is wider than ``width``."""
        head = header_lines(sweep)
        failures = [f"{job.key}: {job.reason}" for job in sweep.jobs if job.state in ("failed", "missing", "unknown")]
        held = [f"held: {text}" for text in sweep.held] + [f"node {text} is not used" for text in sweep.excluded]
        errors = [f"error: {self.error}"] if self.error else []
        foot = [*held[:2], *failures[-3:], *errors, self.message or KEYS]
        if self.log:
            body: list[tuple[str, str]] = [
                (line, "") for line in tail(Path(self.log))[-max(1, height - len(head) - 2) :]
            ]
            return self._styled([(text, "bold") for text in head] + body + [("q back to the jobs", "reverse")], width)
        jobs = visible_jobs(sweep, height - len(head) - len(foot) - 1)
        self.selected = min(self.selected, max(0, len(jobs) - 1))
        key_width = max(12, min(48, width - 56))
        rows = [(f"  {'job':{key_width}} {'state':11} {'age':>4} {'done':>5} {'conc':>5} last", "bold")]
        for number, job in enumerate(jobs):
            done, conc = f"{job.ok}/{len(job.concurrencies)}", "" if job.now is None else str(job.now)
            mark = ">" if number == self.selected else " "
            last = job.throughput or job.reason or job.topology
            cells = f"{job.state:11} {age(job.since, now):>4} {done:>5} {conc:>5}"
            text = f"{mark} {_cut(job_label(job, key_width), key_width):{key_width}} {cells} {last}"
            rows.append((text, _STYLES.get(job.state, "")))
        styled = [(text, "bold" if number == 0 else "") for number, text in enumerate(head)]
        return self._styled([*styled, *rows, *((text, "red") for text in foot[:-1]), (foot[-1], "reverse")], width)

    @staticmethod
    def _styled(lines: Sequence[tuple[str, str]], width: int) -> list[str]:
        from rich.console import Console
        from rich.text import Text

        plain = bool(os.environ.get("NO_COLOR"))
        console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=plain, color_system="standard")
        styled = []
        for text, style in lines:
            line = Text(one_line(text), style=style, no_wrap=True, overflow="ellipsis")
            line.truncate(width, overflow="ellipsis")
            with console.capture() as capture:
                console.print(line, end="")
            styled.append(capture.get())
        return styled


def job_label(job: JobLine, width: int) -> str:
    """A job's key; where it is too wide, the job's topology, concurrencies and lengths."""
    if len(job.key) <= width:
        return job.key
    ends = "-".join(map(str, dict.fromkeys((min(job.concurrencies), max(job.concurrencies)))))
    return f"{job.topology} c{ends} {job.measures.replace('1024', '1k').replace('8192', '8k')}"


def _cut(text: str, width: int) -> str:
    """A text cut in its middle, because keys of jobs differ at their ends."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width - width // 2) :]}"


class Screen:
    """Draws lines on the terminal's alternate screen, and rewrites only those that changed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn: list[str] = []
        self._size = (0, 0)
        self.written = 0

    def __enter__(self) -> Screen:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(self, *exception: object) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def draw(self, lines: Sequence[str], size: tuple[int, int]) -> None:
        if size != self._size:
            self._drawn, self._size = [], size
            self._write("\x1b[2J")
        wanted = list(lines[: size[1]])
        rows = max(len(wanted), len(self._drawn))
        text = ""
        for row in range(rows):
            new = wanted[row] if row < len(wanted) else ""
            if row >= len(self._drawn) or self._drawn[row] != new:
                text += f"\x1b[{row + 1};1H{new}\x1b[0m\x1b[K"
        self._drawn = wanted
        if text:
            self._write(text)

    def _write(self, text: str) -> None:
        self.written += len(text)
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


@contextlib.contextmanager
def read_keys(stream: TextIO) -> Iterator[Callable[[float], str]]:
    """Within the block, keys are read one by one and are not echoed. Gives a function that waits for a key for some
    seconds, and returns "" when none came."""
    number = stream.fileno()
    before = termios.tcgetattr(number)

    def wait(seconds: float) -> str:
        if select.select([number], [], [], seconds)[0]:
            return os.read(number, 8).decode(errors="replace")
        return ""

    try:
        tty.setcbreak(number)
        yield wait
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


class LiveView:
    """Shows a sweep in a thread, until its caller or a key closes it. ``get_overview`` reads how the sweep stands, and
    ``send_verb`` asks its driver to pause, go on, drain or stop."""

    def __init__(self, get_overview: Callable[[], Overview], send_verb: Callable[[str], None], stream: TextIO) -> None:
        self._get_overview, self._send_verb, self._stream = get_overview, send_verb, stream
        self._view = View()
        self.errors: deque[str] = deque(maxlen=MAX_ERRORS)
        """Errors that were shown, for its caller to print afterwards."""
        self._over = threading.Event()
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="live view")

    def start(self) -> None:
        self._thread.start()

    def show_error(self, error: str) -> None:
        """Show an error until the next one, and keep it."""
        self.errors.append(error)
        self._view.error = error

    def close(self) -> None:
        self._over.set()
        self._thread.join(3.0)

    def _run(self) -> None:
        try:
            self._show()
        finally:  # other output, and `status --watch`, wait for this
            self.closed.set()

    def _show(self) -> None:
        view = self._view
        with contextlib.ExitStack() as stack:
            screen = stack.enter_context(Screen(self._stream))
            wait = stack.enter_context(read_keys(sys.stdin))
            sweep, read_at = self._get_overview(), time.monotonic()
            while not self._over.is_set():
                if time.monotonic() - read_at >= REFRESH_INTERVAL:
                    read_at = time.monotonic()
                    with contextlib.suppress(LauncherError):  # a file cannot be read now: the last overview stays
                        sweep = self._get_overview()
                size = shutil.get_terminal_size()
                screen.draw(view.lines(sweep, size.columns, size.lines, time.time()), (size.columns, size.lines))
                if (key := wait(0.2)) and self._handle_key(key, view, sweep):
                    break

    def _handle_key(self, key: str, view: View, sweep: Overview) -> bool:
        """Do what a key is for. Returns whether it closes the view."""
        verbs = {"p": "pause", "g": "go-on", "d": "drain", "s": "stop"}
        if key in verbs:
            view.message = f"asked to {verbs[key].replace('-', ' ')}"
            self._send_verb(verbs[key])
        elif key in ("\x1b[A", "k", "\x1b[B", "j"):
            view.selected = max(0, view.selected + (1 if key in ("\x1b[B", "j") else -1))
        elif key == "l":
            jobs = visible_jobs(sweep, len(sweep.jobs))
            view.log = jobs[view.selected].log if view.selected < len(jobs) else ""
            view.message = "" if view.log else "it has no log yet"
        elif key in ("q", "\x1b"):
            closes = not view.log
            view.log = ""
            return closes
        return False
