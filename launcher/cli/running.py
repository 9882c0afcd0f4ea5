"""Commands that drive runs: `run` and `adopt` begin a run, and `resume` continues recorded runs."""

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
from launcher.run.loop import run_all
from launcher.run.record import RunRecord
from launcher.services import open_run, open_services, poll_pace

if TYPE_CHECKING:  # of a workflow's step alone
    from launcher.core.github import GitHub


@StreamingCommand
def run(arguments: argparse.Namespace) -> int:
    """Run the one benchmark that is selected."""
    with show_elapsed("planning", arguments):
        project = open_project(arguments, look=True)
        plan = _plan_selected(project, arguments)
    limits = plan.scheduler
    cost = ""
    if limits.gpu_hours is not None and limits.nodes:
        cost = f": {count_of(limits.nodes, 'node')} × {limits.time_limit} = {limits.gpu_hours:.1f} GPU-hours at most"
    if arguments.json:
        print_run_starting(plan)
    elif not arguments.quiet:
        print_line(f"run {plan.run_key} on {plan.runner}{cost}")
    confirm_cost(project, {plan.runner: limits.gpu_hours}, yes=arguments.yes)
    if arguments.detach:
        require_acceptable(plan, arguments.accept)
        require_passed_variables(plan.passes, project.environ)
        record = RunRecord.create(project.runs, plan)
        record.update(accepted=tuple(arguments.accept), results="run")
        return _detach(project, [record], arguments)
    return exit_code(drive(project, plan, arguments))


def _detach(project: Project, records: Sequence[RunRecord], arguments: argparse.Namespace) -> int:
    """Start a process for each recorded run that drives it and writes its output to the run's directory."""
    from launcher.cli import detached

    drivers = []
    for record in records:
        if record.fields.owner == ProcessIdentity.current():  # a quick driver would find that we still drive the run
            record.update(owner=None)
        record.release()
        words, log = ["resume", record.id, "--no-logs"], record.directory / "driver.log"
        drivers.append(detached.start_driver(record.id, words, log, project.state, arguments))
    for record, driver in zip(records, drivers, strict=True):
        # A driver deletes earlier cancel requests when it starts, so wait until it has.
        driver.wait_until_started(f"run {record.id}", partial(_is_driven_by, record))
        driver.print_started(f"run {record.id}", f"logs -f {record.id}", arguments)
    return 0


def _is_driven_by(record: RunRecord, pid: int) -> bool:
    record.reload()
    return record.fields.owner is not None and record.fields.owner.pid == pid


@StreamingCommand
def adopt(arguments: argparse.Namespace) -> int:
    """Take over a job that was started by hand, as a run that can be followed, cancelled and collected."""
    from launcher.run import orphans

    project = open_project(arguments, look=True)
    from_env = arguments.from_env
    plan = project.plan_from_environment(arguments.run_id) if from_env else _plan_selected(project, arguments)
    require_no_secrets(plan)
    record = RunRecord.create(project.runs, plan)
    record.update(results="workspace" if from_env else "run")
    output = Path(arguments.output).resolve() if arguments.output else None
    run = open_run(project, record)
    try:
        orphans.adopt(run, arguments.job, output, project.runs)
    except LauncherError as error:
        finish.end_early(run, error)
        raise
    with stop_on_signals() as stop:
        return exit_code(_drive_records(project, [(record, plan)], stop, arguments))


def print_run_starting(plan: Plan) -> None:
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
        if record.job is None:  # a job that was submitted has its variables
            require_passed_variables(plan.passes, project.environ)
        recorded.append((record, plan))
    clusters = Counter(plan.runner for _, plan in recorded)
    if len(clusters) > 1:  # one process drives the runs of one cluster
        names = ", ".join(f"{name} ({count})" for name, count in clusters.items())
        raise ConfigError(f"these are of several clusters: {names}", hint="those of one at a time: --runner NAME")
    for record, _ in recorded:
        record.withdraw_cancel()
    if not recorded:
        return 0
    if arguments.detach:
        return _detach(project, [record for record, _ in recorded], arguments)
    with stop_on_signals() as stop:
        return exit_code(_drive_records(project, recorded, stop, arguments))


