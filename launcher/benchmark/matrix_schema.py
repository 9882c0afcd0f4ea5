"""The schema of a matrix file (InferenceX `configs/*-master.yaml`) and of the runner labels beside it.

The format is that of InferenceX `utils/matrix_logic/validation.py` (commit 843c6254f), without its coercions: a number
in quotes is a string here, and so an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from launcher.benchmark.benchmark import AGENTIC, FIXED, KvOffloading, SpecDecoding
from launcher.core.yaml_source import Key

CLUSTER_PREFIX = "cluster:"

Positive = Annotated[int, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]
RowPath = tuple[Key, ...]
"""The keys and indices that lead to a row, below the key of its family."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Base of the schema: immutable, and an unknown key is an error."""


class KvBackendSpec(_Struct, frozen=True, kw_only=True):
    """The software that stores offloaded KV blocks; not every one has a version of its own."""

    name: Text
    version: Text | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.version is not UNSET and self.version.startswith("image:"):
            raise ValueError("version names an image: give a release, a package version or a commit")


class ComponentSpec(KvBackendSpec, frozen=True, kw_only=True):
    """A component and its own version: a release, a package version or a commit."""

    version: Text


class Worker(_Struct, frozen=True, kw_only=True):
    """One role (prefill or decode): how many workers, and the parallelism of each. Counts are GPUs."""

    num_worker: Annotated[int, Meta(ge=0)]
    tp: Positive
    ep: Positive
    dp_attn: bool
    pp: Positive = 1
    dcp_size: Positive = 1
    pcp_size: Positive = 1
    hardware: Text | UnsetType = UNSET
    additional_settings: list[str] | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        _check_dcp_size(self.tp, self.dcp_size)


class _Row(_Struct, frozen=True, kw_only=True):
    """The keys of every row of a search space: concurrencies are a list, or a range that doubles."""

    spec_decoding: SpecDecoding = "none"
    router: ComponentSpec | None = None
    conc_start: Positive | None = None
    conc_end: Positive | None = None
    conc_list: Annotated[list[Positive], Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if self.conc_list is not None:
            if self.conc_start is not None or self.conc_end is not None:
                raise ValueError("conc-list and conc-start/conc-end are both given: use one")
        elif self.conc_start is None or self.conc_end is None:
            raise ValueError("concurrencies are missing: give conc-list, or both conc-start and conc-end")
        elif self.conc_start > self.conc_end:
            raise ValueError(f"conc-start ({self.conc_start}) is greater than conc-end ({self.conc_end})")

    @property
    def concurrencies(self) -> list[int]:
        """The list as given, or start, doubled until the end; the end itself is always the last one."""
        if self.conc_list is not None:
            return self.conc_list
        value, end = self.conc_start, self.conc_end
        assert value is not None and end is not None  # __post_init__ refuses anything else
        values = []
        while value < end:
            values.append(value)
            value *= 2
        return [*values, end]


class SingleRow(_Row, frozen=True, kw_only=True):
    """A single-node topology."""

    tp: Positive
    pp: Positive = 1
    dcp_size: Positive = 1
    pcp_size: Positive = 1
    ep: Positive | None = None
    dp_attn: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_dcp_size(self.tp, self.dcp_size)

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.pcp_size


class MultiRow(_Row, frozen=True, kw_only=True):
    """A prefill/decode topology; without decode workers the prefill workers serve both."""

    prefill: Worker
    decode: Worker
    kv_p2p_transfer: Text | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prefill.hardware is UNSET) != (self.decode.hardware is UNSET):
            raise ValueError("hardware is given for one role only: give it for prefill and decode, or for neither")


class SingleAgenticRow(SingleRow, frozen=True, kw_only=True):
    kv_offloading: KvOffloading
    kv_offload_backend: KvBackendSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_offloading(self.kv_offloading, self.kv_offload_backend)


class MultiAgenticRow(MultiRow, frozen=True, kw_only=True):
    kv_offloading: KvOffloading = "none"
    kv_offload_backend: KvBackendSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_offloading(self.kv_offloading, self.kv_offload_backend)


AgenticRow = SingleAgenticRow | MultiAgenticRow

RowT = TypeVar("RowT", bound=SingleRow | MultiRow)
AgenticRowT = TypeVar("AgenticRowT", bound=AgenticRow)


class Fixed(_Struct, Generic[RowT], frozen=True, kw_only=True):
    """Requests of fixed lengths: input and output tokens."""

    isl: Positive
    osl: Positive
    search_space: Annotated[list[RowT], Meta(min_length=1)]


