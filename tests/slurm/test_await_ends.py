"""Seeing jobs gone; finding the jobs of a submission."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from launcher.core.errors import JobError
from launcher.run.threads import CANCEL_BOUND
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler, SchedulerUnreachable, jobs_with_token
from launcher.slurm.poller import CANCEL_INTERVAL, await_ends

RUNNING = JobState(Phase.ALIVE, "RUNNING")
COMPLETING = JobState(Phase.ALIVE, "COMPLETING")
CANCELLED = JobState(Phase.TERMINAL, "CANCELLED", (0, 15), nodes="node01")


class Jobs(Scheduler):
    """A scheduler by hand: how each job stands, and who was asked to end."""

    def __init__(self, **states: JobState) -> None:
        self.states = {JobKey(name.removeprefix("job")): state for name, state in states.items()}
        self.cancelled: list[str] = []
        self.hang = threading.Event()
        self.hang.set()

    @property
    def name(self) -> str:
        return "by hand"

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.hang.wait(60)
        return {job: self.states[job] for job in jobs}

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        self.hang.wait(60)
        self.cancelled.extend(job.id for job in jobs)
        if len(self.cancelled) == 1:
            raise JobError("Unable to contact slurm controller")
        self.states = dict.fromkeys(self.states, CANCELLED)

    def find(self, token: str) -> list[JobKey]:
        return list(self.states)

    def release(self, job: JobKey) -> None:
        raise NotImplementedError

    def describe(self, job: JobKey) -> dict[str, str]:
        raise NotImplementedError


def test_a_job_that_does_not_end_is_cancelled_again() -> None:
    jobs = Jobs(job0=RUNNING, job1=COMPLETING)
    states = await_ends(jobs, list(jobs.states), time_limit=60, repeat_after=0.1)
    assert list(states) == [JobKey("0"), JobKey("1")] and set(states.values()) == {CANCELLED}
    assert set(jobs.cancelled) == {"0"} and len(jobs.cancelled) >= 2, "not what is ending, and not only once"


def test_a_cancel_request_that_is_lost_while_runs_end_is_repeated_in_time() -> None:
    assert CANCEL_INTERVAL < CANCEL_BOUND


def test_waiting_for_the_end_of_cancelled_jobs_is_bounded() -> None:
    jobs = Jobs(job0=RUNNING)
    assert await_ends(jobs, [JobKey("0")], time_limit=2) == {JobKey("0"): RUNNING}
    jobs.states = {JobKey("0"): CANCELLED}
    assert await_ends(jobs, [JobKey("0")], time_limit=60) == {JobKey("0"): CANCELLED}
    assert await_ends(jobs, [], time_limit=60) == {}


def test_a_scheduler_that_hangs_does_not_stretch_the_bound() -> None:
    jobs = Jobs(job0=RUNNING)
    jobs.hang.clear()
    began = time.monotonic()
    (state,) = await_ends(jobs, [JobKey("0")], time_limit=0.5, repeat_after=0.1).values()
    assert time.monotonic() - began < 30
    assert state.phase is Phase.UNKNOWN and state.reason == "no answer in time"
    jobs.hang.set()


def test_a_record_of_a_refused_submission_is_no_job() -> None:
    refused = JobState(Phase.TERMINAL, "FAILED", (1, 0))
    good = JobState(Phase.TERMINAL, "COMPLETED", (0, 0))
    jobs = Jobs(job0=refused, job1=RUNNING, job2=CANCELLED, job3=good)
    assert [job.id for job in jobs_with_token("t", jobs)] == ["1", "2", "3"]
    jobs.states = {}
    assert jobs_with_token("t", jobs) == []


def test_who_cannot_be_asked_says_so() -> None:
    jobs = Jobs()

    def find(token: str) -> list[JobKey]:
        raise SchedulerUnreachable("nobody could say")

    jobs.find = find  # type: ignore[method-assign]
    with pytest.raises(SchedulerUnreachable):
        jobs_with_token("t", jobs)
