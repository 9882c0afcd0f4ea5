"""What ``run.json`` says of a run, as types. Files of earlier launchers are read as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.core.process import ProcessIdentity
from launcher.run.verdict import Verdict

SCHEMA = 1

ENDED = ("succeeded", "failed", "cancelled")
"""States of a run after which nothing more happens by itself."""


@dataclass(frozen=True)
class RecordedJob:
    """The job of a run. Times in seconds since the epoch.

    ``output`` is the job's own directory, ``log`` its log (both may not exist yet). ``held``: it was submitted held and
    has not been seen released; ``released``: Slurm took our release; ``over``: Slurm has said that it ended. ``state``
    is Slurm's word for how it stands, ``says`` the same as a line for people. ``by_hand``: a person submitted it.
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

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> RecordedJob:
        """From JSON. Raises msgspec.ValidationError."""
        job = msgspec.convert(value, cls)
        # Launchers before the key `log` had jobs of srtctl only, which writes its log here.
        return job if job.log else replace(job, log=str(Path(job.output, "logs", f"sweep_{job.id}.log")))


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
        own = {f.name for f in dataclasses.fields(cls)} - {"facts"}
        facts = {key: v for key, v in value.items() if key not in own}
        return msgspec.convert({**{k: v for k, v in value.items() if k in own}, "facts": facts}, cls)

    def as_json(self) -> dict[str, Any]:
        error = {} if self.error is None else {"error": self.error}
        return {"began": self.began, **self.facts, **error, "state": self.state, "at": self.at}


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
        steps, job = value.get("stages") or {}, value.get("job")
        if not isinstance(steps, dict) or not all(isinstance(step, dict) for step in steps.values()):
            raise msgspec.ValidationError("expected `object` - at `$.stages`")
        own = {f.name for f in dataclasses.fields(cls)} - {"steps", "job"}
        fields = msgspec.convert({key: v for key, v in value.items() if key in own}, cls)
        return replace(
            fields,
            steps={name: Step.read(step) for name, step in steps.items()},
            job=RecordedJob.read(job) if job is not None else None,
        )

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = msgspec.to_builtins(replace(self, steps={}))
        del value["steps"]
        stages = {name: step.as_json() for name, step in self.steps.items()}
        return {"schema": SCHEMA, **{k: v for k, v in value.items() if v is not None}, "stages": stages}
