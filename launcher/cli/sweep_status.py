"""`launcher sweep status` and `list`: how sweeps stand, read from their ledgers and the records of their runs.

People call them often, for sweeps of thousands of points, so this module imports little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_type_hints

import msgspec

from launcher.cli.command import Command, Log
from launcher.core.errors import ConfigError
from launcher.core.lines import Line, Terminal, print_lines, table, wrap_words
from launcher.core.rights import user_name
from launcher.core.state import state_directory
from launcher.core.terminal import unguarded
from launcher.run.naming import sweep_named
from launcher.sweep import ledger as ledgers
from launcher.sweep.attempts import Records
from launcher.sweep.ledger import EventReader, Ledger
from launcher.sweep.overview import JobLine, Overview, age, header_lines, overview
from launcher.sweep.schema import Requested
from launcher.sweep.state import Facts, State

_WATCH_INTERVAL = 2.0
"""Seconds between two overviews of --watch."""


def _progress(log: str) -> tuple[int | None, str]:
    from launcher.run.log_lines import progress  # imported only when a job runs

    return progress(log)


def ledger_named(sweeps: Path, name: str) -> Ledger:
    """The ledger of the sweep whose id begins with ``name``. Raises ConfigError."""
    return Ledger.load(sweeps, sweep_named(sweeps, name))


class SweepWatcher:
    """Reads how a sweep stands, again and again: only new events, and only records of runs that are not over."""

    def __init__(self, runs: Path, ledger: Ledger) -> None:
        self._ledger, self._state = ledger, State(ledger.sweep)
        self._events, self._records = EventReader(ledger), Records(runs, self._state)
        self._over: dict[str, Facts] = {}

    def overview(self) -> Overview:
        """The sweep as it stands now. Raises ConfigError."""
        for event in self._events.new():
            self._state.apply(event)
        owner = self._ledger.driver()
        driver = str(owner) if owner is not None else ""
        notes = [*self._events.unread, *([self._events.cut] if self._events.cut and not driver else [])]
        return overview(self._state, self._facts, time.time(), driver=driver, notes=notes, progress=_progress)

    def _facts(self, run: str) -> Facts:
        if run in self._over:
            return self._over[run]
        facts, attempt = self._records.facts(run), self._state.by_run.get(run)
        if facts.phase == "over" and (attempt is None or not attempt.open):
            self._over[run] = facts
        return facts


def send_verb(ledger: Ledger, verb: str) -> None:
    """Ask the driver of a sweep, by a file beside its ledger, to pause, go on, drain or stop."""
    with contextlib.suppress(OSError):
        ledger.add_request(Requested(time=time.time(), verb=verb, by=user_name()))  # type: ignore[arg-type]


def _overviews(arguments: argparse.Namespace) -> Iterator[Overview]:
    """The named sweep, else the latest, as it stands now; with --watch, again and again while a launcher drives it."""
    state = state_directory(os.environ, arguments.state)
    sweeps = state / "sweeps"
    ledger = ledger_named(sweeps, arguments.name) if arguments.name else latest_sweep(sweeps)
    watcher = SweepWatcher(state / "runs", ledger)
    while True:
        yield (sweep := watcher.overview())
        if not arguments.watch or not sweep.driver:
            return
        time.sleep(_WATCH_INTERVAL)


def show_live_view(
    values: Iterator[Overview], arguments: argparse.Namespace, ask_driver: Callable[[str, str], None] | None
) -> None:
    """Show a sweep in a live view until the values end or a person closes it. ``ask_driver`` sends a verb to the driver
    of a named sweep; by default this is done through the ledger on this machine."""
    from launcher.cli.sweep_view import LiveView
    from launcher.core.waiting import start_in_thread

    latest = [next(values)]

    def read() -> None:
        for value in values:
            latest[0] = value

    def send(verb: str) -> None:
        if ask_driver is not None:
            ask_driver(latest[0].id, verb)
        else:
            send_verb(Ledger.load(state_directory(os.environ, arguments.state) / "sweeps", latest[0].id), verb)

    reading = start_in_thread(read, "sweep")
    view = LiveView(lambda: latest[0], send, unguarded(sys.stdout))
    view.start()
    while not view.closed.wait(0.2) and not reading.done():
        pass
    view.close()
    if reading.done():
        reading.result()
        terminal = Terminal.of(sys.stdout)
        print_lines(show_overview(latest[0], terminal), terminal)


def show_overview(sweep: Overview, terminal: Terminal) -> Iterator[str]:
    """A sweep for a person: a few lines about the whole, then a table of its jobs."""
    undriven = "nobody drives it" + (f"; the last driver left: {sweep.left}" if sweep.left else "")
    held, excluded = (f"held: {text}" for text in sweep.held), (f"excluded: {text}" for text in sweep.excluded)
    for i, text in enumerate((*header_lines(sweep), sweep.driver or undriven, *held, *excluded, *sweep.notes)):
        yield from (Line(line, "" if i else "bold") for line in wrap_words(text, terminal.width, "  "))
    now, columns = time.time(), ("state", "ok", "job", "age", "Slurm", "why")
    rows = [_cells(job, now) for job in sweep.jobs]
    styles = [_STYLES.get(job.state, "") for job in sweep.jobs]
    used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    names, cells = [columns[number] for number in used], [[row[number] for number in used] for row in rows]
    yield from table(names, cells, terminal.width, styles) if rows else ()


_STYLES = {"ok": "green", "failed": "red", "missing": "red", "unknown": "yellow"}


def overview_document(sweep: Overview) -> dict[str, object]:
    """What ``--json`` prints of a sweep."""
    value: dict[str, object] = msgspec.to_builtins(sweep)
    return {"schema": 1, **value}


@partial(
    Command,
    Overview,
    show=show_overview,
    exit_code=lambda value: 0,
    to_json=overview_document,
    show_live=show_live_view,
)
def status(arguments: argparse.Namespace, log: Log) -> Iterator[Overview] | Overview:
    """How a sweep stands: one value, or with --watch a value every two seconds."""
    overviews = _overviews(arguments)
    return overviews if arguments.watch else next(overviews)


def _cells(job: JobLine, now: float) -> tuple[str, ...]:
    since = age(job.since, now) if job.state in ("running", "queued") else ""
    return job.state, f"{job.ok}/{len(job.concurrencies)}", job.key, since, job.job, job.reason


def job_line(job: JobLine, now: float) -> str:
    """A job of a sweep in one line."""
    state, done, key, since, slurm_job, why = _cells(job, now)
    return "  ".join(filter(None, (f"{state:11}", done, key, since, slurm_job and f"job {slurm_job}", why)))


def latest_sweep(sweeps: Path) -> Ledger:
    """The ledger of the sweep that was created last. Raises ConfigError when there is none."""
    loaded = []
    for name in ledgers.names(sweeps):
        with contextlib.suppress(ConfigError):
            loaded.append(Ledger.load(sweeps, name))
    if not loaded:
        raise ConfigError("there is no sweep", where=str(sweeps), hint="launcher sweep start -k KEY")
    return max(loaded, key=lambda ledger: ledger.sweep.created)


@dataclass(frozen=True)
class SweepLine:
    """A sweep in the list of all: how it stands, without its jobs; or why its ledger is ``unreadable``."""

    id: str
    overview: Overview | None = None
    unreadable: str = ""


def show_line(value: SweepLine, terminal: Terminal) -> Iterator[str]:
    if value.overview is None:
        yield from wrap_words(f"{value.id}  unreadable: {value.unreadable}", terminal.width, "    ")
        return
    driven = ["driven"] if value.overview.driver else []
    yield from wrap_words("  ".join([*header_lines(value.overview)[:2], *driven]), terminal.width, "    ")


def _line_document(value: SweepLine) -> dict[str, object]:
    if value.overview is None:
        return {"id": value.id, "unreadable": value.unreadable}
    return {key: v for key, v in overview_document(value.overview).items() if key not in ("jobs", "states")}


def _line_types() -> tuple[type, type]:
    known = [(name, kind) for name, kind in get_type_hints(Overview).items() if name not in ("jobs", "states")]
    unreadable = msgspec.defstruct("UnreadableSweep", [("id", str), ("unreadable", str)])
    return msgspec.defstruct("SweepStanding", [("schema", int), *known]), unreadable


@partial(Command, SweepLine, show=show_line, to_json=_line_document, json_type=_line_types)
def listing(arguments: argparse.Namespace, log: Log) -> Iterator[SweepLine]:
    """All sweeps, also those that cannot be read."""
    state = state_directory(os.environ, arguments.state)
    sweeps, runs = state / "sweeps", state / "runs"
    names = ledgers.names(sweeps)
    if not names:
        log(f"no sweeps below {sweeps}")
    for name in names:
        try:
            yield SweepLine(name, replace(SweepWatcher(runs, Ledger.load(sweeps, name)).overview(), jobs=(), states=()))
        except ConfigError as error:
            yield SweepLine(name, unreadable=error.message)