def _plan_selected(project: Project, arguments: argparse.Namespace) -> Plan:
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
            f"{len(benchmarks)} benchmarks are selected, and a run measures one of them:\n{titles}",
            hint="narrow it by --topology, --seq or --conc, or use `launcher sweep`",
        )
    (benchmark,) = benchmarks
    run_id = arguments.run_id or new_run_id(benchmark, time.time())
    return project.plan_by_hand(benchmark, arguments.runner, narrow=narrow, run_id=run_id)


def drive(
    project: Project, plan: Plan, arguments: argparse.Namespace, github: GitHub | None = None, github_job: str = ""
) -> list[Outcome]:
    """Run a plan to its end; in a workflow, for the GitHub job with this identity. Raises ConfigError for findings that
    are not accepted."""
    require_acceptable(plan, arguments.accept)
    with stop_on_signals() as stop:
        record = RunRecord.create(project.runs, plan)
        results = "workspace" if github is not None else "run"
        record.update(accepted=tuple(arguments.accept), results=results, github_job=github_job)
        return _drive_records(project, [(record, plan)], stop, arguments, github)


def _drive_records(
    project: Project,
    recorded: Sequence[tuple[RunRecord, Plan]],
    stop: Stop,
    arguments: argparse.Namespace,
    github: GitHub | None = None,
) -> list[Outcome]:
    """Drive recorded runs to their ends, and print how they ended."""
    numbers = [f"{number}. " for number in range(1, len(recorded) + 1)] if len(recorded) > 1 else [""]
    labels = {
        record.id: f"{number}{plan.benchmark.topology} {plan.benchmark.measures}"
        for number, (record, plan) in zip(numbers, recorded, strict=True)
    }
    by_id = {record.id: (record, plan) for record, plan in recorded}
    first_record, first_plan = recorded[0]
    notes: list[str] = []
    services = open_services(project, first_plan, stop, log=notes.append)
    with background_stdout(stop) as output:
        inputs = ConsoleInputs(progress=lambda run: job_progress(*by_id[run]))
        console = Console(labels, github, output, output_options(arguments, project), inputs)
        first_record.listeners.append(console.event)  # each record gets the notes, which are shown once
        for record, _ in recorded:
            for text in notes:
                record.event("note", text)
        for record, _ in recorded[1:]:
            record.listeners.append(console.event)
        runs = [Run(record, plan, project.kind(plan.kind), services.for_run(record)) for record, plan in recorded]
        for record, _ in recorded:
            try:
                record.acquire()
            except OSError as error:  # this run will fail with the same error; the others go on
                record.event("warning", f"the record cannot be written: {error.strerror}")
        show_log = console.log if arguments.logs and not arguments.quiet else None
        try:
            with console.refreshing():
                outcomes = run_all(runs, services.scheduler, stop, poll_pace(first_plan), show_log)
        finally:
            for record, _ in recorded:
                record.release()
        console.outcomes(project.runs, outcomes)
    return outcomes


def output_options(arguments: argparse.Namespace, project: Project, *, many: bool = False) -> OutputOptions:
    """The options of the console, by a command's flags."""
    as_json = bool(getattr(arguments, "json", False))
    verbose, quiet = bool(arguments.verbose), bool(arguments.quiet)
    return OutputOptions(verbose, quiet, as_json, many, CommandRewriter(arguments), project.state)


def job_progress(record: RunRecord, plan: Plan) -> str:
    """How far a running job is, by the end of its log: ``, 2 of 5 (conc 16)``."""
    log, concurrencies = record.log_path, sorted(plan.benchmark.concurrencies)
    now = progress(str(log))[0] if log is not None else None
    return f", {concurrencies.index(now) + 1} of {len(concurrencies)} (conc {now})" if now in concurrencies else ""


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """The exit code of the first run that did not succeed, else 0."""
    return next((o.exit_code for o in outcomes if o.exit_code), 0)
