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
    FIELDS,
    NOT_IN_NAMES,
    PREFILL_FIELDS,
    SETTING_KEYS,
    WHERE,
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
"""What a job of either contract is given and no benchmark holds: their values are in no plan, record or argv."""

ADDITIONAL_SETTINGS = ("PREFILL_ADDITIONAL_SETTINGS", "DECODE_ADDITIONAL_SETTINGS")
"""The additional settings of a row's sides as JSON lists of KEY=VALUE texts, as a workflow's toJSON gives them:
no shell reads them. Of a key of both sides the later one counts, as in a shell."""

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
"""What only some workflows set for a job of one node. A benchmark has those that are set among its options."""

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
    """The variables that jobs of one workflow have, by what they mean.

    ``roles`` are the sides of the topology by attribute of `Benchmark`. ``signs`` are the variables by which jobs of
    this contract are told from others. ``options`` are what the workflow is dispatched with beside the matrix row, and
    its constants, with the values that they have when nobody says otherwise; ``more_options`` are set by some callers
    only. ``not_set_with`` says by a variable of a caller what this caller leaves out of what is required. ``settings``
    are the additional settings that a row may have.
    """

    name: str
    fields: tuple[Field, ...]
    roles: Mapping[str, tuple[Field, ...]]
    signs: tuple[str, ...]
    options: Mapping[str, str]
    more_options: tuple[str, ...] = ()
    not_set_with: Mapping[str, Collection[str]] = field(default_factory=dict)
    settings: Collection[str] = ()

    def required(self, environ: Mapping[str, str], scenario: str = FIXED) -> list[Field]:
        """The fields that this job must have; of those that only one scenario has, those of ``scenario``."""
        left_out = {v for caller, variables in self.not_set_with.items() if environ.get(caller) for v in variables}
        everything = [*self.fields, *(f for fields in self.roles.values() for f in fields)]
        return [f for f in everything if f.required and f.scenario in (None, scenario) and f.variable not in left_out]

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
        """The options whose values are not the usual ones. Raises ConfigError for a value that means nothing."""
        usual = {**self.options, **dict.fromkeys(self.more_options, "")}
        return {
            key: _OPTION_READERS.get(key, as_text)(key, environ[key])
            for key, value in sorted(usual.items())
            if environ.get(key, value) != value
        }


MULTI_NODE = Contract(
    name="multi-node",
    fields=FIELDS,
    roles={"prefill": PREFILL_FIELDS, "decode": DECODE_FIELDS},
    # Not CONC: agentic jobs have it in either contract.
    signs=("CONC_LIST", *(f.variable for f in (*PREFILL_FIELDS, *DECODE_FIELDS))),
    options={**_COMMON_OPTIONS, "POWER_PRODUCER_SHA": ""},
    settings=SETTING_KEYS,
)

_ROLE = role_fields("TP", "EP_SIZE", "DP_ATTENTION")


def _of_one_node(table: Iterable[Field]) -> Iterator[Field]:
    """The fields of jobs of one node: there is one concurrency, also for an evaluation."""
    for row in table:
        if row.attribute == "concurrencies":
            yield dataclasses.replace(row, variable="CONC", read=one_integer)
        elif row.attribute == "total_cpu_dram_gb":
            yield dataclasses.replace(row, unset="0")
        elif row.attribute != "eval_concurrencies":
            yield row


SINGLE_NODE = Contract(
    name="single-node",
    fields=tuple(_of_one_node(FIELDS)),
    roles={"prefill": _ROLE},
    signs=tuple(f.variable for f in _ROLE),
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


def contract_in(environ: Mapping[str, str]) -> Contract:
    """The contract of a job's environment, told by the variables that are set.

    Raises ConfigError when there are variables of both, which are named, or of none.
    """
    found = {c: [v for v in c.signs if environ.get(v, "").strip()] for c in (MULTI_NODE, SINGLE_NODE)}
    if told := environ.get("IS_MULTINODE", "").strip():
        found[MULTI_NODE if boolean("IS_MULTINODE", told) else SINGLE_NODE].append(f"IS_MULTINODE={told}")
    holding = [contract for contract, variables in found.items() if variables]
    if len(holding) == 1:
        return holding[0]
    if holding:
        both = " and ".join(f"{', '.join(variables)} of a {c.name} job" for c, variables in found.items())
        raise ConfigError(
            f"variables of two kinds of jobs are set: {both}",
            where=WHERE,
            hint="unset those of the kind that is not meant",
        )
    needs = "; ".join(f"a {c.name} job {', '.join(f.variable for f in c.required(environ))}" for c in found)
    raise ConfigError(
        "the variables of no job are set: neither CONC_LIST and PREFILL_TP (multi-node) nor TP (single-node)",
        where=WHERE,
        hint=f"the launch step of a workflow has them: {needs}; by hand, select a matrix entry instead",
    )
