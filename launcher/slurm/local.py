"""The embedded scheduler, for machines without Slurm: Python functions as jobs that outlive who submitted them.

A jobs directory holds one directory a job, named by its id:

    job.json      what was submitted, and which process supervises the job (``keeper``); `submit` writes it last, and
                  the job exists from then on
    state.json    the job's state; only its supervisor writes it; it is missing while the job is pending
    cancel.json   the job's end was requested
    call.pkl      the function and its arguments
    submitit/     what submitit needs
    keeper.log    messages of the supervisor and of submitit; normally next to nothing

Every file is published by rename, so any process that sees the directory can find, poll and cancel the jobs. The words
for states are Slurm's.

The supervisor of a job is a process beside it: it waits for the job's turn, runs it by submitit, and writes its end. It
leads a session and process group of its own, in which the whole job runs: submitit's controller, the function's
process, and what they start. (A kill does not reach what the job itself starts in a new session.)
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import msgspec

from launcher.core import publish
from launcher.core.errors import SubmissionError
from launcher.core.process import ProcessIdentity
from launcher.core.publish import make_private
from launcher.core.reading import prepare_type, read_file
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable, has_token, phase_of, unknown_state

SOURCE = "embedded scheduler"

KILL_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

LOOK_INTERVAL = 0.1
"""Seconds between two checks of a supervisor: of its job, and for a free slot."""

_SUPERVISOR = (sys.executable, "-c", "from launcher.slurm.local import supervise; supervise()")
_BYTECODE = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
"""Variables that workflows set for the benchmark's Python. The job's function has them; the supervisor and submitit's
two processes do not: each would compile all that it imports, 1.7 s of CPU together."""
_SUBMITTER_PATIENCE = 30.0
_TEN_YEARS = 10 * 365 * 24 * 60  # minutes; submitit needs a limit, and does not report that it killed a job for it


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


class _State(msgspec.Struct, frozen=True):
    """What ``state.json`` says."""

    word: str
    exit_code: int | None = None
    signal: int = 0
    reason: str = ""
    started: float | None = None
    ended: float | None = None


_Kind = TypeVar("_Kind", Job, _State)


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

    try:
        job_dir = _new_job_dir(directory)
        own = {variable: os.environ[variable] for variable in _BYTECODE if variable in os.environ}
        publish.write_bytes(job_dir / "call.pkl", cloudpickle.dumps((_call, (function, own))))
        with (job_dir / "keeper.log").open("ab") as log_file:
            supervisor = subprocess.Popen(
                [*_SUPERVISOR, os.fspath(job_dir.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                env={variable: value for variable, value in os.environ.items() if variable not in own},
            )
        # Its exit code is not needed, but while this process lives it has to be reaped.
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
    except OSError as error:
        raise SubmissionError(f"the job could not be started: {error}", where=str(directory)) from error
    return JobKey(job.id, job.submitted, job.token)


class LocalScheduler:
    """The Scheduler over a jobs directory. It holds no state; any process that sees the directory may use one."""

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
                return unknown_state(f"no such job in {self.directory}", SOURCE)
            if not key.matches(job.submitted, job.token):
                return unknown_state("another job has this id", SOURCE)
            return job_state(job_dir, job)
        except (OSError, ValueError) as error:
            return unknown_state(f"{job_dir}: {error}", SOURCE)

    def find(self, token: str) -> list[JobKey]:
        try:
            jobs = [read_job(job_dir) for job_dir in job_dirs(self.directory)]
        except (OSError, ValueError) as error:
            raise SchedulerUnreachable(f"the jobs cannot be read: {error}", where=str(self.directory)) from None
        return [JobKey(job.id, job.submitted, token) for job in jobs if job is not None and has_token(job.token, token)]

    def release(self, job: JobKey) -> None:
        """Nothing: no job of this scheduler is held."""

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Request each job's end from its supervisor. Returns at once; the supervisor sends SIGTERM to the job's
        processes, SIGKILL after `KILL_GRACE` seconds, and publishes CANCELLED."""
        refused = []
        for key in jobs:
            job_dir = self.directory / key.id
            if self._state(key).phase is not Phase.ALIVE:
                continue
            if not (job := read_job(job_dir)) or not job.supervisor.alive():
                continue
            with contextlib.suppress(OSError):  # the file only tells an early cancel from a node failure
                publish.write_json(job_dir / "cancel.json", {"uid": os.getuid(), "host": socket.gethostname()})
            try:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(job.supervisor.pid, signal.SIGTERM)
            except PermissionError as error:
                refused.append(f"{key}: {error.strerror}")
        if refused:
            raise SchedulerUnreachable(f"cannot be cancelled: {', '.join(refused)}", where=str(self.directory))

    def describe(self, job: JobKey) -> dict[str, str]:
        contents = {}
        for name in ("job.json", "state.json", "cancel.json", "keeper.log"):
            with contextlib.suppress(OSError):
                contents[name] = (self.directory / job.id / name).read_text(errors="replace")
        return contents


