"""What an engine's own counters say of an agentic run: cache hit rates, KV usage and capacity, tokens. Pure.

Metrics are those of AIPerf's ``server_metrics_export.json``, by engine (InferenceX's agentic/aggregation/backends).
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Nested = dict[str, dict[str, Any]]
Numbers = dict[str, float]

_TOTAL = ("total", "sum", "max", "avg")
_HIGHEST = ("max", "avg", "total")
_AVERAGE = ("avg", "max", "total")
_ABSENT: Mapping[str, Sequence[str]] = {
    "cache": (
        "gpu_cache_hit_rate", "cpu_cache_hit_rate", "external_cache_hit_rate", "overall_cache_hit_rate",
        "prefix_cache_hits", "prefix_cache_queries", "external_prefix_cache_hits", "external_prefix_cache_queries",
        "frontend_cache_hit_rate", "router_kv_hit_rate", "router_shared_cache_hit_rate", "frontend_cached_tokens",
        "frontend_input_tokens",
    ),
    "kv_cache": ("gpu_usage_pct", "gpu_total_tokens", "cpu_usage_pct", "cpu_used_tokens", "cpu_total_tokens"),
    "kv_offload": tuple(
        f"{what}_{way}{unit}"
        for what, unit in (("bytes", ""), ("time", ""), ("bandwidth", "_bytes_per_second"))
        for way in ("gpu_to_cpu", "cpu_to_gpu")
    ),
    "tokens": ("prompt_total", "generation_total", "requests_completed"),
}  # fmt: skip


def number(value: Any) -> float | None:
    """A number, or a text that is one."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def rate(part: float | None, whole: float | None) -> float | None:
    """A share; None where it is not known, or of nothing."""
    return None if part is None or whole is None or whole <= 0 else float(part) / float(whole)


def _fraction(value: float | None) -> float | None:
    """Some gauges go to 1, some to 100: above 1.5 it is taken for percent."""
    return value / 100.0 if value is not None and value > 1.5 else value


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


class Metrics:
    """The exported metrics by name, each with its series."""

    def __init__(self, document: Any) -> None:
        found = document.get("metrics") if isinstance(document, dict) else None
        self.by_name: dict[str, Any] = found if isinstance(found, dict) else {}

    def any_begins(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self.by_name)

    def series(self, *names: str) -> Iterator[dict[str, Any]]:
        for name in names:
            entry = self.by_name.get(name)
            listed = entry.get("series") if isinstance(entry, dict) else None
            yield from (one for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict))

    def values(
        self, *names: str, prefer: Sequence[str] = _TOTAL, where: Callable[[dict[str, Any]], bool] | None = None
    ) -> list[float]:
        """Of each series of these names the first statistic that there is."""
        kept = (one for one in self.series(*names) if where is None or where(one))
        return [value for one in kept if (value := _statistic(one, prefer)) is not None]

    def sum(self, *names: str, **how: Any) -> float | None:
        values = self.values(*names, **how)
        return sum(values, 0.0) if values else None

    def first(self, *names: str) -> float | None:
        """The sum of the first metric that there is."""
        return next((value for name in names if (value := self.sum(name)) is not None), None)

    def highest(self, *names: str, **how: Any) -> float | None:
        return max(self.values(*names, prefer=_HIGHEST, **how), default=None)

    def average(self, *names: str) -> float | None:
        values = self.values(*names, prefer=_AVERAGE)
        return statistics.mean(values) if values else None

    def by_label(self, name: str, label: str) -> Numbers:
        """The sums by the value of a label."""
        found: Numbers = {}
        for one in self.series(name):
            at, value = label_of(one, label), _statistic(one, _TOTAL)
            if at is not None and value is not None:
                found[at] = found.get(at, 0.0) + value
        return found


def _statistic(series: Mapping[str, Any], prefer: Sequence[str]) -> float | None:
    found = series.get("stats")
    values = (number(found.get(key)) for key in prefer) if isinstance(found, dict) else iter(())
    return next((value for value in values if value is not None), None)


