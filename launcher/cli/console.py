"""What people see while runs go on. A terminal has a line for each run that lives, which tells how it stands and is
rewritten; elsewhere a line comes when something happens, and after a silence one that says what is waited for.

`Console` is told everything, from any thread; how a run stands is in `standing`. Each error is shown once, in full, at
the end. With ``--json`` every event is a line of JSON instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, to_builtins

from launcher.cli import streaming
from launcher.cli.command import json_text
from launcher.cli.output import BackgroundOutput, LogFormatter
from launcher.cli.standing import Standing, cut, programs_in_words, together
from launcher.core.errors import ResultError
from launcher.core.lines import Terminal, print_lines, wrap_words
from launcher.core.process import RunningProgram, running_programs
from launcher.core.redact import redact
from launcher.core.terminal import one_line, print_line, printable, styled, uses_colours

if TYPE_CHECKING:
    from launcher.core.github import GitHub
    from launcher.run.finish import Outcome
    from launcher.run.record import Event

SILENCES = (2.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds without anything new after which what is waited for is said, where there is no terminal; later, each time
the last of them."""

LINES = 8
"""Runs that have a line in a terminal at once."""

PROGRESS_EACH = 2.0
"""Seconds between two looks at how far a running job is."""

_COLOURS = {"log": "2", "error": "31", "warning": "33", "job": "36", "end": "1"}
"""Codes of a terminal for the kinds of lines."""


@dataclass(frozen=True)
class OutputOptions:
    """How much is said, and in which form. ``paste`` makes printed commands such as work, ``state`` is the directory
    to which shown paths are relative. ``many``: the runs of a sweep, whose driver says of each how it ended."""

    verbose: bool = False
    quiet: bool = False
    as_json: bool = False
    many: bool = False
    paste: Callable[[str], str] = str
    state: Path | None = None


@dataclass(frozen=True)
class ConsoleInputs:
    """What the console looks at: the time, the programs that are waited for, how far the job of a run is, whether
    something else has the terminal now."""

    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    programs: Callable[[], Sequence[RunningProgram]] = running_programs
    progress: Callable[[str], str] = lambda run: ""
    hidden: Callable[[], bool] = lambda: False


