"""Commands that end what runs hold: `cancel` and `cleanup`; and what `ci` finds left of earlier jobs of its runner."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.github import GitHub
from launcher.plan.derive import check_run_id
from launcher.plan.plan import Plan
from launcher.project import Project
from launcher.run.orphans import (
    END_PATIENCE,
    SILENCE,
    end_run,
    end_unreadable,
    find_orphans,
    orphans_of_job_name,
    told_elsewhere,
)
from launcher.run.record import RunRecord, UnreadableRecord
from launcher.services import open_run, schedulers_for
from launcher.slurm.backends import open_scheduler


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a run's job and wait until the scheduler says that it is gone."""
    project = open_project(arguments)
    _end(project, run_id_of(arguments, project), "launcher cancel", SILENCE)
    return 0


def cleanup(arguments: argparse.Namespace) -> int:
    """End the jobs of runs that nobody drives any more; with RUN or --from-env, of that run."""
    project = open_project(arguments)
    if arguments.run or arguments.from_env:
        run_id = run_id_of(arguments, project)
        if not (project.runs / run_id).is_dir():
            print(f"run {run_id} has no record: it never began")
            return 0
        _end(project, run_id, "launcher cleanup")
        return 0
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = find_orphans(project.runs, unreadable)
    wrong = [_trouble(partial(_end, project, record.id, "launcher cleanup"), record.id) for record in left]
    wrong += [_trouble(partial(_end_unreadable, project, one), one.id) for one in unreadable]
    for record in elsewhere:
        print(told_elsewhere(record))
    print(f"{len(left)} runs were left behind" if left else "no run was left behind")
    if unreadable:
        print(f"{len(unreadable)} records cannot be read: {', '.join(one.id for one in unreadable)}")
    from launcher.model.node_job import reap  # no run stages on nodes: only here

    slurm = partial(open_scheduler, "slurm", backend="commands")
    wrong.append(_trouble(partial(reap, project.state, slurm, _say), "stagings"))
    errors = [error for error in wrong if error is not None]
    for other in errors[1:]:
        print(other)
    if errors:
        raise errors[0]
    return 0


def _end(project: Project, run_id: str, why: str, silence: float = END_PATIENCE) -> None:
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
            end_run(run, why, _say, silence)
            return
    end_unreadable(lost, schedulers_for(project, lost), _say)


def _end_unreadable(project: Project, lost: UnreadableRecord) -> None:
    """End the job of a run whose record cannot be read, if nobody drives the run. Raises LauncherError."""
    driven = lost.driven
    if driven is False:
        end_unreadable(lost, schedulers_for(project, lost), _say)
    elif driven is None:
        print(told_elsewhere(lost.record))
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


def run_id_of(arguments: argparse.Namespace, project: Project) -> str:
    """The id of the run that a command is about: named, or that of this GitHub job."""
    if arguments.run:
        return str(arguments.run)
    if arguments.from_env:
        return project.run_id_from_environment()
    raise ConfigError("which run?", hint="RUN, or --from-env in a GitHub job; `launcher status` lists them")


def end_leftovers(project: Project, plan: Plan, github: GitHub) -> None:
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
            _say(f"run {lost.id} may be another runner's: `launcher cleanup {lost.id}` ends its job")
        elif (error := _trouble(partial(_end_unreadable, project, lost), lost.id)) is not None:
            github.warning(f"run {lost.id}: {error}", title="launcher: left behind")


def _say(text: str) -> None:
    print(text, flush=True)  # a person who waits reads along, also through a pipe
