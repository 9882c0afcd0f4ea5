"""Commands about runs by their records: `cancel` and `cleanup` end what they hold, `collect` has their results again;
and what `ci` finds left of earlier jobs of its runner."""

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
from launcher.cli.command import Command, Log, Message, for_each_name, show_message, values_from_thread
from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, JobError, LauncherError, Wrong, as_error
from launcher.core.github import GitHub
from launcher.core.lines import count_of
from launcher.plan.plan import Plan, check_run_id
from launcher.project import Project
from launcher.run import finish
from launcher.run.listing import UnreadableRecord, records
from launcher.run.naming import load_named, run_named
from launcher.run.orphans import (
    END_PATIENCE,
    SILENCE,
    VARIABLE,
    end_lost,
    end_run,
    end_unreadable,
    find_orphans,
    orphans_of_job_name,
    runs_of_job,
    told_left_alone,
)
from launcher.run.record import RunRecord
from launcher.runner.file import fill_in
from launcher.services import open_run, schedulers_for
from launcher.slurm.client import Phase
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.other_jobs import jobs_named

TREES_KEPT = 86400.0
"""Seconds for which the tree of a cancelled run is left to be looked at."""


AT_ONCE = 8
"""Runs that are ended at a time."""


@partial(Command, Message, show=show_message)
def cancel(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Cancel runs' jobs, side by side, and wait until the scheduler says that they are gone."""
    project = open_project(arguments)
    runs, wrong = for_each_name(requested_runs(arguments, project), lambda name: run_named(project.runs, name))
    yield from end_runs(project, runs, "launcher cancel", SILENCE)
    yield from (Message(run=one.of, wrong=(one,)) for one in wrong)


@partial(Command, Message, show=show_message)
def cleanup(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """End the jobs of runs that nobody drives any more; with RUN or --from-env, of that run."""
    project = open_project(arguments)
    for name in arguments.runs:
        run = run_named(project.runs, name)
        if not (project.runs / check_run_id(run)).is_dir():
            yield Message(f"run {run} has no record: it never began", run)
            continue
        wrong = yield from _ended(_ends(project, [run], _BY_CLEANUP))
        if not wrong:
            _remove_collected(project, [RunRecord.load(project.runs, run)])
    if arguments.from_env and not arguments.runs:
        yield from _cleaned_of_job(project)
    elif not arguments.runs:
        yield from _cleaned_everywhere(project)


def _cleaned_everywhere(project: Project) -> Iterator[Message]:
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = find_orphans(project.runs, unreadable)
    yield from _ended(_ends(project, [record.id for record in left], _BY_CLEANUP, unreadable=unreadable))
    for record in elsewhere:
        yield Message(told_left_alone(record), record.id)
    yield Message(f"{count_of(len(left), 'run was', 'runs were')} left behind" if left else "no run was left behind")
    if unreadable:
        yield Message(
            f"{count_of(len(unreadable), 'record')} cannot be read: {', '.join(one.id for one in unreadable)}"
        )
    _remove_old_trees(project)
    _remove_collected(project, records(project.runs))
    from launcher.model.nodes import end_orphaned_jobs  # no run stages on nodes: only here

    yield from _ended({"stagings": lambda log: end_orphaned_jobs(project.state, SlurmCommands, log)})


_BY_CLEANUP = "launcher cleanup"

End = Callable[[Log], object]
"""Ends what something holds, and tells about it."""


def _ends(
    project: Project,
    runs: Sequence[str],
    why: str,
    silence: float = END_PATIENCE,
    unreadable: Sequence[UnreadableRecord] = (),
) -> dict[str, End]:
    """What ends these runs, and those whose records cannot be read, by their ids."""
    ends: dict[str, End] = {run: partial(_end, project, run, why, silence) for run in runs}
    return {**ends, **{one.id: partial(_end_unreadable, project, one) for one in unreadable}}


def end_runs(project: Project, runs: Sequence[str], why: str, silence: float = END_PATIENCE) -> Iterator[Message]:
    """End what these runs hold, side by side; what is said of it as it comes, and at the end how they stand."""
    wrong = yield from _ended(_ends(project, runs, why, silence))
    for run in {*runs} - {one.of for one in wrong}:
        with contextlib.suppress(ConfigError):
            yield Message(run=run, state=RunRecord.load(project.runs, run).fields.state)


def _ended(ends: Mapping[str, End]) -> Generator[Message, None, list[Wrong]]:
    """The same of any ends; what went wrong comes last, in order, and is returned too."""
    wrong: list[Wrong] = []

    def work(hand: Callable[[Message], None]) -> None:
        wrong.extend(_side_by_side(ends, lambda text, run: hand(Message(text, run))))

    yield from values_from_thread(work)
    yield from (Message(run=one.of, wrong=(one,)) for one in wrong)
    return wrong


def _side_by_side(ends: Mapping[str, End], told: Callable[[str, str], None]) -> list[Wrong]:
    """Bring ends about, AT_ONCE of them at a time; what went wrong. None of them fails or delays the others."""
    wrong: dict[str, Wrong] = {}
    left = SimpleQueue[tuple[str, End]]()
    for item in ends.items():
        left.put(item)

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                run_id, end = left.get_nowait()
                try:
                    end(lambda text, run=run_id: told(text, run))  # type: ignore[misc]
                except Exception as fault:  # noqa: BLE001
                    wrong[run_id] = Wrong.by(as_error(fault, f"run {run_id}"), run_id)

    threads = [threading.Thread(target=work, daemon=True, name="end") for _ in range(min(AT_ONCE, len(ends)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [wrong[run_id] for run_id in ends if run_id in wrong]


def _remove_old_trees(project: Project, job_name: str | None = None) -> None:
    """Remove the trees of workflows' runs that were cancelled, a day after they ended: their own launchers had no time.

    With ``job_name`` of one GitHub runner. Logs stay no longer: what there was time for, the workflow has.
    """
    for record in records(project.runs):
        fields = record.fields
        if fields.results != "workspace" or fields.state != "cancelled" or not record.fields.settled:
            continue
        if (fields.ended or 0.0) > time.time() - TREES_KEPT:
            continue
        with contextlib.suppress(ConfigError, OSError):
            plan, ours = record.plan, record.directory.stat().st_uid == os.getuid()
            if ours and job_name in (None, plan.job_name):
                finish.remove_directories(record, project.kind(plan.kind), plan)


def _remove_collected(project: Project, ended: Iterable[RunRecord]) -> None:
    """Remove what runs by hand made for themselves, where all that it was for is with their records."""
    for record in ended:
        job, by_hand = record.job, record.fields.results != "workspace"
        if by_hand and record.fields.state == "succeeded" and job is not None and Path(job.output).is_dir():
            with contextlib.suppress(ConfigError, OSError):  # of a kind that is not known any more; another user's
                if record.directory.stat().st_uid == os.getuid():
                    finish.clear_left(open_run(project, record))


def _cleaned_of_job(project: Project) -> Iterator[Message]:
    """End what an earlier step of this GitHub job began; where there is no such run, whatever this runner left."""
    job = github_job(project.environ)
    if found := _runs_of_job(project):
        yield from _ended(_ends(project, found, _BY_CLEANUP))
        return
    runner = project.fleet.for_runner_name(job.runner_name).runner
    job_name = fill_in(runner.scheduler.job_name, {"runner": job.runner_name})
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = orphans_of_job_name(project.runs, job_name, unreadable)
    for record in left:
        text = f"run {record.id} was left behind on {job.runner_name} by another job of GitHub; ending it"
        yield Message(text, record.id)
    ends = _ends(project, [record.id for record in left], _BY_CLEANUP, unreadable=unreadable)
    if runner.scheduler.kind == "slurm":
        for key in jobs_named(job_name, project.environ):
            yield Message(f"run {key.token} has no record here, and its {key} lives; ending it", key.token)
            ends[str(key)] = partial(end_lost, key, SlurmCommands())
    yield from _ended(ends)
    for record in elsewhere:
        yield Message(told_left_alone(record), record.id)
    if not (ends or elsewhere):
        run_id = project.run_id_from_environment()
        yield Message(f"run {run_id} has no record: it never began, and no job of {job.runner_name} is left", run_id)


def _runs_of_job(project: Project) -> list[str]:
    """The ids of the runs that this GitHub job began: as it left them for later steps, by the environment that both
    have, and by the key that this environment gives, as far as it has what that takes."""
    named = project.environ.get(VARIABLE, "")
    ours = runs_of_job(project.runs, project.environ)
    found = [record.id for record in ours if not record.fields.settled] or [record.id for record in ours[-1:]]
    with contextlib.suppress(ConfigError):
        found.append(project.run_id_from_environment())
    with contextlib.suppress(ConfigError):
        found += [check_run_id(named)] if named else []
    return [run for run in dict.fromkeys(found) if (project.runs / run).is_dir()]


def _end(project: Project, run_id: str, why: str, silence: float, log: Log) -> None:
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
                end_run(run, why, log, silence)
            finally:
                record.let_go()  # whoever ends thousands must not hold as many locks
            return
    end_unreadable(lost, schedulers_for(project, lost), log)


def _end_unreadable(project: Project, lost: UnreadableRecord, log: Log) -> None:
    """End the job of a run whose record cannot be read, if nobody drives the run. Raises LauncherError."""
    driven = lost.driven
    if driven is False:
        end_unreadable(lost, schedulers_for(project, lost), log)
    elif driven is None:
        log(told_left_alone(lost.record))
    else:
        log(f"run {lost.id}: {lost.error}; a launcher drives it")


def requested_runs(arguments: argparse.Namespace, project: Project) -> list[str]:
    """The runs that a command is about: those that are named, else that of this GitHub job."""
    if arguments.runs:
        return list(arguments.runs)
    if arguments.from_env:
        found = _runs_of_job(project)
        return [found[-1] if found else project.run_id_from_environment()]
    raise ConfigError("which run?", hint="RUN, or --from-env in a GitHub job; `launcher status` lists them")


@partial(Command, Message, show=show_message)
def collect(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Collect and check results again, of one run after the other."""
    project = open_project(arguments)
    for name in dict.fromkeys(requested_runs(arguments, project)):
        try:
            record = load_named(project.runs, name)
            yield Message(f"run {record.id}: {(state := _collected(project, record))}", record.id, state)
        except LauncherError as error:
            yield Message(run=name, wrong=(Wrong.by(error, name),))


def _collected(project: Project, record: RunRecord) -> str:
    """Collect a run's results; its state then. Raises LauncherError."""
    if record.owned_by_another:
        raise record.driven_error()
    run = open_run(project, record)
    record.take()
    try:
        job = record.job_key
        if job is None:
            raise ConfigError("this run has no job, hence no results", where=f"run {record.id}")
        state = run.services.scheduler.poll([job])[job]
        if state.phase is not Phase.TERMINAL and not record.fields.has_ended:
            hint = f"launcher logs -f {record.id}"
            raise JobError(f"the job has not ended: {state.describe()}", where=str(job), hint=hint)
        if state.phase is not Phase.TERMINAL:
            found = finish.collect(run)
            finish.deliver(run)
            found.raise_if_bad(finish.logs_hint(run))
            return record.fields.state
        outcome = finish.finish(run, state)
    finally:
        record.let_go()
    if outcome.error is not None:
        raise outcome.error
    return outcome.state


def end_leftovers(project: Project, plan: Plan, github: GitHub, log: Log) -> None:
    """End what a launcher that was killed left of an earlier job of this GitHub runner, and say so."""
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = orphans_of_job_name(project.runs, plan.job_name, unreadable)
    _remove_old_trees(project, plan.job_name)
    for record in elsewhere:
        github.warning(told_left_alone(record), title="launcher: left behind")
    for record in left:
        github.warning(f"run {record.id} was left behind by an earlier job of this runner; ending it")
    ours = [lost for lost in unreadable if lost.job_name == plan.job_name]
    for lost in unreadable:
        ending = "; ending its job" if lost in ours else ""
        github.warning(f"run {lost.id}: {lost.error}{ending}", title="launcher: records")
        if not ending:
            log(f"run {lost.id} may be another runner's: `launcher cleanup {lost.id}` ends its job")
    ends = _ends(project, [record.id for record in left], "the next launcher on this runner", unreadable=ours)
    for one in _side_by_side(ends, lambda text, run: log(text)):
        github.warning(f"{one.where or one.of}: {one.message}", title="launcher: left behind")
