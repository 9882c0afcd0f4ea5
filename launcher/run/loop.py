"""The loop: brings any number of runs to their ends, in one thread, with one poller for all jobs.

Nothing that may take long is done in the loop, so that it polls, releases and cancels all jobs in time. Threads
prepare runs (an import can take half an hour) and collect the results of those that ended, and one thread shows logs
(`threads`). The loop itself runs in the caller's thread, which is the one that signals reach. A `Feed` decides which
run comes next and when its job may be submitted: the runs of one command, or a sweep.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from launcher.core.errors import Cancelled, LauncherError
from launcher.core.stop import Stop
from launcher.core.waiting import start_in_thread
from launcher.run import finish, threads
from launcher.run.finish import Outcome
from launcher.run.kind import CHECK_SECONDS, Run
from launcher.run.prepare import Gate, JobOrError, prepare_in_thread
from launcher.run.threads import CancelRequests, End, LogView, Releases, RunEndings, ShowLog, outcome_left_behind
from launcher.slurm.client import JobKey, JobState, Scheduler
from launcher.slurm.poller import JobChange, JobPoller, Pace, await_ends

ENDING_CHECK_SECONDS = 0.1
"""Seconds between two checks for outcomes while the loop ends."""

LAST_LINES_SECONDS = 10.0
"""Seconds in which the last lines of logs are still shown when all runs have ended."""


class Feed(Protocol):
    """Decides which runs a loop begins, and receives their outcomes. The loop calls the methods in its own thread,
    several times a second, so they must not wait for anything."""

    @property
    def exhausted(self) -> bool:
        """Whether no run will begin any more, unless it follows from the end of one that is under way."""

    def next_run(self, under_way: int) -> Run | None:
        """The next run to prepare, if one may begin now. ``under_way`` runs are being prepared or have a job."""

    def may_submit(self, run: Run, ready: bool) -> bool | Cancelled:
        """Whether the run's job may be submitted now; False means that the loop asks again, Cancelled says why the job
        is never submitted. A run that is not ``ready`` (not prepared yet) may not submit."""
        return True

    def submitted(self, run: Run) -> None:
        """The run's job was submitted."""
        return

    def failed(self, run: Run) -> None:
        """The run did not succeed: by Slurm's state of its job, or before it had one. Its results and logs are still
        collected, and `ended` follows."""
        return

    def ended(self, run: Run, outcome: Outcome) -> None:
        """The run has come to its end."""

    def take_cancelled(self) -> Iterable[Run]:
        """Take out the runs that have not begun and that somebody asked to cancel; the loop ends them."""
        return ()

    def cancel_all_reason(self) -> Cancelled | None:
        """Why the loop must cancel every job now; None when it must not."""
        return None

    def should_leave(self) -> bool:
        """Whether the loop must end now and leave jobs and records as they are, for another process to continue."""
        return False

    def remaining_runs(self) -> Iterable[Run]:
        """The runs that have not begun, for the loop to end: nobody will begin them."""


