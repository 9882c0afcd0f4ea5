"""Rows of agentic runs, aggregated from AIPerf's records of requests. Pure.

They are equal to those of InferenceX's utils/agentic/aggregation, except for numbers that JSON does not have.
"""

from __future__ import annotations

import bisect
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.benchmark.benchmark import AGENTIC
from launcher.core.errors import ConfigError, ResultError
from launcher.result.row_fields import Row, component, read_variables, refuse_not_finite, shares, without_decode
from launcher.result.server_metrics import number, server_metrics

Record = Mapping[str, Any]

_PERCENTILES = (50, 75, 90, 95)
_LATENCIES = {
    "ttft": "time_to_first_token",
    "e2el": "request_latency",
    "itl": "inter_token_latency",
    "tpot": "inter_token_latency",
    "full_response_itl": "full_response_inter_token_latency",
}
_RECIPROCALS = {"intvty": "itl", "full_response_intvty": "full_response_itl"}
_IN, _OUT = "input_sequence_length", "output_sequence_length"
_LONGEST_CATEGORY = 120
"""Characters of an error's category."""


@dataclass
class Records:
    """The records of successful, measured requests, and the numbers of all others."""

    good: list[Record] = field(default_factory=list)
    total: int = 0
    warmup: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def accounting(self) -> Row:
        """The row's ``request_accounting``; a failed request of the warm-up counts as both."""
        return {
            "records_total": self.total,
            "records_profiled": len(self.good),
            "records_dropped_total": self.total - len(self.good),
            "records_warmup_dropped": self.warmup,
            "records_error_dropped": self.errors.total(),
            "error_categories": dict(self.errors),
        }


def read_records(lines: Iterable[str]) -> Records:
    """The records of ``profile_export.jsonl``.

    Raises ValueError, AttributeError, TypeError or LookupError for a line that is no record of a request.
    """
    records = Records()
    for line in lines:
        if not line.strip():
            continue
        record = json.loads(line)
        records.total += 1
        warmup = record.get("metadata", {}).get("benchmark_phase") not in (None, "profiling")
        records.warmup += warmup
        if error := record.get("error"):
            records.errors[_category(error)] += 1
        elif not warmup:
            records.good.append(record)
    return records


def _category(error: Any) -> str:
    message = error
    if isinstance(error, dict):
        for key in ("type", "error_type", "code", "class", "status"):
            if error.get(key) not in (None, ""):
                return str(error[key])
        message = error.get("message") or error.get("error")
    first = str(message).strip().splitlines()[0] if message else "unknown"
    return (first.split(":", 1)[0] or "unknown")[:_LONGEST_CATEGORY]


def _metric(record: Record, key: str) -> Any:
    metric = record.get("metrics", {}).get(key)
    return metric.get("value") if isinstance(metric, dict) else metric


def whole_numbers(records: Iterable[Record], key: str) -> list[int]:
    """The values of a metric, without those that are no integers."""
    values = []
    for record in records:
        try:
            values.append(int(_metric(record, key)))
        except (TypeError, ValueError, OverflowError):
            continue
    return values


def _seconds(records: Iterable[Record], key: str) -> list[float]:
    values = (number(_metric(record, key)) for record in records)
    return [value / 1000.0 for value in values if value is not None and math.isfinite(value) and value > 0]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of sorted values, interpolated linearly."""
    position = (len(ordered) - 1) * (percent / 100)
    low = int(position)
    if low + 1 >= len(ordered):
        return ordered[low]
    return ordered[low] + (position - low) * (ordered[low + 1] - ordered[low])


def _deviation(values: Sequence[float]) -> float:
    return statistics.pstdev(values) if len(values) > 1 else 0.0


def _distribution(values: Sequence[float]) -> Row:
    """Mean, percentiles and the population's standard deviation; {} without values."""
    if not values:
        return {}
    ordered = sorted(map(float, values))
    percentiles = {f"p{percent}": percentile(ordered, percent) for percent in _PERCENTILES}
    return {"mean": statistics.mean(values), **percentiles, "std": _deviation(values)}


