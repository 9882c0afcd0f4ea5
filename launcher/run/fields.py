"""What ``run.json`` says of a run, as types, and reading it: what lies there is a run's record, or an error.

A record that another program wrote, or that a disk tore, is judged here and nowhere else: what is read is of the right
types, is about the run that its directory is named after, and has a job whose id is one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.core.errors import ConfigError
from launcher.core.process import ProcessIdentity
from launcher.core.reading import prepare_type, read_file
from launcher.core.rights import describe_os_error

SCHEMA = 1

UNREADABLE = "unreadable"
"""What stands for a run's state where its record cannot be read."""

WHOLE = ("", "results", "scheduler", "node")
"""Layers of ends that say nothing against what a job had measured before: it COMPLETED, or Slurm or a node ended
it. Who cancels a job may have seen why."""

LARGEST = 32 * 1024 * 1024
"""Bytes of a record's files. With a hundred images a record has some hundred kilobytes."""

_LATEST = 253402300799.0
"""The last second that a calendar has: later ones cannot be shown."""

ENDED = ("succeeded", "failed", "cancelled")
"""States of a run after which nothing more happens by itself."""


@dataclass(frozen=True)
class Verdict:
    """Which layer an end is put down to, and what happened, in one line.

    ``layer`` is configuration, image, model, checkout, scheduler, node, server, benchmark, results, cancelled, or
    launcher for a fault of our own; it is "" for a success.
    """

    layer: str
    text: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}" if self.layer else self.text


@dataclass(frozen=True)
class RecordedJob:
    """The job of a run. Times in seconds since the epoch.

    ``output`` is the job's own directory, ``log`` its log (both may not exist yet). ``held``: it was submitted held and
    has not been seen released; ``released``: Slurm took our release; ``over``: Slurm has said that it ended. ``state``
    is Slurm's word for how it stands, ``says`` the same as a line for people. ``by_hand``: a person submitted it.
    ``cluster`` is another one than this host's that took the job. ``started`` and ``ended`` are when it ran by Slurm's
    own word, ``nodes`` where, in Slurm's notation; None and "" until Slurm has said it. ``tried_again``: no node could
    start it, and we released it from the hold that Slurm then sets, which is done once.
    """

    id: str
    submitted: float | None = None
    output: str = ""
    log: str = ""
    held: bool = False
    released: bool = False
    by_hand: bool = False
    state: str = ""
    says: str = ""
    over: bool = False
    cluster: str = ""
    started: float | None = None
    ended: float | None = None
    nodes: str = ""
    tried_again: bool = False


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
        known = ("state", "began", "at", "error")
        return msgspec.convert(
            {**value, "facts": {key: v for key, v in value.items() if key not in known}}, prepare_type(cls)
        )


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
    go: the workflow's workspace, or the run's own directory. ``github_job`` is the GitHub job that began the run
    (`launcher.run.orphans.identity`), "" for a run by hand. ``commit`` is that of the workspace when the run
    began, "" where it is no checkout.
    """

    id: str
    runner: str
    state: str = "new"
    created: float = 0.0
    updated: float = 0.0
    owner: ProcessIdentity | None = None
    accepted: tuple[str, ...] = ()
    results: Literal["run", "workspace"] = "run"
    github_job: str = ""
    commit: str = ""
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
            job = {"log": log, **job}
        fields = msgspec.convert({**value, "job": job, "steps": {}}, prepare_type(cls))
        steps = msgspec.convert(value.get("stages") or {}, dict[str, dict[str, Any]])
        return replace(fields, steps={name: Step.read(step) for name, step in steps.items()})

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to the run by itself."""
        return self.state in ENDED

    @property
    def settled(self) -> bool:
        """Whether the run has ended and so has its job.

        A job that was cancelled without effect, or that was submitted while its launcher left, is still to be ended.
        """
        return self.has_ended and (self.job.over if self.job is not None else not self.submission_in_doubt)

    @property
    def submission_in_doubt(self) -> bool:
        """Whether sbatch may have been started and its outcome is unknown, so that there may be a job.

        Nor is it known where the record has lost the job that it must have had.
        """
        tried = self.steps.get("submit", Step()).state in ("running", "unknown", "done")
        return self.job is None and (tried or self.state in ("submitted", "running", "collecting"))

    def as_json(self) -> dict[str, Any]:
        value = _without_none(msgspec.to_builtins(self))
        stages = {name: {**step.pop("facts"), **_without_none(step)} for name, step in value.pop("steps").items()}
        return {"schema": SCHEMA, **value, "stages": stages}


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in value.items() if v is not None}


@dataclass(frozen=True)
class _Listed(RunFields):
    """The same, read in one pass and without the facts of its steps."""

    stages: Mapping[str, Step] = field(default_factory=dict)
    schema: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.stages)


_LISTED = msgspec.json.Decoder(_Listed)


def read_fields(path: Path | str, run_id: str, *, facts: bool = True) -> RunFields:
    """The fields in a run.json; without the ``facts`` of steps in a fifth of the time, for who reads thousands.

    Raises FileNotFoundError, NotADirectoryError; ConfigError when it cannot be read, or is no record of this run.
    """
    try:
        content = read_file(path, LARGEST)
        fields = None if facts else _listed(content)
        if fields is None:
            # Not msgspec's decoder: it refuses the Infinity and NaN that `json.dumps` writes.
            value = msgspec.convert(json.loads(content), dict[str, Any])
            if (schema := value.get("schema")) != SCHEMA:
                raise _unreadable(f"expected record schema {SCHEMA}, and it is {schema!r}", path)
            fields = RunFields.read(value)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise _unreadable(describe_os_error(error, path), path) from None
    except RecursionError:
        raise _unreadable("it is nested too deeply", path) from None
    except ValueError as error:  # msgspec.ValidationError is a ValueError
        raise _unreadable(str(error), path) from None
    if wrong := _wrong(fields, run_id):
        raise _unreadable(wrong, path)
    return fields


def _listed(content: bytes) -> RunFields | None:
    """The fields without facts; None when only the slow way can tell."""
    try:
        fields = _LISTED.decode(content)
    except (msgspec.DecodeError, RecursionError):
        return None
    return fields if fields.schema == SCHEMA else None


def _unreadable(reason: str, path: Path | str) -> ConfigError:
    return ConfigError(f"the run's record cannot be read: {reason}", where=str(path))


def _wrong(fields: RunFields, run_id: str) -> str | None:
    """What keeps a record of the right types from being one of this run."""
    if fields.id != run_id:
        return f"it is of run {fields.id!r}, and its directory is {run_id!r}"
    job = fields.job
    if job is not None and not re.fullmatch("[0-9]{1,20}", job.id):
        return f"{job.id!r} is no job's id"
    if job is not None and "\0" in job.log + job.output:
        return "a path of its job has a NUL"
    times = [fields.created, fields.updated, fields.ended]
    times += [job.submitted, job.started, job.ended] if job is not None else []
    times += [time for step in fields.steps.values() for time in (step.began, step.at)]
    for time in times:
        if time is not None and not (math.isfinite(time) and 0 <= time <= _LATEST):
            return f"{time!r} is no time"
    return None


_OWNER = re.compile(rb'"owner":\s*(\{[^{}]{0,1000}\})')


def owner_in(content: bytes) -> ProcessIdentity | None:
    """The owner that a record names which cannot be read as a whole, if that part of it is whole."""
    match = _OWNER.search(content)
    try:
        return None if match is None else msgspec.json.decode(match[1], type=prepare_type(ProcessIdentity))
    except msgspec.DecodeError:
        return None
