"""Runs without a driver, and runs of a GitHub job: find them, end their jobs, and adopt a job started by hand."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from launcher.benchmark.environment import github_job
from launcher.core.errors import Cancelled, ConfigError, JobError, LauncherError
from launcher.core.process import ProcessIdentity
from launcher.core.rights import user_name
from launcher.core.waiting import wait_with_progress
from launcher.image.enroot import import_comment
from launcher.run import finish
from launcher.run.kind import Run
from launcher.run.listing import UnreadableRecord, records
from launcher.run.record import RecordedJob, RunRecord
from launcher.run.threads import cancel_unrecorded_job
from launcher.slurm.client import (
    JobKey,
    JobState,
    Phase,
    Scheduler,
    SchedulerUnreachable,
    jobs_with_token,
    unknown_state,
)
from launcher.slurm.poller import await_ends

END_PATIENCE = 60.0
"""Seconds in which a job that is asked to end has to be seen gone."""

SILENCE = 3.5
"""Seconds that a person waits for a scheduler that does not answer. The request itself continues."""

FIRST_ANSWER_SECONDS = 1.0
"""Seconds that a scheduler has to report the jobs' states, before they are cancelled without knowing them."""

RELEASE_PATIENCE = 8.0
"""Seconds that another launcher has to release a run that has no job."""

_GITHUB_RUN_ID = re.compile(r"[A-Za-z0-9._-]+-[A-Za-z0-9._-]+-[0-9a-f]{12}")
"""The ids of runs that GitHub jobs begin (`launcher.plan.derive.run_key`)."""

_COMMENT = re.compile(r"^ *Comment=(.*)$", re.MULTILINE)
_LOG = re.compile(r"^ *StdOut=(\S+)", re.MULTILINE)


def find_orphans(
    runs: Path, unreadable: list[UnreadableRecord] | None = None
) -> tuple[list[RunRecord], list[RunRecord]]:
    """Runs without a driver that may have a job; and runs to leave alone, because this host cannot tell whether they
    are driven, or because their driver is stopped.

    Runs with an unreadable record are added to ``unreadable``.
    """
    abandonment = [(record, record.abandoned) for record in records(runs, unreadable)]
    alone = [
        r
        for r, abandoned in abandonment
        if abandoned is None or (abandoned is False and r.stopped_driver_pid is not None)
    ]
    return [r for r, abandoned in abandonment if abandoned], alone


def orphans_of_job_name(
    runs: Path, job_name: str, unreadable: list[UnreadableRecord] | None = None
) -> tuple[list[RunRecord], list[RunRecord]]:
    """As `find_orphans`, for runs of earlier GitHub jobs of this runner; runs by hand are left to their users.

    Unreadable records are added to ``unreadable`` when their plan names this runner, or cannot be read either.
    """
    errors: list[UnreadableRecord] = []

    def ours(record: RunRecord) -> bool:
        if record.fields.results != "workspace":
            return False
        try:
            return record.plan.job_name == job_name
        except ConfigError as error:
            errors.append(UnreadableRecord(record.directory, error, record.job))
            return False

    def may_be_ours(record_error: UnreadableRecord) -> bool:
        name = record_error.job_name
        return name is None or (name == job_name and _GITHUB_RUN_ID.fullmatch(record_error.id) is not None)

    orphans, undecided = find_orphans(runs, errors)
    runs_of_runner = [*filter(ours, orphans)], [*filter(ours, undecided)]
    if unreadable is not None:
        unreadable += filter(may_be_ours, errors)
    return runs_of_runner


RUN_ID_VARIABLE = "LAUNCHER_RUN_ID"
"""What `launcher ci` leaves for later steps of its job, by GITHUB_ENV."""


def github_job_identity(environ: Mapping[str, str]) -> str:
    """The GitHub job that an environment belongs to. Raises ConfigError.

    The run key does not identify it: a launch step that set RUNNER_TYPE or RESULT_FILENAME has another one than its
    clean-up step computes. Both have GITHUB_RUN_ID, GITHUB_RUN_ATTEMPT, GITHUB_JOB and RUNNER_NAME.
    """
    job = github_job(environ)
    return "/".join((job.run_id, job.attempt, environ.get("GITHUB_JOB", ""), job.runner_name))


