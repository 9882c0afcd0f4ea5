"""A runner file: its rules, which of them applies to a benchmark, where that rule stands; and its templates."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.core import deprecated
from launcher.core.errors import ConfigError, suggest
from launcher.core.yaml_source import Document, Key, SourceLocation, convert
from launcher.runner.cluster_schema import Storage
from launcher.runner.container_schema import CONTAINER, DOCKER, KINDS
from launcher.runner.schema import (
    Adjustment,
    ExcludedNode,
    ImageRule,
    LaneRule,
    ModelRule,
    Pattern,
    Rule,
    Runner,
    When,
)

R = TypeVar("R", bound=Rule)


def _matches(pattern: Pattern, value: str) -> bool:
    if isinstance(pattern, str) and not pattern.startswith("!"):
        return _fits(value, pattern)
    patterns = [pattern] if isinstance(pattern, str) else pattern
    wanted = [p for p in patterns if not p.startswith("!")]
    return not any(_fits(value, p[1:]) for p in patterns if p.startswith("!")) and (
        not wanted or any(_fits(value, p) for p in wanted)
    )


def _fits(value: str, pattern: str) -> bool:
    if "*" in pattern or "?" in pattern or "[" in pattern:
        return fnmatch.fnmatchcase(value, pattern)
    return value == pattern


_Asked = tuple[str | bool, ...]
"""What conditions look at in a benchmark, in the order of the fields of `When`."""


def _asked(b: Benchmark, power: bool) -> _Asked:
    recipe, nodes = (b.config_file or "").partition(":")[0], "multi" if b.multinode else "single"
    offload = b.kv_offload_backend.name if b.kv_offload_backend else ""
    names = (b.model_prefix, b.precision, b.framework, b.model, b.image, b.scenario, b.spec_decoding)
    return (*names, recipe, b.eval_only, power, nodes, offload)


_NAMED = ("prefix", "precision", "framework", "scenario", "nodes")
"""The conditions of a rule that the names of a case decide."""


def applies(when: When, benchmark: Benchmark, *, power: bool = False) -> bool:
    """Whether a rule with this ``when`` is for this benchmark."""
    return _holds(_conditions(when), _asked(benchmark, power))


def _conditions(when: When) -> list[tuple[int, Any]]:
    """What a rule asks for, each with its place in `_Asked`: of most fields nothing."""
    return [(at, wanted) for at, wanted in enumerate(msgspec.structs.astuple(when)) if wanted is not None]


def _holds(conditions: list[tuple[int, Any]], asked: _Asked) -> bool:
    for at, wanted in conditions:
        there = asked[at]
        if wanted is not there and not (isinstance(there, str) and _matches(wanted, there)):
            return False
    return True


@dataclass
class Applied(Generic[R]):
    """A rule that applies, and where it stands."""

    rule: R
    place: SourceLocation

    @cached_property
    def where(self) -> str:
        """``file:line`` of the rule. The line is looked up when this is asked, which most rules never are."""
        return str(self.place)


class RunnerFile:
    """A runner and the file it was read from, so that every decision can name its line."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.path = document.path
        renamed = deprecated.rename_keys(document.mapping(), deprecated.RUNNER_KEYS)
        self.renamed = [(one, SourceLocation(document, *path)) for one, path in renamed]
        self.runner = convert(document, Runner)
        self._applied: dict[tuple[Key, ...], Applied[Any]] = {}
        self._matched: dict[tuple[tuple[str, ...], _Asked], list[Applied[Any]]] = {}
        self._conditions: dict[tuple[str, ...], list[list[tuple[int, Any]]]] = {}
        self._last: tuple[Benchmark | None, bool, Any] = None, False, None
        self._check()
        for one, place in self.renamed:
            deprecated.tell(str(place), one)

    @classmethod
    def read(cls, path: Path) -> RunnerFile:
        """Read and validate a runner file. Raises ConfigError with file and line."""
        return cls(Document.read(path))

    def location(self, *keys: Key) -> str:
        return self.document.location(keys)

    def model(self, benchmark: Benchmark, *, power: bool = False) -> Applied[ModelRule]:
        """The model rule for a benchmark. Raises ConfigError, listing what is supported, when there is none."""
        return self._first("models", self.runner.models, benchmark, power)

    def lane(self, benchmark: Benchmark, *, power: bool = False) -> Applied[LaneRule]:
        """The lane for a benchmark. Raises ConfigError, listing what is supported, when there is none."""
        return self._first("lanes", self.runner.lanes, benchmark, power)

    def image(self, benchmark: Benchmark, *, power: bool = False) -> Applied[ImageRule] | None:
        """The rule for where the benchmark's image lies, or None when it lies where all do."""
        return next(iter(self._matching(("images", "rules"), self.runner.images.rules, benchmark, power)), None)

    def adjustments(self, benchmark: Benchmark, *, power: bool = False) -> list[Applied[Adjustment]]:
        """Every adjustment for a benchmark, in the file's order."""
        return self._matching(("adjust",), self.runner.adjust, benchmark, power)

    def excluded(self, benchmark: Benchmark, *, power: bool = False) -> list[Applied[ExcludedNode]]:
        """The nodes that this benchmark's job must not get."""
        return self._matching(("exclude-nodes",), self.runner.exclude_nodes, benchmark, power)

    def possible_lanes(self, benchmark: Benchmark) -> list[Applied[LaneRule]]:
        """The lanes that may serve a benchmark of which no more than _NAMED is known, up to the first that serves it
        whatever the rest is."""
        asked, found = _asked(benchmark, False), []
        for i, rule in enumerate(self.runner.lanes):
            named = When(**{name: getattr(rule.when, name) for name in _NAMED})
            if _holds(_conditions(named), asked):
                found.append(self._made(("lanes", i), rule))
                if rule.when == named:
                    break
        return found

    def _matching(
        self, table: tuple[str, ...], rules: Sequence[R], benchmark: Benchmark, power: bool
    ) -> list[Applied[R]]:
        """The rules that apply, in the file's order. Tried once for all benchmarks that have alike what rules ask for:
        hundreds of rows differ in nothing that they do."""
        if self._last[0] is not benchmark or self._last[1] is not power:  # a plan asks for six tables
            self._last = benchmark, power, _asked(benchmark, power)
        asked = table, self._last[2]
        if (found := self._matched.get(asked)) is None:
            if table not in self._conditions:
                self._conditions[table] = [_conditions(rule.when) for rule in rules]
            held = [i for i, conditions in enumerate(self._conditions[table]) if _holds(conditions, asked[1])]
            found = self._matched[asked] = [self._made((*table, i), rules[i]) for i in held]
        return found

    def _made(self, keys: tuple[Key, ...], rule: R) -> Applied[R]:
        # Made once: its line takes time to find, and hundreds of plans ask for it.
        if (applied := self._applied.get(keys)) is None:
            applied = self._applied[keys] = Applied(rule, SourceLocation(self.document, *keys))
        return applied

    def _first(self, table: str, rules: Sequence[R], benchmark: Benchmark, power: bool) -> Applied[R]:
        if applied := self._matching((table,), rules, benchmark, power):
            return applied[0]
        wanted = f"{benchmark.model_prefix}/{benchmark.precision}/{benchmark.framework} ({benchmark.scenario})"
        supported = "; ".join(dict.fromkeys(describe_when(r.when) for r in rules)) or "nothing"
        raise ConfigError(
            f"runner {self.runner.name} has no rule in `{table}` for {wanted}",
            where=self.location(table),
            hint=f"supported: {supported}",
        )

    def storage_of(self, path: str) -> Storage | None:
        """The storage that a path lies on: the longest declared prefix, or None when the file does not say."""
        found = [s for s in self.runner.storage if path == s.path or path.startswith(s.path.rstrip("/") + "/")]
        return max(found, key=lambda s: len(s.path), default=None)

    def _check(self) -> None:
        runner = self.runner
        for i, lane in enumerate(runner.lanes):
            for key, kinds in (("container", (CONTAINER, DOCKER)), ("multinode", KINDS)):
                needed = lane.kind in kinds
                if needed != (getattr(lane, key) is not None):
                    wrong = f"needs `{key}`" if needed else f"takes no `{key}`"
                    raise ConfigError(f"a lane of kind {lane.kind} {wrong}", where=self.location("lanes", i))
            if lane.kind in (CONTAINER, DOCKER, *KINDS):
                continue
            if not lane.ref:
                raise ConfigError(f"a lane of kind {lane.kind} needs `ref`", where=self.location("lanes", i))
            if lane.repository not in runner.repositories:
                raise ConfigError(
                    f"repository {lane.repository!r} is not in `repositories`",
                    where=self.location("lanes", i, "repository"),
                    hint=suggest(lane.repository, runner.repositories, f"known: {', '.join(runner.repositories)}"),
                )
        for template, names, keys in _templates(runner):
            check_template(template, names, self.location(*keys))
        for i, model in enumerate(runner.models):
            if model.stage and model.source is None:
                raise ConfigError("`stage: true` needs a `source`", where=self.location("models", i, "stage"))


