"""The plan: a plain value that names everything that will be done, and that serialises to JSON.

`launcher plan` prints it, `launcher run` executes that same value. Its keys are a contract (docs/design.md, "Plan
JSON"): more may come, these keep their meaning.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding, Severity
from launcher.core.reading import prepare_type, read_file
from launcher.core.slurm_notation import limit_seconds
from launcher.image.reference import PlannedImage

SCHEMA = 1

LARGEST = 32 * 1024 * 1024
"""Bytes of a plan's file. With a large recipe it has some hundred kilobytes."""

OWN = ".launcher"
"""In the workspace: the own directories of runs, by their ids. They are no results, and are in no copy."""

SRTCTL = "srtctl"
"""The kind of a plan that does not say one: all were of this kind before there were several."""


@dataclass(frozen=True)
class ModelCache:
    """A Hugging Face cache: the directory ``host`` of the node, which the container sees as ``at``."""

    host: str
    at: str


@dataclass(frozen=True)
class PlannedModel:
    """The checkpoint: a directory (``path``), or a Hugging Face repository (``hf:…``).

    ``path`` is None where the benchmark's script downloads the checkpoint, into ``cache`` where there is one; with
    ``downloads`` it downloads to ``path`` what is missing there. ``id`` is the Hugging Face id as the row has it.
    ``seen_by`` says which nodes can look at it: a login node that cannot is a fact here, never a skipped check.
    ``source`` is what a run stages it from when it is not there (None: a run does not), ``striping`` how its files are
    laid out on Lustre, as (at least so many bytes, targets, stripe size); None: by default. ``fingerprint`` is what the
    runner file declares of the model, ``pinned`` the repository and commit on the hub that has the same
    (``hf:ORGANISATION/NAME@COMMIT``). ``mounted`` are the directories that a job sees under the same paths; none where
    it sees the checkpoint alone.
    """

    path: str | None
    precision: str
    storage: str
    seen_by: tuple[str, ...]
    source: str | None = None
    striping: tuple[tuple[int, int, str], ...] | None = None
    id: str = ""
    cache: ModelCache | None = None
    downloads: bool = False
    fingerprint: dict[str, str | int | float] = field(default_factory=dict)
    pinned: str | None = None
    mounted: tuple[str, ...] = ()


class Bounds(msgspec.Struct, frozen=True):
    """How far a result may be off and still be believed. Runner file and row set them.

    ``failed`` is the largest share of the requests that may fail; ``clock_skew`` by how many seconds the clocks of
    nodes and login host may differ; ``tolerance`` by which share counts, durations and rates may contradict each other;
    ``lengths`` between which shares of ISL and OSL mean lengths lie.
    """

    failed: float = 0.05
    clock_skew: float = 60.0
    tolerance: float = 0.05
    lengths: tuple[float, float] = (0.5, 1.5)

    def __str__(self) -> str:
        """As a plan shows them to a person."""
        low, high = self.lengths
        return (
            f"at most {self.failed * 100:.4g} % of the requests failed, clocks {self.clock_skew:g} s apart, "
            f"numbers {self.tolerance * 100:.4g} % apart, mean lengths {low:g} to {high:g} of ISL and OSL"
        )


class Expected(msgspec.Struct, frozen=True):
    """The results that make this run good, and the files that a job leaves in the workspace.

    The lists are of names below ``directory``, with ``*`` and ``**``; a job that leaves its files in a directory of its
    own has none. Without those of ``required`` the run has failed.

    What follows them is what a result is held against; where a plan does not say it, as those of earlier versions,
    nothing is. ``gpus`` are those of prefill and of decode, by which throughputs are divided: what the workflow's next
    step divides by. ``held`` are the GPUs that workers have, where that is known otherwise than by the row. ``models``
    are the names that a result may call the model. ``tool`` is the client that measures, as it begins a directory's
    name; ``engine`` what serves. ``row`` is what documents repeat of the row, by their keys. ``rehearsal`` says that
    results of stand-ins are good ones. ``evaluated`` are the concurrencies that an evaluation was asked for by number,
    ``tasks`` what it may have evaluated beside the workflow's own; ``part`` says that some samples only were wanted.
    """

    concurrencies: tuple[int, ...]
    filename: str
    mode: Literal["fixed", "agentic", "eval"]
    run_eval: bool
    isl: int | None
    osl: int | None
    directory: str | None = None
    required: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    gpus: tuple[int, int] | None = None
    held: int | None = None
    models: tuple[str, ...] = ()
    tool: str | None = None
    engine: str | None = None
    row: Mapping[str, str | int | bool] = {}
    rehearsal: bool = True
    evaluated: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    part: bool = False
    bounds: Bounds | None = None

    @property
    def limits(self) -> Bounds:
        """The plan's bounds, else the usual ones: 5 % of failed requests as InferenceX's client has it, and 10 % as its
        gate of agentic runs does."""
        return self.bounds or Bounds(failed=0.10 if self.mode == "agentic" else 0.05)


