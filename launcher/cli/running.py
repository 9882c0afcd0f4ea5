"""`launcher run`, `sweep` and `ci`: from plans to outcomes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.benchmark.benchmark import Benchmark
from launcher.cli.common import narrowed, selected, session
from launcher.cli.console import Voice
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.github import GitHub
from launcher.core.process import stoppable
from launcher.core.stop import Stop, stop_on_signals
from launcher.plan.plan import Plan
from launcher.project import Session, new_run_id
from launcher.run.execute import Execution, Outcome, refuse
from launcher.run.loop import Drive
from launcher.run.orphans import adopt as take_job
from launcher.run.orphans import end_run, left_by_earlier_jobs
from launcher.run.record import RunRecord
from launcher.run.stages import Effects, rehearsal_tools
from launcher.slurm.backends import open_scheduler
from launcher.slurm.shared import SharedPoller
from launcher.slurm.watch import Pace


def run(arguments: argparse.Namespace) -> int:
    """Run the one benchmark that is selected."""
    of = session(arguments, look=True)
    return _exit_code(_drive(of, [_one_by_hand(of, arguments)], arguments, max_jobs=1))


def adopt(arguments: argparse.Namespace) -> int:
    """Take over a job that was started by hand: from here on it is this run's, to follow, to cancel, to collect."""
    of = session(arguments, look=True)
    by_environment = arguments.from_env
    plan = of.plan_from_environment(arguments.run_id) if by_environment else _one_by_hand(of, arguments)
    record = RunRecord.create(of.runs, plan)
    record.update(results="workspace" if by_environment else "run")
    output = Path(arguments.output).resolve() if arguments.output else None
    execution = execution_of(of, record)
    try:
        take_job(record, arguments.job, execution, output, of.runs)
    except LauncherError as error:
        execution.failed(error)
        raise
    with stop_on_signals() as stop:
        return _exit_code(drive_records(of, [(record, plan)], stop, quiet=not arguments.logs))


def _one_by_hand(of: Session, arguments: argparse.Namespace) -> Plan:
    chosen = selected(arguments, of)
    if len(chosen) > 1:
        titles = "\n".join(f"  {b.title} conc {' '.join(map(str, b.concurrencies))}" for b in chosen)
        raise ConfigError(
            f"{len(chosen)} benchmarks are selected, and one job measures one:\n{titles}",
            hint="narrow it by --topology, --seq or --conc, or use `launcher sweep`",
        )
    return _by_hand(of, arguments, chosen[0])


def sweep(arguments: argparse.Namespace) -> int:
    """Run all benchmarks that are selected; the exit code is that of the first that did not succeed."""
    if arguments.run_id:
        raise ConfigError("a sweep has many runs", where="--run-id", hint="launcher run --run-id ID")
    of = session(arguments, look=True)
    plans = [_by_hand(of, arguments, benchmark) for benchmark in selected(arguments, of)]
    outcomes = _drive(of, plans, arguments, max_jobs=arguments.max_jobs, fail_fast=arguments.fail_fast)
    return _exit_code(outcomes)


def ci(arguments: argparse.Namespace) -> int:
    """Run what this GitHub job's environment asks for; results go where the workflow looks."""
    of = session(arguments, look=True)
    arguments.annotated = True
    with GitHub.from_environment(os.environ, sys.stdout) as github:
        github.mask_secrets(os.environ)
        try:
            plan = of.plan_from_environment(arguments.run_id)
            _announce(github, plan, of.workspace)
            github.output("run-id", plan.run_key)
            _end_leftovers(of, plan, github)
            outcomes = _drive(of, [plan], arguments, max_jobs=1, github=github)
        except ConfigError as error:
            github.error(str(error), title="launcher: configuration")
            raise
        report_to(github, of.runs, outcomes)
    return _exit_code(outcomes)


def _end_leftovers(of: Session, plan: Plan, github: GitHub) -> None:
    """End what a launcher that was killed left of an earlier job of this GitHub runner, and say so."""
    for record in left_by_earlier_jobs(of.runs, plan.job_name):
        github.warning(f"run {record.id} was left behind by an earlier job of this runner; ending it")
        try:
            end_run(execution_of(of, record), "the next launcher on this runner", print)
        except LauncherError as error:
            github.warning(str(error), title="launcher: left behind")


def execution_of(of: Session, record: RunRecord) -> Execution:
    """A recorded run, to be ended or collected by this process."""
    plan = record.plan
    effects = make_effects(of, plan, say=lambda text: record.event("note", text))
    return Execution(record, plan, effects_for(effects, record), of.replan)


def _by_hand(of: Session, arguments: argparse.Namespace, benchmark: Benchmark) -> Plan:
    run_id = arguments.run_id or new_run_id(benchmark, time.time())
    return of.plan_by_hand(benchmark, arguments.runner, narrow=narrowed(arguments), run_id=run_id)


