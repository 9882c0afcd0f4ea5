"""`launcher status`: the runs, by their records alone; `launcher logs`: a job's log as `run` shows it.

`status` is called often and lists thousands of runs, so it imports little, and keeps one line of each record.
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
    """A run in a list. ``short`` is the shortest prefix of its id; ``driven`` says whether a launcher drives it, and
    ``stopped`` is that launcher's pid where it is stopped; ``text`` is why the run ended, or the state of its job.
    Times are in seconds since the epoch."""

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
    """A step of a run, its state, and its duration so far in seconds."""

    name: str
    state: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class RunView(RunLine):
    """One run in detail. ``title`` is what it measures, ``summary`` its results at its end."""

    title: str = ""
    steps: tuple[StepLine, ...] = ()
    record: str = ""
    evidence: str | None = None
    accepted: tuple[str, ...] = ()
    commit: str = ""
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class Status:
    """All runs of a state directory, oldest first, or the ``named`` ones in detail, with the errors of the others."""

    runs_directory: str
    runs: tuple[RunLine, ...] = ()
    named: tuple[RunView, ...] = ()
    wrong: tuple[ErrorInfo, ...] = ()
    asked: int = 0
    """How many runs were named; 0: all of them."""


def _select(lines: Sequence[RunLine], arguments: argparse.Namespace) -> Sequence[RunLine]:
    """The lines that the flags select. A run whose record cannot be read has no time, but no state or runner either."""
    states, runners = set(getattr(arguments, "states", ())), set(arguments.runner)
    since = None if arguments.since is None else time.time() - arguments.since
    selected = [
        line
        for line in lines
        if (not states or line.state in states)
        and (not runners or line.runner in runners)
        and (since is None or line.created is None or line.created >= since)
    ]
    return selected if arguments.limit is None else selected[-arguments.limit :]


def _run_line(record: RunRecord, short: str) -> RunLine:
    fields = record.fields
    driven = not fields.has_ended and record.driven_by_another
    return RunLine(
        id=fields.id,
        short=short,
        runner=fields.runner,
        state=fields.state,
        driven=driven,
        stopped=record.stopped_driver_pid if driven else None,
        created=fields.created or None,
        ended=fields.ended,
        exit_code=fields.exit_code,
        job=fields.job,
        error=fields.error,
        verdict=fields.verdict,
        text=_reason(fields),
    )


def _reason(fields: RunFields) -> str:
    if fields.verdict is not None and fields.verdict.layer:
        return str(fields.verdict)
    if fields.error is not None:
        return f"{fields.error.layer}: {(fields.error.message.splitlines() or [''])[0]}"
    return fields.job.says if fields.job is not None else ""


def _run_view(record: RunRecord) -> RunView:
    fields, summary = record.fields, None
    try:
        title = record.plan.benchmark.title
    except ConfigError as error:
        title = error.message
    if (record.directory / "summary.json").is_file():
        summary = read_summary(record.directory)[0]
    steps = (StepLine(name, step.state, step.at - step.began, step.error) for name, step in fields.steps.items())
    short = shortest(names(record.directory.parent)).get(fields.id, fields.id)
    return RunView(
        **{**vars(_run_line(record, short)), "driven": record.driven_by_another},
        title=title,
        steps=tuple(steps),
        record=str(record.directory),
        evidence=str(record.directory / "evidence") if fields.verdict is not None else None,
        accepted=fields.accepted,
        commit=fields.commit,
        summary=summary,
    )


def read_summary(directory: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The summary of a run's directory, None without one; and why it cannot be read or shown as a table, if so."""
    from launcher.result.summary_file import read_document, table_lines

    try:
        summary = read_document(directory)
        if summary is not None:
            table_lines([summary], None)
    except ResultError as error:
        return None, f"{directory}: {error.message}"
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        problem = f"its summary is of another form ({error!r}), `launcher collect` makes it anew"
        return None, f"{directory}: {problem}"
    return summary, None


def show(value: Status, terminal: Terminal) -> Iterator[str]:
    if value.asked:
        for i, run in enumerate(value.named):
            if i:
                yield ""
            yield from _details(run, terminal)
        return
    if not value.runs:
        yield f"no runs below {value.runs_directory}"
        return
    yield from _run_table(value.runs, terminal)
    if unreadable := sum(line.state == UNREADABLE for line in value.runs):
        yield f"{count_of(unreadable, 'record')} cannot be read: `launcher cleanup` looks for the jobs by token"
    latest = value.runs[-1]
    if terminal.width is not None and len(latest.short) < len(latest.id):
        yield Line(f"the beginning of an id names its run: launcher status {latest.short}", "dim")


_STYLES = {"succeeded": "green", "failed": "red", UNREADABLE: "red", "cancelled": "yellow"}


