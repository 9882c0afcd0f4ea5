"""Results as sa-bench and AIPerf's aggregation write them, and a job's directory to put them in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.plan.plan import Expected
from launcher.result.document import UnusableResult
from launcher.result.validate import MeasuredPoint


def fixed(concurrency: int = 4, **changes: Any) -> dict[str, Any]:
    """A result of sa-bench; a change to None removes the key."""
    document: dict[str, Any] = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": "dynamo",
        "model_id": "model",
        "num_prompts": 40,
        "request_rate": "inf",
        "max_concurrency": concurrency,
        "duration": 10.0,
        "completed": 40,
        "total_input_tokens": 5000,
        "total_output_tokens": 4600,
        "request_goodput": None,
        "output_throughput": 460.0,
        "total_token_throughput": 960.0,
        "ttfts": [0.1, 0.2],
        "itls": [[0.01], []],
        "errors": ["", ""],
        "median_ttft_ms": 84.0,
        "p99_ttft_ms": 124.0,
        "mean_tpot_ms": 8.5,
        "median_tpot_ms": 8.25,
        "std_tpot_ms": 0.5,
        "p99_tpot_ms": 9.5,
        "median_itl_ms": 8.0,
        "p99_itl_ms": 12.0,
        "median_e2el_ms": 1100.0,
        "p99_e2el_ms": 1500.0,
    }
    return changed(document, changes)


def fixed_1k1k(concurrency: int, **changes: Any) -> dict[str, Any]:
    """The same of 1024 input and output tokens a request, as they are drawn."""
    tokens = {"total_input_tokens": 36800, "total_output_tokens": 36800}
    return fixed(concurrency, **{**tokens, "output_throughput": 3680.0, "total_token_throughput": 7360.0, **changes})


def agentic(concurrency: int = 8, **changes: Any) -> dict[str, Any]:
    """An agentic result, as process_agentic_result.py aggregates it (seconds)."""
    document: dict[str, Any] = {
        "conc": concurrency,
        "num_requests_total": 120,
        "num_requests_successful": 100,
        "request_accounting": {"records_total": 120, "records_warmup_dropped": 20, "records_error_dropped": 0},
        "num_prefill_gpu": 8,
        "num_decode_gpu": 8,
        "request_metrics": {
            "latency": {"ttft": {"p50": 0.5}, "tpot": {"p50": 0.02}, "itl": {"p50": 0.019}, "e2el": {"p50": 12.0}},
            "throughput": {
                "output": {"tokens_per_second": 900.0},
                "total": {"tokens_per_second": 16000.0},
                "duration_seconds": 3600.0,
                "per_gpu": {"total_tput_tps": 1000.0, "output_tput_tps": 56.25},
            },
        },
    }
    return changed(document, changes)


def evaluation(**changes: Any) -> dict[str, Any]:
    """What lm-eval leaves of gsm8k, whole."""
    document: dict[str, Any] = {
        "lm_eval_version": "0.4.9",
        "model_name": "org/Model-X",
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.95,
                "exact_match_stderr,strict-match": 0.006,
                "exact_match,flexible-extract": 0.956,
                "exact_match_stderr,flexible-extract": 0.0056,
            }
        },
        "configs": {
            "gsm8k": {"task": "gsm8k", "filter_list": [{"name": "strict-match"}, {"name": "flexible-extract"}]}
        },
        "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}},
    }
    return changed(document, changes)


def changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**document, **changes}.items() if value is not None or key not in changes}


def write(path: Path, document: Any) -> Path:
    """Write a document, or text as it is, making the directories above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def age(path: Path, seconds: float) -> Path:
    """Make a file that much older."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
    return path


def read_or_error(read: Callable[..., MeasuredPoint], *arguments: Any) -> MeasuredPoint | UnusableResult:
    """The point of a file, or the error of reading it."""
    try:
        return read(*arguments)
    except UnusableResult as error:
        return error


def make_expected(isl: int | None = None, osl: int | None = None, **more: Any) -> Expected:
    """The expectations of a plan that states little."""
    return Expected(
        **{"concurrencies": (), "filename": "RF", "mode": "fixed", "run_eval": False, **more}, isl=isl, osl=osl
    )
