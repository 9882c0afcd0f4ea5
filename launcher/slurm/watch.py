"""One poller for any number of jobs: asks rarely, tells what changed, gives up only after a stated patience."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from launcher.core.errors import JobError
from launcher.slurm.client import JobKey, JobState, Scheduler
from launcher.slurm.poller import Pace as Pace
from launcher.slurm.states import Phase

_FACTOR = 1.5
_LOOK = 0.05


@dataclass
class _Watched:
    since: float
    """When it was last known for certain how the job stands; at first, when the watch over it began."""
    state: JobState | None = None
    word: str = ""
    hopeless_since: float | None = None
    marked: bool = False
    unanswered: int = 0


class Watcher:
    """Follows jobs to their end, or until it is asked to stop.

    ``wait(seconds)`` pauses, and returns True, at once, when the watcher shall stop: as
    `launcher.core.stop.StopEvent.wait` does. A poll runs in a thread of its own, so that a scheduler that hangs
    delays neither the stop nor the log. ``on_change(job, old, new)`` is called whenever phase, word, reason or nodes
    change (old is None at first); ``idle`` about every `Pace.tick` seconds, to follow logs. ``marker(job)`` reads
    the exit marker that a job itself left behind: Slurm is asked as soon as it is there, and it is the last resort
    when nobody answers. ``held(job)`` says that the job waits because we hold it: it is then given up no sooner
    than for silence. All are called in the thread that watches.

    ``states`` holds the last state of every job; ``given_up`` the jobs that are watched no more though they have not
    ended: they may still hold nodes, and it is the caller's to cancel them.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        wait: Callable[[float], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace = Pace(),
        on_change: Callable[[JobKey, JobState | None, JobState], None] | None = None,
        idle: Callable[[], None] | None = None,
        marker: Callable[[JobKey], JobState | None] | None = None,
        held: Callable[[JobKey], bool] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._wait = wait or threading.Event().wait
        self._clock = clock
        self._pace = pace
        self._on_change = on_change
        self._idle = idle
        self._marker = marker
        self._held = held
        self._active: dict[JobKey, _Watched] = {}
        self._pause = pace.first
        self._should_stop: Callable[[], bool] = lambda: False
        self.states: dict[JobKey, JobState] = {}
        self.given_up: dict[JobKey, JobError] = {}

    def add(self, jobs: Iterable[JobKey]) -> None:
        """Watch these too, from the next round on."""
        for job in jobs:
            if job not in self._active:
                self._active[job] = _Watched(since=self._clock())
                self._pause = self._pace.first

    def watch(self, jobs: Iterable[JobKey], *, should_stop: Callable[[], bool] | None = None) -> dict[JobKey, JobState]:
        """Watch until every job has ended, and return their states; asked to stop, return them as last seen.

        Raises JobError when a job was given up, after the others have ended.
        """
        self.add(jobs)
        for _ in self.rounds(should_stop=should_stop):
            pass
        if self.given_up:
            errors = list(self.given_up.values())
            if len(errors) == 1:
                raise errors[0]
            raise JobError("\n".join(f"{e.where}: {e.message}" for e in errors), hint=errors[0].hint)
        return dict(self.states)

    def rounds(self, *, should_stop: Callable[[], bool] | None = None) -> Iterator[dict[JobKey, JobState]]:
        """Poll, and yield the states after every round, while there is a job to watch: for a caller that adds jobs as
        others end. Never raises for a job; look at ``given_up``."""
        if should_stop is not None:
            self._should_stop = should_stop
        while self._active and not self._should_stop():
            answers = self._ask(list(self._active))
            if answers is None:
                return
            for job in list(self._active):
                self._take(job, answers.get(job) or JobState(Phase.UNKNOWN, reason="no answer about this job"))
            yield dict(self.states)
            if self._active and self._rest(self._next_pause()):
                return

    def _ask(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState] | None:
        """What the scheduler says; None when asked to stop meanwhile. The thread is left to its time-outs then."""
        answer: queue.SimpleQueue[dict[JobKey, JobState]] = queue.SimpleQueue()
        thread = threading.Thread(target=lambda: answer.put(self._scheduler.poll(jobs)), daemon=True, name="poll")
        thread.start()
        last = self._clock()
        while True:
            try:
                return answer.get(timeout=_LOOK)
            except queue.Empty:
                if self._wait(0) or self._should_stop():
                    return None
                if not thread.is_alive() and answer.empty():
                    raise RuntimeError(f"{self._scheduler.name}: poll ended without an answer") from None
            if self._clock() - last >= self._pace.tick:
                last = self._clock()
                self._call_idle()

    def _take(self, job: JobKey, state: JobState) -> None:
        watched = self._active[job]
        now = self._clock()
        if state.phase is Phase.UNKNOWN and self._marker is not None and now - watched.since >= self._pace.marker:
            state = self._marker(job) or state
        old, watched.state = watched.state, state
        self.states[job] = state
        if self._on_change is not None and (old is None or _looks(old) != _looks(state)):
            self._on_change(job, old, state)
        if state.phase is Phase.UNKNOWN:
            watched.unanswered += 1
            if now - watched.since >= self._pace.patience:
                self._give_up(job, _no_answer(self._scheduler.name, job, watched, now))
            return
        watched.since, watched.unanswered = now, 0
        changed, watched.word = watched.word != state.word, state.word
        if state.phase is Phase.TERMINAL:
            del self._active[job]
            return
        if changed:
            self._pause = self._pace.first
        if not state.hopeless:
            watched.hopeless_since = None
        elif watched.hopeless_since is None:
            watched.hopeless_since = now
        elif now - watched.hopeless_since >= self._hopeless_patience(job):
            self._give_up(job, _never_starts(job, state, now - watched.hopeless_since))

    def _hopeless_patience(self, job: JobKey) -> float:
        ours = self._held is not None and self._held(job)
        return self._pace.patience if ours else self._pace.hopeless

    def _give_up(self, job: JobKey, error: JobError) -> None:
        self.given_up[job] = error
        del self._active[job]

    def _next_pause(self) -> float:
        """How long to rest now; the pause after it is longer. No security hangs on the jitter."""
        waiting = all(watched.word == "PENDING" for watched in self._active.values())
        limit = self._pace.pending if waiting else self._pace.running
        pause = min(self._pause, limit)
        self._pause = min(pause * _FACTOR, limit)
        return pause * (1 + random.uniform(-self._pace.jitter, self._pace.jitter))

    def _rest(self, seconds: float) -> bool:
        """Pause, calling ``idle`` at every tick; True when asked to stop."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            if self._wait(min(left, self._pace.tick)) or self._should_stop():
                return True
            self._call_idle()
            if self._newly_marked():
                self._pause = self._pace.hurried
                return False
        return False

    def _newly_marked(self) -> bool:
        """Whether a job says of itself, since the last look, that it has ended."""
        if self._marker is None:
            return False
        new = [job for job, w in self._active.items() if not w.marked and self._marker(job) is not None]
        for job in new:
            self._active[job].marked = True
        return bool(new)

    def _call_idle(self) -> None:
        if self._idle is not None:
            self._idle()


def _looks(state: JobState) -> tuple[Phase, str, str, str]:
    """What of a state is worth telling. Why a job's state is unknown is told once, not in each wording."""
    return state.phase, state.word, "" if state.phase is Phase.UNKNOWN else state.reason, state.nodes


def _no_answer(scheduler: str, job: JobKey, watched: _Watched, now: float) -> JobError:
    reason = watched.state.reason if watched.state else ""
    last = f"last known as {watched.word}" if watched.word else "never seen"
    return JobError(
        f"no definite answer from {scheduler} for {(now - watched.since) / 60:.0f} min, {last}; "
        f"asked {watched.unanswered} times in that time; just now: {reason}",
        where=str(job),
        hint=f"the job may still hold nodes: look with `sacct -j {job.id}`, end it with `scancel {job.id}`",
    )


def _never_starts(job: JobKey, state: JobState, seconds: float) -> JobError:
    return JobError(
        f"the job will not start by waiting: {state.describe()} for {seconds / 60:.0f} min",
        where=str(job),
        hint=f"change what it asks for, or release it; `scontrol show job {job.id}` tells more",
    )