def runs_of_job(runs: Path, environ: Mapping[str, str]) -> list[RunRecord]:
    """The runs that this GitHub job began, oldest first: by their records, or by their ids and their runner's name.

    Records of earlier versions do not say their GitHub job. Raises ConfigError without RUNNER_NAME.
    """
    job, ours = github_job(environ), github_job_identity(environ)

    def is_ours(record: RunRecord) -> bool:
        if record.fields.github_job:
            return record.fields.github_job == ours
        with contextlib.suppress(ConfigError):
            begins = record.id.startswith(f"{job.run_id}-{job.attempt}-")
            return begins and record.plan.runner_name == job.runner_name
        return False

    return [record for record in records(runs) if is_ours(record)]


def left_alone_message(record: RunRecord) -> str:
    """The message about a run whose driver is stopped, or whose driver only another machine or container can see."""
    if (pid := record.stopped_driver_pid) is not None:
        return (
            f"run {record.id}: its launcher (pid {pid}) is stopped and holds the run: `kill -CONT {pid}` has it go on, "
            f"`launcher cleanup {record.id}` ends its job"
        )
    host = record.fields.owner.host if record.fields.owner else "its own host"
    return (
        f"run {record.id}: only its own machine or container ({host}) can tell whether it is driven; "
        f"`launcher cleanup {record.id}` ends it"
    )


def end_unreadable(lost: UnreadableRecord, schedulers: Sequence[Scheduler], log: Callable[[str], None]) -> None:
    """End the job of a run whose record or plan cannot be read; the job is found by its token.

    The directory stays as it is, for inspection. Raises JobError when a job is not seen to end in time,
    SchedulerUnreachable when no scheduler says whether there is one, ConfigError when it is another user's.
    """
    record = lost.record
    check_owner(record, os.getuid())
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without the lock the job is searched for as well
            stack.enter_context(record.submitting())
        for scheduler in schedulers:
            keys = [record.job_key] if record.job_key is not None else []
            for token in (lost.id, import_comment(lost.id)):
                keys += jobs_with_token(token, scheduler)
            jobs = {job.id: job for job in keys}.values()
            _raise_if_left(lost.id, _end_jobs(lost.id, jobs, scheduler, log, END_PATIENCE)[0])
    log(f"run {lost.id}: {lost.error}; nothing of it runs any more, and {lost.directory} can be removed")


def end_job_without_record(job: JobKey, scheduler: Scheduler, log: Callable[[str], None]) -> None:
    """End a job whose run has no record here. Raises JobError, SchedulerUnreachable."""
    _raise_if_left(job.token, _end_jobs(job.token, [job], scheduler, log, END_PATIENCE)[0])


def _end_jobs(
    run_id: str, jobs: Collection[JobKey], scheduler: Scheduler, log: Callable[[str], None], silence: float
) -> tuple[dict[JobKey, JobState], bool]:
    """End jobs of a run; returns their states, and whether a job had to be ended.

    A scheduler that reports no states is asked to cancel all the same. Raises SchedulerUnreachable when it gives no
    answer for ``silence`` seconds.
    """
    began, named = time.monotonic(), ", ".join(map(str, jobs))
    silent = dict.fromkeys(jobs, unknown_state("no answer"))

    def left() -> float:
        return began + silence - time.monotonic()

    def say(seconds: float) -> None:
        log(f"run {run_id}: {named}: waiting for {scheduler.name} ({time.monotonic() - began:.0f} s)")

    try:
        states = wait_with_progress(lambda: scheduler.poll(list(jobs)), FIRST_ANSWER_SECONDS, say) if jobs else silent
    except TimeoutError:
        say(FIRST_ANSWER_SECONDS)
        states = silent
    if any(state.phase is not Phase.UNKNOWN for state in states.values()):
        silence = END_PATIENCE  # it answers
    alive = [job for job, state in states.items() if state.phase is not Phase.TERMINAL]
    if not alive:
        log(f"run {run_id}: no job is left")
        return states, False
    try:
        wait_with_progress(lambda: scheduler.cancel(alive), left(), say)
        states = wait_with_progress(
            lambda: await_ends(scheduler, alive, time_limit=END_PATIENCE, silence_limit=left()), math.inf, say
        )
    except TimeoutError:
        states = silent
    if all(state.phase is Phase.UNKNOWN for state in states.values()):
        raise SchedulerUnreachable(
            f"{scheduler.name} has said nothing of {named} for {silence:.0f} s; its end was asked for",
            where=f"run {run_id}",
            hint=f"`launcher cancel {run_id}` again when it answers, or scancel {' '.join(job.id for job in alive)}",
        )
    for job, state in states.items():
        log(f"run {run_id}: {job}: {state.describe()}")
    return states, True


