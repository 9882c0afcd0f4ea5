"""The schema of a matrix file (InferenceX `configs/*-master.yaml`) and of the runner labels beside it.

The format is that of InferenceX `utils/matrix_logic/validation.py` (commit 843c6254f), without its coercions: a number
in quotes is a string here, and so an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

CLUSTER_PREFIX = "cluster:"

Positive = Annotated[int, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]
SpecDecoding = Literal["mtp", "draft_model", "none"]
KvOffloading = Literal["none", "dram"]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Base of the schema: immutable, and an unknown key is an error."""


class ComponentSpec(_Struct, frozen=True, kw_only=True):
    """A component and its own version: a release, a package version or a commit."""

    name: Text
    version: Text

    def __post_init__(self) -> None:
        _no_image_version(self.version)


class KvBackendSpec(_Struct, frozen=True, kw_only=True):
    """What holds offloaded KV blocks; not each has a version of its own."""

    name: Text
    version: Text | UnsetType = UNSET

    def __post_init__(self) -> None:
        _no_image_version(self.version)


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
        _divisible(self.tp, self.dcp_size)


class _Row(_Struct, frozen=True, kw_only=True):
    """What every row of a search space has: concurrencies as a list, or as a range that doubles."""

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
        _divisible(self.tp, self.dcp_size)

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.pcp_size


class MultiRow(_Row, frozen=True, kw_only=True):
    """A prefill/decode topology; a decode side of no workers means that prefill's serve both."""

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
        _kv_pair(self.kv_offloading, self.kv_offload_backend)


class MultiAgenticRow(MultiRow, frozen=True, kw_only=True):
    kv_offloading: KvOffloading = "none"
    kv_offload_backend: KvBackendSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _kv_pair(self.kv_offloading, self.kv_offload_backend)


class _Fixed(_Struct, frozen=True, kw_only=True):
    """Requests of fixed lengths: input and output tokens."""

    isl: Positive
    osl: Positive


class SingleFixed(_Fixed, frozen=True, kw_only=True):
    search_space: Annotated[list[SingleRow], Meta(min_length=1)]


class MultiFixed(_Fixed, frozen=True, kw_only=True):
    search_space: Annotated[list[MultiRow], Meta(min_length=1)]


class _Agentic(_Struct, frozen=True, kw_only=True):
    """Replay of agentic traces. ``dram_utilization`` is the share of a node's DRAM that KV offloading may take."""

    dram_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None

    def _check_dram(self, rows: list[SingleAgenticRow] | list[MultiAgenticRow]) -> None:
        if self.dram_utilization is None and any(row.kv_offloading == "dram" for row in rows):
            raise ValueError("kv-offloading: dram needs dram-utilization beside the search-space")


class SingleAgentic(_Agentic, frozen=True, kw_only=True):
    search_space: Annotated[list[SingleAgenticRow], Meta(min_length=1)]

    def __post_init__(self) -> None:
        self._check_dram(self.search_space)


class MultiAgentic(_Agentic, frozen=True, kw_only=True):
    search_space: Annotated[list[MultiAgenticRow], Meta(min_length=1)]

    def __post_init__(self) -> None:
        self._check_dram(self.search_space)


class SingleScenarios(_Struct, frozen=True, kw_only=True):
    fixed_seq_len: list[SingleFixed] = []
    agentic_coding: list[SingleAgentic] = []

    def __post_init__(self) -> None:
        _some_scenario(self.fixed_seq_len, self.agentic_coding)


class MultiScenarios(_Struct, frozen=True, kw_only=True):
    fixed_seq_len: list[MultiFixed] = []
    agentic_coding: list[MultiAgentic] = []

    def __post_init__(self) -> None:
        _some_scenario(self.fixed_seq_len, self.agentic_coding)


class _Config(_Struct, frozen=True, kw_only=True):
    """What stands under one key of a matrix file."""

    image: str
    model: str
    model_prefix: str
    precision: str
    framework: str
    runner: str
    multinode: bool
    disagg: bool = False
    router: ComponentSpec | None = None


class SingleConfig(_Config, frozen=True, kw_only=True):
    scenarios: SingleScenarios

    def __post_init__(self) -> None:
        if self.disagg:
            raise ValueError("disagg: true needs multinode: true")
        _agentic_on_cluster(self.runner, self.scenarios.agentic_coding)
        _one_place("router", self.router, [row.router for row in _rows(self.scenarios)])


class MultiConfig(_Config, frozen=True, kw_only=True):
    scenarios: MultiScenarios
    kv_p2p_transfer: Text | None = None

    def __post_init__(self) -> None:
        _agentic_on_cluster(self.runner, self.scenarios.agentic_coding)
        _one_place("router", self.router, [row.router for row in _rows(self.scenarios)])
        transfers = [row.kv_p2p_transfer for row in _rows(self.scenarios)]
        _one_place("kv-p2p-transfer", self.kv_p2p_transfer, transfers)
        if self.disagg and self.kv_p2p_transfer is None and None in transfers:
            raise ValueError("disagg: true needs kv-p2p-transfer, at the top level or in every row")


class Hardware(_Struct, frozen=True, kw_only=True):
    """What a node behind a runner label has."""

    available_cpu_dram_mib: Positive
    gpus_per_node: Positive


class RunnerLabels(_Struct, frozen=True, kw_only=True):
    """InferenceX `configs/runners.yaml`: label → physical runners, and hardware by label (for clusters only)."""

    labels: dict[str, Annotated[list[str], Meta(min_length=1)]]
    hardware: dict[str, Hardware] = {}


def _rows(scenarios: SingleScenarios | MultiScenarios) -> list[Any]:
    return [
        row for group in (scenarios.fixed_seq_len, scenarios.agentic_coding) for s in group for row in s.search_space
    ]


def _no_image_version(version: str | UnsetType) -> None:
    if version is not UNSET and version.startswith("image:"):
        raise ValueError("version names an image: give a release, a package version or a commit")


def _divisible(tp: int, dcp_size: int) -> None:
    if tp % dcp_size:
        raise ValueError(f"tp ({tp}) is not divisible by dcp-size ({dcp_size})")


def _kv_pair(offloading: str, backend: KvBackendSpec | None) -> None:
    if offloading == "none" and backend is not None:
        raise ValueError("kv-offload-backend is given and kv-offloading is 'none'")
    if offloading != "none" and backend is None:
        raise ValueError(f"kv-offloading: {offloading} needs kv-offload-backend")


def _some_scenario(fixed: list[Any], agentic: list[Any]) -> None:
    if not fixed and not agentic:
        raise ValueError("no scenario is given: fixed-seq-len, agentic-coding, or both")


def _agentic_on_cluster(runner: str, agentic: list[Any]) -> None:
    if agentic and not runner.startswith(CLUSTER_PREFIX):
        raise ValueError(
            f"agentic-coding needs a runner {CLUSTER_PREFIX}<name> (one exact fleet), and runner is {runner!r}"
        )


def _one_place(key: str, top: object, in_rows: list[Any]) -> None:
    if top is not None and any(value is not None for value in in_rows):
        raise ValueError(f"{key} is given at the top level and in rows: use one")
