"""Runs that nobody drives any more: which they are, ending what they hold, and taking over a job begun by hand."""

from __future__ import annotations

import os
import pwd
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.core.errors import Cancelled, ConfigError, JobError
from launcher.image.import_policy import import_comment
from launcher.run.execute import Execution
from launcher.run.loop import until_gone
from launcher.run.record import RunRecord, records
from launcher.slurm.client import JobKey
from launcher.slurm.states import Phase
from launcher.srtctl.submit import jobs_of

END_PATIENCE = 60.0
"""Seconds in which a job that is asked to end has to be seen gone."""

_COMMENT = re.compile(r"^ *Comment=(.*)$", re.MULTILINE)
_LOG = re.compile(r"^ *StdOut=(\S+)", re.MULTILINE)

Say = Callable[[str], None]


def left_behind(runs: Path) -> tuple[list[RunRecord], list[RunRecord]]:
    """Runs that nobody drives and that may hold a job; and those of which only another host could tell."""
    left: list[RunRecord] = []
    elsewhere: list[RunRecord] = []
    for record in records(runs):
        abandoned = record.abandoned
        if abandoned:
            left.append(record)
        elif abandoned is None:
            elsewhere.append(record)
    return left, elsewhere


def left_by_earlier_jobs(runs: Path, job_name: str) -> list[RunRecord]:
    """What earlier GitHub jobs of this runner left behind. A run by hand is its person's, to be resumed or ended."""
    found = []
    for record in left_behind(runs)[0]:
        if record.get("results") == "workspace":
            try:
                if record.plan.job_name == job_name:
                    found.append(record)
            except ConfigError:
                continue
    return found


def end_run(execution: Execution, why: str, say: Say) -> None:
    """End what a run holds: its job by id, or by its token when the id was lost, asked again until it is gone.

    A launcher that drives the run sees its job end and writes the record; without one it is written here. Raises
    JobError when a job is not seen to end in time, SchedulerUnreachable when nobody can say whether there is one.
    """
    record = execution.record
    check_owner(record, os.getuid())
    driven = record.owned_by_another
    if not driven:
        execution.take_over()
    scheduler = execution.effects.scheduler
    jobs = _jobs(execution)
    states = scheduler.poll(jobs) if jobs else {}
    alive = [job for job, state in states.items() if state.phase is not Phase.TERMINAL]
    left: list[JobKey] = []
    if alive:
        scheduler.cancel(alive)
        states = until_gone(scheduler, alive, bound=END_PATIENCE)
        left = [job for job, state in states.items() if state.phase is not Phase.TERMINAL]
        for job, state in states.items():
            say(f"run {record.id}: {job}: {state.describe()}")
            record.event("job", f"{why}: {state.describe()}", job=job.id)
    else:
        say(f"run {record.id}: no job is left")
    if left:
        raise JobError(
            f"still not seen to end after {END_PATIENCE:.0f} s: {', '.join(map(str, left))}",
            where=f"run {record.id}",
            hint=f"scancel {' '.join(job.id for job in left)}",
        )
    if driven:
        return
    if execution.job is not None:
        for state in states.values():
            execution.saw_after_cancel(state)
    elif record.in_doubt:
        record.set_stage("submit", "failed", error=why)
    if not record.ended:
        execution.cancelled(Cancelled(why))


def check_owner(record: RunRecord, uid: int) -> None:
    """Raise ConfigError when the run is another user's, whose job is not ours to end (root may)."""
    theirs = record.directory.stat().st_uid
    if uid not in (0, theirs):
        try:
            name = pwd.getpwuid(theirs).pw_name
        except KeyError:
            name = f"user {theirs}"
        job = record.get("job")
        raise ConfigError(
            f"the run belongs to {name}, and so does its job",
            where=f"run {record.id}",
            hint=f"ask {name} to end it" + (f": scancel {job['id']}" if job else ""),
        )


def _jobs(execution: Execution) -> list[JobKey]:
    """The run's job by its record, else by its token, once no submission of the run goes on any more.

    Before there is one: the job of an import, whose launcher was killed together with its srun.
    """
    record = execution.record
    importing = record.stage("images").get("state") == "running" and execution.job is None
    if importing and any(image.import_on == "compute" for image in execution.plan.images):
        return jobs_of(import_comment(record.id), execution.effects.scheduler)
    if record.in_doubt:
        done = threading.Event()  # its srtctl may work on for minutes: its job is ended as soon as Slurm shows it
        threading.Thread(target=execution.cancel_unwritten, args=(done,), daemon=True, name="cancel by token").start()
        try:
            with record.submitting(execution.effects.sleep):
                record.reload()
                if execution.job is None:
                    return jobs_of(record.id, execution.effects.scheduler)
        finally:
            done.set()
    return [execution.job] if execution.job is not None else []


def adopt(record: RunRecord, job_id: str, execution: Execution, output: Path | None, runs: Path) -> JobKey:
    """Make a job that was started by hand the job of this run, which has none yet.

    Its submit time tells it from others with the same id, and Slurm is asked to add the run's id to its comment.
    ``output`` is the directory that srtctl made for it, by default what the path of its log says. Raises ConfigError
    when another run has the job or its output is not known, JobError when nobody knows the job.
    """
    scheduler = execution.effects.scheduler
    seen = JobKey(job_id)
    state = scheduler.poll([seen])[seen]
    if state.phase is Phase.UNKNOWN or state.submitted is None:
        raise JobError(f"nobody can say how the job stands: {state.describe()}", where=str(seen))
    job = JobKey(job_id, state.submitted, record.id)
    said = scheduler.describe(seen).get("scontrol", "")
    comment = _COMMENT.search(said)
    words = comment[1].strip() if comment else ""
    for other in records(runs):
        its = other.get("job")
        mine = its is not None and its["id"] == job_id and seen_at(its) == int(state.submitted)
        if other.id != record.id and (mine or other.id in words.split()):
            raise ConfigError(f"{job} belongs to run {other.id}", where=str(runs), hint=f"launcher resume {other.id}")
    if "ArrayJobId=" in said or "HetJobId=" in said:
        raise ConfigError("the job is one of several under one id", where=str(job), hint="srtctl submits single jobs")
    place = output or _place(said, job_id)
    if place is None:
        raise ConfigError("where the job writes is not known", where=str(job), hint="--output DIR: outputs/<job id>")
    record.set_stage("submit", "done", adopted=True, by_hand=True)
    record.update(
        state="submitted", job={"id": job_id, "submitted": state.submitted, "output": str(place), "by_hand": True}
    )
    record.event("job", f"took over {job}, started by hand: {state.describe()}", job=job_id)
    if state.phase is Phase.ALIVE and said:
        text = f"{words} {record.id}".strip()
        done = execution.effects.run(["scontrol", "update", f"JobId={job_id}", f"Comment={text}"], timeout=30)
        if not done.ok:
            record.event("warning", f"its comment could not be changed, so that a requeue would hide it: {done}")
    return job


def seen_at(job: Mapping[str, object]) -> int:
    """The submit time of a record's job, in whole seconds, as Slurm keeps it."""
    return int(float(str(job.get("submitted") or 0)))


def _place(said: str, job_id: str) -> Path | None:
    found = _LOG.search(said)
    if found is None:
        return None
    log = Path(found[1].replace("%j", job_id))
    return log.parent.parent if log.parent.name == "logs" else None
