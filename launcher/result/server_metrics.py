"""An agentic run's cache hit rates, KV cache usage and capacity, and tokens, by the engine's own counters. Pure.

The counters come from AIPerf's ``server_metrics_export.json`` (InferenceX's agentic/aggregation/backends).
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
        f"{quantity}_{direction}{unit}"
        for quantity, unit in (("bytes", ""), ("time", ""), ("bandwidth", "_bytes_per_second"))
        for direction in ("gpu_to_cpu", "cpu_to_gpu")
    ),
    "tokens": ("prompt_total", "generation_total", "requests_completed"),
}  # fmt: skip


def number(value: Any) -> float | None:
    """The number that a value or its text is; None for anything else."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def rate(part: float | None, whole: float | None) -> float | None:
    """``part / whole``; None if one is not known or ``whole`` is not above 0."""
    return None if part is None or whole is None or whole <= 0 else float(part) / float(whole)


def _fraction(value: float | None) -> float | None:
    """Some gauges go to 1, others to 100: a value above 1.5 is a percentage."""
    return value / 100.0 if value is not None and value > 1.5 else value


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


class Metrics:
    """The exported metrics by name, each with its series."""

    def __init__(self, document: Any) -> None:
        metrics = document.get("metrics") if isinstance(document, dict) else None
        self.by_name: dict[str, Any] = metrics if isinstance(metrics, dict) else {}

    def series(self, *names: str) -> Iterator[dict[str, Any]]:
        for name in names:
            metric = self.by_name.get(name)
            all_series = metric.get("series") if isinstance(metric, dict) else None
            yield from (one for one in (all_series if isinstance(all_series, list) else ()) if isinstance(one, dict))

    def values(
        self, *names: str, prefer: Sequence[str] = _TOTAL, where: Callable[[dict[str, Any]], bool] | None = None
    ) -> list[float]:
        """The first existing statistic of each series of these metrics for which ``where`` is true."""
        matching = (one for one in self.series(*names) if where is None or where(one))
        return [value for one in matching if (value := _statistic(one, prefer)) is not None]

    def sum(self, *names: str, **options: Any) -> float | None:
        values = self.values(*names, **options)
        return sum(values, 0.0) if values else None

    def first(self, *names: str) -> float | None:
        """The sum of the first metric that exists."""
        return next((value for name in names if (value := self.sum(name)) is not None), None)

    def highest(self, *names: str, **options: Any) -> float | None:
        return max(self.values(*names, prefer=_HIGHEST, **options), default=None)

    def average(self, *names: str) -> float | None:
        values = self.values(*names, prefer=_AVERAGE)
        return statistics.mean(values) if values else None

    def by_label(self, name: str, label: str) -> Numbers:
        """The sums by the value of a label."""
        sums: Numbers = {}
        for one in self.series(name):
            key, value = _label(one, label), _statistic(one, _TOTAL)
            if key is not None and value is not None:
                sums[key] = sums.get(key, 0.0) + value
        return sums


def _statistic(series: Mapping[str, Any], prefer: Sequence[str]) -> float | None:
    statistics = series.get("stats")
    values = (number(statistics.get(key)) for key in prefer) if isinstance(statistics, dict) else iter(())
    return next((value for value in values if value is not None), None)


def _label(series: Mapping[str, Any], key: str) -> str | None:
    labels = series.get("labels")
    value = labels.get(key) if isinstance(labels, dict) else None
    return None if value is None else str(value)


def server_metrics(document: Any, framework: str, logs: Iterable[str]) -> tuple[Nested, list[str]]:
    """The block ``server_metrics`` of an aggregate, and warnings. ``logs`` are the texts of the servers' logs.

    Raises ValueError for metrics of an unknown engine.
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
    patterns = None if engine is None else _ENGINES[engine].capacity
    if patterns is not None and (capacities := [n for log in logs if (n := _capacity(*patterns, log)) is not None]):
        nested["kv_cache"]["gpu_total_tokens"] = sum(capacities)
    return nested, [] if metrics.by_name else ["server_metrics_export.json missing or empty"]


def _sources(gpu: float | None, external: float | None, computed: float | None, raw: Numbers) -> dict[str, Any]:
    return {"gpu_cache_hit": gpu, "cpu_or_external_cache_hit": external, "computed": computed, "raw": raw}


def _set_rates(nested: Nested, gpu: float | None, external: float | None, overall: float | None) -> None:
    rates = {"gpu_cache_hit_rate": gpu, "cpu_cache_hit_rate": external, "external_cache_hit_rate": external}
    nested["cache"].update(rates, overall_cache_hit_rate=overall)


_PREFIX_COUNTS = [f"{cache}prefix_cache_{count}" for cache in ("", "external_") for count in ("hits", "queries")]
"""The keys of a GPU's prefix cache, then those of an external one."""


