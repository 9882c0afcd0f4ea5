"""A runner file: its rules, those that apply to a benchmark, their lines; and its templates."""

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
    patterns = [pattern] if isinstance(pattern, str) else pattern
    wanted = [glob for glob in patterns if not glob.startswith("!")]
    excluded = [glob[1:] for glob in patterns if glob.startswith("!")]
    if any(_matches_glob(value, glob) for glob in excluded):
        return False
    return not wanted or any(_matches_glob(value, glob) for glob in wanted)


def _matches_glob(value: str, glob: str) -> bool:
    if "*" in glob or "?" in glob or "[" in glob:
        return fnmatch.fnmatchcase(value, glob)
    return value == glob


_Values = tuple[str | bool, ...]
"""The values of a benchmark that conditions are compared with, in the order of the fields of `When`."""


def _values(b: Benchmark, power: bool) -> _Values:
    recipe, nodes = (b.config_file or "").partition(":")[0], "multi" if b.multinode else "single"
    offload = b.kv_offload_backend.name if b.kv_offload_backend else ""
    names = (b.model_prefix, b.precision, b.framework, b.model, b.image, b.scenario, b.spec_decoding)
    return (*names, recipe, b.eval_only, power, nodes, offload)


_CASE_FIELDS = ("prefix", "precision", "framework", "scenario", "nodes")
"""The fields of `When` that `launcher runner show --for` gives a value."""


def applies(when: When, benchmark: Benchmark, *, power: bool = False) -> bool:
    """Whether a rule with this ``when`` is for this benchmark."""
    return _all_hold(_conditions(when), _values(benchmark, power))


def _conditions(when: When) -> list[tuple[int, Any]]:
    """The conditions that are given, each with its index in `_Values`: most fields are not given."""
    return [(i, condition) for i, condition in enumerate(msgspec.structs.astuple(when)) if condition is not None]


def _all_hold(conditions: list[tuple[int, Any]], values: _Values) -> bool:
    for i, condition in conditions:
        value = values[i]
        if condition is not value and not (isinstance(value, str) and _matches(condition, value)):
            return False
    return True


@dataclass
class AppliedRule(Generic[R]):
    """A rule that applies, and its place in the file."""

    rule: R
    location: SourceLocation

    @cached_property
    def where(self) -> str:
        """``file:line`` of the rule. Finding the line takes time, and most rules are never asked for it."""
        return str(self.location)

    @cached_property
    def conditions(self) -> list[tuple[int, Any]]:
        return _conditions(self.rule.when)


