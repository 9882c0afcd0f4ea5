"""The environment of jobs of one node: told from that of several nodes, there and back, equal to the recorded ones."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Mapping
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark, Component, Role
from launcher.benchmark.contracts import CALLER_OPTIONS, SECRETS, SINGLE_NODE
from launcher.benchmark.environment import benchmark_from_environment, environment_of, result_filename
from launcher.benchmark.expand import Selection
from launcher.benchmark.matrix import benchmark_of, load_matrix
from launcher.core.errors import ConfigError
from tests.benchmarks import a_benchmark
from tests.shared import SHARED, needs_shared

FIXED = Benchmark(
    exp_name="m_8k1k",
    image="nvcr.io#nvidia/tensorrt-llm/release:1",
    model="acme/M",
    model_prefix="m",
    precision="fp4",
    framework="trt",
    runner="b200",
    concurrencies=(64,),
    isl=8192,
    osl=1024,
    max_model_len=9472,
    multinode=False,
    spec_decoding="mtp",
    prefill=Role(1, 4, ep=2, dp_attention=True, pcp=2),
    source="environment",
)
AGENTIC = dataclasses.replace(
    FIXED,
    isl=None,
    osl=None,
    max_model_len=None,
    scenario="agentic-coding",
    run_eval=True,
    eval_only=True,
    kv_offloading="dram",
    kv_offload_backend=Component("a, b", "0.3"),
    router=Component("r,s"),
    total_cpu_dram_gb=1234,
    duration=1200,
    options={
        "AIPERF_FAILED_REQUEST_THRESHOLD": "0.25",
        "HF_HUB_CACHE": "/cache",
        "RESULT_DIR": "/w/results",
        "SALLOC_EXCLUDE": "n-5,n-6",
    },
    result_filename="RESULT",
    recipe_fingerprint="0123456789abcdef" * 4,
)

PROFILE = {
    "EXP_NAME": "m_8k1k",
    "MODEL": "acme/M",
    "MODEL_PREFIX": "m",
    "ISL": "8192",
    "OSL": "1024",
    "MAX_MODEL_LEN": "9472",
    "IMAGE": "vllm/vllm-openai:v1",
    "FRAMEWORK": "vllm",
    "PRECISION": "fp8",
    "TP": "8",
    "EP_SIZE": "1",
    "DP_ATTENTION": "false",
    "CONC": "64",
    "SPEC_DECODING": "none",
    "DISAGG": "false",
    "MOE_DEBUG": "0",
    "MOE_DEBUG_LOG": "",
    "PROFILE": "1",
    "SGLANG_TORCH_PROFILER_DIR": "/workspace/",
    "VLLM_TORCH_PROFILER_DIR": "/workspace/",
    "VLLM_RPC_TIMEOUT": "1800000",
    "RESULT_FILENAME": "m_8k1k_fp8_vllm_tp8_ep1_dpa_false_conc64_h200-cw_00",
    "HF_HUB_CACHE": "/mnt/hf_hub_cache/",
    "RANDOM_RANGE_RATIO": "0.8",
}
"""What the launch step of profile.yml has beside secrets and what is GitHub's own."""

SPEEDBENCH = {
    "EXP_NAME": "m_speedbench",
    "MODEL": "acme/M",
    "MODEL_PREFIX": "m",
    "IMAGE": "vllm/vllm-openai:v1",
    "FRAMEWORK": "vllm",
    "PRECISION": "fp4",
    "TP": "8",
    "EP_SIZE": "1",
    "DP_ATTENTION": "false",
    "SPEC_DECODING": "mtp",
    "BENCH_SCRIPT_OVERRIDE": "benchmarks/single_node/speedbench/m_fp4_b300_vllm.sh",
    "SALLOC_TIME_LIMIT": "480",
    "MTP_LIST": "1 2 3",
    "THINKING_MODES": "off on",
    "CATEGORY": "coding",
    "SPEEDBENCH_OUTPUT_LEN": "4096",
    "CHAT_TEMPLATE_KWARGS_ON": '{"thinking": true,\n "reasoning_effort": "high"}',
    "OUT_YAML": "/workspace/speedbench-reference-al.yaml",
    "HF_HUB_CACHE": "/mnt/hf_hub_cache/",
}
"""The same of speedbench-al.yml."""


