"""Slurm by pyslurm: a child process queries the controller through its library; sacct and scancel do the rest.

pyslurm 22.5.3 runs in a child process because it holds Python's lock while it queries the controller, so that a
controller that hangs stops every thread for 10 s, and because its import ends the process where slurm.conf cannot be
read. Each query has a child of its own: one that hangs delays no other query, and a changed slurm.conf is read.
Accounting is queried by sacct: pyslurm keeps one record of each id, so that it cannot tell a requeued job from its
earlier run, and it takes 176 ms where sacct takes 92. Jobs are cancelled by scancel, which works without the child too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from launcher.core.process import CommandRunner, Completed, run
from launcher.core.reading import prepare_type
from launcher.slurm.answers import Answer, make_record
from launcher.slurm.commands import SlurmCommands

CONTROLLER = "slurmctld"
"""The name of the controller as a source of answers, where it is queried by its library."""

WORKER = (sys.executable, "-c", "import sys; from launcher.slurm.native_worker import main; sys.exit(main())")

IMPORT_TIMEOUT = 10.0
"""Seconds that the import of pyslurm may take; it takes 0.03. libslurm searches 60 s for a missing slurm.conf."""


class _Reply(msgspec.Struct):
    """The answer of the child process (`launcher.slurm.native_worker`)."""

    version: str = ""
    error: str = ""
    rows: list[tuple[str, str, str, str, str, str, str, str, str, str]] | None = None


class SlurmNative(SlurmCommands):
    """The Scheduler over pyslurm; its answers are judged as those of the commands.

    Here the controller's answer that a job has ended is enough, because it has the exit code, which squeue cannot show.
    Where the child fails squeue is used: the failure says nothing about jobs or the controller.
    """

    def __init__(
        self,
        *,
        runner: CommandRunner = run,
        environ: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        worker: Sequence[str] = WORKER,
    ) -> None:
        super().__init__(runner=runner, environ=environ, timeout=timeout)
        self._worker = worker

    def query_worker(self, question: Mapping[str, Any], timeout: float) -> tuple[Completed, _Reply]:
        """How the child process ended, and its answer; an empty one when it gave none that can be read."""
        done = run(self._worker, timeout=timeout, env=self._plain, input=json.dumps(question))
        try:
            return done, msgspec.json.decode(done.stdout, type=prepare_type(_Reply))
        except msgspec.MsgspecError:
            return done, _Reply()

    def query_controller(self, ids: Sequence[str] = (), *, user: str = "", timeout: float | None = None) -> Answer:
        """What the controller says of these jobs, or of all jobs of a user, by its library."""
        question = {"user": int(user)} if user else {"ids": list(ids)}
        done, reply = self.query_worker(question, timeout or self._timeout)
        if done.timed_out:
            return Answer(CONTROLLER, error=f"{CONTROLLER}: timed out after {done.seconds:.0f} s")
        if done.ok and reply.error:
            return Answer(CONTROLLER, error=f"{CONTROLLER}: {reply.error}")
        if done.ok and reply.rows is not None:
            return Answer.from_records(CONTROLLER, [make_record(CONTROLLER, *row) for row in reply.rows])
        return super().query_controller(ids, user=user, timeout=timeout)


def choose_backend(
    *,
    runner: CommandRunner = run,
    environ: Mapping[str, str] | None = None,
    worker: Sequence[str] = WORKER,
) -> tuple[SlurmNative | None, str]:
    """The backend and its version in words; or None and the reason why it cannot be used here.

    It can be used when pyslurm can be imported, and is of the same release (``22.5`` for 22.05) as this machine's Slurm
    (``scontrol --version``). A library of another release may misread the controller's answers.
    """
    if importlib.util.find_spec("pyslurm") is None:
        return None, "pyslurm is not installed"
    done = runner(["scontrol", "--version"], timeout=IMPORT_TIMEOUT, env=environ)
    slurm = _release(done.stdout)
    if not done.ok or slurm is None:
        return None, f"Slurm's release cannot be told: {done}"
    native = SlurmNative(runner=runner, environ=environ, worker=worker)
    child, reply = native.query_worker({}, IMPORT_TIMEOUT)
    if not child.ok or not reply.version:
        return None, reply.error or f"pyslurm's process: {child}"
    if _release(reply.version) != slurm:
        return None, f"pyslurm {reply.version} is of another release than {done.stdout.strip()}"
    return native, f"pyslurm {reply.version} for {done.stdout.strip()}"


def _release(text: str) -> tuple[int, int] | None:
    match = re.search(r"\b(\d{2})\.(\d{1,2})\b", text)
    return (int(match[1]), int(match[2])) if match else None
