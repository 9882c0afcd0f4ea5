"""Checks of a result's numbers against each other, and against the plan's lengths, GPUs and bounds. Pure.

First results of fixed lengths, then agentic ones, as process_agentic_result.py aggregates them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from launcher.plan.plan import Bounds, Expected
from launcher.result.contradictions import LEAST_MS, Numbers, differ, number_at, order_contradictions

Lists = Mapping[str, Sequence[float]]
"""Lists with a number for each request, by their keys in the document."""

_RATES = {
    "request_throughput": ("completed",),
    "output_throughput": ("total_output_tokens",),
    "total_token_throughput": ("total_input_tokens", "total_output_tokens"),
}
"""The counts whose sum, divided by ``duration``, is each rate (InferenceX 843c6254f, utils/bench_serving)."""

_ROUNDED = 0.002
"""The share of a mean by which rounding may change it or a deviation."""

_E2EL_FACTOR = 2.0
"""The factor by which a mean latency may differ from the one computed from TTFT and TPOT: requests differ in their
lengths, and in published results the two differ by 15 %."""

_MIN_IN_FLIGHT = 0.25
"""A smaller share of the concurrency in flight, computed from the latencies, is doubtful: published results with ten
requests for each unit of concurrency are above 0.6."""

FAILED = ("failed", "num_failed", "failed_requests", "num_failed_requests")
_PERCENTILE = re.compile(r"p\d+(?:\.\d+)?")
_EXACT_FROM = 0.0005
"""Seconds. A longer latency of 5 decimals is exact to 1 %."""

_STATISTIC = re.compile(r"(median|min|max|p(\d{1,2}(?:\.\d{1,3})?))_(\w+)_ms")


def fixed_contradictions(numbers: Numbers, lists: Lists, expected: Expected) -> Iterator[str]:
    """Checks the numbers of a result of fixed lengths."""
    tolerance, duration, completed = expected.limits.tolerance, numbers.get("duration"), numbers["completed"]
    for key in ("duration", "request_throughput", "total_input_tokens", "total_output_tokens"):
        if numbers.get(key, 1) <= 0:
            yield f"{key} is {numbers[key]:g}, and must be above 0"
            return
    for rate, counts in _RATES.items():
        if duration and rate in numbers and all(count in numbers for count in counts):
            computed = sum(numbers[count] for count in counts) / duration
            if differ(numbers[rate], computed, tolerance):
                yield f"{rate} is {numbers[rate]:.6g}, and {' + '.join(counts)} / duration is {computed:.6g}"
    if numbers["output_throughput"] > numbers["total_token_throughput"] * (1 + tolerance):
        output, total = (f"{numbers[key]:.6g}" for key in ("output_throughput", "total_token_throughput"))
        yield f"output_throughput is {output}, more than total_token_throughput, which is {total}"
    yield from _check_counts(numbers, lists, expected.limits)
    yield from _check_latencies(numbers, lists, tolerance)
    if expected.osl:
        yield from _check_mean_latency(numbers)
    for kind, side, planned in (("input", "ISL", expected.isl), ("output", "OSL", expected.osl)):
        tokens, lengths = numbers.get(f"total_{kind}_tokens"), [n for n in lists.get(f"{kind}_lens", ()) if n]
        if tokens is None:
            continue
        if lengths and differ(mean := sum(lengths) / len(lengths), tokens / completed, tolerance):
            computed_tokens = f"the mean of {kind}_lens × completed is {mean * completed:.6g}"
            yield f"total_{kind}_tokens is {tokens:.6g}, and {computed_tokens}"
        low, high = expected.limits.lengths
        if planned and not low * planned <= tokens / completed <= high * planned:
            measured = f"{tokens / completed:.0f} {kind} tokens a request (total_{kind}_tokens / completed)"
            bounds = f"{low * planned:.0f} to {high * planned:.0f}"
            yield f"{measured}, where {side} is {planned} in the plan: expected {bounds}"


def _check_counts(numbers: Numbers, lists: Lists, bounds: Bounds) -> Iterator[str]:
    """Checks the numbers of requests that were sent, completed and failed."""
    completed, sent = numbers["completed"], numbers.get("num_prompts")
    if completed != int(completed):
        yield f"completed is {completed:g}, not a whole number"
    if sent is not None and completed > sent:
        yield f"completed is {completed:g}, more than num_prompts, which is {sent:g}"
        return
    for key in FAILED:
        if numbers.get(key, 0) < 0:
            yield f"{key} is {numbers[key]:g}, below 0"
    failed = max(
        *(numbers.get(key, 0) for key in FAILED),
        sum(lists.get("errors", ())),
        0 if sent is None else sent - completed,
    )
    total = sent or completed + failed
    if failed > bounds.failed * total:
        share = f"{failed / total:.1%}, where at most {bounds.failed:.4g} may"
        yield f"{failed:g} of {total:g} requests failed (completed is {completed:g}): {share}"
    lengths = lists.get("output_lens", ())
    if len(lengths) >= completed and (answered := sum(map(bool, lengths))) < completed * (1 - bounds.failed):
        yield f"completed is {completed:g}, and {answered} of output_lens are not 0"


def _check_latencies(numbers: Numbers, lists: Lists, tolerance: float) -> Iterator[str]:
    """Checks that latencies are not negative, percentiles ascend, and the first token is not later than the last."""
    ordered: dict[str, list[tuple[float, str]]] = {}
    for key, value in numbers.items():
        if key.endswith("_ms") and value < -LEAST_MS:
            yield f"{key} is {value:g}, below 0"
        if match := _STATISTIC.fullmatch(key):
            rank = {"min": 0.0, "median": 50.0, "max": 100.0}.get(match[1])
            ordered.setdefault(match[3], []).append((float(match[2]) if rank is None else rank, key))
    for metric, keys in ordered.items():
        yield from order_contradictions({key: numbers[key] for _, key in sorted(keys)})
        yield from _check_median_and_mean(numbers, metric, dict(reversed(keys)), tolerance)
    for name in ("mean", "median"):
        for metric in ("ttft", "e2el"):
            if (value := numbers.get(f"{name}_{metric}_ms", 1.0)) <= 0:
                yield f"{name}_{metric}_ms is {value:g}, and must be above 0"
        ttft, e2el = numbers.get(f"{name}_ttft_ms"), numbers.get(f"{name}_e2el_ms")
        if e2el is not None and e2el > numbers.get("duration", math.inf) * 1000 * _E2EL_FACTOR:
            yield f"{name}_e2el_ms is {e2el:.6g}, and duration is {numbers['duration']:.6g} s"
        if ttft is not None and e2el is not None and ttft > e2el * (1 + tolerance):
            yield f"{name}_ttft_ms is {ttft:.6g}, more than {name}_e2el_ms, which is {e2el:.6g}"
    for keys in ordered.values():
        yield from _check_spread(numbers, keys, tolerance)
    times, mean = [n for n in lists.get("ttfts", ()) if n], numbers.get("mean_ttft_ms")
    if mean is None or not times or len(times) < numbers["completed"]:
        return
    if differ(computed := sum(times) / len(times) * 1000, mean, tolerance):
        yield f"mean_ttft_ms is {mean:.6g}, and the mean of ttfts is {computed:.6g} ms"


def _check_median_and_mean(numbers: Numbers, metric: str, keys: Mapping[float, str], tolerance: float) -> Iterator[str]:
    """Checks that both names of a median have one value, and that the mean is between minimum and maximum.

    ``keys`` maps the ranks of the metric's statistics to their keys.
    """
    median, p50 = f"median_{metric}_ms", f"p50_{metric}_ms"
    if median in numbers and p50 in numbers and differ(numbers[median], numbers[p50], tolerance):
        yield f"{median} is {numbers[median]:.6g}, and {p50} is {numbers[p50]:.6g}"
    mean = numbers.get(f"mean_{metric}_ms")
    for rank, sign, word in ((0.0, 1, "less"), (100.0, -1, "more")):
        if mean is not None and rank in keys and sign * (mean - numbers[keys[rank]]) < -_ROUNDED * abs(mean) - LEAST_MS:
            yield f"mean_{metric}_ms is {mean:.6g}, {word} than {keys[rank]}, which is {numbers[keys[rank]]:.6g}"


def _check_spread(numbers: Numbers, keys: Sequence[tuple[float, str]], tolerance: float) -> Iterator[str]:
    """Checks that no quantile is farther from the mean than the standard deviation allows (Cantelli's inequality)."""
    metric = keys[0][1].partition("_")[2]
    mean, deviation = (numbers.get(f"{name}_{metric}") for name in ("mean", "std"))
    if mean is None or deviation is None or mean <= 0:
        return
    for rank, key in keys:
        value, share = numbers[key], rank / 100
        if not 0 < share < 1 or value <= 0:  # a latency of about zero is clock noise (`LEAST_MS`)
            continue
        farthest = deviation * math.sqrt(share / (1 - share) if value > mean else (1 - share) / share)
        if abs(value - mean) > farthest * (1 + tolerance) + _ROUNDED * mean:
            distribution = f"mean_{metric} is {mean:.6g} with a deviation (std) of {deviation:.6g}"
            yield f"{key} is {value:.6g}, and {distribution}: it is at most {farthest:.3g} from the mean"


def _check_mean_latency(numbers: Numbers) -> Iterator[str]:
    """Checks the mean latency of a request against the one computed from TTFT and TPOT, where lengths are fixed."""
    keys = ("mean_e2el_ms", "mean_ttft_ms", "mean_tpot_ms", "total_output_tokens")
    e2el, ttft, tpot, tokens = (numbers.get(key) for key in keys)
    if e2el is None or ttft is None or tpot is None or tokens is None:
        return
    computed = ttft + tpot * (tokens / numbers["completed"] - 1)
    if not e2el / _E2EL_FACTOR <= computed <= e2el * _E2EL_FACTOR:
        formula = "mean_ttft_ms + mean_tpot_ms × (output tokens a request - 1)"
        yield f"mean_e2el_ms is {e2el:.6g}, and {formula} is {computed:.6g}"


def concurrency_doubts(numbers: Numbers, *, at_full_rate: bool) -> Iterator[str]:
    """Compares the requests in flight, computed from their mean latency (Little's law), with the concurrency.

    ``at_full_rate``: the client sent requests as fast as the concurrency allows.
    """
    mean, duration, concurrency = numbers.get("mean_e2el_ms"), numbers.get("duration"), numbers["max_concurrency"]
    if (sent := numbers.get("num_prompts", concurrency)) < concurrency:
        yield f"num_prompts is {sent:g}, and max_concurrency {concurrency:g}: so many never ran at once"
    if not mean or not duration:
        return
    in_flight = mean / 1000 * numbers["completed"] / duration
    if in_flight > concurrency * 1.05 or (at_full_rate and in_flight < concurrency * _MIN_IN_FLIGHT):
        counted = f"mean_e2el_ms × completed / duration is {in_flight:.3g} requests at once"
        yield f"{counted}, and max_concurrency {concurrency:g}"


def agentic_contradictions(document: Mapping[str, object], expected: Expected) -> Iterator[str]:
    """Checks the numbers of an agentic result, which must be finite."""
    tolerance = expected.limits.tolerance
    completed = number_at(document, "num_requests_successful") or 0.0
    if completed != int(completed):
        yield f"num_requests_successful is {completed:g}, not a whole number"
    scenario = document.get("scenario_type")
    if isinstance(scenario, str) and scenario and "agentic" not in scenario.lower():
        yield f"scenario_type is {scenario[:200]!r}, and the plan's is agentic"
    total = number_at(document, "num_requests_total")
    profiled = number_at(document, "request_accounting", "records_profiled")
    if total is not None and completed > total:
        yield f"num_requests_successful is {completed:g}, more than num_requests_total, which is {total:g}"
    if profiled is not None and profiled != completed:
        yield f"num_requests_successful is {completed:g}, and request_accounting.records_profiled is {profiled:g}"
    yield from _check_records(document, completed, total)
    failed = failed_requests(document)
    if failed > expected.limits.failed * (failed + completed):
        share = f"{failed / (failed + completed):.1%}, where at most {expected.limits.failed:.4g} may"
        yield f"{failed:g} of {failed + completed:g} requests failed (request_accounting): {share}"
    throughput = ("request_metrics", "throughput")
    duration = number_at(document, *throughput, "duration_seconds")
    if duration is not None and duration <= 0:
        yield f"throughput.duration_seconds is {duration:g}, and must be above 0"
    rates = {kind: number_at(document, *throughput, kind, "tokens_per_second") for kind in ("input", "output", "total")}
    for kind, rate in rates.items():
        if rate is not None and rate <= 0:
            yield f"throughput.{kind}.tokens_per_second is {rate:g}, and must be above 0"
    if all(rate is not None for rate in rates.values()):
        both = (rates["input"] or 0) + (rates["output"] or 0)
        if differ(rates["total"] or 0, both, tolerance):
            yield f"throughput.total.tokens_per_second is {rates['total']:.6g}, and input and output are {both:.6g}"
    for kind, name in (("input", "input"), ("output", "output_actual")):
        rate, mean = rates[kind], number_at(document, "request_metrics", "tokens", name, "mean")
        if rate is not None and mean is not None and duration and differ(rate * duration, mean * completed, tolerance):
            tokens = f"tokens.{name}.mean × num_requests_successful is {mean * completed:.6g}"
            yield f"throughput.{kind}.tokens_per_second × duration_seconds is {rate * duration:.6g}, and {tokens}"
    yield from _check_gpus(document, rates, expected, tolerance)
    yield from _check_percentiles(document.get("request_metrics"))
    yield from _check_agentic_latencies(document.get("request_metrics"), tolerance)


def failed_requests(document: Mapping[str, object]) -> float:
    """The number of failed requests of the measurement.

    A failed record of the warm-up counts both as dropped by warm-up and as dropped by error.
    """
    keys = ("records_dropped_total", "records_warmup_dropped", "records_error_dropped")
    dropped, warmup, errors = (number_at(document, "request_accounting", key) for key in keys)
    return errors or 0.0 if dropped is None or warmup is None else dropped - warmup


def _check_gpus(
    document: Mapping[str, object], rates: Mapping[str, float | None], expected: Expected, tolerance: float
) -> Iterator[str]:
    """Checks the GPUs by which throughputs are divided against those of the plan."""
    if expected.gpus is None:
        return
    counted = [number_at(document, f"num_{side}_gpu") for side in ("prefill", "decode")]
    if counted != [None, None] and (counted[0] or 0, counted[1] or 0) != expected.gpus:
        shown, planned = f"{counted[0] or 0:g}+{counted[1] or 0:g}", "{}+{}".format(*expected.gpus)
        yield f"num_prefill_gpu and num_decode_gpu are {shown}, and {planned} in the plan"
    for kind, rate in rates.items():
        each = number_at(document, "request_metrics", "throughput", "per_gpu", f"{kind}_tput_tps")
        if each is not None and each <= 0:
            yield f"per_gpu.{kind}_tput_tps is {each:g}, and must be above 0"
        elif each and rate and differ(rate / each, sum(expected.gpus), tolerance):
            stated = f"per_gpu.{kind}_tput_tps is {each:.6g}, the {kind} by {rate / each:.3g} GPUs"
            yield f"{stated}, and the plan has {sum(expected.gpus)}: {rate / sum(expected.gpus):.6g}"


def _check_records(document: Mapping[str, object], completed: float, total: float | None) -> Iterator[str]:
    """Checks the counts of all records, of those of the measurement, and of those that were dropped."""
    names = ("total", "warmup_dropped", "error_dropped", "dropped_total")
    counts = {name: number_at(document, "request_accounting", f"records_{name}") for name in names}
    for name, count in counts.items():
        if count is not None and count < 0:
            yield f"request_accounting.records_{name} is {count:g}, below 0"
    records, dropped = counts["total"], counts["dropped_total"]
    if records is not None and total is not None and records != total:
        yield f"num_requests_total is {total:g}, and request_accounting.records_total is {records:g}"
    if records is not None and dropped is not None and completed + dropped != records:
        parts = f"num_requests_successful and records_dropped_total are {completed:g} and {dropped:g}"
        yield f"request_accounting.records_total is {records:g}, and {parts}"
    if dropped is not None and dropped < (warmup := counts["warmup_dropped"] or 0):
        less = f"less than records_warmup_dropped, which is {warmup:g}"
        yield f"request_accounting.records_dropped_total is {dropped:g}, {less}"


def _check_percentiles(metrics: object) -> Iterator[str]:
    """Checks that percentiles ascend. Interactivity is the reciprocal of a latency, so its percentiles descend."""
    for group in ("latency", "tokens"):
        by_name = metrics.get(group) if isinstance(metrics, dict) else None
        for name, statistics in by_name.items() if isinstance(by_name, dict) else ():
            if not isinstance(statistics, dict):
                continue
            ranked = sorted((float(key[1:]), key) for key in statistics if _PERCENTILE.fullmatch(str(key)))
            values = {f"{group}.{name}.{key}": statistics[key] for _, key in ranked}
            numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
            least = 0.0 if group == "tokens" else math.ulp(0.0)
            for key, value in numbers.items():
                if not least <= value < math.inf:
                    yield f"{key} is {value:g}, and must be {'finite and ' if value > 0 else ''}above 0"
            descending = name.endswith("intvty")
            yield from order_contradictions(dict(reversed(numbers.items())) if descending else numbers)


def _check_agentic_latencies(metrics: object, tolerance: float) -> Iterator[str]:
    """Checks that the first token is not later than the last, and that interactivity is the reciprocal of ITL, which is
    rounded to 5 decimals."""
    for key in ("mean", "p50", "p75", "p90", "p95"):
        ttft, e2el, intvty, itl = (
            number_at(metrics, "latency", name, key) for name in ("ttft", "e2el", "intvty", "itl")
        )
        if ttft is not None and e2el is not None and ttft > e2el * (1 + tolerance):
            yield f"latency.ttft.{key} is {ttft:.6g}, more than latency.e2el.{key}, which is {e2el:.6g}"
        if intvty and itl and itl > _EXACT_FROM and differ(intvty, 1 / itl, tolerance):
            yield f"latency.intvty.{key} is {intvty:.6g}, and 1 / latency.itl.{key} is {1 / itl:.6g}"
