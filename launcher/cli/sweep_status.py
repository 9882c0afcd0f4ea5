"""`launcher sweep status` and `list`: sweeps as they stand, by their ledgers and the records of their runs alone.

It is asked often and of thousands of points, so it imports little.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.core.errors import ConfigError
from launcher.core.state import state_directory
from launcher.core.terminal import one_line, trusted
from launcher.sweep import ledger as ledgers
from launcher.sweep.attempts import Records, progress
from launcher.sweep.ledger import Ledger
from launcher.sweep.overview import JobLine, Overview, overview
from launcher.sweep.schema import Asked
from launcher.sweep.state import State

_EACH = 2.0
"""Seconds between two looks of --watch."""


def seen(runs: Path, ledger: Ledger) -> Overview:
    """A sweep as it stands now, by its events and the records of its runs."""
    state = State(ledger.sweep, ledger.events())
    owner = ledger.driver()
    driver = str(owner) if owner is not None else ""
    facts = Records(runs, state).facts
    return overview(state, facts, time.time(), driver=driver, notes=ledger.unread, progress=progress)


def asks(ledger: Ledger) -> Callable[[str], None]:
    """How a view asks whoever drives the sweep."""

    def ask(verb: str) -> None:
        with contextlib.suppress(OSError):
            ledger.ask(Asked(time=time.time(), verb=verb, by=getpass.getuser()))  # type: ignore[arg-type]

    return ask


def status(arguments: argparse.Namespace) -> int:
    """How a sweep stands: the named one, else the latest."""
    state = state_directory(os.environ, arguments.state)
    sweeps, runs = state / "sweeps", state / "runs"
    ledger = Ledger.load(sweeps, arguments.name or latest(sweeps))
    if arguments.watch and not arguments.json and sys.stdout.isatty() and sys.stdin.isatty():
        from launcher.cli.sweep_view import LiveView

        view = LiveView(lambda: seen(runs, ledger), asks(ledger), trusted(sys.stdout))
        view.start()
        view.closed.wait()
        return 0
    while True:
        found = seen(runs, ledger)
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


def lines(found: Overview, now: float, width: int | None = None) -> list[str]:
    """The sweep for a person: what it is at, then one line a job."""
    counts = ", ".join(f"{count} {word}" for word, count in found.points.items())
    rate = f"; {found.rate:g} points/h" if found.rate is not None else ""
    if found.end is not None:
        rate += f", all by {time.strftime('%a %H:%M', time.localtime(found.end))}"
    budget = f" of {found.budget:g}" if found.budget is not None else ""
    head = [
        f"{found.id}   {found.driver or 'nobody drives it'}" + (f"   ({found.asked})" if found.asked else ""),
        f"points: {counts}{rate}",
        f"GPU-hours: {found.spent:.1f} spent, {found.reserved:.1f} reserved{budget}",
        *(f"held: {text}" for text in found.held),
        *(f"excluded: {text}" for text in found.excluded),
        *(f"note: {text}" for text in found.notes),
    ]
    columns = width or (shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    rows = [job_line(line, now) for line in found.jobs]
    return [text if columns is None else text[:columns] for text in (*head, *rows)]


def job_line(job: JobLine, now: float) -> str:
    """One job in one line."""
    age = f"{max(0.0, now - job.since) / 60:.0f}m" if job.since and job.state in ("running", "queued") else ""
    at = f"job {job.job}" if job.job else ""
    done = f"{job.ok}/{len(job.concurrencies)}"
    parts = (f"{job.state:11}", done, job.key, age, at, job.reason)
    return "  ".join(part for part in parts if part)


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
            counts = ", ".join(f"{count} {word}" for word, count in found.points.items())
            print(
                one_line(f"{name}  {counts}  {found.spent:.1f} GPU-hours  {'driven' if found.driver else ''}".rstrip())
            )
    return 0
