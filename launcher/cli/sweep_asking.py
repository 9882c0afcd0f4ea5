"""`launcher sweep pause`, `go-on`, `drain`, `stop`, `cancel` and `add` send requests to a sweep's driver; and `gc`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

from launcher.cli.command import Command, Log, Message, Removal, Removals, show_message, show_removals
from launcher.cli.common import filter_by_topology, open_project
from launcher.cli.sweep_status import SweepWatcher, ledger_named
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
    """Remove what killed launchers left of sweeps, and the ledgers of old sweeps that no launcher drives.

    Records and results of runs stay.
    """
    project = open_project(arguments)
    sweeps = project.sweeps
    dead, old = ledgers.dead_creations(sweeps), list[Path]()
    for name in ledgers.names(sweeps):
        with contextlib.suppress(ConfigError):
            ledger = Ledger.load(sweeps, name)
            points = SweepWatcher(project.runs, ledger).overview().points
            living = {"running", "queued", "unknown", "preparing"} & points.keys()
            over_age = time.time() - ledger.sweep.created > arguments.grace * 86400
            if over_age and not living and ledger.driver() is None:
                old.append(ledger.directory)
    items = [Removal(str(path), disk_usage(path), "a killed launcher left it") for path in dead]
    items += [Removal(str(path), disk_usage(path), "an old sweep: nobody drives it") for path in old]
    for path in [*dead, *old] if arguments.apply else ():
        remove_tree(path)
    return Removals(arguments.apply, tuple(items))


@partial(Command, Message, show=show_message)
def ask(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Ask the driver of a sweep to pause, go on, drain, stop or cancel. Without a driver only cancel has an effect."""
    project = open_project(arguments)
    ledger = ledger_named(project.sweeps, arguments.name)
    runner = getattr(arguments, "of_runner", None) or ""
    if runner and runner not in {job.runner for job in ledger.sweep.jobs}:
        raise ConfigError(f"no job of this sweep is for runner {runner}", where=f"sweep {ledger.id}")
    request = Requested(time=time.time(), verb=arguments.verb, by=user_name(), runner=runner)
    prefix = f"sweep {ledger.id}: "
    if ledger.driver() is None:
        if arguments.verb != "cancel":
            yield Message(f"{prefix}nobody drives it, so that nothing begins; launcher sweep resume {ledger.id}")
            return
        if (yield from _cancel_undriven(project, ledger, request)):
            return
    _send(ledger, request)
    yield Message(f"{prefix}asked its driver to {arguments.verb.replace('go-on', 'go on')}")
    if arguments.verb not in ("cancel", "stop"):
        return
    if retry_until(lambda owner: owner is None, ledger.driver, [0.2] * int(5 * _LEAVE_TIMEOUT)) is not None:
        text = f"its driver has not left within {_LEAVE_TIMEOUT:.0f} s; the request stays"
        raise LauncherError(text, where=f"sweep {ledger.id}")
    yield Message(f"{prefix}its driver has left")
    if arguments.verb != "cancel" or not _open_runs(project, ledger):
        return
    # The driver ended before it read the request.
    if not (yield from _cancel_undriven(project, ledger, request)):
        text = "an unknown process holds its lock; the request stays, and its jobs live"
        raise LauncherError(text, where=f"sweep {ledger.id}")


_LEAVE_TIMEOUT = 60.0
"""Seconds in which a driver that was asked to stop or cancel has to leave."""


def _open_runs(project: Project, ledger: Ledger) -> list[str]:
    """The runs of attempts that have not ended."""
    state = State(ledger.sweep, ledger.events())
    return [a.run for a in state.by_run.values() if a.open and (project.runs / a.run).is_dir()]


def _cancel_undriven(project: Project, ledger: Ledger, request: Requested) -> Generator[Message, None, bool]:
    """End the jobs of a sweep without a driver. Returns False, and does nothing, if it has one."""
    from launcher.cli.ending import end_runs

    with ledger.lock() as lock:
        if not lock.acquired:
            return False
        ledger.append(request)
        runs = _open_runs(project, ledger)
        yield from end_runs(project, runs, "launcher sweep cancel")
    yield Message(f"sweep {ledger.id}: {count_of(len(runs), 'run was', 'runs were')} ended")
    return True


@partial(Command, Message, show=show_message)
def add(arguments: argparse.Namespace, log: Log) -> Message:
    """Add concurrencies to the topologies of a sweep; its points so far do not change. A driver starts them at once."""
    project = open_project(arguments, look=True)
    ledger = ledger_named(project.sweeps, arguments.name)
    state = State(ledger.sweep, ledger.events())
    curves: dict[str, list[Job]] = {}
    for job in filter_by_topology(
        [*state.jobs.values()], arguments.topology, lambda job: job.benchmark.topology, "job"
    ):
        curves.setdefault(identity(job.benchmark, job.runner), []).append(job)
    new: list[Job] = []
    for jobs in curves.values():
        present = {c for job in jobs for c in job.concurrencies}
        missing = tuple(c for c in arguments.conc if c not in present)
        # One job measures all concurrencies of several nodes; a matrix row of one node has a job for each.
        together = len(jobs[0].concurrencies) > 1 or jobs[0].benchmark.multinode
        for concurrencies in [missing] if together and missing else [(c,) for c in missing]:
            new.append(_job_with(project, jobs[0], concurrencies))
    if not new:
        return Message(f"sweep {ledger.id}: it has these points already")
    event = Added(time=time.time(), jobs=tuple(new), selection=tuple(sys.argv[1:]))
    with ledger.lock() as lock:
        if lock.acquired:
            ledger.append(event)
    if not lock.acquired:
        _send(ledger, event)
    suffix = "" if lock.acquired else "; its driver takes them"
    return Message(f"sweep {ledger.id}: appended {points_in(new)}{suffix}")


def _job_with(project: Project, job: Job, concurrencies: Sequence[int]) -> Job:
    """The same job with other concurrencies. Raises ConfigError."""
    benchmark = dataclasses.replace(job.benchmark, concurrencies=tuple(concurrencies))
    plan = project.plan_by_hand(benchmark, job.runner, narrow=True, run_id="sweep")
    return job_of(plan, project.kind(plan.kind).fingerprint(plan), image_digest(plan))


def _send(ledger: Ledger, request: Requested | Added) -> None:
    try:
        ledger.add_request(request)
    except OSError as error:
        raise LauncherError(f"its driver cannot be asked: {error.strerror}", where=str(ledger.directory)) from None