def refused(environ: Mapping[str, str], **changes: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        benchmark_from_environment({**environ, **changes})
    assert caught.value.where == "environment"
    return caught.value


def cases() -> list[dict[str, Any]]:
    assert SHARED is not None
    with gzip.open(SHARED / "cases-single" / "cases.jsonl.gz", "rt") as lines:
        return [case for case in map(json.loads, lines) if case["kind"].startswith("single")]


@pytest.mark.parametrize("benchmark", [FIXED, AGENTIC], ids=["fixed", "agentic"])
def test_there_and_back(benchmark: Benchmark) -> None:
    assert benchmark_from_environment(environment_of(benchmark)) == benchmark


def test_what_the_workflow_sets() -> None:
    fixed, agentic = environment_of(FIXED), environment_of(AGENTIC)
    assert "IS_MULTINODE" not in fixed and "CONC_LIST" not in fixed and "EVAL_CONC" not in fixed
    assert not [name for name in fixed if name.startswith(("PREFILL_", "DECODE_"))]
    assert not set(fixed) & {*SECRETS, *CALLER_OPTIONS, "RUNNER_NAME", "GPU_COUNT", "RESULT_FILENAME"}
    assert (fixed["CONC"], fixed["TP"], fixed["EP_SIZE"], fixed["PCP_SIZE"]) == ("64", "4", "2", "2")
    assert (fixed["DP_ATTENTION"], fixed["TOTAL_CPU_DRAM_GB"], fixed["DURATION"]) == ("true", "0", "3600")
    assert (fixed["SCENARIO_SUBDIR"], fixed["IS_AGENTIC"], fixed["DISAGG"]) == ("fixed_seq_len/", "0", "false")
    assert {name: fixed[name] for name in SINGLE_NODE.options} == dict(SINGLE_NODE.options)
    assert (agentic["SCENARIO_SUBDIR"], agentic["IS_AGENTIC"], agentic["ISL"]) == ("agentic/", "1", "0")
    assert agentic["KV_OFFLOAD_BACKEND_METADATA"] == '{\n  "name": "a, b",\n  "version": "0.3"\n}'
    assert (agentic["CONC"], agentic["RESULT_DIR"], agentic["SALLOC_EXCLUDE"]) == ("64", "/w/results", "n-5,n-6")


def test_a_job_of_several_nodes_is_told_from_one_of_one_node() -> None:
    several = environment_of(
        a_benchmark(scenario="agentic-coding", isl=None, osl=None, kv_offloading="none", total_cpu_dram_gb=0)
    )
    assert several["CONC"] == "4"  # agentic jobs of several nodes have it too
    assert benchmark_from_environment(several).multinode
    assert benchmark_from_environment({k: v for k, v in several.items() if k != "IS_MULTINODE"}).multinode
    one = environment_of(FIXED)
    assert not benchmark_from_environment(one | {"IS_MULTINODE": "false", "CONC_LIST": "", "PREFILL_TP": " "}).multinode


def test_a_mixture_names_the_variables_of_both_sides() -> None:
    one = environment_of(FIXED)
    mixed = refused(one, CONC_LIST="4 16", DECODE_TP="8").message
    assert mixed == (
        "variables of two kinds of jobs are set: CONC_LIST, DECODE_TP of a multi-node job and"
        " TP, EP_SIZE, DP_ATTENTION, PP_SIZE, DCP_SIZE, PCP_SIZE of a single-node job"
    )
    assert "IS_MULTINODE=true of a multi-node job and TP" in refused(one, IS_MULTINODE="true").message
    several = environment_of(a_benchmark())
    assert mixed != refused(several, IS_MULTINODE="false").message
    assert "IS_MULTINODE=false of a single-node job" in refused(several, IS_MULTINODE="false").message


def test_the_environment_of_no_job_says_what_either_needs() -> None:
    error = refused({"CONC": "4", "EXP_NAME": "m", "TP": " ", "CONC_LIST": ""})
    assert error.message.startswith("the variables of no job are set")
    assert error.hint is not None
    assert (
        "a multi-node job EXP_NAME, IMAGE, " in error.hint and "CONC_LIST, ISL, OSL, PREFILL_NUM_WORKERS" in error.hint
    )
    assert "a single-node job EXP_NAME, IMAGE, " in error.hint and "CONC, ISL, OSL, TP, EP_SIZE" in error.hint


def test_all_missing_variables_are_named_at_once() -> None:
    error = refused(environment_of(FIXED), IMAGE="", CONC=" ", EP_SIZE="", OSL="", RUNNER_TYPE="")
    assert error.message == "IMAGE, RUNNER_TYPE, CONC, OSL, EP_SIZE are not set, or empty"
    assert error.hint is not None and "single-node" in error.hint


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CONC", "4 16", "a whole number of at least 1"),
        ("CONC", "0", "a whole number of at least 1"),
        ("TP", "-8", "a whole number of at least 1 and at most 9999"),
        ("TP", "8.0", "a whole number"),
        ("PP_SIZE", "999999999999", "at most 9999"),
        ("EP_SIZE", "٨", "a whole number"),  # int() takes such digits
        ("DP_ATTENTION", "True", "'true', 'false' or nothing"),
        ("EXP_NAME", "m\n8k1k", "a part of a file name"),
        ("EXP_NAME", "../../bin/sh_x", "a part of a file name"),
        ("MODEL_PREFIX", "m\x00", "a part of a file name"),
        ("FRAMEWORK", "a/b", "a part of a file name"),
        ("PRECISION", "fp\udcff", "a part of a file name"),
        ("MODEL", "acme/M\r", "without control characters"),
        ("RUNNER_TYPE", "b200\n::error::", "without control characters"),
        ("AIPERF_FAILED_REQUEST_THRESHOLD", "10%", "a share from 0 to 1"),
        ("AIPERF_FAILED_REQUEST_THRESHOLD", "1.5", "a share from 0 to 1"),
        ("HF_HUB_CACHE", "/a,/etc:/etc", "an absolute path"),
        ("RESULT_DIR", "", "an absolute path"),
        ("MTP_LIST", "\udcff", "UTF-8"),
        ("GPU_COUNT", "4", "'8', which follows from the other variables"),
        ("IS_AGENTIC", "1", "'0', which follows"),
        ("SCENARIO_SUBDIR", "agentic/", "'fixed_seq_len/', which follows"),
    ],
)
def test_a_variable_that_means_nothing_is_named_with_what_is_expected(name: str, value: str, expected: str) -> None:
    message = refused(environment_of(FIXED), **{name: value}).message
    assert message.startswith(f"{name} is {value!r}; expected ")
    assert expected in message