class Console:
    """Writes events and job logs to standard output; job logs between ``::stop-commands::`` marks where GitHub reads.

    ``labels`` names runs for people; with a single run no label is shown. ``output`` is what standard output is
    meanwhile: logs wait for room in it, and events never do.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        github: GitHub | None,
        output: BackgroundOutput | None = None,
        how: OutputOptions = OutputOptions(),
        world: ConsoleInputs = ConsoleInputs(),
    ) -> None:
        self._labels, self._github, self._output, self._how, self._world = labels, github, output, how, world
        self._colour = uses_colours(sys.stdout)
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not (how.quiet or how.as_json)
        self._began: float | None = None
        self._gone = False
        self._logs: dict[str, LogFormatter] = {}
        self._lock = threading.RLock()
        self._standings: dict[str, Standing] = {}
        self._ended: dict[str, Standing] = {}
        self._progress: dict[str, tuple[float, str]] = {}
        self._block: list[str] = []
        self._changed = world.clock()
        self._silences = 0

    def event(self, event: Event) -> None:
        """Show an event, where that is wanted: seconds since the first one, run, text."""
        with self._lock:
            self._began = event.time if self._began is None else self._began
            new = Standing(self._labels.get(event.run, ""), since=event.time)
            standing = self._ended.get(event.run) or self._standings.setdefault(event.run, new)
            standing.take(event)
            self._changed, self._silences = self._world.clock(), 0
            if self._how.as_json:
                self.value(_happened(event))
            elif self._shows(event) and not self._world.hidden():
                self._say(f"{event.time - self._began:7.1f}s  {self._line_of(event, standing)}", event.kind)
            if standing.ended and event.run in self._standings:
                self._ended[event.run] = self._standings.pop(event.run)

    def _shows(self, event: Event) -> bool:
        if event.kind == "verdict" or (event.kind == "stage" and event.data.get("state") == "done"):
            return False
        if self._how.verbose:
            return True
        if event.kind == "warning":
            return not self._how.quiet
        quiet = self._how.quiet or self._how.many or self._live
        return event.kind in ("job", "end") and not quiet

    def _line_of(self, event: Event, standing: Standing) -> str:
        run = self._label(event.run, "  ")
        text = redact(event.text, os.environ)
        if not self._how.verbose and event.kind == "job":
            text = standing.at
        elif not self._how.verbose and event.kind == "end":  # the error itself comes in full, at the end
            text = ": ".join([text.partition(":")[0], *([layer] if (layer := event.data.get("layer")) else [])])
        mark = {"error": "error: ", "warning": "warning: "}.get(event.kind, "")
        # Further lines are indented: none of them can be taken for an event.
        return f"{run}{mark}{self._short(text)}".replace("\n", "\n          ")

    def log(self, run: str, lines: Sequence[str]) -> None:
        """Show new lines of a job's log, as one block. Waits while a slow reader has enough to read."""
        if not lines or self._how.quiet:
            return
        if self._output is not None:
            self._output.wait_for_room()
        logs = self._logs.setdefault(run, LogFormatter("" if self._how.as_json else self._label(run, "") + "  | "))
        shown = logs.format(lines)
        if self._how.as_json:
            self.value(streaming.LogText(time=self._world.clock(), run=run, lines=shown))
            return
        if self._github is None:
            self._say_all(shown, "log")
            return
        with self._unheard(), self._github.job_log() as write:
            write("\n".join(shown))

    def sweep_message(self, kind: str, text: str) -> None:
        """Say what a sweep's driver says."""
        if self._how.as_json:
            self.value(streaming.SweepMessage(time=self._world.clock(), kind=kind, text=redact(text, os.environ)))
        elif self._world.hidden() or (kind == "start" and not self._how.verbose):
            return
        elif not self._how.quiet or kind in ("error", "result"):
            self._say(self._how.paste(text), {"start": "job", "end": "end"}.get(kind, kind))

    def aside(self, text: str) -> None:
        """Say what is about this command, and no event of a run."""
        if self._how.as_json:
            print_line(text, sys.stderr)
        else:
            self._say(text, "warning")

    def value(self, value: Any) -> None:
        """Print a value as a line of JSON."""
        self._write(json_text(value, indent=0) + "\n")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block the lines of living runs are there, and silences are broken."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                self.tick()

        thread = threading.Thread(target=watch, daemon=True, name="console")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(2.0)
            with self._lock:
                self._block = self._rewritten("", [])

    def tick(self) -> None:
        """Rewrite the lines of living runs; or, after a silence, say what is waited for."""
        if self._how.quiet or self._world.hidden():
            return
        with self._lock:
            now = self._world.clock()
            if self._live:
                self._block = self._rewritten("", self._lines(now))
                return
            silence = SILENCES[min(self._silences, len(SILENCES) - 1)]
            beyond = max(0, self._silences - len(SILENCES) + 1) * SILENCES[-1]
            if self._standings and now - self._changed >= silence + beyond:
                self._silences += 1
                self._say_waiting(now)

    def _say_waiting(self, now: float) -> None:
        living = list(self._standings.values())
        if self._how.as_json:
            for run, standing in self._standings.items():
                at_most = UNSET if standing.at_most is None else standing.at_most
                more = self._progress_of(run, standing) or UNSET
                value = streaming.RunWaiting(
                    time=now, run=run, text=standing.at, since=standing.since, at_most=at_most, progress=more
                )
                self.value(value)
            return
        run = next(iter(self._standings))
        one = living[0].waiting(now, self._progress_of(run, living[0]))
        text = "; ".join(filter(None, [one if len(living) == 1 else together(living, now), self._programs()]))
        began = now if self._began is None else self._began
        self._say(f"{now - began:7.1f}s  waiting: {self._short(text)}", "log")

    def _lines(self, now: float) -> list[str]:
        """The lines of living runs, as wide as the terminal; ``…`` stands where one is cut."""
        size = shutil.get_terminal_size()
        room = max(1, min(LINES, size.lines - 3))
        shown = list(self._standings.items())[: room if len(self._standings) <= room else room - 1]
        programs, wide = self._programs(), size.columns - 1
        lines = []
        for run, standing in shown:
            more = self._progress_of(run, standing) + (f"; {programs}" if programs and len(shown) == 1 else "")
            lines.append(self._short(redact(one_line(standing.line(now, more, wide)), os.environ)))
        if rest := list(self._standings.values())[len(shown) :]:
            lines.append(cut(f"and {len(rest)} more: {together(rest, now)}", wide))
        return [*lines, cut(programs, wide)] if programs and len(lines) > 1 else lines

    def _programs(self) -> str:
        return programs_in_words(self._world.programs(), self._world.monotonic(), _size_of)

    def _progress_of(self, run: str, standing: Standing) -> str:
        """How far the job of a run is, looked at now and then."""
        if standing.step != "running":
            return ""
        looked, text = self._progress.get(run, (0.0, ""))
        now = self._world.clock()
        if now - looked >= PROGRESS_EACH:
            text = self._world.progress(run)
            self._progress[run] = now, text
        return text

    def outcomes(self, runs: Path, outcomes: Sequence[Outcome]) -> None:
        """Show how runs ended: the table of results, each error once, where records are, and what to try next."""
        from launcher.result.summary_file import read_document, table_lines

        if self._how.as_json:
            for outcome in outcomes:
                self.value(outcome_value(outcome))
            return
        found = []
        for outcome in outcomes:
            with contextlib.suppress(ResultError, KeyError):  # one that cannot be read keeps no other from view
                one = read_document(runs / outcome.run) or {"points": ()}
                if any(point["state"] == "ok" for point in one["points"]) or one.get("evaluations"):
                    found.append(one)
        if found:
            with self._unheard():
                sys.stdout.write("\n")
                terminal = Terminal.of(sys.stdout)
                print_lines(table_lines(found, terminal.width), terminal)
        for outcome in outcomes:
            if outcome.error is not None:
                name = self._label(outcome.run, ": ")
                self._say(f"\n{self._in_full(outcome, name)}", "error")
        if self._how.many:
            return
        good = [o for o in outcomes if o.error is None]
        chosen = next((o for o in outcomes if o.error is not None), outcomes[0] if outcomes else None)
        if chosen is not None:
            where = runs / chosen.run if len(outcomes) == 1 else runs
            self._say(f"\n{len(good)} of {len(outcomes)} runs succeeded. Records and results: {where}")
            self._say(self._how.paste(f"Next: launcher status {chosen.run}"))
            self._say(self._how.paste(f"  or: launcher logs {chosen.run}"))

    def _in_full(self, outcome: Outcome, name: str) -> str:
        """An error and its verdict, the one that says more before the other, neither repeated."""
        error, judged = outcome.error, outcome.verdict
        assert error is not None
        text, verdict = redact(str(error), os.environ), redact(str(judged or ""), os.environ)
        told = set(verdict.replace(":", " ").split()) - set(text.replace(":", " ").split())
        if judged is None or told <= {judged.layer}:
            text = f"{outcome.state}: {text}" if error.layer == "cancelled" else f"{error.layer}: {text}"
        elif error.message in verdict:
            rest = ", ".join(redact(part, os.environ) for part in (error.where, error.hint) if part)
            text = f"{verdict}\n  hint: {rest}" if rest else verdict
        else:
            text = f"{verdict}\n  {text}"
        lines = (name + self._how.paste(self._short(text))).split("\n")
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return "\n".join(part for line in lines for part in wrap_words(line, width, "  "))

    def _short(self, text: str) -> str:
        """A text whose paths are relative to the state directory."""
        return text.replace(f"{self._how.state}/", "") if self._how.state is not None else text

    def _label(self, run: str, after: str) -> str:
        if self._how.many:
            return f"{self._labels.get(run, run)}{after}"
        if len(self._labels) < 2:
            return ""
        width = max(len(label) for label in self._labels.values())
        return f"{self._labels.get(run, run):{width}}{after}"

    def _say(self, text: str, kind: str = "") -> None:
        """What is said, of one line or a few, where there are colours in that of its kind."""
        self._say_all(printable(text).split("\n"), kind)

    def _say_all(self, lines: Sequence[str], kind: str) -> None:
        code = _COLOURS.get(kind) if self._colour else None
        text = "".join(f"\033[{code}m{line}\033[0m\n" if code and line else f"{line}\n" for line in lines)
        with self._lock:
            self._block = self._rewritten(text, self._block)

    def _rewritten(self, text: str, block: list[str]) -> list[str]:
        """Write a text above the lines of living runs, and these anew; the lines that are there then."""
        if text or block != self._block:
            above = f"\033[{len(self._block)}A\r\033[J" if self._block else ""
            self._write(above + text + "".join(f"{line}\n" for line in block))
        return block

    def _write(self, text: str) -> None:
        with self._unheard():
            if not self._gone:
                styled(sys.stdout).write(text)  # one write: several threads say lines
                sys.stdout.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        """A terminal that was closed, or a reader that has gone, must not end a run: its job has to be watched, or
        cancelled, and what is said is in its record. A full disk behind standard output is the same to us."""
        try:
            yield
        except OSError:
            self._gone = True


def _happened(event: Event) -> Mapping[str, Any]:
    """An event as a value for JSON: what has no value is left out."""
    more = {key: one for key, one in event.data.items() if one is not None}
    text = redact(event.text, os.environ)
    value = streaming.RunEvent(event=event.kind, time=event.time, run=event.run, text=text)  # type: ignore[arg-type]
    return {**to_builtins(value), **more}


def outcome_value(outcome: Outcome) -> streaming.RunEnded:
    """An outcome as a value for JSON."""
    error, judged = outcome.error, outcome.verdict
    return streaming.RunEnded(
        run=outcome.run,
        state=outcome.state,
        exit_code=outcome.exit_code,
        error=UNSET if error is None else redact(str(error), os.environ),
        verdict=UNSET if judged is None else redact(str(judged), os.environ),
        points=[
            streaming.PointMeasured(concurrency=p.concurrency, throughput_per_gpu=p.throughput_per_gpu)
            for p in outcome.points
        ],
    )


def _size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
