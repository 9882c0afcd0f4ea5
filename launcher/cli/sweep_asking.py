"""`launcher sweep status`, `list`, `gc`, and what people ask of a sweep's driver: pause, drain, stop, cancel, add."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial

from launcher.cli.command import Command, Log, Message, Removal, Removals, show_message, show_removals
from launcher.cli.common import filter_by_topology, open_project
from launcher.cli.sweep_driving import ledger_named
from launcher.cli.sweep_status import current_overview
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.leftovers import disk_usage
from launcher.core.lines import count_of
from launcher.core.publish import remove_tree
from launcher.core.rights import user_name
from launcher.core.waiting import retry_until
from launcher.project import Project
from launcher.sweep import ledger as ledgers
from launcher.sweep.ledger import Ledger
from launcher.sweep.making import image_digest
from launcher.sweep.points import identity, job_of, points_in
from launcher.sweep.schema import Added, Job, Requested
from launcher.sweep.state import State


@partial(Command, Removals, show=show_removals)
def gc(arguments: argparse.Namespace, log: Log) -> Removals:
    """Remove what nobody needs of sweeps: what killed launchers left, and ledgers of old sweeps that nobody drives.

    Records and results of runs stay.
    """
    project = open_project(arguments)
    sweeps = project.sweeps
    dead = ledgers.remove_dead(sweeps, apply=False)
    gone = [Removal(str(path), disk_usage(path), "a killed launcher left it") for path in dead]
    for name in ledgers.names(sweeps):
        with contextlib.suppress(ConfigError):
            ledger = Ledger.load(sweeps, name)
            old = time.time() - ledger.sweep.created > arguments.grace * 86400
            alive = {"running", "queued", "unknown", "preparing"} & current_overview(project.runs, ledger).points.keys()
            if old and not alive and ledger.driver() is None:
                gone.append(
                    Removal(str(ledger.directory), disk_usage(ledger.directory), "an old sweep: nobody drives it")
                )
                if arguments.apply:
                    remove_tree(ledger.directory)
    if arguments.apply:
        ledgers.remove_dead(sweeps, apply=True)
    return Removals(arguments.apply, tuple(gone))


@partial(Command, Message, show=show_message)
def ask(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Ask the driver of a sweep to pause, go on, drain, stop or cancel. Without one only a cancel does anything."""
    project = open_project(arguments)
    ledger = ledger_named(project, arguments.name)
    runner = getattr(arguments, "of_runner", None) or ""
    if runner and runner not in {job.runner for job in ledger.sweep.jobs}:
        raise ConfigError(f"no job of this sweep is for runner {runner}", where=f"sweep {ledger.id}")
    request = Requested(time=time.time(), verb=arguments.verb, by=user_name(), runner=runner)
    about = f"sweep {ledger.id}: "
    if ledger.driver() is None:
        if arguments.verb != "cancel":
            yield Message(f"{about}nobody drives it, so that nothing begins; launcher sweep resume {ledger.id}")
            return
        if (yield from _cancel_undriven(project, ledger, request)):
            return
    _request(ledger, request)
    yield Message(f"{about}asked its driver to {arguments.verb.replace('go-on', 'go on')}")
    if arguments.verb not in ("cancel", "stop"):
        return
    if retry_until(lambda owner: owner is None, ledger.driver, [0.2] * int(5 * _PATIENCE)) is not None:
        text = f"its driver has not left within {_PATIENCE:.0f} s; the request stays"
        raise LauncherError(text, where=f"sweep {ledger.id}")
    yield Message(f"{about}its driver has left")
    if arguments.verb != "cancel" or not _open_runs(project, ledger):
        return
    # It ended before it had read that.
    if not (yield from _cancel_undriven(project, ledger, request)):
        text = "its lock is held, and by whom is not known; the request stays, and its jobs live"
        raise LauncherError(text, where=f"sweep {ledger.id}")


_PATIENCE = 60.0
"""Seconds for which a driver is waited for that was asked to leave."""


def _open_runs(project: Project, ledger: Ledger) -> list[str]:
    """The runs of attempts that no driver has brought to their ends."""
    state = State(ledger.sweep, ledger.events())
    return [a.run for a in state.by_run.values() if a.open and (project.runs / a.run).is_dir()]


def _cancel_undriven(project: Project, ledger: Ledger, request: Requested) -> Generator[Message, None, bool]:
    """End the jobs that a driver left; whether nobody drives the sweep."""
    from launcher.cli.ending import end_runs

    with ledger.lock() as held:
        if not held.acquired:
            return False
        ledger.append(request)
        left = _open_runs(project, ledger)
        yield from end_runs(project, left, "launcher sweep cancel")
    yield Message(f"sweep {ledger.id}: {count_of(len(left), 'run was', 'runs were')} ended")
    return True


@partial(Command, Message, show=show_message)
def add(arguments: argparse.Namespace, log: Log) -> Message:
    """Append points to the topologies of a sweep; what is there does not change. A driver takes them at once."""
    project = open_project(arguments, look=True)
    ledger = ledger_named(project, arguments.name)
    state = State(ledger.sweep, ledger.events())
    curves: dict[str, list[Job]] = {}
    for job in filter_by_topology(
        [*state.jobs.values()], arguments.topology, lambda job: job.benchmark.topology, "job"
    ):
        curves.setdefault(identity(job.benchmark, job.runner), []).append(job)
    new: list[Job] = []
    for jobs in curves.values():
        has = {c for job in jobs for c in job.concurrencies}
        lacking = tuple(c for c in arguments.conc if c not in has)
        whole = len(jobs[0].concurrencies) > 1 or jobs[0].benchmark.multinode
        for some in [lacking] if whole and lacking else [(c,) for c in lacking]:
            new.append(_extended(project, jobs[0], some))
    if not new:
        return Message(f"sweep {ledger.id}: it has these points already")
    event = Added(time=time.time(), jobs=tuple(new), selection=tuple(sys.argv[1:]))
    with ledger.lock() as held:
        if held.acquired:
            ledger.append(event)
    if not held.acquired:
        _request(ledger, event)
    takes = "" if held.acquired else "; its driver takes them"
    return Message(f"sweep {ledger.id}: appended {points_in(new)}{takes}")


def _extended(project: Project, job: Job, concurrencies: Sequence[int]) -> Job:
    """A job that measures other concurrencies of the same curve. Raises ConfigError."""
    benchmark = dataclasses.replace(job.benchmark, concurrencies=tuple(concurrencies))
    plan = project.plan_by_hand(benchmark, job.runner, narrow=True, run_id="sweep")
    return job_of(plan, project.kind(plan.kind).fingerprint(plan), image_digest(plan))


def _request(ledger: Ledger, request: Requested | Added) -> None:
    try:
        ledger.add_request(request)
    except OSError as error:
        raise LauncherError(f"its driver cannot be asked: {error.strerror}", where=str(ledger.directory)) from None
