"""The two contracts between InferenceX's workflows and a job: which variables a job has, as data.

`MULTI_NODE` is what `benchmark-multinode-tmpl.yml` exports, `SINGLE_NODE` what `benchmark-tmpl.yml` does (commit
843c6254f). `profile.yml` and `speedbench-al.yml` start jobs of one node too: with fewer variables, and with some of
their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from launcher.benchmark.benchmark import FIXED, Benchmark, Role
from launcher.benchmark.fields import (
    DECODE_FIELDS,
    ENVIRONMENT,
    FIELDS,
    NOT_IN_NAMES,
    PREFILL_FIELDS,
    SETTING_KEYS,
    Field,
    Reader,
    as_text,
    boolean,
    matching,
    one_integer,
    role_fields,
)
from launcher.core.errors import ConfigError

SECRETS = ("HF_TOKEN", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")
"""Variables of a job of either contract that no benchmark has: their values are in no plan, record or argv."""

ADDITIONAL_SETTINGS = ("PREFILL_ADDITIONAL_SETTINGS", "DECODE_ADDITIONAL_SETTINGS")
"""The additional settings of a row's sides as JSON lists of KEY=VALUE texts, as a workflow's toJSON writes them; no
shell reads them. When both sides have a key, the later side counts, as in a shell."""

CALLER_OPTIONS = (
    # profile.yml
    "MOE_DEBUG",
    "MOE_DEBUG_LOG",
    "PROFILE",
    "SGLANG_TORCH_PROFILER_DIR",
    "VLLM_RPC_TIMEOUT",
    "VLLM_TORCH_PROFILER_DIR",
    # speedbench-al.yml. Its SALLOC_TIME_LIMIT is one of the variables by which runner files let a host override them.
    "BENCH_SCRIPT_OVERRIDE",
    "CATEGORY",
    "CHAT_TEMPLATE_KWARGS_ON",
    "MTP_LIST",
    "OUT_YAML",
    "SPEEDBENCH_OUTPUT_LEN",
    "THINKING_MODES",
)
"""Variables that only some workflows set for a job of one node. Those that are set are options of the benchmark."""

_COMMON_OPTIONS = {
    "AIPERF_EXPERIMENTAL_FAST": "0",
    "EVAL_LIMIT": "",
    "RANDOM_RANGE_RATIO": "0.8",
    "REQUIRE_POWER": "0",
    "SWEBENCH_GEN_MODE": "",
    "SWEBENCH_USE_MODAL": "true",
}

_CONTAINER_PATH = matching(rf"/[^,:{NOT_IN_NAMES}]*", "an absolute path without ',' and ':'")
_OPTION_READERS: Mapping[str, Reader] = {
    "AIPERF_FAILED_REQUEST_THRESHOLD": matching(r"0?\.[0-9]{1,9}|0|1(\.0{1,9})?", "a share from 0 to 1, like 0.10"),
    "HF_HUB_CACHE": _CONTAINER_PATH,
    "RESULT_DIR": _CONTAINER_PATH,
}


@dataclass(frozen=True, eq=False)
class Contract:
    """The variables that jobs of one workflow have, by their meaning.

    ``roles`` are the sides of the topology, by attribute of `Benchmark`. ``marker_variables`` distinguish jobs of this
    contract from others. ``options`` are the workflow's inputs beside the matrix row, and its constants, with their
    defaults; ``more_options`` are set by some callers only. ``not_set_with``: a variable that identifies a caller →
    required variables that this caller does not set. ``settings`` are the additional settings that a row may have.
    """

    name: str
    fields: tuple[Field, ...]
    roles: Mapping[str, tuple[Field, ...]]
    marker_variables: tuple[str, ...]
    options: Mapping[str, str]
    more_options: tuple[str, ...] = ()
    not_set_with: Mapping[str, Collection[str]] = field(default_factory=dict)
    settings: Collection[str] = ()

    def required(self, environ: Mapping[str, str], scenario: str = FIXED) -> list[Field]:
        """The fields that this job must have, in this scenario."""
        left_out = {v for caller, variables in self.not_set_with.items() if environ.get(caller) for v in variables}
        fields = self.fields_in(scenario)
        return [f for f in fields if f.required and f.variable not in left_out]

    def fields_in(self, scenario: str) -> list[Field]:
        """The fields of a job in this scenario, those of its roles last."""
        all_fields = (*self.fields, *(f for fields in self.roles.values() for f in fields))
        return [f for f in all_fields if f.scenario in (None, scenario)]

    def roles_of(self, benchmark: Benchmark) -> dict[str, Role]:
        """The sides of a benchmark. Raises ConfigError when it lacks one."""
        sides = {}
        for side in self.roles:
            role: Role | None = getattr(benchmark, side)
            if role is None:
                message = f"{benchmark.exp_name} has no {side} side, which a {self.name} job needs"
                raise ConfigError(message, where=benchmark.source)
            sides[side] = role
        return sides

    def options_in(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The options whose values are not the defaults. Raises ConfigError for an invalid value."""
        defaults = {**self.options, **dict.fromkeys(self.more_options, "")}
        return {
            key: _OPTION_READERS.get(key, as_text)(key, environ[key])
            for key, value in sorted(defaults.items())
            if environ.get(key, value) != value
        }


