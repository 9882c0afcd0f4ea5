"""What to measure: one entry of a matrix, whichever way it came in.

A `Benchmark` is the same value whether it was read from a GitHub job's environment, from a matrix file, or from flags.
Planning, checking and running know no other form. And the names of its results in the workspace: InferenceX's next
steps find them by name, and read GPU counts out of it. Each begins with a stem, RESULT_FILENAME
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
    """The context that requests of fixed lengths need: both, and 256 tokens, as InferenceX's generator has it."""
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
        """As people write it: ``DEP8``, ``TEP4``, ``TP4``, ``TP8-PP2-DCP4``; ``DP1-EP8`` where EP is not the width."""
        wide = self.ep > 1 and self.ep == self.tp
        name = f"{'D' if self.dp_attention else 'T'}{'E' if wide else ''}P{self.tp}"
        more = (("EP", 1 if wide else self.ep), ("PP", self.pp), ("DCP", self.dcp), ("PCP", self.pcp))
        return "-".join([name, *(f"{what}{value}" for what, value in more if value > 1)])


@dataclass(frozen=True, slots=True)
class Component:
    """Software beside the engine (router, KV offload backend) and its own version, where it has one."""

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
    """DRAM of a server node that KV offloading may use, in GB (10^9 bytes); agentic only."""
    duration: int | None = None
    """Seconds of trace replay; agentic only."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What a workflow was dispatched with beside the row (``REQUIRE_POWER``, ``EVAL_LIMIT``, …), where it is not the
    default; of a job of one node also what only some workflows set (``PROFILE``, ``BENCH_SCRIPT_OVERRIDE``, …)."""
    result_filename: str | None = None
    recipe_fingerprint: str | None = None
    key: str | None = None
    """Its key in the matrix file; None when it came from an environment, which does not tell."""
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
        """The recipe, srt-slurm-relative, with its selector if it has one (``recipes/x.yaml:override_y``)."""
        if self.eval_only and self.settings.get("EVAL_CONFIG_FILE"):
            return self.settings["EVAL_CONFIG_FILE"]
        return self.settings.get("CONFIG_FILE")

    @property
    def topology(self) -> str:
        """The topology as people write it: ``2P1D DEP4/TEP8``, or ``TP8`` when nothing is disaggregated."""
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
        """The lengths of its sequences, or the scenario where it fixes none."""
        return self.scenario if self.isl is None else f"{self.isl}/{self.osl}"


def fixed_result_name(stem: str, directory: str, concurrency: int, gpus: int, split: tuple[int, int] | None) -> str:
    """The name of a result of sa-bench, which came from ``directory`` (``sa-bench_isl_I_osl_O``) of the job's logs.

    ``gpus`` are those of all workers; ``split`` are those of prefill and of decode, None for an aggregated topology.
    """
    sides = f"_ctx_{split[0]}_gen_{split[1]}" if split else ""
    return f"{stem}_{directory}_conc{concurrency}_gpus_{gpus}{sides}.json"


def agentic_result_name(stem: str, concurrency: int) -> str:
    """The name of an agentic result. The job itself gives it, so it is the same at its source and in the workspace."""
    return f"{stem}_conc{concurrency}.json"


def is_counted(name: str, stem: str, mode: str) -> bool:
    """Whether the next steps of a job of several nodes take a file of the workspace for a result of this stem.

    They take ``<stem>_*.json`` with GPUs in the name, ``<stem>_conc*.json`` of an agentic job, and of an evaluation
    every ``results*.json``, whatever wrote it. ``agg_<stem>_*.json`` is what they make, and upload by that pattern.
    """
    own = glob.escape(stem)
    patterns = {
        "fixed": (f"{own}_*_gpus_[0-9]*.json", f"agg_{own}_*.json"),
        "agentic": (f"{own}_conc*.json",),
        "eval": ("results*.json",),
    }
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns[mode])
