"""Points: rows of aggregates, or requested rows that are missing, and the identity of a point across runs.

Also the frontier of points. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, Role
from launcher.core.errors import ConfigError, suggest
from launcher.core.reading import prepare_type
from launcher.result.row_fields import finite

EVALUATION = "evaluation"
"""The scenario of points that are scores: they are in no chart and on no frontier."""

SCORES = ("score", "score_se", "em_strict", "em_flexible", "n_eff", "threshold")
"""Metrics of an evaluation, by the keys of its row."""

State = Literal["ok", "missing", "refused", "stale", "reused", "rehearsal"]
Shape = Literal["upper_left", "upper_right", "lower_left", "lower_right"]
"""Which direction is better, named like the site's functions by the form of the curve. ``upper`` means more y.
``left`` means more x with ``upper`` and less x with ``lower``; ``right`` is the opposite."""

_HARDWARE_SUFFIXES = ("-multinode", "-trt", "-disagg")
"""Suffixes that InferenceX's comparison removes from hardware names (utils/compare_results.py)."""


class Metric(msgspec.Struct, frozen=True):
    """One number of a point: its unit, whether more or less is better, the decimals that are shown. ``of`` is
    ``evaluation`` for a metric of evaluations; ``short`` is a short title."""

    title: str
    unit: str
    better: Literal["more", "less"] | None = None
    digits: int = 2
    agentic: str | None = None
    of: str = ""
    short: str = ""
    name: str = ""

    def fits(self, scenario: str) -> bool:
        """Whether points of a scenario can have it."""
        return (self.of == EVALUATION) == (scenario == EVALUATION)


class _Table(msgspec.Struct, frozen=True):
    metrics: dict[str, Metric]
    families: dict[str, Metric]
    statistics: tuple[str, ...]
    compared: dict[str, tuple[str, ...]]


@cache
def _table() -> _Table:
    return msgspec.yaml.decode(Path(__file__).with_name("metrics.yaml").read_bytes(), type=prepare_type(_Table))


@cache
def metrics() -> Mapping[str, Metric]:
    """All metrics by name, as metrics.yaml has them."""
    table = _table()
    by_name = {name: msgspec.structs.replace(metric, name=name) for name, metric in table.metrics.items()}
    for family, metric in table.families.items():
        for statistic in table.statistics:
            agentic = "p50" if statistic == "median" else statistic
            by_name[f"{statistic}_{family}"] = msgspec.structs.replace(
                metric,
                name=f"{statistic}_{family}",
                title=f"{statistic} {metric.title}",
                better=None if statistic == "std" else metric.better,
                agentic=f"latency.{family}.{agentic}",
            )
    return by_name


def metric(name: str) -> Metric:
    """The metric of a name. Raises ConfigError that suggests similar names."""
    if (metric := metrics().get(name)) is None:
        raise ConfigError(f"there is no metric {name!r}", hint=suggest(name, metrics()))
    return metric


def compared(scenario: str) -> tuple[Metric, ...]:
    """The metrics by which points of a scenario are compared, the most important first."""
    names = _table().compared.get(scenario, _table().compared[FIXED])
    return tuple(metric(name) for name in names)


@dataclass(frozen=True)
class Identity:
    """The values by which a point is recognised in another run. Image, recipe and nodes are not among them.

    ``prefill`` is the only side if there is one kind of worker. ``isl`` and ``osl`` are None if the scenario fixes no
    lengths. ``kv_offload`` is ``none``, or target and backend: ``dram lmcache``. ``task`` is an evaluation's, "" if no
    result names one.
    """

    model: str
    hardware: str
    framework: str
    precision: str
    spec_decoding: str
    disagg: bool
    scenario: str
    isl: int | None
    osl: int | None
    concurrency: int
    prefill: Role | None
    decode: Role | None = None
    kv_offload: str = "none"
    task: str = ""

    @property
    def panel(self) -> tuple[str, str, int | None, int | None]:
        """Points with the same model, scenario and lengths are drawn in one chart."""
        return self.model, self.scenario, self.isl, self.osl

    @property
    def curve(self) -> tuple[str, str, str, str, bool]:
        """Points of a panel with the same hardware, framework, method, precision and disagg share a frontier."""
        return self.hardware, self.framework, self.spec_decoding, self.precision, self.disagg

    @property
    def lengths(self) -> str:
        """``8192/1024``, or the scenario."""
        return self.scenario if self.isl is None else f"{self.isl}/{self.osl}"

    @property
    def configuration(self) -> str:
        """The name of the point's curve: ``gb200 dynamo-vllm fp8 mtp disagg``."""
        method = [self.spec_decoding] if self.spec_decoding != "none" else []
        disagg = ["disagg"] if self.disagg else []
        return " ".join([self.hardware, self.framework, self.precision, *method, *disagg])

    @property
    def topology(self) -> str:
        """``2P1D DEP4/TEP8``, or ``TP8``."""
        return Benchmark("", "", "", "", "", "", "", (), prefill=self.prefill, decode=self.decode).topology


@dataclass(frozen=True)
class Point:
    """One point. ``row`` is its aggregate, empty if there is none.

    ``reason`` is a sentence about why a point is not ok, ``layer`` the layer of a verdict, or the check. ``run`` is the
    id of the run or artifact that it comes from, "" if there is none yet; ``notes`` need a person's attention.
    """

    identity: Identity
    row: Mapping[str, Any] = field(default_factory=dict)
    state: State = "ok"
    reason: str = ""
    layer: str = ""
    run: str = ""
    notes: tuple[str, ...] = ()

    def value(self, name: str) -> float | None:
        """A metric's value in its unit; None if it is not known or not finite. Raises ConfigError for an unknown
        metric."""
        value: Any = self.row
        path = metric(name).agentic
        if self.identity.scenario == AGENTIC and path is not None and "request_metrics" in value:
            for key in ("request_metrics", *_keys(path)):
                value = value.get(key) if isinstance(value, Mapping) else None
        else:
            value = value.get(name)
        return float(value) if finite(value) else None


