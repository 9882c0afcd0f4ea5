"""Commands about runs: `run`, `sweep`, `ci` and `adopt` begin them; the others know them by their records alone."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO, cast

from launcher.cli.common import chosen, of_row, open_project, planned, tell_refused
from launcher.cli.output import standard_output_apart
from launcher.cli.render import Console, show_plans, summaries
from launcher.core.errors import ConfigError, JobError, LauncherError
from launcher.core.github import GitHub
from launcher.core.stop import Stop, stop_on_signals
from launcher.core.terminal import StandardOutput, say
from launcher.plan.derive import check_run_id
from launcher.plan.plan import Plan
from launcher.project import Project, new_run_id
from launcher.result.summary import markdown
from launcher.run import finish
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.loop import Limits, run_all
from launcher.run.orphans import adopt as adopt_job
from launcher.run.orphans import end_run, end_unreadable, find_orphans, orphans_of_job_name, told_elsewhere
from launcher.run.prepare import refuse
from launcher.run.record import RunRecord, UnreadableRecord
from launcher.services import open_run, open_services, pace_of, schedulers_for
from launcher.slurm.backends import open_scheduler
from launcher.slurm.client import Phase


def run(arguments: argparse.Namespace) -> int:
    """Run the one benchmark that is selected."""
    project = open_project(arguments, look=True)
    return _exit_code(_drive(project, [_by_hand(project, arguments)], arguments))


def adopt(arguments: argparse.Namespace) -> int:
    """Take over a job that was started by hand: from here on it is this run's, to follow, to cancel, to collect."""
    project = open_project(arguments, look=True)
    by_environment = arguments.from_env
    plan = project.plan_from_environment(arguments.run_id) if by_environment else _by_hand(project, arguments)
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
        return _exit_code(_drive_records(project, [(record, plan)], stop, quiet=not arguments.logs))


def sweep(arguments: argparse.Namespace) -> int:
    """Run all benchmarks that are selected; the exit code is that of the first that did not succeed.

    What is selected and cannot be run is listed, and the others are run; then the exit code is 2 at least.
    """
    if arguments.run_id:
        raise ConfigError("a sweep has many runs", where="--run-id", hint="launcher run --run-id ID")
    project = open_project(arguments, look=True)
    limits = Limits(arguments.max_jobs, arguments.fail_fast)
    refused: list[ConfigError] = []
    plans = planned(arguments, project, refused, lambda benchmark: new_run_id(benchmark, time.time()))
    good = []
    for plan in plans:
        try:
            refuse(plan, arguments.accept)
        except ConfigError as error:
            if len(plans) + len(refused) == 1:
                raise
            refused.append(of_row(error, plan.benchmark, plan.benchmark.source))
        else:
            good.append(plan)
    code = tell_refused(refused, len(good))
    if not good:
        return code
    return _exit_code(_drive(project, good, arguments, limits=limits)) or code


def ci(arguments: argparse.Namespace) -> int:
    """Run what this GitHub job's environment asks for; results go where the workflow looks."""
    project = open_project(arguments, look=True)
    arguments.annotated = True
    with GitHub(os.environ, cast(TextIO, StandardOutput())) as github:
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


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a run's job and wait until the scheduler says that it is gone."""
    project = open_project(arguments)
    _end(project, _run_id(arguments, project), "launcher cancel")
    return 0


def cleanup(arguments: argparse.Namespace) -> int:
    """End the jobs of runs that nobody drives any more; with RUN or --from-env, of that run."""
    project = open_project(arguments)
    if arguments.run or arguments.from_env:
        run_id = _run_id(arguments, project)
        if not (project.runs / run_id).is_dir():
            say(f"run {run_id} has no record: it never began")
            return 0
        _end(project, run_id, "launcher cleanup")
        return 0
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = find_orphans(project.runs, unreadable)
    wrong = [_trouble(partial(_end, project, record.id, "launcher cleanup"), record.id) for record in left]
    wrong += [_trouble(partial(_end_unreadable, project, one), one.id) for one in unreadable]
    for record in elsewhere:
        say(told_elsewhere(record))
    say(f"{len(left)} runs were left behind" if left else "no run was left behind")
    if unreadable:
        say(f"{len(unreadable)} records cannot be read: {', '.join(one.id for one in unreadable)}")
    from launcher.model.node_job import reap  # no run stages on nodes: only here

    slurm = partial(open_scheduler, "slurm", backend="commands")
    wrong.append(_trouble(partial(reap, project.state, slurm, say), "stagings"))
    errors = [error for error in wrong if error is not None]
    for other in errors[1:]:
        print(other)
    if errors:
        raise errors[0]
    return 0


