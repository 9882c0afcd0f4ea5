"""The loop: brings any number of runs to their ends, in one thread, with one poller for all jobs.

Nothing that may take long is done in the loop, so that it asks about all jobs, releases and ends them in time: runs are
prepared one after the other in a thread (an import can take half an hour), brought to their ends in threads
(`endings`), and their logs shown in one (`log_view`). The loop itself runs in the caller's thread, which is the one
that signals reach.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from launcher.core.errors import Cancelled
from launcher.core.stop import Stop
from launcher.run import cancelling, finish, job_requests
from launcher.run.endings import Endings, left_under_way
from launcher.run.finish import Outcome
from launcher.run.job_requests import EndRequests, Releases
from launcher.run.kind import Run
from launcher.run.log_view import LogView, ShowLog
from launcher.run.prepare import Preparation, prepare_in_thread
from launcher.slurm.client import JobKey, JobState, Scheduler
from launcher.slurm.poller import JobChange, JobPoller, Pace, end_jobs

REST = 0.1
"""Seconds between two turns of the loop. A turn without news costs some microseconds a job."""

LAST_LINES = 10.0
"""Seconds in which the last lines of logs are still shown when all runs have ended."""


@dataclass(frozen=True)
class Limits:
    """How many jobs there may be at once, whether the first failure ends all runs, and how often Slurm is asked."""

    max_jobs: int = 1
    fail_fast: bool = False
    pace: Pace = field(default_factory=Pace)


def run_all(
    runs: Sequence[Run], scheduler: Scheduler, stop: Stop, limits: Limits = Limits(), show_log: ShowLog | None = None
) -> list[Outcome]:
    """Run all to their ends; the outcomes in the order given. Asked to stop, it cancels every job first.

    Never raises for a run. Whatever else is raised (a fault of ours), no job is left behind.
    """
    return _Loop(runs, scheduler, stop, limits, show_log).run()


class _Loop:
    def __init__(
        self, runs: Sequence[Run], scheduler: Scheduler, stop: Stop, limits: Limits, show_log: ShowLog | None
    ) -> None:
        self._runs = runs
        self._scheduler = scheduler
        self._stop = stop
        self._limits = limits
        self._outcomes: dict[str, Outcome] = {}
        self._waiting = deque(runs)
        self._watched: dict[JobKey, Run] = {}
        self._prepared: SimpleQueue[tuple[Run, Preparation]] = SimpleQueue()
        self._endings = Endings()
        self._poller = JobPoller(scheduler, pace=limits.pace)
        self._requests = EndRequests(scheduler, stop, self._watched)
        self._releases = Releases(scheduler)
        self._markers = _Markers(limits.pace.tick)
        self._view = LogView(show_log, limits.pace.tick)
        self._let_go_of: set[str] = set()
        self._looked = -cancelling.LOOK

    def run(self) -> list[Outcome]:
        self._requests.begin()
        try:
            while self._waiting or self._requests.preparing or self._watched or self._endings.under_way:
                if self._stop.requested() or self._failed_fast():
                    self._abandon()
                    break
                self._prepare_next()
                self._take_prepared()
                self._take_outcomes()
                self._let_go()
                self._ask_scheduler()
                self._stop.wait(REST)
        except BaseException:
            for run in self._watched.values():
                job_requests.request_end(run)
            raise
        finally:
            self._requests.close()
            self._view.close(0.0 if self._stop.requested() else LAST_LINES)
        return [self._outcomes[run.id] for run in self._runs]

    def _failed_fast(self) -> bool:
        return self._limits.fail_fast and self._endings.failed

    def _take_outcomes(self) -> None:
        for outcome in self._endings.taken():
            self._outcomes[outcome.run] = outcome

    def _let_go(self) -> None:
        """End what somebody asked to be cancelled: runs that wait, and jobs (their ends are then seen as all others).

        A run that is being prepared looks for itself.
        """
        if time.monotonic() - self._looked < cancelling.LOOK:
            return
        self._looked = time.monotonic()
        for run in [run for run in self._waiting if cancelling.is_asked(run.record)]:
            self._waiting.remove(run)
            self._endings.begin(run, cancelling.reason(run.record))
        for run in self._watched.values():
            if run.id not in self._let_go_of and cancelling.is_asked(run.record):
                self._let_go_of.add(run.id)
                threading.Thread(target=job_requests.request_end, args=(run,), daemon=True, name="cancel one").start()

    def _prepare_next(self) -> None:
        if self._requests.preparing is None and self._waiting and len(self._watched) < self._limits.max_jobs:
            run = self._requests.preparing = self._waiting.popleft()
            threading.Thread(target=prepare_in_thread, args=(run, self._prepared), daemon=True, name="prepare").start()

    def _take_prepared(self) -> None:
        """Watch the job of a run that was prepared, or end the run that could not be."""
        if self._prepared.empty():
            return
        run, answer = self._prepared.get()
        if isinstance(answer, JobKey):
            self._watched[answer] = run  # before it is no longer in preparation: a stop sees it here or there
            self._poller.watch(answer)
            self._view.follow(run)
        else:
            self._endings.begin(run, answer)
        self._requests.preparing = None

    def _ask_scheduler(self) -> None:
        """Take the scheduler's newest answer, if there is one, and do what follows from it."""
        held = [job for job, run in self._watched.items() if run.record.job is not None and run.record.job.held]
        answer = self._poller.poll(markers=self._markers.read(self._watched), held=held)
        for job, error in self._releases.taken():
            if job in self._watched:
                with _despite_full_disk(self._watched[job]):
                    job_requests.note_release(self._watched[job], error)
        if answer is None:
            return
        for change in answer.changes:
            if change.job in self._watched:
                self._take_change(change)
        if self._stop.requested() or self._failed_fast():  # a job that ended so is no reason to begin another
            return
        for job, run in self._watched.items():
            if job in answer.states and self._releases.may_ask(job, answer.began):
                with _despite_full_disk(run):
                    if job_requests.should_release(run, answer.states[job]):
                        self._releases.ask(job)

    def _take_change(self, change: JobChange) -> None:
        run = self._watched[change.job]
        if change.state != change.before:
            with _despite_full_disk(run):
                finish.note_state(run, change.state)
        if change.given_up is not None or change.ended:
            del self._watched[change.job]
            self._view.end(run)
            self._endings.begin(run, change.given_up or change.state)

    def _abandon(self) -> None:
        """Cancel every job first; then wait for what is being prepared, whose job may be there any moment."""
        why = self._stop.reason() if self._stop.requested() else Cancelled("another run of the sweep failed")
        for job, error in self._requests.wait().items():
            job_requests.note_request(self._watched[job], error)
        began = time.monotonic()
        if self._requests.preparing is not None:
            self._abandon_preparation(self._requests.preparing, why)
        for run in [*self._watched.values(), *self._waiting]:
            self._endings.begin(run, why)
        states = end_jobs(self._scheduler, list(self._watched), bound=job_requests.CANCEL_BOUND)
        self._await_endings(began + job_requests.CANCEL_BOUND, why)
        for job, state in states.items():
            run = self._watched[job]
            if run.id not in self._endings.under_way:
                with _despite_full_disk(run):
                    finish.note_after_cancel(run, state)

    def _await_endings(self, until: float, why: Cancelled) -> None:
        """Wait for ends that are under way: as long as they take, unless we were asked to stop."""
        self._take_outcomes()
        while self._endings.under_way and not (self._stop.requested() and time.monotonic() > until):
            for outcome in self._endings.wait(REST):
                self._outcomes[outcome.run] = outcome
        for run in self._endings.under_way.values():
            self._outcomes[run.id] = left_under_way(run, why)

    def _abandon_preparation(self, run: Run, why: Cancelled) -> None:
        """Wait for a run in preparation. Its job may be there before srtctl says so, and is then looked for."""
        self._requests.make()
        answer: Preparation = why  # its record says how far it was; `launcher cleanup` looks for its job by its token
        with contextlib.suppress(Empty):
            _, answer = self._prepared.get(timeout=job_requests.CANCEL_BOUND)
        if answer is why and run.record.in_doubt:
            text = f"left while a submission is under way: `launcher cleanup {run.id}` ends the job that may come of it"
            run.record.event("warning", text)
        self._requests.submission_is_over()
        if isinstance(answer, JobKey):
            job_requests.request_end(run)
            self._watched[answer] = run
        else:
            job_requests.request_end(run)
            self._endings.begin(run, answer)


class _Markers:
    """How jobs ended by the last lines of their own logs, looked at every ``tick`` seconds."""

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._looked = -tick
        self._found: dict[JobKey, JobState] = {}

    def read(self, watched: dict[JobKey, Run]) -> dict[JobKey, JobState]:
        if time.monotonic() - self._looked >= self._tick:
            self._looked = time.monotonic()
            logs = {job: (run, Path(run.record.job.log)) for job, run in watched.items() if run.record.job is not None}
            ends = {job: run.kind.end_by_log(job, log) for job, (run, log) in logs.items()}
            self._found = {job: end for job, end in ends.items() if end is not None}
        return self._found


@contextlib.contextmanager
def _despite_full_disk(run: Run) -> Iterator[None]:
    """That a record cannot be written is no reason to let go of a job."""
    try:
        yield
    except OSError as error:
        run.record.event("warning", f"the record cannot be written: {error.strerror}")
