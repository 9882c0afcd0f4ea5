"""Which rows of a matrix are wanted, and what to say when none is."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from launcher.benchmark.benchmark import AGENTIC, FIXED
from launcher.benchmark.matrix_schema import (
    Agentic,
    Config,
    Fixed,
    MultiRow,
    RowPath,
    SingleRow,
)
from launcher.core.errors import closest

SEQUENCES = {(1024, 1024): "1k1k", (8192, 1024): "8k1k"}
"""(input, output) tokens → the name that people use."""


def sequence_name(isl: int, osl: int) -> str:
    """``8k1k``, or ``isl_osl`` for lengths without a name."""
    return SEQUENCES.get((isl, osl), f"{isl}_{osl}")


class Selection(msgspec.Struct, frozen=True):
    """A filter. An empty field wants everything; several values of one field mean any of them.

    ``keys`` are globs over the matrix's keys, and each must match at least one. ``sequences`` (``8k1k``) leaves out
    agentic entries, which have none. ``concurrencies`` keeps the entries that have one of them, with these alone.

    ``evals`` is as in InferenceX's generator: ``marked`` marks the entries that an evaluation also runs for, ``none``
    marks nothing, ``only`` gives those entries alone, as evaluations. Entries are marked after they are selected, so
    the highest concurrency is that of the selection.
    """

    keys: Sequence[str] = ()
    runners: Sequence[str] = ()
    frameworks: Sequence[str] = ()
    precisions: Sequence[str] = ()
    model_prefixes: Sequence[str] = ()
    sequences: Sequence[str] = ()
    scenarios: Sequence[str] = ()
    concurrencies: Sequence[int] = ()
    nodes: Literal["single", "multi"] | None = None
    evals: Literal["marked", "none", "only"] = "marked"

    @property
    def filters(self) -> dict[str, Sequence[str | int]]:
        """What is asked of a row, by the names that messages use; `row_values` has the same names."""
        return {
            "runner": self.runners,
            "framework": self.frameworks,
            "precision": self.precisions,
            "model prefix": self.model_prefixes,
            "sequence": self.sequences,
            "scenario": self.scenarios,
            "nodes": [self.nodes] if self.nodes else [],
            "concurrency": self.concurrencies,
        }

    def wants_key(self, key: str) -> bool:
        return not self.keys or any(fnmatch.fnmatchcase(key, pattern) for pattern in self.keys)


class SelectedRow(msgspec.Struct, frozen=True):
    """A row of a matrix file: its path below the key, its scenario, and those of its concurrencies that are wanted."""

    path: RowPath
    scenario: Fixed[Any] | Agentic[Any]
    row: SingleRow | MultiRow
    concurrencies: list[int]

    @property
    def dram_utilization(self) -> float | None:
        return self.scenario.dram_utilization if isinstance(self.scenario, Agentic) else None


def selected_rows(config: Config, selection: Selection) -> list[SelectedRow]:
    """The rows of a configuration that the selection wants something of."""
    found = []
    filters = {name: asked for name, asked in selection.filters.items() if asked}
    for path, scenario, row in config.rows():
        values = row_values(config, scenario, row)
        if not any(values[name].isdisjoint(asked) for name, asked in filters.items()):
            wanted = [c for c in row.concurrencies if not selection.concurrencies or c in selection.concurrencies]
            found.append(SelectedRow(path, scenario, row, wanted))
    return found


def row_values(
    config: Config, scenario: Fixed[Any] | Agentic[Any], row: SingleRow | MultiRow
) -> dict[str, set[str | int]]:
    """What each filter looks at in a row."""
    return {
        "runner": {config.runner},
        "framework": {config.framework},
        "precision": {config.precision},
        "model prefix": {config.model_prefix},
        "sequence": {sequence_name(scenario.isl, scenario.osl)} if isinstance(scenario, Fixed) else set(),
        "scenario": {FIXED if isinstance(scenario, Fixed) else AGENTIC},
        "nodes": {"multi" if config.multinode else "single"},
        "concurrency": set(row.concurrencies),
    }


def why_empty(selection: Selection, configs: Mapping[str, Config]) -> tuple[str, str]:
    """Message and hint for a selection that wants no row of ``configs``, which are those of its keys."""
    rows = [
        (key, row_values(config, scenario, row))
        for key, config in configs.items()
        for _, scenario, row in config.rows()
    ]
    if not rows:
        return "the matrix files have no entry", "each key of a matrix file is a family of entries"
    filters = selection.filters
    for name, asked in filters.items():
        known = {value for _, values in rows for value in values[name]}
        if asked and known.isdisjoint(asked):
            there = [str(value) for value in sorted(known, key=lambda value: (isinstance(value, str), value))]
            near = [n for value in asked if isinstance(value, str) and (n := closest(value, there))]
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {listed(there)}"
            return f"no entry of the selected keys has {name} {' or '.join(map(str, asked))}", hint
    misses = [
        (sum(bool(asked) and values[name].isdisjoint(asked) for name, asked in filters.items()), key)
        for key, values in rows
    ]
    fewest = min(count for count, _ in misses)
    nearest_keys = dict.fromkeys(key for count, key in misses if count == fewest)
    return "no entry has all that is selected together", f"near keys: {listed(list(nearest_keys))}"


def listed(words: Sequence[str], most: int = 12) -> str:
    """A list for a message, cut after ``most``."""
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")
