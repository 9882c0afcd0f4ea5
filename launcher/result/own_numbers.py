"""What contradicts a result by its own numbers, and by the plan's lengths, GPUs and bounds. Pure.

First a result of fixed lengths, then an agentic one, as process_agentic_result.py aggregates it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from launcher.plan.plan import Bounds, Expected
from launcher.result.contradictions import LEAST_MS, Numbers, differ, number_at, out_of_order

Lists = Mapping[str, Sequence[float]]
"""Numbers by request, where a document has them."""

_RATES = {
    "request_throughput": ("completed",),
    "output_throughput": ("total_output_tokens",),
    "total_token_throughput": ("total_input_tokens", "total_output_tokens"),
}
"""What each rate counts in a second of ``duration`` (InferenceX 843c6254f, utils/bench_serving)."""

_ROUNDED = 0.002
"""The share of a mean that rounding may take from it, or from a deviation."""

_WHOLE = 2.0
"""The factor by which a mean latency may differ from that of the first token and those of the others: requests differ
in their lengths, and published ones do by 15 %."""

_BUSY = 0.25
"""The share of the concurrency below which the requests at once, by their latencies, are odd: with ten requests for
each, published ones are above 0.6."""

FAILED = ("failed", "num_failed", "failed_requests", "num_failed_requests")
_PERCENTILE = re.compile(r"p\d+(?:\.\d+)?")
_ROUGH = 0.0005
"""Seconds above which a latency of 5 decimals is exact to 1 %."""

_STATISTIC = re.compile(r"(median|min|max|p(\d{1,2}(?:\.\d{1,3})?))_(\w+)_ms")


def fixed_contradictions(numbers: Numbers, lists: Lists, expected: Expected) -> Iterator[str]:
    """What contradicts a result of fixed lengths; ``lists`` are numbers by request, where the document has them."""
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
    yield from _counts(numbers, lists, expected.limits)
    yield from _latencies(numbers, lists, tolerance)
    if expected.osl:
        yield from _whole_latency(numbers)
    for kind, side, asked in (("input", "ISL", expected.isl), ("output", "OSL", expected.osl)):
        tokens, lengths = numbers.get(f"total_{kind}_tokens"), [n for n in lists.get(f"{kind}_lens", ()) if n]
        if tokens is None:
            continue
        if lengths and differ(mean := sum(lengths) / len(lengths), tokens / completed, tolerance):
            said = f"the mean of {kind}_lens × completed is {mean * completed:.6g}"
            yield f"total_{kind}_tokens is {tokens:.6g}, and {said}"
        low, high = expected.limits.lengths
        if asked and not low * asked <= tokens / completed <= high * asked:
            said = f"{tokens / completed:.0f} {kind} tokens a request (total_{kind}_tokens / completed)"
            yield f"{said}, where {side} is {asked} in the plan: expected {low * asked:.0f} to {high * asked:.0f}"


def _counts(numbers: Numbers, lists: Lists, bounds: Bounds) -> Iterator[str]:
    """How many requests were asked for, completed and failed."""
    completed, asked = numbers["completed"], numbers.get("num_prompts")
    if completed != int(completed):
        yield f"completed is {completed:g}, not a whole number"
    if asked is not None and completed > asked:
        yield f"completed is {completed:g}, more than num_prompts, which is {asked:g}"
        return
    for key in FAILED:
        if numbers.get(key, 0) < 0:
            yield f"{key} is {numbers[key]:g}, below 0"
    failed = max(
        *(numbers.get(key, 0) for key in FAILED),
        sum(lists.get("errors", ())),
        0 if asked is None else asked - completed,
    )
    whole = asked or completed + failed
    if failed > bounds.failed * whole:
        share = f"{failed / whole:.1%}, where at most {bounds.failed:.4g} may"
        yield f"{failed:g} of {whole:g} requests failed (completed is {completed:g}): {share}"
    answers = lists.get("output_lens", ())
    if len(answers) >= completed and (given := sum(map(bool, answers))) < completed * (1 - bounds.failed):
        yield f"completed is {completed:g}, and {given} of output_lens are not 0"


def _latencies(numbers: Numbers, lists: Lists, tolerance: float) -> Iterator[str]:
    """Latencies below zero, percentiles out of order, and a first token that comes after the last."""
    ordered: dict[str, list[tuple[float, str]]] = {}
    for key, value in numbers.items():
        if key.endswith("_ms") and value < -LEAST_MS:
            yield f"{key} is {value:g}, below 0"
        if found := _STATISTIC.fullmatch(key):
            rank = {"min": 0.0, "median": 50.0, "max": 100.0}.get(found[1])
            if found[3]:
                ordered.setdefault(found[3], []).append((float(found[2]) if rank is None else rank, key))
    for metric, keys in ordered.items():
        yield from out_of_order({key: numbers[key] for _, key in sorted(keys)})
        yield from _same_rank_and_mean(numbers, metric, dict(reversed(keys)), tolerance)
    for name in ("mean", "median"):
        for metric in ("ttft", "e2el"):
            if (value := numbers.get(f"{name}_{metric}_ms", 1.0)) <= 0:
                yield f"{name}_{metric}_ms is {value:g}, and must be above 0"
        first, whole = numbers.get(f"{name}_ttft_ms"), numbers.get(f"{name}_e2el_ms")
        if whole is not None and whole > numbers.get("duration", math.inf) * 1000 * _WHOLE:
            yield f"{name}_e2el_ms is {whole:.6g}, and duration is {numbers['duration']:.6g} s"
        if first is not None and whole is not None and first > whole * (1 + tolerance):
            yield f"{name}_ttft_ms is {first:.6g}, more than {name}_e2el_ms, which is {whole:.6g}"
    for keys in ordered.values():
        yield from _spread(numbers, keys, tolerance)
    times, mean = [n for n in lists.get("ttfts", ()) if n], numbers.get("mean_ttft_ms")
    if mean is None or not times or len(times) < numbers["completed"]:
        return
    if differ(computed := sum(times) / len(times) * 1000, mean, tolerance):
        yield f"mean_ttft_ms is {mean:.6g}, and the mean of ttfts is {computed:.6g} ms"


def _same_rank_and_mean(numbers: Numbers, metric: str, keys: Mapping[float, str], tolerance: float) -> Iterator[str]:
    """A median by two names, and a mean that is not between the least and the most; ``keys`` are by their ranks."""
    median, p50 = f"median_{metric}_ms", f"p50_{metric}_ms"
    if median in numbers and p50 in numbers and differ(numbers[median], numbers[p50], tolerance):
        yield f"{median} is {numbers[median]:.6g}, and {p50} is {numbers[p50]:.6g}"
    mean = numbers.get(f"mean_{metric}_ms")
    for rank, sign, word in ((0.0, 1, "less"), (100.0, -1, "more")):
        if mean is not None and rank in keys and sign * (mean - numbers[keys[rank]]) < -_ROUNDED * abs(mean) - LEAST_MS:
            yield f"mean_{metric}_ms is {mean:.6g}, {word} than {keys[rank]}, which is {numbers[keys[rank]]:.6g}"


def _spread(numbers: Numbers, keys: Sequence[tuple[float, str]], tolerance: float) -> Iterator[str]:
    """Quantiles farther from the mean than any numbers of that deviation have them (Cantelli's inequality)."""
    metric = keys[0][1].partition("_")[2]
    mean, deviation = (numbers.get(f"{name}_{metric}") for name in ("mean", "std"))
    if mean is None or deviation is None or mean <= 0:
        return
    for rank, key in keys:
        value, share = numbers[key], rank / 100
        if not 0 < share < 1 or value <= 0:  # what a clock says of nothing (`LEAST_MS`) is no quantile
            continue
        farthest = deviation * math.sqrt(share / (1 - share) if value > mean else (1 - share) / share)
        if abs(value - mean) > farthest * (1 + tolerance) + _ROUNDED * mean:
            said = f"mean_{metric} is {mean:.6g} with a deviation (std) of {deviation:.6g}"
            yield f"{key} is {value:.6g}, and {said}: it is at most {farthest:.3g} from the mean"


def _whole_latency(numbers: Numbers) -> Iterator[str]:
    """The mean latency of a request against its first token's and those of the others, where lengths are fixed."""
    keys = ("mean_e2el_ms", "mean_ttft_ms", "mean_tpot_ms", "total_output_tokens")
    whole, first, each, tokens = (numbers.get(key) for key in keys)
    if whole is None or first is None or each is None or tokens is None:
        return
    computed = first + each * (tokens / numbers["completed"] - 1)
    if not whole / _WHOLE <= computed <= whole * _WHOLE:
        said = "mean_ttft_ms + mean_tpot_ms × (output tokens a request - 1)"
        yield f"mean_e2el_ms is {whole:.6g}, and {said} is {computed:.6g}"


def concurrency_doubts(numbers: Numbers, *, at_full_rate: bool) -> Iterator[str]:
    """Requests that were in flight at once, by their mean latency, against the concurrency (Little's law).

    ``at_full_rate`` says that requests were sent as fast as that allows.
    """
    mean, duration, asked = numbers.get("mean_e2el_ms"), numbers.get("duration"), numbers["max_concurrency"]
    if numbers.get("num_prompts", asked) < asked:
        yield f"num_prompts is {numbers['num_prompts']:g}, and max_concurrency {asked:g}: so many never ran at once"
    if not mean or not duration:
        return
    at_once = mean / 1000 * numbers["completed"] / duration
    if at_once > asked * 1.05 or (at_full_rate and at_once < asked * _BUSY):
        yield f"mean_e2el_ms × completed / duration is {at_once:.3g} requests at once, and max_concurrency {asked:g}"


def agentic_contradictions(document: Mapping[str, object], expected: Expected) -> Iterator[str]:
    """What contradicts an agentic result, as process_agentic_result.py aggregates it. Its numbers are finite."""
    tolerance = expected.limits.tolerance
    completed = number_at(document, "num_requests_successful") or 0.0
    if completed != int(completed):
        yield f"num_requests_successful is {completed:g}, not a whole number"
    scenario = document.get("scenario_type")
    if isinstance(scenario, str) and scenario and "agentic" not in scenario.lower():
        yield f"scenario_type is {scenario[:200]!r}, and the plan's is agentic"
    total, said = (
        number_at(document, "num_requests_total"),
        number_at(document, "request_accounting", "records_profiled"),
    )
    if total is not None and completed > total:
        yield f"num_requests_successful is {completed:g}, more than num_requests_total, which is {total:g}"
    if said is not None and said != completed:
        yield f"num_requests_successful is {completed:g}, and request_accounting.records_profiled is {said:g}"
    yield from _records(document, completed, total)
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
    yield from _gpus_of(document, rates, expected, tolerance)
    yield from _orders(document.get("request_metrics"))
    yield from _agentic_latencies(document.get("request_metrics"), tolerance)


def failed_requests(document: Mapping[str, object]) -> float:
    """The requests of the measurement that failed. A record of the warm-up that failed counts in both other numbers."""
    accounting = ("request_accounting",)
    dropped, warmup = (
        number_at(document, *accounting, f"records_{name}") for name in ("dropped_total", "warmup_dropped")
    )
    if dropped is not None and warmup is not None:
        return dropped - warmup
    return number_at(document, *accounting, "records_error_dropped") or 0.0


def _gpus_of(
    document: Mapping[str, object], rates: Mapping[str, float | None], expected: Expected, tolerance: float
) -> Iterator[str]:
    """The GPUs by which throughputs are divided, against those of the plan."""
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
            said = f"per_gpu.{kind}_tput_tps is {each:.6g}, the {kind} by {rate / each:.3g} GPUs"
            yield f"{said}, and the plan has {sum(expected.gpus)}: {rate / sum(expected.gpus):.6g}"


def _records(document: Mapping[str, object], completed: float, total: float | None) -> Iterator[str]:
    """The records of an agentic run: all, those of the measurement, and those that were dropped."""
    names = ("total", "warmup_dropped", "error_dropped", "dropped_total")
    counts = {name: number_at(document, "request_accounting", f"records_{name}") for name in names}
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


def _agentic_latencies(metrics: object, tolerance: float) -> Iterator[str]:
    """A first token that comes after the last; and interactivity, which is one by the latency between tokens (rounded
    to 5 decimals)."""
    for key in ("mean", "p50", "p75", "p90", "p95"):
        first, whole = (number_at(metrics, "latency", name, key) for name in ("ttft", "e2el"))
        if first is not None and whole is not None and first > whole * (1 + tolerance):
            yield f"latency.ttft.{key} is {first:.6g}, more than latency.e2el.{key}, which is {whole:.6g}"
        said, latency = (number_at(metrics, "latency", name, key) for name in ("intvty", "itl"))
        if said and latency and latency > _ROUGH and differ(said, 1 / latency, tolerance):
            yield f"latency.intvty.{key} is {said:.6g}, and 1 / latency.itl.{key} is {1 / latency:.6g}"