def test_settings_of_rows_of_several_nodes_are_not_read() -> None:
    environ = environment_of(FIXED) | {"SLURM_PARTITION": "p", "CONFIG_FILE": "r.yaml", "EVAL_CONC": "x"}
    assert benchmark_from_environment(environ) == FIXED


def test_a_job_that_profiles() -> None:
    benchmark = benchmark_from_environment(PROFILE)
    assert (benchmark.runner, benchmark.scenario, benchmark.concurrencies) == ("", "fixed-seq-len", (64,))
    assert benchmark.result_filename == PROFILE["RESULT_FILENAME"]
    assert benchmark.options == {name: PROFILE[name] for name in CALLER_OPTIONS if PROFILE.get(name)}
    again = environment_of(benchmark)
    assert {name: again.get(name, "") for name in PROFILE} == PROFILE
    assert (again["SCENARIO_SUBDIR"], again["PP_SIZE"], again["RUNNER_TYPE"]) == ("fixed_seq_len/", "1", "")
    assert benchmark_from_environment(again) == benchmark
    assert "CONC" in refused(PROFILE, CONC="").message


def test_a_job_that_collects_acceptance_lengths() -> None:
    benchmark = benchmark_from_environment(SPEEDBENCH)
    assert (benchmark.isl, benchmark.osl, benchmark.concurrencies, benchmark.result_filename) == (None, None, (), None)
    assert benchmark.options == {name: SPEEDBENCH[name] for name in CALLER_OPTIONS if name in SPEEDBENCH}
    again = environment_of(benchmark)
    assert {name: again[name] for name in SPEEDBENCH if name in again} == {
        name: value for name, value in SPEEDBENCH.items() if name != "SALLOC_TIME_LIMIT"
    }
    assert (again["SCENARIO_SUBDIR"], again["ISL"], again["CONC"]) == ("fixed_seq_len/", "", "")
    assert benchmark_from_environment(again) == benchmark
    assert result_filename(benchmark, "b300-nv_01").endswith("_spec-mtp_conc_b300-nv_01")
    assert refused({k: v for k, v in SPEEDBENCH.items() if k != "BENCH_SCRIPT_OVERRIDE"}).message == (
        "RUNNER_TYPE, CONC, ISL, OSL are not set, or empty"
    )


