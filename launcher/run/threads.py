"""The loop's work in threads of their own: releasing and cancelling jobs, showing logs, ending runs.

Requests: neither a Slurm that hangs nor a loop that is busy (writing to a terminal that nobody reads, waiting for a
disk) may delay the request to end jobs: GitHub leaves a cancelled step ten seconds. Jobs are submitted held, and
released once the run's record has the job's id. Whoever drives the run releases the job, also where the launcher that
submitted it was killed: the record says ``held`` from the same write that gives the job's id. A crash of slurmctld can
lose the release of its last seconds, so the release is repeated until squeue no longer shows the hold.

Logs: a job may write faster than anybody can read, and a reader may stand still. In each round a bounded part of each
log is read, and what nobody could keep up with is left out, and said to be.

Ends: results may appear a minute late, logs may be a gigabyte large, and Slurm may not answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

from launcher.core.errors import Cancelled, LauncherError, ResultError, as_error
from launcher.core.stop import Stop
from launcher.core.waiting import start_in_thread
from launcher.run import finish
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.verdict import verdict
from launcher.slurm.client import BY_ADMIN, BY_USER, JobKey, JobState, Phase, Scheduler
from launcher.slurm.logs import LogFollower

CANCEL_BOUND = 5.0
"""Seconds to see cancelled jobs gone, and for a run in preparation to stop: GitHub leaves 10 s in all. More than
`launcher.slurm.poller.CANCEL_INTERVAL`: otherwise a cancel request that was lost would never be repeated."""

JOB_CHECK_SECONDS = 0.4
"""Seconds between two searches for a job that is being submitted while a stop is requested."""

STOP_CHECK_SECONDS = 0.5


class CancelRequests:
    """Cancels the jobs of a loop, each by one request. ``watched`` is the loop's own table of jobs, which changes."""

    def __init__(self, scheduler: Scheduler, stop: Stop, watched: Mapping[JobKey, Run]) -> None:
        self._scheduler = scheduler
        self._stop = stop
        self._watched = watched
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._answers: dict[JobKey, LauncherError | None] = {}
        self._over = threading.Event()
        self._submissions: dict[str, threading.Event] = {}
        self.preparing: dict[str, Run] = {}
        """The runs that are being prepared, by their ids: their jobs may appear at any moment."""

    def begin(self) -> None:
        """Start a thread that makes the requests as soon as a stop is requested, until `close`."""
        threading.Thread(target=self._wait_for_stop, daemon=True, name="cancel at once").start()

    def close(self) -> None:
        """The loop has ended."""
        self._over.set()
        for over in self._submissions.values():
            over.set()

    def _wait_for_stop(self) -> None:
        while not self._over.is_set():
            if self._stop.wait(STOP_CHECK_SECONDS):
                self.request_all()
                return

    def request_all(self) -> threading.Thread:
        """Request the end of all jobs that have no request yet, also of those that are submitted meanwhile."""
        with self._guard:
            for run in [run for run in list(self.preparing.values()) if run.id not in self._submissions]:
                over = self._submissions[run.id] = threading.Event()
                threading.Thread(
                    target=cancel_unrecorded_job, args=(run, over), daemon=True, name="cancel by token"
                ).start()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._request, daemon=True, name="cancel")
                self._thread.start()
            return self._thread

    def _request(self) -> None:
        if jobs := [job for job in list(self._watched) if job not in self._answers]:
            try:
                self._scheduler.cancel(jobs)
                self._answers.update(dict.fromkeys(jobs))
            except Exception as error:  # noqa: BLE001  # also a fault of the launcher counts as an answer
                self._answers.update(dict.fromkeys(jobs, as_error(error)))

    def wait(self) -> dict[JobKey, LauncherError | None]:
        """Make the remaining requests and wait for all, CANCEL_BOUND seconds at most; the error of each, if any."""
        deadline = time.monotonic() + CANCEL_BOUND
        while unanswered := [job for job in self._watched if job not in self._answers]:
            self.request_all().join(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                timed_out = LauncherError(f"no answer within {CANCEL_BOUND:.0f} s")
                self._answers.update(dict.fromkeys(unanswered, timed_out))
        return {job: self._answers[job] for job in self._watched}

    def submission_ended(self, run: Run) -> None:
        """The run's submission is over: the job is in the record, or there is no job."""
        self._submissions.setdefault(run.id, threading.Event()).set()


def cancel_unrecorded_job(run: Run, done: threading.Event) -> None:
    """Until ``done``, cancel the job of a submission that is under way as soon as Slurm shows it."""
    scheduler = run.services.scheduler
    while not done.wait(JOB_CHECK_SECONDS):
        with contextlib.suppress(LauncherError):
            if (job := run.record.job_key) is not None:
                scheduler.cancel([job])
                return
            if run.record.fields.submission_in_doubt and (jobs := scheduler.find(run.id)):
                scheduler.cancel(jobs)  # which ignores jobs that are over


def cancel_job(run: Run) -> None:
    """Cancel the run's job by its id, and record whether Slurm took the request."""
    if (job := run.record.job_key) is not None:
        try:
            run.services.scheduler.cancel([job])
        except LauncherError as error:
            record_cancel(run, error)
        else:
            record_cancel(run)


def record_cancel(run: Run, error: LauncherError | None = None) -> None:
    """Record that the job's cancel was requested, or why that failed."""
    job = run.record.job_key
    if error is not None:
        run.record.event("error", f"cancelling {job} failed: {error}")
    elif job is not None:
        run.record.event("job", f"asked for the end of {job}", job=job.id)


class Releases:
    """Releases of held jobs, each in a thread of its own: a scheduler that hangs must not delay a cancel."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._asked: dict[JobKey, Future[None]] = {}
        self._answered: dict[JobKey, float] = {}

    def answer_is_newer(self, job: JobKey, began: float) -> bool:
        """Whether the answer to a query that began at ``began`` is newer than the job's releases, and may cause one.

        It is not while a release is under way, nor when the query began before the last one ended.
        """
        return job not in self._asked and began > self._answered.get(job, -1.0)

    def begin(self, job: JobKey) -> None:
        self._asked[job] = start_in_thread(partial(self._scheduler.release, job), "release")

    def finished(self) -> Iterator[tuple[JobKey, LauncherError | None]]:
        """The releases that finished since the last call, with the error of those that failed: they are repeated."""
        for job in [job for job, release in self._asked.items() if release.done()]:
            fault = self._asked.pop(job).exception()
            self._answered[job] = time.monotonic()
            yield job, as_error(fault, str(job)) if fault is not None else None


def should_release(run: Run, state: JobState | None) -> bool:
    """Whether to release the job now; completes its directory first, without which the job would fail.

    ``state`` is None for a job that was submitted just now. A hold that somebody set after our release stays, and so
    does an administrator's. A hold that Slurm set because no node could start the job is released once.
    """
    job = run.record.job
    if job is not None and state is not None and state.launch_failed and not job.by_hand and not job.tried_again:
        run.record.update(job=replace(job, tried_again=True))
        run.record.event("warning", f"job {job.id}: no node could start it, and Slurm holds it; it is tried once more")
        return True
    if job is None or not job.held or (state is None and job.released):
        return False
    if state is not None:
        if state.phase is not Phase.ALIVE:
            return False
        still_held = state.word == "PENDING" and (state.reason == BY_USER or not job.released)
        if not still_held or state.reason == BY_ADMIN:
            run.record.update(job=replace(job, held=False))
            if not job.released:
                text = f"job {job.id}: the hold is not ours: {state.describe()}"
                run.record.event("job", text, job=job.id)
            return False
    try:
        run.kind.complete_directory(run)
    except (LauncherError, OSError) as error:
        run.record.event("warning", f"not released yet, its directory is not whole: {error}", job=job.id)
        return False
    return True


def record_release(run: Run, error: LauncherError | None = None) -> None:
    """Record that Slurm released the job, or why it did not."""
    job = run.record.job
    assert job is not None
    if error is None:
        run.record.update(job=replace(job, released=True))
        run.record.event("job", f"job {job.id} released{' again' if job.released else ''}", job=job.id)
    else:
        run.record.event("warning", f"job {job.id} is still held: {error}", job=job.id)


ShowLog = Callable[[str, Sequence[str]], None]
"""Called with (run id, lines) for new lines of a run's job log. It may block on a slow reader."""

READS_PER_ROUND = 8
"""Reads of a round, of a mebibyte each at most (`launcher.slurm.logs.READ_SIZE`), shared by all logs."""

LAST_BYTES = 16 << 20
"""Bytes that are still shown of a log that has ended: of a longer rest only its end."""


class LogView:
    """Follows the logs of runs and shows them every ``tick`` seconds. Without ``show`` it does nothing."""

    def __init__(self, show: ShowLog | None, tick: float) -> None:
        self._show = show
        self._tick = tick
        self._followed: dict[str, tuple[Run, LogFollower]] = {}
        self._ended: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_on, daemon=True, name="logs")

    def follow(self, run: Run) -> None:
        """Show the log of this run's job from here on."""
        if self._show is not None and run.record.job is not None:
            self._followed[run.id] = run, LogFollower(Path(run.record.job.log))
            if not self._thread.is_alive():
                self._thread.start()

    def end(self, run: Run) -> None:
        """Show the rest of this run's log, which has ended, and stop following it."""
        self._ended.add(run.id)

    def close(self, seconds: float) -> None:
        """Show the rest of logs that have ended, for at most ``seconds``."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _show_on(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._tick)
            for run, follower in list(self._followed.values()):
                ended = run.id in self._ended
                try:
                    if ended:
                        self._show_last(run, follower)
                    elif not over:
                        self._show_new(run, follower, max(1, READS_PER_ROUND // len(self._followed)))
                except Exception as fault:  # noqa: BLE001  # whatever is wrong with the viewer, the job goes on
                    run.record.event("warning", f"the log is shown no more: {type(fault).__name__}: {fault}")
                    ended = True
                if ended:
                    follower.close()
                    del self._followed[run.id]

    def _show_new(self, run: Run, follower: LogFollower, reads: int, most: int | None = None) -> None:
        assert self._show is not None
        if left_out := follower.catch_up(most):
            self._show(run.id, left_out)
        for _ in range(reads):
            lines = follower.read_new()
            if not lines and not follower.behind:
                return
            self._show(run.id, lines)

    def _show_last(self, run: Run, follower: LogFollower) -> None:
        assert self._show is not None
        self._show_new(run, follower, LAST_BYTES >> 20, LAST_BYTES)
        self._show(run.id, follower.flush())


End = JobState | LauncherError
"""Why a run ends: the state that its job ended in; or an error, after which its job, if any, must be cancelled. With
Cancelled that was requested already."""


class RunEndings:
    """Ends runs in threads. Its methods are for one thread."""

    def __init__(self) -> None:
        self.under_way: dict[Run, Future[Outcome]] = {}

    def begin(self, run: Run, end: End) -> None:
        """Begin to end the run."""
        self.under_way[run] = start_in_thread(partial(_finish_or_abort, run, end), "end")

    def finished(self, seconds: float = 0.0) -> Iterator[tuple[Run, Outcome]]:
        """The outcomes since the last call; when there is none, wait at most ``seconds`` for the first."""
        wait(self.under_way.values(), seconds, FIRST_COMPLETED)
        for run in [run for run, end in self.under_way.items() if end.done()]:
            yield run, self.under_way.pop(run).result()


def _finish_or_abort(run: Run, end: End) -> Outcome:
    try:
        if not isinstance(end, LauncherError):
            return finish.finish(run, end)
        if not isinstance(end, Cancelled):
            cancel_job(run)
        return _end_early(run, end)
    except Cancelled as why:  # stopped while waiting for results to appear
        return _end_early(run, why)
    except BaseException as fault:  # noqa: BLE001  # one run's end must not end the others
        return _unwritten_end(run, fault)


def _end_early(run: Run, error: LauncherError) -> Outcome:
    stop = run.services.stop
    if isinstance(error, Cancelled) and stop.requested():
        error = stop.reason()  # a program that was ended for it cannot say which signal came, hence the exit code
    try:
        return finish.end_early(run, error)
    except Exception as fault:  # noqa: BLE001  # as above
        return _unwritten_end(run, fault, error)


def outcome_left_behind(run: Run, reason: Cancelled) -> Outcome:
    """The outcome of a run whose job has ended and whose results nobody waits for: its record stays as it is."""
    run.record.event("warning", f"left while its results were collected; `launcher collect {run.id}` does it again")
    return Outcome(run.id, "cancelled", error=reason, verdict=verdict(reason))


def _unwritten_end(run: Run, fault: BaseException, error: LauncherError | None = None) -> Outcome:
    """The outcome of a run whose end could not be recorded. ``error`` is why it ended, where that was known."""
    if isinstance(fault, OSError):
        message = f"results or records cannot be written: {fault.strerror}"
        problem: LauncherError = ResultError(message, where=str(fault.filename))
    else:
        problem = as_error(fault, f"run {run.id}")
    run.record.event("error", str(problem))
    reason = error or problem
    return Outcome(
        run.id, "cancelled" if isinstance(reason, Cancelled) else "failed", error=reason, verdict=verdict(reason)
    )
