"""What was found and decided for the plan of a job of srtctl: the plan, and what the rules of `check` look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.benchmark.benchmark import Benchmark
from launcher.core.yaml_source import Key, Place, reached
from launcher.plan.derive import Resolved
from launcher.runner.file import RunnerFile
from launcher.srtctl.facts import RecipeFacts
from launcher.srtctl.locate import FoundRecipe
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.recipe import Variant


@dataclass(frozen=True)
class RecipeLookup:
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


@dataclass(frozen=True)
class SetupScript:
    """The set-up script of a lane's containers.

    ``directory`` is the one of the workspace or of this repository that holds it, or None. ``found`` says whether the
    run will have it; None when that cannot be told before the checkout.
    """

    name: str
    directory: str | None
    found: bool | None


@dataclass(frozen=True)
class SrtctlResolved(Resolved):
    """The plan of a job of srtctl without findings, and what was found for it: what the rules of `check` look at.

    ``narrowed`` says that the recipe will run only the concurrencies that were chosen by hand.
    """

    job: SrtctlJob
    recipe: RecipeLookup
    setup: SetupScript | None
    narrowed: bool

    @property
    def benchmark(self) -> Benchmark:
        return self.rules.benchmark

    @property
    def file(self) -> RunnerFile:
        return self.rules.file

    @property
    def facts(self) -> RecipeFacts | None:
        return self.recipe.facts

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

    def place(self, *keys: Key) -> Place | str:
        """Where the recipe says it: in the variant's own section when that has the key, else in the base."""
        found, variant = self.recipe.found, self.recipe.variant
        if found is None:
            return self.benchmark.source
        if found.section:
            places: tuple[tuple[Key, ...], ...] = ((*found.section, *keys), ("base", *keys))
        else:
            places = variant.places(keys) if variant is not None else (keys,)
        whole = (p for p in places if reached(found.file.data, p) == len(p))
        return Place(found.file, *next(whole, places[-1]))