def _templates(runner: Runner) -> Iterator[tuple[str, Sequence[str], tuple[Key, ...]]]:
    """Every template of a runner file, what may stand in it, and its place."""
    yield runner.images.lock, IMAGE_LOCK, ("images", "lock")
    yield runner.scheduler.job_name, JOB_NAME, ("scheduler", "job-name")
    yield runner.tags, TAGS, ("tags",)
    for i, argv in enumerate(runner.checkout.setup):
        yield from ((word, SETUP, ("checkout", "setup", i)) for word in argv)
    for i, model in enumerate(runner.models):
        yield model.served or "", SERVED, ("models", i, "served")
    for i, adjustment in enumerate(runner.adjust):
        yield adjustment.tags or "", TAGS, ("adjust", i, "tags")


def describe_when(when: When) -> str:
    """A rule's condition for people: ``minimaxm3/fp8/dynamo-vllm [scenario=agentic-coding]``."""

    def one(value: Pattern | bool | None) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return "*" if value is None else value if isinstance(value, str) else "|".join(value)

    names = zip(When.__struct_fields__, When.__struct_encode_fields__, strict=True)
    extra = [
        f"{key}={one(value)}"
        for field, key in names
        if field not in ("prefix", "precision", "framework") and (value := getattr(when, field)) is not None
    ]
    text = f"{one(when.prefix)}/{one(when.precision)}/{one(when.framework)}"
    return text + (f" [{', '.join(extra)}]" if extra else "")


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

