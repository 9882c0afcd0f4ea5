"""The live view of a sweep in a terminal: redraws the lines that changed, and takes keys.

It shows an `Overview` and asks the sweep's driver by the same files as `launcher sweep pause` does, so that it serves
the driver's own terminal and any other one. rich lays the text out; 80 columns are enough.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from launcher.core.errors import LauncherError
from launcher.core.terminal import one_line
from launcher.run.log_lines import tail
from launcher.sweep.overview import RANK, JobLine, Overview, age, header_lines

EACH = 1.0
"""Seconds between two looks at how the sweep stands."""

KEPT = 200
"""Errors that are kept while the view is open."""

KEYS = "p pause  g go on  d drain  s stop  ↑↓ choose  l log  q close"
_STYLES = {"running": "green", "ok": "dim", "failed": "red", "missing": "red", "unknown": "yellow", "queued": "cyan"}


def visible_jobs(found: Overview, room: int) -> list[JobLine]:
    """The jobs that there is room for: those that live, then what went wrong, then the others."""
    order = sorted(found.jobs, key=lambda job: (RANK.index(job.state), job.since or 0.0))
    return order[: max(1, room)]


class View:
    """What is drawn for an overview, line by line, at a width and height."""

    def __init__(self) -> None:
        self.chosen = 0
        self.log = ""
        self.message = ""
        self.error = ""
        """What went wrong last, beside what the sweep itself says."""

    def lines(self, found: Overview, width: int, height: int, now: float) -> list[str]:
        """The lines with their styles, as a terminal takes them; none is wider than ``width``."""
        head = header_lines(found)
        wrong = [f"{job.key}: {job.reason}" for job in found.jobs if job.state in ("failed", "missing", "unknown")]
        held = [f"held: {text}" for text in found.held] + [f"node {text} is not used" for text in found.excluded]
        errors = [f"error: {self.error}"] if self.error else []
        foot = [*held[:2], *wrong[-3:], *errors, self.message or KEYS]
        if self.log:
            body: list[tuple[str, str]] = [
                (line, "") for line in tail(Path(self.log))[-max(1, height - len(head) - 2) :]
            ]
            return self._styled([(text, "bold") for text in head] + body + [("q back to the jobs", "reverse")], width)
        jobs = visible_jobs(found, height - len(head) - len(foot) - 1)
        self.chosen = min(self.chosen, max(0, len(jobs) - 1))
        name = max(12, min(48, width - 56))
        rows = [(f"  {'job':{name}} {'state':11} {'age':>4} {'done':>5} {'conc':>5} last", "bold")]
        for number, job in enumerate(jobs):
            done, conc = f"{job.ok}/{len(job.concurrencies)}", "" if job.now is None else str(job.now)
            mark = ">" if number == self.chosen else " "
            last = job.throughput or job.reason or job.topology
            at = f"{job.state:11} {age(job.since, now):>4} {done:>5} {conc:>5}"
            text = f"{mark} {_cut(job_label(job, name), name):{name}} {at} {last}"
            rows.append((text, _STYLES.get(job.state, "")))
        styled = [(text, "bold" if number == 0 else "") for number, text in enumerate(head)]
        return self._styled([*styled, *rows, *((text, "red") for text in foot[:-1]), (foot[-1], "reverse")], width)

    @staticmethod
    def _styled(lines: Sequence[tuple[str, str]], width: int) -> list[str]:
        from rich.console import Console
        from rich.text import Text

        plain = bool(os.environ.get("NO_COLOR"))
        console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=plain, color_system="standard")
        found = []
        for text, style in lines:
            shown = Text(one_line(text), style=style, no_wrap=True, overflow="ellipsis")
            shown.truncate(width, overflow="ellipsis")
            with console.capture() as capture:
                console.print(shown, end="")
            found.append(capture.get())
        return found


def job_label(job: JobLine, width: int) -> str:
    """A job's key, or where there is no room for it what tells it from its neighbours."""
    if len(job.key) <= width:
        return job.key
    ends = "-".join(map(str, dict.fromkeys((min(job.concurrencies), max(job.concurrencies)))))
    return f"{job.topology} c{ends} {job.measures.replace('1024', '1k').replace('8192', '8k')}"


def _cut(text: str, width: int) -> str:
    """A key whose end, which tells it from its neighbours, is kept."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width - width // 2) :]}"


class Screen:
    """Draws lines on a terminal of its own screen, and rewrites only those that changed."""

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
def read_keys(stream: TextIO) -> Any:
    """Within the block keys come one by one and are not shown; a function that waits for one, or says ""."""
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
    """The view in a thread, until it is closed by its caller or by a key."""

    def __init__(self, look: Callable[[], Overview], ask: Callable[[str], None], stream: TextIO) -> None:
        self._look, self._ask, self._stream = look, ask, stream
        self._view = View()
        self.errors: deque[str] = deque(maxlen=KEPT)
        """What went wrong while it was open, for its caller to say afterwards."""
        self._over = threading.Event()
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self._show_on, daemon=True, name="live view")

    def start(self) -> None:
        self._thread.start()

    def tell(self, error: str) -> None:
        """Show an error until the next one, and keep it."""
        self.errors.append(error)
        self._view.error = error

    def close(self) -> None:
        self._over.set()
        self._thread.join(3.0)

    def _show_on(self) -> None:
        try:
            self._show()
        finally:  # whoever prints beside the view waits for that, and `status --watch` too
            self.closed.set()

    def _show(self) -> None:
        view = self._view
        with contextlib.ExitStack() as stack:
            screen = stack.enter_context(Screen(self._stream))
            wait = stack.enter_context(read_keys(sys.stdin))
            found, looked = self._look(), time.monotonic()
            while not self._over.is_set():
                if time.monotonic() - looked >= EACH:
                    looked = time.monotonic()
                    with contextlib.suppress(LauncherError):  # a file that cannot be read now: the last picture stays
                        found = self._look()
                size = shutil.get_terminal_size()
                screen.draw(view.lines(found, size.columns, size.lines, time.time()), (size.columns, size.lines))
                if (key := wait(0.2)) and self._take(key, view, found):
                    break

    def _take(self, key: str, view: View, found: Overview) -> bool:
        """Do what a key asks for; whether the view is to be closed."""
        verbs = {"p": "pause", "g": "go-on", "d": "drain", "s": "stop"}
        if key in verbs:
            view.message = f"asked to {verbs[key].replace('-', ' ')}"
            self._ask(verbs[key])
        elif key in ("\x1b[A", "k", "\x1b[B", "j"):
            view.chosen = max(0, view.chosen + (1 if key in ("\x1b[B", "j") else -1))
        elif key == "l":
            jobs = visible_jobs(found, len(found.jobs))
            view.log = jobs[view.chosen].log if view.chosen < len(jobs) else ""
            view.message = "" if view.log else "it has no log yet"
        elif key in ("q", "\x1b"):
            closes = not view.log
            view.log = ""
            return closes
        return False
