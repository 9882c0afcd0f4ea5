"""A run's record on disk: what the run is, what it did and what it holds, so that any other process can take over.

``runs/<run id>/`` holds ``run.json`` (replaced atomically), ``plan.json``, ``events.jsonl`` (appended), and what the
steps of the run keep there. A step's outcome is in the record before the next step begins; the job's id is there before
anything waits for the job.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.core.checkout_head import head_commit
from launcher.core.errors import Cancelled, ConfigError, LauncherError, SubmissionError, SubmissionUnknown, closest
from launcher.core.process import ProcessIdentity
from launcher.core.publish import (
    append_line,
    json_line,
    make_private,
    publishing_directory,
    write_bytes,
    write_json,
    write_text,
)
from launcher.core.reading import read_file
from launcher.core.redact import redact, redact_bytes
from launcher.core.rights import describe_os_error, user_name
from launcher.plan.plan import Plan, check_run_id
from launcher.result.logs import LOGS
from launcher.run.fields import ENDED as ENDED
from launcher.run.fields import LARGEST, read_fields
from launcher.run.fields import RecordedError as RecordedError
from launcher.run.fields import RecordedJob as RecordedJob
from launcher.run.fields import RunFields as RunFields
from launcher.run.fields import Step as Step
from launcher.slurm.client import JobKey

SUBMISSION_PATIENCE = 330.0
"""Seconds to wait for the submission of a launcher that was killed: its srtctl goes on for 300 at most."""


LARGEST_KEPT = 512 * 1024
"""Bytes that are kept of any one file: of a text its beginning, of a log and of the events the end. With the twelve
names that there are, evidence has at most 6 MiB."""

REQUEST = "cancel.json"
"""The file in a run's directory by which somebody asks its driver to end it."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: when (epoch seconds), which kind (``stage``, ``job``, ``note``, …), what."""

    time: float
    run: str
    kind: str
    text: str
    data: Mapping[str, Any]


Listener = Callable[[Event], None]
"""Sees every event as it is recorded: a terminal, a CI log, a test."""


