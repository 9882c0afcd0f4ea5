"""The process beside each job of the embedded scheduler: waits for the job's turn, runs it by submitit, tells its end.

It leads a session and process group of its own, in which the whole job runs: submitit's controller, the function's
process, and what they start. (A kill does not reach what the job itself starts in a new session.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.core import publish
from launcher.core.process import ProcessIdentity
from launcher.slurm import local
from launcher.slurm.states import Phase

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

LOOK = 0.1
"""Seconds between two looks: at the job, and for a free slot."""

_SUBMITTER_PATIENCE = 10.0
_TEN_YEARS = 10 * 365 * 24 * 60  # minutes; submitit wants a limit, and does not say when it kills a job for it


def main() -> None:
    """Bring a job to its end: ``python -c 'from launcher.slurm.supervisor import main; main()' JOB_DIRECTORY``.

    Ends with a SIGKILL to its own process group, so that no process of the job outlives it.
    """
    job_dir = Path(sys.argv[1])
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    job = _await_job(job_dir)
    if job is None:
        return  # its submitter died before the job existed
    _Supervisor(job_dir, job, lambda: bool(asked)).run()
    os.killpg(0, signal.SIGKILL)


class _Supervisor:
    """Runs one job. ``cancelled`` says whether somebody asked for its end."""

    def __init__(self, job_dir: Path, job: local.Job, cancelled: Callable[[], bool]) -> None:
        self.job_dir = job_dir
        self.job = job
        self.cancelled = cancelled
        self.started: float | None = None

    def run(self) -> None:
        if not self._turn():
            self._publish("CANCELLED", reason="before it started")
            return
        self.started = time.time()
        self._publish("RUNNING")
        deadline = time.monotonic() + self.job.time_limit if self.job.time_limit is not None else None
        handle = self._start()
        while not handle.done():
            if self.cancelled():
                self._end(handle)
                self._publish("CANCELLED", exit_code=0, signal=int(signal.SIGTERM))
                return
            if deadline is not None and time.monotonic() >= deadline:
                self._end(handle)
                self._publish("TIMEOUT", exit_code=0, signal=int(signal.SIGTERM))
                return
            time.sleep(LOOK)
        self._publish_result(handle)

    def _turn(self) -> bool:
        """Wait until fewer than ``slots`` earlier jobs are unfinished; False when the job is cancelled meanwhile.

        It needs no lock: it looks at lower ids only, and those only ever end.
        """
        over: set[Path] = set()
        while not self.cancelled():
            ahead = 0
            for job_dir in local.job_dirs(self.job_dir.parent):
                if int(job_dir.name) >= int(self.job.id) or ahead >= self.job.slots:
                    break
                if job_dir not in over:
                    if _unfinished(job_dir):
                        ahead += 1
                    else:
                        over.add(job_dir)
            if ahead < self.job.slots:
                return True
            time.sleep(LOOK)
        return False

    def _start(self) -> Any:
        import submitit

        executor = submitit.LocalExecutor(folder=self.job_dir / "submitit")
        executor.update_parameters(timeout_min=_TEN_YEARS, signal_delay_s=0, stderr_to_stdout=True)
        return executor.submit(perform, os.fspath(self.job_dir))

    def _end(self, handle: Any) -> None:
        os.killpg(0, signal.SIGTERM)  # this process counts it as one more request
        until = time.monotonic() + GRACE
        while not handle.done() and time.monotonic() < until:
            time.sleep(LOOK)

    def _publish_result(self, handle: Any) -> None:
        from submitit.core.utils import FailedJobError

        if not handle.paths.result_pickle.exists():
            self._publish("FAILED", reason="the function's process ended without a result, by a signal or os._exit")
            return
        try:
            code = handle.result()
        except FailedJobError:  # an exception; its traceback is in the log
            code = 1
        if code:
            self._publish("FAILED", exit_code=code, reason="NonZeroExitCode")
        else:
            self._publish("COMPLETED", exit_code=0)

    def _publish(self, word: str, **more: object) -> None:
        ended = None if word == "RUNNING" else time.time()
        state = {"word": word, "started": self.started, "ended": ended, **more}
        publish.write_json(self.job_dir / "state.json", state)


def perform(directory: str) -> int:
    """Call the function, with its output in the log; the exit code. This runs in the job's own process."""
    import logging

    import cloudpickle  # type: ignore[import-untyped]  # submitit's own

    job_dir = Path(directory)
    job = _await_job(job_dir)
    if job is None:
        raise FileNotFoundError(f"{job_dir}: no job.json")
    log = Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    logging.getLogger("submitit").setLevel(logging.WARNING)  # its "completed successfully" is not the job's word
    os.environ.update(SLURM_JOB_ID=job.id, SLURM_JOB_NAME=job.name)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with, args=(job.supervisor,), daemon=True, name="supervisor watch").start()
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


def _leave(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM unwind the function, so that it can end its own children. submitit would ignore the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second one, forwarded by submitit's controller
    raise SystemExit(128 + number)


def _die_with(supervisor: ProcessIdentity) -> None:
    """End this job when its supervisor was killed: nobody would tell its end, nor act on a cancel."""
    while supervisor.alive():
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _await_job(job_dir: Path) -> local.Job | None:
    until = time.monotonic() + _SUBMITTER_PATIENCE
    while (job := local.read_job(job_dir)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return job


def _unfinished(job_dir: Path) -> bool:
    job = local.read_job(job_dir)
    if job is None:  # being submitted just now, or never was
        return time.time() - job_dir.stat().st_mtime < _SUBMITTER_PATIENCE
    return local.observe(job_dir, job).phase is not Phase.TERMINAL