def _keys(path: str) -> list[str]:
    head, _, statistic = path.rpartition(".")
    if statistic.isdigit():  # p99.9 contains a dot
        head, _, percentile = head.rpartition(".")
        statistic = f"{percentile}.{statistic}"
    return [*head.split("."), statistic]


def identity_of(benchmark: Benchmark, concurrency: int) -> Identity:
    """The identity of a benchmark's point."""
    decode = benchmark.decode
    return Identity(
        model=benchmark.model_prefix.lower(),
        hardware=_hardware(benchmark.runner),
        framework=benchmark.framework.lower(),
        precision=benchmark.precision.lower(),
        spec_decoding=benchmark.spec_decoding.lower(),
        disagg=benchmark.disagg,
        scenario=benchmark.scenario,
        isl=None if benchmark.agentic else benchmark.isl,
        osl=None if benchmark.agentic else benchmark.osl,
        concurrency=concurrency,
        prefill=benchmark.prefill,
        decode=decode if decode is not None and decode.workers else None,
        kv_offload=_offload(benchmark.kv_offloading, benchmark.kv_offload_backend),
    )


def identity_of_evaluation(benchmark: Benchmark, concurrency: int, task: str = "") -> Identity:
    """The identity of a benchmark's evaluation."""
    identity = identity_of(benchmark, concurrency)
    return replace(identity, scenario=EVALUATION, disagg=identity.decode is not None, task=task)


def identity_of_row(row: Mapping[str, Any]) -> Identity:
    """The identity of an aggregate's or an evaluation's row. Raises ConfigError for a missing key or a wrong type.

    Rows of older versions and of evaluations lack pp, dcp and pcp, which are 1 then.
    """
    try:
        agentic = row.get("scenario_type") == AGENTIC
        task = row.get("task")
        several = bool(row.get("is_multinode", False))
        decode = _role_of(row, "decode_") if several else None
        backend = row.get("kv_offload_backend") or None
        return Identity(
            model=row["infmax_model_prefix" if task is None else "model_prefix"].lower(),
            hardware=_hardware(row["hw"]),
            framework=row["framework"].lower(),
            precision=row["precision"].lower(),
            spec_decoding=row.get("spec_decoding", "none").lower(),
            disagg=_flag(row.get("disagg", task is not None and decode is not None and decode.workers > 0)),
            scenario=AGENTIC if agentic else FIXED if task is None else EVALUATION,
            isl=None if agentic else int(row["isl"]) or (0 if task is None else None),
            osl=None if agentic else int(row["osl"]) or (0 if task is None else None),
            concurrency=int(row["conc"]),
            prefill=_role_of(row, "prefill_" if several else ""),
            decode=None if decode is None or not decode.workers else decode,
            kv_offload=_offload(row.get("kv_offloading"), None if backend is None else Component(**backend)),
            task=str(task or ""),
        )
    except KeyError as error:
        raise ConfigError(f"no row of an aggregate: it has no {error.args[0]}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"no row of an aggregate: {error}") from None


def _role_of(row: Mapping[str, Any], side: str) -> Role:
    tp, ep = int(row[f"{side}tp"]), int(row[f"{side}ep"])
    pp, dcp, pcp = (int(row.get(f"{side}{name}", 1)) for name in ("pp", "dcp_size", "pcp_size"))
    attention, hardware = _flag(row.get(f"{side}dp_attention", False)), (side and row.get(f"{side}hw")) or None
    # Rows of older versions state GPUs, but no workers.
    gpus = row.get(f"num_{side}gpu", tp * pp * pcp)
    workers = int(row.get(f"{side}num_workers", gpus // max(tp * pp * pcp, 1))) if side else 1
    return Role(workers, tp, ep, attention, pp, dcp, pcp, hardware)


def _hardware(label: str) -> str:
    name = label.lower().removeprefix("cluster:")
    for suffix in _HARDWARE_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() == "true"


def _offload(target: str | None, backend: Component | None) -> str:
    if target in (None, "", "none"):
        return "none"
    return f"{target} {backend.name}" if backend else str(target)


T = TypeVar("T")
Coordinate = Callable[[T], float | None]


def frontier(items: Sequence[T], shape: Shape, x: Coordinate[T], y: Coordinate[T]) -> list[T]:
    """The items that no other item beats in both coordinates, as the site draws them: by ascending x, for
    ``lower_right`` by descending x.

    Items without a finite x and y are left out. (The site takes them for 0, which is best where less is better.) The
    first of equal items counts. ``upper_right`` also keeps later items of equal y, although an item of less x beats
    them: so does the site (InferenceX-app, chart-utils.ts).
    """
    negate_x, negate_y = shape in ("upper_left", "lower_right"), shape.startswith("upper")
    coordinates = []
    for item in items:
        across, height = x(item), y(item)
        if across is not None and height is not None and math.isfinite(across) and math.isfinite(height):
            coordinates.append((-across if negate_x else across, -height if negate_y else height, item))
    best: tuple[float, float] | None = None
    kept: list[T] = []
    # The best x comes first, so each later item must have a better y.
    for across, height, item in sorted(coordinates, key=lambda entry: entry[:2]):
        equal = shape == "upper_right" and best is not None and height == best[1] and across > best[0]
        if best is None or height < best[1] or equal:
            kept.append(item)
            best = across, height
    return kept[::-1] if shape == "upper_left" else kept
