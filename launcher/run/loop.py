"""Driving runs to their ends: how many at once, one poller for all jobs, what to do when asked to stop.

Runs are prepared one after the other in a thread of their own, since an import can take half an hour, and watched in
the caller's thread, which is the one that signals reach. The scheduler is asked once a round for all jobs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from launcher.core.errors import Cancelled, JobError, LauncherError, ResultError
from launcher.core.stop import Stop
from launcher.run.evidence import verdict
from launcher.run.execute import Execution, Outcome
from launcher.slurm.client import JobKey, JobState, Scheduler, unknown
from launcher.slurm.logs import LogFollower
from launcher.slurm.states import Phase
from launcher.slurm.watch import Pace, Watcher
from launcher.srtctl.exit_marker import Markers

CANCEL_BOUND = 5.0
"""Seconds to see cancelled jobs gone, and for a run in preparation to stop: GitHub leaves 10 s in all."""

CANCEL_AGAIN = 2.5
"""Seconds after which a job that does not seem to end is cancelled once more."""

_LOOK = 0.5

LogLines = Callable[[str, Sequence[str]], None]
"""(run id, lines): new lines of a run's job log."""


class Drive:
    """Runs some executions, at most ``max_jobs`` jobs at once; `run` gives their outcomes in the order given."""

    def __init__(
        self,
        executions: Sequence[Execution],
        scheduler: Scheduler,
        stop: Stop,
        *,
        max_jobs: int = 1,
        fail_fast: bool = False,
        pace: Pace = Pace(),
        log_lines: LogLines | None = None,
    ) -> None:
        self._executions = list(executions)
        self._waiting = list(executions)
        self._preparing: Execution | None = None
        self._stop = stop
        self._max_jobs = max_jobs
        self._fail_fast = fail_fast
        self._log_lines = log_lines
        self._outcomes: dict[str, Outcome] = {}
        self._watched: dict[JobKey, Execution] = {}
        self._followers: dict[str, LogFollower] = {}
        self._ready: queue.SimpleQueue[tuple[Execution, JobKey | LauncherError]] = queue.SimpleQueue()
        self._releasing: set[JobKey] = set()
        self._answered: set[JobKey] = set()
        self._released: queue.SimpleQueue[tuple[JobKey, LauncherError | None]] = queue.SimpleQueue()
        self._markers = Markers()
        self._failing = threading.Event()
        self._over = threading.Event()
        self._prepared = threading.Event()
        self._looked_after: Execution | None = None
        self._asking: threading.Thread | None = None
        self._asked: dict[JobKey, LauncherError | None] = {}
        self._guard = threading.Lock()
        self._scheduler = scheduler
        self._watcher = Watcher(
            scheduler,
            wait=self._rest,
            pace=pace,
            on_change=self._saw,
            idle=self._idle,
            marker=self._marker,
            held=lambda job: job in self._watched and self._watched[job].hold.ours,
        )

    def run(self) -> list[Outcome]:
        """Run all to their ends. Never raises for a run; asked to stop, it cancels every job first.

        Whatever else is raised (a bug, a full disk under the records), no job is left behind.
        """
        threading.Thread(target=self._cancel_at_once, daemon=True, name="cancel at once").start()
        try:
            return self._run()
        except BaseException:
            for execution in self._watched.values():
                execution.cancel()
            raise
        finally:
            self._over.set()

    def _cancel_at_once(self) -> None:
        """Ask for the end of all jobs the moment that we are to stop, whatever the driving thread is busy with: logs
        of a gigabyte being packed, a terminal that nobody reads, a disk that hangs."""
        while not self._over.is_set():
            if self._stop.wait(_LOOK):
                self._ask_for_ends()
                return

    def _ask_for_ends(self) -> threading.Thread:
        """One request for all jobs of which it was not made yet; and what is being prepared is looked after."""
        with self._guard:
            coming = self._preparing
            if coming is not None and coming is not self._looked_after:
                self._looked_after = coming
                threading.Thread(target=coming.cancel_unwritten, args=(self._prepared,), daemon=True).start()
            if self._asking is None or not self._asking.is_alive():
                self._asking = threading.Thread(target=self._ask, daemon=True, name="cancel")
                self._asking.start()
            return self._asking

    def _ask(self) -> None:
        if jobs := [job for job in list(self._watched) if job not in self._asked]:
            try:
                self._scheduler.cancel(jobs)
                self._asked.update(dict.fromkeys(jobs))
            except LauncherError as error:
                self._asked.update(dict.fromkeys(jobs, error))

    def _run(self) -> list[Outcome]:
        while self._waiting or self._preparing or self._watched:
            if self._giving_up():
                self._abandon()
                break
            if self._can_begin():
                self._preparing = self._waiting.pop(0)
                threading.Thread(target=self._prepare, args=(self._preparing,), daemon=True, name="prepare").start()
            if not self._ready.empty():
                self._preparing = None
                self._take(*self._ready.get())
            elif self._watched:
                self._watch()
            else:
                self._stop.wait(0.05)
        return [self._outcomes[e.record.id] for e in self._executions]

    def _prepare(self, execution: Execution) -> None:
        try:
            self._ready.put((execution, execution.prepare()))
        except LauncherError as error:
            self._ready.put((execution, error))
        except OSError as error:
            self._ready.put((execution, LauncherError(f"{error.strerror}", where=str(error.filename))))

    def _take(self, execution: Execution, prepared: JobKey | LauncherError) -> None:
        if isinstance(prepared, JobKey):
            self._watched[prepared] = execution
            self._watcher.add([prepared])
        elif isinstance(prepared, Cancelled):
            self._outcomes[execution.record.id] = execution.cancelled(prepared)
        else:
            self._ended(execution, execution.failed(prepared))

    def _watch(self) -> None:
        """Ask round after round until something is to be done: a run is ready, another can begin, or we are to stop."""
        for states in self._watcher.rounds(should_stop=self._interrupted):
            self._note_released()
            for job, execution in list(self._watched.items()):
                state = states.get(job)
                if job in self._watcher.given_up:
                    self._give_up(job, execution)
                elif state is not None and state.phase is Phase.TERMINAL:
                    del self._watched[job]
                    self._follow(execution, last=True)
                    self._finish(execution, state)
                elif state is not None and job not in self._releasing and not self._giving_up():
                    self._let_start(job, execution, state)
            self._releasing -= self._answered  # this round may have been asked before the release, the next one is not
            self._answered.clear()
            if self._interrupted() or self._can_begin():
                return

    def _let_start(self, job: JobKey, execution: Execution, state: JobState) -> None:
        """Release a job that waits because we hold it. In a thread: a hanging scheduler must not hold up a cancel."""
        with self._writing(execution):
            if execution.hold.may_end(state):
                self._releasing.add(job)
                threading.Thread(target=self._release, args=(job,), daemon=True, name="release").start()

    def _release(self, job: JobKey) -> None:
        try:
            self._scheduler.release(job)
            self._released.put((job, None))
        except LauncherError as error:
            self._released.put((job, error))

    def _marker(self, job: JobKey) -> JobState | None:
        execution = self._watched.get(job)
        return self._markers.read(job, execution.log) if execution is not None and execution.log is not None else None

    def _note_released(self) -> None:
        while not self._released.empty():
            job, error = self._released.get()
            self._answered.add(job)
            if (execution := self._watched.get(job)) is not None:
                with self._writing(execution):
                    execution.hold.ended(error)

    @contextlib.contextmanager
    def _writing(self, execution: Execution) -> Iterator[None]:
        """That a record cannot be written (a full disk) is no reason to let go of a job."""
        try:
            yield
        except OSError as error:
            execution.record.event("warning", f"the record cannot be written: {error.strerror}")

    def _finish(self, execution: Execution, state: JobState) -> None:
        try:
            self._ended(execution, execution.finish(state))
        except Cancelled as why:  # stopped while waiting for results to appear
            self._outcomes[execution.record.id] = execution.cancelled(why)
        except OSError as error:
            trouble = ResultError(f"results or records cannot be written: {error.strerror}", where=str(error.filename))
            self._ended(execution, Outcome(execution.record.id, "failed", error=trouble, verdict=verdict(trouble)))

    def _saw(self, job: JobKey, old: JobState | None, new: JobState) -> None:
        execution = self._watched[job]
        with self._writing(execution):
            execution.saw(new)

    def _can_begin(self) -> bool:
        return self._preparing is None and bool(self._waiting) and len(self._watched) < self._max_jobs

    def _giving_up(self) -> bool:
        return self._stop.requested() or (self._fail_fast and self._failing.is_set())

    def _give_up(self, job: JobKey, execution: Execution) -> None:
        error: JobError = self._watcher.given_up[job]
        execution.cancel()
        del self._watched[job]
        self._ended(execution, execution.failed(error))

    def _ended(self, execution: Execution, outcome: Outcome) -> None:
        self._outcomes[execution.record.id] = outcome
        if outcome.error is not None:
            self._failing.set()

    def _interrupted(self) -> bool:
        return self._giving_up() or not self._ready.empty()

    def _rest(self, seconds: float) -> bool:
        """The watcher's pause, cut short when a prepared run is waiting to be watched."""
        return self._stop.wait(min(seconds, 0.2) if seconds else 0) or not self._ready.empty()

    def _idle(self) -> None:
        self._note_released()
        for execution in self._watched.values():
            self._follow(execution)

    def _follow(self, execution: Execution, last: bool = False) -> None:
        log = execution.log
        if self._log_lines is None or log is None:
            return
        follower = self._followers.setdefault(execution.record.id, LogFollower(log))
        while lines := follower.read_new():
            self._log_lines(execution.record.id, lines)
        if last:
            self._log_lines(execution.record.id, follower.flush())
            follower.close()

    def _abandon(self) -> None:
        """Cancel every job first; then wait for what is being prepared, whose job may be there any moment."""
        why = self._stop.reason() if self._stop.requested() else Cancelled("another run of the sweep failed")
        self._cancel_watched()
        if self._preparing is not None:
            self._abandon_preparation(self._preparing, why)
        for execution in [*self._watched.values(), *self._waiting]:
            self._outcomes[execution.record.id] = execution.cancelled(why)
        states = until_gone(self._scheduler, list(self._watched), bound=CANCEL_BOUND)
        for job, state in states.items():
            self._watched[job].saw_after_cancel(state)

    def _cancel_watched(self) -> None:
        """See that all jobs are asked to end. A scheduler that hangs must not hold up what else there is to do."""
        deadline = time.monotonic() + CANCEL_BOUND
        while left := [job for job in self._watched if job not in self._asked]:
            self._ask_for_ends().join(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                silent = LauncherError(f"no answer within {CANCEL_BOUND:.0f} s")
                self._asked.update(dict.fromkeys(left, silent))
        for job, execution in self._watched.items():
            execution.asked_to_end(self._asked[job])

    def _abandon_preparation(self, execution: Execution, why: Cancelled) -> None:
        """Wait for a run in preparation. Its job may be there before srtctl says so, and is then looked for."""
        self._ask_for_ends()
        try:
            _, prepared = self._ready.get(timeout=CANCEL_BOUND)
        except queue.Empty:
            prepared = why  # its record says how far it was; `launcher cleanup` looks for its job by its token
        self._prepared.set()
        if isinstance(prepared, JobKey):
            execution.cancel()
            self._watched[prepared] = execution
        elif isinstance(prepared, Cancelled):
            self._outcomes[execution.record.id] = execution.cancelled(prepared)
        else:
            self._outcomes[execution.record.id] = execution.failed(prepared)


def until_gone(scheduler: Scheduler, jobs: Sequence[JobKey], *, bound: float) -> dict[JobKey, JobState]:
    """Ask until every job has ended or ``bound`` seconds are over; the last states, in which a job may still be alive.

    The request to end is made again every few seconds for those that are not ending. A scheduler that hangs does not
    stretch the bound: what it has not answered is unknown.
    """
    deadline = time.monotonic() + bound

    def wait(seconds: float) -> bool:
        time.sleep(max(0.0, min(seconds, deadline - time.monotonic())))
        return time.monotonic() >= deadline

    watcher = Watcher(scheduler, wait=wait, pace=Pace(first=0.3, running=1.0, pending=1.0))
    done = threading.Event()

    def insist() -> None:
        while not done.wait(CANCEL_AGAIN):
            if left := [job for job in jobs if not _ending(watcher.states.get(job))]:
                with contextlib.suppress(LauncherError):
                    scheduler.cancel(left)

    threading.Thread(target=insist, daemon=True, name="cancel again").start()
    try:
        states = watcher.watch(jobs)
    finally:
        done.set()
    return {job: states.get(job) or unknown("no answer in time") for job in jobs}


def _ending(state: JobState | None) -> bool:
    return state is not None and (state.phase is Phase.TERMINAL or state.word == "COMPLETING")
