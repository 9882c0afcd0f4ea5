"""Commands that need only the records of runs: `cancel` and `cleanup` end jobs, `collect` collects results again; and
how `ci` ends the jobs that earlier jobs of its runner left."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from launcher.benchmark.environment import github_job
from launcher.cli.command import Command, Log, Message, for_each_name, show_message
from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, ErrorInfo, JobError, LauncherError, as_error
from launcher.core.github import GitHub
from launcher.core.lines import count_of
from launcher.plan.plan import Plan, check_run_id
from launcher.project import Project
from launcher.run import finish
from launcher.run.listing import UnreadableRecord, records
from launcher.run.naming import load_named, run_named
from launcher.run.orphans import (
    END_PATIENCE,
    RUN_ID_VARIABLE,
    SILENCE,
    end_job_without_record,
    end_run,
    end_unreadable,
    find_orphans,
    left_alone_message,
    orphans_of_job_name,
    runs_of_job,
)
from launcher.run.record import RunRecord
from launcher.runner.file import fill_in
from launcher.services import open_run, schedulers_for
from launcher.slurm.client import Phase
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.other_jobs import find_named_jobs

TREES_KEPT = 86400.0
"""Seconds for which the tree of a cancelled run is kept, so that somebody can look at it."""

AT_ONCE = 8
"""Runs that are ended at a time."""

_BY_CLEANUP = "launcher cleanup"

EndAction = Callable[[Log], object]
"""Ends one run or job, and logs what it did."""


@partial(Command, Message, show=show_message)
def cancel(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Cancel the jobs of several runs at a time, and wait until the scheduler says that they are gone."""
    project = open_project(arguments)
    runs, errors = for_each_name(requested_runs(arguments, project), lambda name: run_named(project.runs, name))
    yield from end_runs(project, runs, "launcher cancel", SILENCE)
    yield from (Message(run=info.of, wrong=(info,)) for info in errors)