def label_of(series: Mapping[str, Any], key: str) -> str | None:
    """The value of a series' label, as text."""
    labels = series.get("labels")
    value = labels.get(key) if isinstance(labels, dict) else None
    return None if value is None else str(value)


def server_metrics(document: Any, framework: str, logs: Iterable[str]) -> tuple[Nested, list[str]]:
    """The block ``server_metrics`` of an aggregate, and warnings. ``logs`` are the texts of the servers' logs.

    Raises ValueError for metrics of an engine that is not known.
    """
    metrics = Metrics(document)
    nested: Any = {block: dict.fromkeys(keys) for block, keys in _ABSENT.items()}
    nested["cache"]["cached_tokens_by_source"] = {}
    nested["tokens"]["prompt_by_source"] = _sources(None, None, None, {})
    nested |= {"present": bool(metrics.by_name), "adapter": "none", "metric_count": len(metrics.by_name), "sources": []}
    engine = _engine(metrics, framework.lower())
    if metrics.by_name:
        if engine is None:
            raise ValueError(
                f"server metrics of an engine that is not known: {', '.join(sorted(metrics.by_name)[:10])}"
            )
        nested["adapter"] = engine
        _ENGINES[engine].fill(metrics, nested)
    read = None if engine is None else _ENGINES[engine].capacity
    if read is not None and (found := [n for text in logs if (n := _capacity(*read, text)) is not None]):
        nested["kv_cache"]["gpu_total_tokens"] = sum(found)
    return nested, [] if metrics.by_name else ["server_metrics_export.json missing or empty"]


def _sources(gpu: float | None, other: float | None, computed: float | None, raw: Numbers) -> dict[str, Any]:
    return {"gpu_cache_hit": gpu, "cpu_or_external_cache_hit": other, "computed": computed, "raw": raw}


def _rates(nested: Nested, gpu: float | None, other: float | None, overall: float | None) -> None:
    cpu = {"cpu_cache_hit_rate": other, "external_cache_hit_rate": other}
    nested["cache"].update({"gpu_cache_hit_rate": gpu, "overall_cache_hit_rate": overall, **cpu})


def _prefixes(nested: Nested, *counts: float | None) -> None:
    """Hits and queries of prefixes, then the same of an external cache."""
    keys = ("hits", "queries")
    names = (f"{where}prefix_cache_{key}" for where in ("", "external_") for key in keys)
    nested["cache"].update(zip(names, counts, strict=True))


def _totals(nested: Nested, prompt: float | None, generation: float | None) -> None:
    nested["tokens"].update({"prompt_total": _whole(prompt), "generation_total": _whole(generation)})


def _atom(metrics: Metrics, nested: Nested) -> None:
    def total(stem: str) -> float | None:
        return metrics.sum(*(f"{atom}{stem}{end}" for end in ("", "_total") for atom in ("atom:", "atom_")))

    _totals(nested, total("prompt_tokens"), total("generation_tokens"))
    cached, full = total("prefix_cache_cached_tokens"), total("prefix_cache_full_tokens")
    loaded = total("lmcache_loaded_tokens")
    # What was loaded may be among the cached tokens already: it is not added.
    _rates(nested, rate(cached, full), rate(loaded, full), rate(cached, full))
    _prefixes(nested, cached, full, loaded, full)
    usage = metrics.highest("atom:kv_cache_usage_ratio", "atom_kv_cache_usage_ratio")
    nested["kv_cache"]["gpu_usage_pct"] = _fraction(usage)