MULTI_NODE = Contract(
    name="multi-node",
    fields=FIELDS,
    roles={"prefill": PREFILL_FIELDS, "decode": DECODE_FIELDS},
    # CONC is not among them: agentic jobs have it in either contract.
    marker_variables=("CONC_LIST", *(f.variable for f in (*PREFILL_FIELDS, *DECODE_FIELDS))),
    options={**_COMMON_OPTIONS, "POWER_PRODUCER_SHA": ""},
    settings=SETTING_KEYS,
)

_ROLE = role_fields("TP", "EP_SIZE", "DP_ATTENTION")


def _single_node_fields(table: Iterable[Field]) -> Iterator[Field]:
    """The fields of jobs of one node: they have one concurrency, also for an evaluation."""
    for row in table:
        if row.attribute == "concurrencies":
            yield dataclasses.replace(row, variable="CONC", read=one_integer)
        elif row.attribute == "total_cpu_dram_gb":
            yield dataclasses.replace(row, unset="0")
        elif row.attribute != "eval_concurrencies":
            yield row


SINGLE_NODE = Contract(
    name="single-node",
    fields=tuple(_single_node_fields(FIELDS)),
    roles={"prefill": _ROLE},
    marker_variables=tuple(f.variable for f in _ROLE),
    options={
        **_COMMON_OPTIONS,
        "AIPERF_FAILED_REQUEST_THRESHOLD": "0.10",
        "HF_HUB_CACHE": "/mnt/hf_hub_cache/",
        "RESULT_DIR": "/workspace/results",
        "SALLOC_EXCLUDE": "",
    },
    more_options=CALLER_OPTIONS,
    not_set_with={
        "PROFILE": {"RUNNER_TYPE"},
        "BENCH_SCRIPT_OVERRIDE": {"RUNNER_TYPE", "CONC", "ISL", "OSL"},
    },
)


def contract_of(benchmark: Benchmark) -> Contract:
    """The contract of a benchmark's job."""
    return MULTI_NODE if benchmark.multinode else SINGLE_NODE


def contract_of_environment(environ: Mapping[str, str]) -> Contract:
    """The contract of a job's environment, recognised by the variables that are set.

    Raises ConfigError, which names the variables, when those of both contracts are set, or of neither.
    """
    markers = {c: [v for v in c.marker_variables if environ.get(v, "").strip()] for c in (MULTI_NODE, SINGLE_NODE)}
    if value := environ.get("IS_MULTINODE", "").strip():
        markers[MULTI_NODE if boolean("IS_MULTINODE", value) else SINGLE_NODE].append(f"IS_MULTINODE={value}")
    contracts = [contract for contract, variables in markers.items() if variables]
    if len(contracts) == 1:
        return contracts[0]
    if contracts:
        both = " and ".join(f"{', '.join(variables)} of a {c.name} job" for c, variables in markers.items())
        raise ConfigError(
            f"variables of two kinds of jobs are set: {both}",
            where=ENVIRONMENT,
            hint="unset those of the kind that is not meant",
        )
    required = "; ".join(f"a {c.name} job {', '.join(f.variable for f in c.required(environ))}" for c in markers)
    raise ConfigError(
        "the variables of no job are set: neither CONC_LIST and PREFILL_TP (multi-node) nor TP (single-node)",
        where=ENVIRONMENT,
        hint=f"the launch step of a workflow has them: {required}; by hand, select a matrix entry instead",
    )
