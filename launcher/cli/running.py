"""`launcher run`, `sweep` and `ci`: from plans to outcomes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.common import chosen, open_project
from launcher.cli.render import Console, show_plans, summaries
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.github import GitHub
from launcher.core.stop import Stop, stop_on_signals
from launcher.plan.plan import Plan
from launcher.project import Project, new_run_id
from launcher.result.summary import markdown
from launcher.run import finish
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.loop import Limits, run_all
from launcher.run.orphans import adopt as adopt_job
from launcher.run.orphans import end_run, orphans_of_job_name, told_elsewhere
from launcher.run.prepare import refuse
from launcher.run.record import RunRecord
from launcher.services import open_run, open_services, pace_of


def run(arguments: argparse.Namespace) -> int:
    """Run the one benchmark that is selected."""
    project = open_project(arguments, look=True)
    return _exit_code(_drive(project, _by_hand(project, arguments), arguments))


def adopt(arguments: argparse.Namespace) -> int:
    """Take over a job that was started by hand: from here on it is this run's, to follow, to cancel, to collect."""
    project = open_project(arguments, look=True)
    by_environment = arguments.from_env
    plan = project.plan_from_environment(arguments.run_id) if by_environment else _by_hand(project, arguments)[0]
    record = RunRecord.create(project.runs, plan)
    record.update(results="workspace" if by_environment else "run")
    output = Path(arguments.output).resolve() if arguments.output else None
    run = open_run(project, record)
    try:
        adopt_job(run, arguments.job, output, project.runs)
    except LauncherError as error:
        finish.end_early(run, error)
        raise
    with stop_on_signals() as stop:
        return _exit_code(drive_records(project, [(record, plan)], stop, quiet=not arguments.logs))


def _by_hand(project: Project, arguments: argparse.Namespace, *, several: bool = False) -> list[Plan]:
    """The plans of the benchmarks that are selected. Raises ConfigError for several where one is expected."""
    benchmarks, narrow = [benchmark for benchmark, _ in chosen(arguments, project)], bool(arguments.conc)
    if len(benchmarks) > 1 and not several:
        titles = "\n".join(f"  {b.title} conc {' '.join(map(str, b.concurrencies))}" for b in benchmarks)
        raise ConfigError(
            f"{len(benchmarks)} benchmarks are selected, and one job measures one:\n{titles}",
            hint="narrow it by --topology, --seq or --conc, or use `launcher sweep`",
        )
    plans = []
    for benchmark in benchmarks:
        run_id = arguments.run_id or new_run_id(benchmark, time.time())
        plans.append(project.plan_by_hand(benchmark, arguments.runner, narrow=narrow, run_id=run_id))
    return plans


def sweep(arguments: argparse.Namespace) -> int:
    """Run all benchmarks that are selected; the exit code is that of the first that did not succeed."""
    if arguments.run_id:
        raise ConfigError("a sweep has many runs", where="--run-id", hint="launcher run --run-id ID")
    project = open_project(arguments, look=True)
    limits = Limits(arguments.max_jobs, arguments.fail_fast)
    return _exit_code(_drive(project, _by_hand(project, arguments, several=True), arguments, limits=limits))


def ci(arguments: argparse.Namespace) -> int:
    """Run what this GitHub job's environment asks for; results go where the workflow looks."""
    project = open_project(arguments, look=True)
    arguments.annotated = True
    with GitHub(os.environ, sys.stdout) as github:
        github.mask_secrets(os.environ)
        try:
            plan = project.plan_from_environment(arguments.run_id)
            _announce(github, plan, project)
            github.output("run-id", plan.run_key)
            _end_leftovers(project, plan, github)
            outcomes = _drive(project, [plan], arguments, github=github)
        except ConfigError as error:
            github.error(str(error), title="launcher: configuration")
            raise
        report_to(github, project.runs, outcomes)
    return _exit_code(outcomes)


