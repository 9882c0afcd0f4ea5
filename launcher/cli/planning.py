"""`launcher plan` and `launcher matrix`; and the lines of a plan for people."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from launcher.cli.command import Command, JSONText, Log, refusal_lines
from launcher.cli.common import open_project, selected_plans, selection_filters
from launcher.core.errors import ConfigError, ErrorInfo
from launcher.core.lines import Line, Terminal, count_of, field_lines, table
from launcher.plan.plan import Plan, PlannedModel

if TYPE_CHECKING:  # a plan pays for nothing that only a run needs, and a run for no matrix
    from launcher.benchmark.matrix import Entry
    from launcher.run.kind import JobKind


class PlanFinding(msgspec.Struct, frozen=True):
    rule: str
    severity: str
    message: str
    where: str


class PlanView(msgspec.Struct, frozen=True):
    """A plan for people: pairs of name and value (``says``), and the findings."""

    title: str
    runner: str
    says: tuple[tuple[str, str], ...]
    findings: tuple[PlanFinding, ...]

    @property
    def bad(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


def plan_view(plan: Plan, kinds: Callable[[str], JobKind]) -> PlanView:
    """A plan for people; its kind of job, one of ``kinds`` by name, describes a part of it."""
    b = plan.benchmark
    pairs = [
        ("measures", f"concurrency {' '.join(map(str, b.concurrencies)) or '-'}   {b.key or b.source}"),
        ("model", _model(plan.model)),
    ]
    for image in plan.images:
        pairs += [("image", image.reference), ("", f"{image.squash} (imported on the {image.import_on} node)")]
    pairs += [
        *kinds(plan.kind).describe(plan),
        ("job", _job(plan)),
        ("results", ", ".join(plan.results.required) or f"{plan.results.filename}_*.json"),
        ("believed", str(plan.results.limits)),
        ("decided by", f"{plan.rules.get('model', '-')}, {plan.rules.get('lane', '-')}"),
    ]
    findings = (PlanFinding(f.rule, f.severity, f.message, f.where) for f in plan.findings)
    return PlanView(b.title, plan.runner, tuple(pairs), tuple(findings))


def plan_lines(views: Sequence[PlanView], width: int | None) -> Iterator[str]:
    for i, view in enumerate(views):
        if i:
            yield ""
        yield Line(f"{view.title}   on {view.runner}", "bold")
        yield from field_lines(view.says, width)
        for f in view.findings:
            pairs = [(f.severity, f"{f.message} [{f.rule}]"), ("", f.where)]
            style = "red" if f.severity == "error" else "yellow"
            yield from (Line(line, style) for line in field_lines(pairs, width))
    if len(views) > 1:
        yield ""
        yield f"{len(views)} plans, {sum(view.bad for view in views)} with errors"


def _model(model: PlannedModel) -> str:
    if model.path is None:
        return f"{model.id}, by the script" + (f", with the cache {model.cache.host}" if model.cache else "")
    return f"{model.path} ({model.storage}, for {' and '.join(model.seen_by)} nodes)"


def _job(plan: Plan) -> str:
    scheduler = plan.scheduler
    limit = scheduler.time_limit or ""
    limit = count_of(int(limit), "minute") if limit.isdigit() else limit
    values = {"partition": scheduler.partition, "account": scheduler.account, "at most": limit}
    parts = [plan.job_name, *(f"{name} {value}" for name, value in values.items() if value)]
    if scheduler.gpu_hours is not None and scheduler.nodes:
        parts.append(f"{count_of(scheduler.nodes, 'node')} × that = {scheduler.gpu_hours:.1f} GPU-hours")
    return ", ".join(parts)


class Plans(msgspec.Struct, frozen=True):
    """The plans of the selected benchmarks, for people (``views``) or as JSON (``documents``), and the errors of those
    that cannot be planned. Findings are part of a plan, and are no errors here."""

    count: int
    views: tuple[PlanView, ...] = ()
    documents: str = ""
    wrong: tuple[ErrorInfo, ...] = ()


def _json_type() -> Any:
    """The type of a plan's JSON, without the keys that its kind of job adds."""
    import typing

    hints = {**typing.get_type_hints(Plan), "findings": list[PlanFinding]}
    plan_type = msgspec.defstruct("Plan", [(name, hint) for name, hint in hints.items() if name != "details"])
    return plan_type | list[plan_type]  # type: ignore[valid-type]


