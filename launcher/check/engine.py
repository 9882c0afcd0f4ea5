"""What rules are made of: what they look at, what they find, and how it becomes findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from launcher.benchmark.benchmark import Benchmark
from launcher.check.schema_validation import Complaint, Verdicts
from launcher.check.srtctl_schema import Schema
from launcher.core.finding import Finding, Severity
from launcher.core.yaml_source import Key, Place
from launcher.runner.file import Applied, RunnerFile
from launcher.runner.schema import LaneRule, ModelRule
from launcher.srtctl.facts import RecipeFacts
from launcher.srtctl.locate import FoundRecipe
from launcher.srtctl.recipe import Variant

S = TypeVar("S")

Found = tuple[str, Place | str] | tuple[str, Place | str, Severity]
"""A message and its place; a severity when it is not the rule's own."""


@dataclass(frozen=True)
class Rule(Generic[S]):
    """A rule: its id, how bad it is, one line that says what is wrong, and the function that finds it."""

    id: str
    severity: Severity
    title: str
    look: Callable[[S], Iterator[Found]] | None = None

    def findings(self, subject: S) -> Iterator[Finding]:
        """What the rule finds."""
        for message, place, *severity in self.look(subject) if self.look is not None else ():
            yield Finding(self.id, severity[0] if severity else self.severity, message, place)


def rule(id: str, severity: Severity, title: str) -> Callable[[Callable[[S], Iterator[Found]]], Rule[S]]:
    """Make a rule of a function."""
    return lambda look: Rule(id, severity, title, look)


def apply(rules: Iterable[Rule[S]], subject: S) -> list[Finding]:
    """What the rules find, in their order."""
    return [finding for one in rules for finding in one.findings(subject)]


@dataclass(frozen=True)
class Subject:
    """One row, its runner, its recipe, and what was decided about them: what the checks of one plan look at."""

    benchmark: Benchmark
    file: RunnerFile
    model: Applied[ModelRule]
    lane: Applied[LaneRule]
    recipe: FoundRecipe | None
    variant: Variant | None
    variants: int
    selector_problem: str | None
    facts: RecipeFacts | None
    tree_at_hand: bool
    aliases: Sequence[str]
    containers: Mapping[str, str]
    filename: str
    setup_script: str | None
    setup_found: bool | None
    """Whether the set-up script is there; None when that cannot be told before the checkout."""
    narrowed: bool
    passed_over: FoundRecipe | None
    model_path: str = ""
    time_limit: str | None = None
    """The job's limit where the recipe says none."""
    preflight: bool = True
    """Whether `srtctl apply` looks for model and image on its own machine before it submits."""
    edited: Mapping[str, Any] | None = None
    """The recipe's document as it will be submitted."""
    verdicts: Verdicts = field(default_factory=Verdicts)

    def place(self, *keys: Key) -> Place | str:
        """Where the recipe says it: in the variant's own section when that has the key, else in the base."""
        if self.recipe is None:
            return self.benchmark.source
        file = self.recipe.file
        section = self.recipe.section
        if section:
            places: tuple[tuple[Key, ...], ...] = ((*section, *keys), ("base", *keys))
        else:
            places = self.variant.places(keys) if self.variant is not None else (keys,)
        return Place(file, *next((p for p in places if reached(file.data, p) == len(p)), places[-1]))

    @property
    def refs(self) -> str:
        """The lane's srt-slurm as people name it."""
        return f"srt-slurm {self.lane.rule.ref}"

    @cached_property
    def schema(self) -> Schema | None:
        """What recipes may say at the lane's srt-slurm, or None when that is not known."""
        return self.verdicts.schemas.get(self.lane.rule.ref, self.lane.rule.sha)

    @cached_property
    def complaints(self) -> Sequence[Complaint]:
        """What the lane's srt-slurm refuses in the recipe."""
        if self.variant is None or self.schema is None or self.recipe is None:
            return ()
        said_in = (self.recipe.file.path, *self.recipe.section, self.variant.selector or "")
        return self.verdicts.of(self.schema, said_in, self.variant.document)


def reached(data: Any, keys: Sequence[Key]) -> int:
    """How many steps of a path lead somewhere in a document."""
    for depth, key in enumerate(keys):
        if isinstance(data, dict) and key in data:
            data = data[key]
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[int(key)]
        else:
            return depth
    return len(keys)


def names_an_image(name: str) -> bool:
    """Whether a container name is an image reference and no alias."""
    return "/" in name or ":" in name
