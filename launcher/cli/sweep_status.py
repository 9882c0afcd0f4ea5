"""`launcher sweep status` and `list`: sweeps as they stand, by their ledgers and the records of their runs alone.

It is asked often and of thousands of points, so it imports little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
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

_EACH = 2.0
"""Seconds between two looks of --watch."""


def _progress(log: str) -> tuple[int | None, str]:
    from launcher.run.log_lines import progress  # only a job that runs has a log to be read

    return progress(log)


class SweepWatcher:
    """A sweep that is looked at again and again: of its events what is new is read, of its runs what is not over."""

    def __init__(self, runs: Path, ledger: Ledger) -> None:
        self._ledger, self._state = ledger, State(ledger.sweep)
        self._events, self._records = EventReader(ledger), Records(runs, self._state)
        self._over: dict[str, Facts] = {}

    def overview(self) -> Overview:
        """How it stands now. Raises ConfigError."""
        for event in self._events.new():
            self._state.apply(event)
        owner = self._ledger.driver()
        driver = str(owner) if owner is not None else ""
        notes = [*self._events.unread, *([self._events.cut] if self._events.cut and not driver else [])]
        return overview(self._state, self._facts, time.time(), driver=driver, notes=notes, progress=_progress)

    def _facts(self, run: str) -> Facts:
        if (known := self._over.get(run)) is not None:
            return known
        found, attempt = self._records.facts(run), self._state.by_run.get(run)
        if found.phase == "over" and (attempt is None or not attempt.open):
            self._over[run] = found
        return found


def current_overview(runs: Path, ledger: Ledger) -> Overview:
    """A sweep as it stands now, by its events and the records of its runs. Raises ConfigError."""
    return SweepWatcher(runs, ledger).overview()


def requester(ledger: Ledger) -> Callable[[str], None]:
    """How a view asks whoever drives the sweep."""

    def ask(verb: str) -> None:
        with contextlib.suppress(OSError):
            ledger.add_request(Requested(time=time.time(), verb=verb, by=user_name()))  # type: ignore[arg-type]

    return ask


def statuses(arguments: argparse.Namespace, log: Log) -> Iterator[Overview]:
    """How a sweep stands: the named one, else the latest; with --watch again and again, while somebody drives it."""
    state = state_directory(os.environ, arguments.state)
    sweeps, runs = state / "sweeps", state / "runs"
    ledger = Ledger.load(sweeps, sweep_named(sweeps, arguments.name) if arguments.name else latest(sweeps))
    sight = SweepWatcher(runs, ledger)
    while True:
        yield (found := sight.overview())
        if not arguments.watch or not found.driver:
            return
        time.sleep(_EACH)


def live(values: Iterator[Overview], arguments: argparse.Namespace, ask: Callable[[str, str], None] | None) -> None:
    """Show a sweep in a live view as long as values come, or until a person closes it. ``ask`` asks whoever drives a
    sweep; here, by its ledger."""
    from launcher.cli.sweep_view import LiveView

    latest, over = [next(values)], threading.Event()
    fault: list[Exception] = []

    def read() -> None:
        try:
            for value in values:
                latest[0] = value
        except Exception as error:  # noqa: BLE001 - raised once the view is closed
            fault.append(error)
        over.set()

    def by_key(verb: str) -> None:
        if ask is not None:
            ask(latest[0].id, verb)
        else:
            requester(Ledger.load(state_directory(os.environ, arguments.state) / "sweeps", latest[0].id))(verb)

    threading.Thread(target=read, daemon=True, name="sweep").start()
    view = LiveView(lambda: latest[0], by_key, unguarded(sys.stdout))
    view.start()
    while not view.closed.wait(0.2) and not over.is_set():
        pass
    view.close()
    if fault:
        raise fault[0]
    if over.is_set():
        terminal = Terminal.of(sys.stdout)
        print_lines(show(latest[0], terminal), terminal)


def show(found: Overview, terminal: Terminal) -> Iterator[str]:
    """The sweep for a person: what it is at, then its jobs."""
    more = [(name, text) for name, texts in (("held", found.held), ("excluded", found.excluded)) for text in texts]
    nobody = "nobody drives it" + (f"; the last driver left: {found.left}" if found.left else "")
    head = [found.driver or nobody, *(f"{name}: {text}" for name, text in more), *found.notes]
    for i, text in enumerate((*header_lines(found), *head)):
        yield from (Line(line, "" if i else "bold") for line in wrap_words(text, terminal.width, "  "))
    now, columns = time.time(), ("state", "ok", "job", "age", "Slurm", "why")
    rows = [_cells(job, now) for job in found.jobs]
    styles = [_STYLES.get(job.state, "") for job in found.jobs]
    used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    names, cells = [columns[number] for number in used], [[row[number] for number in used] for row in rows]
    yield from table(names, cells, terminal.width, styles) if rows else ()


_STYLES = {"ok": "green", "failed": "red", "missing": "red", "unknown": "yellow"}


def document(found: Overview) -> dict[str, object]:
    """The sweep as JSON."""
    value: dict[str, object] = msgspec.to_builtins(found)
    return {"schema": 1, **value}


@partial(Command, Overview, show=show, exit_code=lambda value: 0, to_json=document, show_live=live)
def status(arguments: argparse.Namespace, log: Log) -> Iterator[Overview] | Overview:
    found = statuses(arguments, log)
    return found if arguments.watch else next(found)


def _cells(job: JobLine, now: float) -> tuple[str, ...]:
    since = age(job.since, now) if job.state in ("running", "queued") else ""
    return job.state, f"{job.ok}/{len(job.concurrencies)}", job.key, since, job.job, job.reason


def job_line(job: JobLine, now: float) -> str:
    """One job in one line."""
    state, done, key, since, at, why = _cells(job, now)
    return "  ".join(filter(None, (f"{state:11}", done, key, since, at and f"job {at}", why)))


def latest(sweeps: Path) -> str:
    """The sweep that was made last. Raises ConfigError when there is none."""
    made = []
    for name in ledgers.names(sweeps):
        with contextlib.suppress(ConfigError):
            made.append((Ledger.load(sweeps, name).sweep.created, name))
    if not made:
        raise ConfigError("there is no sweep", where=str(sweeps), hint="launcher sweep start -k KEY")
    return max(made)[1]


@dataclass(frozen=True)
class SweepLine:
    """A sweep among others: how it stands, without its jobs; ``unreadable`` is why its ledger is none."""

    id: str
    overview: Overview | None = None
    unreadable: str = ""


def show_line(value: SweepLine, terminal: Terminal) -> Iterator[str]:
    if value.overview is None:
        yield from wrap_words(f"{value.id}  unreadable: {value.unreadable}", terminal.width, "    ")
        return
    driven = ["driven"] if value.overview.driver else []
    yield from wrap_words("  ".join([*header_lines(value.overview)[:2], *driven]), terminal.width, "    ")


def _document_of_line(value: SweepLine) -> dict[str, object]:
    if value.overview is None:
        return {"id": value.id, "unreadable": value.unreadable}
    return {key: v for key, v in document(value.overview).items() if key not in ("jobs", "states")}


def _forms_of_line() -> tuple[type, type]:
    known = [(name, kind) for name, kind in get_type_hints(Overview).items() if name not in ("jobs", "states")]
    unreadable = msgspec.defstruct("UnreadableSweep", [("id", str), ("unreadable", str)])
    return msgspec.defstruct("SweepStanding", [("schema", int), *known]), unreadable


@partial(Command, SweepLine, show=show_line, to_json=_document_of_line, json_type=_forms_of_line)
def listing(arguments: argparse.Namespace, log: Log) -> Iterator[SweepLine]:
    """All sweeps; what cannot be read is listed too."""
    state = state_directory(os.environ, arguments.state)
    sweeps, runs = state / "sweeps", state / "runs"
    known = ledgers.names(sweeps)
    if not known:
        log(f"no sweeps below {sweeps}")
    for name in known:
        try:
            yield SweepLine(name, replace(current_overview(runs, Ledger.load(sweeps, name)), jobs=(), states=()))
        except ConfigError as error:
            yield SweepLine(name, unreadable=error.message)
