"""The part of a plan that only jobs of srtctl have, and what was found while it was made: what `check` looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from launcher.core.yaml_source import Key, SourceLocation, reached
from launcher.plan.derive import Resolved
from launcher.plan.plan import PlanPart
from launcher.runner.schema import Patch
from launcher.srtctl.facts import RecipeFacts
from launcher.srtctl.locate import FoundRecipe, SetupScript
from launcher.srtctl.recipe import Variant

SRTSLURM = "srtslurm.yaml"
"""srtctl's configuration of the cluster, at the top of the work tree."""

LOG = "logs/sweep_{}.log"
"""What srtctl's orchestrator writes, in the own directory of the job with the id that is filled in."""


class PlannedOverlay(msgspec.Struct, frozen=True):
    """``source`` (absolute) is laid over ``destination`` (below the checkout)."""

    source: str
    destination: str


class SrtSlurm(msgspec.Struct, frozen=True):
    """The srt-slurm tree of this run: a commit, what is laid over it, how it is made ready, and where."""

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
    """The recipe as it will be submitted; ``document`` is None until the checkout that holds it is there.

    ``file`` is the file that it was read from, ``section`` the part of a file of several variants that it is.
    """

    path: str
    selector: str | None
    document: dict[str, Any] | None
    origin: str
    file: str | None = None
    section: str | None = None


class Submit(msgspec.Struct, frozen=True):
    """``argv`` as typed in the checkout's root, ``environment`` what is exported for the job beside the caller's."""

    argv: tuple[str, ...]
    environment: dict[str, str]


class SrtctlJob(PlanPart, frozen=True):
    """The part of a plan that only srtctl needs.

    ``models`` are the aliases of the checkpoint with their paths, ``srtslurm`` the document of srtslurm.yaml. ``power``
    says that the recipe asks for DCGM power telemetry; then the exporter's image and srt-slurm's commit are stamped.
    ``look_from_node``: a short job looks at images and checkpoint before the submission.
    """

    models: dict[str, str]
    srt_slurm: SrtSlurm
    srtslurm: dict[str, Any]
    recipe: PlannedRecipe
    submit: Submit
    power: bool = False
    look_from_node: bool = False

    def as_details(self) -> dict[str, Any]:
        """In JSON values, as a plan holds it."""
        # The recipe's document is one already, and by far the largest part.
        recipe = msgspec.structs.replace(self.recipe, document=None)
        details = super(SrtctlJob, msgspec.structs.replace(self, recipe=recipe)).as_details()
        details["recipe"]["document"] = self.recipe.document
        return details


class RecipeLookup(msgspec.Struct, frozen=True):
    """What was found of the recipe that a benchmark names.

    ``found`` is None when no tree at hand holds it. ``passed_over`` is a copy that comes before it and runs another
    image than the benchmark. ``variants`` are those that the selector gives, with ``selector_problem`` when it gives
    none for a reason; ``facts`` is about the first. ``tree_at_hand`` says whether it is known what the lane's own
    srt-slurm tree holds.
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
    """The plan of a job of srtctl without findings, and what was found for it: what the rules of `check` look at.

    ``narrowed`` says that the recipe will run only the concurrencies that were chosen by hand.
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
        """Whether `srtctl apply` looks for model and image on its own machine before it submits."""
        return "--no-preflight" not in self.job.submit.argv

    @property
    def refs(self) -> str:
        """The lane's srt-slurm as people name it."""
        return f"srt-slurm {self.rules.lane.rule.ref}"

    def place(self, *keys: Key) -> SourceLocation | str:
        """Where the recipe says it: in the variant's own section when that has the key, else in the base."""
        found, variant = self.recipe.found, self.recipe.variant
        if found is None:
            return self.rules.benchmark.source
        if found.section:
            places: tuple[tuple[Key, ...], ...] = ((*found.section, *keys), ("base", *keys))
        else:
            places = variant.places(keys) if variant is not None else (keys,)
        whole = (p for p in places if reached(found.file.data, p) == len(p))
        return SourceLocation(found.file, *next(whole, places[-1]))
