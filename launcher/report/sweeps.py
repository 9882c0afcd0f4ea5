"""Points of a sweep: all points of its ledger, with every attempt at them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.report.document import ReportInput
from launcher.report.points import EVALUATION, Identity, Point, State, identity_of, identity_of_evaluation
from launcher.report.records import fields_of, read_run
from launcher.sweep import state as sweeps
from launcher.sweep.attempts import Records
from launcher.sweep.ledger import Ledger
from launcher.sweep.schema import Reused, Started


def add_sweep(gathered: ReportInput, directory: Path) -> None:
    """Add a sweep of a state directory. Raises ConfigError if its ledger cannot be read."""
    ledger, runs = Ledger.load(directory.parent, directory.name), directory.parent.parent / "runs"
    lines = ledger.events()
    gathered.problems += [f"sweep {ledger.id}: {problem}" for problem in ledger.unread]
    state = sweeps.State(ledger.sweep, lines)
    records = Records(runs, state)
    seen: set[Identity] = set()
    for line in lines:
        if isinstance(line, Started) and not state.by_run[line.run].void:
            facts = records.facts(line.run)
            seen |= _attempt(gathered, runs / line.run, line, None if facts is sweeps.NONE else facts)
        elif isinstance(line, Reused):
            seen |= _attempt(gathered, runs / line.run, line, None)
    for point in sweeps.point_states(state, records.facts):
        benchmark = state.jobs[point.job].benchmark
        identify = identity_of_evaluation if benchmark.eval_only else identity_of
        if _without_task(identity := identify(benchmark, point.concurrency)) not in seen:
            reason = f"{point.state}: {point.reason}" if point.reason else point.state
            gathered.points.append(Point(identity, state="missing", reason=reason, layer=point.layer))


def _attempt(
    gathered: ReportInput, directory: Path, line: Started | Reused, facts: sweeps.Facts | None
) -> set[Identity]:
    """Add a run's points for a job; returns the identities of the points."""
    try:
        run, points = read_run(directory, fields_of(directory))
    except ConfigError as error:
        gathered.problems.append(f"run {line.run}: {error.message}")
        return set()
    points = [p for p in points if p.identity.concurrency in line.concurrencies or p.identity.scenario == EVALUATION]
    if isinstance(line, Reused):
        reason = f"measured by run {line.run}"
        points = [dataclasses.replace(p, state="reused", reason=reason) if p.state == "ok" else p for p in points]
    elif facts is not None:
        points = [_with_sweep_verdict(point, facts) for point in points]
    gathered.add(run, points)
    return {_without_task(point.identity) for point in points}


def _without_task(identity: Identity) -> Identity:
    """The identity as a job requests it: that of an evaluation has no task, and not always a concurrency."""
    return identity if identity.scenario != EVALUATION else dataclasses.replace(identity, task="", concurrency=0)


def _with_sweep_verdict(point: Point, facts: sweeps.Facts) -> Point:
    """The point with its sweep's verdict: a result of another image than the sweep's is stale."""
    reason = facts.bad.get(point.identity.concurrency)
    if point.state != "ok" or reason is None:
        return point
    new_state: State = "stale" if reason.startswith("image digest") else "refused"
    if point.identity.scenario == EVALUATION and new_state != "stale":  # the reason is about its throughput
        return point
    return dataclasses.replace(point, state=new_state, reason=reason, layer="results", row={})
