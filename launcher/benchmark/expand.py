"""From one configuration of a matrix file to its entries, equal to those of InferenceX's generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import msgspec

from launcher.benchmark.benchmark import AGENTIC, FIXED
from launcher.benchmark.matrix_schema import (
    Hardware,
    KvBackendSpec,
    MultiAgentic,
    MultiAgenticRow,
    MultiConfig,
    MultiFixed,
    MultiRow,
    SingleAgentic,
    SingleAgenticRow,
    SingleConfig,
    SingleFixed,
    SingleRow,
    Worker,
)
from launcher.benchmark.selection import Selection, sequence_name
from launcher.core.yaml_source import Key

AGENTIC_SECONDS = 3600
"""Length of an agentic trace replay; InferenceX has one for all."""

_LARGEST_DRAM_MIB = 2_861_022
"""3 TB (10^12 bytes) in MiB: no node is credited with more, whatever it has (InferenceX's generator)."""

Path = tuple[Key, ...]
Config = SingleConfig | MultiConfig
AgenticRow = SingleAgenticRow | MultiAgenticRow
Budget = Callable[[AgenticRow, float | None, Path], int]
"""(row, dram-utilization, path of the row below its key) → GB for KV offloading."""


def expand(config: Config, selection: Selection, budget: Budget) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The wanted entries of a configuration, each with the path of its row below the key.

    ``run-eval`` is False on entries of fixed lengths and absent on agentic ones, until `evals.mark` has its say.
    """
    fixed_scenarios: Sequence[SingleFixed | MultiFixed] = config.scenarios.fixed_seq_len
    for i, fixed in enumerate(fixed_scenarios):
        sequence = sequence_name(fixed.isl, fixed.osl)
        if not selection.wants_scenario(FIXED, sequence):
            continue
        lengths = {"isl": fixed.isl, "osl": fixed.osl, "max-model-len": fixed.isl + fixed.osl + 256}
        own = {"exp-name": f"{config.model_prefix}_{sequence}", "disagg": config.disagg, "run-eval": False}
        rows: Sequence[SingleRow | MultiRow] = fixed.search_space
        for j, row in enumerate(rows):
            if not (concurrencies := selection.narrow(row.concurrencies)):
                continue
            path: Path = ("scenarios", FIXED, i, "search-space", j)
            common = {**_common(config, row), **lengths, **own}
            # Several concurrencies share one multi-node allocation; a single-node job has one each.
            for conc in [concurrencies] if isinstance(row, MultiRow) else concurrencies:
                yield path, {**common, "conc": conc}
    agentic_scenarios: Sequence[SingleAgentic | MultiAgentic] = config.scenarios.agentic_coding
    for i, agentic in enumerate(agentic_scenarios):
        if not selection.wants_scenario(AGENTIC, None):
            continue
        agentic_rows: Sequence[AgenticRow] = agentic.search_space
        for j, agentic_row in enumerate(agentic_rows):
            if not (concurrencies := selection.narrow(agentic_row.concurrencies)):
                continue
            path = ("scenarios", AGENTIC, i, "search-space", j)
            gigabytes = budget(agentic_row, agentic.dram_utilization, path)
            for conc in concurrencies:
                yield path, _agentic_entry(config, agentic_row, conc, gigabytes)


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


def _agentic_entry(config: Config, row: AgenticRow, conc: int, gigabytes: int) -> dict[str, Any]:
    """An agentic entry: one concurrency each, on multi-node too."""
    backend = row.kv_offload_backend
    entry = _common(config, row) | {
        "kv-offloading": row.kv_offloading,
        "total-cpu-dram-gb": gigabytes,
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
