"""`launcher runner list` and `show`: what the runner files say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark
from launcher.cli.command import Command, Log, refusal_lines
from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, ErrorInfo
from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.plan.derive import known_problems, last_given
from launcher.runner import json_schema
from launcher.runner.file import RunnerFile, describe_when
from launcher.runner.schema import LaneRule, ModelRule


@dataclass(frozen=True)
class RunnerLine:
    """A runner in a list."""

    name: str
    sku: str
    gpus: int
    partition: str | None
    labels: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Runners:
    """All runners whose files can be read, and the errors of the other files."""

    runners: tuple[RunnerLine, ...]
    wrong: tuple[ErrorInfo, ...] = ()


_WIDE = 160
"""Columns of a terminal from which on the table has descriptions."""


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
    """List all runners."""
    broken: list[ConfigError] = []
    runners = [file.runner for file in open_project(arguments).fleet.readable(broken)]
    lines = (
        RunnerLine(r.name, r.sku, r.node.gpus, r.scheduler.partition, tuple(r.labels), r.description) for r in runners
    )
    return Runners(tuple(lines), tuple(map(ErrorInfo.from_error, broken)))


@dataclass(frozen=True)
class Fact:
    """A value that a runner file states or that follows from its rules, with ``file:line``."""

    name: str
    text: str
    where: str = ""


@dataclass(frozen=True)
class Case:
    """The rules that apply to benchmarks of a case on one node, or on several. Where the case does not decide between
    several ``lanes``, ``facts`` are those of a benchmark for which none of their conditions holds."""

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


def show_view(value: RunnerView, terminal: Terminal) -> Iterator[str]:
    for case in value.cases:
        if len(value.cases) > 1:
            yield Line(f"on {case.nodes}:", "bold")
        if case.lanes:
            yield f"{count_of(len(case.lanes), 'lane')} may serve it, the first whose condition holds:"
            yield from _fact_lines(case.lanes, terminal, "  ", max(len(lane.name) for lane in case.lanes))
            yield "where none of these conditions holds:" if case.facts else "else none"
        yield from _fact_lines(case.facts, terminal, "", 10)
    if value.cases:
        return
    yield from wrap_words(f"{value.name}: {value.description}", terminal.width, "  ")
    yield value.file
    yield from _fact_lines(value.facts, terminal, "", 10)
    for title, rules in (("models", value.models), ("lanes", value.lanes), ("excluded", value.excluded)):
        if rules:
            yield Line(title, "bold")
            yield from _fact_lines(rules, terminal, "  ", min(40, max(len(rule.name) for rule in rules)))


def _fact_lines(facts: Sequence[Fact], terminal: Terminal, indent: str, name_width: int) -> Iterator[str]:
    """A line for each fact; in a narrow terminal its file and line stand below it."""
    for fact in facts:
        text = f"{indent}{fact.name:{name_width}} {fact.text}"
        line = f"{text}   {fact.where}".rstrip()
        if terminal.width is None or len(line) <= terminal.width:
            yield line
            continue
        yield from wrap_words(text, terminal.width, f"{indent}    ")
        if fact.where:
            yield f"{indent}    {fact.where}"


@partial(Command, RunnerView, show=show_view)
def show(arguments: argparse.Namespace, log: Log) -> RunnerView:
    """Show one runner, or the rules of a case."""
    file = open_project(arguments).fleet.get(arguments.name)
    r = file.runner
    view = RunnerView(r.name, r.description, file.path)
    if arguments.case:
        return replace(view, cases=tuple(_cases(file, arguments.case)))
    names = f"partition {r.scheduler.partition or '-'}, account {r.scheduler.account or '-'}"
    facts = [Fact("scheduler", f"{r.scheduler.kind}, {names}")]
    facts += [Fact("nodes", f"{count_of(r.node.gpus, 'GPU')}, {r.node.arch or 'any architecture'}")]
    if r.images.directory:
        facts.append(Fact("images", f"{r.images.directory}, imported on the {r.images.import_on} node"))

    def rules(table: str, texts: Iterable[tuple[str, str]]) -> tuple[Fact, ...]:
        return tuple(Fact(name, text, file.location(table, i)) for i, (name, text) in enumerate(texts))

    return replace(
        view,
        facts=tuple(facts),
        models=rules("models", ((describe_when(model.when), _model_location(model)) for model in r.models)),
        lanes=rules("lanes", ((describe_when(lane.when), _lane_program(lane)) for lane in r.lanes)),
        excluded=rules("exclude-nodes", ((node.node, node.reason) for node in r.exclude_nodes)),
    )


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of runner files: ``runners/runner.schema.json`` is this output."""
    sys.stdout.write(json_schema.text())
    return 0


