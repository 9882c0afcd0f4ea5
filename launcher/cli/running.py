"""Commands that drive runs: `run` and `adopt` begin one, `resume` goes on with those of which there are records."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.command import CommandRewriter, json_text, log_to_stderr
from launcher.cli.common import confirm_cost, open_project, selected_benchmarks, show_elapsed
from launcher.cli.console import Console, ConsoleInputs, OutputOptions
from launcher.cli.output import background_stdout
from launcher.cli.streaming import RunStarting, StreamingCommand
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.lines import count_of
from launcher.core.process import ProcessIdentity
from launcher.core.stop import Stop, stop_on_signals
from launcher.core.terminal import print_line
from launcher.plan.job_environment import require_passed_variables
from launcher.plan.plan import Plan
from launcher.plan.refusing import require_acceptable, require_no_secrets
from launcher.project import Project, new_run_id
from launcher.run import finish
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.log_lines import progress
from launcher.run.loop import Limits, run_all
from launcher.run.record import RunRecord
from launcher.services import open_run, open_services, poll_pace

if TYPE_CHECKING:  # of a workflow's step alone
    from launcher.core.github import GitHub


@StreamingCommand
def run(arguments: argparse.Namespace) -> int:
    """Run the one benchmark that is selected."""
    with show_elapsed("planning", arguments):
        project = open_project(arguments, look=True)
        plan = _by_hand(project, arguments)
    held = plan.scheduler
    cost = ""
    if held.gpu_hours is not None and held.nodes:
        cost = f": {count_of(held.nodes, 'node')} × {held.time_limit} = {held.gpu_hours:.1f} GPU-hours at most"
    if arguments.json:
        print_planned(plan)
    elif not arguments.quiet:
        print_line(f"run {plan.run_key} on {plan.runner}{cost}")
    confirm_cost(project, {plan.runner: held.gpu_hours}, yes=arguments.yes)
    if arguments.detach:
        require_acceptable(plan, arguments.accept)
        require_passed_variables(plan.passes, project.environ)
        record = RunRecord.create(project.runs, plan)
        record.update(accepted=tuple(arguments.accept), results="run")
        return _detach(project, [record], arguments)
    return exit_code(drive(project, plan, arguments))


def _detach(project: Project, records: Sequence[RunRecord], arguments: argparse.Namespace) -> int:
    """Have a process of its own drive each recorded run, whose output is in the run's directory."""
    from launcher.cli import detached

    drivers = []
    for record in records:
        if record.fields.owner == ProcessIdentity.current():  # else a driver that is quick finds us still here
            record.update(owner=None)
        record.release()
        words, log = ["resume", record.id, "--no-logs"], record.directory / "driver.log"
        drivers.append(detached.start_driver(record.id, words, log, project.state, arguments))
    for record, driver in zip(records, drivers, strict=True):
        # One that has not begun yet would take a cancel that is asked now for one of before (`RunRecord.withdraw`).
        driver.wait_until_started(f"run {record.id}", partial(_drives, record))
        driver.print_started(f"run {record.id}", f"logs -f {record.id}", arguments)
    return 0


def _drives(record: RunRecord, pid: int) -> bool:
    record.reload()
    return record.fields.owner is not None and record.fields.owner.pid == pid


@StreamingCommand
def adopt(arguments: argparse.Namespace) -> int:
    """Take over a job that was started by hand: from here on it is this run's, to follow, to cancel, to collect."""
    from launcher.run import orphans

    project = open_project(arguments, look=True)
    by_environment = arguments.from_env
    plan = project.plan_from_environment(arguments.run_id) if by_environment else _by_hand(project, arguments)
    require_no_secrets(plan)
    record = RunRecord.create(project.runs, plan)
    record.update(results="workspace" if by_environment else "run")
    output = Path(arguments.output).resolve() if arguments.output else None
    run = open_run(project, record)
    try:
        orphans.adopt(run, arguments.job, output, project.runs)
    except LauncherError as error:
        finish.end_early(run, error)
        raise
    with stop_on_signals() as stop:
        return exit_code(_drive_records(project, [(record, plan)], stop, arguments))


def print_planned(plan: Plan) -> None:
    """Print which run begins, as a line of JSON."""
    value = RunStarting(run=plan.run_key, runner=plan.runner, gpu_hours=plan.scheduler.gpu_hours)
    print(json_text(value, indent=0), flush=True)


