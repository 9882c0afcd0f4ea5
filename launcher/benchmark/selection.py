"""Which entries of a matrix are wanted."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.benchmark.benchmark import FIXED
from launcher.benchmark.matrix_schema import MultiConfig, SingleConfig
from launcher.core.suggest import closest

SEQUENCES = {(1024, 1024): "1k1k", (8192, 1024): "8k1k"}
"""(input, output) tokens → the name that people use."""


def sequence_name(isl: int, osl: int) -> str:
    """``8k1k``, or ``isl_osl`` for lengths without a name."""
    return SEQUENCES.get((isl, osl), f"{isl}_{osl}")


@dataclass(frozen=True)
class Selection:
    """A filter; an empty field wants everything, several values of one field mean any of them.

    ``keys`` are globs over the matrix's keys, each of which must match one. ``sequences`` (``8k1k``) leaves out agentic
    entries, which have none. ``concurrencies`` keeps the entries that have one of them, narrowed to those.

    ``evals``, as InferenceX's generator has it: ``marked`` marks the rows that an evaluation also runs for, ``none``
    marks nothing, ``only`` gives those rows alone, as evaluations. The marking looks at what is selected: the highest
    concurrency of a narrowed selection is another one.
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

    def wants_key(self, key: str) -> bool:
        return not self.keys or any(fnmatch.fnmatchcase(key, pattern) for pattern in self.keys)

    def wants_config(self, config: SingleConfig | MultiConfig) -> bool:
        return (
            _wanted(config.runner, self.runners)
            and _wanted(config.framework, self.frameworks)
            and _wanted(config.precision, self.precisions)
            and _wanted(config.model_prefix, self.model_prefixes)
            and (self.nodes is None or config.multinode == (self.nodes == "multi"))
        )

    def wants_scenario(self, scenario: str, sequence: str | None) -> bool:
        return _wanted(scenario, self.scenarios) and (not self.sequences or sequence in self.sequences)

    def narrow(self, concurrencies: Iterable[int]) -> list[int]:
        """The wanted ones, in the order given."""
        return [c for c in concurrencies if not self.concurrencies or c in self.concurrencies]


def _wanted(value: str, wanted: Sequence[str]) -> bool:
    return not wanted or value in wanted


def why_empty(selection: Selection, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, str]:
    """(what is wrong, what comes near) of a selection that leaves nothing of ``rows``: (key, entry) of its keys."""
    wanted: dict[str, Sequence[str | int]] = {
        "runner": selection.runners,
        "framework": selection.frameworks,
        "precision": selection.precisions,
        "model prefix": selection.model_prefixes,
        "sequence": selection.sequences,
        "scenario": selection.scenarios,
        "nodes": [selection.nodes] if selection.nodes else [],
        "concurrency": selection.concurrencies,
    }
    rows_values = [(key, _values(entry)) for key, entry in rows]
    for name, asked in wanted.items():
        known = {value for _, values in rows_values for value in values[name]}
        if asked and not known.intersection(asked):
            there = [str(value) for value in sorted(known, key=lambda value: (isinstance(value, str), value))]
            near = [n for value in asked if isinstance(value, str) and (n := closest(value, there))]
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {some(there)}"
            return f"no entry of the selected keys has {name} {' or '.join(map(str, asked))}", hint
    misses = [
        (sum(bool(asked) and not set(values[name]).intersection(asked) for name, asked in wanted.items()), key)
        for key, values in rows_values
    ]
    fewest = min(count for count, _ in misses)
    nearest_keys = dict.fromkeys(key for count, key in misses if count == fewest)
    return "no entry has all that is selected together", f"near keys: {some(list(nearest_keys))}"


def _values(entry: Mapping[str, Any]) -> dict[str, list[str | int]]:
    """What each filter looks at in an entry."""
    conc = entry["conc"]
    return {
        "runner": [entry["runner"]],
        "framework": [entry["framework"]],
        "precision": [entry["precision"]],
        "model prefix": [entry["model-prefix"]],
        "sequence": [sequence_name(entry["isl"], entry["osl"])] if "isl" in entry else [],
        "scenario": [entry.get("scenario-type", FIXED)],
        "nodes": ["multi" if "prefill" in entry else "single"],
        "concurrency": conc if isinstance(conc, list) else [conc],
    }


def some(words: Sequence[str], most: int = 12) -> str:
    """A list for a message, cut after ``most``."""
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")
