"""The result files that a rehearsed job leaves: the keys of real ones, numbers of `queueing`, and a mark.

Every document says ``"rehearsal": true`` and which model its numbers come from.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.rehearsal.queueing import NAME, Topology, solve

MARK: Mapping[str, Any] = {"rehearsal": True, "rehearsal_note": f"nothing was measured; numbers from a {NAME}"}

SHORTEST = 0.8
"""Lengths are drawn between this share of ISL and OSL and the whole, as sa-bench does (random-range-ratio)."""

LISTED = 64
"""Requests that are listed one by one; sa-bench lists all, 20 million inter-token times at times."""

_SAMPLE = 200


@dataclass(frozen=True)
class Load:
    """What one measurement sends: ``concurrency`` requests in flight, ``prompts_each`` times as many in all, with up to
    ``isl`` input and ``osl`` output tokens each."""

    concurrency: int
    isl: int
    osl: int
    prompts_each: int = 10

    @property
    def requests(self) -> int:
        return self.concurrency * self.prompts_each


def benchmark_result(topology: Topology, load: Load, *, model: str, seed: str = "") -> dict[str, Any]:
    """One ``results_concurrency_N…json`` of sa-bench (every key of a recorded one, c88ef731).

    The numbers depend on nothing but the arguments; times of single requests scatter around the model's means, drawn
    from ``seed``, and keep them.
    """
    share = (1 + SHORTEST) / 2
    means = solve(
        topology,
        users=load.concurrency,
        input_tokens=max(1.0, load.isl * share),
        output_tokens=max(1.0, load.osl * share),
    )
    draw = random.Random(f"{seed}/{load.isl}/{load.osl}/{load.concurrency}")
    size = min(load.requests, _SAMPLE)
    ttfts, tpots = _around(means.ttft, size, 0.15, draw), _around(means.tpot, size, 0.03, draw)
    outputs, inputs = _lengths(load.osl, size, draw), _lengths(load.isl, size, draw)
    e2els = [first + each * (length - 1) for first, each, length in zip(ttfts, tpots, outputs, strict=True)]
    total_input, total_output = (round(load.requests * statistics.fmean(lengths)) for lengths in (inputs, outputs))
    duration = load.requests / means.throughput
    listed = min(size, LISTED)
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": "dynamo",
        "model_id": model,
        "tokenizer_id": "/model",
        "best_of": 1,
        "num_prompts": load.requests,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": load.concurrency,
        "duration": duration,
        "completed": load.requests,
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": means.throughput,
        "request_goodput": None,
        "output_throughput": total_output / duration,
        "peak_output_tokens_per_s": 1.1 * total_output / duration,
        "total_token_throughput": (total_input + total_output) / duration,
        "input_lens": inputs[:listed],
        "output_lens": outputs[:listed],
        "ttfts": ttfts[:listed],
        "itls": [[] for _ in range(listed)],
        "generated_texts": [""] * listed,
        "errors": [""] * listed,
        **_spread("ttft", ttfts),
        **_spread("tpot", tpots),
        **_spread("itl", tpots),
        **_spread("e2el", e2els),
        "reuse_http_connections": False,
        **MARK,
    }


def _around(mean: float, size: int, sigma: float, draw: random.Random) -> list[float]:
    values = [draw.lognormvariate(0.0, sigma) for _ in range(size)]
    scale = mean / statistics.fmean(values)
    return [value * scale for value in values]


def _lengths(longest: int, size: int, draw: random.Random) -> list[int]:
    return [draw.randint(max(1, round(longest * SHORTEST)), longest) for _ in range(size)]


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"mean_{name}_ms": statistics.fmean(ordered) * 1000,
        f"median_{name}_ms": statistics.median(ordered) * 1000,
        f"std_{name}_ms": statistics.pstdev(ordered) * 1000,
        f"p99_{name}_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000,
    }


def agentic_result(topology: Topology, concurrency: int, *, model: str, seed: str = "") -> dict[str, Any]:
    """One ``<RESULT_FILENAME>_conc<N>.json`` of an agentic benchmark: what consumers read of it; times in seconds."""
    plain = benchmark_result(topology, Load(concurrency, isl=8192, osl=512), model=model, seed=seed)
    prefill, decode = topology.prefill_workers * topology.prefill_gpus, topology.decode_workers * topology.decode_gpus
    prefill, decode = (decode, 0) if topology.aggregated else (prefill, decode)
    total, output = plain["total_token_throughput"], plain["output_throughput"]
    return {
        "conc": concurrency,
        "model": model,
        "num_requests_successful": plain["completed"],
        "num_prefill_gpu": prefill,
        "num_decode_gpu": decode,
        "request_accounting": {"records_error_dropped": 0},
        "request_metrics": {
            "latency": {
                name: {
                    "mean": plain[f"mean_{name}_ms"] / 1000,
                    "p50": plain[f"median_{name}_ms"] / 1000,
                }
                for name in ("ttft", "tpot", "itl", "e2el")
            },
            "throughput": {
                "duration_seconds": plain["duration"],
                "total": {"tokens_per_second": total},
                "output": {"tokens_per_second": output},
                "per_gpu": {
                    "total_tput_tps": total / (prefill + decode),
                    "output_tput_tps": output / (decode or prefill),
                },
            },
        },
        **MARK,
    }


def eval_documents(environ: Mapping[str, str], concurrencies: Sequence[int], model: str) -> dict[str, Any]:
    """The files of ``eval_results/`` by name: lm-eval's results and samples for each concurrency, and meta_env.json.

    One concurrency is named plainly; several are staged with ``_conc<N>``, and meta_env.json lists them.
    """
    several = len(concurrencies) > 1
    task, stamp = "gsm8k", time.strftime("%Y-%m-%dT%H-%M-%S.000000")
    files: dict[str, Any] = {}
    for concurrency in concurrencies:
        suffix = f"_conc{concurrency}" if several else ""
        files[f"results_{stamp}{suffix}.json"] = {
            "results": {
                task: {
                    "alias": task,
                    "exact_match,strict-match": 0.95,
                    "exact_match_stderr,strict-match": 0.006,
                    "exact_match,flexible-extract": 0.95,
                    "exact_match_stderr,flexible-extract": 0.006,
                }
            },
            "configs": {
                task: {
                    "task": task,
                    "metric_list": [{"metric": "exact_match"}],
                    "filter_list": [{"name": "strict-match"}, {"name": "flexible-extract"}],
                }
            },
            "n-samples": {task: {"original": 1319, "effective": 1319}},
            "model_name": model,
            "lm_eval_version": "0.0.0+rehearsal",
            **MARK,
        }
        files[f"samples_{task}_{stamp}{suffix}.jsonl"] = {"doc_id": 0, "exact_match": 1.0, **MARK}
    files["meta_env.json"] = _meta(environ, concurrencies, model, several)
    return files


def _meta(environ: Mapping[str, str], concurrencies: Sequence[int], model: str, several: bool) -> dict[str, Any]:
    def number(name: str) -> int:
        said = environ.get(name, "")
        return int(said) if said.isdecimal() else 1

    def truth(name: str) -> bool:
        return environ.get(name, "").lower() in ("1", "true", "yes", "on")

    sides: dict[str, Any] = {}
    for side in ("PREFILL", "DECODE"):
        key = side.lower()
        sides |= {f"{key}_tp": number(f"{side}_TP"), f"{key}_ep": number(f"{side}_EP")}
        sides |= {f"{key}_pp": 1, f"{key}_dcp_size": 1, f"{key}_pcp_size": 1}
        sides |= {f"{key}_dp_attention": truth(f"{side}_DP_ATTN"), f"{key}_num_workers": number(f"{side}_NUM_WORKERS")}
    lists = {"eval_concs": [*concurrencies], "completed_eval_concs": [*concurrencies], "failed_eval_concs": []}
    return {
        "is_multinode": truth("IS_MULTINODE"),
        "framework": environ.get("FRAMEWORK") or "unknown",
        "precision": environ.get("PRECISION") or "unknown",
        "spec_decoding": environ.get("SPEC_DECODING", ""),
        "recipe_fingerprint": environ.get("RECIPE_FINGERPRINT", ""),
        "tp": sides["prefill_tp"],
        "pp": 1,
        "dcp_size": 1,
        "pcp_size": 1,
        "conc": concurrencies[0],
        **(lists if several else {}),
        "ep": sides["prefill_ep"],
        "dp_attention": sides["prefill_dp_attention"],
        **sides,
        "model": model,
        "infmax_model_prefix": environ.get("MODEL_PREFIX") or "unknown",
        "hw": environ.get("RUNNER_TYPE") or "unknown",
        "isl": environ.get("ISL", "0"),
        "osl": environ.get("OSL", "0"),
        **MARK,
    }
