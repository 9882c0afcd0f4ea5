"""Which entries of a matrix are wanted."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.benchmark import FIXED
from launcher.document import nearest
from launcher.sweep.matrix_schema import MultiConfig, SingleConfig

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
    """(what is wrong, what would match) of a selection that leaves nothing of ``rows``: (key, entry) of its keys."""
    entries = [entry for _, entry in rows]
    fields: dict[str, tuple[Sequence[str | int], set[str | int]]] = {
        "runner": (selection.runners, {e["runner"] for e in entries}),
        "framework": (selection.frameworks, {e["framework"] for e in entries}),
        "precision": (selection.precisions, {e["precision"] for e in entries}),
        "model prefix": (selection.model_prefixes, {e["model-prefix"] for e in entries}),
        "sequence": (selection.sequences, {sequence_name(e["isl"], e["osl"]) for e in entries if "isl" in e}),
        "scenario": (selection.scenarios, {e.get("scenario-type", FIXED) for e in entries}),
        "concurrency": (selection.concurrencies, {c for e in entries for c in _concurrencies(e)}),
        "nodes": (
            [selection.nodes] if selection.nodes else [],
            {"multi" if "prefill" in e else "single" for e in entries},
        ),
    }
    for name, (wanted, known) in fields.items():
        if wanted and not known.intersection(wanted):
            values = [str(value) for value in sorted(known, key=lambda v: (str(type(v)), v))]
            near = [n for value in wanted if isinstance(value, str) and (n := nearest(value, values))]
            asked = " or ".join(str(value) for value in wanted)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {some(values)}"
            return f"no entry of the selected keys has {name} {asked}", hint
    near = [key for key, _ in rows if selection.model_prefixes and key.startswith(tuple(selection.model_prefixes))]
    return (
        "no entry has all that is selected together",
        f"keys: {some(list(dict.fromkeys(near or [k for k, _ in rows])))}",
    )


def some(words: Sequence[str], most: int = 12) -> str:
    """A list for a message, cut after ``most``."""
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")


def _concurrencies(entry: Mapping[str, Any]) -> list[int]:
    conc = entry["conc"]
    return conc if isinstance(conc, list) else [conc]
