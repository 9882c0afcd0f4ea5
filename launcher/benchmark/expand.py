"""Which rows of a matrix are wanted, what to say when none is, and the entries that rows expand to, as InferenceX's
generator makes them."""

from __future__ import annotations

import fnmatch
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from launcher.benchmark.benchmark import AGENTIC, FIXED, max_model_len
from launcher.benchmark.matrix_schema import (
    Agentic,
    AgenticRow,
    Config,
    Fixed,
    Hardware,
    KvBackendSpec,
    MultiConfig,
    MultiRow,
    RowPath,
    SingleRow,
    Worker,
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


AGENTIC_SECONDS = 3600
"""Length of an agentic trace replay; InferenceX has one for all."""

_LARGEST_DRAM_MIB = 2_861_022
"""3 TB (10^12 bytes) in MiB: no node is credited with more, whatever it has (InferenceX's generator)."""


def entries_of(config: Config, selected: SelectedRow, dram: int) -> Iterator[dict[str, Any]]:
    """The entries of a row; ``dram`` is what KV offloading may take of a node, in GB.

    ``run-eval`` is False on entries of fixed lengths and absent on agentic ones, until `mark_evaluations` sets it.
    """
    scenario, row = selected.scenario, selected.row
    common = _common(config, row)
    if isinstance(scenario, Fixed):
        isl, osl = scenario.isl, scenario.osl
        common |= {"isl": isl, "osl": osl, "max-model-len": max_model_len(isl, osl)}
        common |= {"exp-name": f"{config.model_prefix}_{sequence_name(isl, osl)}"}
        common |= {"disagg": config.disagg, "run-eval": False}
        # Several concurrencies share one multi-node allocation; a single-node job has one each.
        for conc in [selected.concurrencies] if isinstance(row, MultiRow) else selected.concurrencies:
            yield {**common, "conc": conc}
    elif isinstance(row, AgenticRow):
        for conc in selected.concurrencies:
            yield {**common, **_agentic(config, row, conc, dram)}


def dram_budget(row: AgenticRow, utilization: float, hardware: Hardware) -> int:
    """GB (10^9 bytes) of a node's DRAM that KV offloading of one server may take.

    The node's DRAM times the utilization, times the share of the node's GPUs that one server (multi-node: one prefill
    worker, the only role that offloads) takes. Raises ValueError for a topology that does not tile the nodes.
    """
    per_node = hardware.gpus_per_node
    if isinstance(row, SingleRow):
        gpus = row.gpus
        if gpus > per_node:
            raise ValueError(f"tp*pp*pcp-size={gpus} GPUs do not fit on a node of {per_node}")
    else:
        gpus = row.prefill.tp * row.prefill.pp * row.prefill.pcp_size
        if gpus > per_node and gpus % per_node == 0:
            gpus = per_node
        elif per_node % gpus:
            raise ValueError(f"prefill tp*pp*pcp-size={gpus} GPUs do not tile nodes of {per_node}")
    from fractions import Fraction  # for the few rows that offload

    mib = min(hardware.available_cpu_dram_mib, _LARGEST_DRAM_MIB)
    return int(mib * 2**20 * Fraction(str(utilization)) * Fraction(gpus, per_node) / 10**9)


def _common(config: Config, row: SingleRow | MultiRow) -> dict[str, Any]:
    """What entries of all scenarios have."""
    entry: dict[str, Any] = {
        "image": config.image,
        "model": config.model,
        "model-prefix": config.model_prefix,
        "precision": config.precision,
        "framework": config.framework,
        "runner": config.runner,
        "spec-decoding": row.spec_decoding,
    }
    if isinstance(row, MultiRow):
        entry |= {"prefill": msgspec.to_builtins(row.prefill), "decode": msgspec.to_builtins(row.decode)}
        if isinstance(config, MultiConfig) and (transfer := row.kv_p2p_transfer or config.kv_p2p_transfer):
            entry["kv-p2p-transfer"] = transfer
    else:
        entry |= {"tp": row.tp, "pp": row.pp, "dcp-size": row.dcp_size, "pcp-size": row.pcp_size}
        entry |= {"ep": row.ep or 1, "dp-attn": bool(row.dp_attn)}
    if router := row.router or config.router:
        entry["router"] = msgspec.to_builtins(router)
    return entry


def _agentic(config: Config, row: AgenticRow, conc: int, dram: int) -> dict[str, Any]:
    """What only agentic entries have. Each has one concurrency, also on several nodes."""
    backend = row.kv_offload_backend
    entry: dict[str, Any] = {
        "kv-offloading": row.kv_offloading,
        "total-cpu-dram-gb": dram,
        "duration": AGENTIC_SECONDS,
        "scenario-type": AGENTIC,
    }
    if backend is not None:
        entry["kv-offload-backend"] = msgspec.to_builtins(backend)
    suffix = _offload_suffix(row.kv_offloading, backend)
    if isinstance(row, MultiRow):
        roles = f"{_role_tag('p', row.prefill)}_{_role_tag('d', row.decode)}"
        name = f"{config.model_prefix}_{roles}_conc{conc}" + ("" if row.kv_offloading == "none" else f"_{suffix}")
        return entry | {"conc": [conc], "disagg": config.disagg, "exp-name": name}
    spec = "" if row.spec_decoding == "none" else f"_spec-{row.spec_decoding}"
    return entry | {"conc": conc, "exp-name": f"{config.model_prefix}_tp{row.tp}_conc{conc}_{suffix}{spec}"}


def _offload_suffix(offloading: str, backend: KvBackendSpec | None) -> str:
    return f"kv{offloading}" + (f"-{backend.name}" if backend is not None else "")


def _role_tag(letter: str, worker: Worker) -> str:
    ep = f"ep{worker.ep}" if worker.ep != 1 else ""
    return f"{letter}{worker.num_worker}x{worker.tp}{ep}{'dpa' if worker.dp_attn else ''}"


SMALLEST_EVALUATED = 16
"""Concurrency below which nothing is evaluated, single-node agentic entries excepted."""
EVALUATED_SEQUENCE = (8192, 1024)

_NOT_TOPOLOGY = {"conc", "exp-name", "run-eval", "eval-only", "eval-conc", "eval-all-concs"}


def mark_evaluations(entries: Sequence[dict[str, Any]], *, agentic: bool) -> None:
    """Set ``run-eval`` on every entry, and ``eval-conc`` on the multi-node ones that are chosen.

    This is the policy of InferenceX's generator (`mark_eval_entries`, commit 843c6254f):

    - Single-node, 8k1k: of each (model, runner, framework, precision, spec-decoding, dp-attn), the entries at the
      highest and at the median concurrency, of those of at least 16.
    - Multi-node, 8k1k: of each topology, the entry with the highest concurrency, when that is at least 16.
    - With ``agentic`` also agentic ones: single-node, the highest concurrency of each (model, runner, framework,
      precision); multi-node as above.
    """
    groups: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for entry in entries:
        entry["run-eval"] = False
        multinode, replay = "prefill" in entry, entry.get("scenario-type") == AGENTIC
        highest = max(entry["conc"]) if multinode else entry["conc"]
        if replay:
            eligible = agentic and (highest >= SMALLEST_EVALUATED or not multinode)
        else:
            sequence = entry.get("isl"), entry.get("osl")
            eligible = sequence == EVALUATED_SEQUENCE and highest >= SMALLEST_EVALUATED
        if eligible:
            groups[_evaluation_group(entry, multinode, replay)].append((highest, entry))
    for (multinode, replay, *_), members in groups.items():
        values = sorted({concurrency for concurrency, _ in members})
        if not multinode and not replay:
            wanted = {values[-1], values[len(values) // 2]}
            chosen = [entry for concurrency, entry in members if concurrency in wanted]
        else:
            chosen = [next(entry for concurrency, entry in members if concurrency == values[-1])]
        for entry in chosen:
            entry["run-eval"] = True
            if multinode:
                entry["eval-conc"] = values[-1]


def _evaluation_group(entry: dict[str, Any], multinode: bool, replay: bool) -> tuple[Any, ...]:
    """A value that all entries have that are compared with this one."""
    if multinode:
        topology = {key: value for key, value in entry.items() if key not in _NOT_TOPOLOGY}
        return True, replay, json.dumps(topology, sort_keys=True)
    family = entry["model"], entry["runner"], entry["framework"], entry["precision"]
    return (False, True, *family) if replay else (False, False, *family, entry["spec-decoding"], entry["dp-attn"])
