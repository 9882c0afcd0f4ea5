"""`launcher status`: the runs, by their records alone; `launcher logs`: a job's log as `run` shows it.

It is asked often and of thousands of runs, so it imports little, and keeps of each record only the line that it shows.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launcher.cli.command import Command, Log, for_each_name, refusal_lines
from launcher.cli.output import LogFormatter
from launcher.core.errors import ConfigError, ErrorInfo, LauncherError, ResultError
from launcher.core.lines import Line, Terminal, count_of, field_lines, table, wrap_words
from launcher.core.state import state_directory
from launcher.run.fields import UNREADABLE, RecordedError, RecordedJob, RunFields, Verdict
from launcher.run.listing import UnreadableRecord, each_record
from launcher.run.naming import load_named, names, shortest
from launcher.run.record import RunRecord
from launcher.slurm.logs import LogFollower


@dataclass(frozen=True)
class RunLine:
    """A run among others. ``short`` is the shortest form of its id; ``driven`` whether somebody drives it, ``stopped``
    the pid of who does so and is stopped; ``text`` why it ended as it did, or how its job stands. Times in seconds
    since the epoch."""

    id: str
    short: str = ""
    runner: str = ""
    state: str = UNREADABLE
    driven: bool = False
    stopped: int | None = None
    created: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    job: RecordedJob | None = None
    error: RecordedError | None = None
    verdict: Verdict | None = None
    text: str = ""


@dataclass(frozen=True)
class StepLine:
    """A step of a run, how it stands, and how many seconds it took or takes."""

    name: str
    state: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class RunView(RunLine):
    """One run in detail. ``title`` is what it measures, ``summary`` its results as they were when it ended."""

    title: str = ""
    steps: tuple[StepLine, ...] = ()
    record: str = ""
    evidence: str | None = None
    accepted: tuple[str, ...] = ()
    commit: str = ""
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class Status:
    """All runs of a state directory, oldest first, or the ``named`` ones in detail; what of these cannot be shown."""

    runs_directory: str
    runs: tuple[RunLine, ...] = ()
    named: tuple[RunView, ...] = ()
    wrong: tuple[ErrorInfo, ...] = ()
    asked: int = 0
    """How many runs were named; 0: all of them."""


def _chosen(lines: Sequence[RunLine], arguments: argparse.Namespace) -> Sequence[RunLine]:
    """The lines that the flags want; one that cannot be read may be any run's, but is of no state and no runner."""
    states, runners = set(getattr(arguments, "states", ())), set(arguments.runner)
    since = None if arguments.since is None else time.time() - arguments.since
    kept = [
        line
        for line in lines
        if (not states or line.state in states)
        and (not runners or line.runner in runners)
        and (since is None or line.created is None or line.created >= since)
    ]
    return kept if arguments.limit is None else kept[-arguments.limit :]


def _line(record: RunRecord, short: str) -> RunLine:
    of = record.fields
    verdict, driven = of.verdict, not of.has_ended and record.driven_by_another
    names = ("id", "runner", "state", "ended", "exit_code", "job", "error")
    kept: dict[str, Any] = {name: getattr(of, name) for name in names}
    kept["stopped"] = record.stopped_driver_pid if driven else None
    return RunLine(**kept, short=short, driven=driven, created=of.created or None, verdict=verdict, text=_text(of))


def _text(of: RunFields) -> str:
    if of.verdict is not None and of.verdict.layer:
        return str(of.verdict)
    if of.error is not None:
        return f"{of.error.layer}: {(of.error.message.splitlines() or [''])[0]}"
    return of.job.says if of.job is not None else ""


def _view(record: RunRecord) -> RunView:
    of, summary = record.fields, None
    try:
        title = record.plan.benchmark.title
    except ConfigError as error:
        title = error.message
    if (record.directory / "summary.json").is_file():
        summary = summary_of(record.directory)[0]
    steps = (StepLine(name, step.state, step.at - step.began, step.error) for name, step in of.steps.items())
    short = shortest(names(record.directory.parent)).get(of.id, of.id)
    return RunView(
        **{**vars(_line(record, short)), "driven": record.driven_by_another},
        title=title,
        steps=tuple(steps),
        record=str(record.directory),
        evidence=str(record.directory / "evidence") if of.verdict is not None else None,
        accepted=of.accepted,
        commit=of.commit,
        summary=summary,
    )


