"""What a rule is, and what `launcher check` reads: rows of matrices, recipe files and runner files."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import result_filename
from launcher.benchmark.expand import Selection
from launcher.benchmark.matrix import Entry, Matrix
from launcher.check.schema_validation import Schema
from launcher.check.srtctl_schema import Schemas
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding, Severity
from launcher.core.yaml_source import Document, SourceLocation
from launcher.plan.plan import SRTCTL, Plan
from launcher.runner.file import RunnerFile
from launcher.runner.fleet import Fleet
from launcher.srtctl.locate import RecipeFinder
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.recipe import OVERRIDE, ZIP, Variant, variants

Problem = tuple[str, SourceLocation | str] | tuple[str, SourceLocation | str, Severity]
"""A message and its place; a severity when it is not the rule's own."""

RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Iterable[Problem]])

Subject = Literal["any plan", "container", "plan", "recipe", "version", "everything"]
"""What a rule checks: a plan of any kind of job, of a job in a container, or of srtctl; a plan of srtctl with the facts
of its recipe, or with the schema of its srt-slurm; or everything that one `launcher check` reads. A rule applies only
where its subject is known."""


@dataclass(frozen=True)
class Rule:
    """A rule: its id, its severity, one line that says what is wrong, and the function that checks it.

    A rule without a function names findings that are made elsewhere.
    """

    id: str
    severity: Severity
    title: str
    check: Callable[..., Iterable[Problem]] = lambda *subjects: ()
    subject: Subject = "everything"

    def finding(self, problem: Problem) -> Finding:
        """The finding for a problem that the rule's function reported."""
        message, place, *severity = problem
        return Finding(self.id, severity[0] if severity else self.severity, message, place)


def rule(
    rules: list[Rule], subject: Subject, id: str, severity: Severity, title: str
) -> Callable[[RuleFunction], RuleFunction]:
    """A decorator that adds a function to ``rules``."""

    def add(function: RuleFunction) -> RuleFunction:
        rules.append(Rule(id, severity, title, function, subject))
        return function

    return add


