"""Gather what `launcher check` looks at: the rows of the matrices, all recipe files, all runner files."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.matrix import Matrix
from launcher.benchmark.selection import Selection
from launcher.check.inputs import Everything, HasCommit, RecipeFile, Row
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Place
from launcher.project import Session
from launcher.runner.file import RunnerFile
from launcher.srtctl.planned import SrtctlJob

OUTSIDE = ("tilert", "llmd-*", "*-disagg")
"""Frameworks that srtctl does not run, and so neither does this launcher."""

Chosen = tuple[Benchmark, Place | str]
"""A benchmark and the place of its row."""


def everything(of: Session, today: date, has_commit: HasCommit, matrix_files: Sequence[str] = ()) -> Everything:
    """All multi-node rows, recipe files at hand and runner files. Raises ConfigError for a matrix that is wrong."""
    matrix = of.matrix(matrix_files)
    chosen = [(e.benchmark, e.place) for e in matrix.entries(Selection(nodes="multi", evals="none"))]
    inside = [(b, place) for b, place in chosen if not _outside(b)]
    outside: dict[str, list[Place | str]] = defaultdict(list)
    for benchmark, place in chosen:
        if _outside(benchmark):
            outside[benchmark.framework].append(place)
    broken: list[ConfigError] = []
    files = of.fleet.readable(broken)
    rows = list(_rows(of, inside, files))
    return Everything(
        rows=rows,
        evaluations=_evaluations(matrix),
        files=files,
        broken_files=broken,
        recipes=list(_recipes(of, rows)),
        outside=outside,
        single_node=_single_node(matrix),
        runners=matrix.labels.labels if matrix.labels is not None else {},
        verdicts=of.verdicts,
        today=today,
        has_commit=has_commit,
        overlays=of.finder.overlays,
    )


def served_by(of: Session, runner: str, matrix_files: Sequence[str] = ()) -> Iterator[Chosen]:
    """The multi-node rows whose label a runner serves."""
    labels = of.fleet.get(runner).runner.labels
    for entry in of.matrix(matrix_files).entries(Selection(nodes="multi", evals="none")):
        if entry.benchmark.runner in labels and not _outside(entry.benchmark):
            yield entry.benchmark, entry.place


def selected(
    of: Session,
    chosen: Iterable[Chosen],
    runner: str | None,
    today: date,
    has_commit: HasCommit,
    narrow: bool = False,
) -> Everything:
    """The rows that were selected, and the runner files that serve them; on ``runner`` when it is given.

    ``narrow`` says that concurrencies were chosen by hand, so that recipes are to run just those.
    """
    files = [of.fleet.get(runner)] if runner is not None else of.fleet.readable()
    rows = list(_rows(of, chosen, files, runner, narrow))
    serving = {id(row.file): row.file for row in rows if row.file is not None}
    return Everything(
        rows=rows,
        files=files if runner is not None else list(serving.values()),
        verdicts=of.verdicts,
        today=today,
        has_commit=has_commit,
        overlays=of.finder.overlays,
        whole=False,
    )


def _outside(benchmark: Benchmark) -> bool:
    return any(fnmatch.fnmatchcase(benchmark.framework, pattern) for pattern in OUTSIDE)


def _rows(
    of: Session,
    chosen: Iterable[Chosen],
    files: Sequence[RunnerFile],
    runner: str | None = None,
    narrow: bool = False,
) -> Iterator[Row]:
    """A row for every cluster that serves its label: a job may land on any of them."""
    by_label: dict[str, list[RunnerFile]] = defaultdict(list)
    for file in files:
        for label in file.runner.labels:
            by_label[label].append(file)
    for benchmark, place in chosen:
        serving = files if runner is not None else by_label.get(benchmark.runner, [])
        if not serving:
            yield Row(benchmark, place)
        for file in serving:
            try:
                yield Row(benchmark, place, file, of.plan_by_hand(benchmark, file.runner.name, narrow=narrow))
            except ConfigError as error:
                yield Row(benchmark, place, file, refused=error)


def _evaluations(matrix: Matrix) -> list[Row]:
    try:
        entries = matrix.entries(Selection(nodes="multi", evals="only"))
    except ConfigError:  # a matrix without a row that is evaluated
        return []
    return [Row(e.benchmark, e.place) for e in entries if not _outside(e.benchmark)]


def _single_node(matrix: Matrix) -> list[Place | str]:
    try:
        return [e.place for e in matrix.entries(Selection(nodes="single", evals="none"))]
    except ConfigError:  # a matrix without one
        return []


def _recipes(of: Session, rows: Sequence[Row]) -> Iterator[RecipeFile]:
    used: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        recipe = SrtctlJob.of(row.plan).recipe if row.plan is not None else None
        if recipe is not None and recipe.file is not None:
            used[recipe.file].add(recipe.section)
    for path, ref in of.finder.files():
        schema = of.verdicts.schemas.get(ref, ref) if ref is not None else None
        run = frozenset(used.get(str(path), ()))
        try:
            yield RecipeFile(path, of.finder.read(path), schema=schema, used=run)
        except ConfigError as error:
            yield RecipeFile(path, None, broken=error, schema=schema)