@StreamingCommand
def resume(arguments: argparse.Namespace) -> int:
    """Continue runs where they stopped, in this process."""
    from launcher.run.naming import load_named

    project = open_project(arguments, look=True)
    recorded: list[tuple[RunRecord, Plan]] = []
    for name in dict.fromkeys(arguments.runs):
        record = load_named(project.runs, name)
        if record.fields.state == "succeeded":
            log_to_stderr(f"run {record.id} has succeeded already")
            continue
        if record.driven_by_another:
            raise record.driven_by_another_error()
        plan = record.plan
        if record.job is None:  # else the job has what it needs
            require_passed_variables(plan.passes, project.environ)
        recorded.append((record, plan))
    clusters = Counter(plan.runner for _, plan in recorded)
    if len(clusters) > 1:  # one process drives the runs of one
        named = ", ".join(f"{name} ({count})" for name, count in clusters.items())
        raise ConfigError(f"these are of several clusters: {named}", hint="those of one at a time: --runner NAME")
    for record, _ in recorded:
        record.withdraw_cancel()
    if not recorded:
        return 0
    if arguments.detach:
        return _detach(project, [record for record, _ in recorded], arguments)
    with stop_on_signals() as stop:
        return exit_code(_drive_records(project, recorded, stop, arguments))


def _by_hand(project: Project, arguments: argparse.Namespace) -> Plan:
    """The plan of the one benchmark that is selected. Raises ConfigError for several."""
    refused: list[ConfigError] = []
    benchmarks, narrow = (
        [benchmark for benchmark, _ in selected_benchmarks(arguments, project, refused)],
        bool(arguments.conc),
    )
    if refused:
        raise refused[0]
    if len(benchmarks) > 1:
        titles = "\n".join(f"  {b.title} conc {' '.join(map(str, b.concurrencies))}" for b in benchmarks)
        raise ConfigError(
            f"{len(benchmarks)} benchmarks are selected, and one job measures one:\n{titles}",
            hint="narrow it by --topology, --seq or --conc, or use `launcher sweep`",
        )
    (benchmark,) = benchmarks
    run_id = arguments.run_id or new_run_id(benchmark, time.time())
    return project.plan_by_hand(benchmark, arguments.runner, narrow=narrow, run_id=run_id)


def drive(
    project: Project, plan: Plan, arguments: argparse.Namespace, github: GitHub | None = None, of_job: str = ""
) -> list[Outcome]:
    """Run a plan to its end, for the GitHub job ``of_job`` if so. Raises ConfigError for one with findings that are not
    accepted."""
    require_acceptable(plan, arguments.accept)
    with stop_on_signals() as stop:
        record = RunRecord.create(project.runs, plan)
        results = "workspace" if github is not None else "run"
        record.update(accepted=tuple(arguments.accept), results=results, github_job=of_job)
        return _drive_records(project, [(record, plan)], stop, arguments, github)


def _drive_records(
    project: Project,
    recorded: Sequence[tuple[RunRecord, Plan]],
    stop: Stop,
    arguments: argparse.Namespace,
    github: GitHub | None = None,
) -> list[Outcome]:
    """Bring recorded runs to their ends, and show how they ended."""
    # A short name for each run: its number, topology and lengths.
    numbers = [f"{number}. " for number in range(1, len(recorded) + 1)] if len(recorded) > 1 else [""]
    by_id = {record.id: (record, plan) for record, plan in recorded}
    labels = {
        record.id: f"{number}{plan.benchmark.topology} {plan.benchmark.measures}"
        for number, (record, plan) in zip(numbers, recorded, strict=True)
    }
    first = recorded[0][1]
    said: list[str] = []
    services = open_services(project, first, stop, log=said.append)
    with background_stdout(stop) as output:
        world = ConsoleInputs(progress=lambda run: job_progress(*by_id[run]))
        console = Console(labels, github, output, output_options(arguments, project), world)
        runs = []
        for number, (record, plan) in enumerate(recorded):
            if number == 0:  # how Slurm is asked is in every record, and shown once
                record.listeners.append(console.event)
            for text in said:
                record.event("note", text)
            if number > 0:
                record.listeners.append(console.event)
            runs.append(Run(record, plan, project.kind(plan.kind), services.for_run(record)))
        for record, _ in recorded:
            try:
                record.acquire()
            except OSError as error:  # its run ends with this before it does anything, and the others go on
                record.event("warning", f"the record cannot be written: {error.strerror}")
        show = console.log if arguments.logs and not arguments.quiet else None
        try:
            with console.refreshing():
                outcomes = run_all(runs, services.scheduler, stop, Limits(pace=poll_pace(first)), show)
        finally:
            for record, _ in recorded:
                record.release()
        console.outcomes(project.runs, outcomes)
    return outcomes


def output_options(arguments: argparse.Namespace, project: Project, *, many: bool = False) -> OutputOptions:
    """How much a command says of what goes on, by its flags."""
    as_json = bool(getattr(arguments, "json", False))
    verbose, quiet = bool(arguments.verbose), bool(arguments.quiet)
    return OutputOptions(verbose, quiet, as_json, many, CommandRewriter(arguments), project.state)


def job_progress(record: RunRecord, plan: Plan) -> str:
    """How far a running job is, by the end of its log: ``, 2 of 5 (conc 16)``."""
    log, asked = record.log_path, sorted(plan.benchmark.concurrencies)
    now = progress(str(log))[0] if log is not None else None
    return f", {asked.index(now) + 1} of {len(asked)} (conc {now})" if now in asked else ""


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """That of the first run that did not end well."""
    return next((o.exit_code for o in outcomes if o.exit_code), 0)
