"""Asking for the end of jobs: at once when we are to stop, and in threads of their own.

Neither a Slurm that hangs nor a loop that is busy (packing logs of a gigabyte, writing to a terminal that nobody reads,
waiting for a disk) may delay the request: GitHub leaves a cancelled step ten seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

from launcher.core.errors import LauncherError
from launcher.core.stop import Stop
from launcher.run.kind import Run
from launcher.slurm.client import JobKey, Scheduler

CANCEL_BOUND = 5.0
"""Seconds to see cancelled jobs gone, and for a run in preparation to stop: GitHub leaves 10 s in all."""

LOOK_FOR_UNRECORDED = 0.4
"""Seconds between two looks for a job that is being submitted while we are asked to stop."""

_LOOK_FOR_STOP = 0.5


class EndRequests:
    """Requests to end the jobs of a loop, each made once. ``watched`` is the loop's own table, as it stands."""

    def __init__(self, scheduler: Scheduler, stop: Stop, watched: Mapping[JobKey, Run]) -> None:
        self._scheduler = scheduler
        self._stop = stop
        self._watched = watched
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._answers: dict[JobKey, LauncherError | None] = {}
        self._over = threading.Event()
        self._submission_over = threading.Event()
        self._seen_to: Run | None = None
        self.preparing: Run | None = None
        """The run that is being prepared, whose job may appear at any moment."""

    def begin(self) -> None:
        """From here on make the requests as soon as the stop is requested, until `close`."""
        threading.Thread(target=self._wait_for_stop, daemon=True, name="cancel at once").start()

    def close(self) -> None:
        """The loop has ended."""
        self._over.set()
        self._submission_over.set()

    def _wait_for_stop(self) -> None:
        while not self._over.is_set():
            if self._stop.wait(_LOOK_FOR_STOP):
                self.make()
                return

    def make(self) -> threading.Thread:
        """Make one request for all jobs for which none was made yet, also for those submitted meanwhile."""
        with self._guard:
            run = self.preparing
            if run is not None and run is not self._seen_to:
                self._seen_to = run
                arguments = (run, self._submission_over)
                threading.Thread(target=end_unrecorded, args=arguments, daemon=True, name="cancel by token").start()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._request, daemon=True, name="cancel")
                self._thread.start()
            return self._thread

    def _request(self) -> None:
        if jobs := [job for job in list(self._watched) if job not in self._answers]:
            try:
                self._scheduler.cancel(jobs)
                self._answers.update(dict.fromkeys(jobs))
            except LauncherError as error:
                self._answers.update(dict.fromkeys(jobs, error))

    def wait(self) -> dict[JobKey, LauncherError | None]:
        """Make the requests that are left, and wait for all, CANCEL_BOUND seconds at most; what came of each."""
        deadline = time.monotonic() + CANCEL_BOUND
        while left := [job for job in self._watched if job not in self._answers]:
            self.make().join(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                silent = LauncherError(f"no answer within {CANCEL_BOUND:.0f} s")
                self._answers.update(dict.fromkeys(left, silent))
        return {job: self._answers[job] for job in self._watched}

    def submission_is_over(self) -> None:
        """The run in preparation has ended its submission: its job is in the record, or there is none."""
        self._submission_over.set()


def end_unrecorded(run: Run, done: threading.Event) -> None:
    """While a submission goes on, and until ``done``, end the job that it makes as soon as Slurm shows it."""
    scheduler = run.services.scheduler
    while not done.wait(LOOK_FOR_UNRECORDED):
        with contextlib.suppress(LauncherError):
            if (job := run.record.job_key) is not None:
                scheduler.cancel([job])
                return
            if run.record.in_doubt and (jobs := scheduler.find(run.id)):
                scheduler.cancel(jobs)  # leaves out what is over


def request_end(run: Run) -> None:
    """Ask for the end of the run's job, by id, and write down what came of it."""
    job = run.record.job_key
    if job is not None:
        try:
            run.services.scheduler.cancel([job])
        except LauncherError as error:
            note_request(run, error)
        else:
            note_request(run)


def note_request(run: Run, error: LauncherError | None = None) -> None:
    """Write down that the job's end was asked for, or why it could not be."""
    job = run.record.job_key
    if error is not None:
        run.record.event("error", f"cancelling {job} failed: {error}")
    elif job is not None:
        run.record.event("job", f"asked for the end of {job}", job=job.id)
