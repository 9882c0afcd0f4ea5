"""What is checked beyond a single plan: all rows, recipe files and runner files, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from launcher.benchmark.benchmark import Benchmark
from launcher.check.schema_validation import Verdicts
from launcher.check.srtctl_schema import Schema
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document, Place
from launcher.plan.plan import Plan
from launcher.runner.file import RunnerFile


@dataclass(frozen=True)
class Row:
    """A row of a matrix, the cluster that serves it, and the plan of it, or why there is none."""

    benchmark: Benchmark
    place: Place | str
    file: RunnerFile | None = None
    plan: Plan | None = None
    refused: ConfigError | None = None


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file. ``schema`` is that of the tree it belongs to; None for a file that is laid over several.

    ``used`` are the variants that rows run (None is a plain recipe): they are judged with those rows.
    """

    path: Path
    document: Document | None
    broken: ConfigError | None = None
    schema: Schema | None = None
    used: frozenset[str | None] = frozenset()


HasCommit = Callable[[str, str], bool | None]
"""(repository's URL, full sha) → whether the repository has the commit; None when none of it is at hand."""


@dataclass(frozen=True)
class Everything:
    """All that one `launcher check` looks at.

    ``evaluations`` are the rows that an evaluation runs for; they have no plan. ``outside`` are the rows' places of
    frameworks that srtctl does not run, ``single_node`` those of rows for one node. ``runners`` are label → physical
    runners' names.
    """

    rows: Sequence[Row]
    evaluations: Sequence[Row] = ()
    files: Sequence[RunnerFile] = ()
    broken_files: Sequence[ConfigError] = ()
    recipes: Sequence[RecipeFile] = ()
    outside: Mapping[str, Sequence[Place | str]] = field(default_factory=dict)
    single_node: Sequence[Place | str] = ()
    runners: Mapping[str, Sequence[str]] = field(default_factory=dict)
    verdicts: Verdicts = field(default_factory=Verdicts)
    today: date = date.min
    has_commit: HasCommit = lambda url, sha: None
    overlays: Path | None = None
    """The workspace's recipes, which lanes lay over srt-slurm's; None when it has none."""
    whole: bool = True
    """Whether nothing was left out: then what is not used by anything is known to be unused."""
