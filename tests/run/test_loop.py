"""The loop: what the scheduler, the disk and the user do meanwhile. Runs are on disk, their jobs are not real."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import Cancelled, ImageError, JobError, LauncherError
from launcher.core.stop import Stop
from launcher.run import finish, loop, prepare, threads
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.loop import FixedRuns, run_all, run_feed
from launcher.run.prepare import Gate, JobOrError
from launcher.run.record import RecordedJob
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler, SchedulerUnreachable
from launcher.slurm.poller import Pace, await_ends
from tests.run.runs import DONE, HELD, RUNNING, ScriptedScheduler, a_run, events, plan_on, services

FAST = Pace(first=0.01, running=0.02, pending=0.02, tick=0.01)


class Kind:
    """A kind whose jobs' directories are whole, and which leaves nothing and collects nothing."""

    name = "scripted"

    def complete_directory(self, run: Run) -> None:
        pass

    def end_state_in_log(self, job: JobKey, log: Path) -> None:
        return None

    def evidence(self, run: Run) -> dict[str, str]:
        return {}


class Runs:
    """Runs whose preparation is a function, on a scheduler with one job for each: the job's id is the run's number."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs = ScriptedScheduler()
        self.finished: dict[str, JobState] = {}
        self._root = root
        self._prepare: dict[str, Callable[[], None]] = {}
        self._held: set[str] = set()
        monkeypatch.setattr(loop, "prepare_in_thread", self._prepared)
        monkeypatch.setattr(finish, "finish", self._finish)

    def add(self, number: int, prepare: Callable[[], None] = lambda: None, *, held: bool = False) -> Run:
        run_id = f"r{number}"
        plan = plan_on("local", self._root, run_key=run_id)
        run = a_run(self._root, plan, services(self.jobs), Kind())  # type: ignore[arg-type]
        self._prepare[run_id] = prepare
        if held:
            self._held.add(run_id)
        return run

    def _prepared(self, run: Run, done: Any, gate: Any) -> None:
        answer: JobOrError
        try:
            self._prepare[run.id]()
            output = self._root / run.id
            job = RecordedJob(run.id[1:], 1.0, str(output), str(output / "log"), held=run.id in self._held)
            run.record.update(state="submitted", job=job)
            answer = JobKey(job.id, job.submitted, run.id)
        except LauncherError as error:
            answer = error
        done.put((run, answer))

    def _finish(self, run: Run, state: JobState) -> Outcome:
        self.finished[run.id] = state
        return Outcome(run.id, "succeeded")

    def drive(self, runs: Sequence[Run], stop: threading.Event | None = None, max_jobs: int = 1) -> list[Outcome]:
        requested = Stop((stop or threading.Event()).wait, lambda: Cancelled("asked"))
        return run_several(runs, self.jobs, requested, max_jobs)


class SeveralRuns(FixedRuns):
    """Several runs at once, as in a sweep. With ``fail_fast`` the first failure ends all."""

    def __init__(self, runs: Sequence[Run], max_jobs: int, fail_fast: bool) -> None:
        super().__init__(runs)
        self._max_jobs = max_jobs
        self._fail_fast = fail_fast
        self._any_failed = False

    def next_run(self, under_way: int) -> Run | None:
        return super().next_run(0) if under_way < self._max_jobs else None

    def failed(self, run: Run) -> None:
        self._any_failed = True

    def cancel_all_reason(self) -> Cancelled | None:
        return Cancelled("another run failed") if self._any_failed and self._fail_fast else None


def run_several(
    runs: Sequence[Run], scheduler: Scheduler, stop: Stop, max_jobs: int, *, fail_fast: bool = False
) -> list[Outcome]:
    feed = SeveralRuns(runs, max_jobs, fail_fast)
    run_feed(feed, scheduler, stop, FAST)
    return [feed.outcomes[run.id] for run in runs]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, monkeypatch)


def test_a_job_that_we_hold_is_released_until_that_went_through(runs: Runs) -> None:
    jobs = runs.jobs
    jobs.states = {"1": HELD, "2": HELD}
    fails = [SchedulerUnreachable("away"), SchedulerUnreachable("away"), RuntimeError("a fault of ours")]
    release = jobs.release

    def failing(job: JobKey) -> None:
        if fails:
            jobs.released.append(job.id)
            raise fails.pop(0)
        release(job)

    jobs.release = failing  # type: ignore[method-assign]
    ours, theirs = runs.add(1, held=True), runs.add(2)
    stop = threading.Event()

    def stop_once_ours_has_ended() -> None:
        while "r1" not in runs.finished:
            time.sleep(0.01)
        time.sleep(0.3)
        stop.set()

    threading.Thread(target=stop_once_ours_has_ended, daemon=True).start()
    outcomes = runs.drive([ours, theirs], stop, max_jobs=2)
    assert jobs.released == ["1"] * 4, "and the one that is held by its recipe never"
    assert next(e for e in events(ours.record) if "held" in e) == "job 1 is still held: away"
    assert [o.state for o in outcomes] == ["succeeded", "cancelled"]


def test_outcomes_come_in_the_order_given_and_a_failed_preparation_is_one(runs: Runs) -> None:
    def fail() -> None:
        raise ImageError("no such image")

    outcomes = runs.drive([runs.add(1), runs.add(2, fail), runs.add(3)], max_jobs=2)
    assert [(o.run, o.state) for o in outcomes] == [("r1", "succeeded"), ("r2", "failed"), ("r3", "succeeded")]
    assert outcomes[1].exit_code == 3


def test_no_more_jobs_than_asked_for_and_one_question_for_all(runs: Runs) -> None:
    jobs, began = runs.jobs, []
    several = []
    for i in range(6):
        jobs.states[str(i)] = RUNNING
        several.append(runs.add(i, lambda i=i: began.append(i)))  # type: ignore[misc]

    alive: list[int] = []

    def end_one() -> None:
        """End a job whenever two are asked about together, or the last alone: when that is, the machine decides."""
        while jobs.states:
            asked = jobs.polls[-1:]
            if asked == [2] or (asked and len(jobs.states) == 1):
                alive.append(len(began) - (6 - len(jobs.states)))
                jobs.states.pop(next(iter(jobs.states)))
                jobs.polls.append(0)
            time.sleep(0.005)

    threading.Thread(target=end_one, daemon=True).start()
    outcomes = runs.drive(several, max_jobs=2)
    assert {o.state for o in outcomes} == {"succeeded"}
    assert max(jobs.polls) == 2 and max(alive) <= 2 and len(alive) == 6


def test_asked_to_stop_it_cancels_every_job_and_begins_no_other(runs: Runs) -> None:
    jobs, stop = runs.jobs, threading.Event()
    jobs.states = {"0": RUNNING, "1": RUNNING}
    several = [runs.add(0), runs.add(1, lambda: threading.Timer(0.5, stop.set).start()), runs.add(2)]
    outcomes = runs.drive(several, stop, max_jobs=2)
    assert sorted(jobs.cancelled) == ["0", "1"]
    assert {o.state for o in outcomes} == {"cancelled"}
    assert several[2].record.job is None


def test_a_job_that_appears_while_stopping_is_cancelled_too(runs: Runs) -> None:
    jobs, stop, gate = runs.jobs, threading.Event(), threading.Event()
    jobs.states = {"0": RUNNING}
    run = runs.add(0, lambda: gate.wait(60) and None)
    threading.Timer(0.1, stop.set).start()
    threading.Timer(0.4, gate.set).start()
    outcomes = runs.drive([run], stop)
    assert jobs.cancelled[0] == "0" and outcomes[0].state == "cancelled"


def test_the_job_of_a_run_that_the_loop_has_not_taken_yet_is_ended_too(runs: Runs) -> None:
    """Another process submitted it; a sweep takes it over."""
    jobs, stop = runs.jobs, threading.Event()
    jobs.states = {"1": RUNNING}
    waiting = runs.add(1)
    waiting.record.update(state="submitted", job=RecordedJob("1", 1.0, "/nowhere", "/nowhere/log"))
    stop.set()
    (outcome,) = runs.drive([waiting], stop)
    assert jobs.cancelled[:1] == ["1"] and outcome.state == "cancelled"


def test_a_gate_that_is_shut_lets_nobody_through_although_it_was_open() -> None:
    gate = Gate()
    gate.open()
    gate.wait(Stop.never())
    gate.shut(Cancelled("its job was not submitted"))
    with pytest.raises(Cancelled, match="not submitted"):
        gate.wait(Stop.never())


def test_a_full_disk_under_the_record_lets_go_of_no_job(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.add(0)

    def full(run: Run, state: JobState) -> None:
        raise OSError(28, "No space left on device", "run.json")

    monkeypatch.setattr(finish, "record_state", full)
    outcomes = runs.drive([run])
    assert outcomes[0].state == "succeeded"
    assert "the record cannot be written: No space left on device" in events(run.record)


def test_results_that_cannot_be_written_fail_the_run_only(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = runs.add(0), runs.add(1)
    whole = finish.finish

    def full(run: Run, state: JobState) -> Outcome:
        if run is bad:
            raise OSError(28, "No space left on device", "summary.json")
        return whole(run, state)

    monkeypatch.setattr(finish, "finish", full)
    outcomes = runs.drive([bad, good])
    assert [(o.state, o.exit_code) for o in outcomes] == [("failed", 7), ("succeeded", 0)]


def test_a_fault_of_ours_in_one_preparation_fails_that_run(tmp_path: Path) -> None:
    jobs = ScriptedScheduler()

    class Faulty(Kind):
        def is_complete(self, plan: object) -> bool:
            raise UnicodeEncodeError("ascii", "…", 0, 1, "ordinal not in range(128)")

    run = a_run(tmp_path, None, services(jobs), Faulty())  # type: ignore[arg-type]
    outcomes = run_all([run], jobs, Stop.never(), FAST)
    assert outcomes[0].state == "failed" and "unexpected UnicodeEncodeError" in str(outcomes[0].error)


def test_a_job_that_does_not_end_is_cancelled_again() -> None:
    jobs = ScriptedScheduler()
    jobs.states = {"0": RUNNING, "1": JobState(Phase.ALIVE, "COMPLETING")}
    asked: list[str] = []

    def cancel(wanted: Sequence[JobKey]) -> None:
        asked.extend(job.id for job in wanted)
        if len(asked) == 1:
            raise JobError("Unable to contact slurm controller")
        jobs.states = {}

    jobs.cancel = cancel  # type: ignore[method-assign]
    states = await_ends(jobs, [JobKey("0"), JobKey("1")], time_limit=60, repeat_after=0.1)
    assert all(state == DONE for state in states.values())
    assert set(asked) == {"0"} and len(asked) >= 2


@pytest.mark.parametrize("when", ["the job runs", "the run is prepared"])
def test_a_scheduler_that_hangs_does_not_hold_up_the_stop(
    when: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CANCEL_BOUND", 0.3)
    jobs, stop, release = runs.jobs, threading.Event(), threading.Event()
    jobs.states = {"0": RUNNING}
    jobs.cancel = lambda wanted: release.wait(600) and None  # type: ignore[method-assign]
    run = runs.add(0, (lambda: None) if when == "the job runs" else lambda: stop.set() or time.sleep(0.2))
    if when == "the job runs":
        ask = jobs.poll
        jobs.poll = lambda wanted: stop.set() or ask(wanted)  # type: ignore[method-assign,func-returns-value]
    outcomes = runs.drive([run], stop)
    assert not release.is_set(), "scancel still hangs"
    release.set()
    assert outcomes[0].state == "cancelled"
    assert any("failed: no answer" in event for event in events(run.record))


def test_a_stop_is_acted_on_while_the_loop_is_busy_with_another_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logs may be gigabytes, its terminal may not read: the other jobs are asked to end all the same."""
    jobs, stop = runs.jobs, threading.Event()
    jobs.states = {"1": RUNNING, "2": RUNNING}
    cancelled: list[bool] = []

    def slow(run: Run, state: JobState) -> Outcome:
        stop.set()
        deadline = time.monotonic() + 30
        while not jobs.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        cancelled.append(bool(jobs.cancelled))
        return Outcome(run.id, "succeeded")

    monkeypatch.setattr(finish, "finish", slow)
    first = runs.add(1)
    second = runs.add(2, lambda: threading.Timer(0.3, lambda: jobs.states.update({"1": DONE})).start())
    outcomes = runs.drive([first, second], stop, max_jobs=2)
    assert cancelled == [True]
    assert jobs.cancelled == ["2"], "and asked only once"
    assert [o.state for o in outcomes] == ["succeeded", "cancelled"]


