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
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.core.errors import ConfigError, LauncherError, SubmissionError, SubmissionUnknown, closest
from launcher.core.process import ProcessIdentity
from launcher.core.publish import temporary_name, write_json
from launcher.plan.derive import check_run_id
from launcher.plan.plan import Plan
from launcher.result.logs import LOGS
from launcher.run.verdict import Verdict
from launcher.slurm.client import JobKey

SCHEMA = 1

ENDED = ("succeeded", "failed", "cancelled")
"""States of a run after which nothing more happens by itself."""

SUBMISSION_PATIENCE = 330.0
"""Seconds to wait for the submission of a launcher that was killed: its srtctl goes on for 300 at most."""


@dataclass(frozen=True)
class RecordedJob:
    """The job of a run. Times in seconds since the epoch.

    ``output`` is the job's own directory, ``log`` its log (both may not exist yet). ``held``: it was submitted held and
    has not been seen released; ``released``: Slurm took our release; ``over``: Slurm has said that it ended. ``state``
    is Slurm's word for how it stands, ``says`` the same as a line for people. ``by_hand``: a person submitted it.
    """

    id: str
    submitted: float | None
    output: str
    log: str
    held: bool = False
    released: bool = False
    by_hand: bool = False
    state: str = ""
    says: str = ""
    over: bool = False


@dataclass(frozen=True)
class Step:
    """A step of a run (``images``, ``model``, ``workspace``, ``submit``, ``collect``): how it stands, and its facts.

    ``state`` is running, done or failed; of a submission also unknown. ``facts`` are JSON values that later steps,
    other processes and people need; in the file they stand beside the other keys.
    """

    state: str = ""
    began: float = 0.0
    at: float = 0.0
    error: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Step:
        """From JSON. Raises msgspec.ValidationError."""
        own = ("state", "began", "at", "error")
        return msgspec.convert({**value, "facts": {key: v for key, v in value.items() if key not in own}}, cls)


