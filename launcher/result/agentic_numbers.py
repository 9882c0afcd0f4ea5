"""What contradicts an agentic result, as process_agentic_result.py aggregates it: its own numbers, the plan's. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from launcher.plan.plan import Expected
from launcher.result.contradictions import apart, at, out_of_order

_PERCENTILE = re.compile(r"p\d+(?:\.\d+)?")

_ROUGH = 0.0005
"""Seconds above which a latency of 5 decimals is exact to 1 %."""


def of_agentic(document: Mapping[str, object], expected: Expected) -> Iterator[str]:
    """What contradicts an agentic result, as process_agentic_result.py aggregates it. Its numbers are finite."""
    tolerance = expected.limits.tolerance
    completed = at(document, "num_requests_successful") or 0.0
    if completed != int(completed):
        yield f"num_requests_successful is {completed:g}, not a whole number"
    scenario = document.get("scenario_type")
    if isinstance(scenario, str) and scenario and "agentic" not in scenario.lower():
        yield f"scenario_type is {scenario[:200]!r}, and the plan's is agentic"
    total, said = at(document, "num_requests_total"), at(document, "request_accounting", "records_profiled")
    if total is not None and completed > total:
        yield f"num_requests_successful is {completed:g}, more than num_requests_total, which is {total:g}"
    if said is not None and said != completed:
        yield f"num_requests_successful is {completed:g}, and request_accounting.records_profiled is {said:g}"
    yield from _records(document, completed, total)
    failed = failed_of(document)
    if failed > expected.limits.failed * (failed + completed):
        share = f"{failed / (failed + completed):.1%}, where at most {expected.limits.failed:.4g} may"
        yield f"{failed:g} of {failed + completed:g} requests failed (request_accounting): {share}"
    throughput = ("request_metrics", "throughput")
    duration = at(document, *throughput, "duration_seconds")
    if duration is not None and duration <= 0:
        yield f"throughput.duration_seconds is {duration:g}, and must be above 0"
    rates = {kind: at(document, *throughput, kind, "tokens_per_second") for kind in ("input", "output", "total")}
    for kind, rate in rates.items():
        if rate is not None and rate <= 0:
            yield f"throughput.{kind}.tokens_per_second is {rate:g}, and must be above 0"
    if all(rate is not None for rate in rates.values()):
        both = (rates["input"] or 0) + (rates["output"] or 0)
        if apart(rates["total"] or 0, both, tolerance):
            yield f"throughput.total.tokens_per_second is {rates['total']:.6g}, and input and output are {both:.6g}"
    for kind, name in (("input", "input"), ("output", "output_actual")):
        rate, mean = rates[kind], at(document, "request_metrics", "tokens", name, "mean")
        if rate is not None and mean is not None and duration and apart(rate * duration, mean * completed, tolerance):
            tokens = f"tokens.{name}.mean × num_requests_successful is {mean * completed:.6g}"
            yield f"throughput.{kind}.tokens_per_second × duration_seconds is {rate * duration:.6g}, and {tokens}"
    yield from _gpus_of(document, rates, expected, tolerance)
    yield from _orders(document.get("request_metrics"))
    yield from _latencies(document.get("request_metrics"), tolerance)


def failed_of(document: Mapping[str, object]) -> float:
    """The requests of the measurement that failed. A record of the warm-up that failed counts in both other numbers."""
    accounting = ("request_accounting",)
    dropped, warmup = (at(document, *accounting, f"records_{name}") for name in ("dropped_total", "warmup_dropped"))
    if dropped is not None and warmup is not None:
        return dropped - warmup
    return at(document, *accounting, "records_error_dropped") or 0.0


def _gpus_of(
    document: Mapping[str, object], rates: Mapping[str, float | None], expected: Expected, tolerance: float
) -> Iterator[str]:
    """The GPUs by which throughputs are divided, against those of the plan."""
    if expected.gpus is None:
        return
    counted = [at(document, f"num_{side}_gpu") for side in ("prefill", "decode")]
    if counted != [None, None] and (counted[0] or 0, counted[1] or 0) != expected.gpus:
        shown, planned = f"{counted[0] or 0:g}+{counted[1] or 0:g}", "{}+{}".format(*expected.gpus)
        yield f"num_prefill_gpu and num_decode_gpu are {shown}, and {planned} in the plan"
    for kind, rate in rates.items():
        each = at(document, "request_metrics", "throughput", "per_gpu", f"{kind}_tput_tps")
        if each is not None and each <= 0:
            yield f"per_gpu.{kind}_tput_tps is {each:g}, and must be above 0"
        elif each and rate and apart(rate / each, sum(expected.gpus), tolerance):
            said = f"per_gpu.{kind}_tput_tps is {each:.6g}, the {kind} by {rate / each:.3g} GPUs"
            yield f"{said}, and the plan has {sum(expected.gpus)}: {rate / sum(expected.gpus):.6g}"


def _records(document: Mapping[str, object], completed: float, total: float | None) -> Iterator[str]:
    """The records of an agentic run: all, those of the measurement, and those that were dropped."""
    names = ("total", "warmup_dropped", "error_dropped", "dropped_total")
    counts = {name: at(document, "request_accounting", f"records_{name}") for name in names}
    for name, count in counts.items():
        if count is not None and count < 0:
            yield f"request_accounting.records_{name} is {count:g}, below 0"
    records, dropped = counts["total"], counts["dropped_total"]
    if records is not None and total is not None and records != total:
        yield f"num_requests_total is {total:g}, and request_accounting.records_total is {records:g}"
    if records is not None and dropped is not None and completed + dropped != records:
        said = f"num_requests_successful and records_dropped_total are {completed:g} and {dropped:g}"
        yield f"request_accounting.records_total is {records:g}, and {said}"
    if dropped is not None and dropped < (counts["warmup_dropped"] or 0):
        said = f"records_warmup_dropped, which is {counts['warmup_dropped']:g}"
        yield f"request_accounting.records_dropped_total is {dropped:g}, less than {said}"


def _orders(metrics: object) -> Iterator[str]:
    """Percentiles out of order. Interactivity is one by a latency, so that its percentiles fall."""
    for group in ("latency", "tokens"):
        named = metrics.get(group) if isinstance(metrics, dict) else None
        for name, statistics in named.items() if isinstance(named, dict) else ():
            if not isinstance(statistics, dict):
                continue
            ranked = sorted((float(key[1:]), key) for key in statistics if _PERCENTILE.fullmatch(str(key)))
            values = {f"{group}.{name}.{key}": statistics[key] for _, key in ranked}
            numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
            least = 0.0 if group == "tokens" else math.ulp(0.0)
            for key, value in numbers.items():
                if not least <= value < math.inf:
                    yield f"{key} is {value:g}, and must be {'finite and ' if value > 0 else ''}above 0"
            falls = name.endswith("intvty")
            yield from out_of_order(dict(reversed(numbers.items())) if falls else numbers)


def _latencies(metrics: object, tolerance: float) -> Iterator[str]:
    """A first token that comes after the last; and interactivity, which is one by the latency between tokens (rounded
    to 5 decimals)."""
    for key in ("mean", "p50", "p75", "p90", "p95"):
        first, whole = (at(metrics, "latency", name, key) for name in ("ttft", "e2el"))
        if first is not None and whole is not None and first > whole * (1 + tolerance):
            yield f"latency.ttft.{key} is {first:.6g}, more than latency.e2el.{key}, which is {whole:.6g}"
        said, latency = (at(metrics, "latency", name, key) for name in ("intvty", "itl"))
        if said and latency and latency > _ROUGH and apart(said, 1 / latency, tolerance):
            yield f"latency.intvty.{key} is {said:.6g}, and 1 / latency.itl.{key} is {1 / latency:.6g}"