class Agentic(_Struct, Generic[AgenticRowT], frozen=True, kw_only=True):
    """Replay of agentic traces. ``dram_utilization`` is the share of a node's DRAM that KV offloading may take."""

    dram_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    search_space: Annotated[list[AgenticRowT], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if self.dram_utilization is None and any(row.kv_offloading == "dram" for row in self.search_space):
            raise ValueError("kv-offloading: dram needs dram-utilization beside the search-space")


class Scenarios(_Struct, Generic[RowT, AgenticRowT], frozen=True, kw_only=True):
    """The scenarios of one key."""

    fixed_seq_len: list[Fixed[RowT]] = []
    agentic_coding: list[Agentic[AgenticRowT]] = []

    def __post_init__(self) -> None:
        if not self.fixed_seq_len and not self.agentic_coding:
            raise ValueError("no scenario is given: fixed-seq-len, agentic-coding, or both")


class _Config(_Struct, Generic[RowT, AgenticRowT], frozen=True, kw_only=True):
    """The value of one key of a matrix file."""

    image: str
    model: str
    model_prefix: str
    precision: str
    framework: str
    runner: str
    multinode: bool
    disagg: bool = False
    router: ComponentSpec | None = None
    scenarios: Scenarios[RowT, AgenticRowT]

    def __post_init__(self) -> None:
        if self.scenarios.agentic_coding and not self.runner.startswith(CLUSTER_PREFIX):
            raise ValueError(
                f"agentic-coding needs a runner {CLUSTER_PREFIX}<name> (one exact fleet), and runner is {self.runner!r}"
            )
        _check_given_once("router", self.router, [row.router for _, _, row in self.rows()])

    def rows(self) -> Iterator[tuple[RowPath, Fixed[RowT] | Agentic[AgenticRowT], RowT | AgenticRowT]]:
        """Every row with its scenario, and its path below the key."""
        for i, fixed in enumerate(self.scenarios.fixed_seq_len):
            for j, row in enumerate(fixed.search_space):
                yield ("scenarios", FIXED, i, "search-space", j), fixed, row
        for i, agentic in enumerate(self.scenarios.agentic_coding):
            for j, agentic_row in enumerate(agentic.search_space):
                yield ("scenarios", AGENTIC, i, "search-space", j), agentic, agentic_row


class SingleConfig(_Config[SingleRow, SingleAgenticRow], frozen=True, kw_only=True):
    """A family of single-node benchmarks."""

    def __post_init__(self) -> None:
        if self.disagg:
            raise ValueError("disagg: true needs multinode: true")
        super().__post_init__()


class MultiConfig(_Config[MultiRow, MultiAgenticRow], frozen=True, kw_only=True):
    """A family of multi-node benchmarks."""

    kv_p2p_transfer: Text | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        transfers = [row.kv_p2p_transfer for _, _, row in self.rows()]
        _check_given_once("kv-p2p-transfer", self.kv_p2p_transfer, transfers)
        if self.disagg and self.kv_p2p_transfer is None and None in transfers:
            raise ValueError("disagg: true needs kv-p2p-transfer, at the top level or in every row")


Config = SingleConfig | MultiConfig


class Hardware(_Struct, frozen=True, kw_only=True):
    """The hardware of a node behind a runner label."""

    available_cpu_dram_mib: Positive
    gpus_per_node: Positive


class RunnerLabels(_Struct, frozen=True, kw_only=True):
    """InferenceX `configs/runners.yaml`: label → physical runners, and hardware by label (for clusters only)."""

    labels: dict[str, Annotated[list[str], Meta(min_length=1)]]
    hardware: dict[str, Hardware] = {}


def _check_dcp_size(tp: int, dcp_size: int) -> None:
    if tp % dcp_size:
        raise ValueError(f"tp ({tp}) is not divisible by dcp-size ({dcp_size})")


def _check_offloading(offloading: str, backend: KvBackendSpec | None) -> None:
    if offloading == "none" and backend is not None:
        raise ValueError("kv-offload-backend is given and kv-offloading is 'none'")
    if offloading != "none" and backend is None:
        raise ValueError(f"kv-offloading: {offloading} needs kv-offload-backend")


def _check_given_once(key: str, top: object, in_rows: Sequence[object]) -> None:
    if top is not None and any(value is not None for value in in_rows):
        raise ValueError(f"{key} is given at the top level and in rows: use one")
