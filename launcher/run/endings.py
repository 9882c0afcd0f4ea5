"""The ends of runs, each in a thread of its own: results may come a minute late, logs may have a gigabyte, and Slurm
may not answer. Meanwhile the loop asks about the other jobs, releases them and begins the next."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from launcher.core.errors import Cancelled, LauncherError, ResultError, as_error
from launcher.core.waiting import begin
from launcher.run import finish, job_requests
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.verdict import verdict
from launcher.slurm.client import JobState

End = JobState | LauncherError
"""How a run came to its end: its job ended so; or this went wrong, and the job, if there is one, has to be ended. Of
Cancelled jobs the end was asked for already."""


class Endings:
    """Ends of runs that are under way, and those that were brought about. Its methods are for one thread."""

    def __init__(self) -> None:
        self.under_way: dict[Run, Future[Outcome]] = {}
        self.failed = False
        """Whether an end is known to be none of success, be it under way or over."""

    def begin(self, run: Run, end: End) -> None:
        """Have the run end so."""
        self.under_way[run] = begin(partial(_end, run, end), "end")
        if not run.record.asked_to_end():  # a run that a person cancelled is no failure
            self.failed = self.failed or isinstance(end, LauncherError) or not end.succeeded

    def taken(self, seconds: float = 0.0) -> Iterator[tuple[Run, Outcome]]:
        """The outcomes that are there since the last call; where there is none yet, the first within ``seconds``."""
        wait(self.under_way.values(), seconds, FIRST_COMPLETED)
        for run in [run for run, end in self.under_way.items() if end.done()]:
            outcome = self.under_way.pop(run).result()
            self.failed = self.failed or outcome.state == "failed"
            yield run, outcome


def _end(run: Run, end: End) -> Outcome:
    try:
        if not isinstance(end, LauncherError):
            return finish.finish(run, end)
        if not isinstance(end, Cancelled):
            job_requests.request_end(run)
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


def left_under_way(run: Run, why: Cancelled) -> Outcome:
    """The outcome of a run whose job has ended, and whose end we cannot wait for: its record stays as it is."""
    run.record.event("warning", f"left while its results were collected; `launcher collect {run.id}` does it again")
    return Outcome(run.id, "cancelled", error=why, verdict=verdict(why))


def _unwritten_end(run: Run, fault: BaseException, error: LauncherError | None = None) -> Outcome:
    """The outcome of a run whose end could not be written down. ``error`` is why it ended, where that was known."""
    if isinstance(fault, OSError):
        message = f"results or records cannot be written: {fault.strerror}"
        trouble: LauncherError = ResultError(message, where=str(fault.filename))
    else:
        trouble = as_error(fault, f"run {run.id}")
    run.record.event("error", str(trouble))
    why = error or trouble
    return Outcome(run.id, "cancelled" if isinstance(why, Cancelled) else "failed", error=why, verdict=verdict(why))
