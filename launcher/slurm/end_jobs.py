"""Seeing jobs gone after their end was asked for, and finding the jobs of one submission."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from launcher.core.errors import LauncherError
from launcher.slurm.client import JobKey, JobState, Scheduler, unknown
from launcher.slurm.poller import JobPoller, Pace
from launcher.slurm.states import Phase

AGAIN = 2.5
"""Seconds after which a job that does not seem to end is cancelled once more."""

_PACE = Pace(first=0.3, running=1.0, pending=1.0)
_LOOK = 0.05


def end_jobs(
    scheduler: Scheduler, jobs: Sequence[JobKey], *, bound: float, again: float = AGAIN
) -> dict[JobKey, JobState]:
    """Wait until every job has ended, ``bound`` seconds at most; the last states, in which a job may still be alive.

    The caller has asked for the end of these jobs once. For those that are not ending that request is made again every
    ``again`` seconds. A scheduler that hangs does not stretch the bound: what it has not answered is unknown.
    """
    poller = JobPoller(scheduler, pace=_PACE)
    for job in jobs:
        poller.watch(job)
    states = {job: unknown("no answer in time") for job in jobs}
    began = time.monotonic()
    cancel_due, cancelling = began + again, threading.Thread()
    while poller.watched and time.monotonic() < began + bound:
        if (answer := poller.poll()) is not None:
            states.update(answer.states)
        left = [job for job, state in states.items() if not _is_ending(state)]
        if left and time.monotonic() >= cancel_due and not cancelling.is_alive():
            cancelling = threading.Thread(target=_cancel, args=(scheduler, left), daemon=True, name="cancel again")
            cancelling.start()
            cancel_due = time.monotonic() + again
        time.sleep(_LOOK)
    return states


def _cancel(scheduler: Scheduler, jobs: Sequence[JobKey]) -> None:
    with contextlib.suppress(LauncherError):
        scheduler.cancel(jobs)


def _is_ending(state: JobState) -> bool:
    return state.phase is Phase.TERMINAL or state.word == "COMPLETING"


def jobs_with_token(token: str, scheduler: Scheduler) -> list[JobKey]:
    """The jobs that carry a token and were not refused. Raises SchedulerUnreachable.

    slurmctld 22.05 keeps a record of a job that sbatch was told it cannot have ("Requested node configuration is not
    available"): FAILED, without a node, under the comment of the submission. Such a record is not counted as a job.
    """
    found = scheduler.find(token)
    states = scheduler.poll(found) if found else {}
    return [job for job in found if not _was_refused(states.get(job))]


def _was_refused(state: JobState | None) -> bool:
    return state is not None and state.phase is Phase.TERMINAL and not state.succeeded and not state.nodes
