"""Slurm by pyslurm: a child process asks the controller through its library; sacct and scancel do the rest.

pyslurm 22.5.3 is used in a child process because it holds Python's lock while it asks the controller, so that a
controller that hangs stops every thread for 10 s, and because its import ends the process where slurm.conf cannot be
read. Accounting is asked by sacct: pyslurm keeps one record of each id, so that it cannot tell a requeued job from its
earlier run, and it takes 176 ms where sacct takes 92. Jobs are cancelled by scancel, which works without the child too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import msgspec

from launcher.core.errors import SubmissionError
from launcher.core.process import CommandRunner, run
from launcher.slurm.commands import Answer, SlurmCommands, record_of

CONTROLLER = "slurmctld"
"""The name of the controller as a source, where it is asked by its library."""

WORKER = (sys.executable, "-c", "import sys; from launcher.slurm.native_worker import main; sys.exit(main())")

_Row = tuple[str, str, str, str, str, str, str, str, str, str]

START = 10.0
"""Seconds that the import of pyslurm may take; it takes 0.03. libslurm looks 60 s for a missing slurm.conf."""


class WorkerFailed(SubmissionError):
    """The child process ended, or its answer cannot be understood. This says nothing about jobs or the controller."""


class WorkerSilent(WorkerFailed):
    """The child process did not start or answer in time: the controller hangs, most likely."""


class SlurmNative(SlurmCommands):
    """The Scheduler over pyslurm; its answers are judged as those of the commands.

    Here the controller's answer that a job has ended is enough, since it comes with the exit code, which squeue cannot
    show. Several threads may use it: each question that finds no idle child starts one, so that none waits for one
    that hangs.
    """

    def __init__(
        self,
        version: str,
        *,
        runner: CommandRunner = run,
        environ: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        worker: Sequence[str] = WORKER,
    ) -> None:
        super().__init__(runner=runner, environ=environ, timeout=timeout)
        self.version = version
        self._argv = list(worker)
        self._idle: list[_Worker] = []
        self._guard = threading.Lock()

    def _squeue(self, ids: Sequence[str] = (), *, user: str = "", timeout: float | None = None) -> Answer:
        answer = self._controller({"user": int(user)} if user else {"ids": list(ids)}, timeout)
        return super()._squeue(ids, user=user, timeout=timeout) if answer is None else answer

    def _controller(self, question: Mapping[str, Any], timeout: float | None) -> Answer | None:
        """What the controller says, or why it gave no answer; None when the child failed: squeue may still succeed."""
        timeout = timeout or self._timeout
        deadline = time.monotonic() + timeout
        try:
            with self._worker(min(timeout, START)) as worker:
                reply = worker.ask(question, deadline - time.monotonic())
                # A child that reported an error is not kept: slurm.conf may have changed since it was started.
                worker.fit = "error" not in reply
        except WorkerSilent as error:
            return Answer(CONTROLLER, error=f"{CONTROLLER}: {error.message}")
        except WorkerFailed:
            return None
        if "error" in reply:
            return Answer(CONTROLLER, error=f"{CONTROLLER}: {reply['error']}")
        try:
            rows = msgspec.convert(reply.get("rows"), list[_Row])
        except msgspec.ValidationError:
            return None
        return Answer.of(CONTROLLER, [record_of(CONTROLLER, *row) for row in rows])

    @contextlib.contextmanager
    def _worker(self, start: float) -> Iterator[_Worker]:
        """The idle child, or a new one, which has ``start`` seconds to greet; one is kept for the next question."""
        with self._guard:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.running:
            worker = _Worker(self._argv, self._plain, start)
        try:
            yield worker
        except BaseException:
            worker.end()
            raise
        with self._guard:
            keep = worker.fit and not self._idle
            if keep:
                self._idle.append(worker)
        if not keep:
            worker.end()


def choose(
    *,
    runner: CommandRunner = run,
    environ: Mapping[str, str] | None = None,
    worker: Sequence[str] = WORKER,
    installed: bool | None = None,
) -> tuple[SlurmNative | None, str]:
    """The backend and its version in words; or None and the reason why it cannot be used here.

    It can be used when pyslurm can be imported, and is of the same release (``22.5`` for 22.05) as this machine's Slurm
    (``scontrol --version``). A library of another release may misread the controller's answers.
    """
    if installed is None:
        installed = importlib.util.find_spec("pyslurm") is not None
    if not installed:
        return None, "pyslurm is not installed"
    done = runner(["scontrol", "--version"], timeout=START, env=environ)
    slurm = _release(done.stdout)
    if not done.ok or slurm is None:
        return None, f"Slurm's release cannot be told: {done}"
    native = SlurmNative("", runner=runner, environ=environ, worker=worker)
    try:
        with native._worker(START) as child:
            native.version = child.version
    except WorkerSilent as error:
        return None, f"pyslurm's import {error.message}"
    except WorkerFailed as error:
        return None, error.message
    if _release(native.version) != slurm:
        return None, f"pyslurm {native.version} is of another release than {done.stdout.strip()}"
    return native, f"pyslurm {native.version} for {done.stdout.strip()}"


def _release(text: str) -> tuple[int, int] | None:
    found = re.search(r"\b(\d{2})\.(\d{1,2})\b", text)
    return (int(found[1]), int(found[2])) if found else None


class _Worker:
    """One child process."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], timeout: float) -> None:
        """Start the process and take its greeting. Raises WorkerFailed, WorkerSilent."""
        self.fit = True
        self._held = b""
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        try:
            self._child = subprocess.Popen(
                argv,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                start_new_session=True,  # Ctrl-C in a terminal is the launcher's to act on
                bufsize=0,
            )
        except OSError as error:
            self._complaints.close()
            raise WorkerFailed(f"pyslurm's process cannot be started: {error}") from None
        self.end = weakref.finalize(self, _end, self._child, self._complaints)
        try:
            reply = self._line(timeout)
            if "version" not in reply:
                raise WorkerFailed(str(reply.get("error", reply)))
            self.version = str(reply["version"])
        except BaseException:
            self.end()
            raise

    @property
    def running(self) -> bool:
        if self._child.poll() is None:
            return True
        self.end()
        return False

    def ask(self, question: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError:
            raise self._failed() from None
        return self._line(timeout)

    def _line(self, timeout: float) -> Mapping[str, Any]:
        assert self._child.stdout is not None
        handle = self._child.stdout.fileno()
        ready = select.poll()
        ready.register(handle, select.POLLIN)
        deadline = time.monotonic() + timeout
        while b"\n" not in self._held:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorkerSilent(f"timed out after {timeout:.0f} s")
            chunk = os.read(handle, 1 << 16)
            if not chunk:
                raise self._failed()
            self._held += chunk
        line, self._held = self._held.split(b"\n", 1)
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise WorkerFailed(f"pyslurm's process says {line[:80]!r}")
        return reply

    def _failed(self) -> WorkerFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=1.0)
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        how = f"exit {self._child.returncode}"
        return WorkerFailed(f"pyslurm's process ended, {how}" + (f": {lines[-1]}" if lines else ""))


def _end(child: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
    """Kill the child and wait for its end: it holds nothing that could be lost."""
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout, complaints):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