class RunRecord:
    """One run's directory. ``fields`` is what the record says; `update` changes it, at once on disk too."""

    def __init__(self, directory: Path, fields: RunFields) -> None:
        self.directory = directory
        self.fields = fields
        self.listeners: list[Listener] = []
        self.environ: Mapping[str, str] | None = None
        """The environment whose secrets are taken out of what is recorded; whoever knows it sets it."""
        self._held: int | None = None

    @classmethod
    def create(cls, runs: Path, plan: Plan, **fields: Any) -> RunRecord:
        """Make the record of a new run, with these ``fields``.

        Raises ConfigError when a run with this id is there already: the caller resumes that one instead.
        """
        directory = runs / check_run_id(plan.run_key)
        if (directory / "run.json").exists():
            raise _taken(directory)
        # It is made whole under another name: a run whose launcher was killed here could neither be begun nor resumed.
        try:
            make_private(runs)
            with publishing_directory(directory, whole=lambda there: False) as temporary:
                make_private(temporary)
                write_json(temporary / "plan.json", plan.as_dict())
                record = cls(temporary, RunFields(plan.run_key, plan.runner))
                commit = head_commit(Path(plan.workspace.path))
                record.update(created=time.time(), owner=ProcessIdentity.current(), commit=commit, **fields)
                record.acquire()
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _taken(directory) from None
            message = f"the run's record cannot be made: {describe_os_error(error, runs)}"
            raise ConfigError(message, where=str(directory)) from None
        record.directory = directory
        return record

    @classmethod
    def load(cls, runs: Path, run_id: str) -> RunRecord:
        """Read a run's record. Raises ConfigError naming the nearest run, or what is wrong with the file."""
        directory = runs / check_run_id(run_id)
        try:
            return cls(directory, read_fields(directory / "run.json", run_id))
        except (FileNotFoundError, NotADirectoryError):
            if directory.is_dir():
                raise missing_record_error(directory) from None
            known = [p.name for p in runs.iterdir() if not p.name.startswith(".")] if runs.is_dir() else []
            near = closest(run_id, known)
            hint = f"did you mean {near}?" if near else "launcher status lists the runs"
            raise ConfigError(f"there is no run {run_id}", where=str(runs), hint=hint) from None

    @property
    def id(self) -> str:
        return self.fields.id

    @property
    def job(self) -> RecordedJob | None:
        return self.fields.job

    @property
    def job_key(self) -> JobKey | None:
        """The run's job as a scheduler knows it, once there is one."""
        return JobKey(self.job.id, self.job.submitted, self.id, self.job.cluster) if self.job is not None else None

    @property
    def log_path(self) -> Path | None:
        """The log of the run's job, where the job writes it or where it was collected to; None without a job."""
        if self.job is None:
            return None
        path = Path(self.job.log)
        if not self.fields.has_ended or path.exists():
            return path
        by_hand = self.fields.results != "workspace"
        return Path(self.directory / "results" if by_hand else self.plan.workspace.path, LOGS, path.name)

    @property
    def plan(self) -> Plan:
        """The plan of this run. Raises ConfigError when it cannot be read."""
        return Plan.read(self.directory / "plan.json")

    def without_secrets(self, text: str) -> str:
        """The text without secrets."""
        return redact(text, self.environ) if self.environ is not None else text

    def update(self, **changes: Any) -> None:
        """Change fields, durably."""
        self.fields = replace(self.fields, **changes, updated=time.time())
        self.write("run.json", self.fields.as_json())

    def write(self, name: str, value: Any) -> None:
        """Write a file of JSON into the run's directory, durably. Raises OSError."""
        write_json(self.directory / name, value)

    @property
    def evidence(self) -> Path:
        """Where the evidence for the run's verdict lies."""
        return self.directory / "evidence"

    def keep(self, name: str, content: str | bytes | Mapping[str, str]) -> None:
        """Write a file among the evidence, without secrets: a text or bytes, of at most LARGEST_KEPT, or JSON of such
        texts. Raises OSError."""
        path = self.evidence / name
        self.evidence.mkdir(mode=0o700, exist_ok=True)
        if isinstance(content, Mapping):
            write_json(path, {key: self.without_secrets(text)[:LARGEST_KEPT] for key, text in content.items()})
        elif isinstance(content, str):
            write_text(path, self.without_secrets(content)[:LARGEST_KEPT], durable=False)
        else:
            write_bytes(path, redact_bytes(content, self.environ or {})[:LARGEST_KEPT], durable=False)

    @property
    def images(self) -> list[Mapping[str, Any]]:
        """What the step ``images`` wrote down of each image; whatever else stands there is none."""
        recorded = self.step("images").facts.get("images")
        return [image for image in recorded if isinstance(image, dict)] if isinstance(recorded, list) else []

    def step(self, name: str) -> Step:
        """What is known of a step; its ``state`` is "" while it has not begun."""
        return self.fields.steps.get(name, Step())

    def set_step(self, name: str, state: str, *, error: str | None = None, **facts: Any) -> None:
        """Write a step's state, and the facts that later steps and other processes need of it."""
        now, before = time.time(), self.step(name)
        began = now if state == "running" or not before.began else before.began
        step = Step(state, began, now, error, {**before.facts, **facts})
        state_now = {"state": "preparing"} if self.fields.state == "new" else {}
        self.update(steps={**self.fields.steps, name: step}, **state_now)

    @contextlib.contextmanager
    def running_step(
        self, name: str, at_most: float | None = None, **known: Any
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Write a step's beginning with what is ``known``, and its end whatever that is; gives a function that keeps
        facts of it. It takes ``at_most`` so many seconds, where that is known."""
        facts: dict[str, Any] = {}
        self.set_step(name, "running", **known)
        self.event("stage", f"{name} …", stage=name, state="running", at_most=at_most)
        try:
            yield facts.update
        except LauncherError as error:
            state = "unknown" if isinstance(error, SubmissionUnknown) else "failed"
            self.set_step(name, state, error=self.without_secrets(error.message))
            raise
        self.set_step(name, "done", **facts)
        self.event("stage", f"{name} done", stage=name, state="done")

    def event(self, kind: str, text: str, **data: Any) -> None:
        """Append an event, and show it to the listeners: that, too, when the file cannot be written (a full disk)."""
        text = self.without_secrets(text)
        event = Event(time.time(), self.id, kind, text, data)
        line = json_line({"time": event.time, "kind": kind, "text": text, **data})
        try:
            append_line(self.directory / "events.jsonl", line)
        except OSError as error:
            event = replace(event, text=f"{text} (not recorded: {error.strerror})")
        for listener in self.listeners:
            listener(event)

    def events(self) -> Iterator[dict[str, Any]]:
        """The recorded events: with ``time``, ``kind`` and ``text``, whatever lies in the file.

        What a full disk, a kill or a bad block has cut or changed is passed over, wherever that was; so is a file that
        cannot be read.
        """
        lines: list[bytes] = []
        with contextlib.suppress(OSError):
            lines = read_file(self.directory / "events.jsonl", LARGEST).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                if _is_event(event := json.loads(line.decode())):
                    yield event

    def request_cancel(self, by: str) -> None:
        """Ask the run's driver, on whatever host, to end the run, by a file that it looks for. Raises OSError.

        Only the driver knows what it is about to do. A run that waits its turn in a sweep has no job that could be
        cancelled, and would be submitted later; a job that is gone under its driver looks like somebody else's doing.
        """
        text = f"cancelled by {user_name()} on {socket.gethostname()} ({by})"
        write_json(self.directory / REQUEST, {"time": time.time(), "text": text})

    def withdraw_cancel(self) -> None:
        """Take the request to end the run back: it is to go on after all."""
        with contextlib.suppress(OSError):
            (self.directory / REQUEST).unlink()

    def cancel_requested(self) -> bool:
        """Whether somebody asked for the run's end."""
        return os.path.lexists(self.directory / REQUEST)

    def cancel_reason(self) -> Cancelled:
        """What a run that was asked to end ends with."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            request = json.loads(read_file(self.directory / REQUEST, 4096))
            if isinstance(request, dict) and isinstance(request.get("text"), str):
                return Cancelled(self.without_secrets(request["text"]))
        return Cancelled("cancelled on request")

    def acquire(self) -> None:
        """Make this process the one that drives the run, until it ends, and read what the record says by then.

        Of two processes on one machine that try, one succeeds. Raises ConfigError when another one drives it.
        """
        if self._held is None:
            self._held = locked(self.directory / "driver.lock")
        if self._held is None or self.driven_by_another:
            raise self.driven_by_another_error()
        self.reload()
        if self.fields.owner != (me := ProcessIdentity.current()):
            self.update(owner=me)

    def driven_by_another_error(self) -> ConfigError:
        """The error of who wants a run that another launcher drives."""
        pid = self.stopped_driver_pid
        hint = f"launcher logs -f {self.id}" if pid is None else f"it is stopped: kill -CONT {pid}"
        return ConfigError("another launcher drives this run", where=f"run {self.id}", hint=hint)

    def release(self) -> None:
        """Drive the run no more: another process may take it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def reload(self) -> None:
        """Read the fields again, as another process may have written them. Raises ConfigError, FileNotFoundError."""
        self.fields = read_fields(self.directory / "run.json", self.id)

    @contextlib.contextmanager
    def submitting(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
        """Hold what only one submission of this run may hold; gives its descriptor, for srtctl to hold it too.

        A srtctl whose launcher was killed goes on, and may submit at any moment: whoever asks Slurm for the run's job
        before it has ended is told that there is none. Raises SubmissionError when that lasts too long.
        """
        deadline = time.monotonic() + SUBMISSION_PATIENCE
        while (handle := locked(self.directory / "submit.lock")) is None:
            if time.monotonic() > deadline:
                raise SubmissionError("an earlier submission of this run still goes on", where=f"run {self.id}")
            sleep(0.2)
        try:
            yield handle
        finally:
            os.close(handle)

    @property
    def driven_by_another(self) -> bool:
        """Whether another launcher process that still lives drives this run, as far as this host can tell."""
        owner = self.fields.owner
        return owner is not None and owner.alive() is True and owner != ProcessIdentity.current()

    @property
    def stopped_driver_pid(self) -> int | None:
        """The pid of the launcher that drives the run, if it was stopped: until it goes on, nobody can take the run."""
        owner = self.fields.owner
        return owner.pid if owner is not None and self.driven_by_another and owner.stopped() else None

    @property
    def abandoned(self) -> bool | None:
        """Whether the run may hold a job and nobody drives it; None when that cannot be told from here."""
        if self.fields.settled:
            return False
        alive = self.fields.owner.alive() if self.fields.owner is not None else False
        return None if alive is None else not alive


def locked(path: Path, create: int = os.O_CREAT) -> int | None:
    """A descriptor that holds ``path`` for itself; None when another process does. Raises OSError, also for what is no
    file: a device is shared with everybody, and what a link leads to is somebody else's.

    Where the file system knows no locks, everybody gets one: the record's ``owner`` and the job's comment are what is
    then left to tell.
    """
    handle = os.open(path, os.O_RDWR | create | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no file that can be locked", str(path))
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            os.close(handle)
            raise
    return handle


def _taken(directory: Path) -> ConfigError:
    run = directory.name
    return ConfigError(f"run {run} exists already", where=str(directory), hint=f"launcher resume {run}")


def missing_record_error(directory: Path) -> ConfigError:
    return ConfigError("the run's record cannot be read: there is no run.json", where=str(directory))


def _is_event(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not isinstance(value.get("kind"), str):
        return False
    time = value.get("time")
    return isinstance(time, (int, float)) and 0 <= time < 1e11