def _set_totals(nested: Nested, prompt: float | None, generation: float | None) -> None:
    nested["tokens"].update({"prompt_total": _whole(prompt), "generation_total": _whole(generation)})


def _fill_atom(metrics: Metrics, nested: Nested) -> None:
    def total(stem: str) -> float | None:
        return metrics.sum(*(f"{atom}{stem}{end}" for end in ("", "_total") for atom in ("atom:", "atom_")))

    _set_totals(nested, total("prompt_tokens"), total("generation_tokens"))
    cached, full = total("prefix_cache_cached_tokens"), total("prefix_cache_full_tokens")
    loaded = total("lmcache_loaded_tokens")
    # Loaded tokens may be among the cached ones, so they are not added.
    _set_rates(nested, rate(cached, full), rate(loaded, full), rate(cached, full))
    nested["cache"].update(zip(_PREFIX_COUNTS, (cached, full, loaded, full), strict=True))
    usage = metrics.highest("atom:kv_cache_usage_ratio", "atom_kv_cache_usage_ratio")
    nested["kv_cache"]["gpu_usage_pct"] = _fraction(usage)


def _fill_sglang(metrics: Metrics, nested: Nested) -> None:
    prompt = metrics.sum("sglang:prompt_tokens")
    _set_totals(nested, prompt, metrics.sum("sglang:generation_tokens"))
    cached = metrics.by_label("sglang:cached_tokens", "cache_source")
    device, host = cached.get("device"), cached.get("host")
    overall = rate(sum(cached.values()), prompt) if cached else None
    if overall is None:
        overall = _fraction(metrics.average("sglang:cache_hit_rate"))
    _set_rates(nested, rate(device, prompt), rate(host, prompt), overall)
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
    computed = metrics.sum("sglang:realtime_tokens", where=lambda one: _label(one, "mode") == "prefill_compute")
    nested["tokens"]["prompt_by_source"] = _sources(device, host, computed, cached)


def _fill_vllm(metrics: Metrics, nested: Nested) -> None:
    _set_totals(nested, metrics.sum("vllm:prompt_tokens"), metrics.sum("vllm:generation_tokens"))
    hits, queries, external_hits, external_queries = (metrics.sum(f"vllm:{key}") for key in _PREFIX_COUNTS)
    gpu, external = rate(hits, queries), rate(external_hits, external_queries)
    overall = gpu
    if by_source := metrics.by_label("vllm:prompt_tokens_by_source", "source"):
        local, moved = by_source.get("local_cache_hit"), by_source.get("external_kv_transfer")
        total = sum(by_source.values())
        overall = None
        if total > 0:
            gpu = gpu if local is None else local / total
            external = external if moved is None else moved / total
            overall = ((local or 0.0) + (moved or 0.0)) / total
        nested["tokens"]["prompt_by_source"] = _sources(local, moved, by_source.get("local_compute"), by_source)
    _set_rates(nested, gpu, external, overall)
    counts = (hits, queries, external_hits, external_queries)
    nested["cache"].update(zip(_PREFIX_COUNTS, counts, strict=True))
    nested["kv_cache"].update(
        gpu_usage_pct=_fraction(metrics.highest(*_USAGE)),
        cpu_usage_pct=_fraction(metrics.highest("vllm:cpu_kv_cache_usage_perc")),
    )
    offload = nested["kv_offload"]
    for way in ("gpu_to_cpu", "cpu_to_gpu"):
        moved, seconds = (metrics.sum(f"vllm:kv_offload_{quantity}_{way}") for quantity in ("bytes", "time"))
        offload |= {f"bytes_{way}": moved, f"time_{way}": seconds}
        offload[f"bandwidth_{way}_bytes_per_second"] = rate(moved, seconds)
    nested["sources"] = _vllm_sources(metrics)  # type: ignore[assignment]


_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_PER_SOURCE = ("prompt_tokens", "generation_tokens", "prefix_cache_hits", "prefix_cache_queries")
_ROLES = {"prefill": "prefill", "backend": "decode", "decode": "decode", "frontend": "router", "router": "router"}


