"""The plan: a plain value that names everything that will be done, and that serialises to JSON.

`launcher plan` prints it, `launcher run` executes that same value. Its keys are a contract (docs/design.md, "Plan
JSON"): more may come, these keep their meaning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding
from launcher.image.request import PlannedImage

SCHEMA = 1


@dataclass(frozen=True)
class PlannedModel:
    """The checkpoint: a directory (``path``), or a Hugging Face repository (``hf:…``).

    ``seen_by`` says which nodes can look at it: a login node that cannot is a fact here, never a skipped check.
    ``source`` is what a run stages it from when it is not there (None: a run does not), ``striping`` how its files are
    laid out on Lustre, as (at least so many bytes, targets, stripe size); None: by default.
    """

    path: str
    precision: str
    storage: str
    seen_by: tuple[str, ...]
    source: str | None = None
    striping: tuple[tuple[int, int, str], ...] | None = None


@dataclass(frozen=True)
class PlannedOverlay:
    """``source`` (absolute) is laid over ``destination`` (below the checkout)."""

    source: str
    destination: str


@dataclass(frozen=True)
class PlannedPatch:
    commit: str
    path: str


@dataclass(frozen=True)
class SrtSlurm:
    """The srt-slurm tree of this run: a commit, what is laid over it, how it is made ready, and where."""

    repository: str
    ref: str
    sha: str | None
    overlays: tuple[PlannedOverlay, ...]
    patches: tuple[PlannedPatch, ...]
    setup: tuple[tuple[str, ...], ...]
    setup_timeout: int
    root: str
    cache: str


@dataclass(frozen=True)
class PlannedRecipe:
    """The recipe as it will be submitted; ``document`` is None until the checkout that holds it is there.

    ``file`` is the file that it was read from, ``section`` the part of a file of several variants that it is.
    """

    path: str
    selector: str | None
    document: dict[str, Any] | None
    origin: str
    file: str | None = None
    section: str | None = None


@dataclass(frozen=True)
class Submit:
    """``argv`` as typed in the checkout's root, ``environment`` what is exported for the job beside the caller's."""

    argv: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class Expected:
    """The results that make this run good."""

    concurrencies: tuple[int, ...]
    filename: str
    mode: Literal["fixed", "agentic", "eval"]
    run_eval: bool
    isl: int | None
    osl: int | None


@dataclass(frozen=True)
class SchedulerPlan:
    """``time_limit`` is the job's: the recipe's own before the runner file's; None while neither is known."""

    kind: Literal["slurm", "local"]
    partition: str | None
    account: str | None
    backend: Literal["auto", "commands", "pyslurm"] = "auto"
    time_limit: str | None = None


@dataclass(frozen=True)
class WorkspacePlan:
    """Where the workflow looks for results (``path``), and the copy that compute nodes see, when they need one."""

    path: str
    shared: str | None


@dataclass(frozen=True)
class Plan:
    """Everything that one run will do.

    ``run_key`` is its identity: the run's id and the job's ``--comment``. ``narrow`` says that its concurrencies were
    chosen by hand out of those of the recipe.
    """

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
    models: dict[str, str]
    model: PlannedModel
    srt_slurm: SrtSlurm
    srtslurm: dict[str, Any]
    recipe: PlannedRecipe
    submit: Submit
    results: Expected
    rules: dict[str, str] = field(default_factory=dict)
    """Which rule of the runner file decided what, as ``file:line``."""
    findings: tuple[Finding, ...] = ()
    narrow: bool = False
    power: bool = False
    """The recipe asks for DCGM power telemetry; then the exporter's image and srt-slurm's commit are stamped."""
    schema: int = SCHEMA

    def with_squash(self, used: Mapping[str, str]) -> Plan:
        """The plan with other squash files (planned path → the one that was used), wherever it names them."""

        def changed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: changed(v) for key, v in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(changed(v) for v in value)
            return used.get(value, value) if isinstance(value, str) else value

        return dataclasses.replace(
            self,
            images=tuple(dataclasses.replace(i, squash=used.get(i.squash, i.squash)) for i in self.images),
            srtslurm=changed(self.srtslurm),
            recipe=dataclasses.replace(self.recipe, document=changed(self.recipe.document)),
            submit=dataclasses.replace(self.submit, environment=changed(self.submit.environment)),
        )

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Plan:
        """Read a plan back. Raises ConfigError when it is not one, or one of another schema."""
        import msgspec

        if value.get("schema") != SCHEMA:
            raise ConfigError(f"plan schema {value.get('schema')!r} is not {SCHEMA}", hint="written by another version")
        findings = tuple(Finding(f["rule"], f["severity"], f["message"], f["where"]) for f in value["findings"])
        try:
            plan: Plan = msgspec.convert({**value, "findings": ()}, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"not a plan: {error}") from None
        return dataclasses.replace(plan, findings=findings)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read ``plan.json``. Raises ConfigError when it is missing or unreadable."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"no readable plan: {error}", where=str(path)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Finding):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
