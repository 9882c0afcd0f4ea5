"""Results that InferenceX's own scripts gave, through scripts/result_case; and what no recorded case shows."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ConfigError, ResultError
from launcher.report.points import Point, identity_of
from launcher.result import aggregates
from launcher.result.agentic_rows import Profile, agentic_row, percentile, read_records
from launcher.result.evaluation_rows import evaluation_rows
from launcher.result.power import KEYS, energy, integrate, time_of, window_of, with_power
from launcher.result.power_package import Package, several_nodes
from launcher.result.power_windows import Checked, MeasuredWindow, check_windows, read_samples, select_window
from launcher.result.row_fields import fixed_row, tables
from launcher.result.server_metrics import number, server_metrics
from tests.report.test_points import benchmark
from tests.shared import SHARED

ROOT = Path(__file__).resolve().parents[2]
CASES = SHARED / "cases-results" if SHARED else Path("absent")
needs_cases = pytest.mark.skipif(not (CASES / "check.py").is_file(), reason="recorded results are not there")


@needs_cases
def test_every_recorded_case_agrees() -> None:
    argv = [sys.executable, str(CASES / "check.py"), "run", sys.executable, str(ROOT / "scripts/result_case")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    agreed, _, total = done.stdout.splitlines()[-1].partition(" cases agree")[0].partition(" of ")
    assert agreed == total and int(total) >= 32
    assert done.stdout.count(": refused") == done.stdout.count("trap") - 1  # the last line's


ENVIRONMENT = {
    "RUNNER_TYPE": "b200", "FRAMEWORK": "vllm", "PRECISION": "fp8", "SPEC_DECODING": "none", "ISL": "8192",
    "OSL": "1024", "DISAGG": "false", "MODEL_PREFIX": "m", "IMAGE": "i", "TP": "8", "EP_SIZE": "1",
    "DP_ATTENTION": "false",
}  # fmt: skip
RAW: dict[str, Any] = {
    "model_id": "org/X", "max_concurrency": 4, "total_token_throughput": 800.0, "output_throughput": 80,
    "median_ttft_ms": 250, "median_tpot_ms": "20", "benchmark_start_time_unix": 1000.0,
    "benchmark_end_time_unix": 1010.0, "duration": 10.0, "completed": 5, "total_input_tokens": 100,
    "total_output_tokens": 10,
}  # fmt: skip
SIDES = {
    "IS_MULTINODE": "True", "DISAGG": "true", "PREFILL_GPUS": "4", "DECODE_GPUS": "8", "PREFILL_NUM_WORKERS": "1",
    "PREFILL_TP": "4", "PREFILL_EP": "4", "PREFILL_DP_ATTN": "true", "DECODE_NUM_WORKERS": "1", "DECODE_TP": "8",
    "DECODE_EP": "8", "DECODE_DP_ATTN": "true",
}  # fmt: skip


def test_a_row_has_the_types_that_readers_rely_on() -> None:
    row, gpus = fixed_row(RAW, ENVIRONMENT)
    assert gpus == (8, 0)
    assert (row["tput_per_gpu"], row["output_tput_per_gpu"], row["input_tput_per_gpu"]) == (100.0, 10.0, 90.0)
    assert (row["median_ttft"], row["median_tpot"], row["median_intvty"]) == (0.25, 0.02, 50.0)
    assert row["dp_attention"] == "false" and row["disagg"] is False and row["conc"] == 4 and row["pp"] == 1
    assert "router" not in row and "p99_ttft" not in row and "prefill_hw" not in row
    row, gpus = fixed_row(RAW, ENVIRONMENT | SIDES | {"ROUTER_METADATA": '{"name": "r", "version": "1"}'})
    assert gpus == (4, 8) and row["router"] == {"name": "r", "version": "1"}
    shares = (row["tput_per_gpu"], row["output_tput_per_gpu"], row["input_tput_per_gpu"])
    assert shares == (800 / 12, 80 / 8, 720 / 4)


@pytest.mark.parametrize(
    "change",
    [
        {"DISAGG": "TRUE"}, {"TP": "0"}, {"TP": "x"}, {"TP": None}, {"PP_SIZE": "0"}, {"PP_SIZE": ""}, {"ISL": ""},
        {"ROUTER_METADATA": "{}"}, {"ROUTER_METADATA": '{"name": "r"}'},
        {"ROUTER_METADATA": '{"name": "", "version": "1"}'},
        {**SIDES, "PREFILL_GPUS": "0"}, {**SIDES, "DECODE_GPUS": None}, {**SIDES, "PREFILL_HARDWARE": "h"},
        {**SIDES, "DECODE_PCP_SIZE": "-1"},
    ],
)  # fmt: skip
def test_variables_that_give_no_row_are_refused(change: dict[str, str | None]) -> None:
    environ = {key: value for key, value in {**ENVIRONMENT, **change}.items() if value is not None}
    with pytest.raises((ConfigError, ResultError)):
        fixed_row(RAW, environ)


def test_all_missing_variables_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="RUNNER_TYPE, IMAGE, MODEL_PREFIX"):
        fixed_row(RAW, {})


@pytest.mark.parametrize(
    "change",
    [
        {"median_tpot_ms": 0}, {"std_tpot_ms": 0.0}, {"max_concurrency": None}, {"model_id": math.nan},
        {"total_token_throughput": math.nan}, {"p99_ttft_ms": math.inf}, {"output_throughput": "x"}, {"items": [1]},
        {"median_ttft_ms": None}, {"total_token_throughput": 10**400},
    ],
)  # fmt: skip
def test_results_that_give_no_row_are_refused_and_nothing_is_written(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**RAW, **change}))
    with pytest.raises(ResultError):
        aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"a": }', "\ufeff{}", '{"model_id": "\ud800"'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8", errors="replace")
    for stem in ("r", "absent"):
        with pytest.raises(ResultError):
            aggregates.aggregate_fixed(tmp_path, stem, ENVIRONMENT)


def test_long_lists_and_what_no_aggregate_has_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**RAW, "itls": [0.1] * 50_000, "request_rate": math.inf}))
    whole = aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT)
    (tmp_path / "r.json").write_text(json.dumps({**RAW, "itls": [0.1] * 50_000}))
    assert (
        aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT)
        == whole
        == fixed_row(RAW, ENVIRONMENT)[0]
        | {
            "power_metric_schema_version": 2,
            "power_valid": 0,
        }
    )
    (tmp_path / "r.json").write_text(json.dumps({**RAW, "all_tpots": [0.1] * 50_000}))
    with pytest.raises(ResultError):
        aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT)


def test_files_of_several_nodes_count_by_the_gpus_in_their_names(tmp_path: Path) -> None:
    for name in (
        "b_x_gpus_12_ctx_4_gen_8",
        "b_y_gpus_3",
        "b_z_gpus_8_ctx__gen_8",
        "b_note",
        "b_gpus_9_gpus_5",
        "c_gpus_1",
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(RAW))
    environ = {key: value for key, value in (ENVIRONMENT | SIDES).items() if "GPUS" not in key}
    rows = aggregates.aggregate_several_nodes(tmp_path, "b", environ)
    assert [(row["num_prefill_gpu"], row["num_decode_gpu"]) for row in rows] == [(5, 0), (4, 8), (3, 0), (8, 0)]
    assert len(list(tmp_path.glob("agg_b_*.json"))) == 4 and not (tmp_path / "agg_c_gpus_1.json").exists()


def test_power_is_required_only_when_somebody_says_so(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(RAW))
    assert aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT)["power_valid"] == 0
    with pytest.raises(ResultError, match="telemetry_file_missing"):
        aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT | {"REQUIRE_POWER": "Yes"})
    assert (tmp_path / "agg_r.json").is_file() and (tmp_path / "power_validation_r.json").is_file()


def samples(tmp_path: Path, *rows: tuple[float, str, str], header: str = "timestamp, index, power.draw [W]") -> Path:
    path = tmp_path / "gpu_metrics.csv"
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


def test_energy_is_the_integral_between_interpolated_ends(tmp_path: Path) -> None:
    assert energy([(0.0, 100.0), (2.0, 300.0), (4.0, 300.0)], 1.0, 3.0) == 250.0 + 300.0
    path = samples(
        tmp_path, *((999.5 + t, gpu, f"{watts} W") for t in range(12) for gpu, watts in (("0", 100), ("1", 50)))
    )
    (tmp_path / "r.json").write_text(json.dumps(RAW))
    row = aggregates.aggregate_fixed(tmp_path, "r", ENVIRONMENT | {"TP": "2"})
    assert (row["total_gpu_energy_j"], row["avg_power_w"], row["joules_per_output_token"]) == (1500.0, 75.0, 150.0)
    assert path.is_file() and row["power_metric_schema_version"] == 2


@pytest.mark.parametrize(
    ("rows", "header", "reason"),
    [
        ([(1000, "0", "1")], "timestamp,index,power", "insufficient_power_samples"),
        ([(1001, "0", "1"), (1011, "0", "1")], "timestamp,index,power", "benchmark_window_not_bracketed"),
        ([(1000, "0", "1"), (1010, "0", "1")], "timestamp,index,power", "sampling_gap_exceeded"),
        ([(1000, "", "1"), (1010, "0", "1")], "timestamp,index,power", "gpu_identity_missing"),
        ([(1000, "0", "N/A")], "timestamp,index,power", "invalid_power_sample"),
        ([("?", "0", "1")], "timestamp,index,power", "invalid_timestamp_sample"),
        ([(10, "0", "1")], "timestamp,index,power", "no_usable_power_samples"),
        ([], "index,power.limit", "timestamp_column_missing,power_column_missing"),
        ([], "timestamp,name,power", "gpu_identity_column_missing"),
    ],
)
def test_telemetry_that_cannot_be_believed(tmp_path: Path, rows: list[Any], header: str, reason: str) -> None:
    found = integrate(samples(tmp_path, *rows, header=header), 1000.0, 1010.0, 2)
    assert set(reason.split(",")) <= set(found.reasons)


def test_times_of_monitors() -> None:
    stamps = ("1780315200", "1780315200000", "2026-06-01T12:00:00+00:00", "2026-06-01 14:00:00+02:00")
    assert {time_of(text) for text in stamps} == {1780315200.0}
    assert time_of("2026/06/01 12:00:00.5") == time_of("2026-06-01 12:00:00.500") != None  # noqa: E711
    assert time_of("") is time_of("noon") is None


def test_a_window_says_what_is_wrong_with_it() -> None:
    assert window_of(RAW)[1] == []
    assert window_of({**RAW, "duration": 11.0})[1] == ["benchmark_duration_mismatch"]
    assert window_of({**RAW, "completed": True, "total_input_tokens": 1.5})[1] == [
        "invalid_successful_query_count", "invalid_input_token_count",
    ]  # fmt: skip
    for change in ({"duration": None}, {"duration": True}, {"duration": math.nan}, {"benchmark_end_time_unix": 1000}):
        assert window_of({**RAW, **change}) == (None, ["invalid_benchmark_window"])


def test_old_power_is_replaced_never_mixed() -> None:
    row = with_power({"hw": "b", "avg_power_w": 1.0, "decode_gpu_energy_j": 2.0, "power_invalid_reasons": []}, {})
    assert row == {"hw": "b", "power_metric_schema_version": 2, "power_valid": 0}
    assert set(KEYS) == {
        key
        for key, field in {**tables()["power"], **tables()["power_prefill"], **tables()["power_decode"]}.items()
        if field.share
    }


PROFILE = [
    {
        "metadata": {"request_start_ns": 10**9 * i, "request_end_ns": 10**9 * (i + 2), "benchmark_phase": "profiling"},
        "metrics": {
            "input_sequence_length": {"value": 100}, "output_sequence_length": 10, "request_latency": {"value": 2000},
            "inter_token_latency": {"value": 10.0 * i}, "time_to_first_token": {"value": None},
        },
    }
    for i in range(1, 5)
]  # fmt: skip


def agentic(*changes: dict[str, Any], **environ: str) -> dict[str, Any]:
    records = [*copy.deepcopy(PROFILE), *changes]
    lines = ["", *(json.dumps(record) for record in records)]
    return agentic_row(Profile(read_records(lines)), {"KV_OFFLOADING": "none", "TP": "2", **environ})


def test_an_agentic_row_leaves_out_what_cannot_be_used() -> None:
    both = {"metadata": {"benchmark_phase": "warmup"}, "error": {"message": "Timeout: late\nmore"}}
    row = agentic(both, {"error": {"code": 503}}, {"metadata": {"benchmark_phase": None}, "metrics": {}})
    assert row["request_accounting"] == {
        "records_total": 7, "records_profiled": 5, "records_dropped_total": 2, "records_warmup_dropped": 1,
        "records_error_dropped": 2, "error_categories": {"Timeout": 1, "503": 1},
    }  # fmt: skip
    latency, throughput = row["request_metrics"]["latency"], row["request_metrics"]["throughput"]
    assert latency["ttft"] == latency["full_response_intvty"] == {} and latency["tpot"] == latency["itl"]
    assert (latency["itl"]["p50"], latency["intvty"]["p50"], latency["e2e_norm_intvty"]["p90"]) == (0.025, 40, 5)
    assert throughput["total"]["tokens_per_second"] == 88 and throughput["per_gpu"]["input_tput_tps"] == 40
    assert row["request_metrics"]["qps"]["samples"] == 3 and row["warnings"] and row["conc"] == 0
    assert percentile([1.0, 2.0], 95) == 1.95 and percentile([7.0], 50) == 7.0


def test_an_agentic_row_of_several_nodes_and_of_nothing() -> None:
    sides = {
        "IS_MULTINODE": "yes",
        "PREFILL_NUM_WORKERS": "2",
        "PREFILL_TP": "4",
        "DECODE_TP": "8",
        "DECODE_DP_ATTN": "1",
    }
    row = agentic(**sides)
    assert (row["tp"], row["num_decode_gpu"], row["dp_attention"]) == (4, 0, "true")
    assert agentic(**sides, DECODE_NUM_WORKERS="1")["tp"] == 12
    empty = agentic_row(Profile(read_records([])), {"KV_OFFLOADING": "none"})
    assert empty["num_requests_successful"] == 0 and empty["request_metrics"]["throughput"] == {}


@pytest.mark.parametrize(
    "environ",
    [
        {"KV_OFFLOADING": ""}, {"KV_OFFLOAD_BACKEND": "x"}, {"KV_OFFLOADING": "dram"}, {"PP_SIZE": "0"}, {"CONC": ""},
        {"KV_OFFLOADING": "dram", "KV_OFFLOAD_BACKEND": "x", "KV_OFFLOAD_BACKEND_METADATA": '{"name": "y"}'},
        {"KV_OFFLOAD_BACKEND_METADATA": '{"name": "y", "z": "1"}'},
    ],
)  # fmt: skip
def test_agentic_variables_that_give_no_row_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        agentic(**environ)


def series(value: float, **labels: str) -> dict[str, Any]:
    return {"labels": labels, "stats": {"total": value, "max": value, "avg": value}}


def test_counters_of_each_engine() -> None:
    def of(metrics: dict[str, list[dict[str, Any]]], framework: str = "", *logs: str) -> dict[str, Any]:
        return server_metrics({"metrics": {name: {"series": s} for name, s in metrics.items()}}, framework, logs)[0]

    queries = {"vllm:prefix_cache_hits": [series(30)], "vllm:prefix_cache_queries": [series(40)]}
    vllm = of({**queries, "vllm:kv_cache_usage_perc": [series(45.0)]}, "vllm", "GPU KV cache size: 1,000 tokens\n" * 2)
    assert (vllm["adapter"], vllm["cache"]["overall_cache_hit_rate"], vllm["kv_cache"]["gpu_usage_pct"]) == (
        "vllm",
        0.75,
        0.45,
    )
    assert vllm["kv_cache"]["gpu_total_tokens"] == 2000
    assert of(queries, "dynamo-sglang")["adapter"] == "dynamo-vllm"
    cached = [series(10, cache_source="device"), series(30, cache_source="host")]
    sglang = of(
        {"sglang:prompt_tokens": [series(100)], "sglang:cached_tokens": cached}, "", "dp_size=4\nmax_total_num_tokens=5"
    )
    assert (sglang["cache"]["cpu_cache_hit_rate"], sglang["cache"]["overall_cache_hit_rate"]) == (0.3, 0.4)
    assert sglang["kv_cache"]["gpu_total_tokens"] == 20
    atom = {"atom_prefix_cache_cached_tokens": [series(1)], "atom:prefix_cache_full_tokens_total": [series(4)]}
    assert of(atom)["cache"]["gpu_cache_hit_rate"] == 0.25
    assert server_metrics({}, "trt", ["GPU KV cache size: 5 tokens"])[0]["kv_cache"]["gpu_total_tokens"] is None
    with pytest.raises(ValueError, match="not known"):
        of({"other:x": [series(1)]})


def evaluation(directory: Path, score: Any, name: str = "results_x.json", **meta: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    task = {"exact_match,strict-match": score, "exact_match_stderr,strict-match": math.nan}
    configs = {"gsm8k": {"filter_list": [{"name": "strict-match"}]}}
    (directory / name).write_text(json.dumps({"lm_eval_version": "1", "results": {"gsm8k": task}, "configs": configs}))
    (directory / "meta_env.json").write_text(json.dumps({"hw": "b", "infmax_model_prefix": "glm5", **meta}))


def test_rows_of_evaluations_have_no_number_that_json_has_not(tmp_path: Path) -> None:
    evaluation(tmp_path / "a", 0.9, conc=4)
    [row] = evaluation_rows(tmp_path)
    assert (row["score"], row["score_name"], row["score_se"], row["hw"], row["conc"]) == (
        0.9,
        "em_strict",
        None,
        "B",
        4,
    )
    evaluation(tmp_path / "b", math.nan)
    with pytest.raises(ResultError, match="em_strict of gsm8k is nan"):
        evaluation_rows(tmp_path)
    assert evaluation_rows(tmp_path / "absent") == []


def test_an_environment_is_never_read_behind_the_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "7")
    with pytest.raises(ConfigError):
        fixed_row(RAW, {"TP": os.environ["TP"]})


def pipe(path: Path) -> None:
    os.mkfifo(path)


def larger_than_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def latin(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff"}')


def deep(path: Path) -> None:
    path.write_text("[" * 200_000)


def stuck(*_: object) -> None:
    pytest.fail("the reader waits for ever")


WINDOW = MeasuredWindow("windows/w.json", "k", 4, "r.json", 0.0, 1.0, 1.0)
BY_LINE = {"profile_export.jsonl", "samples.csv", "gpu_metrics.csv", "traces.jsonl"}


READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("r.json", lambda d: aggregates.aggregate_fixed(d, "r", ENVIRONMENT)),
    ("x.json", lambda d: aggregates.read_document(d / "x.json")),
    ("power-producer-sha.txt", lambda d: aggregates.aggregate_several_nodes(d, "r", {})),
    ("aiperf_artifacts/profile_export.jsonl", lambda d: aggregates.aggregate_agentic(d, "a", {"RESULT_DIR": "."})),
    ("traces.jsonl", lambda d: aggregates.expected_outputs(d, read_records([]))),
    ("meta_env.json", evaluation_rows),
    ("results_x.json", lambda d: [(d / "meta_env.json").write_text("{}"), *evaluation_rows(d)]),
    ("manifest.json", lambda d: several_nodes(Package(d, d, d / "r.json", (1, 1), None), RAW)),
    ("windows/w.json", lambda d: check_windows(d, d, [("k", 4)], [], {})),
    ("r.json", lambda d: select_window(Checked({("k", 4): WINDOW}), RAW, d, "r.json", None)),
    ("samples.csv", lambda d: read_samples(d / "samples.csv")),
    ("gpu_metrics.csv", lambda d: integrate(d / "gpu_metrics.csv", 0.0, 1.0, 1)),
]
"""A file of a job or of a download, and what reads it."""


@pytest.mark.parametrize(
    ("name", "read", "spoil"),
    [
        (name, read, spoil)
        for spoil in (pipe, larger_than_memory, latin, deep)
        for name, read in READERS
        # These are read line by line.
        if spoil is not larger_than_memory or Path(name).name not in BY_LINE
    ],
)
def test_no_file_of_a_job_holds_its_reader_or_ends_it(
    tmp_path: Path, name: str, read: Callable[[Path], Any], spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    spoil(path)
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(300)
    try:
        with contextlib.suppress(ResultError):
            read(tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_number_that_no_float_holds_is_none() -> None:
    row = {**RAW, "duration": 10**400}
    assert window_of(row) == (None, ["invalid_benchmark_window"])
    assert Point(identity_of(benchmark(), 4), {"median_ttft": 10**400}).value("median_ttft") is None
    assert number(10**400) is None
