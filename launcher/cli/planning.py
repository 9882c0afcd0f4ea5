"""`launcher plan` and `matrix`: decide, and say what was decided."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from launcher.benchmark.matrix import Entry
from launcher.cli.command import Command, JSONText, Tell, refused_lines
from launcher.cli.common import filters, open_project, planned
from launcher.cli.plans import PlanFinding, PlanView, plan_lines, view_of
from launcher.core.errors import ConfigError, Wrong
from launcher.core.lines import Terminal, table
from launcher.plan.plan import Plan


@dataclass(frozen=True)
class Plans:
    """The plans of the selected benchmarks, to be shown or (``documents``) as they are, in JSON; why others cannot be
    planned. Findings are part of a plan, and no error here."""

    count: int
    views: tuple[PlanView, ...] = ()
    documents: str = ""
    wrong: tuple[Wrong, ...] = ()


def plans(arguments: argparse.Namespace, tell: Tell) -> Plans:
    project = open_project(arguments)
    refused: list[ConfigError] = []
    found = [project.plan_from_environment()] if arguments.from_env else planned(arguments, project, refused)
    wrong = tuple(map(Wrong.by, refused))
    if arguments.json:
        return Plans(len(found), documents=_documents([one.as_dict() for one in found], alone=not wrong), wrong=wrong)
    return Plans(len(found), tuple(view_of(one, project.kind) for one in found), wrong=wrong)


def _documents(values: list[dict[str, Any]], *, alone: bool) -> str:
    """One plan alone is an object. Not by msgspec, which makes null of an infinity that a recipe may hold."""
    return json.dumps(values[0] if alone and len(values) == 1 else values, indent=2, ensure_ascii=False)


def _form() -> Any:
    """The type of a plan's JSON; the keys of its kind of job stand beside these."""
    import typing

    import msgspec

    hints = {**typing.get_type_hints(Plan), "findings": list[PlanFinding]}
    one = msgspec.defstruct("Plan", [(name, kind) for name, kind in hints.items() if name != "details"])
    return one | list[one]  # type: ignore[valid-type]


plan = Command(
    Plans,
    plans,
    lambda value, terminal: plan_lines(value.views, terminal.width),
    aside=lambda value: refused_lines(value.wrong, value.count, "that were selected"),
    document=lambda value: JSONText(value.documents),
    form=_form,
)


@dataclass(frozen=True)
class EntryLine:
    """An entry of a matrix; ``data`` as InferenceX has it."""

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
    """An entry in InferenceX's shape; what is of one node, or of several, only such entries have."""

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


@dataclass(frozen=True)
class Entries:
    """The selected entries; what is wrong with others."""

    entries: tuple[EntryLine, ...] = ()
    wrong: tuple[Wrong, ...] = ()


def entries(arguments: argparse.Namespace, tell: Tell) -> Entries:
    """The selected entries of the files named, else of the workspace's masters, else of this repository."""
    project = open_project(arguments)
    files = arguments.matrix or [str(path) for path in sorted((project.workspace / "configs").glob("*-master.yaml"))]
    more = {"runners": arguments.runner, "model_prefixes": arguments.model_prefix}
    selection = filters(arguments, nodes=arguments.nodes, evals=arguments.evals, **more)
    refused: list[ConfigError] = []
    found = project.matrix(files).entries(selection, refused)
    return Entries(tuple(map(_line, found)), tuple(map(Wrong.by, refused)))


def _line(entry: Entry) -> EntryLine:
    b = entry.benchmark
    evaluated = str(entry.data.get("eval-conc", "yes")) if entry.data.get("run-eval") else ""
    names = (entry.key, b.runner, b.framework, b.precision, b.measures, b.topology)
    return EntryLine(*names, tuple(b.concurrencies), evaluated, dict(entry.data))


def show_entries(value: Entries, terminal: Terminal) -> Iterator[str]:
    names = ("key", "runner", "framework", "precision", "measures", "topology", "evaluated")
    rows = [[*(getattr(e, name) for name in names), " ".join(map(str, e.concurrencies))] for e in value.entries]
    if rows:
        yield from table([*names, "concurrency"], rows, terminal.width)
    yield f"{len(rows)} entries of {len({entry.key for entry in value.entries})} keys"


matrix = Command(
    Entries,
    entries,
    show_entries,
    aside=lambda value: refused_lines(value.wrong, len(value.entries), "that were selected"),
    document=lambda value: JSONText(json.dumps([entry.data for entry in value.entries], ensure_ascii=False)),
    form=list[MatrixEntry],
)
