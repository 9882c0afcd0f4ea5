"""The part of a plan that only jobs of srtctl have, and the facts from planning that the rules of `check` use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from launcher.core.yaml_source import Key, SourceLocation, depth_reached
from launcher.plan.derive import Resolved
from launcher.plan.plan import PlanPart
from launcher.runner.schema import Patch
from launcher.srtctl.facts import RecipeFacts
from launcher.srtctl.locate import FoundRecipe, SetupScript
from launcher.srtctl.recipe import Variant

SRTSLURM = "srtslurm.yaml"
"""srtctl's configuration of the cluster, at the top of the work tree."""

LOG = "logs/sweep_{}.log"
"""The log of srtctl's orchestrator, below the job's own directory; its placeholder is the job's id."""


class PlannedOverlay(msgspec.Struct, frozen=True):
    """``source`` (absolute) is copied over ``destination`` (below the checkout)."""

    source: str
    destination: str


class SrtSlurm(msgspec.Struct, frozen=True):
    """The srt-slurm tree of this run: its commit, overlays, patches, set-up commands and directories."""

    repository: str
    ref: str
    sha: str | None
    overlays: tuple[PlannedOverlay, ...]
    patches: tuple[Patch, ...]
    setup: tuple[tuple[str, ...], ...]
    setup_timeout: int
    root: str
    cache: str


class PlannedRecipe(msgspec.Struct, frozen=True):
    """The recipe as it will be submitted; ``document`` is None if only the checkout has it, which is made later.

    ``file`` is the file that it was read from, ``section`` its part of a file of several variants.
    """

    path: str
    selector: str | None
    document: dict[str, Any] | None
    origin: str
    file: str | None = None
    section: str | None = None


class Submit(msgspec.Struct, frozen=True):
    """``argv`` is run in the checkout's root; ``environment`` is exported for the job beside the caller's."""

    argv: tuple[str, ...]
    environment: dict[str, str]


class SrtctlJob(PlanPart, frozen=True):
    """The part of a plan that only srtctl needs.

    ``models`` are the aliases of the checkpoint with their paths, ``srtslurm`` is the document of srtslurm.yaml.
    ``power``: the recipe requests DCGM power telemetry; then stamps of the exporter's image and of srt-slurm's commit
    are written. ``look_from_node``: a short job checks images and checkpoint before the submission.
    """

    models: dict[str, str]
    srt_slurm: SrtSlurm
    srtslurm: dict[str, Any]
    recipe: PlannedRecipe
    submit: Submit
    power: bool = False
    look_from_node: bool = False

    def as_details(self) -> dict[str, Any]:
        """As JSON values, for the plan."""
        # The recipe's document, by far the largest part, consists of JSON values already and is not converted.
        recipe = msgspec.structs.replace(self.recipe, document=None)
        details = super(SrtctlJob, msgspec.structs.replace(self, recipe=recipe)).as_details()
        details["recipe"]["document"] = self.recipe.document
        return details


class RecipeLookup(msgspec.Struct, frozen=True):
    """The result of looking up the recipe that a benchmark names.

    ``found`` is None when no known tree has it. ``passed_over`` is an earlier copy whose image is not the benchmark's.
    ``variants`` are those that the selector picks; ``selector_problem`` says why it picks none; ``facts`` describes the
    first. ``tree_at_hand`` says whether the content of the lane's own srt-slurm tree is known.
    """

    found: FoundRecipe | None
    passed_over: FoundRecipe | None
    variants: Sequence[Variant]
    selector_problem: str | None
    facts: RecipeFacts | None
    tree_at_hand: bool

    @property
    def variant(self) -> Variant | None:
        """The variant that will be run: the first."""
        return self.variants[0] if self.variants else None


class SrtctlResolved(Resolved, frozen=True):
    """The plan of a job of srtctl without findings, and the facts that the rules of `check` use.

    ``narrowed``: the recipe will run only the concurrencies that were chosen by hand.
    """

    job: SrtctlJob
    recipe: RecipeLookup
    setup: SetupScript | None
    narrowed: bool

    @property
    def containers(self) -> Mapping[str, str]:
        """Container name of the recipe → squash file."""
        containers: Mapping[str, str] = self.job.srtslurm["containers"]
        return containers

    @property
    def preflight(self) -> bool:
        """Whether `srtctl apply` checks on its own machine that model and image exist before it submits."""
        return "--no-preflight" not in self.job.submit.argv

    @property
    def refs(self) -> str:
        """The name of the lane's srt-slurm in messages."""
        return f"srt-slurm {self.rules.lane.rule.ref}"

    def place(self, *keys: Key) -> SourceLocation | str:
        """The location of a key: in the variant's own section if that has the key, else in the base."""
        found, variant = self.recipe.found, self.recipe.variant
        if found is None:
            return self.rules.benchmark.source
        if found.section:
            paths: tuple[tuple[Key, ...], ...] = ((*found.section, *keys), ("base", *keys))
        else:
            paths = variant.places(keys) if variant is not None else (keys,)
        existing = (path for path in paths if depth_reached(found.file.data, path) == len(path))
        return SourceLocation(found.file, *next(existing, paths[-1]))
