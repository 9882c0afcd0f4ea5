"""`launcher runner list` and `show`: what the runner files say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark
from launcher.cli.command import Command, Log, refusal_lines
from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, ErrorInfo
from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.plan.derive import known_problems, last_given
from launcher.runner import json_schema
from launcher.runner.file import RunnerFile, describe_when
from launcher.runner.schema import LaneRule, ModelRule

Rule = TypeVar("Rule", LaneRule, ModelRule)


@dataclass(frozen=True)
class RunnerLine:
    name: str
    sku: str
    gpus: int
    partition: str | None
    labels: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Runners:
    """All runners whose files can be read; what is wrong with the others."""

    runners: tuple[RunnerLine, ...]
    wrong: tuple[ErrorInfo, ...] = ()


_WIDE = 160
"""Columns of a terminal from which on runners are described in their table."""


def show_list(value: Runners, terminal: Terminal) -> Iterator[str]:
    heads, wide = ["runner", "sku", "GPUs", "partition", "labels"], terminal.width is None or terminal.width >= _WIDE
    rows = [[r.name, r.sku, r.gpus, r.partition or "-", " ".join(r.labels)] for r in value.runners]
    if wide:
        heads, rows = [*heads, ""], [[*row, r.description] for row, r in zip(rows, value.runners, strict=True)]
    yield from table(heads, rows, terminal.width)
    if not wide:
        yield Line("launcher runner show NAME says what it is", "dim")


@partial(
    Command,
    Runners,
    show=show_list,
    stderr_lines=lambda value: refusal_lines(value.wrong, len(value.runners), "runner files", "read"),
    to_json=lambda value: value.runners,
    json_type=list[RunnerLine],
)
def listing(arguments: argparse.Namespace, log: Log) -> Runners:
    broken: list[ConfigError] = []
    runners = [file.runner for file in open_project(arguments).fleet.readable(broken)]
    lines = (
        RunnerLine(r.name, r.sku, r.node.gpus, r.scheduler.partition, tuple(r.labels), r.description) for r in runners
    )
    return Runners(tuple(lines), tuple(map(ErrorInfo.from_error, broken)))


@dataclass(frozen=True)
class Fact:
    """Something that a runner file says or decides, and the rule's file and line."""

    name: str
    text: str
    where: str = ""


@dataclass(frozen=True)
class Case:
    """What applies to benchmarks of the names that were asked for, on one node or several. ``lanes`` are those that
    may serve them, where what tells them apart was not said; the facts are then those without any of it."""

    nodes: str
    facts: tuple[Fact, ...]
    lanes: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class RunnerView:
    """One runner: its tables, or the rules that apply to a case."""

    name: str
    description: str
    file: str
    facts: tuple[Fact, ...] = ()
    models: tuple[Fact, ...] = ()
    lanes: tuple[Fact, ...] = ()
    excluded: tuple[Fact, ...] = ()
    cases: tuple[Case, ...] = ()


def _rules(file: RunnerFile, title: str, rules: Sequence[Rule], text: Callable[[Rule], str]) -> tuple[Fact, ...]:
    return tuple(Fact(describe_when(rule.when), text(rule), file.location(title, i)) for i, rule in enumerate(rules))


def show_view(value: RunnerView, terminal: Terminal) -> Iterator[str]:
    for case in value.cases:
        if len(value.cases) > 1:
            yield Line(f"on {case.nodes}:", "bold")
        if case.lanes:
            yield f"{count_of(len(case.lanes), 'lane')} may serve it, the first whose condition holds:"
            yield from _facts(case.lanes, terminal, "  ", max(len(lane.name) for lane in case.lanes))
            yield "where none of these conditions holds:" if case.facts else "else none"
        yield from _facts(case.facts, terminal, "", 10)
    if value.cases:
        return
    yield from wrap_words(f"{value.name}: {value.description}", terminal.width, "  ")
    yield value.file
    yield from _facts(value.facts, terminal, "", 10)
    for title, rules in (("models", value.models), ("lanes", value.lanes), ("excluded", value.excluded)):
        if rules:
            yield Line(title, "bold")
            yield from _facts(rules, terminal, "  ", min(40, max(len(rule.name) for rule in rules)))


def _facts(facts: Sequence[Fact], terminal: Terminal, indent: str, name: int) -> Iterator[str]:
    """A line for each; where a line has no room for it all, what follows the name stands below it."""
    for fact in facts:
        line = f"{indent}{fact.name:{name}} {fact.text}   {fact.where}".rstrip()
        if terminal.width is None or len(line) <= terminal.width:
            yield line
            continue
        yield from wrap_words(f"{indent}{fact.name:{name}} {fact.text}", terminal.width, f"{indent}    ")
        if fact.where:
            yield f"{indent}    {fact.where}"


@partial(Command, RunnerView, show=show_view)
def show(arguments: argparse.Namespace, log: Log) -> RunnerView:
    file = open_project(arguments).fleet.get(arguments.name)
    r = file.runner
    view = RunnerView(r.name, r.description, file.path)
    if arguments.case:
        return replace(view, cases=tuple(_cases(file, arguments.case)))
    named = f"partition {r.scheduler.partition or '-'}, account {r.scheduler.account or '-'}"
    facts = [Fact("scheduler", f"{r.scheduler.kind}, {named}")]
    facts += [Fact("nodes", f"{count_of(r.node.gpus, 'GPU')}, {r.node.arch or 'any architecture'}")]
    if r.images.directory:
        facts.append(Fact("images", f"{r.images.directory}, imported on the {r.images.import_on} node"))
    return replace(
        view,
        facts=tuple(facts),
        models=_rules(file, "models", r.models, _lies),
        lanes=_rules(file, "lanes", r.lanes, _runs),
        excluded=tuple(
            Fact(node.node, node.reason, file.location("exclude-nodes", i)) for i, node in enumerate(r.exclude_nodes)
        ),
    )