def test_a_submission_is_looked_after_while_the_loop_is_busy(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, stop = runs.jobs, threading.Event()
    jobs.states = {"1": RUNNING}
    looked, submitting = threading.Event(), threading.Event()

    def cancel_unrecorded_job(run: Run, done: threading.Event) -> None:
        looked.set()
        done.wait(30)

    def slow(run: Run, state: JobState) -> Outcome:
        stop.set()
        looked.wait(30)
        return Outcome(run.id, "succeeded")

    def submit() -> None:
        submitting.set()
        jobs.states["1"] = DONE
        looked.wait(30)

    monkeypatch.setattr(threads, "cancel_unrecorded_job", cancel_unrecorded_job)
    monkeypatch.setattr(finish, "finish", slow)
    runs.drive([runs.add(1), runs.add(2, submit)], stop, max_jobs=2)
    assert looked.is_set() and submitting.is_set()
    assert jobs.cancelled[0] == "2"


@pytest.mark.parametrize("why", ["fail fast", "a signal"])
def test_no_job_is_released_once_we_give_up(runs: Runs, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """One job has ended, and the answer that says so also says that another is held."""
    jobs, stop, poll = runs.jobs, threading.Event(), runs.jobs.poll
    jobs.states = {"1": RUNNING, "2": HELD}

    def first_ends(asked: Sequence[JobKey]) -> dict[JobKey, JobState]:
        if len(asked) == 2:
            jobs.states["1"] = DONE if why == "a signal" else JobState(Phase.TERMINAL, "FAILED", exit_code=(1, 0))
        return poll(asked)

    note = finish.record_state

    def signalled(run: Run, state: JobState) -> None:
        note(run, state)
        if state == DONE:
            stop.set()

    monkeypatch.setattr(jobs, "poll", first_ends)
    monkeypatch.setattr(finish, "record_state", signalled)
    requested = Stop(stop.wait, lambda: Cancelled("asked"))
    run_several([runs.add(1), runs.add(2, held=True)], jobs, requested, 2, fail_fast=True)
    time.sleep(0.1)
    assert jobs.released == [] and jobs.cancelled == ["2"]


@pytest.mark.parametrize("end", ["finish", "end_early"])
def test_an_end_that_takes_long_holds_up_no_other_run(runs: Runs, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Results that are missing are waited for, logs are packed: meanwhile a job is released, others begin and end."""
    jobs, others = runs.jobs, threading.Event()
    jobs.states = {"2": HELD}
    whole = getattr(finish, end)

    def slow(run: Run, how: Any) -> Outcome:
        if run.id == "r1":
            assert others.wait(60)
            return Outcome(run.id, "failed", error=ImageError("bad"))
        return whole(run, how)  # type: ignore[no-any-return]

    def fails() -> None:
        if end == "end_early":
            raise ImageError("no such image")

    monkeypatch.setattr(finish, end, slow)
    several = [runs.add(1, fails), runs.add(2, held=True), runs.add(3), runs.add(4)]
    threading.Thread(
        target=lambda: _once(lambda: {"r2", "r3", "r4"} <= runs.finished.keys(), others), daemon=True
    ).start()
    outcomes = runs.drive(several, max_jobs=1)
    assert others.is_set() and jobs.released == ["2"]
    assert [o.state for o in outcomes] == ["failed", "succeeded", "succeeded", "succeeded"]


def _once(is_so: Callable[[], bool], event: threading.Event) -> None:
    while not is_so():
        time.sleep(0.01)
    event.set()


def test_a_job_that_failed_ends_the_others_before_its_logs_are_packed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = runs.jobs
    jobs.states = {"1": JobState(Phase.TERMINAL, "FAILED", exit_code=(1, 0)), "2": RUNNING}

    def slow(run: Run, state: JobState) -> Outcome:
        deadline = time.monotonic() + 60
        while not jobs.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        return Outcome(run.id, "failed", error=ImageError("bad"))

    monkeypatch.setattr(finish, "finish", slow)
    stop = Stop(threading.Event().wait, lambda: Cancelled("asked"))
    outcomes = run_several([runs.add(1), runs.add(2)], jobs, stop, 2, fail_fast=True)
    assert [o.state for o in outcomes] == ["failed", "cancelled"] and jobs.cancelled == ["2"]


def test_asked_to_stop_it_does_not_wait_for_an_end_that_takes_long(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CANCEL_BOUND", 0.3)
    stop, hangs = threading.Event(), threading.Event()

    def slow(run: Run, state: JobState) -> Outcome:
        stop.set()
        hangs.wait(60)
        return Outcome(run.id, "succeeded")

    monkeypatch.setattr(finish, "finish", slow)
    run = runs.add(1)
    (outcome,) = runs.drive([run], stop)
    assert not hangs.is_set() and outcome.state == "cancelled"
    hangs.set()
    assert not run.record.fields.has_ended, "what is on disk can be collected again"
    assert any("launcher collect r1" in event for event in events(run.record))


@pytest.mark.parametrize("viewer", ["is slow", "has gone"])
def test_a_log_that_nobody_can_read_so_fast_delays_nothing(runs: Runs, tmp_path: Path, viewer: str) -> None:
    """The end of the job is taken, and a stop is obeyed, while the viewer still reads its first lines."""
    jobs, hangs = runs.jobs, threading.Event()
    jobs.states = {"1": RUNNING}
    shown: list[int] = []

    def show(run: str, lines: Sequence[str]) -> None:
        shown.append(len(lines))
        jobs.states["1"] = DONE
        if viewer == "is slow":
            hangs.wait(60)
            return
        raise RuntimeError("a fault of the viewer")

    def write_log() -> None:
        (tmp_path / "r1").mkdir()
        (tmp_path / "r1" / "log").write_text("a line of a log\n" * 100_000)

    never = Stop(threading.Event().wait, lambda: Cancelled("asked"))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(loop, "LAST_LINES_SECONDS", 0.1)
    try:
        (outcome,) = run_all([runs.add(1, write_log)], jobs, never, FAST, show)
    finally:
        monkey.undo()
        hangs.set()
    assert outcome.state == "succeeded" and shown


def test_all_lines_of_a_log_are_shown_in_order_and_the_last_ones_at_its_end(runs: Runs, tmp_path: Path) -> None:
    jobs = runs.jobs
    jobs.states = {"1": RUNNING}
    shown: list[str] = []

    def show(run: str, lines: Sequence[str]) -> None:
        shown.extend(lines)
        if jobs.states:
            with (tmp_path / "r1" / "log").open("a") as file:
                file.write("written last\nhalf a line")
            jobs.states.clear()

    def write_log() -> None:
        (tmp_path / "r1").mkdir()
        (tmp_path / "r1" / "log").write_text("".join(f"line {n}\n" for n in range(300_000)))

    never = Stop(threading.Event().wait, lambda: Cancelled("asked"))
    run_all([runs.add(1, write_log)], jobs, never, FAST, show)
    assert shown == [*(f"line {n}" for n in range(300_000)), "written last", "half a line"]


def test_a_question_that_hangs_does_not_delay_the_release_of_a_new_job(runs: Runs) -> None:
    jobs, poll, begun, hangs = runs.jobs, runs.jobs.poll, threading.Event(), threading.Event()
    jobs.states = {"1": RUNNING, "2": HELD}

    def hanging(asked: Sequence[JobKey]) -> dict[JobKey, JobState]:
        begun.set()
        if len(asked) == 1:
            hangs.wait(60)
        return poll(asked)

    def submitted_meanwhile() -> None:
        begun.wait(60)

    def release(job: JobKey) -> None:
        jobs.released.append(job.id)
        hangs.set()
        jobs.states.clear()

    jobs.poll = hanging  # type: ignore[method-assign]
    jobs.release = release  # type: ignore[method-assign]
    began = time.monotonic()
    runs.drive([runs.add(1), runs.add(2, submitted_meanwhile, held=True)], max_jobs=2)
    assert jobs.released == ["2"] and time.monotonic() - began < 30


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device", "run.json"), ValueError("a fault of ours")])
def test_an_end_that_cannot_be_written_ends_no_other_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    runs.jobs.states = {"1": RUNNING}

    def refused() -> None:
        raise ImageError("no such image")

    def unwritten(run: Run, error: LauncherError) -> Outcome:
        runs.jobs.states.clear()
        raise fault

    monkeypatch.setattr(finish, "end_early", unwritten)
    first, second = runs.drive([runs.add(1), runs.add(2, refused)], max_jobs=2)
    assert (first.state, second.state, str(second.error)) == ("succeeded", "failed", str(ImageError("no such image")))
    assert runs.jobs.cancelled == []


def test_an_event_that_was_cut_ends_no_other_run(runs: Runs) -> None:
    runs.jobs.states = {"1": RUNNING}
    second = runs.add(2)

    def cut() -> None:
        with (second.record.directory / "events.jsonl").open("ab") as file:
            file.write('{"kind": "note", "text": "…'.encode()[:-1])
        runs.jobs.states.clear()
        raise ImageError("no such image")

    runs._prepare[second.id] = cut
    first = runs.add(1)
    outcomes = runs.drive([first, second], max_jobs=2)
    assert [outcome.state for outcome in outcomes] == ["succeeded", "failed"] and runs.jobs.cancelled == []
    assert any("no such image" in event for event in events(second.record))


def test_a_fault_after_the_submission_ends_the_job(runs: Runs) -> None:
    runs.jobs.states = {"1": RUNNING}
    run = runs.add(1)

    def fails_late() -> None:
        run.record.update(job=RecordedJob("1", 1.0, "/x", "/x/l"))
        raise LauncherError("No space left on device", where="submit")

    runs._prepare[run.id] = fails_late
    (outcome,) = runs.drive([run])
    assert outcome.state == "failed" and runs.jobs.cancelled == ["1"]


def test_a_program_that_was_ended_for_a_signal_leaves_the_signal_as_the_reason(runs: Runs) -> None:
    event = threading.Event()
    stop = Stop(event.wait, lambda: Cancelled("SIGTERM", exit_code=143))
    run = runs.add(1)
    run.services = replace(run.services, stop=stop)

    def ended() -> None:
        event.set()
        raise Cancelled("stopped while process 7 ran")

    runs._prepare[run.id] = ended
    (outcome,) = run_all([run], runs.jobs, stop, FAST)
    assert (outcome.state, outcome.exit_code) == ("cancelled", 143)


def test_a_failure_that_ends_all_ends_what_a_preparation_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, jobs = tmp_path / "pid", ScriptedScheduler()

    def importing(run: Run, gate: Gate) -> JobKey:
        if run is failing:
            while not began.exists():
                time.sleep(0.02)
            raise ImageError("not to be had")
        run.services.run(["sh", "-c", f"echo $$ > {began}; exec sleep 600"], timeout=600)
        raise AssertionError

    monkeypatch.setattr(prepare, "prepare", importing)
    one, failing = (
        a_run(tmp_path, plan_on("local", tmp_path, run_key=name), services(jobs), Kind())  # type: ignore[arg-type]
        for name in ("r0", "r1")
    )
    outcomes = run_several([one, failing], jobs, Stop.never(), 2, fail_fast=True)
    assert [outcome.state for outcome in outcomes] == ["cancelled", "failed"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)