def _reciprocals(times: Sequence[float]) -> Row:
    """The reciprocals of the statistics, so that high percentiles are the slow tail; ``std`` is that of reciprocals."""
    statistics = {key: 1.0 / value for key, value in _distribution(times).items() if key != "std"}
    return {**statistics, "std": _deviation([1.0 / time for time in times])} if times else {}


def _latency(records: Sequence[Record]) -> Row:
    times = {name: _seconds(records, key) for name, key in _LATENCIES.items()}
    per_token = []
    for record in records:
        latency, tokens = number(_metric(record, "request_latency")), number(_metric(record, _OUT))
        if latency is not None and tokens is not None and 0 < latency < math.inf and 0 < tokens < math.inf:
            per_token.append(latency / 1000.0 / tokens)
    distributions = {name: _distribution(values) for name, values in times.items()}
    distributions |= {name: _reciprocals(times[latency_name]) for name, latency_name in _RECIPROCALS.items()}
    return {**distributions, "e2e_norm_intvty": _reciprocals(per_token)}


def _timestamps(records: Iterable[Record], key: str) -> list[int]:
    return [int(record["metadata"][key]) for record in records if record.get("metadata", {}).get(key)]


def _completions(records: Sequence[Record]) -> Row:
    """The distribution of requests that end in a second. The seconds begin at the first end; the last, partial one does
    not count."""
    ends = sorted(nanoseconds / 1e9 for nanoseconds in _timestamps(records, "request_end_ns"))
    if len(ends) < 2 or ends[-1] <= ends[0]:
        return {}
    counts, second = [], ends[0]
    while second + 1.0 <= ends[-1]:
        counts.append(float(bisect.bisect_left(ends, second + 1.0) - bisect.bisect_left(ends, second)))
        second += 1.0
    rates = _distribution(counts) or {"mean": len(ends) / (ends[-1] - ends[0])}
    return {"window_seconds": 1.0, "samples": len(counts), **rates}


def _throughput(records: Sequence[Record], gpus: int) -> Row:
    starts, ends = _timestamps(records, "request_start_ns"), _timestamps(records, "request_end_ns")
    duration = (max(ends) - min(starts)) / 1e9 if starts and ends else 0.0
    if duration <= 0:
        return {}
    tokens = {"input": sum(whole_numbers(records, _IN)), "output": sum(whole_numbers(records, _OUT))}
    tokens["total"] = tokens["input"] + tokens["output"]
    rates = {kind: count / duration for kind, count in tokens.items()}
    return {
        **{kind: {"tokens_per_second": rate} for kind, rate in rates.items()},
        "duration_seconds": duration,
        "per_gpu": shares("agentic_per_gpu", {**rates, "gpus": gpus}) if gpus > 0 else {},
    }


def _theoretical_hit_rate(profile: Mapping[str, Any]) -> float | None:
    metric = profile.get("theoretical_prefix_cache_hit")
    if not isinstance(metric, dict):
        return None
    hits, blocks, average = (number(metric.get(key)) for key in ("sum", "count", "avg"))
    if hits is not None and blocks is not None and blocks > 0:
        return hits / blocks
    percent = str(metric.get("unit", "")).strip() == "%"
    return average / 100.0 if average is not None and percent else average


