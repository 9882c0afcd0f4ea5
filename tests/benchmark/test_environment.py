from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark, Component, Role
from launcher.benchmark.contracts import MULTI_NODE
from launcher.benchmark.environment import (
    benchmark_from_environment,
    environment_of,
    github_job,
    result_filename,
)
from launcher.benchmark.expand import Selection
from launcher.benchmark.matrix import benchmark_of, load_matrix
from launcher.core.errors import ConfigError
from tests.shared import SHARED, needs_shared

FIXED = Benchmark(
    exp_name="m_8k1k",
    image="vllm/vllm-openai:v1",
    model="acme/M",
    model_prefix="m",
    precision="fp4",
    framework="dynamo-vllm",
    runner="cluster:gb300-nv",
    concurrencies=(4, 16),
    isl=8192,
    osl=1024,
    max_model_len=9472,
    disagg=True,
    spec_decoding="mtp",
    prefill=Role(1, 4, ep=4, dp_attention=True),
    decode=Role(2, 8, pp=2),
    settings={"CONFIG_FILE": "recipes/a b.yaml:override_x", "SYNTHETIC_ACCEPTANCE": "true"},
    kv_p2p_transfer="nixl",
    router=Component("dynamo-router", "1.2"),
    source="environment",
)
AGENTIC = dataclasses.replace(
    FIXED,
    concurrencies=(8, 32),
    isl=None,
    osl=None,
    max_model_len=None,
    scenario="agentic-coding",
    run_eval=True,
    eval_only=True,
    eval_concurrencies=(32,),
    kv_offloading="dram",
    kv_offload_backend=Component("hicache"),
    total_cpu_dram_gb=0,
    duration=1200,
    options={"REQUIRE_POWER": "1", "EVAL_LIMIT": "5"},
    result_filename="RESULT",
    recipe_fingerprint="0123456789abcdef" * 4,
)


def refused(**changes: str | None) -> ConfigError:
    environ: dict[str, Any] = environment_of(FIXED) | changes
    with pytest.raises(ConfigError) as caught:
        benchmark_from_environment({k: v for k, v in environ.items() if v is not None})
    assert caught.value.where == "environment"
    return caught.value


def cases() -> list[dict[str, Any]]:
    assert SHARED is not None
    return [json.loads(path.read_text()) for path in sorted((SHARED / "cases").glob("*.json"))]


@pytest.mark.parametrize("benchmark", [FIXED, AGENTIC])
def test_there_and_back(benchmark: Benchmark) -> None:
    assert benchmark_from_environment(environment_of(benchmark)) == benchmark


def test_what_the_workflow_sets() -> None:
    fixed, agentic = environment_of(FIXED), environment_of(AGENTIC)
    assert (fixed["CONC_LIST"], fixed["CONC"], fixed["ISL"], fixed["TOTAL_CPU_DRAM_GB"]) == ("4 16", "", "8192", "600")
    assert (fixed["SCENARIO_SUBDIR"], fixed["IS_AGENTIC"], fixed["DISAGG"]) == ("fixed_seq_len/", "0", "true")
    assert fixed["ROUTER_METADATA"] == '{\n  "name": "dynamo-router",\n  "version": "1.2"\n}'
    assert fixed["CONFIG_FILE"] == "recipes/a b.yaml:override_x"
    assert "RESULT_FILENAME" not in fixed and "RUNNER_NAME" not in fixed
    assert {name: fixed[name] for name in MULTI_NODE.options} == dict(MULTI_NODE.options)
    assert (agentic["ISL"], agentic["MAX_MODEL_LEN"], agentic["CONC"], agentic["EVAL_CONC"]) == ("0", "0", "32", "32")
    assert (agentic["REQUIRE_POWER"], agentic["DURATION"], agentic["TOTAL_CPU_DRAM_GB"]) == ("1", "1200", "0")
    assert agentic["KV_OFFLOAD_BACKEND"] == "hicache"


def test_only_listed_settings_are_taken_from_the_environment() -> None:
    environ = environment_of(FIXED) | {"SLURM_PARTITION": "", "SLURM_JOB_ID": "7", "PREFILL_NODES": "2"}
    assert benchmark_from_environment(environ).settings == dict(FIXED.settings) | {"PREFILL_NODES": "2"}


def test_several_evaluation_concurrencies() -> None:
    environ = environment_of(FIXED) | {"EVAL_CONC": " 16 32  64", "RUN_EVAL": "true", "EVAL_ONLY": "true"}
    assert benchmark_from_environment(environ).eval_concurrencies == (16, 32, 64)