IMAGE_LOCK = ("squash", "directory", "name")
JOB_NAME = ("runner",)
SETUP = ("arch",)
SERVED = ("model",)
TAGS = ("sku", "prefix", "precision", "isl", "osl", "date")
"""What may stand in `images.lock`, `scheduler.job-name`, `checkout.setup`, `served` of a model, and `tags`."""


def check_template(template: str, names: Collection[str], where: str) -> None:
    """Raise ConfigError for a brace in a template that is no ``{name}`` with one of these names."""
    for name in _PLACEHOLDER.findall(template):
        if name not in names:
            known = ", ".join(f"{{{each}}}" for each in names)
            raise ConfigError(
                f"{{{name}}} is nothing that is filled in here",
                where=where,
                hint=suggest(name, names, f"there is {known}"),
            )
    if set("{}") & set(_PLACEHOLDER.sub("", template)):
        raise ConfigError(f"a brace in {template!r} is not closed, or was not opened", where=where)


def fill_in(template: str, values: Mapping[str, object]) -> str:
    """The template with its names filled in; a name without a value stays as it is.

    By name alone: `str.format` would look into values (``{squash.__class__}``), and pad to any width.
    """
    if "{" not in template:
        return template
    return "".join(str(values.get(part, f"{{{part}}}")) if i % 2 else part for i, part in enumerate(_parts(template)))


@lru_cache(maxsize=1024)  # thousands of rows fill in some dozen templates
def _parts(template: str) -> tuple[str, ...]:
    """Text and names in turn, a text first."""
    return tuple(_PLACEHOLDER.split(template))
