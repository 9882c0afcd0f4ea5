"""Points of a sweep: all that its ledger wants, with every attempt, whatever became of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.aggregate.points import Identity, Point, identity_of
from launcher.core.errors import ConfigError
from launcher.report.gathered import Gathered
from launcher.report.records import read_run
from launcher.run.fields import read_fields
from launcher.sweep.ledger import Ledger
from launcher.sweep.schema import Added, Held, Job, Reused, Skipped, Started, Voided


def add_sweep(gathered: Gathered, directory: Path) -> None:
    """A sweep of a state directory. Raises ConfigError when its ledger cannot be read."""
    ledger = Ledger.load(directory.parent, directory.name)
    lines = ledger.events()
    gathered.problems += [f"sweep {ledger.id}: {why}" for why in ledger.unread]
    void = {line.run for line in lines if isinstance(line, Voided)}
    jobs = {
        job.key: job
        for job in (*ledger.sweep.jobs, *(j for line in lines if isinstance(line, Added) for j in line.jobs))
    }
    why: dict[str, str] = {}
    seen: set[Identity] = set()
    for line in lines:
        if isinstance(line, Started) and line.run not in void:
            why.pop(line.job, None)
            seen |= _attempt(gathered, directory.parent.parent / "runs" / line.run, line)
        elif isinstance(line, Reused):
            seen |= _attempt(gathered, directory.parent.parent / "runs" / line.run, line)
        elif isinstance(line, Skipped):
            why[line.job] = line.why
        elif isinstance(line, Held):
            why |= {key: f"held: {line.signature}" for key, job in jobs.items() if _is_held(job, line)}
    for key, job in jobs.items():
        reason = f"not started: {why[key]}" if key in why else "not started"
        wanted = (identity_of(job.benchmark, concurrency) for concurrency in job.concurrencies)
        gathered.points += [Point(one, state="missing", reason=reason) for one in wanted if one not in seen]


def _attempt(gathered: Gathered, directory: Path, line: Started | Reused) -> set[Identity]:
    """Take what a run measured for a job; the points that it was to measure."""
    try:
        run, points = read_run(directory, read_fields(directory / "run.json", directory.name, facts=False))
    except (FileNotFoundError, NotADirectoryError):
        gathered.problems.append(f"run {line.run}: its record is gone")
        return set()
    except ConfigError as error:
        gathered.problems.append(f"run {line.run}: {error.message}")
        return set()
    points = [point for point in points if point.identity.concurrency in line.concurrencies]
    if isinstance(line, Reused):
        reason = f"measured by run {line.run}"
        points = [dataclasses.replace(p, state="reused", reason=reason) if p.state == "ok" else p for p in points]
    gathered.add(run, points)
    return {point.identity for point in points}


def _is_held(job: Job, line: Held) -> bool:
    return (job.runner, job.benchmark.image, job.benchmark.model) == (line.runner, line.image, line.model)
