"""Wrong numbers that must not come out green, and good ones of unusual form that must: one table each.

A row lays results where a job would, collects them, and says the exit code and the words that name the cause.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.plan.plan import Bounds, Expected
from launcher.result.document import UnusableResult
from launcher.result.own_numbers import agentic_contradictions
from launcher.result.validate import MeasuredPoint, read_single_result
from tests.result.documents import age, agentic, evaluation, fixed, read_or_error, write
from tests.result.traps import FOLDER, Lane, lane, metrics, outcome, text_of, whole_agentic
from tests.shared import SHARED, needs_shared

Lay = Callable[[Lane], object]
Trap = tuple[str, str, Lay, str]
"""Kind of job, mode, what is laid, and the words that the reason must have."""

DAY = 86400.0
SAMPLES = {"n-samples": {"gsm8k": {"original": 1319, "effective": 100}}}


def touch(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() + seconds,) * 2)
    return path


def there_before(lane: Lane, path: Path) -> None:
    """It lay there when the job was submitted, seconds ago; no clock could tell."""
    lane.there_before[path.name] = path.stat().st_mtime_ns


def scored(**scores: Any) -> dict[str, Any]:
    return {"results": {"gsm8k": {"alias": "gsm8k", **{k.replace("__", ","): v for k, v in scores.items()}}}}


S, C = "srtctl", "container"
FIXED, AGENTIC, EVAL = "fixed", "agentic", "eval"

TRAPS: dict[str, Trap] = {
    # Against the plan
    "GPUs of another topology": (
        S,
        FIXED,
        lambda j: j.fixed(gpus="2_ctx_1_gen_1"),
        "says 1+1 GPUs, and the plan 4+8: ",
    ),
    "GPUs: the rate is said": (S, FIXED, lambda j: j.fixed(gpus="2_ctx_1_gen_1"), "480.0 tokens/s/GPU for 80.0"),
    "GPUs of an aggregated name": (S, FIXED, lambda j: j.fixed(gpus="12"), "says 12+0 GPUs, and the plan 4+8"),
    "GPUs that contradict each other": (S, FIXED, lambda j: j.fixed(gpus="16_ctx_4_gen_8"), "16 GPUs, and 4+8 of them"),
    "another model": (
        S,
        FIXED,
        lambda j: j.fixed(model_id="meta/Llama-3"),
        "model_id is 'meta/Llama-3', and the plan's",
    ),
    "other lengths": (
        S,
        FIXED,
        lambda j: j.fixed(folder="sa-bench_isl_8192_osl_128"),
        "ISL/OSL 8192/128, expected 128/128",
    ),
    "another tool": (
        S,
        FIXED,
        lambda j: j.fixed(folder="vllm-bench_isl_128_osl_128"),
        "the plan measures with sa-bench",
    ),
    "another concurrency": (S, FIXED, lambda j: j.fixed(max_concurrency=8), "max_concurrency is 8, expected 4"),
    "another row's file": (S, FIXED, lambda j: j.fixed(at=64), "concurrency 4: no result below"),
    "a stranger beside ours": (
        S,
        FIXED,
        lambda j: (j.fixed(), write(j.workspace / f"RF_{FOLDER}_conc64_gpus_8.json", fixed(64))),
        f"RF_{FOLDER}_conc64_gpus_8.json is in the workspace, is no result that this run was asked for",
    ),
    "an earlier run's aggregate beside ours": (
        S,
        FIXED,
        lambda j: (j.fixed(), age(write(j.workspace / "agg_RF_x_conc64.json", {}), 3600)),
        "agg_RF_x_conc64.json is in the workspace",
    ),
    "an agentic stranger": (
        S,
        AGENTIC,
        lambda j: (j.agentic(), write(j.workspace / "RF_conc64.json", agentic(64))),
        "RF_conc64.json is in the workspace",
    ),
    "agentic, another framework": (
        S,
        AGENTIC,
        lambda j: j.agentic(framework="sglang"),
        "framework is 'sglang' in RF_conc4.json, and 'dynamo-vllm' in the plan",
    ),
    "agentic, another precision": (S, AGENTIC, lambda j: j.agentic(precision="fp4"), "precision is 'fp4'"),
    "agentic, another topology": (S, AGENTIC, lambda j: j.agentic(prefill_tp=8), "prefill_tp is 8 in"),
    "agentic, another recipe": (
        S,
        AGENTIC,
        lambda j: (j.expects(row={"recipe_fingerprint": "a" * 64}), j.agentic(recipe_fingerprint="b" * 64)),
        "recipe_fingerprint is 'bbb",
    ),
    "agentic, other offloading": (
        S,
        AGENTIC,
        lambda j: (j.expects(row={"kv_offloading": "dram"}), j.agentic(kv_offloading="none")),
        "kv_offloading is 'none' in RF_conc4.json, and 'dram' in the plan",
    ),
    "agentic, another model": (S, AGENTIC, lambda j: j.agentic(model="org/Other"), "model is 'org/Other'"),
    "agentic, other GPUs": (S, AGENTIC, lambda j: j.agentic(num_prefill_gpu=1), "are 1+8, and 4+8 in the plan"),
    "agentic, another divisor": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(throughput={"per_gpu": {"total_tput_tps": 15150.0}})),
        "the total by 2 GPUs, and the plan has 12",
    ),
    "in a container, another model": (
        C,
        FIXED,
        lambda j: j.only(model_id="/models/other"),
        "model_id is '/models/other'",
    ),
    "in a container, an agentic one": (C, FIXED, lambda j: write(j.workspace / "RF.json", agentic(4)), "is missing"),
    # Time
    "older than the submission": (S, FIXED, lambda j: age(j.fixed(), 3600), "is older than this run: 35"),
    "from the future": (S, FIXED, lambda j: touch(j.fixed(), 600), "is from the future: 6"),
    "measured before": (
        S,
        FIXED,
        lambda j: j.fixed(benchmark_start_time_unix=time.time() - DAY, benchmark_end_time_unix=time.time() - DAY + 10),
        "benchmark_start_time_unix is older than this run",
    ),
    "measured tomorrow": (
        S,
        FIXED,
        lambda j: j.fixed(benchmark_end_time_unix=time.time() + DAY),
        "benchmark_end_time_unix is from the future",
    ),
    "agentic, it lay there": (S, AGENTIC, lambda j: there_before(j, j.agentic()), "lay there before this run's job"),
    "in a container, it lay there": (C, FIXED, lambda j: there_before(j, j.only()), "lay there before this job"),
    "in a container, yesterday's": (C, FIXED, lambda j: age(j.only(), DAY), "older than this job"),
    "in a container, tomorrow's": (C, FIXED, lambda j: touch(j.only(), DAY), "from the future"),
    # Against itself
    "a key twice": (
        S,
        FIXED,
        lambda j: j.fixed(text_of(fixed(4), total_token_throughput="1920.0")),
        "'total_token_throughput' stands in it more than once",
    ),
    "a key twice, further down": (
        S,
        AGENTIC,
        lambda j: write(
            j.workspace / "RF_conc4.json",
            json.dumps(whole_agentic()).replace('"duration_seconds"', '"duration_seconds": 1, "duration_seconds"'),
        ),
        "'duration_seconds' stands in it more than once",
    ),
    "NaN": (S, FIXED, lambda j: j.fixed(mean_itl_ms=math.nan), "mean_itl_ms is NaN"),
    "Infinity": (S, FIXED, lambda j: j.fixed(duration=math.inf), "duration is Infinity"),
    "a rate twice too high": (
        S,
        FIXED,
        lambda j: j.fixed(output_throughput=920.0),
        "output_throughput is 920, and total_output_tokens / duration is 460",
    ),
    "a total too high": (
        S,
        FIXED,
        lambda j: j.fixed(total_token_throughput=1100.0),
        "total_input_tokens + total_output_tokens / duration is 960",
    ),
    "requests a second": (S, FIXED, lambda j: j.fixed(request_throughput=43.2), "completed / duration is 4"),
    "more output than in all": (
        S,
        FIXED,
        lambda j: j.fixed(duration=None, total_token_throughput=400.0),
        "output_throughput is 460, more than total_token_throughput",
    ),
    "no duration": (S, FIXED, lambda j: j.fixed(duration=0), "duration is 0, and must be above 0"),
    "no input": (S, FIXED, lambda j: j.fixed(total_input_tokens=0), "total_input_tokens is 0"),
    "percentiles out of order": (
        S,
        FIXED,
        lambda j: j.fixed(p99_ttft_ms=50.0),
        "p99_ttft_ms is 50, less than median_ttft_ms, which is 84",
    ),
    "the 99.9th before the 99th": (
        S,
        FIXED,
        lambda j: j.fixed(**{"p99.9_itl_ms": 9.0}),
        "p99.9_itl_ms is 9, less than",
    ),
    "a latency below zero": (S, FIXED, lambda j: j.fixed(median_ttft_ms=-5.0), "median_ttft_ms is -5, below 0"),
    "a latency of nothing": (S, FIXED, lambda j: j.fixed(mean_e2el_ms=0.0), "mean_e2el_ms is 0, and must be"),
    "the first token after the last": (
        S,
        FIXED,
        lambda j: j.fixed(median_ttft_ms=2000.0, p99_ttft_ms=2100.0),
        "median_ttft_ms is 2000, more than median_e2el_ms, which is 1100",
    ),
    "a mean of other times": (
        S,
        FIXED,
        lambda j: j.fixed(mean_ttft_ms=500.0, ttfts=[0.1] * 40),
        "mean_ttft_ms is 500, and the mean of ttfts is 100 ms",
    ),
    "more completed than asked": (
        S,
        FIXED,
        lambda j: j.fixed(num_prompts=30),
        "completed is 40, more than num_prompts, which is 30",
    ),
    "half a request": (S, FIXED, lambda j: j.fixed(completed=39.5), "completed is 39.5, not a whole number"),
    "tokens that were not sent": (
        S,
        FIXED,
        lambda j: j.fixed(output_lens=[80] * 40),
        "total_output_tokens is 4600, and the mean of output_lens × completed is 3200",
    ),
    "short answers": (
        S,
        FIXED,
        lambda j: j.fixed(total_output_tokens=400, output_throughput=40.0, total_token_throughput=540.0),
        "10 output tokens a request (total_output_tokens / completed), where OSL is 128 in the plan: expected 64 to",
    ),
    "long prompts": (
        S,
        FIXED,
        lambda j: j.fixed(total_input_tokens=40000, total_token_throughput=4460.0),
        "1000 input tokens a request (total_input_tokens / completed), where ISL is 128",
    ),
    "another duration by the clock": (
        S,
        FIXED,
        lambda j: j.fixed(benchmark_start_time_unix=time.time() - 40, benchmark_end_time_unix=time.time()),
        "duration is 10, and 40 s lie between benchmark_start_time_unix and benchmark_end_time_unix",
    ),
    "agentic, a total of other parts": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(throughput={"input": {"tokens_per_second": 15000.0}})),
        "throughput.total.tokens_per_second is 30300, and input and output are 15300",
    ),
    "agentic, tokens of other requests": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(tokens={"output_actual": {"mean": 600.0}})),
        "tokens.output_actual.mean × num_requests_successful is 60000",
    ),
    "agentic, percentiles out of order": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(latency={"ttft": {"p50": 0.5, "p90": 0.4}})),
        "latency.ttft.p90 is 0.4, less than latency.ttft.p50, which is 0.5",
    ),
    "agentic, interactivity that rises": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(latency={"intvty": {"p50": 30.0, "p90": 50.0}})),
        "latency.intvty.p50 is 30, less than latency.intvty.p90",
    ),
    "agentic, other records": (S, AGENTIC, lambda j: j.agentic(num_requests_successful=90), "records_profiled is 100"),
    "agentic, more than there were": (
        S,
        AGENTIC,
        lambda j: j.agentic(num_requests_total=50),
        "more than num_requests_tot",
    ),
    "agentic, no time": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(throughput={"duration_seconds": 0})),
        "throughput.duration_seconds is 0",
    ),
    "a duration that is text": (S, FIXED, lambda j: j.fixed(duration="10"), "duration is '10', not a number"),
    "no input tokens said": (
        S,
        FIXED,
        lambda j: j.fixed(json.dumps({**fixed(4), "total_input_tokens": None})),
        "total_input_tokens is None, not a number",
    ),
    "no file": (C, FIXED, lambda j: j.workspace.joinpath("RF.json").mkdir(), "no RF.json in"),
    "a pipe": (
        S,
        AGENTIC,
        lambda j: os.mkfifo(j.workspace / "RF_conc4.json"),
        "it is a pipe, a socket or a device, and no file",
    ),
    "agentic, another's behind a link": (
        S,
        AGENTIC,
        lambda j: (j.workspace / "RF_conc4.json").symlink_to(write(j.root / "theirs.json", whole_agentic())),
        "theirs.json, out of it",
    ),
    "agentic, interactivity of other times": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(latency={"intvty": {"p50": 500.0}})),
        "latency.intvty.p50 is 500, and 1 / latency.itl.p50 is 50",
    ),
    "agentic, nothing a GPU": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(throughput={"per_gpu": {"total_tput_tps": 0}})),
        "per_gpu.total_tput_tps is 0",
    ),
    "a quantile too far away": (
        S,
        FIXED,
        lambda j: j.fixed(p99_tpot_ms=19.0),
        "p99_tpot_ms is 19, and mean_tpot_ms is 8.5 with a deviation (std) of 0.5: it is at most 4.97 from the mean",
    ),
    "a median too far away": (
        S,
        FIXED,
        lambda j: j.fixed(median_tpot_ms=4.0),
        "median_tpot_ms is 4, and mean_tpot_ms is",
    ),
    "a latency of other parts": (
        S,
        FIXED,
        lambda j: j.fixed(mean_e2el_ms=9000.0, mean_ttft_ms=85.0),
        "mean_e2el_ms is 9000, and mean_ttft_ms + mean_tpot_ms × (output tokens a request - 1) is 1054",
    ),
    "agentic, records that do not add up": (
        S,
        AGENTIC,
        lambda j: j.agentic(
            num_requests_total=150,
            request_accounting={"records_total": 150, "records_dropped_total": 20, "records_warmup_dropped": 20},
        ),
        "request_accounting.records_total is 150, and num_requests_successful and records_dropped_total are 100 and 20",
    ),
    # Against itself, second look
    "a latency longer than the benchmark": (
        S,
        FIXED,
        lambda j: j.fixed(duration=0.01, output_throughput=460000.0, total_token_throughput=960000.0),
        "median_e2el_ms is 1100, and duration is 0.01 s",
    ),
    "a median by two names": (
        S,
        FIXED,
        lambda j: j.fixed(p50_ttft_ms=104.0),
        "median_ttft_ms is 84, and p50_ttft_ms is 104",
    ),
    "a mean above the most": (
        S,
        FIXED,
        lambda j: j.fixed(mean_itl_ms=500.0, max_itl_ms=100.0),
        "mean_itl_ms is 500, more than max_itl_ms, which is 100",
    ),
    "a mean below the least": (
        S,
        FIXED,
        lambda j: j.fixed(mean_itl_ms=1.0, min_itl_ms=5.0),
        "mean_itl_ms is 1, less than min_itl_ms, which is 5",
    ),
    "answers of nothing": (
        S,
        FIXED,
        lambda j: j.fixed(output_lens=[115] * 4 + [0] * 36),
        "completed is 40, and 4 of output_lens are not 0",
    ),
    "failed as text": (S, FIXED, lambda j: j.fixed(failed="30"), "failed is '30', not a number"),
    "failed as a list": (S, FIXED, lambda j: j.fixed(num_failed=[1] * 30), "not a number"),
    "fewer than none failed": (S, FIXED, lambda j: j.fixed(failed=-3), "failed is -3, below 0"),
    "errors that are objects": (S, FIXED, lambda j: j.fixed(errors=[{"code": 500}] * 40), "40 of 40 requests failed"),
    "a number beyond all": (
        S,
        FIXED,
        lambda j: j.fixed(json.dumps(fixed(4)).replace('"mean_tpot_ms": 8.5', '"mean_tpot_ms": 1e999')),
        "Number out of range",
    ),
    "text that is none": (
        S,
        FIXED,
        lambda j: j.fixed().write_bytes(json.dumps(fixed(4, note="X")).encode().replace(b'"X"', b'"\xff\xfe"')),
        "it is not UTF-8",
    ),
    "two documents": (S, FIXED, lambda j: j.fixed(json.dumps(fixed(4)) * 2), "not JSON"),
    "another precision by the document": (
        S,
        FIXED,
        lambda j: j.fixed(precision="fp4"),
        "precision is 'fp4' in results_concurrency_4_gpus_12_ctx_4_gen_8.json, and 'fp8' in the plan",
    ),
    "another model is served": (
        S,
        FIXED,
        lambda j: j.fixed(served_model_name="meta/Llama-3"),
        "served_model_name is 'meta/Llama-3'",
    ),
    "a mock's by another name": (S, FIXED, lambda j: j.fixed(backend="dynamo.Mocker"), "backend is 'dynamo.Mocker'"),
    "a mark by another name": (S, FIXED, lambda j: j.fixed(is_mock="yes"), "is_mock is 'yes'"),
    "a dry run": (S, AGENTIC, lambda j: j.agentic(Dry_Run=True), "Dry_Run is True"),
    "a directory beside ours": (
        S,
        FIXED,
        lambda j: (j.fixed(), (j.workspace / f"RF_{FOLDER}_conc9_gpus_12.json").mkdir()),
        "conc9_gpus_12.json is in the workspace",
    ),
    "a link to nothing beside ours": (
        S,
        FIXED,
        lambda j: (j.fixed(), (j.workspace / f"RF_{FOLDER}_conc9_gpus_12.json").symlink_to("/nowhere")),
        "conc9_gpus_12.json is in the workspace",
    ),
    "agentic, the GPUs of decode alone": (
        S,
        AGENTIC,
        lambda j: j.agentic(num_prefill_gpu=None),
        "num_prefill_gpu and num_decode_gpu are 0+8, and 4+8 in the plan",
    ),
    "agentic, the first token after the last": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(latency={"ttft": {"p50": 50.0}})),
        "latency.ttft.p50 is 50, more than latency.e2el.p50, which is 12",
    ),
    "agentic, half a request": (
        S,
        AGENTIC,
        lambda j: j.agentic(num_requests_successful=99.5),
        "num_requests_successful is 99.5, not a whole number",
    ),
    "agentic, another scenario": (
        S,
        AGENTIC,
        lambda j: j.agentic(scenario_type="fixed-seq-len"),
        "scenario_type is 'fixed-seq-len', and the plan's is agentic",
    ),
    "samples that were not scored": (
        S,
        EVAL,
        lambda j: j.evaluated(results={"gsm8k": {"exact_match,x": 0.95, "sample_len": 100}}),
        "n-samples.gsm8k.effective is 1319, and results.gsm8k.sample_len is 100",
    ),
    "more samples than there are": (
        S,
        EVAL,
        lambda j: j.evaluated(**{"n-samples": {"gsm8k": {"original": 1319, "effective": 5000}}}),
        "effective is 5000, more than original, which is 1319",
    ),
    "of another model by its arguments": (
        S,
        EVAL,
        lambda j: j.evaluated(model_name=None, config={"model_args": "base_url=http://x,model=org/Other"}),
        "model of config.model_args is 'org/Other'",
    ),
    # Mostly failed
    "one of 160": (S, FIXED, lambda j: j.fixed(num_prompts=800), "760 of 800 requests failed (completed is 40): 95.0%"),
    "a little too many": (S, FIXED, lambda j: j.fixed(num_prompts=43), "3 of 43 requests failed"),
    "failed is counted": (S, FIXED, lambda j: j.fixed(failed=3), "3 of 40 requests failed"),
    "errors are counted": (S, FIXED, lambda j: j.fixed(errors=["timeout"] * 3 + [""] * 37), "3 of 40 requests failed"),
    "agentic, above a tenth": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_accounting={"records_error_dropped": 12, "records_profiled": 100}),
        "12 of 112 requests failed (request_accounting): 10.7%, where at most 0.1 may",
    ),
    "in a container, failed": (C, FIXED, lambda j: j.only(failed=39), "39 of 40 requests failed"),
    # Rehearsal or mock
    "a rehearsal's": (
        S,
        FIXED,
        lambda j: j.fixed(rehearsal=True),
        "rehearsal is True: it is a rehearsal's or a mock's",
    ),
    "a mock's": (S, FIXED, lambda j: j.fixed(backend="mocker"), "backend is 'mocker'"),
    "an agentic rehearsal's": (S, AGENTIC, lambda j: j.agentic(rehearsal=True), "rehearsal is True"),
    "a recipe that starts no engine": (
        S,
        FIXED,
        lambda j: (j.expects(engine="mocker"), j.fixed()),
        "backend.type of the recipe is mocker: no engine was measured",
    ),
    "in a container, a rehearsal's": (C, FIXED, lambda j: j.only(rehearsal=True), "rehearsal is True"),
    "an evaluation's rehearsal": (S, EVAL, lambda j: j.evaluated(rehearsal=True), "rehearsal is True"),
    # Evaluations
    "empty": (S, EVAL, lambda j: j.evaluated(results={}), "it is empty: results names no task"),
    "nothing": (S, EVAL, lambda j: write(j.evals / "results_1.json", {}), "it is empty"),
    "of another model": (S, EVAL, lambda j: j.evaluated(model_name="org/Other"), "model_name is 'org/Other'"),
    "of another task": (
        S,
        EVAL,
        lambda j: j.evaluated(results={"mmlu": {"acc,none": 0.5}}, configs=None),
        "its task is mmlu, and the workflow evaluates gpqa_diamond_cot_n_shot, gsm8k, swebench_lite",
    ),
    "partial": (S, EVAL, lambda j: j.evaluated(**SAMPLES), "gsm8k is partial: 100 of 1319 samples (n-samples)"),
    "limited": (
        S,
        EVAL,
        lambda j: j.evaluated(config={"limit": 50.0}),
        "config.limit is 50.0, and the plan has no EVAL_",
    ),
    "of no sample": (
        S,
        EVAL,
        lambda j: j.evaluated(**{"n-samples": {"gsm8k": {"original": 0, "effective": 0}}}),
        "gsm8k is empty: n-samples.gsm8k.effective is 0",
    ),
    "a task that is not there": (
        S,
        EVAL,
        lambda j: j.evaluated(configs={"gsm8k": {}, "gpqa_diamond_cot_n_shot": {}}),
        "it is partial: gpqa_diamond_cot_n_shot was configured",
    ),
    "without a score": (S, EVAL, lambda j: j.evaluated(**scored(exact_match__x="N/A")), "gsm8k has no score"),
    "a score that is none": (
        S,
        EVAL,
        lambda j: j.evaluated(**scored(exact_match__x=math.nan)),
        "gsm8k exact_match,x is nan, and no score",
    ),
    "a score in percent": (S, EVAL, lambda j: j.evaluated(**scored(exact_match__x=95.1)), "a share is from 0 to 1"),
    "a concurrency that is not there": (
        S,
        EVAL,
        lambda j: (j.expects(evaluated=(8, 64)), j.evaluated("results_a_conc8.json")),
        "it is partial: concurrency 64 was asked for",
    ),
    "a concurrency that failed": (
        S,
        EVAL,
        lambda j: (j.evaluated(), j.meta(eval_concs=[4, 8], completed_eval_concs=[4], failed_eval_concs=[8])),
        "failed_eval_concs is [8] in meta_env.json",
    ),
    "another row's": (
        S,
        EVAL,
        lambda j: (j.evaluated(), j.meta(precision="fp4")),
        "precision is 'fp4' in meta_env.json",
    ),
    "other lengths of the row": (
        S,
        EVAL,
        lambda j: (j.expects(row={"isl": 8192}), j.evaluated(), j.meta()),
        "isl is '128' in meta_env.json, and 8192 in the plan",
    ),
    "an old evaluation": (S, EVAL, lambda j: age(j.evaluated(), DAY), "older than this run"),
    "a score twice": (
        S,
        EVAL,
        lambda j: write(j.evals / "results_1.json", text_of(evaluation(), results="{}")),
        "'results' stands in it more than once",
    ),
    "another evaluation beside ours": (
        S,
        EVAL,
        lambda j: (j.evaluated(), write(j.workspace / "results_0.json", evaluation())),
        "results_0.json is in the workspace",
    ),
    "in a container, another beside ours": (
        C,
        EVAL,
        lambda j: (j.evaluated(), j.meta(), age(j.evaluated("results_0.json"), DAY)),
        "results_0.json is older than this job",
    ),
    "in a container, partial": (C, EVAL, lambda j: j.evaluated(**SAMPLES), "gsm8k is partial"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_wrong_number_is_refused(tmp_path: Path, name: str) -> None:
    kind, mode, lay, words = TRAPS[name]
    code, message = outcome(lane(tmp_path, kind, mode), lay)
    assert code == 7 and words in message, f"exit {code}: {message}"


@pytest.mark.parametrize("name", [name for name, trap in TRAPS.items() if "beside" not in name])
def test_what_is_refused_is_not_published(tmp_path: Path, name: str) -> None:
    kind, mode, lay, _ = TRAPS[name]
    refused = lane(tmp_path, kind, mode)
    lay(refused)
    before = {path.name for path in refused.workspace.iterdir()}
    published = {*refused.collect().published, *(path.name for path in refused.workspace.iterdir())} - before
    assert not [n for n in published if "conc4" in n or n == "RF.json" or n.startswith("results_1")], published


def test_there_are_enough_traps() -> None:
    assert len(TRAPS) >= 40


NAN_ERRORS = {"exact_match__x": 0.95, "exact_match_stderr__x": math.nan}
GROUP = {
    "results": {"gsm8k": {"acc,none": 0.9}, "all": {"alias": "all", " ": " "}},
    "group_subtasks": {"all": ["gsm8k"]},
}

GOOD: dict[str, tuple[str, str, Lay, str]] = {
    # Kind of job, mode, what is laid, and what may be said (a doubt).
    "as it comes": (S, FIXED, lambda j: j.fixed(), ""),
    "one in twenty failed": (S, FIXED, lambda j: j.fixed(completed=38, failed=2), "38 of 40 requests completed"),
    "one in ten of an agentic run": (
        S,
        AGENTIC,
        lambda j: j.agentic(
            num_requests_successful=90,
            request_accounting={"records_error_dropped": 10, "records_profiled": 90},
            request_metrics=metrics(tokens={"input": {}, "output_actual": {}}),
        ),
        "10 requests failed",
    ),
    "failures of the warm-up": (
        S,
        AGENTIC,
        lambda j: j.agentic(
            request_accounting={
                "records_profiled": 100,
                "records_error_dropped": 20,
                "records_warmup_dropped": 20,
                "records_dropped_total": 20,
            }
        ),
        "",
    ),
    "a bound of the row's own": (
        S,
        FIXED,
        lambda j: (j.expects(bounds=Bounds(failed=0.2)), j.fixed(num_prompts=50)),
        "40 of 50 requests completed",
    ),
    "a node whose clock is behind": (S, FIXED, lambda j: touch(j.fixed(), -100), ""),
    "a node whose clock is ahead": (S, FIXED, lambda j: touch(j.fixed(), 30), ""),
    "in a container, a clock behind": (C, FIXED, lambda j: touch(j.only(), -100), ""),
    "in a container, a clock ahead": (C, FIXED, lambda j: touch(j.only(), 30), ""),
    "a clock that was read twice": (
        S,
        FIXED,
        lambda j: j.fixed(median_tpot_ms=-3.6e-6, p99_tpot_ms=-1e-6),
        "is negative",
    ),
    "a mean below the median": (S, FIXED, lambda j: j.fixed(mean_ttft_ms=40.0, ttfts=None), ""),
    "no percentiles": (S, FIXED, lambda j: j.fixed(p99_ttft_ms=None, p99_tpot_ms=None, p99_itl_ms=None), ""),
    "the least": (
        S,
        FIXED,
        lambda j: j.fixed(
            json.dumps(
                {
                    "max_concurrency": 4,
                    "model_id": "org/Model-X",
                    "completed": 40,
                    "output_throughput": 460,
                    "total_token_throughput": 960,
                }
            )
        ),
        "",
    ),
    "the model by its directory": (S, FIXED, lambda j: j.fixed(model_id="/raid/models/Model_X-FP8/"), ""),
    "the model by its alias": (S, FIXED, lambda j: j.fixed(model_id="MX"), ""),
    "the model where it is mounted": (S, FIXED, lambda j: j.fixed(model_id="/model"), ""),
    "the model in a hub's cache": (
        S,
        FIXED,
        lambda j: j.fixed(model_id="/hf/hub/models--org--Model-X/snapshots/0123456789abcdef0123456789abcdef01234567"),
        "",
    ),
    "keys of newer clients": (
        S,
        FIXED,
        lambda j: j.fixed(**{"request_goodput:": 3, "steady": {"a": [1]}, "x": "é"}),
        "",
    ),
    "keys escaped, spaces, another order": (
        S,
        FIXED,
        lambda j: j.fixed(
            "\n " + json.dumps(dict(reversed(fixed(4).items())), indent=3).replace('"duration"', '"dur\\u0061tion"')
        ),
        "",
    ),
    "lengths of the requests that failed too": (
        S,
        FIXED,
        lambda j: j.fixed(
            num_prompts=41, output_lens=[115] * 40 + [0], input_lens=[125] * 41, errors=[""] * 40 + ["x"]
        ),
        "40 of 41 requests completed",
    ),
    "by a clock of its own": (
        S,
        FIXED,
        lambda j: j.fixed(benchmark_start_time_unix=time.time() - 55, benchmark_end_time_unix=time.time() - 45.2),
        "",
    ),
    "the aggregates of the workflow's own step": (
        S,
        FIXED,
        lambda j: (j.fixed(), write(j.workspace / f"agg_RF_{FOLDER}_conc4_gpus_12_ctx_4_gen_8.json", {})),
        "",
    ),
    "a file that the workflow passes over": (
        S,
        FIXED,
        lambda j: (j.fixed(), write(j.workspace / "RF_notes.json", {})),
        "",
    ),
    "an aggregated topology": (S, FIXED, lambda j: (j.expects(gpus=(8, 0)), j.fixed(gpus="8")), ""),
    "a plan of an earlier version": (
        S,
        FIXED,
        lambda j: (setattr(j, "expected", Expected((4,), "RF", "fixed", False, 128, 128)), j.fixed(gpus="8")),
        "",
    ),
    "a rehearsal on stand-ins": (
        S,
        FIXED,
        lambda j: (
            j.expects(rehearsal=True),
            j.fixed(rehearsal=True, duration=1000.0, output_throughput=4.6, total_token_throughput=9.6),
        ),
        "",
    ),
    "agentic, the least": (
        S,
        AGENTIC,
        lambda j: write(j.workspace / "RF_conc4.json", {"num_requests_successful": 1}),
        "",
    ),
    "agentic, a row that counts other GPUs than it holds": (
        S,
        AGENTIC,
        lambda j: (j.expects(held=48), j.agentic()),
        "the row counts 12 GPUs, by which tokens/s/GPU is divided, and the recipe's workers have 48",
    ),
    "agentic, what could not be measured": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics={**metrics(), "qps": {}, "tokens": {"output_expected": {}}}, router=None),
        "",
    ),
    "a concurrency with a point": (S, FIXED, lambda j: j.fixed(max_concurrency=4.0, completed=40.0), ""),
    "half a character in a text": (
        S,
        FIXED,
        lambda j: j.fixed(json.dumps(fixed(4))[:-1] + ', "generated_texts": ["\\ud800"]}'),
        "",
    ),
    "a clock of the container's zone": (
        S,
        FIXED,
        lambda j: j.fixed(date=time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() + 8 * 3600))),
        "",
    ),
    "a date of another form": (S, FIXED, lambda j: j.fixed(date="20261399-990000"), ""),
    "a date of last month": (
        S,
        FIXED,
        lambda j: j.fixed(date="20261001-183233"),
        "date (20261001-183233) is older than",
    ),
    "a duration longer than the run": (
        S,
        FIXED,
        lambda j: j.fixed(duration=1000.0, output_throughput=4.6, total_token_throughput=9.6),
        "it was measured for 1000 s, and this run's job was submitted 60 s ago",
    ),
    "latencies of another concurrency": (
        S,
        FIXED,
        lambda j: j.fixed(mean_e2el_ms=1600.0),
        "mean_e2el_ms × completed / duration is 6.4 requests at once, and max_concurrency 4",
    ),
    "fewer requests than at once": (
        S,
        FIXED,
        lambda j: j.fixed(
            **{"num_prompts": 3, "completed": 3, "total_input_tokens": 375, "total_output_tokens": 345},
            **{"output_throughput": 34.5, "total_token_throughput": 72.0},
        ),
        "num_prompts is 3, and max_concurrency 4: so many never ran at once",
    ),
    "another tokenizer": (S, FIXED, lambda j: j.fixed(tokenizer_id="meta/Llama-3"), "tokenizer_id is 'meta/Llama-3'"),
    "a rate of its own": (S, FIXED, lambda j: j.fixed(request_rate=0.1, mean_e2el_ms=90.0, burstiness=1.0), ""),
    "a row that the document repeats": (S, FIXED, lambda j: j.fixed(precision="FP8", prefill_tp=4), ""),
    "agentic, more statistics": (
        S,
        AGENTIC,
        lambda j: j.agentic(request_metrics=metrics(latency={"ttft": {"p50": 0.5, "p99.9": 3, "std": 0.1, "n": 9}})),
        "",
    ),
    "evaluated twice": (
        S,
        EVAL,
        lambda j: (j.meta(), j.evaluated("results_1.json"), j.evaluated("results_2.json")),
        "gsm8k stands in results_1.json and results_2.json: the workflow counts the newest",
    ),
    "two tasks in two files": (
        S,
        EVAL,
        lambda j: (
            j.meta(),
            j.evaluated("results_1.json"),
            j.evaluated("results_2.json", results={"gpqa_diamond_cot_n_shot": {"acc,none": 0.5}}, configs=None),
        ),
        "",
    ),
    "the model by its arguments": (
        S,
        EVAL,
        lambda j: (j.meta(), j.evaluated(model_name=None, config={"model_args": "model=org/Model-X,num_concurrent=4"})),
        "",
    ),
    "a standard error of NaN": (S, EVAL, lambda j: (j.meta(), j.evaluated(**scored(**NAN_ERRORS))), ""),
    "a standard error of text": (
        S,
        EVAL,
        lambda j: (j.meta(), j.evaluated(**scored(exact_match__x=0.95, exact_match_stderr__x="N/A"))),
        "",
    ),
    "an evaluation of groups": (S, EVAL, lambda j: (j.meta(), j.evaluated(**GROUP)), ""),
    "an evaluation that was to be small": (
        S,
        EVAL,
        lambda j: (j.meta(), j.expects(part=True), j.evaluated(**SAMPLES, config={"limit": 100})),
        "",
    ),
    "a task that the runner file names": (
        S,
        EVAL,
        lambda j: (
            j.meta(),
            j.expects(tasks=("mmlu",)),
            j.evaluated(results={"mmlu": {"acc,none": 0.5}}, configs=None),
        ),
        "",
    ),
    "a low score": (
        S,
        EVAL,
        lambda j: (j.meta(), j.evaluated(**scored(exact_match__x=0.61))),
        "gsm8k exact_match,x is 0.61 in results_1.json, below 0.9 (default.gsm8k in utils/evals/thresholds.yaml)",
    ),
    "a threshold of the workspace's": (
        S,
        EVAL,
        lambda j: (
            write(j.workspace / "utils/evals/thresholds.yaml", "models: {minimaxm3: {gsm8k: 0.99}}\n"),
            j.meta(),
            j.evaluated(),
        ),
        "below 0.99 (models.minimaxm3.gsm8k",
    ),
    "several concurrencies": (
        S,
        EVAL,
        lambda j: (
            j.expects(evaluated=(4, 8)),
            j.meta(eval_concs=[4, 8], completed_eval_concs=[4, 8], failed_eval_concs=[]),
            j.evaluated("results_a_conc4.json"),
            j.evaluated("results_a_conc8.json"),
        ),
        "",
    ),
    "in a container, an evaluation": (C, EVAL, lambda j: (j.meta(), j.evaluated()), ""),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_one_of_unusual_form_passes(tmp_path: Path, name: str) -> None:
    kind, mode, lay, words = GOOD[name]
    code, message = outcome(lane(tmp_path, kind, mode), lay)
    assert code == 0 and words in message and (words or not message), f"exit {code}: {message}"


# What upstream's own scripts were recorded with


def recorded(operation: str) -> list[Any]:
    """The recorded cases of an operation, when they lie beside the project."""
    if SHARED is None:
        return []
    cases = [json.loads(path.read_text()) for path in sorted((SHARED / "cases-results").glob("*.json"))]
    return [pytest.param(case, id=case["name"]) for case in cases if case["operation"] == operation]


REFUSED = {
    "fixed-missing-key": "total_token_throughput is missing",
    "fixed-nan": "is NaN",
    "fixed-tpot-zero": "mean_tpot_ms is 0",
    "fixed-zero-throughput": "no request was completed",
    "power-zero-tokens": "no output token was generated",
}


@needs_shared
@pytest.mark.parametrize("case", recorded("process-result") or [None])
def test_recorded_results_of_fixed_lengths(tmp_path: Path, case: Any) -> None:
    """They were drawn with 1k1k, whatever ISL says beside them: held against 8k1k each is refused."""
    body = case["files"]["r.json"]
    path = write(tmp_path / "r.json", body)
    text = path.read_text()
    concurrency = int(text.partition('"max_concurrency": ')[2].partition(",")[0])
    for isl in (1024, 8192):
        expected = Expected((concurrency,), "r", "fixed", False, isl, 1024, models=("org/Model-X",), rehearsal=False)
        point = read_or_error(read_single_result, path, concurrency, expected, 8)
        refused = REFUSED.get(case["name"]) or ("where ISL is 8192" if isl == 8192 else None)
        if refused is None:
            assert isinstance(point, MeasuredPoint), point
        else:
            assert isinstance(point, UnusableResult) and refused in str(point)


@needs_shared
@pytest.mark.parametrize(
    "case",
    [case for case in recorded("process-agentic") if "r_conc16.json" in case.values[0]["expect"]["files"]] or [None],
)
def test_recorded_agentic_results(tmp_path: Path, case: Any) -> None:
    path = write(tmp_path / "r_conc16.json", copy.deepcopy(case["expect"]["files"]["r_conc16.json"]))
    disagg = case["environment"]["DISAGG"] == "true"
    row = {"framework": case["environment"]["FRAMEWORK"], "precision": "fp4", "is_multinode": disagg}
    expected = Expected((16,), "r", "agentic", False, None, None, gpus=(8, 8) if disagg else (8, 0), row=row)
    point = read_or_error(read_single_result, path, 16, expected, 8)
    refused = {"agentic-none": "no request succeeded", "agentic-errors": "2 of 7 requests failed"}.get(case["name"])
    if refused is None:
        assert isinstance(point, MeasuredPoint), point
    else:
        assert isinstance(point, UnusableResult) and refused in str(point)


@needs_shared
@pytest.mark.parametrize("case", recorded("validate-scores") or [None])
def test_recorded_evaluations(tmp_path: Path, case: Any) -> None:
    """What upstream's check fails is said; what is missing is refused."""
    job = lane(tmp_path, C, EVAL)
    for name, body in case["files"].items():
        write(job.workspace / name, body)
    meta = json.loads((job.workspace / "meta_env.json").read_text())
    evaluated = (8, 64) if case.get("arguments") else ()
    job.expects(row={"infmax_model_prefix": meta["infmax_model_prefix"]}, evaluated=evaluated)
    code, message = outcome(job, lambda _: None)
    assert (code, "concurrency 64" in message) == ((7, True) if evaluated else (0, False))
    assert ("strict-match is 0.93" in message and "below 0.94" in message) == (case["name"] == "scores-fail-model")


