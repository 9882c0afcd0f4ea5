"""What people see while runs go on. A terminal has a line for each living run, which shows its status and is rewritten;
elsewhere a line is printed for each event, and after a silence one that says what is waited for.

`Console` takes events from any thread; `run_status` makes texts of them. Each error is shown once, in full, at the end.
With ``--json`` each event is a line of JSON instead.
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
from launcher.cli.run_status import RunStatus, count_steps, describe_programs, truncate
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
"""Seconds of silence after which a line says what is waited for, where there is no terminal; later ones follow each
other at the last of these intervals."""

MAX_RUN_LINES = 8
"""Most runs that have a line in a terminal at a time."""

PROGRESS_INTERVAL = 2.0
"""Seconds between two reads of how far a running job is."""

_COLOURS = {"log": "2", "error": "31", "warning": "33", "job": "36", "end": "1"}
"""Codes of a terminal for the kinds of lines."""


@dataclass(frozen=True)
class OutputOptions:
    """How much is printed, and in which form. ``rewrite`` makes printed commands work in this shell; shown paths are
    relative to ``state``. ``many``: these are runs of a sweep, whose driver prints how each ended."""

    verbose: bool = False
    quiet: bool = False
    as_json: bool = False
    many: bool = False
    rewrite: Callable[[str], str] = str
    state: Path | None = None


@dataclass(frozen=True)
class ConsoleInputs:
    """What the console reads: the clocks, the programs that run, how far the job of a run is (``progress``), and
    whether a live view has the terminal now (``hidden``)."""

    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    programs: Callable[[], Sequence[RunningProgram]] = running_programs
    progress: Callable[[str], str] = lambda run: ""
    hidden: Callable[[], bool] = lambda: False


class Console:
    """Writes events and job logs to standard output. In GitHub, logs stand between ``::stop-commands::`` marks.

    ``labels`` has names of runs for people; with a single run no label is shown. ``output`` is what standard output is
    meanwhile: logs wait for room in it, and events never do.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        github: GitHub | None,
        output: BackgroundOutput | None = None,
        options: OutputOptions = OutputOptions(),
        inputs: ConsoleInputs = ConsoleInputs(),
    ) -> None:
        self._labels, self._github, self._output = labels, github, output
        self._options, self._inputs = options, inputs
        self._colour = uses_colours(sys.stdout)
        quiet = options.quiet or options.as_json
        self._in_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self._first_time: float | None = None
        self._output_closed = False
        self._logs: dict[str, LogFormatter] = {}
        self._lock = threading.RLock()
        self._living: dict[str, RunStatus] = {}
        self._ended: dict[str, RunStatus] = {}
        self._progress: dict[str, tuple[float, str]] = {}
        self._block: list[str] = []
        """The lines of living runs that stand at the end of the terminal."""
        self._changed = inputs.clock()
        self._silences = 0

    def event(self, event: Event) -> None:
        """Show an event, if it is of a kind that is shown: seconds since the first event, run, text."""
        with self._lock:
            self._first_time = event.time if self._first_time is None else self._first_time
            new = RunStatus(self._labels.get(event.run, ""), since=event.time)
            status = self._ended.get(event.run) or self._living.setdefault(event.run, new)
            status.update(event)
            self._changed, self._silences = self._inputs.clock(), 0
            if self._options.as_json:
                self.value(_event_value(event))
            elif self._is_shown(event) and not self._inputs.hidden():
                text = f"{event.time - self._first_time:7.1f}s  {self._event_text(event, status)}"
                self._print(text, event.kind)
            if status.ended and event.run in self._living:
                self._ended[event.run] = self._living.pop(event.run)

    def _is_shown(self, event: Event) -> bool:
        if event.kind == "verdict" or (event.kind == "stage" and event.data.get("state") == "done"):
            return False
        if self._options.verbose:
            return True
        if event.kind == "warning":
            return not self._options.quiet
        quiet = self._options.quiet or self._options.many or self._in_terminal
        return event.kind in ("job", "end") and not quiet

    def _event_text(self, event: Event, status: RunStatus) -> str:
        label = self._label(event.run, "  ")
        text = redact(event.text, os.environ)
        if not self._options.verbose and event.kind == "job":
            text = status.activity
        elif not self._options.verbose and event.kind == "end":  # `outcomes` prints the whole error
            text = ": ".join([text.partition(":")[0], *([layer] if (layer := event.data.get("layer")) else [])])
        prefix = {"error": "error: ", "warning": "warning: "}.get(event.kind, "")
        # Further lines are indented, so that none of them looks like an event.
        return f"{label}{prefix}{self._with_short_paths(text)}".replace("\n", "\n          ")

    def log(self, run: str, lines: Sequence[str]) -> None:
        """Show new lines of a job's log, as one block. Waits while a slow reader has enough to read."""
        if not lines or self._options.quiet:
            return
        if self._output is not None:
            self._output.wait_for_room()
        prefix = "" if self._options.as_json else self._label(run, "") + "  | "
        shown = self._logs.setdefault(run, LogFormatter(prefix)).format(lines)
        if self._options.as_json:
            self.value(streaming.LogText(time=self._inputs.clock(), run=run, lines=shown))
        elif self._github is None:
            self._print_lines(shown, "log")
        else:
            with self._ignoring_closed_output(), self._github.job_log() as write:
                write("\n".join(shown))

    def sweep_message(self, kind: str, text: str) -> None:
        """Show a message of a sweep's driver."""
        if self._options.as_json:
            self.value(streaming.SweepMessage(time=self._inputs.clock(), kind=kind, text=redact(text, os.environ)))
        elif self._inputs.hidden() or (kind == "start" and not self._options.verbose):
            return
        elif not self._options.quiet or kind in ("error", "result"):
            self._print(self._options.rewrite(text), {"start": "job", "end": "end"}.get(kind, kind))

    def notice(self, text: str) -> None:
        """Show a line about this command, which is not an event of a run."""
        if self._options.as_json:
            print_line(text, sys.stderr)
        else:
            self._print(text, "warning")

    def value(self, value: Any) -> None:
        """Print a value as a line of JSON."""
        self._write(json_text(value, indent=0) + "\n")

    @contextlib.contextmanager
    def refreshing(self) -> Iterator[None]:
        """Within the block, a thread calls `refresh` twice a second."""
        over = threading.Event()

        def refresh_on() -> None:
            while not over.wait(0.5):
                self.refresh()

        thread = threading.Thread(target=refresh_on, daemon=True, name="console")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(2.0)
            with self._lock:
                self._rewrite("", [])

    def refresh(self) -> None:
        """Rewrite the lines of living runs; where there is no terminal, print after a silence what is waited for."""
        if self._options.quiet or self._inputs.hidden():
            return
        with self._lock:
            now = self._inputs.clock()
            if self._in_terminal:
                self._rewrite("", self._run_lines(now))
                return
            silence = SILENCES[min(self._silences, len(SILENCES) - 1)]
            beyond = max(0, self._silences - len(SILENCES) + 1) * SILENCES[-1]
            if self._living and now - self._changed >= silence + beyond:
                self._silences += 1
                self._print_waiting(now)

    def _print_waiting(self, now: float) -> None:
        if self._options.as_json:
            for run, status in self._living.items():
                at_most = UNSET if status.at_most is None else status.at_most
                progress = self._job_progress(run, status) or UNSET
                value = streaming.RunWaiting(
                    time=now, run=run, text=status.activity, since=status.since, at_most=at_most, progress=progress
                )
                self.value(value)
            return
        if len(self._living) == 1:
            ((run, status),) = self._living.items()
            text = status.sentence(now, self._job_progress(run, status))
        else:
            text = count_steps(list(self._living.values()), now)
        text = "; ".join(filter(None, [text, self._program_text()]))
        elapsed = 0.0 if self._first_time is None else now - self._first_time
        self._print(f"{elapsed:7.1f}s  waiting: {self._with_short_paths(text)}", "log")

    def _run_lines(self, now: float) -> list[str]:
        """The lines of living runs, at most as wide as the terminal."""
        size = shutil.get_terminal_size()
        room, width = max(1, min(MAX_RUN_LINES, size.lines - 3)), size.columns - 1
        shown = list(self._living.items())[: room if len(self._living) <= room else room - 1]
        programs = self._program_text()
        lines = []
        for run, status in shown:
            progress = self._job_progress(run, status) + (f"; {programs}" if programs and len(shown) == 1 else "")
            line = redact(one_line(status.line(now, progress, width)), os.environ)
            lines.append(self._with_short_paths(line))
        if rest := list(self._living.values())[len(shown) :]:
            lines.append(truncate(f"and {len(rest)} more: {count_steps(rest, now)}", width))
        return [*lines, truncate(programs, width)] if programs and len(lines) > 1 else lines

    def _program_text(self) -> str:
        return describe_programs(self._inputs.programs(), self._inputs.monotonic(), _file_size)

    def _job_progress(self, run: str, status: RunStatus) -> str:
        """How far the job of a run is, read at most every PROGRESS_INTERVAL."""
        if status.step != "running":
            return ""
        read_at, text = self._progress.get(run, (0.0, ""))
        now = self._inputs.clock()
        if now - read_at >= PROGRESS_INTERVAL:
            text = self._inputs.progress(run)
            self._progress[run] = now, text
        return text

    def outcomes(self, runs: Path, outcomes: Sequence[Outcome]) -> None:
        """Show how runs ended: the table of results, each error once, where records are, and the next commands."""
        if self._options.as_json:
            for outcome in outcomes:
                self.value(outcome_value(outcome))
            return
        self._print_results(runs, outcomes)
        for outcome in outcomes:
            if outcome.error is not None:
                self._print(f"\n{self._full_error(outcome, self._label(outcome.run, ': '))}", "error")
        if self._options.many or not outcomes:
            return
        good = [o for o in outcomes if o.error is None]
        first = next((o for o in outcomes if o.error is not None), outcomes[0])
        directory = runs / first.run if len(outcomes) == 1 else runs
        self._print(f"\n{len(good)} of {len(outcomes)} runs succeeded. Records and results: {directory}")
        self._print(self._options.rewrite(f"Next: launcher status {first.run}"))
        self._print(self._options.rewrite(f"  or: launcher logs {first.run}"))

    def _print_results(self, runs: Path, outcomes: Sequence[Outcome]) -> None:
        from launcher.result.summary_file import read_document, table_lines

        summaries = []
        for outcome in outcomes:
            with contextlib.suppress(ResultError, KeyError):  # an unreadable summary must not hide the others
                summary = read_document(runs / outcome.run) or {"points": ()}
                if any(point["state"] == "ok" for point in summary["points"]) or summary.get("evaluations"):
                    summaries.append(summary)
        if summaries:
            with self._ignoring_closed_output():
                sys.stdout.write("\n")
                terminal = Terminal.of(sys.stdout)
                print_lines(table_lines(summaries, terminal.width), terminal)

    def _full_error(self, outcome: Outcome, label: str) -> str:
        """A run's error and verdict as text: the more informative one first, and nothing twice."""
        error, judged = outcome.error, outcome.verdict
        assert error is not None
        text, verdict = redact(str(error), os.environ), redact(str(judged or ""), os.environ)
        new_words = set(verdict.replace(":", " ").split()) - set(text.replace(":", " ").split())
        if judged is None or new_words <= {judged.layer}:
            text = f"{outcome.state}: {text}" if error.layer == "cancelled" else f"{error.layer}: {text}"
        elif error.message in verdict:
            rest = ", ".join(redact(part, os.environ) for part in (error.where, error.hint) if part)
            text = f"{verdict}\n  hint: {rest}" if rest else verdict
        else:
            text = f"{verdict}\n  {text}"
        lines = (label + self._options.rewrite(self._with_short_paths(text))).split("\n")
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return "\n".join(part for line in lines for part in wrap_words(line, width, "  "))

    def _with_short_paths(self, text: str) -> str:
        """A text whose paths are relative to the state directory."""
        return text.replace(f"{self._options.state}/", "") if self._options.state is not None else text

    def _label(self, run: str, suffix: str) -> str:
        if self._options.many:
            return f"{self._labels.get(run, run)}{suffix}"
        if len(self._labels) < 2:
            return ""
        width = max(len(label) for label in self._labels.values())
        return f"{self._labels.get(run, run):{width}}{suffix}"

    def _print(self, text: str, kind: str = "") -> None:
        self._print_lines(printable(text).split("\n"), kind)

    def _print_lines(self, lines: Sequence[str], kind: str) -> None:
        code = _COLOURS.get(kind) if self._colour else None
        text = "".join(f"\033[{code}m{line}\033[0m\n" if code and line else f"{line}\n" for line in lines)
        with self._lock:
            self._rewrite(text, self._block)

    def _rewrite(self, text: str, block: list[str]) -> None:
        """Write a text above the lines of living runs, and ``block`` in place of these lines."""
        if text or block != self._block:
            clear = f"\033[{len(self._block)}A\r\033[J" if self._block else ""
            self._write(clear + text + "".join(f"{line}\n" for line in block))
        self._block = block

    def _write(self, text: str) -> None:
        with self._ignoring_closed_output():
            if not self._output_closed:
                styled(sys.stdout).write(text)  # one write, because several threads print lines
                sys.stdout.flush()

    @contextlib.contextmanager
    def _ignoring_closed_output(self) -> Iterator[None]:
        # A closed terminal or pipe, or a full disk, must not end a run: its job has to be watched or cancelled, and its
        # record has all that is printed.
        try:
            yield
        except OSError:
            self._output_closed = True


def _event_value(event: Event) -> Mapping[str, Any]:
    """An event as a value for JSON, without keys that have no value."""
    fields = {key: value for key, value in event.data.items() if value is not None}
    text = redact(event.text, os.environ)
    value = streaming.RunEvent(event=event.kind, time=event.time, run=event.run, text=text)  # type: ignore[arg-type]
    return {**to_builtins(value), **fields}


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


def _file_size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
