"""The watcher, on a clock of its own; the stop, with real signals."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from launcher.core.errors import JobError
from launcher.core.stop import StopEvent
from launcher.slurm.client import JobKey, JobState, unknown
from launcher.slurm.states import Phase
from launcher.slurm.watch import Pace, Watcher
from tests.slurm.fakes import Clock

JOB = JobKey("1", 100.0, "t")
OTHER = JobKey("2", 100.0, "u")
RUNNING = JobState(Phase.ALIVE, "RUNNING", nodes="node01")
PENDING = JobState(Phase.ALIVE, "PENDING", reason="Priority")
HELD = JobState(Phase.ALIVE, "PENDING", reason="JobHeldUser")
DONE = JobState(Phase.TERMINAL, "COMPLETED", (0, 0))
FAILED = JobState(Phase.TERMINAL, "FAILED", (1, 0))
SILENT = unknown("squeue: exit 1: Unable to contact slurm controller")

EXACT = Pace(jitter=0.0)


class Script:
    """A scheduler that answers by a function of job and time, and counts its rounds."""

    name = "slurm"

    def __init__(self, clock: Callable[[], float], answer: Callable[[JobKey, float], JobState]) -> None:
        self.clock = clock
        self.answer = answer
        self.times: list[float] = []
        self.asked: list[int] = []

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.times.append(self.clock())
        self.asked.append(len(jobs))
        return {job: self.answer(job, self.clock() - 1000.0) for job in jobs}

    def find(self, token: str) -> list[JobKey]:
        raise NotImplementedError

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        raise NotImplementedError

    def describe(self, job: JobKey) -> dict[str, str]:
        raise NotImplementedError


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_to_the_end(clock: Clock) -> None:
    script = Script(clock, lambda job, t: PENDING if t < 100 else RUNNING if t < 300 else DONE)
    changes: list[tuple[str, str, float]] = []
    watcher = Watcher(
        script,
        clock=clock,
        wait=clock.wait,
        pace=EXACT,
        on_change=lambda job, old, new: changes.append((old.word if old else "-", new.word, clock() - 1000)),
    )
    assert watcher.watch([JOB]) == {JOB: DONE}
    assert [change[:2] for change in changes] == [("-", "PENDING"), ("PENDING", "RUNNING"), ("RUNNING", "COMPLETED")]
    assert 300 <= changes[-1][2] <= 331


def test_the_pauses_grow_and_fall_back(clock: Clock) -> None:
    script = Script(clock, lambda job, t: PENDING if t < 1000 else RUNNING if t < 1500 else DONE)
    Watcher(script, clock=clock, wait=clock.wait, pace=EXACT).watch([JOB])
    pauses = [round(b - a, 2) for a, b in itertools.pairwise(script.times)]
    assert pauses[:4] == [2.0, 3.0, 4.5, 6.75]
    assert max(pauses) == 60
    change = next(n for n, at in enumerate(script.times) if at >= 2000.0)
    assert pauses[change : change + 3] == [2.0, 3.0, 4.5]
    assert max(pauses[change:]) == 30
    assert len(script.times) < 60


def test_jitter_keeps_launchers_apart(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING if t < 3000 else DONE)
    Watcher(script, clock=clock, wait=clock.wait).watch([JOB])
    pauses = [b - a for a, b in itertools.pairwise(script.times)][10:]
    assert all(24 <= pause <= 36.001 for pause in pauses)
    assert len(set(pauses)) > 10


def test_one_question_a_round_for_all(clock: Clock) -> None:
    jobs = [JobKey(str(n), 100.0, f"t{n}") for n in range(1, 51)]
    script = Script(clock, lambda job, t: DONE if t > 60 * int(job.id) else RUNNING)
    states = Watcher(script, clock=clock, wait=clock.wait).watch(jobs)
    assert all(states[job] == DONE for job in jobs)
    assert script.asked[0] == 50
    assert script.asked[-1] < 3
    per_minute = len(script.times) / ((clock() - 1000) / 60)
    assert per_minute < 2.5, "50 jobs, each ending in another minute"


def test_five_minutes_of_silence_change_nothing(clock: Clock) -> None:
    script = Script(clock, lambda job, t: SILENT if 100 < t < 400 else RUNNING if t < 600 else DONE)
    seen: list[str] = []
    watcher = Watcher(
        script,
        clock=clock,
        wait=clock.wait,
        on_change=lambda job, old, new: seen.append(new.word or new.phase.value),
    )
    assert watcher.watch([JOB])[JOB].succeeded
    assert seen == ["RUNNING", "unknown", "RUNNING", "COMPLETED"]


def test_a_silence_without_end_is_given_up_and_said(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING if t < 100 else SILENT)
    watcher = Watcher(script, clock=clock, wait=clock.wait, pace=EXACT)
    with pytest.raises(JobError) as caught:
        watcher.watch([JOB])
    last_answer = max(at for at in script.times if at < 1100)
    assert 1800 <= clock() - last_answer < 1870
    message = str(caught.value)
    for part in ("job 1", "30 min", "last known as RUNNING", "Unable to contact", "scancel 1"):
        assert part in message
    assert JOB in watcher.given_up
    assert watcher.states[JOB] == SILENT


def test_faults_in_a_third_of_the_rounds_do_not_wear_patience_out(clock: Clock) -> None:
    rng = random.Random(1)
    script = Script(clock, lambda job, t: SILENT if rng.random() < 0.3 else RUNNING if t < 36000 else FAILED)
    assert Watcher(script, clock=clock, wait=clock.wait).watch([JOB]) == {JOB: FAILED}
    assert clock() - 1000 < 36300


def test_faults_do_not_quicken_the_questions(clock: Clock) -> None:
    rounds = iter(range(10**6))
    script = Script(clock, lambda job, t: SILENT if next(rounds) % 2 else RUNNING if t < 7200 else DONE)
    Watcher(script, clock=clock, wait=clock.wait, pace=EXACT).watch([JOB])
    assert len(script.times) < 7200 / 30 + 15


def test_a_hopeless_job_is_given_up_after_its_patience(clock: Clock) -> None:
    script = Script(clock, lambda job, t: HELD)
    with pytest.raises(JobError, match="JobHeldUser"):
        Watcher(script, clock=clock, wait=clock.wait).watch([JOB])
    assert 600 <= clock() - 1000 < 680


def test_a_job_that_is_released_in_time_goes_on(clock: Clock) -> None:
    script = Script(clock, lambda job, t: HELD if t % 700 < 500 and t < 3000 else PENDING if t < 4000 else DONE)
    assert Watcher(script, clock=clock, wait=clock.wait).watch([JOB])[JOB].succeeded


def test_one_job_given_up_does_not_end_the_watch_over_the_others(clock: Clock) -> None:
    script = Script(clock, lambda job, t: HELD if job == JOB else RUNNING if t < 5000 else DONE)
    watcher = Watcher(script, clock=clock, wait=clock.wait)
    with pytest.raises(JobError):
        watcher.watch([JOB, OTHER])
    assert watcher.states[OTHER].succeeded
    assert list(watcher.given_up) == [JOB]


@pytest.mark.parametrize("appears", [0, 150, 500])
def test_the_jobs_own_marker_is_the_last_resort(clock: Clock, appears: float) -> None:
    def marker(job: JobKey) -> JobState | None:
        return FAILED if clock() >= 1000 + appears else None

    script = Script(clock, lambda job, t: RUNNING if t < 100 else SILENT)
    watcher = Watcher(script, clock=clock, wait=clock.wait, pace=EXACT, marker=marker)
    assert watcher.watch([JOB]) == {JOB: FAILED}
    last_answer = max(at for at in script.times if at < 1100)
    soonest = max(last_answer + 120, 1000 + appears)
    assert soonest <= clock() <= soonest + 32, "not while the silence is young, and with the next question after"


def test_a_marker_has_slurm_asked_at_once_and_then_often(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING if t < 1003 else DONE)
    marked: list[float] = []

    def marker(job: JobKey) -> JobState | None:
        if clock() < 2000:
            return None
        marked.append(clock())
        return FAILED

    watcher = Watcher(script, clock=clock, wait=clock.wait, pace=EXACT, marker=marker)
    assert watcher.watch([JOB])[JOB].succeeded, "Slurm's word counts"
    assert len(marked) == 1 and clock() <= 2003 + 2
    assert next(at for at in script.times if at >= 2000) <= 2001


def test_our_own_hold_is_no_reason_to_give_a_job_up_before_silence_would_be(clock: Clock) -> None:
    script = Script(clock, lambda job, t: HELD)
    watcher = Watcher(script, clock=clock, wait=clock.wait, held=lambda job: job == JOB)
    with pytest.raises(JobError, match="will not start by waiting"):
        watcher.watch([JOB, OTHER])
    minutes = [re.search(r"for (\d+) min", watcher.given_up[job].message) for job in (JOB, OTHER)]
    ours, other = (int(found[1]) for found in minutes if found is not None)
    assert 30 <= ours <= 32 and 10 <= other <= 12


def test_jobs_may_be_added_between_rounds(clock: Clock) -> None:
    began: dict[JobKey, float] = {}
    script = Script(clock, lambda job, t: DONE if t - began.setdefault(job, t) >= 50 else RUNNING)
    watcher = Watcher(script, clock=clock, wait=clock.wait)
    watcher.add([JOB])
    late = [OTHER]
    for states in watcher.rounds():
        if states[JOB].succeeded and late:
            watcher.add([late.pop()])
    assert watcher.states == {JOB: DONE, OTHER: DONE}
    assert script.asked.count(2) == 0


def test_idle_is_called_often_while_the_scheduler_is_asked_rarely(clock: Clock) -> None:
    calls: list[float] = []
    script = Script(clock, lambda job, t: RUNNING if t < 600 else DONE)
    Watcher(script, clock=clock, wait=clock.wait, idle=lambda: calls.append(clock())).watch([JOB])
    assert max(b - a for a, b in itertools.pairwise(calls)) <= 2.0
    assert len(calls) >= 600 > 10 * len(script.times)


def test_idle_is_called_while_the_scheduler_hangs() -> None:
    calls: list[float] = []

    def slow(job: JobKey, t: float) -> JobState:
        time.sleep(0.6)
        return DONE

    pace = Pace(tick=0.1)
    Watcher(Script(time.monotonic, slow), pace=pace, idle=lambda: calls.append(time.monotonic())).watch([JOB])
    assert len(calls) >= 3


def test_should_stop_ends_the_watch_with_what_is_known(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING)
    states = Watcher(script, clock=clock, wait=clock.wait).watch([JOB], should_stop=lambda: clock() > 1100)
    assert states == {JOB: RUNNING}
    assert clock() <= 1102


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_scheduler_is_an_error_not_a_wait(clock: Clock) -> None:
    def broken(job: JobKey, t: float) -> JobState:
        raise ValueError("a mistake in the program")

    with pytest.raises(RuntimeError, match="without an answer"):
        Watcher(Script(clock, broken), clock=clock, wait=clock.wait).watch([JOB])


@pytest.fixture
def stop() -> Iterator[StopEvent]:
    stop = StopEvent()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: stop.set())
    yield stop
    signal.signal(signal.SIGUSR1, before)


def _signal_after(seconds: float) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_signal_wakes_at_once(stop: StopEvent, hangs: bool) -> None:
    release = threading.Event()

    def answer(job: JobKey, t: float) -> JobState:
        if hangs:
            release.wait(20)
        return RUNNING

    watcher = Watcher(Script(time.monotonic, answer), wait=stop.wait, pace=Pace(first=20, tick=20))
    _signal_after(0.3)
    began = time.monotonic()
    states = watcher.watch([JOB])
    took = time.monotonic() - began
    release.set()
    assert 0.2 < took < 2
    assert states == ({} if hangs else {JOB: RUNNING})
