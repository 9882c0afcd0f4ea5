"""What contradicts a result of fixed lengths by its own numbers, and by the plan's lengths and bounds. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from launcher.plan.plan import Bounds, Expected
from launcher.result.contradictions import LEAST_MS, Numbers, apart, out_of_order

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
_STATISTIC = re.compile(r"(median|min|max|p(\d{1,2}(?:\.\d{1,3})?))_(\w+)_ms")


def of_fixed(numbers: Numbers, lists: Lists, expected: Expected) -> Iterator[str]:
    """What contradicts a result of fixed lengths; ``lists`` are numbers by request, where the document has them."""
    tolerance, duration, completed = expected.limits.tolerance, numbers.get("duration"), numbers["completed"]
    for key in ("duration", "request_throughput", "total_input_tokens", "total_output_tokens"):
        if numbers.get(key, 1) <= 0:
            yield f"{key} is {numbers[key]:g}, and must be above 0"
            return
    for rate, counts in _RATES.items():
        if duration and rate in numbers and all(count in numbers for count in counts):
            computed = sum(numbers[count] for count in counts) / duration
            if apart(numbers[rate], computed, tolerance):
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
        if lengths and apart(mean := sum(lengths) / len(lengths), tokens / completed, tolerance):
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
    if apart(computed := sum(times) / len(times) * 1000, mean, tolerance):
        yield f"mean_ttft_ms is {mean:.6g}, and the mean of ttfts is {computed:.6g} ms"


def _same_rank_and_mean(numbers: Numbers, metric: str, keys: Mapping[float, str], tolerance: float) -> Iterator[str]:
    """A median by two names, and a mean that is not between the least and the most; ``keys`` are by their ranks."""
    median, p50 = f"median_{metric}_ms", f"p50_{metric}_ms"
    if median in numbers and p50 in numbers and apart(numbers[median], numbers[p50], tolerance):
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


def doubts_of_concurrency(numbers: Numbers, *, at_full_rate: bool) -> Iterator[str]:
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