def _raise_if_left(run_id: str, states: Mapping[JobKey, JobState]) -> None:
    if alive := [job for job, state in states.items() if state.phase is not Phase.TERMINAL]:
        raise JobError(
            f"still not seen to end after {END_PATIENCE:.0f} s: {', '.join(map(str, alive))}",
            where=f"run {run_id}",
            hint=f"scancel {' '.join(job.id for job in alive)}",
        )


def end_run(run: Run, reason: str, log: Callable[[str], None], silence: float = END_PATIENCE) -> None:
    """End a run's job, found by id, or by its token when the id was lost; the request is repeated until it is gone.

    A launcher that drives the run, maybe elsewhere, is asked to release it and writes the record; without one this
    process writes it. A scheduler that does not answer is given up after ``silence`` seconds. Raises JobError when a
    job is not seen to end in time, SchedulerUnreachable when no scheduler says whether there is one.
    """
    record, scheduler = run.record, run.services.scheduler
    check_owner(record, os.getuid())
    driven = record.driven_by_another
    if (
        not record.fields.has_ended
        and record.abandoned is not True
        and record.fields.owner != ProcessIdentity.current()
    ):
        try:
            record.request_cancel(reason)
        except OSError as error:
            log(f"run {run.id}: its launcher cannot be asked to let it go: {error.strerror}")
    if not driven:
        try:
            record.acquire()
        except OSError as error:  # a full disk is no reason to leave a job behind
            log(f"run {run.id}: its record cannot be written ({error.strerror}); its job is ended all the same")
    elif not record.fields.has_ended and _await_release(run, log):
        return
    jobs = wait_with_progress(
        lambda: _jobs_to_end(run),
        math.inf,
        lambda seconds: log(
            f"run {run.id}: a submission is under way; its job is ended as it appears ({seconds:.0f} s)"
        ),
    )
    states, had_to_end = _end_jobs(run.id, jobs, scheduler, log, silence)
    if had_to_end:
        for job, state in states.items():
            record.event("job", f"{reason}: {state.describe()}", job=job.id)
        _raise_if_left(run.id, states)
    if jobs:
        run.kind.end_leftovers(run)
    if driven:
        return
    try:
        _write_end(run, states, reason)
    except OSError as error:
        raise LauncherError(
            f"nothing of the run is left, but its record cannot be written: {error.strerror}",
            where=f"run {run.id}",
            hint="make room, then `launcher cleanup` again",
        ) from None


def _await_release(run: Run, log: Callable[[str], None]) -> bool:
    """Whether the run's driver ended it before there was a job. Raises JobError when it neither ends it nor submits."""
    record = run.record

    def job_or_end() -> bool:
        while record.job is None and not record.fields.submission_in_doubt and not record.fields.has_ended:
            time.sleep(0.1)
            record.reload()
        return record.fields.has_ended and record.job is None and not record.fields.submission_in_doubt

    try:
        if wait_with_progress(
            job_or_end, RELEASE_PATIENCE, lambda s: log(f"run {run.id}: its launcher is asked to let it go ({s:.0f} s)")
        ):
            log(f"run {run.id}: its launcher let it go; no job is left")
            return True
    except TimeoutError:
        raise JobError(
            f"its launcher has not let go of it within {RELEASE_PATIENCE:.0f} s, and it has no job yet",
            where=f"run {run.id}",
            hint=f"the request stays, and the run ends before it submits: `launcher status {run.id}` tells",
        ) from None
    return False


def _write_end(run: Run, states: Mapping[JobKey, JobState], reason: str) -> None:
    """Record that the run is over, and the states of its jobs. Raises OSError."""
    record = run.record
    if record.job is not None:
        for state in states.values():
            finish.record_state_after_cancel(run, state)
    elif record.fields.submission_in_doubt:
        record.set_step("submit", "failed", error=reason)
    if not record.fields.has_ended:
        finish.end_early(run, Cancelled(reason))
    if record.fields.state == "cancelled":
        finish.deliver_and_remove(run)


