"""Points of a sweep: all that its ledger wants, with every attempt, whatever became of it."""

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
    """A sweep of a state directory. Raises ConfigError when its ledger cannot be read."""
    ledger, runs = Ledger.load(directory.parent, directory.name), directory.parent.parent / "runs"
    lines = ledger.events()
    gathered.problems += [f"sweep {ledger.id}: {why}" for why in ledger.unread]
    stands = sweeps.State(ledger.sweep, lines)
    records = Records(runs, stands)
    seen: set[Identity] = set()
    for line in lines:
        if isinstance(line, Started) and not stands.by_run[line.run].void:
            facts = records.facts(line.run)
            seen |= _attempt(gathered, runs / line.run, line, None if facts is sweeps.NONE else facts)
        elif isinstance(line, Reused):
            seen |= _attempt(gathered, runs / line.run, line, None)
    for one in sweeps.point_states(stands, records.facts):
        benchmark = stands.jobs[one.job].benchmark
        of = identity_of_evaluation if benchmark.eval_only else identity_of
        if _asked(identity := of(benchmark, one.concurrency)) not in seen:
            reason = f"{one.state}: {one.reason}" if one.reason else one.state
            gathered.points.append(Point(identity, state="missing", reason=reason, layer=one.layer))


def _attempt(
    gathered: ReportInput, directory: Path, line: Started | Reused, facts: sweeps.Facts | None
) -> set[Identity]:
    """Take what a run measured for a job; the points that it was to measure."""
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
        points = [_judged(point, facts) for point in points]
    gathered.add(run, points)
    return {_asked(point.identity) for point in points}


def _asked(identity: Identity) -> Identity:
    """What a job was asked for: of an evaluation neither the task, nor always the concurrency."""
    return identity if identity.scenario != EVALUATION else dataclasses.replace(identity, task="", concurrency=0)


def _judged(point: Point, facts: sweeps.Facts) -> Point:
    """A point as its sweep sees it: a result of another image than the sweep's is none of it."""
    reason = facts.bad.get(point.identity.concurrency)
    if point.state != "ok" or reason is None:
        return point
    state: State = "stale" if reason.startswith("image digest") else "refused"
    if point.identity.scenario == EVALUATION and state != "stale":  # that is about its throughput
        return point
    return dataclasses.replace(point, state=state, reason=reason, layer="results", row={})