def _sglang(metrics: Metrics, nested: Nested) -> None:
    prompt = metrics.sum("sglang:prompt_tokens")
    _totals(nested, prompt, metrics.sum("sglang:generation_tokens"))
    cached = metrics.by_label("sglang:cached_tokens", "cache_source")
    device, host = cached.get("device"), cached.get("host")
    overall = rate(sum(cached.values()), prompt) if cached else None
    if overall is None:
        overall = _fraction(metrics.average("sglang:cache_hit_rate"))
    _rates(nested, rate(device, prompt), rate(host, prompt), overall)
    nested["cache"]["cached_tokens_by_source"] = cached
    used = metrics.highest("sglang:hicache_host_used_tokens")
    total = metrics.highest("sglang:hicache_host_total_tokens")
    capacity = metrics.sum("sglang:max_total_num_tokens", prefer=("max", "avg", "total", "sum"))
    nested["kv_cache"] = {
        "gpu_usage_pct": _fraction(metrics.highest("sglang:token_usage")),
        "gpu_total_tokens": _whole(capacity),
        "cpu_usage_pct": rate(used, total),
        "cpu_used_tokens": used,
        "cpu_total_tokens": total,
    }
    computed = metrics.sum("sglang:realtime_tokens", where=lambda one: label_of(one, "mode") == "prefill_compute")
    nested["tokens"]["prompt_by_source"] = _sources(device, host, computed, cached)


def _vllm(metrics: Metrics, nested: Nested) -> None:
    _totals(nested, metrics.sum("vllm:prompt_tokens"), metrics.sum("vllm:generation_tokens"))
    hits, queries, loaded, asked = (
        metrics.sum(f"vllm:{kind}prefix_cache_{what}") for kind in ("", "external_") for what in ("hits", "queries")
    )
    gpu, other = rate(hits, queries), rate(loaded, asked)
    overall = gpu
    if by_source := metrics.by_label("vllm:prompt_tokens_by_source", "source"):
        local, moved = by_source.get("local_cache_hit"), by_source.get("external_kv_transfer")
        total = sum(by_source.values())
        overall = None
        if total > 0:
            gpu = gpu if local is None else local / total
            other = other if moved is None else moved / total
            overall = ((local or 0.0) + (moved or 0.0)) / total
        nested["tokens"]["prompt_by_source"] = _sources(local, moved, by_source.get("local_compute"), by_source)
    _rates(nested, gpu, other, overall)
    _prefixes(nested, hits, queries, loaded, asked)
    nested["kv_cache"].update(
        gpu_usage_pct=_fraction(metrics.highest(*_USAGE)),
        cpu_usage_pct=_fraction(metrics.highest("vllm:cpu_kv_cache_usage_perc")),
    )
    moved_by = nested["kv_offload"]
    for way in ("gpu_to_cpu", "cpu_to_gpu"):
        for what in ("bytes", "time"):
            moved_by[f"{what}_{way}"] = metrics.sum(f"vllm:kv_offload_{what}_{way}")
        moved_by[f"bandwidth_{way}_bytes_per_second"] = rate(moved_by[f"bytes_{way}"], moved_by[f"time_{way}"])
    nested["sources"] = _vllm_sources(metrics)  # type: ignore[assignment]


_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_PER_SOURCE = ("prompt_tokens", "generation_tokens", "prefix_cache_hits", "prefix_cache_queries")
_ROLES = {"prefill": "prefill", "backend": "decode", "decode": "decode", "frontend": "router", "router": "router"}


def _source_of(series: Mapping[str, Any]) -> str:
    """Which worker a series is of: role, endpoint, and what tells it from others there."""
    component = label_of(series, "dynamo_component") or label_of(series, "component") or ""
    parts = [_ROLES.get(component, "combined"), *([str(series["endpoint_url"])] if series.get("endpoint_url") else [])]
    labels = ((key, label_of(series, key)) for key in ("worker_id", "dp_rank", "engine"))
    return "|".join([*parts, *(f"{key}={value}" for key, value in labels if value is not None)])