def summary_of(directory: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The summary of the run in a directory, None where it has none; and why it cannot be read, or makes no table."""
    from launcher.result.summary_file import read_document, table_lines

    try:
        summary = read_document(directory)
        if summary is not None:
            table_lines([summary], None)
    except ResultError as error:
        return None, f"{directory}: {error.message}"
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        why = f"its summary is of another form ({error!r}), `launcher collect` makes it anew"
        return None, f"{directory}: {why}"
    return summary, None


def show(value: Status, terminal: Terminal) -> Iterator[str]:
    if value.asked:
        for i, one in enumerate(value.named):
            if i:
                yield ""
            yield from _details(one, terminal)
        return
    if not value.runs:
        yield f"no runs below {value.runs_directory}"
        return
    yield from _list(value.runs, terminal)
    if unreadable := sum(line.state == UNREADABLE for line in value.runs):
        yield f"{count_of(unreadable, 'record')} cannot be read: `launcher cleanup` looks for the jobs by name"
    latest = value.runs[-1]
    if terminal.width is not None and len(latest.short) < len(latest.id):
        yield Line(f"the beginning of an id names its run: launcher status {latest.short}", "dim")


_STYLES = {"succeeded": "green", "failed": "red", UNREADABLE: "red", "cancelled": "yellow"}


def _list(lines: Sequence[RunLine], terminal: Terminal) -> list[Line]:
    """The latest run last. Where a line has no room for it, what is to be said of a run stands below it."""
    rows = [(line.id, line.runner or "-", _clock(line.created), _state(line), _job(line), line.text) for line in lines]
    heads, styles = ("run", "runner", "began", "state", "job", ""), [_STYLES.get(line.state, "") for line in lines]
    if terminal.width is None or terminal.width >= _WIDE:
        return table(heads, rows, terminal.width, styles)
    shown = []
    for (run, runner, began, state, job, text), style in zip(rows, styles, strict=True):
        shown.append(Line(f"{run}   {state}", style))
        below = f"  {runner:10} {began}" + (f"   job {job}" if job != "-" else "") + (f"   {text}" if text else "")
        shown += map(Line, wrap_words(below, terminal.width, "    "))
    return shown


_WIDE = 120
"""Columns of a terminal from which on the runs are a table."""


def _state(line: RunLine) -> str:
    over = line.state in ("succeeded", "failed", "cancelled", UNREADABLE)
    if line.stopped is not None and not over:
        return f"{line.state} (its launcher is stopped: kill -CONT {line.stopped})"
    return line.state if over or line.driven else f"{line.state} (nobody drives it)"


def _job(line: RunLine) -> str:
    return line.job.id if line.job is not None else "?" if line.state == UNREADABLE else "-"


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def _details(one: RunView, terminal: Terminal) -> Iterator[str]:
    """One run: its steps, its job, its end, and where its files are."""
    yield Line(f"{one.id}   {_state(one)}", _STYLES.get(one.state, "bold"))
    pairs: list[tuple[str, object]] = [("measures", f"{one.title}, on {one.runner}"), ("began", _clock(one.created))]
    pairs += [(step.name, f"{step.state:8} {step.seconds:7.1f} s   {step.error or ''}") for step in one.steps]
    if one.job is not None:
        pairs += [("job", f"{one.job.id}   {one.job.says}"), ("output", one.job.output)]
    if one.error is not None:
        pairs += [("error", f"{one.error.layer}: {line}") for line in one.error.message.splitlines()[:1]]
        pairs += [("", line) for line in one.error.message.splitlines()[1:]]
        pairs += [("hint", one.error.hint)] if one.error.hint else []
    if one.verdict is not None:
        pairs += [("verdict", one.verdict), ("evidence", one.evidence)]
    yield from field_lines([*pairs, ("record", one.record)], terminal.width)
    if one.summary is not None:
        from launcher.result.summary_file import table_lines

        yield ""
        yield from table_lines([one.summary], terminal.width)


def _document(value: Status) -> Any:
    """A list of runs; one alone that was named is that run."""
    return value.named[0] if value.asked == 1 else value.named or value.runs


@partial(
    Command,
    Status,
    show=show,
    stderr_lines=lambda value: refusal_lines(value.wrong, len(value.named), "runs", "shown"),
    to_json=_document,
    json_type=list[RunLine] | RunView,
)
def status(arguments: argparse.Namespace, log: Log) -> Status:
    runs = state_directory(os.environ, arguments.state) / "runs"
    if arguments.runs:
        views, wrong = for_each_name(arguments.runs, lambda name: _view(load_named(runs, name)))
        return Status(str(runs), named=tuple(views), wrong=tuple(wrong), asked=len(arguments.runs))
    unreadable: list[UnreadableRecord] = []
    found = list(each_record(runs, unreadable, facts=False))
    found.sort(key=lambda record: (record.fields.created, record.id))
    short = shortest([*(record.id for record in found), *(one.id for one in unreadable)])
    lines = [_line(record, short[record.id]) for record in found]
    lines += [RunLine(one.id, short[one.id], text=str(one.error)) for one in unreadable]
    return Status(str(runs), tuple(_chosen(lines, arguments)))


_PART = 256 << 10
"""Characters of the lines that are given at a time."""


@dataclass(frozen=True)
class LogPart:
    """Lines of a run's log that follow those before; ``label`` tells runs apart where there are several."""

    run: str
    lines: tuple[str, ...] = ()
    label: str = ""
    wrong: tuple[ErrorInfo, ...] = ()


class _Log:
    """One run's log, from its beginning on."""

    def __init__(self, record: RunRecord, label: str, *, wait: bool) -> None:
        self._record, self._label = record, label
        self._shown = LogFormatter()
        self._follower: LogFollower | None = None
        self.over = False
        self._look()
        if self._follower is None and not wait:
            raise ConfigError("this run has no job yet, hence no log", where=f"run {record.id}")

    def _look(self) -> None:
        if self._follower is None and (path := self._record.log_path) is not None:
            self._follower = LogFollower(path)

    def read(self, *, wait: bool) -> Iterator[LogPart]:
        """What is new. It is over when the run is, or at once where nobody waits. Raises LauncherError."""
        over = self._record.fields.has_ended or not wait
        self._look()
        while self._follower is not None and ((lines := self._follower.read_new()) or self._follower.behind):
            yield from self._parts(lines)
        if over and self._follower is not None:
            yield from self._parts(self._follower.flush())
        self.over = over
        if not over:
            self._record = RunRecord.load(self._record.directory.parent, self._record.id)

    def _parts(self, lines: Sequence[str]) -> Iterator[LogPart]:
        shown, part, size = self._shown.format(lines), [], 0
        for line in shown:
            part.append(line)
            size += len(line)
            if size > _PART:
                yield LogPart(self._record.id, tuple(part), self._label)
                part, size = [], 0
        if part:
            yield LogPart(self._record.id, tuple(part), self._label)


def show_part(value: LogPart, terminal: Terminal) -> Iterator[str]:
    label = f"{value.label}  | " if value.label else ""
    return (Line(f"{label}{line}", raw=True) for line in value.lines)


@partial(Command, LogPart, show=show_part)
def logs(arguments: argparse.Namespace, log: Log) -> Iterator[LogPart]:
    """The logs of jobs; with --follow until the runs have ended."""
    runs, follow, several = (
        state_directory(os.environ, arguments.state) / "runs",
        arguments.follow,
        len(arguments.runs) > 1,
    )
    opened, wrong = for_each_name(
        arguments.runs,
        lambda name: _Log(record := load_named(runs, name), record.id if several else "", wait=follow),
    )
    yield from (LogPart(one.of, wrong=(one,)) for one in wrong)
    while opened:
        for run_log in opened:
            try:
                yield from run_log.read(wait=follow)
            except LauncherError:
                if not several:
                    raise
                run_log.over = True
        opened = [run_log for run_log in opened if not run_log.over]
        if opened:
            time.sleep(0.5)