def schema(arguments: argparse.Namespace) -> int:
    """The JSON Schema of runner files: ``runners/runner.schema.json`` is this output."""
    sys.stdout.write(json_schema.text())
    return 0


_ADJUSTS = ("mounts", "exports", "time_limit")
_OF_CONTAINERS, _OF_SRTCTL = ("workdir",), ("edits", "srtslurm", "preflight", "setup_script", "tags")
"""What an adjustment says for any kind of job, and what for one kind alone."""


def _cases(file: RunnerFile, case: str) -> Iterator[Case]:
    """What applies to a case where several nodes serve it, and where one does. Raises ConfigError where none does."""
    found = []
    for nodes, several in (("several nodes", True), ("one node", False)):
        benchmark = _benchmark(case, several)
        # Lanes in a container are for one node, all others for several.
        lanes = [one for one in file.possible_lanes(benchmark) if (one.rule.container is None) == several]
        if lanes:
            found.append((nodes, benchmark, lanes))
    if not found:
        file.lane(_benchmark(case, True))
        raise ConfigError(f"no lane of {file.runner.name} serves {case}", where=file.location("lanes"))
    for nodes, benchmark, lanes in found:
        facts: tuple[Fact, ...] = ()
        try:
            facts = (
                tuple(_case(file, benchmark)) if (file.lane(benchmark).where in {one.where for one in lanes}) else ()
            )
        except ConfigError:
            if len(lanes) == 1 and len(found) == 1:
                raise
        several_lanes = (Fact(describe_when(one.rule.when), _runs(one.rule), one.where) for one in lanes)
        yield Case(nodes, facts, tuple(several_lanes) if len(lanes) > 1 else ())


def _lies(model: ModelRule) -> str:
    """Where a checkpoint lies."""
    return (model.path if isinstance(model.path, str) else " or ".join(model.path)) or f"cache {model.cache}"


def _runs(lane: LaneRule) -> str:
    """What runs the benchmarks of a lane."""
    if lane.multinode is not None:
        return f"{lane.multinode.engine} on each of several nodes, {lane.multinode.script}"
    if lane.container is None:
        return f"{lane.repository}@{lane.ref}"
    return f"{lane.container.engine}, {' or '.join(lane.container.script.names)}"


def _case(file: RunnerFile, benchmark: Benchmark) -> Iterator[Fact]:
    model, lane = file.model(benchmark), file.lane(benchmark)
    r = lane.rule
    as_alias = f" as {model.rule.alias}" if model.rule.alias else ""
    yield Fact("model", f"{_lies(model.rule)}{as_alias}", model.where)
    if own := file.image(benchmark):
        yield Fact("image", own.rule.image or f"in {own.rule.directory or file.runner.images.directory}", own.where)
    if r.container is not None or r.multinode is not None:
        yield Fact("container", _runs(r), lane.where)
    else:
        yield Fact(
            "srt-slurm", f"{file.runner.repositories[r.repository]} {r.ref} ({r.sha or 'not pinned'})", lane.where
        )
    for overlay in r.overlays:
        yield Fact("overlay", f"{overlay.source} → {overlay.destination or 'recipes/' + overlay.source}")
    if r.setup_script:
        yield Fact("set-up", r.setup_script)
    ours = r.container or r.multinode
    own_limit = ours.allocation.time_limit if ours is not None else r.time_limit
    limit = last_given([own_limit, *(a.rule.time_limit for a in file.adjustments(benchmark))], None)
    limit = limit or file.runner.scheduler.time_limit or "the partition's"
    yield Fact("time limit", f"{limit}{'' if ours is not None else ', where the recipe says none'}")
    names = (*_ADJUSTS, *(_OF_SRTCTL if ours is None else _OF_CONTAINERS))
    for applied in file.adjustments(benchmark):
        if what := ", ".join(name for name in names if getattr(applied.rule, name) not in (None, {}, [])):
            yield Fact("adjusts", f"{what.replace('_', '-')}: {applied.rule.reason or '-'}", applied.where)
    for excluded in file.excluded(benchmark):
        yield Fact("excludes", f"{excluded.rule.node}: {excluded.rule.reason}", excluded.where)
    for finding in known_problems([model, lane, *([own] if own else []), *file.adjustments(benchmark)]):
        yield Fact("known", f"{finding.severity}: {finding.message}", finding.where)


def _benchmark(case: str, multinode: bool) -> Benchmark:
    """A benchmark as far as rules look at it: ``prefix/precision/framework[/agentic]``."""
    parts = case.split("/")
    if len(parts) not in (3, 4) or (len(parts) == 4 and parts[3] not in ("agentic", "fixed")):
        raise ConfigError(f"{case!r} is not PREFIX/PRECISION/FRAMEWORK[/agentic]", where="--for")
    return Benchmark(
        exp_name=parts[0],
        image="any/image:any",
        model="any/model",
        model_prefix=parts[0],
        precision=parts[1],
        framework=parts[2],
        runner="",
        concurrencies=(),
        multinode=multinode,
        scenario=AGENTIC if parts[3:] == ["agentic"] else FIXED,
        source="--for",
    )
