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


MAX_EVIDENCE_BYTES = 512 * 1024
"""Bytes that are kept of one file: the beginning of a text, the end of a log and of the events. There are twelve names,
so evidence has at most 6 MiB."""

REQUEST = "cancel.json"
"""The file in a run's directory by which somebody asks its driver to cancel it."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: when (epoch seconds), which kind (``stage``, ``job``, ``note``, …), what."""

    time: float
    run: str
    kind: str
    text: str
    data: Mapping[str, Any]


Listener = Callable[[Event], None]
"""Receives every event as it is recorded: a terminal, a CI log, a test."""


class RunRecord:
    """One run's directory. ``fields`` is what the record says; `update` changes it, at once on disk too."""

    def __init__(self, directory: Path, fields: RunFields) -> None:
        self.directory = directory
        self.fields = fields
        self.listeners: list[Listener] = []
        self.environ: Mapping[str, str] | None = None
        """The environment whose secrets are removed from what is recorded; `launcher.run.kind.Run` sets it."""
        self._driver_lock: int | None = None

    @classmethod
    def create(cls, runs: Path, plan: Plan, **fields: Any) -> RunRecord:
        """Make the record of a new run, with these ``fields``.

        Raises ConfigError when a run with this id exists already: the caller resumes that one instead.
        """
        directory = runs / check_run_id(plan.run_key)
        if (directory / "run.json").exists():
            raise _exists_error(directory)
        # It is completed under another name first: a record that is half made could neither be begun nor resumed.
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
                raise _exists_error(directory) from None
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
        """The log of the run's job, where the job writes it or the collected copy; None without a job."""
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

    def keep_evidence(self, name: str, content: str | bytes | Mapping[str, str]) -> None:
        """Write an evidence file without secrets: a text or bytes, cut at MAX_EVIDENCE_BYTES, or such texts as
        JSON. Raises OSError."""
        path = self.evidence / name
        self.evidence.mkdir(mode=0o700, exist_ok=True)
        if isinstance(content, Mapping):
            write_json(path, {key: self.without_secrets(text)[:MAX_EVIDENCE_BYTES] for key, text in content.items()})
        elif isinstance(content, str):
            write_text(path, self.without_secrets(content)[:MAX_EVIDENCE_BYTES], durable=False)
        else:
            write_bytes(path, redact_bytes(content, self.environ or {})[:MAX_EVIDENCE_BYTES], durable=False)

    @property
    def images(self) -> list[Mapping[str, Any]]:
        """What the step ``images`` recorded of each image; entries that are no objects are ignored."""
        recorded = self.step("images").facts.get("images")
        return [image for image in recorded if isinstance(image, dict)] if isinstance(recorded, list) else []

    def step(self, name: str) -> Step:
        """What is known of a step; its ``state`` is "" while it has not begun."""
        return self.fields.steps.get(name, Step())

    def set_step(self, name: str, state: str, *, error: str | None = None, **facts: Any) -> None:
        """Record a step's state, and the facts that later steps and other processes need."""
        now, before = time.time(), self.step(name)
        began = now if state == "running" or not before.began else before.began
        step = Step(state, began, now, error, {**before.facts, **facts})
        state_now = {"state": "preparing"} if self.fields.state == "new" else {}
        self.update(steps={**self.fields.steps, name: step}, **state_now)

    def add_step_facts(self, name: str, **facts: Any) -> None:
        """Add facts to a step that goes on; it began when it did."""
        step = self.step(name)
        step = replace(step, at=time.time(), facts={**step.facts, **facts})
        self.update(steps={**self.fields.steps, name: step})

    @contextlib.contextmanager
    def running_step(
        self, name: str, at_most: float | None = None, **known: Any
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Record that a step begins, with the facts ``known``, and how it ends; gives a function that adds facts.
        ``at_most`` is how many seconds the step can take, where that is known."""
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
        """Append an event and show it to the listeners, also when the file cannot be written (a full disk)."""
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
        """The recorded events, each with ``time``, ``kind`` and ``text``.

        Lines that a full disk, a kill or a bad block has cut or changed are skipped, and so is an unreadable file.
        """
        lines: list[bytes] = []
        with contextlib.suppress(OSError):
            lines = read_file(self.directory / "events.jsonl", LARGEST).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                if _is_event(event := json.loads(line.decode())):
                    yield event

    def request_cancel(self, by: str) -> None:
        """Ask the run's driver, on whatever host, to cancel the run, by a file that it checks for. Raises OSError.

        Cancelling the job alone is not enough: a run that waits in a sweep has no job yet and would be submitted later,
        and a driver whose job disappears reports that somebody else cancelled it.
        """
        text = f"cancelled by {user_name()} on {socket.gethostname()} ({by})"
        write_json(self.directory / REQUEST, {"time": time.time(), "text": text})

    def withdraw_cancel(self) -> None:
        """Withdraw the request to cancel the run, which continues."""
        with contextlib.suppress(OSError):
            (self.directory / REQUEST).unlink()

    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel the run."""
        return os.path.lexists(self.directory / REQUEST)

    def cancel_reason(self) -> Cancelled:
        """The error that a run ends with when somebody asked to cancel it: it says who."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            request = json.loads(read_file(self.directory / REQUEST, 4096))
            if isinstance(request, dict) and isinstance(request.get("text"), str):
                return Cancelled(self.without_secrets(request["text"]))
        return Cancelled("cancelled on request")

    def acquire(self) -> None:
        """Make this process the run's driver until it ends, and reload the record.

        Of two processes on one machine that try, one succeeds. Raises ConfigError when another one drives the run.
        """
        if self._driver_lock is None:
            self._driver_lock = open_locked(self.directory / "driver.lock")
        if self._driver_lock is None or self.driven_by_another:
            raise self.driven_by_another_error()
        self.reload()
        if self.fields.owner != (me := ProcessIdentity.current()):
            self.update(owner=me)

    def driven_by_another_error(self) -> ConfigError:
        """The error for a process that wants to drive a run of another launcher."""
        pid = self.stopped_driver_pid
        hint = f"launcher logs -f {self.id}" if pid is None else f"it is stopped: kill -CONT {pid}"
        return ConfigError("another launcher drives this run", where=f"run {self.id}", hint=hint)

    def release(self) -> None:
        """Stop driving the run: another process may take it."""
        if self._driver_lock is not None:
            os.close(self._driver_lock)
            self._driver_lock = None

    def reload(self) -> None:
        """Read the fields again, which another process may have changed. Raises ConfigError, FileNotFoundError."""
        self.fields = read_fields(self.directory / "run.json", self.id)

    @contextlib.contextmanager
    def submitting(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
        """Hold the lock of the run's submission; gives its descriptor, which srtctl inherits and so holds, too.

        After a launcher was killed, its srtctl continues and may submit at any moment: until it has ended, Slurm may
        answer that there is no job. Raises SubmissionError when that lasts too long.
        """
        deadline = time.monotonic() + SUBMISSION_PATIENCE
        while (handle := open_locked(self.directory / "submit.lock")) is None:
            if time.monotonic() > deadline:
                raise SubmissionError("an earlier submission of this run still goes on", where=f"run {self.id}")
            sleep(0.2)
        try:
            yield handle
        finally:
            os.close(handle)

    @property
    def driven_by_another(self) -> bool:
        """Whether another live launcher process drives this run, as far as this host can tell."""
        owner = self.fields.owner
        return owner is not None and owner.alive() is True and owner != ProcessIdentity.current()

    @property
    def stopped_driver_pid(self) -> int | None:
        """The pid of the launcher that drives the run, if it is stopped: nobody else can take the run then."""
        owner = self.fields.owner
        return owner.pid if owner is not None and self.driven_by_another and owner.stopped() else None

    @property
    def abandoned(self) -> bool | None:
        """Whether the run may hold a job and nobody drives it; None when that cannot be told from here."""
        if self.fields.settled:
            return False
        alive = self.fields.owner.alive() if self.fields.owner is not None else False
        return None if alive is None else not alive


def open_locked(path: Path, create: int = os.O_CREAT) -> int | None:
    """A descriptor that holds a lock on ``path``; None when another process holds it. Raises OSError, also for a device
    or a link, which others may share.

    On a file system without locks every process gets one: only the record's ``owner`` and the job's comment then tell
    who drives the run.
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


def _exists_error(directory: Path) -> ConfigError:
    run = directory.name
    return ConfigError(f"run {run} exists already", where=str(directory), hint=f"launcher resume {run}")


def missing_record_error(directory: Path) -> ConfigError:
    return ConfigError("the run's record cannot be read: there is no run.json", where=str(directory))


def _is_event(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not isinstance(value.get("kind"), str):
        return False
    time = value.get("time")
    return isinstance(time, (int, float)) and 0 <= time < 1e11