def test_a_gate_that_is_met_exactly_passes() -> None:
    document = whole_agentic(num_requests_successful=90, request_metrics=None)
    document["request_accounting"] = {"records_error_dropped": 10}
    expected = Expected((4,), "RF", "agentic", False, None, None)
    assert list(agentic_contradictions(document, expected)) == []
    document["request_accounting"]["records_error_dropped"] = 11
    assert len(list(agentic_contradictions(document, expected))) == 1


def test_judging_twenty_concurrencies_costs_little_cpu(tmp_path: Path) -> None:
    """Counted in CPU time of this thread, so that a busy machine does not matter; the file's size is a real one's."""
    requests = 640
    document = fixed(
        4,
        num_prompts=requests,
        completed=requests,
        total_input_tokens=requests * 125,
        total_output_tokens=requests * 115,
        output_throughput=requests * 11.5,
        total_token_throughput=requests * 24.0,
        input_lens=[125] * requests,
        output_lens=[115] * requests,
        ttfts=[0.1] * requests,
        errors=[""] * requests,
        itls=[[0.0081234567890123] * 115] * requests,
    )
    path = write(tmp_path / "RF.json", document)
    expected = Expected((4,), "RF", "fixed", False, 128, 128, gpus=(12, 0), models=("m",), rehearsal=False)
    began = time.thread_time()
    for _ in range(20):
        assert isinstance(read_single_result(path, 4, expected, 12), MeasuredPoint)
    whole = time.thread_time() - began
    began = time.thread_time()
    for _ in range(20):
        msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    reading = time.thread_time() - began
    print(f"20 results of {path.stat().st_size / 1e6:.1f} MB: {whole:.3f} s, of which reading {reading:.3f} s")
    assert whole - reading <= max(0.1, whole / 2)