def job_state(job_dir: Path, job: Job) -> JobState:
    """The state of a job, by its files and by whether its supervisor is alive. Raises OSError, ValueError."""
    alive = job.supervisor.alive()  # checked first: a supervisor that has ended has published the last state
    state = _read_state(job_dir, job)
    if state.phase is Phase.TERMINAL or alive:
        return state
    if alive is None:
        return unknown_state(f"it runs on {job.supervisor.host}, and is not seen from here", SOURCE)
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
    return _read(job_dir / "job.json", Job)


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    try:
        return msgspec.json.decode(read_file(path, 1 << 20), type=prepare_type(kind))
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def job_dirs(directory: Path) -> list[Path]:
    """The directories of the jobs, by rising id. Raises OSError; a jobs directory that is not there has no jobs."""
    try:
        return sorted((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    except FileNotFoundError:
        return []


def _read_state(job_dir: Path, job: Job) -> JobState:
    published = _read(job_dir / "state.json", _State)
    state = published or _State("PENDING", reason="Resources")
    return JobState(
        phase_of(state.word),
        state.word,
        exit_code=(state.exit_code, state.signal) if state.exit_code is not None else None,
        reason=state.reason,
        nodes=job.supervisor.host if published else "",
        submitted=job.submitted,
        started=state.started,
        ended=state.ended,
        source=SOURCE,
    )


def _new_job_dir(directory: Path) -> Path:
    """A new directory, named by the next id. mkdir is atomic: of two submitters the second takes the next number."""
    make_private(directory)
    taken = job_dirs(directory)
    number = int(taken[-1].name) + 1 if taken else 1
    while True:
        job_dir = directory / str(number)
        with contextlib.suppress(FileExistsError):
            job_dir.mkdir(mode=0o700)
            return job_dir
        number += 1


def supervise() -> None:
    """Bring a job to its end, in a process of its own whose argument is the job's directory.

    Ends with a SIGKILL to its own process group, so that no process of the job outlives it.
    """
    job_dir = Path(sys.argv[1])
    requests: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: requests.append(number))
    deadline = time.monotonic() + _SUBMITTER_PATIENCE
    while (job := read_job(job_dir)) is None:
        if time.monotonic() >= deadline:
            return  # its submitter died before the job existed
        time.sleep(0.02)
    if _await_turn(job_dir, job, cancelled=lambda: bool(requests)):
        _run(job_dir, job, cancelled=lambda: bool(requests))
    else:
        _publish_state(job_dir, "CANCELLED", None, reason="before it started")
    os.killpg(0, signal.SIGKILL)


def _await_turn(job_dir: Path, job: Job, *, cancelled: Callable[[], bool]) -> bool:
    """Wait until fewer than ``slots`` earlier jobs are unfinished; False when the job is cancelled meanwhile."""
    # No lock is needed: all jobs with lower ids existed before this one, and they can only end.
    ahead = [earlier for earlier in job_dirs(job_dir.parent) if int(earlier.name) < int(job.id)]
    while not cancelled():
        ahead = [earlier for earlier in ahead if _is_unfinished(earlier)]
        if len(ahead) < job.slots:
            return True
        time.sleep(LOOK_INTERVAL)
    return False


def _run(job_dir: Path, job: Job, *, cancelled: Callable[[], bool]) -> None:
    started = time.time()
    _publish_state(job_dir, "RUNNING", started)
    deadline = time.monotonic() + (job.time_limit if job.time_limit is not None else math.inf)
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.LocalExecutor(folder=job_dir / "submitit")
    executor.update_parameters(timeout_min=_TEN_YEARS, signal_delay_s=0, stderr_to_stdout=True)
    handle = executor.submit(perform, os.fspath(job_dir))
    while not handle.done():
        if cancelled() or time.monotonic() >= deadline:
            word = "CANCELLED" if cancelled() else "TIMEOUT"
            os.killpg(0, signal.SIGTERM)  # this process receives it too
            grace_end = time.monotonic() + KILL_GRACE
            while not handle.done() and time.monotonic() < grace_end:
                time.sleep(LOOK_INTERVAL)
            _publish_state(job_dir, word, started, exit_code=0, signal=int(signal.SIGTERM))
            return
        time.sleep(LOOK_INTERVAL)
    if not handle.paths.result_pickle.exists():
        reason = "the function's process ended without a result, by a signal or os._exit"
        _publish_state(job_dir, "FAILED", started, reason=reason)
        return
    try:
        code = handle.result()
    except FailedJobError:  # an exception; its traceback is in the log
        code = 1
    word, why = ("FAILED", {"reason": "NonZeroExitCode"}) if code else ("COMPLETED", {})
    _publish_state(job_dir, word, started, exit_code=code, **why)


def _publish_state(job_dir: Path, word: str, started: float | None, **more: object) -> None:
    ended = None if word == "RUNNING" else time.time()
    publish.write_json(job_dir / "state.json", {"word": word, "started": started, "ended": ended, **more})


def perform(directory: str) -> int:
    """Call the function, with its output in the log; the exit code. This runs in the job's own process."""
    import cloudpickle  # submitit's own

    job_dir = Path(directory)
    job = read_job(job_dir)
    assert job is not None  # its supervisor has read it
    log = Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.getLogger("submitit").setLevel(logging.WARNING)  # its "completed successfully" is not the job's word
    os.environ.update(SLURM_JOB_ID=job.id, SLURM_JOB_NAME=job.name)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    threading.Thread(target=_kill_when_orphaned, args=(job.supervisor,), daemon=True, name="supervisor watch").start()
    function, args = cloudpickle.loads((job_dir / "call.pkl").read_bytes())
    try:
        function(*args)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 0xFF
        sys.stderr.write(f"{leaving.code}\n")
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _call(function: Callable[[], object], variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    function()


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Have SIGTERM raise SystemExit, so that the function can end its own children. submitit would ignore the
    signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second one, forwarded by submitit's controller
    raise SystemExit(128 + number)


def _kill_when_orphaned(supervisor: ProcessIdentity) -> None:
    """End this job when its supervisor was killed: nothing would publish its end or act on a cancel."""
    while supervisor.alive():
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _is_unfinished(job_dir: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a job whose files cannot be read does not delay others
        job = read_job(job_dir)
        if job is None:  # it is being submitted now, or its submitter died
            return time.time() - job_dir.stat().st_mtime < _SUBMITTER_PATIENCE
        return job_state(job_dir, job).phase is not Phase.TERMINAL
    return False
