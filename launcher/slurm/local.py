"""The embedded scheduler, for machines without Slurm: Python functions as jobs that outlive who submitted them.

A jobs directory holds one directory a job, named by its id:

    job.json      what was asked for, and which process supervises the job (``keeper``); `submit` writes it last, and
                  the job exists from then on
    state.json    how the job stands; only its supervisor writes it; it is missing while the job is pending
    cancel.json   somebody asked for the job's end
    call.pkl      the function and its arguments
    submitit/     what submitit needs
    keeper.log    messages of the supervisor and of submitit; normally next to nothing

Every file is published by rename, so any process that sees the directory can find, poll and cancel the jobs. The words
for states are Slurm's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.core import publish
from launcher.core.errors import SubmissionError
from launcher.core.process import ProcessIdentity
from launcher.slurm import states
from launcher.slurm.client import JobKey, JobState, SchedulerUnreachable, carries, unknown
from launcher.slurm.states import Phase

SOURCE = "embedded scheduler"

_SUPERVISOR = (sys.executable, "-c", "from launcher.slurm.supervisor import main; main()")


class Job(msgspec.Struct, frozen=True, rename={"supervisor": "keeper"}):
    """What ``job.json`` says. Times in seconds since the epoch, ``time_limit`` in seconds."""

    id: str
    name: str
    token: str
    log: str
    submitted: float
    time_limit: float | None
    slots: int
    supervisor: ProcessIdentity


def submit(
    directory: Path,
    function: Callable[[], object],
    *,
    name: str,
    token: str,
    log: Path,
    time_limit: float | None = None,
    slots: int | None = None,
) -> JobKey:
    """Run ``function`` as a job of the jobs directory, in processes that go on when this one ends.

    The job has the working directory and environment of now, and SLURM_JOB_ID and SLURM_JOB_NAME. A fresh Python that
    is started here must be able to import what the function needs. The job succeeds when the function returns;
    ``SystemExit(n)`` gives exit code n, any other exception 1. Its output is appended to ``log``, in which ``%j``
    stands for the id, as in Slurm. ``time_limit`` is in seconds. The job starts when fewer than ``slots`` earlier jobs
    of the directory are unfinished, by default the number of CPUs. Raises SubmissionError.
    """
    import cloudpickle  # type: ignore[import-untyped]  # submitit's own

    with _submission_errors(directory):
        job_dir = _new_job_dir(directory)
        # The empty tuple is for the arguments that jobs of earlier launchers have.
        publish.write_bytes(job_dir / "call.pkl", cloudpickle.dumps((function, ())))
        with (job_dir / "keeper.log").open("ab") as log_file:
            supervisor = subprocess.Popen(
                [*_SUPERVISOR, os.fspath(job_dir.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )
        # Nobody here wants to know its exit code, but while this process lives it has to be waited for.
        threading.Thread(target=supervisor.wait, daemon=True, name=f"supervisor of {job_dir.name}").start()
        job = Job(
            id=job_dir.name,
            name=name,
            token=token,
            log=os.fspath(log.absolute()).replace("%j", job_dir.name),
            submitted=round(time.time(), 3),
            time_limit=time_limit,
            slots=slots or os.cpu_count() or 1,
            supervisor=ProcessIdentity.of(supervisor.pid),
        )
        publish.write_json(job_dir / "job.json", msgspec.to_builtins(job))
    return JobKey(job.id, job.submitted, job.token)


class LocalScheduler:
    """The Scheduler over a jobs directory. It holds no state; any process that sees the directory may have one."""

    name = SOURCE

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        return {key: self._state(key) for key in jobs}

    def _state(self, key: JobKey) -> JobState:
        job_dir = self.directory / key.id
        try:
            job = read_job(job_dir)
            if job is None:
                return unknown(f"no such job in {self.directory}", SOURCE)
            if not key.matches(job.submitted, job.token):
                return unknown("another job has this id", SOURCE)
            return observe(job_dir, job)
        except (OSError, ValueError) as error:
            return unknown(f"{job_dir}: {error}", SOURCE)

    def find(self, token: str) -> list[JobKey]:
        try:
            jobs = [read_job(job_dir) for job_dir in job_dirs(self.directory)]
        except (OSError, ValueError) as error:
            raise SchedulerUnreachable(f"the jobs cannot be read: {error}", where=str(self.directory)) from None
        return [JobKey(job.id, job.submitted, token) for job in jobs if job is not None and carries(job.token, token)]

    def release(self, job: JobKey) -> None:
        """Nothing: no job of this scheduler is held."""

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Ask each job's supervisor to end it. Returns at once; the supervisor sends SIGTERM to the job's processes,
        SIGKILL after `supervisor.GRACE` seconds, and publishes CANCELLED."""
        refused = []
        for key in jobs:
            job_dir = self.directory / key.id
            if self._state(key).phase is not Phase.ALIVE:
                continue
            job = read_job(job_dir)
            if job is None or not job.supervisor.alive():
                continue
            with contextlib.suppress(OSError):  # the file only tells an early cancel from a node failure
                publish.write_json(job_dir / "cancel.json", {"uid": os.getuid(), "host": socket.gethostname()})
            try:
                os.kill(job.supervisor.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                refused.append(f"{key}: {error.strerror}")
        if refused:
            raise SchedulerUnreachable(f"cannot be cancelled: {', '.join(refused)}", where=str(self.directory))

    def describe(self, job: JobKey) -> dict[str, str]:
        names = ("job.json", "state.json", "cancel.json", "keeper.log")
        contents = {}
        for name in names:
            with contextlib.suppress(OSError):
                contents[name] = (self.directory / job.id / name).read_text(errors="replace")
        return contents


def observe(job_dir: Path, job: Job) -> JobState:
    """How a job stands, from its files and from whether its supervisor lives. Raises OSError, ValueError."""
    state = _read_state(job_dir, job)
    if state.phase is Phase.TERMINAL:
        return state
    alive = job.supervisor.alive()
    if alive is None:
        return unknown(f"it runs on {job.supervisor.host}, and is not seen from here", SOURCE)
    if alive:
        return state
    state = _read_state(job_dir, job)  # the supervisor may have published the end and left between the two looks
    if state.phase is Phase.TERMINAL:
        return state
    cancelled = (job_dir / "cancel.json").exists()  # the request came before the supervisor was ready for it
    return JobState(
        Phase.TERMINAL,
        "CANCELLED" if cancelled else "NODE_FAIL",
        reason="" if cancelled else "its processes are gone without an end: killed, or the machine was restarted",
        nodes=job.supervisor.host,
        submitted=job.submitted,
        started=state.started,
        source=SOURCE,
    )


def read_job(job_dir: Path) -> Job | None:
    """What ``job.json`` says; None while it is not there. Raises OSError, ValueError (not JSON, not a job)."""
    try:
        return msgspec.json.decode((job_dir / "job.json").read_bytes(), type=Job)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(f"job.json: {error}") from None


def job_dirs(directory: Path) -> list[Path]:
    """The directories of the jobs, by rising id. Raises OSError; a jobs directory that is not there has no jobs."""
    try:
        return sorted((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    except FileNotFoundError:
        return []


def _read_state(job_dir: Path, job: Job) -> JobState:
    seen: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        seen = json.loads((job_dir / "state.json").read_text(encoding="utf-8"))
    word = seen.get("word", "PENDING")
    return JobState(
        states.phase(word),
        word,
        exit_code=(seen["exit_code"], seen.get("signal", 0)) if seen.get("exit_code") is not None else None,
        reason=seen.get("reason", "" if seen else "Resources"),
        nodes=job.supervisor.host if seen else "",
        submitted=job.submitted,
        started=seen.get("started"),
        ended=seen.get("ended"),
        source=SOURCE,
    )


def _new_job_dir(directory: Path) -> Path:
    """A new directory, named by the next id. mkdir is atomic: of two submitters the second takes the next number."""
    directory.mkdir(parents=True, exist_ok=True)
    taken = job_dirs(directory)
    number = int(taken[-1].name) + 1 if taken else 1
    while True:
        job_dir = directory / str(number)
        try:
            job_dir.mkdir()
        except FileExistsError:
            number += 1
        else:
            return job_dir


@contextlib.contextmanager
def _submission_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SubmissionError(f"the job could not be started: {error}", where=str(directory)) from error
