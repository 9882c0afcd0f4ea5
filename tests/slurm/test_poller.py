"""The poller, on a clock of its own."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest

from launcher.core.errors import JobError
from launcher.core.stop import StopEvent
from launcher.slurm.client import JobKey, JobState, Phase, unknown_state
from launcher.slurm.poller import JobChange, JobPoller, Pace, PollRound
from tests.slurm.fakes import Clock
from tests.slurm.following import rounds

JOB = JobKey("1", 100.0, "t")
OTHER = JobKey("2", 100.0, "u")
RUNNING = JobState(Phase.ALIVE, "RUNNING", nodes="node01")
PENDING = JobState(Phase.ALIVE, "PENDING", reason="Priority")
HELD = JobState(Phase.ALIVE, "PENDING", reason="JobHeldUser")
DONE = JobState(Phase.TERMINAL, "COMPLETED", (0, 0))
FAILED = JobState(Phase.TERMINAL, "FAILED", (1, 0))
SILENT = unknown_state("squeue: exit 1: Unable to contact slurm controller")

EXACT = Pace(jitter=0.0)
TICK = 0.25


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

    def release(self, job: JobKey) -> None:
        raise NotImplementedError

    def describe(self, job: JobKey) -> dict[str, str]:
        raise NotImplementedError


class Followed:
    """Jobs followed to their ends: the last states, all changes and when each was told, and who was given up."""

    def __init__(self, poller: JobPoller, clock: Clock) -> None:
        self.poller = poller
        self.clock = clock
        self.states: dict[JobKey, JobState] = {}
        self.changes: list[tuple[JobChange, float]] = []
        self.given_up: dict[JobKey, JobError] = {}

    def take(self, answer: PollRound) -> None:
        self.states.update(answer.states)
        for change in answer.changes:
            self.changes.append((change, self.clock() - 1000))
            if change.given_up is not None:
                self.given_up[change.job] = change.given_up


def follow(
    script: Script,
    clock: Clock,
    *jobs: JobKey,
    pace: Pace = Pace(),
    tick: float = TICK,
    markers: Callable[[], Mapping[JobKey, JobState]] = dict,
    held: Collection[JobKey] = (),
) -> Followed:
    poller = JobPoller(script, pace=pace, clock=clock)
    for job in jobs:
        poller.watch(job)
    followed = Followed(poller, clock)
    for answer in rounds(poller, wait=clock.wait, tick=tick, markers=markers, held=held):
        followed.take(answer)
    return followed


def answer_of(poller: JobPoller) -> PollRound:
    """The answer to the question that is due now, or under way."""
    for _ in range(60_000):
        if (answer := poller.poll()) is not None:
            return answer
        assert poller._query is not None, "no question is due"
        time.sleep(0.001)
    raise AssertionError("no answer in a minute")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_to_the_end(clock: Clock) -> None:
    script = Script(clock, lambda job, t: PENDING if t < 100 else RUNNING if t < 300 else DONE)
    followed = follow(script, clock, JOB, pace=EXACT)
    assert followed.states == {JOB: DONE} and not followed.given_up
    told = [(change.before, change.state, change.ended) for change, _ in followed.changes]
    assert told == [(None, PENDING, False), (PENDING, RUNNING, False), (RUNNING, DONE, True)]
    assert 300 <= followed.changes[-1][1] <= 331


def test_the_pauses_grow_and_fall_back(clock: Clock) -> None:
    script = Script(clock, lambda job, t: PENDING if t < 1000 else RUNNING if t < 1500 else DONE)
    follow(script, clock, JOB, pace=EXACT)
    pauses = [b - a for a, b in itertools.pairwise(script.times)]
    assert pauses[:4] == [2.0, 3.0, 4.5, 6.75]
    assert max(pauses) == 60
    change = next(n for n, at in enumerate(script.times) if at >= 2000.0)
    assert pauses[change : change + 3] == [2.0, 3.0, 4.5]
    assert max(pauses[change:]) == 30
    assert len(script.times) < 60


def test_jitter_keeps_launchers_apart(clock: Clock) -> None:
    tick = 1 / 64
    script = Script(clock, lambda job, t: RUNNING if t < 3000 else DONE)
    follow(script, clock, JOB, tick=tick)
    pauses = [b - a for a, b in itertools.pairwise(script.times)][10:]
    assert all(24 <= pause <= 36 + tick for pause in pauses)
    assert len(set(pauses)) > 10


def test_one_question_a_round_for_all(clock: Clock) -> None:
    jobs = [JobKey(str(n), 100.0, f"t{n}") for n in range(1, 51)]
    script = Script(clock, lambda job, t: DONE if t > 60 * int(job.id) else RUNNING)
    followed = follow(script, clock, *jobs)
    assert all(followed.states[job] == DONE for job in jobs)
    assert script.asked[0] == 50
    assert script.asked[-1] < 3
    per_minute = len(script.times) / ((clock() - 1000) / 60)
    assert per_minute < 2.5, "50 jobs, each ending in another minute"


def test_five_minutes_of_silence_change_nothing(clock: Clock) -> None:
    reasons = itertools.count()
    script = Script(
        clock, lambda job, t: unknown_state(f"no {next(reasons)}") if 100 < t < 400 else RUNNING if t < 600 else DONE
    )
    followed = follow(script, clock, JOB)
    assert followed.states[JOB].succeeded
    seen = [change.state.word or change.state.phase.value for change, _ in followed.changes]
    assert seen == ["RUNNING", "unknown", "RUNNING", "COMPLETED"], "another wording of a silence is no change"


@pytest.mark.parametrize("late", [replace(PENDING, reason="Resources"), replace(PENDING, nodes="node02")])
def test_another_reason_and_other_nodes_are_changes(clock: Clock, late: JobState) -> None:
    script = Script(clock, lambda job, t: PENDING if t < 100 else late if t < 200 else DONE)
    assert [change.state for change, _ in follow(script, clock, JOB).changes] == [PENDING, late, DONE]


def test_a_silence_without_end_is_given_up_and_said(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING if t < 100 else SILENT)
    followed = follow(script, clock, JOB, pace=EXACT)
    last_answer = max(at for at in script.times if at < 1100)
    assert 1800 <= clock() - last_answer < 1870
    message = str(followed.given_up[JOB])
    for part in ("job 1", "30 min", "last known as RUNNING", "Unable to contact", "scancel 1"):
        assert part in message
    assert followed.states[JOB] == SILENT
    assert not followed.changes[-1][0].ended


def test_faults_in_a_third_of_the_rounds_do_not_wear_patience_out(clock: Clock) -> None:
    rng = random.Random(1)
    script = Script(clock, lambda job, t: SILENT if rng.random() < 0.3 else RUNNING if t < 36000 else FAILED)
    assert follow(script, clock, JOB, tick=1.0).states == {JOB: FAILED}
    assert clock() - 1000 < 36300


def test_faults_do_not_quicken_the_questions(clock: Clock) -> None:
    number = itertools.count()
    script = Script(clock, lambda job, t: SILENT if next(number) % 2 else RUNNING if t < 7200 else DONE)
    follow(script, clock, JOB, pace=EXACT)
    assert len(script.times) < 7200 / 30 + 15


def test_a_hopeless_job_is_given_up_after_its_patience(clock: Clock) -> None:
    followed = follow(Script(clock, lambda job, t: HELD), clock, JOB)
    assert "JobHeldUser" in str(followed.given_up[JOB])
    assert 600 <= clock() - 1000 < 680


def test_a_job_that_is_released_in_time_goes_on(clock: Clock) -> None:
    script = Script(clock, lambda job, t: HELD if t % 700 < 500 and t < 3000 else PENDING if t < 4000 else DONE)
    assert follow(script, clock, JOB).states[JOB].succeeded


def test_one_job_given_up_does_not_end_the_watch_over_the_others(clock: Clock) -> None:
    script = Script(clock, lambda job, t: HELD if job == JOB else RUNNING if t < 5000 else DONE)
    followed = follow(script, clock, JOB, OTHER)
    assert followed.states[OTHER].succeeded
    assert list(followed.given_up) == [JOB]
    assert script.asked[-1] == 1


def test_our_own_hold_is_no_reason_to_give_a_job_up_before_silence_would_be(clock: Clock) -> None:
    followed = follow(Script(clock, lambda job, t: HELD), clock, JOB, OTHER, held={JOB})
    messages = [followed.given_up[job].message for job in (JOB, OTHER)]
    assert all("will not start by waiting" in message for message in messages)
    minutes = [re.search(r"for (\d+) min", message) for message in messages]
    ours, other = (int(found[1]) for found in minutes if found is not None)
    assert 30 <= ours <= 32 and 10 <= other <= 12


@pytest.mark.parametrize("appears", [0, 150, 500])
def test_the_jobs_own_marker_is_the_last_resort(clock: Clock, appears: float) -> None:
    script = Script(clock, lambda job, t: RUNNING if t < 100 else SILENT)
    followed = follow(
        script, clock, JOB, pace=EXACT, markers=lambda: {JOB: FAILED} if clock() >= 1000 + appears else {}
    )
    assert followed.states == {JOB: FAILED}
    last_answer = max(at for at in script.times if at < 1100)
    soonest = max(last_answer + 120, 1000 + appears)
    assert soonest <= clock() <= soonest + 32, "not while the silence is young, and with the next question after"


def test_a_marker_has_slurm_asked_at_once_and_then_often(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING if t < 1003 else DONE)
    followed = follow(
        script, clock, JOB, pace=EXACT, tick=0.125, markers=lambda: {JOB: FAILED} if clock() >= 2000 else {}
    )
    assert followed.states[JOB].succeeded, "Slurm's word counts"
    assert clock() <= 2003 + 2
    after_marker = [at for at in script.times if at >= 2000]
    assert after_marker[0] <= 2001
    assert [b - a for a, b in itertools.pairwise(after_marker)][:2] == [0.5, 0.75]


def test_a_marker_that_comes_while_slurm_is_asked_has_it_asked_once_more(clock: Clock) -> None:
    poller = JobPoller(Script(clock, lambda job, t: RUNNING), clock=clock)
    poller.watch(JOB)
    poller.poll()
    while (answer := poller.poll(markers={JOB: DONE})) is None:
        time.sleep(0.001)
    assert answer.states == {JOB: RUNNING}
    poller.poll(markers={JOB: DONE})
    assert poller._query is not None


def test_jobs_may_be_added_between_rounds(clock: Clock) -> None:
    began: dict[JobKey, float] = {}
    script = Script(clock, lambda job, t: DONE if t - began.setdefault(job, t) >= 50 else RUNNING)
    poller = JobPoller(script, clock=clock)
    poller.watch(JOB)
    followed = Followed(poller, clock)
    for answer in rounds(poller, wait=clock.wait, tick=TICK):
        followed.take(answer)
        if followed.states[JOB].succeeded:
            if OTHER not in followed.states:
                poller.watch(OTHER)
            assert answer.states.keys() <= {JOB, OTHER}
    assert followed.states == {JOB: DONE, OTHER: DONE}
    assert script.asked.count(2) == 0


def test_a_job_that_is_added_is_asked_about_at_once(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING)
    poller = JobPoller(script, pace=EXACT, clock=clock)
    poller.watch(JOB)
    for _ in zip(range(12), rounds(poller, wait=clock.wait, tick=TICK), strict=False):
        pass
    poller.watch(OTHER)
    poller.watch(JOB)
    assert answer_of(poller).states == {JOB: RUNNING, OTHER: RUNNING}
    assert script.times[-1] == clock()
    asked = len(script.times)
    clock.wait(2.0)
    answer_of(poller)
    assert len(script.times) == asked + 1


def test_a_job_that_is_added_while_slurm_is_asked_is_asked_about_at_once(clock: Clock) -> None:
    hangs = threading.Event()
    asked: list[JobKey] = []

    def state(job: JobKey, t: float) -> JobState:
        asked.append(job)
        return RUNNING if OTHER in asked or hangs.wait(60) else SILENT

    poller = JobPoller(Script(clock, state), clock=clock)
    poller.watch(JOB)
    poller.poll()
    while not asked:
        time.sleep(0.001)
    poller.watch(OTHER)
    asked.append(OTHER)
    assert answer_of(poller).states == {JOB: RUNNING, OTHER: RUNNING}
    hangs.set()


def test_an_answer_says_when_its_question_began(clock: Clock) -> None:
    release = threading.Event()
    poller = JobPoller(Script(clock, lambda job, t: RUNNING if release.wait(60) else SILENT), clock=clock)
    poller.watch(JOB)
    poller.poll()
    began = clock()
    clock.wait(7)
    release.set()
    assert answer_of(poller).began == began


def test_a_job_that_is_missing_in_the_answer_is_unknown(clock: Clock) -> None:
    script = Script(clock, lambda job, t: RUNNING)
    script.poll = lambda jobs: {}  # type: ignore[method-assign]
    poller = JobPoller(script, clock=clock)
    poller.watch(JOB)
    assert answer_of(poller).states[JOB] == unknown_state("no answer about this job")


def test_the_scheduler_is_asked_rarely_however_often_the_poller_is(clock: Clock) -> None:
    calls: list[float] = []

    def markers() -> dict[JobKey, JobState]:
        calls.append(clock())
        return {}

    script = Script(clock, lambda job, t: RUNNING if t < 600 else DONE)
    follow(script, clock, JOB, markers=markers, tick=1.0)
    assert max(b - a for a, b in itertools.pairwise(calls)) <= 2.0
    assert len(calls) >= 600 > 10 * len(script.times)


def test_nobody_waits_while_the_scheduler_hangs(clock: Clock) -> None:
    release = threading.Event()
    script = Script(clock, lambda job, t: DONE if release.wait(60) else SILENT)
    poller = JobPoller(script, clock=clock)
    poller.watch(JOB)
    for _ in range(100):
        assert poller.poll() is None
        clock.wait(60)
    assert script.asked in ([], [1]), "one question at a time"
    release.set()
    assert answer_of(poller).states == {JOB: DONE}


def test_a_broken_scheduler_is_an_error_not_a_wait(clock: Clock) -> None:
    def broken(job: JobKey, t: float) -> JobState:
        raise ValueError("a mistake in the program")

    poller = JobPoller(Script(clock, broken), clock=clock)
    poller.watch(JOB)
    with pytest.raises(RuntimeError, match="without an answer") as caught:
        answer_of(poller)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.fixture
def stop() -> Iterator[StopEvent]:
    stop = StopEvent()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: stop.set())
    yield stop
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_signal_reaches_the_loop_whatever_the_scheduler_does(stop: StopEvent, hangs: bool) -> None:
    release = threading.Event()

    def answer(job: JobKey, t: float) -> JobState:
        if hangs:
            release.wait(60)
        return RUNNING

    poller = JobPoller(Script(time.monotonic, answer), pace=Pace(first=60))
    poller.watch(JOB)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    answers = []
    began = time.monotonic()
    while not stop.wait(0.02):
        answers.append(poller.poll())
    assert time.monotonic() - began < 30
    assert not (hangs and any(answers))
    release.set()