def _end_leftovers(project: Project, plan: Plan, github: GitHub) -> None:
    """End what a launcher that was killed left of an earlier job of this GitHub runner, and say so."""
    left, elsewhere = orphans_of_job_name(project.runs, plan.job_name)
    for record in elsewhere:
        github.warning(told_elsewhere(record), title="launcher: left behind")
    for record in left:
        github.warning(f"run {record.id} was left behind by an earlier job of this runner; ending it")
        try:
            end_run(open_run(project, record), "the next launcher on this runner", print)
        except (LauncherError, OSError) as error:
            github.warning(f"run {record.id}: {error}", title="launcher: left behind")


def _drive(
    project: Project,
    plans: Sequence[Plan],
    arguments: argparse.Namespace,
    *,
    limits: Limits = Limits(),
    github: GitHub | None = None,
) -> list[Outcome]:
    for plan in plans:
        refuse(plan, arguments.accept)
    with stop_on_signals() as stop:
        recorded = [(RunRecord.create(project.runs, plan), plan) for plan in plans]
        for record, _ in recorded:
            record.update(accepted=tuple(arguments.accept), results="workspace" if github is not None else "run")
        return drive_records(project, recorded, stop, quiet=not arguments.logs, limits=limits, github=github)


def drive_records(
    project: Project,
    recorded: Sequence[tuple[RunRecord, Plan]],
    stop: Stop,
    *,
    quiet: bool = False,
    limits: Limits = Limits(),
    github: GitHub | None = None,
) -> list[Outcome]:
    """Bring recorded runs to their ends, and show how they ended."""
    # A short name for each run: its number, topology and lengths.
    labels = {r.id: f"{i}. {p.benchmark.topology} {p.benchmark.measures}" for i, (r, p) in enumerate(recorded, 1)}
    console = Console(sys.stdout, os.environ, labels=labels, quiet=quiet, github=github)
    first = recorded[0][1]
    if any(p.scheduler != first.scheduler or p.tools != first.tools for _, p in recorded):
        raise ConfigError("the selected benchmarks are of several clusters", hint="--runner NAME picks one")
    said: list[str] = []
    services = open_services(project, first, stop, log=said.append)
    recorded[0][0].listeners.append(console.event)
    for record, _ in recorded:
        for text in said:  # how Slurm is asked is in every record, and shown once
            record.event("note", text)
    for record, _ in recorded[1:]:
        record.listeners.append(console.event)
    runs = [Run(record, plan, project.kind(plan.kind), services) for record, plan in recorded]
    for record, _ in recorded:
        record.take()
    limits = dataclasses.replace(limits, pace=pace_of(first))
    try:
        outcomes = run_all(runs, services.scheduler, stop, limits, None if quiet else console.log)
    finally:
        for record, _ in recorded:
            record.let_go()
    console.outcomes(project.runs, outcomes)
    return outcomes


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    return next((o.exit_code for o in outcomes if o.exit_code), 0)


def _announce(github: GitHub, plan: Plan, project: Project) -> None:
    """The plan, folded, and its findings as annotations at their lines of the checkout."""
    with github.group(f"Plan: {plan.benchmark.title} on {plan.runner}"):
        show_plans([plan], project.kind)
        sys.stdout.flush()
    for finding in plan.findings:
        say = github.error if finding.severity == "error" else github.warning
        path, _, line = finding.where.rpartition(":")
        inside = line.isdecimal() and Path(path).is_relative_to(project.workspace)
        say(
            f"{finding.message} [{finding.rule}]" + ("" if inside else f" ({finding.where})"),
            title=f"launcher: {finding.rule}",
            file=str(Path(path).relative_to(project.workspace)) if inside else None,
            line=int(line) if inside else None,
        )


def report_to(github: GitHub, runs: Path, outcomes: Sequence[Outcome]) -> None:
    """How runs ended: the step's output, an annotation with the verdict of each that failed, the table of points."""
    for outcome in outcomes:
        github.output("state", outcome.state)
        if outcome.error is not None:
            github.error(f"{outcome.verdict}\n{outcome.error}", title=f"launcher: {outcome.error.layer}")
    if found := summaries(runs, outcomes):
        github.summary(markdown(found))