class Allocation(NamedTuple):
    """What a job asks for: its time limit in Slurm's notation, its nodes, the GPUs of all of them; None where that is
    not known yet."""

    time_limit: str | None = None
    nodes: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class SchedulerPlan:
    """``time_limit`` is the job's: the recipe's own before the runner file's; None while neither is known. ``nodes``
    and ``gpus`` (of all nodes together) are what the job will hold, None where that is not known yet."""

    kind: Literal["slurm", "local"]
    partition: str | None
    account: str | None
    backend: Literal["auto", "commands", "pyslurm"] = "auto"
    time_limit: str | None = None
    nodes: int | None = None
    gpus: int | None = None

    @property
    def seconds(self) -> float | None:
        """The time limit, None where it is not known."""
        return limit_seconds(self.time_limit)

    @property
    def gpu_hours(self) -> float | None:
        """What the job holds at most: GPUs × time limit; None where one of them is not known."""
        return self.gpus * self.seconds / 3600 if self.gpus is not None and self.seconds else None


@dataclass(frozen=True)
class WorkspacePlan:
    """Where the workflow looks for results (``path``), and the copy that compute nodes see, when they need one."""

    path: str
    shared: str | None


class _Finding(TypedDict):
    rule: str
    severity: Severity
    message: str
    where: str


