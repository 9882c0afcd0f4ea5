"""Commands about runs that exist: from the record alone, in any process."""

from __future__ import annotations

import argparse
import json
import sys
import time

from launcher.cli.common import existing_run, open_project
from launcher.cli.render import show_run, show_runs
from launcher.cli.running import drive_records
from launcher.core.errors import ConfigError, JobError, LauncherError
from launcher.core.stop import stop_on_signals
from launcher.model.node_job import reap
from launcher.run import finish
from launcher.run.orphans import end_run, find_orphans, told_elsewhere
from launcher.run.record import RunRecord, records
from launcher.services import open_run
from launcher.slurm.backends import open_scheduler
from launcher.slurm.client import Phase
from launcher.slurm.logs import LogFollower


def status(arguments: argparse.Namespace) -> int:
    """List all runs, or show one."""
    runs = open_project(arguments).runs
    found = [RunRecord.load(runs, arguments.run)] if arguments.run else records(runs)
    if arguments.json:
        values = [json.loads((record.directory / "run.json").read_text()) for record in found]
        print(json.dumps(values[0] if arguments.run else values, indent=2))
    elif arguments.run:
        show_run(found[0])
    else:
        show_runs(found, runs)
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Print the job's log; with --follow until the run has ended."""
    runs, follower = open_project(arguments).runs, None
    while True:
        record = RunRecord.load(runs, arguments.run)
        if follower is None and (path := record.log_path) is not None:
            follower = LogFollower(path)
        if follower is None and not arguments.follow:
            raise ConfigError("this run has no job yet, hence no log", where=f"run {record.id}")
        while follower is not None and (lines := follower.read_new()):
            sys.stdout.writelines(f"{line}\n" for line in lines)
            sys.stdout.flush()
        if record.ended or not arguments.follow:
            if follower is not None:
                sys.stdout.writelines(f"{line}\n" for line in follower.flush())
            return 0
        time.sleep(0.5)


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a run's job and wait until the scheduler says that it is gone."""
    project = open_project(arguments)
    record = RunRecord.load(project.runs, existing_run(arguments, project))
    end_run(open_run(project, record), "launcher cancel", print)
    return 0


def cleanup(arguments: argparse.Namespace) -> int:
    """End the jobs of runs that nobody drives any more; with RUN or --from-env, of that run."""
    project = open_project(arguments)
    if arguments.run or arguments.from_env:
        run_id = existing_run(arguments, project)
        if not (project.runs / run_id / "run.json").is_file():
            print(f"run {run_id} has no record: it never began")
            return 0
        end_run(open_run(project, RunRecord.load(project.runs, run_id)), "launcher cleanup", print)
        return 0
    left, elsewhere = find_orphans(project.runs)
    wrong: list[LauncherError] = []
    for record in left:
        try:
            end_run(open_run(project, record), "launcher cleanup", print)
        except LauncherError as error:
            wrong.append(error)
        except OSError as error:
            wrong.append(LauncherError(str(error.strerror), where=f"run {record.id}"))
    for record in elsewhere:
        print(told_elsewhere(record))
    print(f"{len(left)} runs were left behind" if left else "no run was left behind")
    try:
        reap(project.state, lambda: open_scheduler("slurm", backend="commands"), print)
    except LauncherError as error:
        wrong.append(error)
    for other in wrong[1:]:
        print(other)
    if wrong:
        raise wrong[0]
    return 0


def collect(arguments: argparse.Namespace) -> int:
    """Collect and check a run's results again."""
    project = open_project(arguments)
    record = RunRecord.load(project.runs, existing_run(arguments, project))
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
    if state.phase is Phase.TERMINAL:
        outcome = finish.finish(run, state)
        print(f"run {record.id}: {outcome.state}")
        if outcome.error is not None:
            raise outcome.error
        return 0
    collected = finish.collect(run)
    finish.deliver(run)
    collected.raise_if_bad()
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Continue a run where it stopped, in this process."""
    project = open_project(arguments, look=True)
    record = RunRecord.load(project.runs, arguments.run)
    if record.fields.state == "succeeded":
        print(f"run {record.id} has succeeded already")
        return 0
    if record.owned_by_another:
        raise ConfigError("another launcher drives this run", where=f"run {record.id}", hint="launcher logs -f RUN")
    with stop_on_signals() as stop:
        outcomes = drive_records(project, [(record, record.plan)], stop)
    return outcomes[0].exit_code
