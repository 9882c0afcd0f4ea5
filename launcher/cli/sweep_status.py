"""`launcher sweep status` and `list`: sweeps as they stand, by their ledgers and the records of their runs alone.

It is asked often and of thousands of points, so it imports little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.core.errors import ConfigError
from launcher.core.rights import user_name
from launcher.core.state import state_directory
from launcher.core.terminal import one_line, trusted
from launcher.run.naming import sweep_named
from launcher.sweep import ledger as ledgers
from launcher.sweep.attempts import Records, progress
from launcher.sweep.ledger import EventReader, Ledger
from launcher.sweep.overview import JobLine, Overview, age, head_of, overview
from launcher.sweep.schema import Asked
from launcher.sweep.state import Facts, State

_EACH = 2.0
"""Seconds between two looks of --watch."""


class Sight:
    """A sweep that is looked at again and again: of its events what is new is read, of its runs what is not over."""

    def __init__(self, runs: Path, ledger: Ledger) -> None:
        self._ledger, self._state = ledger, State(ledger.sweep)
        self._events, self._records = EventReader(ledger), Records(runs, self._state)
        self._over: dict[str, Facts] = {}

    def look(self) -> Overview:
        """How it stands now. Raises ConfigError."""
        for event in self._events.new():
            self._state.apply(event)
        owner = self._ledger.driver()
        driver = str(owner) if owner is not None else ""
        notes = [*self._events.unread, *([self._events.cut] if self._events.cut and not driver else [])]
        return overview(self._state, self._facts, time.time(), driver=driver, notes=notes, progress=progress)

    def _facts(self, run: str) -> Facts:
        if (known := self._over.get(run)) is not None:
            return known
        found, attempt = self._records.facts(run), self._state.by_run.get(run)
        if found.phase == "over" and (attempt is None or not attempt.open):
            self._over[run] = found
        return found


def seen(runs: Path, ledger: Ledger) -> Overview:
    """A sweep as it stands now, by its events and the records of its runs. Raises ConfigError."""
    return Sight(runs, ledger).look()


def asks(ledger: Ledger) -> Callable[[str], None]:
    """How a view asks whoever drives the sweep."""

    def ask(verb: str) -> None:
        with contextlib.suppress(OSError):
            ledger.ask(Asked(time=time.time(), verb=verb, by=user_name()))  # type: ignore[arg-type]

    return ask


def status(arguments: argparse.Namespace) -> int:
    """How a sweep stands: the named one, else the latest."""
    state = state_directory(os.environ, arguments.state)
    sweeps, runs = state / "sweeps", state / "runs"
    ledger = Ledger.load(sweeps, sweep_named(sweeps, arguments.name) if arguments.name else latest(sweeps))
    sight = Sight(runs, ledger)
    if arguments.watch and not arguments.json and sys.stdout.isatty() and sys.stdin.isatty():
        from launcher.cli.sweep_view import LiveView

        left = threading.Event()

        def look() -> Overview:
            if not (found := sight.look()).driver:
                left.set()
            return found

        view = LiveView(look, asks(ledger), trusted(sys.stdout))
        view.start()
        while not view.closed.wait(0.2) and not left.is_set():
            pass
        view.close()
        if not left.is_set():
            return 0
    while True:
        found = sight.look()
        if arguments.json:
            print(json.dumps(document(found), indent=None if arguments.watch else 2), flush=True)
        else:
            for line in lines(found, time.time()):
                print(one_line(line))
        if not arguments.watch or not found.driver:
            return 0
        time.sleep(_EACH)


def document(found: Overview) -> dict[str, object]:
    """The sweep as JSON."""
    value: dict[str, object] = msgspec.to_builtins(found)
    return {"schema": 1, **value}


def lines(found: Overview, now: float) -> list[str]:
    """The sweep for a person: what it is at, then one line a job."""
    more = [(name, text) for name, texts in (("held", found.held), ("excluded", found.excluded)) for text in texts]
    nobody = "nobody drives it" + (f"; the last driver left: {found.left}" if found.left else "")
    head = [found.driver or nobody, *(f"{name}: {text}" for name, text in more), *found.notes]
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [job_line(line, now) for line in found.jobs]
    return [text[:columns] for text in (*head_of(found), *head, *rows)]


def job_line(job: JobLine, now: float) -> str:
    """One job in one line."""
    since = age(job.since, now) if job.state in ("running", "queued") else ""
    at, done = f"job {job.job}" if job.job else "", f"{job.ok}/{len(job.concurrencies)}"
    return "  ".join(filter(None, (f"{job.state:11}", done, job.key, since, at, job.reason)))


def latest(sweeps: Path) -> str:
    """The sweep that was made last. Raises ConfigError when there is none."""
    made = []
    for name in ledgers.names(sweeps):
        with contextlib.suppress(ConfigError):
            made.append((Ledger.load(sweeps, name).sweep.created, name))
    if not made:
        raise ConfigError("there is no sweep", where=str(sweeps), hint="launcher sweep start -k KEY")
    return max(made)[1]


def listing(arguments: argparse.Namespace) -> int:
    """All sweeps, one a line; what cannot be read is listed too."""
    state = state_directory(os.environ, arguments.state)
    sweeps, runs = state / "sweeps", state / "runs"
    for name in ledgers.names(sweeps):
        try:
            found = seen(runs, Ledger.load(sweeps, name))
        except ConfigError as error:
            print(one_line(f"{name}  unreadable: {error.message}"))
            continue
        if arguments.json:
            print(json.dumps({key: v for key, v in document(found).items() if key not in ("jobs", "states")}))
        else:
            print(one_line("  ".join([*head_of(found)[:2], *(["driven"] if found.driver else [])])))
    return 0