@pytest.mark.parametrize("lengths", ["", "0"])
def test_agentic_jobs_have_no_sequence_lengths(lengths: str) -> None:
    environ = environment_of(AGENTIC) | dict.fromkeys(("ISL", "OSL", "MAX_MODEL_LEN"), lengths)
    benchmark = benchmark_from_environment(environ)
    assert (benchmark.isl, benchmark.osl, benchmark.max_model_len) == (None, None, None)


def test_empty_variables_are_as_missing_ones() -> None:
    environ = environment_of(FIXED) | dict.fromkeys(("PREFILL_PP_SIZE", "DISAGG", "SPEC_DECODING", "RUN_EVAL"), "")
    benchmark = benchmark_from_environment(environ)
    assert benchmark.prefill is not None and benchmark.prefill.pp == 1
    assert (benchmark.disagg, benchmark.spec_decoding, benchmark.run_eval) == (False, "none", False)


def test_an_agentic_job_without_offloading_has_none_and_a_backend_may_be_a_bare_name() -> None:
    environ = environment_of(AGENTIC) | {"KV_OFFLOADING": "", "KV_OFFLOAD_BACKEND_METADATA": ""}
    benchmark = benchmark_from_environment(environ)
    assert (benchmark.kv_offloading, benchmark.kv_offload_backend) == ("none", Component("hicache"))
    assert benchmark_from_environment(environ | {"KV_OFFLOAD_BACKEND": ""}).kv_offload_backend is None


def test_what_only_agentic_jobs_have_is_not_read_for_others() -> None:
    environ = environment_of(FIXED) | {"KV_OFFLOADING": "tape", "DURATION": "long", "TOTAL_CPU_DRAM_GB": "-1"}
    assert benchmark_from_environment(environ) == FIXED


def test_all_missing_variables_are_named_at_once() -> None:
    assert refused(IMAGE=None, CONC_LIST=" ", DECODE_TP="").message == (
        "IMAGE, CONC_LIST, DECODE_TP are not set, or empty"
    )
    assert refused(ISL="").message == "ISL is not set, or empty"
    assert refused(MODEL="", OSL="").message == "MODEL, OSL are not set, or empty"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CONC_LIST", "4 x", "whole numbers of at least 1"),
        ("CONC_LIST", "0", "a whole number of at least 1"),
        ("CONC_LIST", "1_0", "a whole number"),
        ("ISL", "0", "a whole number of at least 1"),
        ("PREFILL_TP", "4.0", "a whole number"),
        ("PREFILL_NUM_WORKERS", "0", "at least 1"),
        ("DECODE_NUM_WORKERS", "-1", "at least 0"),
        ("DISAGG", "yes", "'true', 'false' or nothing"),
        ("EVAL_ONLY", "True", "'true', 'false' or nothing"),
        ("SPEC_DECODING", "eagle", "'none' or 'mtp' or 'draft_model'"),
        ("SCENARIO_TYPE", "agentic", "'fixed-seq-len' or 'agentic-coding'"),
        ("EVAL_CONC", "[16]", "a whole number of at least 1"),
        ("ROUTER_METADATA", "dynamo-router", "JSON of the form"),
        ("ROUTER_METADATA", '{"version": "1"}', "JSON of the form"),
        ("RECIPE_FINGERPRINT", "abc", "64 hexadecimal digits"),
        ("RESULT_FILENAME", "a/b", "a file name, not a path"),
        ("IS_MULTINODE", "yes", "'true', 'false' or nothing"),
        ("EXP_NAME", "../m", "a part of a file name"),
        ("MODEL", "acme/M\x1b[2J", "without control characters"),
        ("IMAGE", "vllm\udcff", "without control characters"),  # a byte that is not UTF-8
        ("EVAL_LIMIT", "\udcff", "UTF-8"),
        ("DECODE_TP", "10000", "at least 1 and at most 9999"),
        ("ROUTER_METADATA", '{"name": 1}', "JSON of the form"),
        ("ROUTER_METADATA", "[" * 100, "JSON of the form"),
        ("KV_OFFLOAD_BACKEND", "a\nb", "without control characters"),
        ("SCENARIO_SUBDIR", "../x/", "'fixed_seq_len/', which follows"),
    ],
)
def test_a_variable_that_means_nothing_is_named_with_what_is_expected(name: str, value: str, expected: str) -> None:
    message = refused(**{name: value}).message
    assert message.startswith(f"{name} is {value!r}; expected ")
    assert expected in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONC_LIST", "9" * 5000),  # int() of that many digits would raise another error
        ("ROUTER_METADATA", '{"name": ' + "9" * 5000 + "}"),
        ("ROUTER_METADATA", "[" * 100_000),
    ],
)
def test_a_value_of_any_length_is_refused_in_few_words(name: str, value: str) -> None:
    message = refused(**{name: value}).message
    assert message.startswith(f"{name} is '")
    assert f"({len(value)} characters); expected " in message
    assert len(message) < 400


