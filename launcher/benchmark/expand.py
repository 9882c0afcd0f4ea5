"""Selects rows of a matrix, explains an empty selection, and expands rows to entries as InferenceX's generator does."""

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
    MultiConfig,
    MultiRow,
    RowPath,
    SingleRow,
    Worker,
)
from launcher.core.errors import closest

SEQUENCES = {(1024, 1024): "1k1k", (8192, 1024): "8k1k"}
"""(input, output) tokens → the usual name."""


def sequence_name(isl: int, osl: int) -> str:
    """``8k1k``, or ``isl_osl`` for lengths without a name."""
    return SEQUENCES.get((isl, osl), f"{isl}_{osl}")


class Selection(msgspec.Struct, frozen=True):
    """A filter for matrix rows. An empty field matches everything; several values of one field mean any of them.

    ``keys`` are globs for keys of the matrix; each must match at least one. ``sequences`` (``8k1k``) excludes agentic
    entries, which have none. ``concurrencies`` selects the entries that have one of them, with only these.

    ``evals`` is as in InferenceX's generator: ``marked`` marks the entries for which an evaluation also runs, ``none``
    marks nothing, ``only`` gives only those entries, as evaluations. Entries are marked after they are selected, so the
    highest concurrency is that of the selection.
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
        """Name of a filter that is set → its values; messages and `row_values` use the same names."""
        filters: dict[str, Sequence[str | int]] = {
            "runner": self.runners,
            "framework": self.frameworks,
            "precision": self.precisions,
            "model prefix": self.model_prefixes,
            "sequence": self.sequences,
            "scenario": self.scenarios,
            "nodes": [self.nodes] if self.nodes else [],
            "concurrency": self.concurrencies,
        }
        return {name: values for name, values in filters.items() if values}

    def wants_key(self, key: str) -> bool:
        return not self.keys or any(fnmatch.fnmatchcase(key, pattern) for pattern in self.keys)


class SelectedRow(msgspec.Struct, frozen=True):
    """A selected row of a matrix file: its path below the key, its scenario, and its selected concurrencies."""

    path: RowPath
    scenario: Fixed[Any] | Agentic[Any]
    row: SingleRow | MultiRow
    concurrencies: list[int]


def selected_rows(config: Config, selection: Selection) -> list[SelectedRow]:
    """The rows of a configuration that match the selection."""
    rows = []
    filters = selection.filters
    for path, scenario, row in config.rows():
        values = row_values(config, scenario, row)
        if not any(values[name].isdisjoint(wanted) for name, wanted in filters.items()):
            concurrencies = [c for c in row.concurrencies if c in (selection.concurrencies or row.concurrencies)]
            rows.append(SelectedRow(path, scenario, row, concurrencies))
    return rows


def row_values(
    config: Config, scenario: Fixed[Any] | Agentic[Any], row: SingleRow | MultiRow
) -> dict[str, set[str | int]]:
    """Name of a filter → the values of a row that it compares."""
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


def explain_empty(selection: Selection, configs: Mapping[str, Config]) -> tuple[str, str]:
    """Message and hint for a selection that matches no row of ``configs``, the configurations of its keys."""
    rows = [
        (key, row_values(config, scenario, row))
        for key, config in configs.items()
        for _, scenario, row in config.rows()
    ]
    if not rows:
        return "the matrix files have no entry", "each key of a matrix file is a family of entries"
    filters = selection.filters
    for name, wanted in filters.items():
        known = {value for _, values in rows for value in values[name]}
        if known.isdisjoint(wanted):
            present = [str(value) for value in sorted(known, key=lambda value: (isinstance(value, str), value))]
            near = [n for value in wanted if isinstance(value, str) and (n := closest(value, present))]
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {shortened_list(present)}"
            return f"no entry of the selected keys has {name} {' or '.join(map(str, wanted))}", hint
    misses = [sum(values[name].isdisjoint(wanted) for name, wanted in filters.items()) for _, values in rows]
    nearest_keys = dict.fromkeys(key for (key, _), count in zip(rows, misses, strict=True) if count == min(misses))
    return "no entry has all that is selected together", f"near keys: {shortened_list(list(nearest_keys))}"


def shortened_list(words: Sequence[str], most: int = 12) -> str:
    """A list for a message, of at most ``most`` words."""
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")


AGENTIC_SECONDS = 3600
"""Length of an agentic trace replay; InferenceX uses one for all."""

_LARGEST_DRAM_MIB = 2_861_022
"""3 TB (10^12 bytes) in MiB: InferenceX's generator counts no more, even for a node that has more."""


def expand_row(config: Config, selected: SelectedRow, dram: int) -> Iterator[dict[str, Any]]:
    """The entries of a row; ``dram`` is a node's DRAM for KV offloading, in GB.

    ``run-eval`` is False on entries of fixed lengths and absent on agentic ones, until `mark_evaluations` sets it.
    """
    scenario, row = selected.scenario, selected.row
    common = _common(config, row)
    if isinstance(scenario, Fixed):
        isl, osl = scenario.isl, scenario.osl
        common |= {"isl": isl, "osl": osl, "max-model-len": max_model_len(isl, osl)}
        common |= {"exp-name": f"{config.model_prefix}_{sequence_name(isl, osl)}"}
        common |= {"disagg": config.disagg, "run-eval": False}
        # On several nodes all concurrencies share one allocation; on one node each has a job of its own.
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
    """The keys that entries of all scenarios have."""
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
    """The keys that only agentic entries have. Each entry has one concurrency, also on several nodes."""
    backend = row.kv_offload_backend
    entry: dict[str, Any] = {
        "kv-offloading": row.kv_offloading,
        "total-cpu-dram-gb": dram,
        "duration": AGENTIC_SECONDS,
        "scenario-type": AGENTIC,
    }
    if backend is not None:
        entry["kv-offload-backend"] = msgspec.to_builtins(backend)
    suffix = f"kv{row.kv_offloading}" + (f"-{backend.name}" if backend is not None else "")
    if isinstance(row, MultiRow):
        roles = f"{_role_tag('p', row.prefill)}_{_role_tag('d', row.decode)}"
        name = f"{config.model_prefix}_{roles}_conc{conc}" + ("" if row.kv_offloading == "none" else f"_{suffix}")
        return entry | {"conc": [conc], "disagg": config.disagg, "exp-name": name}
    spec = "" if row.spec_decoding == "none" else f"_spec-{row.spec_decoding}"
    return entry | {"conc": conc, "exp-name": f"{config.model_prefix}_tp{row.tp}_conc{conc}_{suffix}{spec}"}


def _role_tag(letter: str, worker: Worker) -> str:
    ep = f"ep{worker.ep}" if worker.ep != 1 else ""
    return f"{letter}{worker.num_worker}x{worker.tp}{ep}{'dpa' if worker.dp_attn else ''}"


SMALLEST_EVALUATED = 16
"""The lowest concurrency that is evaluated, except for single-node agentic entries."""
EVALUATED_SEQUENCE = (8192, 1024)

_KEYS_BESIDE_TOPOLOGY = {"conc", "exp-name", "run-eval", "eval-only", "eval-conc", "eval-all-concs"}


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
    """The group of an entry; concurrencies are compared within a group."""
    if multinode:
        topology = {key: value for key, value in entry.items() if key not in _KEYS_BESIDE_TOPOLOGY}
        return True, replay, json.dumps(topology, sort_keys=True)
    family = entry["model"], entry["runner"], entry["framework"], entry["precision"]
    return (False, True, *family) if replay else (False, False, *family, entry["spec-decoding"], entry["dp-attn"])