def _run_table(lines: Sequence[RunLine], terminal: Terminal) -> list[Line]:
    """A table, the latest run last; in a narrow terminal each run's text stands below its line."""
    rows = [(line.id, line.runner or "-", _time(line.created), _state(line), _job(line), line.text) for line in lines]
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
    if line.state in ("succeeded", "failed", "cancelled", UNREADABLE):
        return line.state
    if line.stopped is not None:
        return f"{line.state} (its launcher is stopped: kill -CONT {line.stopped})"
    return line.state if line.driven else f"{line.state} (nobody drives it)"


def _job(line: RunLine) -> str:
    return line.job.id if line.job is not None else "?" if line.state == UNREADABLE else "-"


def _time(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def _details(run: RunView, terminal: Terminal) -> Iterator[str]:
    """One run: its steps, its job, its end, and the paths of its files."""
    yield Line(f"{run.id}   {_state(run)}", _STYLES.get(run.state, "bold"))
    pairs: list[tuple[str, object]] = [("measures", f"{run.title}, on {run.runner}"), ("began", _time(run.created))]
    pairs += [(step.name, f"{step.state:8} {step.seconds:7.1f} s   {step.error or ''}") for step in run.steps]
    if run.job is not None:
        pairs += [("job", f"{run.job.id}   {run.job.says}"), ("output", run.job.output)]
    if run.error is not None:
        pairs += [("error", f"{run.error.layer}: {line}") for line in run.error.message.splitlines()[:1]]
        pairs += [("", line) for line in run.error.message.splitlines()[1:]]
        pairs += [("hint", run.error.hint)] if run.error.hint else []
    if run.verdict is not None:
        pairs += [("verdict", run.verdict), ("evidence", run.evidence)]
    yield from field_lines([*pairs, ("record", run.record)], terminal.width)
    if run.summary is not None:
        from launcher.result.summary_file import table_lines

        yield ""
        yield from table_lines([run.summary], terminal.width)


def _document(value: Status) -> Any:
    """A list of runs; where exactly one was named, that run."""
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
        views, wrong = for_each_name(arguments.runs, lambda name: _run_view(load_named(runs, name)))
        return Status(str(runs), named=tuple(views), wrong=tuple(wrong), asked=len(arguments.runs))
    unreadable: list[UnreadableRecord] = []
    records = sorted(each_record(runs, unreadable, facts=False), key=lambda record: (record.fields.created, record.id))
    short = shortest([*(record.id for record in records), *(broken.id for broken in unreadable)])
    lines = [_run_line(record, short[record.id]) for record in records]
    lines += [RunLine(broken.id, short[broken.id], text=str(broken.error)) for broken in unreadable]
    return Status(str(runs), tuple(_select(lines, arguments)))


_PART = 256 << 10
"""Characters after which lines are passed on as one part."""


@dataclass(frozen=True)
class LogPart:
    """Lines of a run's log that follow those before; ``label`` names the run where there are several."""

    run: str
    lines: tuple[str, ...] = ()
    label: str = ""
    wrong: tuple[ErrorInfo, ...] = ()


class _JobLog:
    """The log of one run's job, from its beginning on. Raises ConfigError for a run without a job, unless it waits."""

    def __init__(self, record: RunRecord, label: str, *, wait: bool) -> None:
        self._record, self._label = record, label
        self._formatter = LogFormatter()
        self._follower: LogFollower | None = None
        self.over = False
        self._open()
        if self._follower is None and not wait:
            raise ConfigError("this run has no job yet, hence no log", where=f"run {record.id}")

    def _open(self) -> None:
        if self._follower is None and (path := self._record.log_path) is not None:
            self._follower = LogFollower(path)

    def read(self, *, wait: bool) -> Iterator[LogPart]:
        """The new lines. The log is over when the run is, or at once without ``wait``. Raises LauncherError."""
        over = self._record.fields.has_ended or not wait
        self._open()
        while self._follower is not None and ((lines := self._follower.read_new()) or self._follower.behind):
            yield from self._parts(lines)
        if over and self._follower is not None:
            yield from self._parts(self._follower.flush())
        self.over = over
        if not over:
            self._record = RunRecord.load(self._record.directory.parent, self._record.id)

    def _parts(self, lines: Sequence[str]) -> Iterator[LogPart]:
        part, size = [], 0
        for line in self._formatter.format(lines):
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
    runs, wait = state_directory(os.environ, arguments.state) / "runs", arguments.follow
    several = len(arguments.runs) > 1

    def open_log(name: str) -> _JobLog:
        record = load_named(runs, name)
        return _JobLog(record, record.id if several else "", wait=wait)

    opened, errors = for_each_name(arguments.runs, open_log)
    yield from (LogPart(error.of, wrong=(error,)) for error in errors)
    while opened:
        for job_log in opened:
            try:
                yield from job_log.read(wait=wait)
            except LauncherError:
                if not several:
                    raise
                job_log.over = True
        opened = [job_log for job_log in opened if not job_log.over]
        if opened:
            time.sleep(0.5)
