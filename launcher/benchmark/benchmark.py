"""What to measure (`Benchmark`), and the names of its results.

A `Benchmark` is the same value whether it was read from a GitHub job's environment, from a matrix file, or from flags;
planning, checking and running use no other form. InferenceX's next steps find results in the workspace by their names,
and read GPU counts from them. Each name begins with a stem, RESULT_FILENAME
(`launcher.benchmark.environment.result_filename`).
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FIXED = "fixed-seq-len"
AGENTIC = "agentic-coding"

SpecDecoding = Literal["none", "mtp", "draft_model"]
KvOffloading = Literal["none", "dram"]


def max_model_len(isl: int, osl: int) -> int:
    """The context that requests of fixed lengths need: both lengths and 256 tokens, as in InferenceX's generator."""
    return isl + osl + 256


@dataclass(frozen=True, slots=True)
class Role:
    """One side of a topology (prefill or decode; the prefill side alone when aggregated) and its parallelism.

    ``tp`` GPUs hold a tensor-parallel group; with ``dp_attention`` the same GPUs run attention data-parallel. ``dcp``
    divides ``tp`` (decode context parallel); ``pp`` and ``pcp`` multiply the GPUs of a worker.
    """

    workers: int
    tp: int
    ep: int = 1
    dp_attention: bool = False
    pp: int = 1
    dcp: int = 1
    pcp: int = 1
    hardware: str | None = None

    @property
    def gpus_per_worker(self) -> int:
        return self.tp * self.pp * self.pcp

    def __str__(self) -> str:
        """The usual name: ``DEP8``, ``TEP4``, ``TP4``, ``TP8-PP2-DCP4``; ``DP1-EP8`` when EP differs from TP."""
        same_width = self.ep > 1 and self.ep == self.tp
        name = f"{'D' if self.dp_attention else 'T'}{'E' if same_width else ''}P{self.tp}"
        sizes = (("EP", 1 if same_width else self.ep), ("PP", self.pp), ("DCP", self.dcp), ("PCP", self.pcp))
        return "-".join([name, *(f"{kind}{size}" for kind, size in sizes if size > 1)])


@dataclass(frozen=True, slots=True)
class Component:
    """Software beside the engine (router, KV offload backend), and its version if it has one of its own."""

    name: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark: a model, an engine image, a topology, sequence lengths, concurrencies.

    ``settings`` are the matrix row's additional settings (``CONFIG_FILE``, ``SLURM_PARTITION``, …), parsed as
    KEY=VALUE and never seen by a shell. ``source`` says where the benchmark came from (``file (key)``, ``environment``
    or ``flags``), for messages.
    """

    exp_name: str
    image: str
    model: str
    model_prefix: str
    precision: str
    framework: str
    runner: str
    """The label of the matrix (``gb200``, ``cluster:gb300-nv``); a job's RUNNER_TYPE, empty where it has none."""
    concurrencies: tuple[int, ...]
    isl: int | None = None
    osl: int | None = None
    max_model_len: int | None = None
    disagg: bool = False
    multinode: bool = True
    spec_decoding: str = "none"
    prefill: Role | None = None
    decode: Role | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    scenario: str = FIXED
    run_eval: bool = False
    eval_only: bool = False
    eval_concurrencies: tuple[int, ...] = ()
    kv_offloading: str | None = None
    """``none`` or ``dram`` for an agentic benchmark; None for one of fixed lengths."""
    kv_offload_backend: Component | None = None
    kv_p2p_transfer: str | None = None
    router: Component | None = None
    total_cpu_dram_gb: int | None = None
    """DRAM of a node that KV offloading may use, in GB (10^9 bytes); agentic only."""
    duration: int | None = None
    """Seconds of trace replay; agentic only."""
    options: Mapping[str, str] = field(default_factory=dict)
    """A workflow's inputs beside the row (``REQUIRE_POWER``, ``EVAL_LIMIT``, …) that differ from their defaults; for a
    job of one node also variables that only some workflows set (``PROFILE``, ``BENCH_SCRIPT_OVERRIDE``, …)."""
    result_filename: str | None = None
    recipe_fingerprint: str | None = None
    key: str | None = None
    """Its key in the matrix file; None when it came from an environment, which has no key."""
    source: str = "flags"

    @property
    def agentic(self) -> bool:
        return self.scenario == AGENTIC

    @property
    def gpus(self) -> int:
        """The GPUs of all its workers."""
        return sum(role.workers * role.gpus_per_worker for role in (self.prefill, self.decode) if role is not None)

    @property
    def config_file(self) -> str | None:
        """The recipe's path in srt-slurm, with its selector if it has one (``recipes/x.yaml:override_y``)."""
        if self.eval_only and self.settings.get("EVAL_CONFIG_FILE"):
            return self.settings["EVAL_CONFIG_FILE"]
        return self.settings.get("CONFIG_FILE")

    @property
    def topology(self) -> str:
        """The topology's usual name: ``2P1D DEP4/TEP8``, or ``TP8`` when nothing is disaggregated."""
        if self.prefill is None:
            return "-"
        if self.decode is None or not self.decode.workers:
            workers = self.prefill.workers
            return f"{workers}x{self.prefill}" if workers > 1 else str(self.prefill)
        return f"{self.prefill.workers}P{self.decode.workers}D {self.prefill}/{self.decode}"

    @property
    def title(self) -> str:
        """One line that distinguishes this benchmark from its siblings."""
        return f"{self.model_prefix} {self.precision} {self.framework} {self.measures} {self.topology}"

    @property
    def measures(self) -> str:
        """The lengths of its sequences, or the scenario when it has no fixed lengths."""
        return self.scenario if self.isl is None else f"{self.isl}/{self.osl}"


def fixed_result_name(stem: str, directory: str, concurrency: int, gpus: int, split: tuple[int, int] | None) -> str:
    """The name of a result of sa-bench from ``directory`` (``sa-bench_isl_I_osl_O``) of the job's logs.

    ``gpus`` is the number of GPUs of all workers; ``split`` are those of prefill and of decode, None for an aggregated
    topology.
    """
    sides = f"_ctx_{split[0]}_gen_{split[1]}" if split else ""
    return f"{stem}_{directory}_conc{concurrency}_gpus_{gpus}{sides}.json"


def agentic_result_name(stem: str, concurrency: int) -> str:
    """The name of an agentic result, which the job itself writes, so it is the same in the job and in the workspace."""
    return f"{stem}_conc{concurrency}.json"


def is_counted(name: str, stem: str, mode: str) -> bool:
    """Whether the next steps of a job of several nodes count a file of the workspace as a result of this stem.

    They count ``<stem>_*.json`` with GPUs in the name, ``<stem>_conc*.json`` of an agentic job, and every
    ``results*.json`` of an evaluation, whatever wrote it. They make ``agg_<stem>_*.json`` and upload that pattern.
    """
    escaped = glob.escape(stem)
    patterns = {
        "fixed": (f"{escaped}_*_gpus_[0-9]*.json", f"agg_{escaped}_*.json"),
        "agentic": (f"{escaped}_conc*.json",),
        "eval": ("results*.json",),
    }
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns[mode])