@dataclass(frozen=True)
class Row:
    """A row of a matrix, the cluster that serves it, and its plan, or the error that prevented a plan."""

    benchmark: Benchmark
    place: SourceLocation | str
    file: RunnerFile | None = None
    plan: Plan | None = None
    refused: ConfigError | None = None

    @cached_property
    def job(self) -> SrtctlJob | None:
        """The part of the plan that only srtctl's jobs have; None without a plan, and for another kind of job."""
        return SrtctlJob.of(self.plan) if self.plan is not None and self.plan.kind == SRTCTL else None


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file. ``schema`` is that of the tree it belongs to; None for an overlay, which is copied into several.

    ``used`` are the variants that rows run (None is a plain recipe); they are checked with those rows.
    """

    document: Document
    schema: Schema | None
    used: frozenset[str | None]

    @cached_property
    def variants_and_errors(self) -> tuple[list[Variant], list[tuple[tuple[str, ...], ConfigError]]]:
        """The variants of the file, and the sections that cannot be expanded."""
        data = self.document.data
        if not isinstance(data, dict) or not isinstance(data.get("base", {}), dict):
            return [], [((), ConfigError("the recipe is not a mapping"))]
        if "base" not in data:
            return variants(data), []
        expanded: list[Variant] = []
        errors: list[tuple[tuple[str, ...], ConfigError]] = []
        for key in data:
            if isinstance(key, str) and key.startswith((OVERRIDE, ZIP)):
                try:
                    expanded += variants(data, key)
                except ConfigError as error:
                    errors.append(((key,), error))
        return expanded, errors


HasCommit = Callable[[str, str], bool | None]
"""(repository's URL, full sha) → whether the repository has the commit; None when no copy is on this machine."""


@dataclass(frozen=True)
class CheckInput:
    """Everything that one `launcher check` reads.

    ``evaluations`` are the rows of evaluation jobs; they have no plan. ``outside`` has the places of rows that are not
    checked, by the reason. ``runners`` are label → names of physical runners.
    """

    rows: Sequence[Row]
    evaluations: Sequence[Row] = ()
    files: Sequence[RunnerFile] = ()
    recipes: Sequence[RecipeFile] = ()
    broken_files: Sequence[ConfigError] = ()
    broken_recipes: Sequence[ConfigError] = ()
    broken_rows: Sequence[ConfigError] = ()
    outside: Mapping[str, Sequence[SourceLocation | str]] = field(default_factory=dict)
    runners: Mapping[str, Sequence[str]] = field(default_factory=dict)
    schemas: Schemas = field(default_factory=Schemas)
    today: date = date.min
    has_commit: HasCommit = lambda url, sha: None
    overlays: Path | None = None
    """The workspace's recipes, which lanes lay over srt-slurm's; None when it has none."""
    whole: bool = True
    """Whether all rows and files were read; only then is an entry that nothing uses known to be unused."""

    @cached_property
    def workflow_names(self) -> Mapping[int, str]:
        """``id(row)`` → RESULT_FILENAME in a workflow, on the runner with the longest name of the row's label.

        A row for which no name can be made is left out; it has no plan either.
        """
        names = {}
        for row in (*self.rows, *self.evaluations):
            label = row.benchmark.runner
            served = [f"{name}_0" for name in (row.file.runner.runners if row.file else ())]
            with contextlib.suppress(ConfigError):
                names[id(row)] = result_filename(
                    row.benchmark, max(self.runners.get(label) or served or [label], key=len)
                )
        return names


class Project(Protocol):
    """What this module needs of `launcher.project.Project`: rows, recipes, runner files, and the plan of a row."""

    @property
    def workspace(self) -> Path: ...

    @property
    def fleet(self) -> Fleet: ...

    @property
    def finder(self) -> RecipeFinder: ...

    @property
    def schemas(self) -> Schemas: ...

    def matrix(self, files: Sequence[str] = ()) -> Matrix: ...

    def plan_by_hand(self, benchmark: Benchmark, runner: str | None, *, narrow: bool = False) -> Plan: ...


SCRIPTED = ("tilert", "llmd-*", "*-disagg")
"""Frameworks whose rows of several nodes run scripts of the workspace in containers."""

PlacedBenchmark = tuple[Benchmark, SourceLocation | str]
"""A benchmark and the place of its row."""


def gather_everything(project: Project, matrix_files: Sequence[str] = ()) -> CheckInput:
    """All rows, runner files and recipe files on this machine, and the errors of those that cannot be read."""
    matrix = project.matrix(matrix_files)
    inside: list[PlacedBenchmark] = []
    outside: dict[str, list[SourceLocation | str]] = defaultdict(list)
    without_scripts = _labels_without_scripts(project)
    broken_rows: list[ConfigError] = []
    for entry in matrix.entries(Selection(evals="none"), broken_rows):
        if reason := _reason_outside(entry.benchmark, without_scripts):
            outside[reason].append(entry.place)
        else:
            inside.append((entry.benchmark, entry.place))
    broken_files: list[ConfigError] = []
    broken_recipes: list[ConfigError] = []
    selected_rows = gather_selected(project, inside, None)
    return dataclasses.replace(
        selected_rows,
        evaluations=[
            Row(entry.benchmark, entry.place)
            for entry in _entries(matrix, Selection(evals="only"), [])
            if not (entry.benchmark.multinode and _reason_outside(entry.benchmark, without_scripts))
        ],
        files=project.fleet.readable(broken_files),
        recipes=list(_recipes(project, selected_rows.rows, broken_recipes)),
        broken_files=broken_files,
        broken_recipes=broken_recipes,
        broken_rows=[*broken_rows, *filter(None, [matrix.labels_error])],
        outside=outside,
        runners=matrix.labels.labels if matrix.labels is not None else {},
        whole=True,
    )


def _labels_without_scripts(project: Project) -> set[tuple[bool, str]]:
    """(multi-node, label) of clusters that run the workspace's scripts in containers and whose scripts are missing."""
    labels = set[tuple[bool, str]]()
    for runner in (file.runner for file in project.fleet.readable()):
        if runner.workspace.own is not None:
            continue  # it uses the scripts that come with the launcher
        single_node = {lane.container.script.directory for lane in runner.lanes if lane.container is not None}
        multi_node = {str(Path(lane.multinode.script).parent) for lane in runner.lanes if lane.multinode is not None}
        for multinode, folders in ((False, single_node), (True, multi_node)):
            if folders and not any((project.workspace / folder).is_dir() for folder in folders):
                labels.update((multinode, label) for label in runner.labels)
    return labels


def _reason_outside(benchmark: Benchmark, without_scripts: set[tuple[bool, str]]) -> str:
    """The description of rows that cannot be checked because their scripts are missing; "" for a row that can be."""
    multinode = benchmark.multinode
    scripted = not multinode or any(fnmatch.fnmatchcase(benchmark.framework, pattern) for pattern in SCRIPTED)
    if not scripted or (multinode, benchmark.runner) not in without_scripts:
        return ""
    return f"rows of {'several nodes' if multinode else 'one node'}, whose scripts are not in the workspace,"


def gather_for_runner(project: Project, runner: str, matrix_files: Sequence[str] = ()) -> CheckInput:
    """A runner file, and the rows whose label it serves."""
    labels = project.fleet.get(runner).runner.labels
    broken: list[ConfigError] = []
    entries = _entries(project.matrix(matrix_files), Selection(evals="none", runners=labels), broken) if labels else ()
    rows = [(entry.benchmark, entry.place) for entry in entries]
    return dataclasses.replace(gather_selected(project, rows, runner), broken_rows=broken)


def gather_selected(
    project: Project, chosen: Iterable[PlacedBenchmark], runner: str | None, narrow: bool = False
) -> CheckInput:
    """The selected rows, and the runner files that serve them; only on ``runner`` when it is given.

    ``narrow`` says that the user chose concurrencies, so that recipes are edited to run only those.
    """
    files = [project.fleet.get(runner)] if runner is not None else project.fleet.readable()
    rows = list(_rows(project, chosen, files, runner, narrow))
    serving = {id(row.file): row.file for row in rows if row.file is not None}
    return CheckInput(
        rows=rows,
        files=files if runner is not None else list(serving.values()),
        schemas=project.schemas,
        overlays=project.finder.overlays,
        whole=False,
    )


def _rows(
    project: Project, chosen: Iterable[PlacedBenchmark], files: Sequence[RunnerFile], runner: str | None, narrow: bool
) -> Iterator[Row]:
    """A row for every cluster that serves its label: a workflow's job may run on any of them."""
    by_label: dict[str, list[RunnerFile]] = defaultdict(list)
    for file in files:
        for label in dict.fromkeys(file.runner.labels):
            by_label[label].append(file)
    for benchmark, place in chosen:
        serving = files if runner is not None else by_label.get(benchmark.runner, [])
        if not serving:
            yield Row(benchmark, place)
        for file in serving:
            try:
                yield Row(benchmark, place, file, project.plan_by_hand(benchmark, file.runner.name, narrow=narrow))
            except ConfigError as error:
                yield Row(benchmark, place, file, refused=error)


def _entries(matrix: Matrix, selection: Selection, broken: list[ConfigError]) -> Sequence[Entry]:
    try:
        return matrix.entries(selection, broken)
    except ConfigError:  # the matrix has no such entry
        return ()


def _recipes(project: Project, rows: Sequence[Row], broken: list[ConfigError]) -> Iterator[RecipeFile]:
    used: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        if row.job is not None and row.job.recipe.file is not None:
            used[row.job.recipe.file].add(row.job.recipe.section)
    for path, ref in project.finder.files():
        schema = project.schemas.get(ref, ref) if ref is not None else None
        try:
            document = project.finder.read(path)
        except ConfigError as error:
            broken.append(error)
            continue
        if document is not None:
            yield RecipeFile(document, schema, frozenset(used.get(str(path), ())))