def _source_of(series: Mapping[str, Any]) -> str:
    """The worker that a series belongs to: its role, endpoint, and the labels that identify it there."""
    component = _label(series, "dynamo_component") or _label(series, "component") or ""
    parts = [_ROLES.get(component, "combined"), *([str(series["endpoint_url"])] if series.get("endpoint_url") else [])]
    labels = ((key, _label(series, key)) for key in ("worker_id", "dp_rank", "engine"))
    return "|".join([*parts, *(f"{key}={value}" for key, value in labels if value is not None)])


def _vllm_sources(metrics: Metrics) -> list[dict[str, Any]]:
    names = [*(f"vllm:{n}" for n in _PER_SOURCE), _USAGE[0], "vllm:prompt_tokens_by_source"]
    sources = []
    for source in sorted({_source_of(series) for series in metrics.series(*names)}):

        def is_of_source(series: dict[str, Any], source: str = source) -> bool:
            return _source_of(series) == source

        prompt, generation, hits, queries = (metrics.sum(f"vllm:{n}", where=is_of_source) for n in _PER_SOURCE)
        sources.append(
            {
                "id": source,
                "role": source.split("|", 1)[0],
                "prompt_tokens": prompt,
                "generation_tokens": generation,
                "prefix_cache_hit_rate": rate(hits, queries),
                "gpu_kv_cache_usage_pct": _fraction(metrics.highest(*_USAGE, where=is_of_source)),
            }
        )
    return sources


def _fill_dynamo(metrics: Metrics, nested: Nested) -> None:
    """Fill ``nested`` with the metrics of vLLM, and with those that only Dynamo's frontend and router have."""
    _fill_vllm(metrics, nested)
    cached, taken = (metrics.sum(f"dynamo_frontend_{n}") for n in ("cached_tokens", "input_sequence_tokens"))
    prompt = metrics.first("dynamo_frontend_input_sequence_tokens", "vllm:prompt_tokens")
    _set_totals(nested, prompt, metrics.first("dynamo_frontend_output_tokens", "vllm:generation_tokens"))
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
    """How an engine's metrics are recognised (``prefixes``) and read (``fill``).

    ``capacity`` has the patterns of a log's lines: tokens of a KV cache, the process that reports them, and the number
    of data-parallel ranks. If only one rank reports, all ranks have its capacity.
    """

    fill: Callable[[Metrics, Nested], None]
    prefixes: tuple[str, ...]
    capacity: tuple[str, str, str] | None = None


_VLLM_LOG = (r"GPU KV cache size:\s*([\d,]+)\s*tokens", r"\((EngineCore(?:_DP\d+)?)\s+pid=\d+\)", "$^")
_SGLANG_LOG = (r"\bmax_total_num_tokens=(\d+)\b", r"\b(DP\d+\s+TP\d+\s+EP\d+)\b", r"\bdp_size=(\d+)\b")
_ENGINES = {
    "dynamo-vllm": _Engine(_fill_dynamo, ("dynamo_",), _VLLM_LOG),
    "atom": _Engine(_fill_atom, ("atom:", "atom_")),
    "sglang": _Engine(_fill_sglang, ("sglang:",), _SGLANG_LOG),
    "vllm": _Engine(_fill_vllm, ("vllm:",), _VLLM_LOG),
}


def _engine(metrics: Metrics, framework: str) -> str | None:
    if framework.startswith("dynamo"):
        return "dynamo-vllm"
    for name, engine in _ENGINES.items():
        recognised = any(metric.startswith(engine.prefixes) for metric in metrics.by_name)
        if recognised or (not metrics.by_name and framework == name):
            return name
    return None


def _capacity(tokens: str, process: str, ranks: str, log: str) -> int | None:
    """The tokens of all GPUs' KV caches. Each process counts once; without names of processes all lines count."""
    by_process: dict[str, int] = {}
    unnamed: list[int] = []
    for line in log.splitlines():
        match = re.search(tokens, line)
        if match is None or (count := int(match[1].replace(",", "") or 0)) <= 0:
            continue
        if name := re.search(process, line):
            by_process[name[1]] = count
        else:
            unnamed.append(count)
    counts = list(by_process.values()) or unnamed
    if len(counts) == 1 and (all_ranks := re.search(ranks, log)):
        return counts[0] * max(int(all_ranks[1]), 1)
    return sum(counts) if counts else None