def _drive(
    of: Session,
    plans: Sequence[Plan],
    arguments: argparse.Namespace,
    *,
    max_jobs: int,
    fail_fast: bool = False,
    github: GitHub | None = None,
) -> list[Outcome]:
    for plan in plans:
        refuse(plan, arguments.accept)
    with stop_on_signals() as stop:
        records = [RunRecord.create(of.runs, plan) for plan in plans]
        for record in records:
            record.update(accepted=list(arguments.accept), results="workspace" if github is not None else "run")
        return drive_records(
            of,
            list(zip(records, plans, strict=True)),
            stop,
            quiet=not arguments.logs,
            max_jobs=max_jobs,
            fail_fast=fail_fast,
            github=github,
        )


def drive_records(
    of: Session,
    runs: Sequence[tuple[RunRecord, Plan]],
    stop: Stop,
    *,
    quiet: bool = False,
    max_jobs: int = 1,
    fail_fast: bool = False,
    github: GitHub | None = None,
) -> list[Outcome]:
    """Bring recorded runs to their ends, and show how they ended."""
    voice = Voice(sys.stdout, os.environ, labels=_labels(runs), quiet=quiet, github=github)
    first = runs[0][1]
    if any(p.scheduler != first.scheduler or p.tools != first.tools for _, p in runs):
        raise ConfigError("the selected benchmarks are of several clusters", hint="--runner NAME picks one")
    said: list[str] = []
    effects = make_effects(of, first, stop, say=said.append)
    executions: list[Execution] = []
    for record, plan in runs:
        if not executions:  # how Slurm is asked is in every record, and said once
            record.listeners.append(voice.event)
        for text in said:
            record.event("note", text)
        if executions:
            record.listeners.append(voice.event)
        executions.append(Execution(record, plan, effects_for(effects, record), of.replan))
        executions[-1].take_over()
    drive = Drive(
        executions,
        effects.scheduler,
        stop,
        max_jobs=max_jobs,
        fail_fast=fail_fast,
        pace=pace(first),
        log_lines=None if quiet else voice.log,
    )
    outcomes = drive.run()
    voice.outcomes(of.runs, outcomes)
    return outcomes


def _labels(runs: Sequence[tuple[RunRecord, Plan]]) -> dict[str, str]:
    """A short name for each run: its number, topology and lengths."""
    names = {}
    for i, (record, plan) in enumerate(runs, 1):
        b = plan.benchmark
        lengths = b.scenario if b.isl is None else f"{b.isl}/{b.osl}"
        names[record.id] = f"{i}. {b.topology} {lengths}"
    return names


def make_effects(
    of: Session, plan: Plan, stop: Stop | None = None, *, say: Callable[[str], None] = lambda text: None
) -> Effects:
    """How runs of this plan's cluster reach the world, from this process; ``say`` is told how Slurm is asked."""
    stopping = stop.requested if stop is not None else lambda: False
    tools = rehearsal_tools(of.state, plan.scheduler.kind, of.environ) if plan.tools == "rehearsal" else {}
    asked = plan.scheduler
    backend = of.slurm_backend or asked.backend
    scheduler = open_scheduler(asked.kind, backend=backend, directory=of.state / "jobs", say=say)
    if asked.kind == "slurm":
        scheduler = SharedPoller(scheduler, of.state / "poller", cluster=of.environ.get("SLURM_CONF", ""))
    return Effects(scheduler=scheduler, environ=of.environ, stopping=stopping, run=stoppable(stopping), tools=tools)


def effects_for(effects: Effects, record: RunRecord) -> Effects:
    """The same effects, with what they say going into the run's events."""
    return dataclasses.replace(effects, say=lambda text: record.event("note", text))


def pace(plan: Plan) -> Pace:
    """A cluster is asked rarely; the embedded scheduler is a few files on this machine."""
    return Pace(first=0.2, running=1.0, pending=1.0, tick=0.2) if plan.scheduler.kind == "local" else Pace()


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    return next((o.exit_code for o in outcomes if o.exit_code), 0)


def _announce(github: GitHub, plan: Plan, workspace: Path) -> None:
    """The plan, folded, and its findings as annotations at their lines of the checkout."""
    from launcher.cli.render import show_plans

    with github.group(f"Plan: {plan.benchmark.title} on {plan.runner}"):
        show_plans([plan])
        sys.stdout.flush()
    for finding in plan.findings:
        say = github.error if finding.severity == "error" else github.warning
        path, _, line = finding.where.rpartition(":")
        inside = line.isdecimal() and Path(path).is_relative_to(workspace)
        say(
            f"{finding.message} [{finding.rule}]" + ("" if inside else f" ({finding.where})"),
            title=f"launcher: {finding.rule}",
            file=str(Path(path).relative_to(workspace)) if inside else None,
            line=int(line) if inside else None,
        )


def report_to(github: GitHub, runs: Path, outcomes: Sequence[Outcome]) -> None:
    """How runs ended: the step's output, an annotation with the verdict of each that failed, the table of points."""
    from launcher.result.report import markdown

    summaries = []
    for outcome in outcomes:
        github.output("state", outcome.state)
        path = runs / outcome.run / "summary.json"
        if path.is_file():
            summaries.append(json.loads(path.read_text()))
        if outcome.error is not None:
            github.error(f"{outcome.verdict}\n{outcome.error}", title=f"launcher: {outcome.error.layer}")
    if summaries:
        github.summary(markdown(summaries))
