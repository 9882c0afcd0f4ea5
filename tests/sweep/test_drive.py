"""Driving runs: what the scheduler, the disk and the user do meanwhile. Executions are scripted, jobs are not real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from launcher.errors import Cancelled, ImageError, JobError, LauncherError
from launcher.execute import Outcome
from launcher.slurm.client import JobKey, JobState
from launcher.slurm.states import Phase
from launcher.slurm.watch import Pace
from launcher.sweep.drive import Drive, Stop, until_gone

DONE = JobState(Phase.TERMINAL, "COMPLETED", exit_code=(0, 0))
RUNNING = JobState(Phase.ALIVE, "RUNNING")
FAST = Pace(first=0.01, running=0.02, pending=0.02, tick=0.01)


class Jobs:
    """A scheduler whose jobs end when they are told to; counts its polls and remembers what was cancelled."""

    name = "scripted"

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}
        self.polls: list[int] = []
        self.cancelled: list[str] = []

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.polls.append(len(jobs))
        return {job: self.states.get(job.id, DONE) for job in jobs}

    def find(self, token: str) -> list[JobKey]:
        return []

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        self.cancelled += [job.id for job in jobs]
        self.states.update({job.id: JobState(Phase.TERMINAL, "CANCELLED", exit_code=(0, 15)) for job in jobs})

    def describe(self, job: JobKey) -> dict[str, str]:
        return {}


@dataclass
class Record:
    id: str
    events: list[str] = field(default_factory=list)

    def event(self, kind: str, text: str, **data: Any) -> None:
        self.events.append(text)


class Scripted:
    """What `Drive` needs of an Execution."""

    def __init__(self, number: int, jobs: Jobs, prepare: Callable[[], None] = lambda: None) -> None:
        self.record = Record(str(number))
        self.key = JobKey(str(number))
        self._jobs, self._prepare = jobs, prepare
        self.log = None
        self.full = False
        self.finished: list[JobState] = []

    def prepare(self) -> JobKey:
        self._prepare()
        return self.key

    def saw(self, state: JobState) -> None:
        if self.full:
            raise OSError(28, "No space left on device", "run.json")

    saw_after_cancel = saw

    def finish(self, state: JobState) -> Outcome:
        self.finished.append(state)
        return Outcome(self.record.id, "succeeded")

    def cancel(self) -> bool:
        self._jobs.cancel([self.key])
        return True

    def cancel_unwritten(self, done: threading.Event) -> None:
        done.wait(10)

    def asked_to_end(self, error: LauncherError | None = None) -> None:
        self.record.event("job", f"asked: {error}")

    def cancelled(self, why: Cancelled) -> Outcome:
        return Outcome(self.record.id, "cancelled", error=why)

    def failed(self, error: LauncherError) -> Outcome:
        return Outcome(self.record.id, "failed", error=error)


def drive(executions: Sequence[Scripted], jobs: Jobs, stop: threading.Event | None = None, **options: Any) -> Drive:
    event = stop or threading.Event()
    asked = Stop(event.wait, lambda: Cancelled("asked"))
    return Drive(executions, jobs, asked, pace=FAST, **options)  # type: ignore[arg-type]


def test_outcomes_come_in_the_order_given_and_a_failed_preparation_is_one() -> None:
    jobs = Jobs()

    def fail() -> None:
        raise ImageError("no such image")

    outcomes = drive([Scripted(1, jobs), Scripted(2, jobs, fail), Scripted(3, jobs)], jobs, max_jobs=2).run()
    assert [(o.run, o.state) for o in outcomes] == [("1", "succeeded"), ("2", "failed"), ("3", "succeeded")]
    assert outcomes[1].exit_code == 3


def test_no_more_jobs_than_asked_for_and_one_question_for_all() -> None:
    jobs = Jobs()
    began: list[int] = []
    executions = []
    for i in range(6):
        jobs.states[str(i)] = RUNNING
        executions.append(Scripted(i, jobs, lambda i=i: began.append(i)))  # type: ignore[misc]

    def end_one() -> None:
        if jobs.states:
            assert len(began) <= 2 + (6 - len(jobs.states))
            jobs.states.pop(next(iter(jobs.states)))
            threading.Timer(0.1, end_one).start()

    threading.Timer(0.2, end_one).start()
    outcomes = drive(executions, jobs, max_jobs=2).run()
    assert {o.state for o in outcomes} == {"succeeded"}
    assert max(jobs.polls) == 2


def test_asked_to_stop_it_cancels_every_job_and_begins_no_other() -> None:
    jobs, stop = Jobs(), threading.Event()
    executions = [Scripted(i, jobs) for i in range(3)]
    jobs.states = {"0": RUNNING, "1": RUNNING}
    threading.Timer(0.3, stop.set).start()
    outcomes = drive(executions, jobs, stop, max_jobs=2).run()
    assert jobs.cancelled == ["0", "1"]
    assert {o.state for o in outcomes} == {"cancelled"}


def test_a_job_that_appears_while_stopping_is_cancelled_too() -> None:
    jobs, stop = Jobs(), threading.Event()
    jobs.states = {"0": RUNNING}
    gate = threading.Event()
    executions = [Scripted(0, jobs, lambda: gate.wait(5) and None)]
    threading.Timer(0.1, stop.set).start()
    threading.Timer(0.4, gate.set).start()
    outcomes = drive(executions, jobs, stop).run()
    assert jobs.cancelled == ["0"] and outcomes[0].state == "cancelled"


def test_a_full_disk_under_the_record_lets_go_of_no_job() -> None:
    jobs = Jobs()
    execution = Scripted(0, jobs)
    execution.full = True
    outcomes = drive([execution], jobs).run()
    assert outcomes[0].state == "succeeded"
    assert "the record cannot be written: No space left on device" in execution.record.events


def test_results_that_cannot_be_written_fail_the_run_only() -> None:
    jobs = Jobs()
    bad, good = Scripted(0, jobs), Scripted(1, jobs)

    def full(state: JobState) -> Outcome:
        raise OSError(28, "No space left on device", "summary.json")

    bad.finish = full  # type: ignore[method-assign]
    outcomes = drive([bad, good], jobs).run()
    assert [(o.state, o.exit_code) for o in outcomes] == [("failed", 7), ("succeeded", 0)]


def test_a_job_that_does_not_end_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.sweep.drive.CANCEL_AGAIN", 0.1)
    jobs = Jobs()
    jobs.states = {"0": RUNNING, "1": JobState(Phase.ALIVE, "COMPLETING")}
    asked: list[str] = []

    def cancel(wanted: Sequence[JobKey]) -> None:
        asked.extend(job.id for job in wanted)
        if len(asked) == 1:
            raise JobError("Unable to contact slurm controller")
        jobs.states = {}

    jobs.cancel = cancel  # type: ignore[method-assign]
    states = until_gone(jobs, [JobKey("0"), JobKey("1")], bound=10)
    assert all(state == DONE for state in states.values())
    assert set(asked) == {"0"} and len(asked) >= 2


def test_a_scheduler_that_hangs_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.sweep.drive.CANCEL_BOUND", 0.3)
    jobs, stop, release = Jobs(), threading.Event(), threading.Event()
    jobs.states = {"0": RUNNING}
    jobs.cancel = lambda wanted: release.wait(20) and None  # type: ignore[method-assign]
    execution = Scripted(0, jobs)
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    outcomes = drive([execution], jobs, stop).run()
    release.set()
    assert outcomes[0].state == "cancelled" and time.monotonic() - began < 5
    assert any("no answer within" in event for event in execution.record.events)


def test_waiting_for_the_end_of_cancelled_jobs_is_bounded() -> None:
    jobs = Jobs()
    jobs.states = {"0": RUNNING}
    assert until_gone(jobs, [JobKey("0")], bound=0.3)[JobKey("0")] == RUNNING
    jobs.states = {}
    assert until_gone(jobs, [JobKey("0")], bound=5)[JobKey("0")] == DONE
    assert until_gone(jobs, [], bound=5) == {}