@partial(Command, Message, show=show_message)
def cleanup(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """End the jobs of runs that no launcher drives any more; with RUN or --from-env, of that run."""
    project = open_project(arguments)
    for name in arguments.runs:
        run = run_named(project.runs, name)
        if not (project.runs / check_run_id(run)).is_dir():
            yield Message(f"run {run} has no record: it never began", run)
            continue
        errors = yield from _end_all(_run_actions(project, [run], _BY_CLEANUP))
        if not errors:
            _remove_collected(project, [RunRecord.load(project.runs, run)])
    if arguments.from_env and not arguments.runs:
        yield from _clean_up_github_job(project)
    elif not arguments.runs:
        yield from _clean_up_all(project)


def _clean_up_all(project: Project) -> Iterator[Message]:
    unreadable: list[UnreadableRecord] = []
    orphans, undecided = find_orphans(project.runs, unreadable)
    yield from _end_all(_run_actions(project, [record.id for record in orphans], _BY_CLEANUP, unreadable=unreadable))
    for record in undecided:
        yield Message(left_alone_message(record), record.id)
    count = len(orphans)
    yield Message(f"{count_of(count, 'run was', 'runs were')} left behind" if count else "no run was left behind")
    if unreadable:
        names = ", ".join(lost.id for lost in unreadable)
        yield Message(f"{count_of(len(unreadable), 'record')} cannot be read: {names}")
    _remove_old_trees(project)
    _remove_collected(project, records(project.runs))
    from launcher.model.nodes import end_orphaned_jobs  # runs stage nothing on nodes, so only this command imports it

    yield from _end_all({"stagings": lambda log: end_orphaned_jobs(project.state, SlurmCommands, log)})


def _run_actions(
    project: Project,
    runs: Sequence[str],
    why: str,
    silence: float = END_PATIENCE,
    unreadable: Sequence[UnreadableRecord] = (),
) -> dict[str, EndAction]:
    """The actions that end these runs, and those with an unreadable record, by run id."""
    actions: dict[str, EndAction] = {run: partial(_end_run, project, run, why, silence) for run in runs}
    return {**actions, **{lost.id: partial(_end_unreadable, project, lost) for lost in unreadable}}


def end_runs(project: Project, runs: Sequence[str], why: str, silence: float = END_PATIENCE) -> Iterator[Message]:
    """End several runs at a time. Yields what is logged meanwhile, then the state of each run that has ended."""
    errors = yield from _end_all(_run_actions(project, runs, why, silence))
    for run in {*runs} - {info.of for info in errors}:
        with contextlib.suppress(ConfigError):
            yield Message(run=run, state=RunRecord.load(project.runs, run).fields.state)


def _end_all(actions: Mapping[str, EndAction]) -> Generator[Message, None, list[ErrorInfo]]:
    """Run the actions, AT_ONCE of them at a time; none of them fails or delays the others. Yields what each logs at
    once, and its error at the end; returns the errors. Both are in the order of ``actions``."""
    remaining, messages = SimpleQueue[tuple[str, EndAction]](), SimpleQueue[Message | None]()
    for item in actions.items():
        remaining.put(item)
    failed: dict[str, ErrorInfo] = {}

    def work() -> None:
        try:
            while True:
                name, end = remaining.get_nowait()
                try:
                    end(lambda text, name=name: messages.put(Message(text, name)))  # type: ignore[misc]
                except Exception as fault:  # noqa: BLE001
                    failed[name] = ErrorInfo.from_error(as_error(fault, f"run {name}"), name)
        except Empty:
            pass
        finally:
            messages.put(None)

    workers = min(AT_ONCE, len(actions))
    for _ in range(workers):
        # A daemon: an interrupted command need not wait for a scheduler that gives no answer.
        threading.Thread(target=work, daemon=True, name="end").start()
    while workers:
        if (message := messages.get()) is None:
            workers -= 1
        else:
            yield message
    errors = [failed[name] for name in actions if name in failed]
    yield from (Message(run=info.of, wrong=(info,)) for info in errors)
    return errors


def _remove_old_trees(project: Project, job_name: str | None = None) -> None:
    """Remove the trees of workflows' cancelled runs a day after they ended; with ``job_name``, of one GitHub runner.

    The launcher of such a run had no time for it. Logs stay no longer either: the workflow has those for which there
    was time.
    """
    for record in records(project.runs):
        fields = record.fields
        if fields.results != "workspace" or fields.state != "cancelled" or not fields.settled:
            continue
        if (fields.ended or 0.0) > time.time() - TREES_KEPT:
            continue
        with contextlib.suppress(ConfigError, OSError):
            plan, ours = record.plan, record.directory.stat().st_uid == os.getuid()
            if ours and job_name in (None, plan.job_name):
                finish.remove_directories(record, project.kind(plan.kind), plan)


def _remove_collected(project: Project, candidates: Iterable[RunRecord]) -> None:
    """Remove the own directories of runs by hand that succeeded: all their results are with their records."""
    for record in candidates:
        job, by_hand = record.job, record.fields.results != "workspace"
        if by_hand and record.fields.state == "succeeded" and job is not None and Path(job.output).is_dir():
            with contextlib.suppress(ConfigError, OSError):  # a kind that is not known any more; another user's run
                if record.directory.stat().st_uid == os.getuid():
                    finish.deliver_and_remove(open_run(project, record))


def _clean_up_github_job(project: Project) -> Iterator[Message]:
    """End what earlier steps of this GitHub job began; if they began nothing, what earlier jobs of its runner left."""
    job = github_job(project.environ)
    if runs := _runs_of_github_job(project):
        yield from _end_all(_run_actions(project, runs, _BY_CLEANUP))
        return
    runner = project.fleet.for_runner_name(job.runner_name).runner
    job_name = fill_in(runner.scheduler.job_name, {"runner": job.runner_name})
    unreadable: list[UnreadableRecord] = []
    orphans, undecided = orphans_of_job_name(project.runs, job_name, unreadable)
    for record in orphans:
        text = f"run {record.id} was left behind on {job.runner_name} by another job of GitHub; ending it"
        yield Message(text, record.id)
    actions = _run_actions(project, [record.id for record in orphans], _BY_CLEANUP, unreadable=unreadable)
    if runner.scheduler.kind == "slurm":
        for key in find_named_jobs(job_name, project.environ):
            yield Message(f"run {key.token} has no record here, and its {key} lives; ending it", key.token)
            actions[str(key)] = partial(end_job_without_record, key, SlurmCommands())
    yield from _end_all(actions)
    for record in undecided:
        yield Message(left_alone_message(record), record.id)
    if not (actions or undecided):
        run_id = project.run_id_from_environment()
        yield Message(f"run {run_id} has no record: it never began, and no job of {job.runner_name} is left", run_id)


def _runs_of_github_job(project: Project) -> list[str]:
    """The ids of the runs that this GitHub job began. They come from records of the same job, from the run id that this
    environment gives, and from the one that `launcher ci` left for later steps."""
    left_for_steps = project.environ.get(RUN_ID_VARIABLE, "")
    ours = runs_of_job(project.runs, project.environ)
    ids = [record.id for record in ours if not record.fields.settled] or [record.id for record in ours[-1:]]
    with contextlib.suppress(ConfigError):  # a later step may lack variables of the run id
        ids.append(project.run_id_from_environment())
    with contextlib.suppress(ConfigError):
        ids += [check_run_id(left_for_steps)] if left_for_steps else []
    return [run for run in dict.fromkeys(ids) if (project.runs / run).is_dir()]


def _end_run(project: Project, run_id: str, why: str, silence: float, log: Log) -> None:
    """End the job of a run, even if its record or plan cannot be read. Raises LauncherError."""
    directory = project.runs / check_run_id(run_id)
    job = None
    try:
        record = RunRecord.load(project.runs, run_id)
        job = record.job
        run = open_run(project, record)
    except ConfigError as error:
        if not directory.is_dir():
            raise
        lost = UnreadableRecord(directory, error, job)
        end_unreadable(lost, schedulers_for(project, lost), log)
        return
    try:
        end_run(run, why, log, silence)
    finally:
        record.release()  # or a command that ends thousands of runs would hold as many locks


def _end_unreadable(project: Project, lost: UnreadableRecord, log: Log) -> None:
    """End the job of a run with an unreadable record, unless a launcher drives the run. Raises LauncherError."""
    driven = lost.driven
    if driven is False:
        end_unreadable(lost, schedulers_for(project, lost), log)
    elif driven is None:
        log(left_alone_message(lost.record))
    else:
        log(f"run {lost.id}: {lost.error}; a launcher drives it")


def requested_runs(arguments: argparse.Namespace, project: Project) -> list[str]:
    """The runs that a command is for: those that it names, else the run of this GitHub job. Raises ConfigError."""
    if arguments.runs:
        return list(arguments.runs)
    if arguments.from_env:
        runs = _runs_of_github_job(project)
        return [runs[-1] if runs else project.run_id_from_environment()]
    raise ConfigError("which run?", hint="RUN, or --from-env in a GitHub job; `launcher status` lists them")


@partial(Command, Message, show=show_message)
def collect(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Collect and check the results again, one run after the other."""
    project = open_project(arguments)
    for name in dict.fromkeys(requested_runs(arguments, project)):
        try:
            record = load_named(project.runs, name)
            yield Message(f"run {record.id}: {(state := _collect_run(project, record))}", record.id, state)
        except LauncherError as error:
            yield Message(run=name, wrong=(ErrorInfo.from_error(error, name),))


def _collect_run(project: Project, record: RunRecord) -> str:
    """Collect a run's results, and return its state then. Raises LauncherError."""
    if record.driven_by_another:
        raise record.driven_by_another_error()
    run = open_run(project, record)
    record.acquire()
    try:
        job = record.job_key
        if job is None:
            raise ConfigError("this run has no job, hence no results", where=f"run {record.id}")
        state = run.services.scheduler.poll([job])[job]
        if state.phase is not Phase.TERMINAL and not record.fields.has_ended:
            hint = f"launcher logs -f {record.id}"
            raise JobError(f"the job has not ended: {state.describe()}", where=str(job), hint=hint)
        if state.phase is not Phase.TERMINAL:
            results = finish.collect(run)
            finish.deliver(run)
            results.raise_if_bad(finish.logs_hint(run))
            return record.fields.state
        outcome = finish.finish(run, state)
    finally:
        record.release()
    if outcome.error is not None:
        raise outcome.error
    return outcome.state


def end_leftovers(project: Project, plan: Plan, github: GitHub, log: Log) -> None:
    """End what killed launchers left of earlier jobs of this GitHub runner, with a warning in GitHub for each run."""
    unreadable: list[UnreadableRecord] = []
    orphans, undecided = orphans_of_job_name(project.runs, plan.job_name, unreadable)
    _remove_old_trees(project, plan.job_name)
    for record in undecided:
        github.warning(left_alone_message(record), title="launcher: left behind")
    for record in orphans:
        github.warning(f"run {record.id} was left behind by an earlier job of this runner; ending it")
    ours = [lost for lost in unreadable if lost.job_name == plan.job_name]
    for lost in unreadable:
        suffix = "; ending its job" if lost in ours else ""
        github.warning(f"run {lost.id}: {lost.error}{suffix}", title="launcher: records")
        if lost not in ours:
            log(f"run {lost.id} may be another runner's: `launcher cleanup {lost.id}` ends its job")
    actions = _run_actions(
        project, [record.id for record in orphans], "the next launcher on this runner", unreadable=ours
    )
    for message in _end_all(actions):
        for info in message.wrong:
            github.warning(f"{info.where or info.of}: {info.message}", title="launcher: left behind")
        if message.text:
            log(message.text)