def _rounded(value: Any) -> Any:
    """The document with floats of 5 decimals; an integral float of at least 1 becomes an int."""
    if isinstance(value, float) and math.isfinite(value):
        rounded = round(value, 5)
        return int(rounded) if abs(rounded) >= 1 and rounded.is_integer() else rounded
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def parallelism(environ: Mapping[str, str]) -> tuple[Row, int]:
    """The parallelism fields of an agentic row, and the number of all GPUs. Raises ConfigError."""
    if not read_variables("agentic", environ)["is_multinode"]:
        row = read_variables("agentic_one_node", environ)
        return row, row["tp"] * row["pp"] * row["pcp_size"]
    table = "agentic_several_nodes"
    row = read_variables(table, environ)
    gpus = {
        side: row[f"{side}_num_workers"] * row[f"{side}_tp"] * row[f"{side}_pp"] * row[f"{side}_pcp_size"]
        for side in ("prefill", "decode")
    }
    if gpus["decode"] <= 0:
        row |= without_decode(table)
    attention = [row[f"{side}_dp_attention"].lower() in ("1", "true", "yes", "on") for side in gpus]
    row |= {f"num_{side}_gpu": count for side, count in gpus.items()}
    row |= {"tp": row["prefill_tp"] + row["decode_tp"], "ep": max(row["prefill_ep"], row["decode_ep"])}
    return row | {"dp_attention": "true" if any(attention) else "false"}, sum(gpus.values())


def _offload(environ: Mapping[str, str]) -> Row:
    target, name = environ.get("KV_OFFLOADING", ""), environ.get("KV_OFFLOAD_BACKEND", "")
    if not target:
        raise ConfigError("not set: KV_OFFLOADING", where="environment")
    try:
        backend = component(environ.get("KV_OFFLOAD_BACKEND_METADATA", ""), version_needed=False)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"KV_OFFLOAD_BACKEND_METADATA: {error}", where="environment") from None
    if target == "none" and (name or backend):
        raise ConfigError("KV_OFFLOAD_BACKEND is set, and KV_OFFLOADING is none", where="environment")
    if target != "none" and (name in ("", "none") or backend is None or backend["name"] != name):
        text = "KV_OFFLOAD_BACKEND and the name in KV_OFFLOAD_BACKEND_METADATA have to be there, and the same"
        raise ConfigError(text, where="environment")
    return {"kv_offloading": target, "kv_offload_backend": backend}


@dataclass(frozen=True)
class Profile:
    """The output of one agentic run: its records, AIPerf's summary, the server's metrics and the texts of server logs;
    and the output lengths that the traces' data set states, if it is available."""

    records: Records
    summary: Mapping[str, Any] = field(default_factory=dict)
    server: Any = None
    logs: Sequence[str] = ()
    expected_outputs: Sequence[int] = ()


def agentic_row(profile: Profile, environ: Mapping[str, str]) -> Row:
    """The row of an agentic run. Raises ConfigError for the variables, ResultError for the profile."""
    row = read_variables("agentic", environ) | _offload(environ)
    fields, gpus = parallelism(environ)
    try:
        row |= fields | _measurements(profile, row["framework"], gpus)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ResultError(f"the profile gives no aggregate: {error!r}"[:400]) from None
    refuse_not_finite(row)
    return dict(_rounded(row))


def _measurements(profile: Profile, framework: str, gpus: int) -> Row:
    good = profile.records.good
    server, warnings = server_metrics(profile.server, framework, profile.logs)
    for name, key in (("prompt_total", _IN), ("generation_total", _OUT)):
        if server["tokens"][name] is None and (counts := whole_numbers(good, key)):
            server["tokens"][name] = sum(counts)
    server["tokens"]["requests_completed"] = len(good)
    row: Row = {
        "scenario_type": AGENTIC,
        "num_requests_total": profile.records.total,
        "num_requests_successful": len(good),
        "request_accounting": profile.records.accounting,
        "request_metrics": {
            "qps": _completions(good),
            "latency": _latency(good),
            "tokens": {
                "input": _distribution(whole_numbers(good, _IN)),
                "output_actual": _distribution(whole_numbers(good, _OUT)),
                "output_expected": _distribution(profile.expected_outputs),
            },
            "throughput": _throughput(good, gpus),
            "cache": {"theoretical_cache_hit_rate": _theoretical_hit_rate(profile.summary)},
        },
        "server_metrics": server,
        "kv_cache_pool_tokens": server["kv_cache"]["gpu_total_tokens"],
    }
    metadata = profile.summary.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("dataset"), dict):
        row["dataset"] = metadata["dataset"]
    return {**row, "warnings": warnings} if warnings else row