def _cases(file: RunnerFile, case: str) -> Iterator[Case]:
    """The rules for a case on several nodes, and on one node, where lanes serve it. Raises ConfigError without any."""
    served = []
    for nodes, several in (("several nodes", True), ("one node", False)):
        benchmark = _case_benchmark(case, several)
        # Lanes in a container are for one node, all others for several.
        lanes = [lane for lane in file.possible_lanes(benchmark) if (lane.rule.container is None) == several]
        if lanes:
            served.append((nodes, benchmark, lanes))
    if not served:
        file.lane(_case_benchmark(case, True))
        raise ConfigError(f"no lane of {file.runner.name} serves {case}", where=file.location("lanes"))
    for nodes, benchmark, lanes in served:
        facts: tuple[Fact, ...] = ()
        try:
            if file.lane(benchmark).where in {lane.where for lane in lanes}:
                facts = tuple(_case_facts(file, benchmark))
        except ConfigError:
            if len(lanes) == 1 and len(served) == 1:
                raise
        possible = (Fact(describe_when(lane.rule.when), _lane_program(lane.rule), lane.where) for lane in lanes)
        yield Case(nodes, facts, tuple(possible) if len(lanes) > 1 else ())


def _model_location(model: ModelRule) -> str:
    return (model.path if isinstance(model.path, str) else " or ".join(model.path)) or f"cache {model.cache}"


def _lane_program(lane: LaneRule) -> str:
    """What runs the benchmarks of a lane."""
    if lane.multinode is not None:
        return f"{lane.multinode.engine} on each of several nodes, {lane.multinode.script}"
    if lane.container is None:
        return f"{lane.repository}@{lane.ref}"
    return f"{lane.container.engine}, {' or '.join(lane.container.script.names)}"


_ADJUSTMENTS = ("mounts", "exports", "time_limit")
_CONTAINER_ADJUSTMENTS = ("workdir",)
_SRTCTL_ADJUSTMENTS = ("edits", "srtslurm", "preflight", "setup_script", "tags")
"""Keys of adjustments that are shown: those of all kinds of job, and those of one kind."""


def _case_facts(file: RunnerFile, benchmark: Benchmark) -> Iterator[Fact]:
    model, lane, image = file.model(benchmark), file.lane(benchmark), file.image(benchmark)
    adjustments, rule = file.adjustments(benchmark), lane.rule
    container = rule.container or rule.multinode
    alias = f" as {model.rule.alias}" if model.rule.alias else ""
    yield Fact("model", f"{_model_location(model.rule)}{alias}", model.where)
    if image is not None:
        directory = image.rule.directory or file.runner.images.directory
        yield Fact("image", image.rule.image or f"in {directory}", image.where)
    if container is not None:
        yield Fact("container", _lane_program(rule), lane.where)
    else:
        commit = f"{rule.ref} ({rule.sha or 'not pinned'})"
        yield Fact("srt-slurm", f"{file.runner.repositories[rule.repository]} {commit}", lane.where)
    for overlay in rule.overlays:
        yield Fact("overlay", f"{overlay.source} → {overlay.destination or 'recipes/' + overlay.source}")
    if rule.setup_script:
        yield Fact("set-up", rule.setup_script)
    lane_limit = rule.time_limit if container is None else container.allocation.time_limit
    limit = last_given([lane_limit, *(adjustment.rule.time_limit for adjustment in adjustments)], None)
    limit = limit or file.runner.scheduler.time_limit or "the partition's"
    yield Fact("time limit", f"{limit}{', where the recipe says none' if container is None else ''}")
    keys = (*_ADJUSTMENTS, *(_SRTCTL_ADJUSTMENTS if container is None else _CONTAINER_ADJUSTMENTS))
    for adjustment in adjustments:
        given = [key.replace("_", "-") for key in keys if getattr(adjustment.rule, key) not in (None, {}, [])]
        if given:
            yield Fact("adjusts", f"{', '.join(given)}: {adjustment.rule.reason or '-'}", adjustment.where)
    for excluded in file.excluded(benchmark):
        yield Fact("excludes", f"{excluded.rule.node}: {excluded.rule.reason}", excluded.where)
    for finding in known_problems([model, lane, *([image] if image is not None else []), *adjustments]):
        yield Fact("known", f"{finding.severity}: {finding.message}", finding.where)


def _case_benchmark(case: str, multinode: bool) -> Benchmark:
    """A benchmark with the fields that rules look at: ``prefix/precision/framework[/agentic]``."""
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