class FixedRuns(Feed):
    """The runs of one command, one at a time, in their order."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._waiting = deque(runs)
        self.outcomes: dict[str, Outcome] = {}

    @property
    def exhausted(self) -> bool:
        return not self._waiting

    def next_run(self, under_way: int) -> Run | None:
        return self._waiting.popleft() if self._waiting and not under_way else None

    def ended(self, run: Run, outcome: Outcome) -> None:
        self.outcomes[run.id] = outcome

    def take_cancelled(self) -> Iterable[Run]:
        cancelled = [run for run in self._waiting if run.record.cancel_requested()]
        for run in cancelled:
            self._waiting.remove(run)
        return cancelled

    def remaining_runs(self) -> Iterable[Run]:
        return self._waiting


def run_all(
    runs: Sequence[Run], scheduler: Scheduler, stop: Stop, pace: Pace, show_log: ShowLog | None = None
) -> list[Outcome]:
    """Run all to their ends, one after another; the outcomes are in the order of ``runs``.

    On a request to stop, and before a fault of the launcher is raised, every job is cancelled. A run that fails raises
    nothing.
    """
    feed = FixedRuns(runs)
    run_feed(feed, scheduler, stop, pace, show_log)
    return [feed.outcomes[run.id] for run in runs]


def run_feed(feed: Feed, scheduler: Scheduler, stop: Stop, pace: Pace, show_log: ShowLog | None = None) -> None:
    """Run what the feed gives until it is exhausted or asks the loop to leave; the feed receives the outcomes."""
    _Loop(feed, scheduler, stop, pace, show_log).run()


class _Loop:
    def __init__(self, feed: Feed, scheduler: Scheduler, stop: Stop, pace: Pace, show_log: ShowLog | None) -> None:
        self._feed = feed
        self._scheduler = scheduler
        self._stop = stop
        self._pace = pace
        self._watched: dict[JobKey, Run] = {}
        self._prepared: SimpleQueue[tuple[Run, JobOrError]] = SimpleQueue()
        self._gates: dict[str, Gate] = {}
        self._endings = RunEndings()
        self._poller = JobPoller(scheduler, pace=pace)
        self._requests = CancelRequests(scheduler, stop, self._watched)
        self._releases = Releases(scheduler)
        self._markers = _Markers(pace.tick)
        self._view = LogView(show_log, pace.tick)
        self._cancel_sent: set[str] = set()
        self._last_check = -CHECK_SECONDS

    def run(self) -> None:
        self._requests.begin()
        try:
            while not self._feed.exhausted or self._requests.preparing or self._watched or self._endings.under_way:
                if self._stop.requested() or self._feed.cancel_all_reason() is not None:
                    self._cancel_everything()
                    break
                if self._feed.should_leave():
                    self._leave_to_another_driver()
                    break
                self._prepare_next()
                self._take_prepared()
                self._take_outcomes()
                self._cancel_requested_runs()
                self._act_on_answer()
                self._stop.wait(self._pace.rest)
        except BaseException:
            for run in self._watched.values():
                threads.cancel_job(run)
            raise
        finally:
            self._requests.close()
            self._view.close(0.0 if self._stop.requested() else LAST_LINES_SECONDS)

    def _begin_end(self, run: Run, end: End) -> None:
        """Begin to end the run, in a thread. A run that a person cancelled does not count as failed."""
        succeeded = not isinstance(end, LauncherError) and end.succeeded
        if not succeeded and not run.record.cancel_requested():
            self._feed.failed(run)
        self._endings.begin(run, end)

    def _take_outcomes(self, seconds: float = 0.0) -> None:
        for run, outcome in self._endings.finished(seconds):
            self._feed.ended(run, outcome)

    def _cancel_requested_runs(self) -> None:
        """End waiting runs that somebody asked to cancel, and cancel such jobs, whose ends are then polled as usual.

        A run that is being prepared checks for the request itself.
        """
        if time.monotonic() - self._last_check < CHECK_SECONDS:
            return
        self._last_check = time.monotonic()
        for run in self._feed.take_cancelled():
            self._begin_end(run, run.record.cancel_reason())
        for run in self._watched.values():
            if run.id not in self._cancel_sent and run.record.cancel_requested():
                self._cancel_sent.add(run.id)
                threading.Thread(target=threads.cancel_job, args=(run,), daemon=True, name="cancel one").start()

    def _prepare_next(self) -> None:
        preparing = self._requests.preparing
        while (run := self._feed.next_run(len(self._watched) + len(preparing))) is not None:
            preparing[run.id] = run
            gate = self._gates[run.id] = Gate()
            arguments = (run, self._prepared, gate)
            threading.Thread(target=prepare_in_thread, args=arguments, daemon=True, name="prepare").start()
        for run_id, gate in self._gates.items():
            if gate.answered:
                continue
            admitted = self._feed.may_submit(preparing[run_id], gate.reached)
            if isinstance(admitted, Cancelled):
                gate.shut(admitted)
            elif admitted:
                gate.open()

    def _take_prepared(self) -> None:
        """Watch the jobs of runs that were prepared, and end the runs that could not be."""
        while not self._prepared.empty():
            run, answer = self._prepared.get()
            if isinstance(answer, JobKey):
                self._watch(run, answer)  # before `_forget_preparation`, so that a stop finds the job in one of the two
            else:
                self._begin_end(run, answer)
            self._forget_preparation(run)

    def _watch(self, run: Run, job: JobKey) -> None:
        self._watched[job] = run
        self._poller.watch(job)
        self._view.follow(run)
        self._feed.submitted(run)
        if self._pace.release_at_once:
            self._release(run, job, None)

    def _release(self, run: Run, job: JobKey, state: JobState | None) -> None:
        with _despite_full_disk(run):
            if threads.should_release(run, state):
                self._releases.begin(job)

    def _forget_preparation(self, run: Run) -> None:
        del self._requests.preparing[run.id], self._gates[run.id]

    def _act_on_answer(self) -> None:
        """Take the scheduler's newest answer, if there is one, and act on it."""
        held_jobs = [job for job, run in self._watched.items() if run.record.job is not None and run.record.job.held]
        answer = self._poller.poll(markers=self._markers.read(self._watched), held=held_jobs)
        for job, error in self._releases.finished():
            if job in self._watched:
                with _despite_full_disk(self._watched[job]):
                    threads.record_release(self._watched[job], error)
        if answer is None:
            return
        for change in answer.changes:
            if change.job in self._watched:
                self._take_change(change)
        if self._stop.requested() or self._feed.cancel_all_reason():  # all jobs are cancelled: release none
            return
        for job, run in self._watched.items():
            if job in answer.states and self._releases.answer_is_newer(job, answer.began):
                self._release(run, job, answer.states[job])

    def _take_change(self, change: JobChange) -> None:
        run = self._watched[change.job]
        if change.state != change.before:
            with _despite_full_disk(run):
                finish.record_state(run, change.state)
        if change.given_up is not None or change.ended:
            del self._watched[change.job]
            self._view.end(run)
            self._begin_end(run, change.given_up or change.state)

    def _cancel_everything(self) -> None:
        """Cancel every job first; then wait for runs in preparation, which may submit a job at any moment."""
        stopped = self._stop.requested()
        reason = self._stop.reason() if stopped else self._feed.cancel_all_reason() or Cancelled("given up")
        unstarted = list(self._feed.remaining_runs())
        for run in unstarted:
            if (job := run.record.job_key) is not None:  # another process submitted it, and nobody watches it yet
                self._watched[job] = run
        for job, error in self._requests.wait().items():
            threads.record_cancel(self._watched[job], error)
        began = time.monotonic()
        self._end_preparations(began + threads.CANCEL_BOUND, reason)
        for run in [*self._watched.values(), *(run for run in unstarted if run.record.job_key is None)]:
            self._begin_end(run, reason)
        states = await_ends(self._scheduler, list(self._watched), time_limit=threads.CANCEL_BOUND)
        self._await_endings(began + threads.CANCEL_BOUND, reason)
        for job, state in states.items():
            run = self._watched[job]
            if run not in self._endings.under_way:
                with _despite_full_disk(run):
                    finish.record_state_after_cancel(run, state)

    def _await_endings(self, until: float, reason: Cancelled) -> None:
        """Wait for ends that are under way; after a request to stop only ``until`` then."""
        self._take_outcomes()
        while self._endings.under_way and not (self._stop.requested() and time.monotonic() > until):
            self._take_outcomes(ENDING_CHECK_SECONDS)
        for run in self._endings.under_way:
            self._feed.ended(run, outcome_left_behind(run, reason))

    def _end_preparations(self, until: float, reason: Cancelled) -> None:
        """Wait for runs in preparation. Slurm may have a job before srtctl returns its id: it is found by its token."""
        for gate in self._gates.values():
            gate.shut(reason)
        self._requests.request_all()
        preparing, cancels = self._requests.preparing, dict[Run, Future[None]]()
        while preparing:
            try:
                run, answer = self._prepared.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:  # its record says how far it was; `launcher cleanup` looks for its job by its token
                run, answer = next(iter(preparing.values())), reason
                if run.record.fields.submission_in_doubt:
                    text = (
                        f"left while a submission is under way: `launcher cleanup {run.id}` ends the job that may come"
                    )
                    run.record.event("warning", text)
            self._forget_preparation(run)
            self._requests.submission_ended(run)
            cancels[run] = start_in_thread(partial(threads.cancel_job, run), "cancel")
            if isinstance(answer, JobKey):
                self._watched[answer] = run
            else:
                self._begin_end(run, answer)
        wait(cancels.values(), max(1.0, until - time.monotonic()))
        for run in (run for run, request in cancels.items() if not request.done()):
            threads.record_cancel(run, LauncherError("no answer yet"))

    def _leave_to_another_driver(self) -> None:
        """Leave jobs and records as they are: let submissions finish, and wait a few seconds for ends under way."""
        for gate in self._gates.values():
            gate.shut(Cancelled("its driver left before its job was submitted"))
        preparing, until = self._requests.preparing, time.monotonic() + threads.CANCEL_BOUND
        while preparing and (
            time.monotonic() < until or any(run.record.step("submit").state == "running" for run in preparing.values())
        ):
            with contextlib.suppress(Empty):
                run, answer = self._prepared.get(timeout=ENDING_CHECK_SECONDS)
                self._forget_preparation(run)
                if isinstance(answer, JobKey):
                    self._feed.submitted(run)
        while self._endings.under_way and time.monotonic() < until:
            self._take_outcomes(ENDING_CHECK_SECONDS)


class _Markers:
    """How jobs ended by the last lines of their own logs, which are read every ``tick`` seconds."""

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._last_check = -tick
        self._found: dict[JobKey, JobState] = {}

    def read(self, watched: dict[JobKey, Run]) -> dict[JobKey, JobState]:
        if time.monotonic() - self._last_check >= self._tick:
            self._last_check = time.monotonic()
            logs = {job: (run, Path(run.record.job.log)) for job, run in watched.items() if run.record.job is not None}
            ends = {job: run.kind.end_state_in_log(job, log) for job, (run, log) in logs.items()}
            self._found = {job: end for job, end in ends.items() if end is not None}
        return self._found


@contextlib.contextmanager
def _despite_full_disk(run: Run) -> Iterator[None]:
    """Go on when the record cannot be written: the job must still be followed and cancelled."""
    try:
        yield
    except OSError as error:
        run.record.event("warning", f"the record cannot be written: {error.strerror}")
