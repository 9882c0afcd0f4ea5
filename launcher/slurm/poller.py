"""Follows any number of jobs with one query at a time: queries rarely, returns changes, gives up only late."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from launcher.core.errors import JobError, LauncherError
from launcher.core.waiting import start_in_thread
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler, unknown_state


@dataclass(frozen=True)
class Pace:
    """Seconds between queries, and seconds of patience.

    The pause starts at ``first`` and grows by half after each query, up to ``running``, or up to ``pending`` when all
    jobs are pending. It falls back to ``first`` when a job is added, or when an alive job changes its state word.
    slurmctld remembers an ended job for MinJobAge, 300 s by default: the pauses stay well below that.
    """

    first: float = 2.0
    running: float = 30.0
    pending: float = 60.0
    jitter: float = 0.2
    """Each pause is longer or shorter by up to this fraction, so that launchers do not query at the same time."""
    tick: float = 1.0
    """Seconds between two reads of the jobs' logs."""
    patience: float = 1800.0
    """A job is given up after so many seconds without a definite answer about it."""
    hopeless: float = 600.0
    """A job is given up when it has been pending for so many seconds for a reason that waiting does not change."""
    marker: float = 120.0
    """The exit marker in a job's log is believed after so many seconds without a definite answer. Accounting may lag by
    minutes where slurmdbd is busy, and the controller may forget a job soon."""
    after_marker: float = 0.5
    """The first pause after a job's marker was seen; it grows from there."""
    refill: float = 0.0
    """Of many jobs one begins or ends at any time. If not 0, each query takes a token of a bucket of `burst` tokens,
    which gains one in so many seconds: Slurm is queried as often for a thousand jobs as for ten."""
    burst: int = 12
    rest: float = 0.1
    """Seconds between two rounds of the loop that drives the runs."""
    release_at_once: bool = False
    """Whether a job that was submitted held is released before its state is queried."""


_GROWTH = 1.5


@dataclass(frozen=True)
class JobChange:
    """A change of a job's state since the last answer. ``before`` is None for the first answer about it.

    ``given_up`` says why the poller stopped watching the job though it has not ended. The job may still hold nodes; the
    caller has to cancel it.
    """

    job: JobKey
    state: JobState
    before: JobState | None
    given_up: JobError | None = None

    @property
    def ended(self) -> bool:
        return self.state.phase is Phase.TERMINAL


@dataclass(frozen=True)
class PollRound:
    """The answer to one query: the state of every job in it, and the changes.

    ``began`` is when the query began, by the poller's clock: effects of later requests (a release, a cancel) may be
    missing in the answer.
    """

    began: float
    states: Mapping[JobKey, JobState]
    changes: tuple[JobChange, ...]


@dataclass
class _Watched:
    known_at: float
    """When the job's state was last known for certain; at first, when the job was added."""
    state: JobState | None = None
    word: str = ""
    hopeless_since: float | None = None
    marked: bool = False


@dataclass
class _Query:
    began: float
    jobs: tuple[JobKey, ...]
    answer: Future[dict[JobKey, JobState]]


