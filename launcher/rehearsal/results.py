"""The numbers of a rehearsal, and the result files of its job: with the keys of real ones, and a mark.

Every document has ``"rehearsal": true`` and names the model of its numbers. That is a closed queueing network, for
which nothing was measured. N users (the concurrency) each send a request, wait for its last token and send the next. A
request visits prefill and then decode; W_p and W_d are their workers, G_p and G_d the GPUs of one.

- Prefill takes one request at a time per worker: S = I / (RATE * G_p) seconds for I input tokens. W_p workers are taken
  as a queue of demand D = S / W_p and a delay S - D (Seidmann's approximation of several servers).
- Decode batches: with b requests on a worker one step, a token for each, takes t(b) = t0 + t1 * b seconds, where
  t0 = 0.004 + 0.012 / G_d is the reading of the weights and t1 = 0.0004 / G_d the work for one request more.
- Aggregated workers do both on the same GPUs: prefill has half the rate.

Mean values as of Schweitzer's approximation, O output tokens, X throughput in requests a second, a = (N - 1) / N:

    Q_p(X) = X * D / (1 - a * X * D)                  R_p(X) = D * (1 + a * Q_p) + S - D
    b(X)   = max(1, X * O * t0 / (W_d - X * O * t1))  R_d(X) = O * t(b)
    X * (R_p(X) + R_d(X)) = N                         one solution: the left side grows with X

so that X grows with N and saturates at min(1 / D, W_d / (O * t1)), and the time to the first token, R_p + t(b), grows
with N. The constants are round numbers, of no GPU in particular.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.rehearsal.srtctl_contract import MARK, stand_in_data

PREFILL_RATE = 16000.0
"""Input tokens that one GPU prefills in a second."""


@dataclass(frozen=True)
class Topology:
    """Workers and GPUs per worker of both sides; the decode side alone when ``aggregated``."""

    prefill_workers: int
    prefill_gpus: int
    decode_workers: int
    decode_gpus: int
    aggregated: bool = False

    @property
    def prefill_total(self) -> int:
        return self.prefill_workers * self.prefill_gpus

    @property
    def decode_total(self) -> int:
        return self.decode_workers * self.decode_gpus

    @property
    def gpus(self) -> int:
        return self.decode_total if self.aggregated else self.prefill_total + self.decode_total


@dataclass(frozen=True)
class MeanValues:
    """Mean values of one concurrency: requests a second, and seconds."""

    throughput: float
    ttft: float
    tpot: float
    e2el: float


def solve(topology: Topology, *, users: int, input_tokens: float, output_tokens: float) -> MeanValues:
    """The means for ``users`` requests in flight. All arguments must be at least 1."""
    rate = PREFILL_RATE * topology.prefill_gpus / (2 if topology.aggregated else 1)
    service = input_tokens / rate
    demand = service / topology.prefill_workers
    step0 = 0.004 + 0.012 / topology.decode_gpus
    step1 = 0.0004 / topology.decode_gpus
    others = (users - 1) / users

    def at(throughput: float) -> MeanValues:
        queue = throughput * demand / (1 - others * throughput * demand)
        prefill = demand * (1 + others * queue) + service - demand
        left = topology.decode_workers - throughput * output_tokens * step1
        step = step0 + step1 * max(1.0, throughput * output_tokens * step0 / left)
        return MeanValues(throughput, prefill + step, step, prefill + output_tokens * step)

    low, high = 0.0, min(1 / demand, topology.decode_workers / (output_tokens * step1)) * (1 - 1e-12)
    for _ in range(100):
        middle = (low + high) / 2
        if middle * at(middle).e2el < users:
            low = middle
        else:
            high = middle
    return at(low)


SHORTEST = 0.8
"""Lengths are drawn between this share of ISL or OSL and the full length, as sa-bench does (random-range-ratio)."""

LISTED = 64
"""Requests that are listed one by one. sa-bench lists all, sometimes with 20 million inter-token times."""

_SAMPLE = 200


def benchmark_result(
    topology: Topology, concurrency: int, isl: int, osl: int, *, model: str, prompts_each: int = 10, seed: str = ""
) -> dict[str, Any]:
    """One ``results_concurrency_N…json`` of sa-bench (every key of a recorded one, c88ef731).

    ``prompts_each`` times ``concurrency`` requests are sent in all, with up to ``isl`` input and ``osl`` output tokens
    each. The numbers depend only on the arguments; the times of single requests are drawn from ``seed``, with the
    model's mean values.
    """
    share, requests = (1 + SHORTEST) / 2, concurrency * prompts_each
    tokens = {"input_tokens": max(1.0, isl * share), "output_tokens": max(1.0, osl * share)}
    means = solve(topology, users=concurrency, **tokens)
    generator = random.Random(f"{seed}/{isl}/{osl}/{concurrency}")
    size = min(requests, _SAMPLE)
    ttfts, tpots = _around(means.ttft, size, 0.15, generator), _around(means.tpot, size, 0.03, generator)
    outputs, inputs = _lengths(osl, size, generator), _lengths(isl, size, generator)
    e2els = [first + each * (length - 1) for first, each, length in zip(ttfts, tpots, outputs, strict=True)]
    total_input, total_output = (round(requests * statistics.fmean(lengths)) for lengths in (inputs, outputs))
    duration = requests / means.throughput
    listed = min(size, LISTED)
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": "dynamo",
        "model_id": model,
        "tokenizer_id": "/model",
        "best_of": 1,
        "num_prompts": requests,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": concurrency,
        "duration": duration,
        "completed": requests,
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


def _around(mean: float, size: int, sigma: float, generator: random.Random) -> list[float]:
    values = [generator.lognormvariate(0.0, sigma) for _ in range(size)]
    scale = mean / statistics.fmean(values)
    return [value * scale for value in values]


def _lengths(longest: int, size: int, generator: random.Random) -> list[int]:
    return [generator.randint(max(1, round(longest * SHORTEST)), longest) for _ in range(size)]


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"mean_{name}_ms": statistics.fmean(ordered) * 1000,
        f"median_{name}_ms": statistics.median(ordered) * 1000,
        f"std_{name}_ms": statistics.pstdev(ordered) * 1000,
        f"p99_{name}_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000,
    }


def result_text(document: Mapping[str, Any], faults: Mapping[str, str], *, last: bool = True) -> str:
    """The text of a result file, changed by the requested ``faults``; some of them change only the ``last`` file."""
    changes: dict[str, Any] = {"total_output_tokens": 0, "output_throughput": 0.0} if "zero-tokens" in faults else {}
    if last and "nan" in faults:
        changes |= {"mean_ttft_ms": math.nan, "num_requests_successful": math.nan}
    text = json.dumps({**document, **changes})
    return text[: len(text) // 2] if last and "truncated-json" in faults else text


def agentic_result(topology: Topology, concurrency: int, *, model: str, seed: str = "") -> dict[str, Any]:
    """One ``<RESULT_FILENAME>_conc<N>.json`` of an agentic benchmark: the keys that are read; times in seconds."""
    plain = benchmark_result(topology, concurrency, 8192, 512, model=model, seed=seed)
    prefill, decode = topology.prefill_total, topology.decode_total
    if topology.aggregated:
        prefill, decode = decode, 0
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
                name: {"mean": plain[f"mean_{name}_ms"] / 1000, "p50": plain[f"median_{name}_ms"] / 1000}
                for name in ("ttft", "tpot", "itl", "e2el")
            },
            "throughput": {
                "duration_seconds": plain["duration"],
                "total": {"tokens_per_second": total},
                "output": {"tokens_per_second": output},
                "per_gpu": {
                    "total_tput_tps": total / (prefill + decode),
                    "output_tput_tps": output / (prefill + decode),
                },
            },
        },
        **MARK,
    }


def eval_documents(environ: Mapping[str, str], concurrencies: Sequence[int], model: str) -> dict[str, Any]:
    """The files of ``eval_results/`` by name: lm-eval's results and samples for each concurrency, and meta_env.json.

    The files of several concurrencies have ``_conc<N>`` in their names, and meta_env.json lists them.
    """
    several = len(concurrencies) > 1
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S.000000")
    files: dict[str, Any] = {}
    for concurrency in concurrencies:
        suffix = f"_conc{concurrency}" if several else ""
        files[f"results_{stamp}{suffix}.json"] = {**stand_in_data().lm_eval, "model_name": model, **MARK}
        files[f"samples_gsm8k_{stamp}{suffix}.jsonl"] = {"doc_id": 0, "exact_match": 1.0, **MARK}
    meta_env = stand_in_data().meta_env
    words = {key: environ.get(variable) or default for key, (variable, default) in meta_env.words.items()}
    numbers = {key: environ.get(variable, "") for key, variable in meta_env.numbers.items()}
    flags = {key: environ.get(variable, "").lower() for key, variable in meta_env.flags.items()}
    lists = {"eval_concs": [*concurrencies], "completed_eval_concs": [*concurrencies], "failed_eval_concs": []}
    files["meta_env.json"] = {
        **words,
        **{key: int(text) if text.isdecimal() else 1 for key, text in numbers.items()},
        **{key: text in ("1", "true", "yes", "on") for key, text in flags.items()},
        "conc": concurrencies[0],
        **(lists if several else {}),
        "model": model,
        **MARK,
    }
    return files
