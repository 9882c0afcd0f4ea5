"""The loop: brings any number of runs to their ends, in one thread, with one poller for all jobs.

Runs are prepared one after the other in a thread of their own, since an import can take half an hour. The loop itself
runs in the caller's thread, which is the one that signals reach.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from launcher.core.errors import Cancelled, LauncherError, ResultError
from launcher.core.stop import Stop
from launcher.run import cancelling, finish, job_requests
from launcher.run.finish import Outcome
from launcher.run.job_requests import EndRequests, Releases
from launcher.run.kind import Run
from launcher.run.prepare import Preparation, prepare_in_thread
from launcher.run.verdict import verdict
from launcher.slurm.client import JobKey, JobState, Scheduler
from launcher.slurm.logs import LogFollower
from launcher.slurm.poller import JobChange, JobPoller, Pace, end_jobs

REST = 0.1
"""Seconds between two turns of the loop. A turn without news costs some microseconds a job."""

ShowLog = Callable[[str, Sequence[str]], None]
"""Takes (run id, lines): new lines of a run's job log."""


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
        self._poller = JobPoller(scheduler, pace=limits.pace)
        self._ends = EndRequests(scheduler, stop, self._watched)
        self._releases = Releases(scheduler)
        self._logs = _Logs(show_log, limits.pace.tick)
        self._let_go_of: set[str] = set()
        self._looked = -cancelling.LOOK

    def run(self) -> list[Outcome]:
        self._ends.begin()
        try:
            while self._waiting or self._ends.preparing or self._watched:
                if self._stop.requested() or self._failed_fast():
                    self._abandon()
                    break
                self._prepare_next()
                self._take_prepared()
                self._let_go()
                self._ask_scheduler()
                self._logs.show(self._watched.values())
                self._stop.wait(REST)
        except BaseException:
            for run in self._watched.values():
                job_requests.request_end(run)
            raise
        finally:
            self._ends.close()
        return [self._outcomes[run.id] for run in self._runs]

    def _failed_fast(self) -> bool:
        return self._limits.fail_fast and any(outcome.state == "failed" for outcome in self._outcomes.values())

    def _prepare_next(self) -> None:
        if self._ends.preparing is None and self._waiting and len(self._watched) < self._limits.max_jobs:
            run = self._ends.preparing = self._waiting.popleft()
            threading.Thread(target=prepare_in_thread, args=(run, self._prepared), daemon=True, name="prepare").start()

    def _let_go(self) -> None:
        """End what somebody asked to be cancelled: runs that wait, and jobs (their ends are then seen as all others).

        A run that is being prepared looks for itself.
        """
        if time.monotonic() - self._looked < cancelling.LOOK:
            return
        self._looked = time.monotonic()
        for run in [run for run in self._waiting if cancelling.is_asked(run.record)]:
            self._waiting.remove(run)
            self._outcomes[run.id] = _end_early(run, cancelling.reason(run.record))
        for run in self._watched.values():
            if run.id not in self._let_go_of and cancelling.is_asked(run.record):
                self._let_go_of.add(run.id)
                threading.Thread(target=job_requests.request_end, args=(run,), daemon=True, name="cancel one").start()

    def _take_prepared(self) -> None:
        """Watch the job of a run that was prepared, or end the run that could not be."""
        if self._prepared.empty():
            return
        run, answer = self._prepared.get()
        if isinstance(answer, JobKey):
            self._watched[answer] = run  # before it is no longer in preparation: a stop sees it here or there
            self._poller.watch(answer)
        else:
            self._end_unprepared(run, answer)
        self._ends.preparing = None

    def _end_unprepared(self, run: Run, error: LauncherError) -> None:
        """End a run that could not be prepared, and its job too if the fault came after the submission."""
        job_requests.request_end(run)
        self._outcomes[run.id] = _end_early(run, error)

    def _ask_scheduler(self) -> None:
        """Take the scheduler's newest answer, if there is one, and do what follows from it."""
        held = [job for job, run in self._watched.items() if run.record.job is not None and run.record.job.held]
        answer = self._poller.poll(markers=self._logs.ends_told(self._watched), held=held)
        for job, error in self._releases.taken():
            if job in self._watched:
                with _despite_full_disk(self._watched[job]):
                    job_requests.note_release(self._watched[job], error)
        if answer is None:
            return
        for change in answer.changes:
            if change.job in self._watched:
                self._take_change(change)
        if self._stop.requested() or self._failed_fast():  # the end of a run takes a minute: a stop may have come
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
        if change.given_up is not None:
            job_requests.request_end(run)
            del self._watched[change.job]
            self._outcomes[run.id] = _end_early(run, change.given_up)
        elif change.ended:
            del self._watched[change.job]
            self._logs.show_last(run)
            self._outcomes[run.id] = _finish(run, change.state)

    def _abandon(self) -> None:
        """Cancel every job first; then wait for what is being prepared, whose job may be there any moment."""
        why = self._stop.reason() if self._stop.requested() else Cancelled("another run of the sweep failed")
        for job, error in self._ends.wait().items():
            job_requests.note_request(self._watched[job], error)
        if self._ends.preparing is not None:
            self._abandon_preparation(self._ends.preparing, why)
        for run in [*self._watched.values(), *self._waiting]:
            self._outcomes[run.id] = _end_early(run, why)
        for job, state in end_jobs(self._scheduler, list(self._watched), bound=job_requests.CANCEL_BOUND).items():
            with _despite_full_disk(self._watched[job]):
                finish.note_after_cancel(self._watched[job], state)

    def _abandon_preparation(self, run: Run, why: Cancelled) -> None:
        """Wait for a run in preparation. Its job may be there before srtctl says so, and is then looked for."""
        self._ends.make()
        answer: Preparation = why  # its record says how far it was; `launcher cleanup` looks for its job by its token
        with contextlib.suppress(Empty):
            _, answer = self._prepared.get(timeout=job_requests.CANCEL_BOUND)
        self._ends.submission_is_over()
        if isinstance(answer, JobKey):
            job_requests.request_end(run)
            self._watched[answer] = run
        else:
            self._end_unprepared(run, answer)