class JobPoller:
    """Follows jobs until they have ended or are given up. Its methods are for one thread, and none of them waits.

    Call `poll` about every second, or more often. Each query runs in a thread of its own, so that a scheduler that
    hangs delays nothing; a thread whose answer is not needed any more ends by the scheduler's time-outs.
    """

    def __init__(
        self, scheduler: Scheduler, *, pace: Pace = Pace(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._scheduler = scheduler
        self._pace = pace
        self._clock = clock
        self._watched: dict[JobKey, _Watched] = {}
        self._query: _Query | None = None
        self._pause = pace.first
        self._due = self._filled_at = clock()
        self._tokens = float(pace.burst)

    @property
    def watched(self) -> tuple[JobKey, ...]:
        """The jobs that have neither ended, as far as known, nor been given up."""
        return tuple(self._watched)

    def watch(self, job: JobKey) -> None:
        """Follow this job too. The next query is due at once, and the pauses grow again from ``pace.first``.

        A running query is abandoned: one that hangs would delay the first query about this job, and with it the release
        of a job that we hold.
        """
        if job not in self._watched:
            self._watched[job] = _Watched(known_at=self._clock())
            if not self._pace.refill:
                self._query = None
            self._query_soon(self._pace.first)

    def poll(self, *, markers: Mapping[JobKey, JobState] = {}, held: Collection[JobKey] = ()) -> PollRound | None:
        """The next answer when there is a new one, else None. Starts a query when one is due and none is running.

        ``markers`` are the ends of jobs that their own logs show. When a job is in it for the first time, the next
        query is due at once. The marker becomes the job's state only after ``pace.marker`` seconds without a definite
        answer. ``held`` are jobs that are pending because we hold them: they are given up only after ``pace.patience``.
        Raises RuntimeError when the scheduler's `poll` raised, which it never should.
        """
        if self._query is not None:
            return self._take_answer(self._query, markers, held)
        for job, watched in self._watched.items():
            if job in markers and not watched.marked:
                watched.marked = True
                self._query_soon(self._pace.after_marker)
        if self._watched and self._clock() >= self._due and self._take_token():
            work = partial(self._scheduler.poll, self.watched)
            self._query = _Query(self._clock(), self.watched, start_in_thread(work, "poll"))
        return None

    def _take_token(self) -> bool:
        """Whether a query may start now by ``pace.refill`` and ``pace.burst``; it then counts."""
        if not self._pace.refill:
            return True
        now = self._clock()
        self._tokens = min(self._pace.burst, self._tokens + (now - self._filled_at) / self._pace.refill)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _query_soon(self, pause: float) -> None:
        """Make the next query due at once, with this pause after it."""
        self._due = self._clock()
        self._pause = pause

    def _take_answer(
        self, query: _Query, markers: Mapping[JobKey, JobState], held: Collection[JobKey]
    ) -> PollRound | None:
        if not query.answer.done():
            return None
        self._query = None
        if (error := query.answer.exception()) is not None:
            raise RuntimeError(f"{self._scheduler.name}: poll ended without an answer") from error
        answers = query.answer.result()
        states: dict[JobKey, JobState] = {}
        changes: list[JobChange] = []
        for job in query.jobs:
            change = self._take_state(
                job, answers.get(job) or unknown_state("no answer about this job"), markers.get(job), job in held
            )
            states[job] = change.state
            if change.before is None or change.given_up or _shown_part(change.before) != _shown_part(change.state):
                changes.append(change)
        self._due = self._clock() + self._next_pause()
        return PollRound(query.began, states, tuple(changes))

    def _take_state(self, job: JobKey, state: JobState, marker: JobState | None, held: bool) -> JobChange:
        """Record the job's state, and stop watching the job when it has ended or is given up."""
        watched, now = self._watched[job], self._clock()
        if state.phase is Phase.UNKNOWN and marker is not None and now - watched.known_at >= self._pace.marker:
            state = marker
        before, watched.state = watched.state, state
        given_up: JobError | None = None
        if state.phase is Phase.UNKNOWN:
            if now - watched.known_at >= self._pace.patience:
                last = f"last known as {watched.word}" if watched.word else "never seen"
                given_up = JobError(
                    f"no definite answer from {self._scheduler.name} for {(now - watched.known_at) / 60:.0f} min, "
                    f"{last}; just now: {state.reason}",
                    where=str(job),
                    hint=f"the job may still hold nodes: look with `sacct -j {job.id}`, end it with `scancel {job.id}`",
                )
        else:
            watched.known_at = now
            changed, watched.word = watched.word != state.word, state.word
            if changed and state.phase is Phase.ALIVE:
                self._pause = self._pace.first
            given_up = self._give_up_hopeless(job, watched, state, held)
        if given_up is not None or state.phase is Phase.TERMINAL:
            del self._watched[job]
        return JobChange(job, state, before, given_up)

    def _give_up_hopeless(self, job: JobKey, watched: _Watched, state: JobState, held: bool) -> JobError | None:
        now = self._clock()
        if not state.hopeless:
            watched.hopeless_since = None
            return None
        if watched.hopeless_since is None:
            watched.hopeless_since = now
        seconds = now - watched.hopeless_since
        patience = self._pace.patience if held else self._pace.hopeless
        if seconds < patience:
            return None
        return JobError(
            f"the job will not start by waiting: {state.describe()} for {seconds / 60:.0f} min",
            where=str(job),
            hint=f"change what it asks for, or release it; `scontrol show job {job.id}` tells more",
        )

    def _next_pause(self) -> float:
        """The pause before the next query; the one after it is longer."""
        all_pending = all(watched.word == "PENDING" for watched in self._watched.values())
        limit = self._pace.pending if all_pending else self._pace.running
        pause = min(self._pause, limit)
        self._pause = min(pause * _GROWTH, limit)
        return pause * (1 + random.uniform(-self._pace.jitter, self._pace.jitter))


def _shown_part(state: JobState) -> tuple[Phase, str, str, str, int | None]:
    """The parts of a state whose change is reported. Another reason for an unknown state is no change, nor is an
    expected start in the same half hour."""
    expected = int(state.expected // 1800) if state.expected is not None else None
    return state.phase, state.word, "" if state.phase is Phase.UNKNOWN else state.reason, state.nodes, expected


CANCEL_INTERVAL = 2.5
"""Seconds after which a job that does not seem to end is cancelled again. Less than the shortest time that a caller
waits, `launcher.run.threads.CANCEL_BOUND`."""

_PACE_OF_ENDING = Pace(first=0.3, running=1.0, pending=1.0)


def await_ends(
    scheduler: Scheduler,
    jobs: Sequence[JobKey],
    *,
    time_limit: float,
    repeat_after: float = CANCEL_INTERVAL,
    silence_limit: float = math.inf,
) -> dict[JobKey, JobState]:
    """Wait until every job has ended, ``time_limit`` seconds at most; returns the last states. Jobs may still be alive.

    The caller has cancelled these jobs once. Those that are not ending are cancelled again every ``repeat_after``
    seconds. A scheduler that hangs does not delay the return: a job without an answer is UNKNOWN. When there is no
    definite answer about any job, this returns after ``silence_limit`` seconds.
    """

    def cancel(jobs: Sequence[JobKey]) -> None:
        with contextlib.suppress(LauncherError):
            scheduler.cancel(jobs)

    poller = JobPoller(scheduler, pace=_PACE_OF_ENDING)
    for job in jobs:
        poller.watch(job)
    states = {job: unknown_state("no answer in time") for job in jobs}
    began = time.monotonic()
    cancel_due, cancelling = began + repeat_after, threading.Thread()
    while poller.watched and time.monotonic() < began + time_limit:
        if (answer := poller.poll()) is not None:
            states.update(answer.states)
        if time.monotonic() >= began + silence_limit and all(s.phase is Phase.UNKNOWN for s in states.values()):
            break
        not_ending = [job for job, s in states.items() if s.phase is not Phase.TERMINAL and s.word != "COMPLETING"]
        if not_ending and time.monotonic() >= cancel_due and not cancelling.is_alive():
            cancelling = threading.Thread(target=cancel, args=(not_ending,), daemon=True, name="cancel again")
            cancelling.start()
            cancel_due = time.monotonic() + repeat_after
        time.sleep(0.05)
    return states
