"""Commands about runs that exist: from the record alone, in any process."""

from __future__ import annotations

import argparse
import json
import sys
import time

from launcher.cli.common import existing_run, session
from launcher.cli.running import drive_records, effects_for, make_effects
from launcher.errors import Cancelled, ConfigError, JobError
from launcher.execute import Execution, log_of
from launcher.record import RunRecord, records
from launcher.session import Session
from launcher.slurm.client import JobKey
from launcher.slurm.logs import LogFollower
from launcher.slurm.states import Phase
from launcher.sweep.drive import until_gone

CANCEL_PATIENCE = 60.0
"""Seconds that `cancel` waits to see the job gone."""


def status(arguments: argparse.Namespace) -> int:
    """List all runs, or show one."""
    of = session(arguments)
    if arguments.run:
        record = RunRecord.load(of.runs, arguments.run)
        fields = json.loads((record.directory / "run.json").read_text())
        if arguments.json:
            print(json.dumps(fields, indent=2))
        else:
            from launcher.cli.render import show_run

            show_run(record)
        return 0
    found = records(of.runs)
    if arguments.json:
        print(json.dumps([json.loads((r.directory / "run.json").read_text()) for r in found], indent=2))
        return 0
    from launcher.cli.render import show_runs

    show_runs(found, of.runs)
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Print the job's log; with --follow until the run has ended."""
    of = session(arguments)
    record = RunRecord.load(of.runs, arguments.run)
    path = log_of(record)
    if path is None and not arguments.follow:
        raise ConfigError("this run has no job yet, hence no log", where=f"run {record.id}")
    follower = None
    while True:
        record = RunRecord.load(of.runs, arguments.run)
        path = path or log_of(record)
        if follower is None and path is not None:
            follower = LogFollower(path)
        ended = record.ended
        while follower is not None and (lines := follower.read_new()):
            sys.stdout.writelines(f"{line}\n" for line in lines)
            sys.stdout.flush()
        if ended or not arguments.follow:
            if follower is not None:
                sys.stdout.writelines(f"{line}\n" for line in follower.flush())
            return 0
        time.sleep(0.5)


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a run's job and wait until the scheduler says that it is gone."""
    of = session(arguments)
    record = RunRecord.load(of.runs, existing_run(arguments, of))
    return _end(of, record, "launcher cancel")


def cleanup(arguments: argparse.Namespace) -> int:
    """End the jobs of runs that nobody drives any more; with RUN or --from-env, of that run."""
    of = session(arguments)
    if arguments.run or arguments.from_env:
        run_id = existing_run(arguments, of)
        if not (of.runs / run_id / "run.json").is_file():
            print(f"run {run_id} has no record: it never began")
            return 0
        return _end(of, RunRecord.load(of.runs, run_id), "launcher cleanup")
    code = 0
    left = [r for r in records(of.runs) if not r.ended and not r.owned_by_another]
    for record in left:
        code = _end(of, record, "launcher cleanup") or code
    print(f"{len(left)} runs were left behind" if left else "no run was left behind")
    return code


def collect(arguments: argparse.Namespace) -> int:
    """Collect and check a run's results again."""
    of = session(arguments)
    record = RunRecord.load(of.runs, existing_run(arguments, of))
    if record.owned_by_another:
        raise ConfigError("another launcher drives this run, and will collect", where=f"run {record.id}")
    execution = _execution(of, record)
    execution.take_over()
    job = execution.job
    if job is None:
        raise ConfigError("this run has no job, hence no results", where=f"run {record.id}")
    state = execution.effects.scheduler.poll([job])[job]
    if state.phase is not Phase.TERMINAL and not record.ended:
        raise JobError(f"the job has not ended: {state.describe()}", where=str(job), hint="launcher logs -f RUN")
    if state.phase is Phase.TERMINAL:
        outcome = execution.finish(state)
        print(f"run {record.id}: {outcome.state}")
        if outcome.error is not None:
            raise outcome.error
        return 0
    collected = execution.collect()
    collected.raise_if_bad()
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Continue a run where it stopped, in this process."""
    of = session(arguments, look=True)
    record = RunRecord.load(of.runs, arguments.run)
    if record.get("state") == "succeeded":
        print(f"run {record.id} has succeeded already")
        return 0
    if record.owned_by_another:
        raise ConfigError("another launcher drives this run", where=f"run {record.id}", hint="launcher logs -f RUN")
    outcomes = drive_records(of, [(record, record.plan)])
    return outcomes[0].exit_code


def _end(of: Session, record: RunRecord, why: str) -> int:
    """End what a run holds: its job by id, or by its token when the id was lost. 0 when nothing is left.

    A launcher that drives the run sees its job end and writes the record; without one it is written here.
    """
    driven = record.owned_by_another
    execution = _execution(of, record)
    scheduler = execution.effects.scheduler
    jobs = [execution.job] if execution.job else []
    if not jobs and record.stage("submit").get("state") == "running":
        jobs = scheduler.find(record.id)
    alive = [job for job, state in scheduler.poll(jobs).items() if state.phase is not Phase.TERMINAL] if jobs else []
    left: list[JobKey] = []
    if alive:
        scheduler.cancel(alive)
        states = until_gone(scheduler, alive, bound=CANCEL_PATIENCE)
        left = [job for job, state in states.items() if state.phase is not Phase.TERMINAL]
        for job, state in states.items():
            print(f"run {record.id}: {job}: {state.describe()}")
            record.event("job", f"{why}: {state.describe()}", job=job.id)
    else:
        print(f"run {record.id}: no job is left")
    if left:
        raise JobError(
            f"still not seen to end after {CANCEL_PATIENCE:.0f} s: {', '.join(map(str, left))}",
            where=f"run {record.id}",
            hint=f"scancel {' '.join(job.id for job in left)}",
        )
    if not record.ended and not driven:
        execution.take_over()
        execution.cancelled(Cancelled(why))
    return 0


def _execution(of: Session, record: RunRecord) -> Execution:
    plan = record.plan
    effects = make_effects(of, plan)
    return Execution(record, plan, effects_for(effects, record), of.replan)