class _Logs:
    """The logs of watched jobs, looked at every ``tick`` seconds: new lines to show, and what they say of an end."""

    def __init__(self, show: ShowLog | None, tick: float) -> None:
        self._show = show
        self._tick = tick
        self._followers: dict[str, LogFollower] = {}
        self._ends: dict[JobKey, JobState] = {}
        self._shown = self._looked = -tick

    def show(self, runs: Iterable[Run]) -> None:
        """Show the new lines of all logs."""
        if time.monotonic() - self._shown >= self._tick:
            self._shown = time.monotonic()
            for run in runs:
                self._follow(run)

    def show_last(self, run: Run) -> None:
        """Show the rest of a log that has ended."""
        if (follower := self._follow(run)) is not None and self._show is not None:
            self._show(run.id, follower.flush())
            follower.close()

    def _follow(self, run: Run) -> LogFollower | None:
        if self._show is None or run.record.job is None:
            return None
        follower = self._followers.setdefault(run.id, LogFollower(Path(run.record.job.log)))
        while lines := follower.read_new():
            self._show(run.id, lines)
        return follower

    def ends_told(self, watched: dict[JobKey, Run]) -> dict[JobKey, JobState]:
        """How jobs ended by the last lines of their own logs."""
        if time.monotonic() - self._looked >= self._tick:
            self._looked = time.monotonic()
            logs = {job: (run, Path(run.record.job.log)) for job, run in watched.items() if run.record.job is not None}
            ends = {job: run.kind.end_by_log(job, log) for job, (run, log) in logs.items()}
            self._ends = {job: end for job, end in ends.items() if end is not None}
        return self._ends


def _finish(run: Run, state: JobState) -> Outcome:
    try:
        return finish.finish(run, state)
    except Cancelled as why:  # stopped while waiting for results to appear
        return _end_early(run, why)
    except Exception as fault:  # noqa: BLE001  # one run's end must not end the others
        return _unwritten_end(run, fault)


def _end_early(run: Run, error: LauncherError) -> Outcome:
    stop = run.services.stop
    if isinstance(error, Cancelled) and stop.requested():
        error = stop.reason()  # a program that was ended for it cannot say which signal came, hence the exit code
    try:
        return finish.end_early(run, error)
    except Exception as fault:  # noqa: BLE001  # as above
        return _unwritten_end(run, fault, error)


def _unwritten_end(run: Run, fault: Exception, error: LauncherError | None = None) -> Outcome:
    """The outcome of a run whose end could not be written down. ``error`` is why it ended, where that was known."""
    if isinstance(fault, OSError):
        message = f"results or records cannot be written: {fault.strerror}"
        trouble: LauncherError = ResultError(message, where=str(fault.filename))
    elif isinstance(fault, LauncherError):
        trouble = fault
    else:
        trouble = LauncherError(f"unexpected {type(fault).__name__}: {fault}", where=f"run {run.id}")
    run.record.event("error", str(trouble))
    why = error or trouble
    return Outcome(run.id, "cancelled" if isinstance(why, Cancelled) else "failed", error=why, verdict=verdict(why))


@contextlib.contextmanager
def _despite_full_disk(run: Run) -> Iterator[None]:
    """That a record cannot be written is no reason to let go of a job."""
    try:
        yield
    except OSError as error:
        run.record.event("warning", f"the record cannot be written: {error.strerror}")
