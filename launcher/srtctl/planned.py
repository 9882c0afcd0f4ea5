"""The part of a plan that only jobs of srtctl have: the srt-slurm tree, its configuration, the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from launcher.core.errors import ConfigError
from launcher.plan.plan import Plan, json_values


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
class SrtctlJob:
    """The part of a plan that only srtctl needs.

    ``models`` are the aliases of the checkpoint with their paths, ``srtslurm`` the document of srtslurm.yaml. ``power``
    says that the recipe asks for DCGM power telemetry; then the exporter's image and srt-slurm's commit are stamped.
    """

    models: dict[str, str]
    srt_slurm: SrtSlurm
    srtslurm: dict[str, Any]
    recipe: PlannedRecipe
    submit: Submit
    power: bool = False

    @classmethod
    def of(cls, plan: Plan) -> SrtctlJob:
        """The part of this plan. Raises ConfigError when it is not there, or not whole."""
        try:
            return msgspec.convert(plan.details, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"not a plan of kind srtctl: {error}", where=f"run {plan.run_key}") from None

    def as_details(self) -> dict[str, Any]:
        """In JSON values, as a plan holds it."""
        details: dict[str, Any] = json_values(self)
        return details