@dataclass(frozen=True)
class RecordedError:
    """The error that ended a run (`launcher.core.errors`), without secrets."""

    layer: str
    message: str
    where: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class RunFields:
    """What ``run.json`` says of a run. Times in seconds since the epoch.

    ``state`` is new, preparing, submitted, running, collecting, or one of ENDED. ``owner`` is the process that drives
    the run, or did last. ``accepted`` are the rules whose findings somebody accepted. ``results`` says where results
    go: the workflow's workspace, or the run's own directory.
    """

    id: str
    runner: str
    state: str = "new"
    created: float = 0.0
    updated: float = 0.0
    owner: ProcessIdentity | None = None
    accepted: tuple[str, ...] = ()
    results: Literal["run", "workspace"] = "run"
    steps: Mapping[str, Step] = field(default_factory=dict)
    job: RecordedJob | None = None
    ended: float | None = None
    exit_code: int | None = None
    verdict: Verdict | None = None
    error: RecordedError | None = None

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> RunFields:
        """From JSON. Raises msgspec.ValidationError."""
        job = value.get("job")
        if isinstance(job, Mapping):
            # Launchers before the key `log` had jobs of srtctl only, which writes its log here.
            log = str(Path(str(job.get("output", "")), "logs", f"sweep_{job.get('id')}.log"))
            job = {"submitted": None, "output": "", "log": log, **job}
        fields = msgspec.convert({**value, "job": job, "steps": {}}, cls)
        steps = msgspec.convert(value.get("stages") or {}, dict[str, dict[str, Any]])
        return replace(fields, steps={name: Step.read(step) for name, step in steps.items()})

    def as_json(self) -> dict[str, Any]:
        value = _without_none(msgspec.to_builtins(self))
        stages = {name: {**step.pop("facts"), **_without_none(step)} for name, step in value.pop("steps").items()}
        return {"schema": SCHEMA, **value, "stages": stages}


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in value.items() if v is not None}


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
        self.hide: Callable[[str], str] = str
        """Takes secrets out of a text before it is an event; whoever knows the environment sets it."""
        self._held: int | None = None

    @classmethod
    def create(cls, runs: Path, plan: Plan) -> RunRecord:
        """Make the record of a new run.

        Raises ConfigError when a run with this id is there already: the caller resumes that one instead.
        """
        directory = runs / check_run_id(plan.run_key)
        taken = ConfigError(
            f"run {plan.run_key} exists already", where=str(directory), hint=f"launcher resume {plan.run_key}"
        )
        if (directory / "run.json").exists():
            raise taken
        # It is made whole under another name: a run whose launcher was killed here could neither be begun nor resumed.
        temporary = temporary_name(directory)
        try:
            temporary.mkdir(parents=True)
            write_json(temporary / "plan.json", plan.as_dict())
            record = cls(temporary, RunFields(plan.run_key, plan.runner))
            record.update(created=time.time(), owner=ProcessIdentity.mine())
            record.take()
            temporary.rename(directory)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise taken from None
            raise ConfigError(f"the run's record cannot be made: {error.strerror}", where=str(directory)) from None
        record.directory = directory
        return record

    @classmethod
    def load(cls, runs: Path, run_id: str) -> RunRecord:
        """Read a run's record. Raises ConfigError naming the nearest run, or what is wrong with the file."""
        directory = runs / check_run_id(run_id)
        try:
            return cls(directory, _read(directory / "run.json"))
        except FileNotFoundError:
            known = [p.name for p in runs.iterdir()] if runs.is_dir() else []
            near = closest(run_id, known)
            hint = f"did you mean {near}?" if near else f"launcher status lists the runs below {runs}"
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
        return JobKey(self.job.id, self.job.submitted, self.id) if self.job is not None else None

    @property
    def log_path(self) -> Path | None:
        """The log of the run's job, where the job writes it or where it was collected to; None without a job."""
        if self.job is None:
            return None
        own = Path(self.job.log)
        collected = self.fields.results == "workspace" and self.ended and not own.exists()
        return Path(self.plan.workspace.path, LOGS, own.name) if collected else own

    @property
    def plan(self) -> Plan:
        """The plan of this run. Raises ConfigError when it cannot be read."""
        return Plan.read(self.directory / "plan.json")

    def update(self, **changes: Any) -> None:
        """Change fields, durably."""
        self.fields = replace(self.fields, **changes, updated=time.time())
        write_json(self.directory / "run.json", self.fields.as_json())

    def step(self, name: str) -> Step:
        """What is known of a step; its ``state`` is "" while it has not begun."""
        return self.fields.steps.get(name, Step())

    def set_step(self, name: str, state: str, *, error: str | None = None, **facts: Any) -> None:
        """Write a step's state, and the facts that later steps and other processes need of it."""
        now, before = time.time(), self.step(name)
        began = now if state == "running" or not before.began else before.began
        step = Step(state, began, now, error, {**before.facts, **facts})
        self.update(steps={**self.fields.steps, name: step})

    @contextlib.contextmanager
    def doing(self, name: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Write a step's beginning, and its end whatever that is; gives a function that keeps facts of it."""
        facts: dict[str, Any] = {}
        self.set_step(name, "running")
        self.event("stage", f"{name} …", stage=name, state="running")
        try:
            yield facts.update
        except LauncherError as error:
            state = "unknown" if isinstance(error, SubmissionUnknown) else "failed"
            self.set_step(name, state, error=self.hide(error.message))
            raise
        self.set_step(name, "done", **facts)
        self.event("stage", f"{name} done", stage=name, state="done")

    def event(self, kind: str, text: str, **data: Any) -> None:
        """Append an event, and show it to the listeners: that, too, when the file cannot be written (a full disk)."""
        text = self.hide(text)
        event = Event(time.time(), self.id, kind, text, data)
        line = json.dumps({"time": event.time, "kind": kind, "text": text, **data}, ensure_ascii=False, default=str)
        try:
            with (self.directory / "events.jsonl").open("ab+") as file:
                if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                    line = "\n" + line  # a full disk or a kill has cut the last one
                file.write(f"{line}\n".encode())
        except OSError as error:
            event = replace(event, text=f"{text} (not recorded: {error.strerror})")
        for listener in self.listeners:
            listener(event)

    def events(self) -> Iterator[dict[str, Any]]:
        """The recorded events; lines that a full disk or a kill has cut are passed over, wherever that was."""
        path = self.directory / "events.jsonl"
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            with contextlib.suppress(ValueError):
                if isinstance(event := json.loads(line.decode()), dict):
                    yield event

    def take(self) -> None:
        """Make this process the one that drives the run, until it ends, and read what the record says by then.

        Of two processes on one machine that try, one succeeds. Raises ConfigError when another one drives it.
        """
        if self._held is None:
            self._held = _locked(self.directory / "driver.lock")
        if self._held is None or self.owned_by_another:
            raise ConfigError("another launcher drives this run", where=f"run {self.id}", hint="launcher logs -f RUN")
        self.reload()
        self.update(owner=ProcessIdentity.mine())

    def let_go(self) -> None:
        """Drive the run no more: another process may take it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def reload(self) -> None:
        """Read the fields again, as another process may have written them. Raises ConfigError, FileNotFoundError."""
        self.fields = _read(self.directory / "run.json")

    @contextlib.contextmanager
    def submitting(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
        """Hold what only one submission of this run may hold; gives its descriptor, for srtctl to hold it too.

        A srtctl whose launcher was killed goes on, and may submit at any moment: whoever asks Slurm for the run's job
        before it has ended is told that there is none. Raises SubmissionError when that lasts too long.
        """
        deadline = time.monotonic() + SUBMISSION_PATIENCE
        while (handle := _locked(self.directory / "submit.lock")) is None:
            if time.monotonic() > deadline:
                raise SubmissionError("an earlier submission of this run still goes on", where=f"run {self.id}")
            sleep(0.2)
        try:
            yield handle
        finally:
            os.close(handle)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to the run by itself."""
        return self.fields.state in ENDED

    @property
    def settled(self) -> bool:
        """Whether the run has ended and so has its job.

        A job that was cancelled without effect, or that was submitted while its launcher left, is still to be ended.
        """
        return self.ended and (self.job.over if self.job is not None else not self.in_doubt)

    @property
    def in_doubt(self) -> bool:
        """Whether sbatch may have been started and its outcome is unknown, so that there may be a job."""
        return self.fields.job is None and self.step("submit").state in ("running", "unknown")

    @property
    def owned_by_another(self) -> bool:
        """Whether another launcher process that still lives drives this run, as far as this host can tell."""
        owner = self.fields.owner
        return owner is not None and owner != ProcessIdentity.mine() and owner.alive() is True

    @property
    def abandoned(self) -> bool | None:
        """Whether the run may hold a job and nobody drives it; None when that cannot be told from here."""
        if self.settled:
            return False
        alive = self.fields.owner.alive() if self.fields.owner is not None else False
        return None if alive is None else not alive


def _read(path: Path) -> RunFields:
    """The fields in a run.json. Raises FileNotFoundError; ConfigError when it cannot be understood."""
    try:
        # Not msgspec's decoder: it refuses the Infinity and NaN that `json.dumps` writes.
        value = msgspec.convert(json.loads(path.read_bytes()), dict[str, Any])
        if (schema := value.get("schema")) != SCHEMA:
            raise ConfigError(f"expected record schema {SCHEMA}, and it is {schema!r}", where=str(path))
        return RunFields.read(value)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # msgspec.ValidationError is a ValueError
        raise ConfigError(f"the run's record cannot be read: {error}", where=str(path)) from None


def _locked(path: Path) -> int | None:
    """A descriptor that holds ``path`` for itself; None when another process does. Where the file system knows no
    locks, everybody gets one: the record's ``owner`` and the job's comment are what is then left to tell."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return handle
        os.close(handle)
        return None
    return handle


def records(runs: Path) -> list[RunRecord]:
    """All readable runs, oldest first. A directory that holds no record (yet) is passed over."""
    found = []
    for directory in sorted(runs.iterdir()) if runs.is_dir() else ():
        if (directory / "run.json").is_file():
            with contextlib.suppress(ConfigError):
                found.append(RunRecord.load(runs, directory.name))
    return sorted(found, key=lambda record: record.fields.created)
