"""Driving runs: what the scheduler, the disk and the user do meanwhile. Executions are scripted, jobs are not real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from launcher.core.errors import Cancelled, ImageError, JobError, LauncherError
from launcher.core.stop import Stop
from launcher.run.execute import Outcome
from launcher.run.loop import Drive, until_gone
from launcher.slurm.client import JobKey, JobState, SchedulerUnreachable
from launcher.slurm.states import Phase
from launcher.slurm.watch import Pace

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
        self.released: list[str] = []
        self.release_fails: list[LauncherError] = []

    def release(self, job: JobKey) -> None:
        self.released.append(job.id)
        if self.release_fails:
            raise self.release_fails.pop()
        self.states[job.id] = DONE

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
        self.held = False
        self.full = False
        self.finished: list[JobState] = []

    def prepare(self) -> JobKey:
        self._prepare()
        return self.key

    def saw(self, state: JobState) -> None:
        if self.full:
            raise OSError(28, "No space left on device", "run.json")

    saw_after_cancel = saw

    @property
    def hold(self) -> Scripted:
        return self

    @property
    def ours(self) -> bool:
        return self.held

    def may_end(self, state: JobState) -> bool:
        return self.held

    def ended(self, error: LauncherError | None = None) -> None:
        self.record.event("job", f"released: {error}")
        self.held = error is not None

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


def test_a_job_that_we_hold_is_released_until_that_went_through() -> None:
    jobs = Jobs()
    held = JobState(Phase.ALIVE, "PENDING", reason="JobHeldUser")
    jobs.states = {"1": held, "2": held}
    jobs.release_fails = [SchedulerUnreachable("away"), SchedulerUnreachable("away")]
    ours, theirs = Scripted(1, jobs), Scripted(2, jobs)
    ours.held = True
    stop = threading.Event()
    timer = threading.Timer(1.5, stop.set)
    timer.start()
    outcomes = drive([ours, theirs], jobs, stop, max_jobs=2).run()
    timer.cancel()
    assert jobs.released == ["1"] * 3, "and the one that is held by its recipe never"
    assert next(e for e in ours.record.events if "released" in e) == "released: away"
    assert [o.state for o in outcomes] == ["succeeded", "cancelled"]


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
    monkeypatch.setattr("launcher.run.loop.CANCEL_AGAIN", 0.1)
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
    monkeypatch.setattr("launcher.run.loop.CANCEL_BOUND", 0.3)
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


def test_a_stop_is_acted_on_while_the_driver_is_busy_with_another_run() -> None:
    """Its logs may be gigabytes, its terminal may not read: the other jobs are asked to end all the same."""
    jobs, stop, busy = Jobs(), threading.Event(), threading.Event()
    jobs.states = {"2": RUNNING}
    cancelled_at: list[float] = []

    class Slow(Scripted):
        def finish(self, state: JobState) -> Outcome:
            stop.set()
            began = time.monotonic()
            while time.monotonic() - began < 5 and not jobs.cancelled:
                time.sleep(0.01)
            cancelled_at.append(time.monotonic() - began)
            busy.set()
            return super().finish(state)

    class Late(Scripted):
        def prepare(self) -> JobKey:
            threading.Timer(0.3, lambda: jobs.states.update({"1": DONE})).start()
            return super().prepare()

    first, second = Slow(1, jobs), Late(2, jobs)
    jobs.states["1"] = RUNNING
    outcomes = drive([first, second], jobs, stop, max_jobs=2).run()
    assert busy.is_set() and cancelled_at[0] < 2.0
    assert jobs.cancelled == ["2"], "and asked only once"
    assert [o.state for o in outcomes] == ["succeeded", "cancelled"]


def test_a_submission_is_looked_after_while_the_driver_is_busy() -> None:
    jobs, stop = Jobs(), threading.Event()
    looked: list[float] = []

    class Submitting(Scripted):
        def prepare(self) -> JobKey:
            jobs.states["1"] = DONE
            time.sleep(2)
            return self.key

        def cancel_unwritten(self, done: threading.Event) -> None:
            looked.append(time.monotonic())
            done.wait(10)

    class Slow(Scripted):
        def finish(self, state: JobState) -> Outcome:
            stop.set()
            began = time.monotonic()
            while time.monotonic() - began < 3 and not looked:
                time.sleep(0.01)
            return super().finish(state)

    jobs.states["1"] = RUNNING
    drive([Slow(1, jobs), Submitting(2, jobs)], jobs, stop, max_jobs=2).run()
    assert len(looked) == 1
    assert jobs.cancelled == ["2"]