def check_owner(record: RunRecord, uid: int) -> None:
    """Raise ConfigError when the run is another user's, whose job is not ours to end (root may)."""
    owner = record.directory.stat().st_uid
    if uid not in (0, owner):
        name = user_name(owner)
        raise ConfigError(
            f"the run belongs to {name}, and so does its job",
            where=f"run {record.id}",
            hint=f"ask {name} to end it" + (f": scancel {record.job.id}" if record.job is not None else ""),
        )


def _jobs_to_end(run: Run) -> Sequence[JobKey]:
    """The run's job by its record, else by its token, once no submission of the run is under way.

    While images are imported: the job of an import, whose launcher was killed together with its srun.
    """
    record, scheduler = run.record, run.services.scheduler
    importing = record.step("images").state == "running" and record.job is None
    if importing and any(image.import_on == "compute" for image in run.plan.images):
        return jobs_with_token(import_comment(run.id), scheduler)
    if record.fields.submission_in_doubt:
        done = threading.Event()  # its srtctl may continue for minutes: cancel its job as soon as Slurm shows it
        threading.Thread(target=cancel_unrecorded_job, args=(run, done), daemon=True, name="cancel by token").start()
        try:
            with record.submitting(run.services.stop.sleep):
                record.reload()
                if record.job is None:
                    return jobs_with_token(run.id, scheduler)
        except OSError:  # a full disk: without the lock the job is searched for as well
            return jobs_with_token(run.id, scheduler)
        finally:
            done.set()
    return [record.job_key] if record.job_key is not None else []


def adopt(run: Run, job_id: str, output: Path | None, runs: Path) -> JobKey:
    """Make a job that was started by hand the job of this run, which has none yet.

    Its submit time tells it from others with the same id, and Slurm is asked to add the run's id to its comment.
    ``output`` is the job's own directory, by default what the path of its log says. Raises ConfigError when another
    run has the job or its output is not known, JobError when nobody knows the job.
    """
    record, scheduler = run.record, run.services.scheduler
    job_asked_about = JobKey(job_id)
    state = scheduler.poll([job_asked_about])[job_asked_about]
    if state.phase is Phase.UNKNOWN or state.submitted is None:
        raise JobError(f"nobody can say how the job stands: {state.describe()}", where=str(job_asked_about))
    job = JobKey(job_id, state.submitted, run.id)
    description = scheduler.describe(job_asked_about).get("scontrol", "")
    comment = _COMMENT.search(description)
    comment_text = comment[1].strip() if comment else ""
    for other in records(runs):
        job_of_other = other.job
        same = (
            job_of_other is not None
            and job_of_other.id == job_id
            and int(job_of_other.submitted or 0) == int(state.submitted)
        )
        if other.id != run.id and (same or other.id in comment_text.split()):
            raise ConfigError(f"{job} belongs to run {other.id}", where=str(runs), hint=f"launcher resume {other.id}")
    if "ArrayJobId=" in description or "HetJobId=" in description:
        raise ConfigError("the job is one of several under one id", where=str(job), hint="srtctl submits single jobs")
    log = _LOG.search(description)
    if output is None and log is not None:
        output = run.kind.output_of_log(Path(log[1].replace("%j", job_id)))
    if output is None:
        raise ConfigError("where the job writes is not known", where=str(job), hint="--output DIR: outputs/<job id>")
    record.set_step("submit", "done", adopted=True, by_hand=True)
    path = run.kind.log_in(output, job_id)
    recorded = RecordedJob(job_id, state.submitted, str(output), str(path), by_hand=True)
    record.update(state="submitted", job=recorded)
    record.event("job", f"took over {job}, started by hand: {state.describe()}", job=job_id)
    if state.phase is Phase.ALIVE and description:
        text = f"{comment_text} {run.id}".strip()
        done = run.services.run(["scontrol", "update", f"JobId={job_id}", f"Comment={text}"], timeout=30)
        if not done.ok:
            record.event("warning", f"its comment could not be changed, so that a requeue would hide it: {done}")
    return job