def _end(project: Project, run_id: str, why: str) -> None:
    """End what a run holds, also where its record or plan cannot be read. Raises LauncherError."""
    directory = project.runs / check_run_id(run_id)
    try:
        record = RunRecord.load(project.runs, run_id)
    except ConfigError as error:
        if not directory.is_dir():
            raise
        lost = UnreadableRecord(directory, error)
    else:
        try:
            run = open_run(project, record)
        except ConfigError as error:
            lost = UnreadableRecord(directory, error, record.job)
        else:
            try:
                end_run(run, why, say)
            finally:
                record.let_go()  # whoever ends thousands must not hold as many locks
            return
    end_unreadable(lost, schedulers_for(project, lost), say)


def _end_unreadable(project: Project, lost: UnreadableRecord) -> None:
    """End the job of a run whose record cannot be read, if nobody drives the run. Raises LauncherError."""
    driven = lost.driven
    if driven is False:
        end_unreadable(lost, schedulers_for(project, lost), say)
    elif driven is None:
        say(told_elsewhere(lost.record))
    else:
        print(f"run {lost.id}: {lost.error}; a launcher drives it")


def _trouble(end: Callable[[], object], run_id: str) -> LauncherError | None:
    """What went wrong with one of several: it must not end the others."""
    try:
        end()
    except LauncherError as error:
        return error
    except OSError as error:
        return LauncherError(str(error.strerror), where=f"run {run_id}: {error.filename}")
    except Exception as fault:  # noqa: BLE001
        return LauncherError(f"unexpected {type(fault).__name__}: {fault}", where=f"run {run_id}")
    return None