def test_the_name_of_the_result() -> None:
    stem = "m_8k1k_fp4_trt_tp4-pp1-dcp1-pcp2-ep2-dpatrue_disagg-false_spec-mtp_conc64_b200-cw_00"
    assert result_filename(FIXED, "b200-cw_00") == stem
    assert result_filename(AGENTIC, "b200-cw_00") == f"{stem}_recipe-0123456789abcdef"
    with pytest.raises(ConfigError, match="not usable as a file name"):
        result_filename(dataclasses.replace(FIXED, exp_name="a/b"), "b200-cw_00")
    with pytest.raises(ConfigError, match="m_8k1k has no prefill side, which a single-node job needs"):
        environment_of(dataclasses.replace(FIXED, prefill=None))


@needs_shared
def test_every_recorded_environment_is_the_one_that_its_benchmark_gives() -> None:
    recorded = cases()
    assert len(recorded) >= 167
    of_the_runner = {"CI", "GPU_COUNT", "RESULT_FILENAME_BASE", "RUNNER_NAME", "USER", *SECRETS}
    for case in recorded:
        environ = case["environment"]
        names = {name for name in environ if not name.startswith("GITHUB_")} - of_the_runner
        again = environment_of(benchmark_from_environment(environ))
        assert {name: again.get(name) for name in names} == {name: environ[name] for name in names}, case["id"]


@needs_shared
def test_every_recorded_result_has_the_name_that_its_benchmark_gives() -> None:
    for case in cases():
        environ = {name: value for name, value in case["environment"].items() if name != "RESULT_FILENAME"}
        benchmark = benchmark_from_environment(environ)
        assert result_filename(benchmark, environ["RUNNER_NAME"]) == case["environment"]["RESULT_FILENAME"]
        assert str(benchmark.gpus) == environ["GPU_COUNT"]


@needs_shared
def test_a_recorded_entry_and_its_environment_are_one_benchmark() -> None:
    for case in cases():
        environ = case["environment"]
        said = {"result_filename": environ["RESULT_FILENAME"], "options": {"SALLOC_EXCLUDE": environ["SALLOC_EXCLUDE"]}}
        entry = benchmark_of(case["entry"], key=None, source="environment", place="case")
        assert benchmark_from_environment(environ) == dataclasses.replace(entry, **said), case["id"]


@needs_shared
def test_every_real_single_node_entry_goes_there_and_back() -> None:
    assert SHARED is not None
    matrix = load_matrix([SHARED / "inferencex" / "configs" / f"{name}-master.yaml" for name in ("nvidia", "amd")])
    for evals, number in (("none", 1172), ("only", 235)):
        entries = matrix.entries(Selection(nodes="single", evals=evals))  # type: ignore[arg-type]
        assert len(entries) == number
        for entry in entries:
            plain = dataclasses.replace(entry.benchmark, key=None, source="environment")
            assert benchmark_from_environment(environment_of(plain)) == plain