class RunnerFile:
    """A runner and the file it was read from, so that every decision can name its line."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.path = document.path
        renamed = deprecated.rename_keys(document.mapping(), deprecated.RUNNER_KEYS)
        self.renamed = [(key, SourceLocation(document, *path)) for key, path in renamed]
        self.runner = convert(document, Runner)
        self._tables: dict[tuple[Key, ...], list[AppliedRule[Any]]] = {}
        self._matched: dict[tuple[tuple[Key, ...], _Values], list[AppliedRule[Any]]] = {}
        self._last: tuple[Benchmark | None, bool, Any] = None, False, None
        self._check()
        for key, location in self.renamed:
            deprecated.warn_renamed(str(location), key)

    @classmethod
    def read(cls, path: Path) -> RunnerFile:
        """Read and validate a runner file. Raises ConfigError with file and line."""
        return cls(Document.read(path))

    def location(self, *keys: Key) -> str:
        """``file:line`` of the value that these keys lead to."""
        return self.document.location(keys)

    def model(self, benchmark: Benchmark, *, power: bool = False) -> AppliedRule[ModelRule]:
        """The model rule for a benchmark. Raises ConfigError, which lists what is supported, when there is none."""
        return self._first("models", self.runner.models, benchmark, power)

    def lane(self, benchmark: Benchmark, *, power: bool = False) -> AppliedRule[LaneRule]:
        """The lane for a benchmark. Raises ConfigError, which lists what is supported, when there is none."""
        return self._first("lanes", self.runner.lanes, benchmark, power)

    def image(self, benchmark: Benchmark, *, power: bool = False) -> AppliedRule[ImageRule] | None:
        """The rule for the benchmark's own image, or None when it lies where all images do."""
        return next(iter(self._matching(("images", "rules"), self.runner.images.rules, benchmark, power)), None)

    def adjustments(self, benchmark: Benchmark, *, power: bool = False) -> list[AppliedRule[Adjustment]]:
        """Every adjustment for a benchmark, in the file's order."""
        return self._matching(("adjust",), self.runner.adjust, benchmark, power)

    def excluded(self, benchmark: Benchmark, *, power: bool = False) -> list[AppliedRule[ExcludedNode]]:
        """The nodes that this benchmark's job must not get."""
        return self._matching(("exclude-nodes",), self.runner.exclude_nodes, benchmark, power)

    def possible_lanes(self, benchmark: Benchmark) -> list[AppliedRule[LaneRule]]:
        """The lanes that may serve a benchmark of which only `_CASE_FIELDS` are known, up to the first that certainly
        serves it."""
        values, possible = _values(benchmark, False), []
        for lane in self._table(("lanes",), self.runner.lanes):
            by_case = When(**{name: getattr(lane.rule.when, name) for name in _CASE_FIELDS})
            if _all_hold(_conditions(by_case), values):
                possible.append(lane)
                if lane.rule.when == by_case:
                    break
        return possible

    def _matching(
        self, keys: tuple[Key, ...], rules: Sequence[R], benchmark: Benchmark, power: bool
    ) -> list[AppliedRule[R]]:
        """The rules that apply, in the file's order. Kept by the values that rules look at, which hundreds of rows
        share."""
        if self._last[0] is not benchmark or self._last[1] is not power:  # a plan needs six tables for one benchmark
            self._last = benchmark, power, _values(benchmark, power)
        values = self._last[2]
        if (matched := self._matched.get((keys, values))) is None:
            table = self._table(keys, rules)
            matched = self._matched[keys, values] = [rule for rule in table if _all_hold(rule.conditions, values)]
        return matched

    def _table(self, keys: tuple[Key, ...], rules: Sequence[R]) -> list[AppliedRule[R]]:
        """All rules of a table. Made once, since finding their lines and conditions takes time."""
        if keys not in self._tables:
            self._tables[keys] = [
                AppliedRule(rule, SourceLocation(self.document, *keys, i)) for i, rule in enumerate(rules)
            ]
        return self._tables[keys]

    def _first(self, table: str, rules: Sequence[R], benchmark: Benchmark, power: bool) -> AppliedRule[R]:
        if applied := self._matching((table,), rules, benchmark, power):
            return applied[0]
        case = f"{benchmark.model_prefix}/{benchmark.precision}/{benchmark.framework} ({benchmark.scenario})"
        supported = "; ".join(dict.fromkeys(describe_when(rule.when) for rule in rules)) or "nothing"
        raise ConfigError(
            f"runner {self.runner.name} has no rule in `{table}` for {case}",
            where=self.location(table),
            hint=f"supported: {supported}",
        )

    def storage_of(self, path: str) -> Storage | None:
        """The storage that a path lies on: the longest declared prefix, or None when the file declares none."""
        storages = [s for s in self.runner.storage if path == s.path or path.startswith(s.path.rstrip("/") + "/")]
        return max(storages, key=lambda s: len(s.path), default=None)

    def _check(self) -> None:
        runner = self.runner
        for i, lane in enumerate(runner.lanes):
            for key, kinds in (("container", (CONTAINER, DOCKER)), ("multinode", KINDS)):
                needed = lane.kind in kinds
                if needed != (getattr(lane, key) is not None):
                    problem = f"needs `{key}`" if needed else f"takes no `{key}`"
                    raise ConfigError(f"a lane of kind {lane.kind} {problem}", where=self.location("lanes", i))
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
    """Every template of a runner file, the names that it may have, and the keys that lead to it."""
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

    def text(value: Pattern | bool | None) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return "*" if value is None else value if isinstance(value, str) else "|".join(value)

    names = zip(When.__struct_fields__, When.__struct_encode_fields__, strict=True)
    extra = [
        f"{key}={text(value)}"
        for field, key in names
        if field not in ("prefix", "precision", "framework") and (value := getattr(when, field)) is not None
    ]
    case = f"{text(when.prefix)}/{text(when.precision)}/{text(when.framework)}"
    return case + (f" [{', '.join(extra)}]" if extra else "")


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

IMAGE_LOCK = ("squash", "directory", "name")
JOB_NAME = ("runner",)
SETUP = ("arch",)
SERVED = ("model",)
TAGS = ("sku", "prefix", "precision", "isl", "osl", "date")
"""The names in templates of `images.lock`, `scheduler.job-name`, `checkout.setup`, `served` of a model, and `tags`."""


def check_template(template: str, names: Collection[str], where: str) -> None:
    """Raise ConfigError for a brace in a template that is not a ``{name}`` of these names."""
    for name in _PLACEHOLDER.findall(template):
        if name not in names:
            hint = suggest(name, names, f"there is {', '.join(f'{{{known}}}' for known in names)}")
            raise ConfigError(f"{{{name}}} is nothing that is filled in here", where=where, hint=hint)
    if set("{}") & set(_PLACEHOLDER.sub("", template)):
        raise ConfigError(f"a brace in {template!r} is not closed, or was not opened", where=where)


def fill_in(template: str, values: Mapping[str, object]) -> str:
    """The template with values for its names; a name without a value stays as it is.

    Not by `str.format`, which would read attributes of values (``{squash.__class__}``), and pad to any width.
    """
    if "{" not in template:
        return template
    return "".join(str(values.get(part, f"{{{part}}}")) if i % 2 else part for i, part in enumerate(_parts(template)))


@lru_cache(maxsize=1024)  # thousands of rows fill in some dozen templates
def _parts(template: str) -> tuple[str, ...]:
    """Text and names in turn; the first part is text."""
    return tuple(_PLACEHOLDER.split(template))