def _vllm_sources(metrics: Metrics) -> list[dict[str, Any]]:
    names = [*(f"vllm:{n}" for n in _PER_SOURCE), _USAGE[0], "vllm:prompt_tokens_by_source"]
    found = []
    for source in sorted({_source_of(series) for series in metrics.series(*names)}):

        def own(series: dict[str, Any], source: str = source) -> bool:
            return _source_of(series) == source

        prompt, generation, hits, queries = (metrics.sum(f"vllm:{n}", where=own) for n in _PER_SOURCE)
        found.append(
            {
                "id": source,
                "role": source.split("|", 1)[0],
                "prompt_tokens": prompt,
                "generation_tokens": generation,
                "prefix_cache_hit_rate": rate(hits, queries),
                "gpu_kv_cache_usage_pct": _fraction(metrics.highest(*_USAGE, where=own)),
            }
        )
    return found


def _dynamo(metrics: Metrics, nested: Nested) -> None:
    _vllm(metrics, nested)
    cached, taken = (metrics.sum(f"dynamo_frontend_{n}") for n in ("cached_tokens", "input_sequence_tokens"))
    prompt = metrics.first("dynamo_frontend_input_sequence_tokens", "vllm:prompt_tokens")
    _totals(nested, prompt, metrics.first("dynamo_frontend_output_tokens", "vllm:generation_tokens"))
    if nested["kv_cache"]["gpu_usage_pct"] is None:
        usage = metrics.highest("dynamo_component_gpu_cache_usage_percent")
        nested["kv_cache"]["gpu_usage_pct"] = _fraction(usage)
    kv, shared = (_fraction(metrics.average(f"dynamo_component_router_{n}_hit_rate")) for n in ("kv", "shared_cache"))
    # InferenceX fills the overall rate from these too late for it to be published.
    nested["cache"].update(
        frontend_cache_hit_rate=rate(cached, taken),
        router_kv_hit_rate=kv,
        router_shared_cache_hit_rate=shared,
        frontend_cached_tokens=cached,
        frontend_input_tokens=taken,
    )


@dataclass(frozen=True)
class _Engine:
    """How an engine's metrics are known and read, and how its logs say its ``capacity``: tokens, in a line for each
    speaker; one of several data-parallel ranks that speaks alone speaks for all of them."""

    fill: Callable[[Metrics, Nested], None]
    prefixes: tuple[str, ...]
    capacity: tuple[str, str, str] | None = None


_VLLM_LOG = (r"GPU KV cache size:\s*([\d,]+)\s*tokens", r"\((EngineCore(?:_DP\d+)?)\s+pid=\d+\)", "$^")
_SGLANG_LOG = (r"\bmax_total_num_tokens=(\d+)\b", r"\b(DP\d+\s+TP\d+\s+EP\d+)\b", r"\bdp_size=(\d+)\b")
_ENGINES = {
    "dynamo-vllm": _Engine(_dynamo, ("dynamo_",), _VLLM_LOG),
    "atom": _Engine(_atom, ("atom:", "atom_")),
    "sglang": _Engine(_sglang, ("sglang:",), _SGLANG_LOG),
    "vllm": _Engine(_vllm, ("vllm:",), _VLLM_LOG),
}


def _engine(metrics: Metrics, framework: str) -> str | None:
    if framework.startswith("dynamo"):
        return "dynamo-vllm"
    for name, engine in _ENGINES.items():
        if metrics.any_begins(*engine.prefixes) or (not metrics.by_name and framework == name):
            return name
    return None


def _capacity(tokens: str, speaker: str, ranks: str, log: str) -> int | None:
    """The tokens of the GPUs' KV caches, as each speaker says once; without names of speakers all lines count."""
    named: dict[str, int] = {}
    bare: list[int] = []
    for line in log.splitlines():
        found = re.search(tokens, line)
        if found is None or (count := int(found[1].replace(",", "") or 0)) <= 0:
            continue
        if who := re.search(speaker, line):
            named[who[1]] = count
        else:
            bare.append(count)
    counts = list(named.values()) or bare
    if len(counts) == 1 and (all_ranks := re.search(ranks, log)):
        return counts[0] * max(int(all_ranks[1]), 1)
    return sum(counts) if counts else None