def collect(arguments: argparse.Namespace) -> int:
    """Collect and check a run's results again."""
    project = open_project(arguments)
    record = RunRecord.load(project.runs, _run_id(arguments, project))
    if record.owned_by_another:
        raise ConfigError("another launcher drives this run, and will collect", where=f"run {record.id}")
    run = open_run(project, record)
    record.take()
    job = record.job_key
    if job is None:
        raise ConfigError("this run has no job, hence no results", where=f"run {record.id}")
    state = run.services.scheduler.poll([job])[job]
    if state.phase is not Phase.TERMINAL and not record.ended:
        raise JobError(f"the job has not ended: {state.describe()}", where=str(job), hint="launcher logs -f RUN")
    if state.phase is not Phase.TERMINAL:
        collected = finish.collect(run)
        finish.deliver(run)
        collected.raise_if_bad()
        return 0
    outcome = finish.finish(run, state)
    say(f"run {record.id}: {outcome.state}")
    if outcome.error is not None:
        raise outcome.error
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Continue a run where it stopped, in this process."""
    project = open_project(arguments, look=True)
    record = RunRecord.load(project.runs, arguments.run)
    if record.fields.state == "succeeded":
        say(f"run {record.id} has succeeded already")
        return 0
    if record.owned_by_another:
        raise ConfigError("another launcher drives this run", where=f"run {record.id}", hint="launcher logs -f RUN")
    with stop_on_signals() as stop:
        outcomes = _drive_records(project, [(record, record.plan)], stop)
    return outcomes[0].exit_code


def _run_id(arguments: argparse.Namespace, project: Project) -> str:
    """The id of the run that a command is about: named, or that of this GitHub job."""
    if arguments.run:
        return str(arguments.run)
    if arguments.from_env:
        return project.run_id_from_environment()
    raise ConfigError("which run?", hint="RUN, or --from-env in a GitHub job; `launcher status` lists them")


def _by_hand(project: Project, arguments: argparse.Namespace) -> Plan:
    """The plan of the one benchmark that is selected. Raises ConfigError for several."""
    refused: list[ConfigError] = []
    benchmarks, narrow = [benchmark for benchmark, _ in chosen(arguments, project, refused)], bool(arguments.conc)
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


def _end_leftovers(project: Project, plan: Plan, github: GitHub) -> None:
    """End what a launcher that was killed left of an earlier job of this GitHub runner, and say so."""
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = orphans_of_job_name(project.runs, plan.job_name, unreadable)
    for record in elsewhere:
        github.warning(told_elsewhere(record), title="launcher: left behind")
    for record in left:
        github.warning(f"run {record.id} was left behind by an earlier job of this runner; ending it")
        end = partial(_end, project, record.id, "the next launcher on this runner")
        if (error := _trouble(end, record.id)) is not None:
            github.warning(f"run {record.id}: {error}", title="launcher: left behind")
    for lost in unreadable:
        ours = lost.job_name == plan.job_name
        github.warning(f"run {lost.id}: {lost.error}" + ("; ending its job" if ours else ""), title="launcher: records")
        if not ours:
            say(f"run {lost.id} may be another runner's: `launcher cleanup {lost.id}` ends its job")
        elif (error := _trouble(partial(_end_unreadable, project, lost), lost.id)) is not None:
            github.warning(f"run {lost.id}: {error}", title="launcher: left behind")


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
    clusters = Counter(plan.runner for plan in plans)
    if len(clusters) > 1:
        named = ", ".join(f"{name} ({count})" for name, count in clusters.items())
        message = f"the selected benchmarks are of several clusters: {named}"
        raise ConfigError(message, hint="--runner NAME picks one, or -k, --topology and --seq those of one")
    with stop_on_signals() as stop:
        recorded: list[tuple[RunRecord, Plan]] = []
        unrecorded: list[Outcome] = []
        for plan in plans:
            try:
                record = RunRecord.create(project.runs, plan)
                record.update(accepted=tuple(arguments.accept), results="workspace" if github is not None else "run")
            except (LauncherError, OSError) as error:  # without a record there is no run; the others go on
                if len(plans) == 1:
                    raise
                wrong = error if isinstance(error, LauncherError) else LauncherError(str(error.strerror))
                print(f"run {plan.run_key}: {wrong}", file=sys.stderr)
                unrecorded.append(Outcome(plan.run_key, "failed", error=wrong))
            else:
                recorded.append((record, plan))
        if not recorded:
            return unrecorded
        driven = _drive_records(project, recorded, stop, quiet=not arguments.logs, limits=limits, github=github)
        return [*driven, *unrecorded]


def _drive_records(
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
    first = recorded[0][1]
    said: list[str] = []
    services = open_services(project, first, stop, log=said.append)
    with standard_output_apart(stop) as output:
        console = Console(labels, github, output)
        recorded[0][0].listeners.append(console.event)
        for record, _ in recorded:
            for text in said:  # how Slurm is asked is in every record, and shown once
                record.event("note", text)
        for record, _ in recorded[1:]:
            record.listeners.append(console.event)
        runs = [Run(record, plan, project.kind(plan.kind), services) for record, plan in recorded]
        for record, _ in recorded:
            try:
                record.take()
            except OSError as error:  # its run ends with this before it does anything, and the others go on
                record.event("warning", f"the record cannot be written: {error.strerror}")
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
        inside = finding.line is not None and Path(finding.file).is_relative_to(project.workspace)
        file = str(Path(finding.file).relative_to(project.workspace)) if inside else None
        text = f"{finding.message} [{finding.rule}]" + ("" if inside else f" ({finding.where})")
        say(text, title=f"launcher: {finding.rule}", file=file, line=finding.line if inside else None)


def report_to(github: GitHub, runs: Path, outcomes: Sequence[Outcome]) -> None:
    """How runs ended: the step's output, an annotation with the verdict of each that failed, the table of points."""
    for outcome in outcomes:
        github.output("state", outcome.state)
        if outcome.error is not None:
            github.error(f"{outcome.verdict}\n{outcome.error}", title=f"launcher: {outcome.error.layer}")
    if found := summaries(runs, outcomes):
        github.summary(markdown(found))
