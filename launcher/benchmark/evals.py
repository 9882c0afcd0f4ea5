"""Which rows an evaluation runs for: the policy of InferenceX's generator (`mark_eval_entries`, commit 843c6254f)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from launcher.benchmark.benchmark import AGENTIC

SMALLEST_CONCURRENCY = 16
SEQUENCE = (8192, 1024)

_NOT_TOPOLOGY = {"conc", "exp-name", "run-eval", "eval-only", "eval-conc", "eval-all-concs"}


def mark(entries: Sequence[dict[str, Any]], *, agentic: bool) -> None:
    """Set ``run-eval`` on every entry, and ``eval-conc`` on the multi-node ones that are chosen.

    - Single-node, 8k1k: of each (model, runner, framework, precision, spec-decoding, dp-attn), the entries at the
      highest and at the median concurrency, of those of at least 16.
    - Multi-node, 8k1k: of each topology, the entry with the highest concurrency, when that is at least 16.
    - With ``agentic`` also agentic ones: single-node, the highest concurrency of each (model, runner, framework,
      precision); multi-node as above.
    """
    chosen: dict[int, int | None] = {}
    chosen |= _single_fixed(entries)
    chosen |= _highest_by_topology(entries, agentic=False)
    if agentic:
        chosen |= _single_agentic(entries)
        chosen |= _highest_by_topology(entries, agentic=True)
    for index, entry in enumerate(entries):
        entry["run-eval"] = index in chosen
        if (concurrency := chosen.get(index)) is not None:
            entry["eval-conc"] = concurrency


def _single_fixed(entries: Sequence[dict[str, Any]]) -> dict[int, int | None]:
    groups: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if "tp" in entry and _is_sequence(entry) and entry["conc"] >= SMALLEST_CONCURRENCY:
            group = (*_family(entry), entry["spec-decoding"], entry["dp-attn"])
            groups[group].append((index, entry["conc"]))
    chosen: dict[int, int | None] = {}
    for members in groups.values():
        values = sorted({concurrency for _, concurrency in members})
        wanted = {values[-1], values[len(values) // 2]}
        chosen |= {index: None for index, concurrency in members if concurrency in wanted}
    return chosen


def _single_agentic(entries: Sequence[dict[str, Any]]) -> dict[int, int | None]:
    groups: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if "tp" in entry and entry.get("scenario-type") == AGENTIC:
            groups[_family(entry)].append((index, entry["conc"]))
    return {max(members, key=lambda member: member[1])[0]: None for members in groups.values()}


def _highest_by_topology(entries: Sequence[dict[str, Any]], *, agentic: bool) -> dict[int, int | None]:
    groups: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        eligible = entry.get("scenario-type") == AGENTIC if agentic else _is_sequence(entry)
        if "prefill" in entry and eligible and (highest := max(entry["conc"])) >= SMALLEST_CONCURRENCY:
            topology = {key: value for key, value in entry.items() if key not in _NOT_TOPOLOGY}
            groups[json.dumps(topology, sort_keys=True)].append((index, highest))
    return dict(max(members, key=lambda member: member[1]) for members in groups.values())


def _family(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    return entry["model"], entry["runner"], entry["framework"], entry["precision"]


def _is_sequence(entry: dict[str, Any]) -> bool:
    return (entry.get("isl"), entry.get("osl")) == SEQUENCE