@dataclass(frozen=True)
class Plan:
    """Everything that one run will do.

    ``kind`` names the kind of job that serves the lane, ``details`` is what that kind plans beside the rest: its own
    struct, or the JSON values of a plan that was read. They are keys of the plan like all others when it is written.
    ``run_key`` is the plan's identity: the run's id and the job's ``--comment``. ``narrow`` says that its concurrencies
    were chosen by hand, out of those of the recipe; ``exclude`` are nodes that this run must not get beside those of
    the runner file.
    """

    kind: str
    runner: str
    runner_name: str
    job_name: str
    run_key: str
    sku: str
    tools: Literal["system", "rehearsal"]
    benchmark: Benchmark
    scheduler: SchedulerPlan
    workspace: WorkspacePlan
    images: tuple[PlannedImage, ...]
    model: PlannedModel
    results: Expected
    details: Any
    rules: dict[str, str] = field(default_factory=dict)
    """Which rule of the runner file decided what, as ``file:line``."""
    findings: tuple[Finding, ...] = ()
    narrow: bool = False
    exclude: tuple[str, ...] = ()
    passes: tuple[str, ...] | None = None
    """Names of the host's variables that the job is passed: whoever submits it reads their values from its own
    environment, and no plan holds them. None in plans of earlier versions."""
    local_locks: dict[str, bool] = field(default_factory=dict)
    """Of each file system that the runner file names whether locks there are each host's own; empty where none are."""
    schema: int = SCHEMA

    def locks_are_local(self, path: str) -> bool:
        """Whether locks on the file system of a path are known to be each host's own."""
        roots = [root for root in self.local_locks if path == root or path.startswith(root.rstrip("/") + "/")]
        return bool(roots) and self.local_locks[max(roots, key=len)]

    def with_squash(self, used: Mapping[str, str]) -> Plan:
        """The plan with other squash files (planned path → the one that was used), wherever it names them."""

        def changed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: changed(v) for key, v in value.items()}
            if isinstance(value, list):
                return [changed(v) for v in value]
            return used.get(value, value) if isinstance(value, str) else value

        images = tuple(dataclasses.replace(i, squash=used.get(i.squash, i.squash)) for i in self.images)
        return dataclasses.replace(self, images=images, details=changed(self.as_details()))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the plan from being run, unless somebody accepts their rules."""
        return tuple(f for f in self.findings if f.severity == "error")

    def as_details(self) -> dict[str, Any]:
        """What its kind of job alone plans, in JSON values."""
        details: dict[str, Any] = self.details.as_details() if isinstance(self.details, PlanPart) else self.details
        return details

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values, in one object: the keys of ``details`` stand beside the others."""
        value: dict[str, Any] = json_values(dataclasses.replace(self, findings=(), details={}))
        del value["details"]
        return {**value, **self.as_details(), "findings": [finding.as_dict() for finding in self.findings]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Plan:
        """Read a plan back. Raises ConfigError when it is not one, or one of another schema."""
        if value.get("schema") != SCHEMA:
            raise ConfigError(f"plan schema {value.get('schema')!r} is not {SCHEMA}", hint="written by another version")
        fields = {f.name for f in dataclasses.fields(cls)}
        keys = {"kind": SRTCTL, **{key: v for key, v in value.items() if key in fields}}
        try:
            recorded = msgspec.convert(value["findings"], prepare_type(list[_Finding]))
            findings = tuple(Finding(f["rule"], f["severity"], f["message"], f["where"]) for f in recorded)
            details = {key: v for key, v in value.items() if key not in fields}
            plan: Plan = msgspec.convert({**keys, "findings": (), "details": details}, prepare_type(cls))
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise ConfigError(f"not a plan: {error}") from None
        return dataclasses.replace(plan, findings=findings)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read ``plan.json``. Raises ConfigError when it is missing or unreadable."""
        try:
            content = read_file(path, LARGEST)
            value = json.loads(content)
            if not isinstance(value, dict):
                raise ConfigError(f"no readable plan: a {type(value).__name__}", where=str(path))
            if b"\\ud" in content.lower():  # half a character is no text, no path and no name
                json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
            return cls.from_dict(value)
        except OSError as error:
            raise ConfigError(f"no readable plan: {error.strerror}", where=str(path)) from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"no readable plan: {error}", where=str(path)) from None


OwnPart = TypeVar("OwnPart", bound="PlanPart")


class PlanPart(msgspec.Struct, frozen=True):
    """Base of what only one kind of job has of a plan, as a value."""

    @classmethod
    def of(cls: type[OwnPart], plan: Plan) -> OwnPart:
        """The part of this plan. Raises ConfigError when it is not there, or not whole."""
        if isinstance(plan.details, cls):
            return plan.details
        try:
            return msgspec.convert(plan.as_details(), prepare_type(cls))
        except msgspec.ValidationError as error:
            message = f"not a plan of kind {plan.kind}: {error}"
            raise ConfigError(message, where=f"run {plan.run_key}") from None

    def as_details(self) -> dict[str, Any]:
        """In JSON values, as a plan holds it."""
        details: dict[str, Any] = json_values(self)
        return details


def json_values(value: Any) -> Any:
    """A value of dataclasses, dictionaries and sequences as what JSON holds."""
    # msgspec's own JSON would make null of an infinity that a recipe holds, and so change what is submitted.
    return _with_lists(msgspec.to_builtins(value, str_keys=True))


def _with_lists(value: Any) -> Any:
    """Lists in place of the tuples that `msgspec.to_builtins` keeps."""
    if isinstance(value, dict):
        return {key: _with_lists(item) if isinstance(item, _HOLDERS) else item for key, item in value.items()}
    return [_with_lists(item) if isinstance(item, _HOLDERS) else item for item in value]


_HOLDERS = (dict, list, tuple)


def check_run_id(run_id: str) -> str:
    """The id itself, if it can be a directory's name and a job's comment. Raises ConfigError when not."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", run_id):
        raise ConfigError(f"{run_id!r} cannot be a run's id", hint="letters, digits, '.', '_' and '-', at most 120")
    return run_id