@partial(
    Command,
    Plans,
    show=lambda value, terminal: plan_lines(value.views, terminal.width),
    stderr_lines=lambda value: refusal_lines(value.wrong, value.count, "that were selected"),
    to_json=lambda value: JSONText(value.documents),
    json_type=_json_type,
)
def plan(arguments: argparse.Namespace, log: Log) -> Plans:
    project = open_project(arguments)
    refused: list[ConfigError] = []
    plans = [project.plan_from_environment()] if arguments.from_env else selected_plans(arguments, project, refused)
    wrong = tuple(map(ErrorInfo.from_error, refused))
    if not arguments.json:
        return Plans(len(plans), tuple(plan_view(plan, project.kind) for plan in plans), wrong=wrong)
    documents = [plan.as_dict() for plan in plans]
    document = documents[0] if len(documents) == 1 and not wrong else documents
    # Not by msgspec, which makes null of an infinity that a recipe may hold.
    return Plans(len(plans), documents=json.dumps(document, indent=2, ensure_ascii=False), wrong=wrong)


class EntryLine(msgspec.Struct, frozen=True):
    """An entry of a matrix; ``data`` is the entry in InferenceX's form."""

    key: str
    runner: str
    framework: str
    precision: str
    measures: str
    topology: str
    concurrencies: tuple[int, ...]
    evaluated: str
    data: dict[str, Any]


class MatrixEntry(Struct, frozen=True, rename="kebab", kw_only=True):
    """An entry in InferenceX's form; entries of one node and of several differ in their optional keys."""

    image: str
    model: str
    model_prefix: str
    precision: str
    framework: str
    runner: str
    exp_name: str
    conc: int | list[int] | UnsetType = UNSET
    isl: int | UnsetType = UNSET
    osl: int | UnsetType = UNSET
    prefill: dict[str, Any] | UnsetType = UNSET
    decode: dict[str, Any] | UnsetType = UNSET


class Entries(msgspec.Struct, frozen=True):
    """The selected entries, and the errors of others."""

    entries: tuple[EntryLine, ...] = ()
    wrong: tuple[ErrorInfo, ...] = ()


def _entry_line(entry: Entry) -> EntryLine:
    b = entry.benchmark
    evaluated = str(entry.data.get("eval-conc", "yes")) if entry.data.get("run-eval") else ""
    names = (entry.key, b.runner, b.framework, b.precision, b.measures, b.topology)
    return EntryLine(*names, tuple(b.concurrencies), evaluated, dict(entry.data))


def show_entries(value: Entries, terminal: Terminal) -> Iterator[str]:
    names = ("key", "runner", "framework", "precision", "measures", "topology", "evaluated")
    rows = [[*(getattr(e, name) for name in names), " ".join(map(str, e.concurrencies))] for e in value.entries]
    if rows:
        yield from table([*names, "concurrency"], rows, terminal.width)
    keys = len({entry.key for entry in value.entries})
    yield f"{count_of(len(rows), 'entry', 'entries')} of {count_of(keys, 'key')}"


@partial(
    Command,
    Entries,
    show=show_entries,
    stderr_lines=lambda value: refusal_lines(value.wrong, len(value.entries), "that were selected"),
    to_json=lambda value: JSONText(json.dumps([entry.data for entry in value.entries], ensure_ascii=False)),
    json_type=list[MatrixEntry],
)
def matrix(arguments: argparse.Namespace, log: Log) -> Entries:
    """The selected entries of the named files, else of the workspace's master files, else of this repository."""
    project = open_project(arguments)
    files = arguments.matrix or [str(path) for path in sorted((project.workspace / "configs").glob("*-master.yaml"))]
    names = {"runners": arguments.runner, "model_prefixes": arguments.model_prefix}
    selection = selection_filters(arguments, nodes=arguments.nodes, evals=arguments.evals, **names)
    refused: list[ConfigError] = []
    entries = project.matrix(files).entries(selection, refused)
    return Entries(tuple(map(_entry_line, entries)), tuple(map(ErrorInfo.from_error, refused)))