def test_json_may_not_bring_in_what_a_variable_cannot_hold() -> None:
    message = refused(ROUTER_METADATA='{"name": "a\\u0000b"}').message
    assert message == "ROUTER_METADATA is 'a\\x00b'; expected text of one line without control characters"


def test_a_setting_with_a_control_character_is_refused() -> None:
    assert "CONFIG_FILE has a control character" in refused(CONFIG_FILE="a\nb").message


def test_the_name_of_the_results() -> None:
    stem = (
        "m_8k1k_fp4_dynamo-vllm_prefill-tp4-pp1-dcp1-pcp1-ep4-dptrue-nw1_decode-tp8-pp2-dcp1-pcp1-ep1-dpfalse-nw2"
        "_disagg-true_spec-mtp_conc4x16_gb300-nv_0"
    )
    assert result_filename(FIXED, "gb300-nv_0") == stem
    fingerprinted = dataclasses.replace(FIXED, recipe_fingerprint="0123456789abcdef" * 4)
    assert result_filename(fingerprinted, "gb300-nv_0") == f"{stem}_recipe-0123456789abcdef"
    with pytest.raises(ConfigError, match="not usable as a file name"):
        result_filename(dataclasses.replace(FIXED, framework="a/b"), "gb300-nv_0")


def test_a_benchmark_without_a_decode_side_is_no_multi_node_job() -> None:
    aggregated = dataclasses.replace(FIXED, decode=None, source="matrix.yaml (m)")
    for use in (environment_of, lambda benchmark: result_filename(benchmark, "gb300-nv_0")):
        with pytest.raises(ConfigError, match=r"matrix\.yaml \(m\): m_8k1k has no decode side"):
            use(aggregated)


def test_the_job_of_an_environment() -> None:
    environ = {"RUNNER_NAME": "gb300-nv_0_1", "GITHUB_WORKSPACE": "/w", "GITHUB_RUN_ID": "17", "USER": "runner"}
    job = github_job(environ | {"GITHUB_RUN_ATTEMPT": "2"})
    assert (job.prefix, job.workspace, job.run_id, job.attempt, job.user) == (
        "gb300-nv",
        Path("/w"),
        "17",
        "2",
        "runner",
    )
    by_hand = github_job({"RUNNER_NAME": "h100"})
    assert (by_hand.prefix, by_hand.workspace, by_hand.run_id, by_hand.attempt) == ("h100", None, "manual", "0")


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "RUNNER_NAME"),
        ({"RUNNER_NAME": "../x"}, "RUNNER_NAME"),
        ({"RUNNER_NAME": "a", "GITHUB_RUN_ID": "1/2"}, "GITHUB_RUN_ID"),
    ],
)
def test_a_job_without_a_usable_name_is_refused(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        github_job(environ)


@needs_shared
def test_every_recorded_environment_is_the_one_that_its_benchmark_gives() -> None:
    recorded = cases()
    assert len(recorded) >= 65
    of_the_runner = {"GITHUB_RUN_ATTEMPT", "GITHUB_RUN_ID", "RUNNER_NAME", "USER"}
    for case in recorded:
        environ = case["environment"]
        again = environment_of(benchmark_from_environment(environ))
        differ = {name for name in environ.keys() - of_the_runner if again.get(name) != environ[name]}
        # The recording has nothing where the workflow has '0', for agentic jobs.
        assert differ <= ({"ISL", "OSL", "MAX_MODEL_LEN"} if again["IS_AGENTIC"] == "1" else set())
        assert github_job(environ).prefix == case["runner"].partition("_")[0]


@needs_shared
def test_a_recorded_entry_and_its_environment_are_one_benchmark() -> None:
    untold = dict.fromkeys(("kv_p2p_transfer", "kv_offload_backend", "router"))  # the recordings leave these out
    for case in cases():
        entry = benchmark_of(case["entry"], key=None, source="environment", place="case")
        expected = dataclasses.replace(entry, result_filename="RESULT", **untold)
        assert benchmark_from_environment(case["environment"]) == expected, case["id"]


@needs_shared
def test_every_real_multi_node_entry_goes_there_and_back() -> None:
    assert SHARED is not None
    matrix = load_matrix([SHARED / "inferencex" / "configs" / f"{name}-master.yaml" for name in ("nvidia", "amd")])
    for evals, number in (("none", 648), ("only", 410)):
        entries = matrix.entries(Selection(nodes="multi", evals=evals))  # type: ignore[arg-type]
        assert len(entries) == number
        for entry in entries:
            plain = dataclasses.replace(entry.benchmark, key=None, source="environment")
            assert benchmark_from_environment(environment_of(plain)) == plain
