"""Finding out which job a submission made, for every kind of job. Nothing here submits.

A submission that failed or timed out may have reached the scheduler: sbatch can lose the answer after the controller
took the job. So the scheduler is queried for a job with our token before a submission counts as failed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from launcher.core.errors import JobsExist, SubmissionUnknown
from launcher.core.waiting import retry_until
from launcher.slurm.client import JobKey, Phase, Scheduler, SchedulerUnreachable, jobs_with_token

LOST_ANSWER_PAUSES = (5.0, 5.0)
"""Seconds before each further query about a submission whose answer was lost: slurmctld may still be working on the
request when its client has ended."""

LOST_ANSWER_MESSAGE = "the submission failed; Slurm is asked whether it has a job all the same"
"""The message while that is queried."""

LOST_ANSWER = re.compile(r"timed out|[Uu]nable to contact|connect failure|Zero Bytes|Unexpected message")
"""Messages of sbatch after which slurmctld may have taken the job nevertheless."""

HINTS = {
    r"[Ii]nvalid (partition|account|qos)|Invalid account or account/partition": "correct partition and account in the "
    "runner file (sacctmgr show assoc user=$USER)",
    r"QOSMaxSubmit|AssocMaxSubmit|AssocGrpSubmit": "too many jobs are queued already: wait, or cancel some",
    r"Socket timed out|Unable to contact slurm controller": "slurmctld did not answer; it has no job of ours, so that "
    "trying again is safe",
}
"""Messages by which sbatch refuses a job, as patterns, and what to do about each."""

_ID = re.compile(
    r"^(?:Submitted batch job )?(\d+)(?:;([A-Za-z0-9_.-]+)| on cluster ([A-Za-z0-9_.-]+)|;\S+| on cluster \S+)?\s*$",
    re.MULTILINE,
)


def parse_job_ids(stdout: str) -> list[str]:
    """The job ids that sbatch printed, with or without ``--parsable``, beside a site's banner."""
    return [match[1] for match in _ID.finditer(stdout)]


def parse_cluster(stdout: str) -> str:
    """The cluster that sbatch named beside the one id that it printed, "" when it named none."""
    return next((match[2] or match[3] or "" for match in _ID.finditer(stdout)), "")


def refusal_hint(words: str, hints: Mapping[str, str] = HINTS) -> str | None:
    """What to do about a refusal; the first pattern that matches counts."""
    return next((hint for pattern, hint in hints.items() if re.search(pattern, words)), None)


def find_new_jobs(
    token: str,
    earlier: frozenset[str],
    scheduler: Scheduler,
    pauses: Sequence[float] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, JobKey]:
    """The jobs that have the token and are not among the ``earlier`` ones, by their ids.

    The scheduler is queried again after each of the ``pauses`` until there is one. Raises SchedulerUnreachable when the
    last query had no answer.
    """

    def query() -> dict[str, JobKey] | SchedulerUnreachable:
        try:
            return {job.id: job for job in jobs_with_token(token, scheduler) if job.id not in earlier}
        except SchedulerUnreachable as error:
            return error

    answer = retry_until(lambda jobs: isinstance(jobs, dict) and bool(jobs), query, pauses, sleep=sleep)
    if isinstance(answer, SchedulerUnreachable):
        raise answer
    return answer


def _find_named_job(job_id: str, token: str, scheduler: Scheduler) -> dict[str, JobKey]:
    """The job that sbatch named, with its submit time; nothing where this host's scheduler does not know it.

    One question is enough where nobody else can have submitted under the token.
    """
    state = scheduler.poll([key := JobKey(job_id, None, token)])[key]
    return {} if state.phase is Phase.UNKNOWN else {job_id: replace(key, submitted=state.submitted)}


def find_job(
    printed: Sequence[str],
    problem: str,
    token: str,
    earlier: frozenset[str] | None,
    scheduler: Scheduler,
    pauses: Sequence[float],
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, JobKey | None] | None:
    """The id of the job that a submission made, and the job as the scheduler knows it; None when there is no job.

    ``printed`` are the ids that the submitting program printed. ``problem`` says why it counts as failed: then its ids
    and the jobs that carry the token count together, because a printed job exists whether or not the scheduler shows
    comments yet. ``problem`` is "" after a success, with one printed id. ``earlier`` are ids of jobs that carried the
    token before, None where there can be none.

    Raises SubmissionUnknown when the scheduler cannot be asked after a failure, and JobsExist when there are several
    jobs, or when another launcher submitted one with our token first.
    """
    try:
        if earlier is None and not problem:
            jobs = _find_named_job(printed[0], token, scheduler)
        else:
            jobs = find_new_jobs(token, earlier or frozenset(), scheduler, pauses if problem else (), sleep)
    except SchedulerUnreachable as error:
        if problem:
            raise SubmissionUnknown(
                f"whether a job was submitted is unknown.\n{problem}\nThe scheduler: {error.message}",
                where=f"token {token}",
                hint="not submitted again; resume the run when the scheduler answers: it looks for this token first",
            ) from None
        jobs = {}
    ids = list(dict.fromkeys([*(i for i in printed if i.isdecimal()), *(jobs if problem else ())]))
    if len(ids) > 1:
        message = f"one job was asked for, and there are {', '.join(ids)}.\n{problem}"
        raise JobsExist(message, job_ids=tuple(ids), hint="cancel them")
    # Of several jobs with the token every launcher goes on with the same one, the earliest. Ids grow, except where they
    # start again after MaxJobId: there the submit time decides.
    first = min(jobs, key=lambda job: (jobs[job].submitted or 0.0, int(job)), default=None)
    if ids and ids[0] in jobs and first != ids[0]:
        raise JobsExist(
            f"another launcher submitted job {first} under this run's id just before",
            job_ids=tuple(ids),
            hint="that one goes on; choose another --run-id for this one",
        )
    return (ids[0], jobs.get(ids[0])) if ids else None
