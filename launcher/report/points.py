"""Points: one row of the aggregates, or one that should be there, with what makes it the same point in another run.

Also the frontier of points. All of it is pure.
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
"""The scenario of points that are scores: they are in no picture, and on no frontier."""

SCORES = ("score", "score_se", "em_strict", "em_flexible", "n_eff", "threshold")
"""Metrics of an evaluation, by the keys of its row."""

State = Literal["ok", "missing", "refused", "stale", "reused", "rehearsal"]
Shape = Literal["upper_left", "upper_right", "lower_left", "lower_right"]
"""What is better, named for the curve's form as the site's functions are: ``upper`` is more y; ``left`` is more x with
``upper`` and less x with ``lower``, ``right`` the other way round."""

_HARDWARE_SUFFIXES = ("-multinode", "-trt", "-disagg")
"""What InferenceX's comparison cuts from a name of hardware: it says how, not on what (utils/compare_results.py)."""


class Metric(msgspec.Struct, frozen=True):
    """One number of a point: its unit, whether more or less of it is better, how many decimals are shown. ``of`` is the
    scenario of evaluations, if it is theirs; ``short`` its title where there is little room."""

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
    found = {name: msgspec.structs.replace(metric, name=name) for name, metric in table.metrics.items()}
    for family, metric in table.families.items():
        for statistic in table.statistics:
            own = "p50" if statistic == "median" else statistic
            found[f"{statistic}_{family}"] = msgspec.structs.replace(
                metric,
                name=f"{statistic}_{family}",
                title=f"{statistic} {metric.title}",
                better=None if statistic == "std" else metric.better,
                agentic=f"latency.{family}.{own}",
            )
    return found


def metric(name: str) -> Metric:
    """The metric of a name. Raises ConfigError, with what is near, when there is none."""
    if (found := metrics().get(name)) is None:
        raise ConfigError(f"there is no metric {name!r}", hint=suggest(name, metrics()))
    return found


def compared(scenario: str) -> tuple[Metric, ...]:
    """What points of a scenario are compared by, the most important first."""
    names = _table().compared.get(scenario, _table().compared[FIXED])
    return tuple(metric(name) for name in names)


@dataclass(frozen=True)
class Identity:
    """What makes a point the same one in another run, and nothing else: neither image, recipe nor nodes.

    ``prefill`` is the only side where there is one kind of worker. ``isl`` and ``osl`` are None where a scenario fixes
    no lengths. ``kv_offload`` is ``none``, or what offloads: ``dram lmcache``. ``task`` is an evaluation's, "" where no
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
        """Points of one panel are drawn in one picture: model, scenario and lengths."""
        return self.model, self.scenario, self.isl, self.osl

    @property
    def curve(self) -> tuple[str, str, str, str, bool]:
        """Points of one curve, within a panel, share a frontier: hardware, framework, method, precision, disagg."""
        return self.hardware, self.framework, self.spec_decoding, self.precision, self.disagg

    @property
    def lengths(self) -> str:
        """``8192/1024``, or the scenario."""
        return self.scenario if self.isl is None else f"{self.isl}/{self.osl}"

    @property
    def configuration(self) -> str:
        """``gb200 dynamo-vllm fp8 mtp disagg``: what has a curve of its own."""
        method = [self.spec_decoding] if self.spec_decoding != "none" else []
        disagg = ["disagg"] if self.disagg else []
        return " ".join([self.hardware, self.framework, self.precision, *method, *disagg])

    @property
    def topology(self) -> str:
        """``2P1D DEP4/TEP8``, or ``TP8``."""
        return Benchmark("", "", "", "", "", "", "", (), prefill=self.prefill, decode=self.decode).topology


@dataclass(frozen=True)
class Point:
    """One point. ``row`` is the aggregate as it stands in its file, empty where there is none.

    ``reason`` says in a sentence why a point is not ok, ``layer`` which layer of a verdict, or which check.
    ``run`` is the id of the run or artifact by which it came about, "" where there was none yet; ``notes`` are for a
    person to look at.
    """

    identity: Identity
    row: Mapping[str, Any] = field(default_factory=dict)
    state: State = "ok"
    reason: str = ""
    layer: str = ""
    run: str = ""
    notes: tuple[str, ...] = ()

    def value(self, name: str) -> float | None:
        """A metric's value in its unit; None where it is not known, or no finite number. Raises ConfigError for a
        metric that there is not."""
        found: Any = self.row
        path = metric(name).agentic
        if self.identity.scenario == AGENTIC and path is not None and "request_metrics" in found:
            for key in ("request_metrics", *_keys(path)):
                found = found.get(key) if isinstance(found, Mapping) else None
        else:
            found = found.get(metric(name).name)
        return float(found) if finite(found) else None


def _keys(path: str) -> list[str]:
    head, _, statistic = path.rpartition(".")
    if statistic.isdigit():  # p99.9 has a dot of its own
        head, _, first = head.rpartition(".")
        statistic = f"{first}.{statistic}"
    return [*head.split("."), statistic]


def identity_of(benchmark: Benchmark, concurrency: int) -> Identity:
    """The identity of a point that a benchmark asks for."""
    prefill, decode = benchmark.prefill, benchmark.decode
    if decode is not None and not decode.workers:
        decode = None
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
        prefill=prefill,
        decode=decode,
        kv_offload=_offload(benchmark.kv_offloading, benchmark.kv_offload_backend),
    )


def identity_of_evaluation(benchmark: Benchmark, concurrency: int, task: str = "") -> Identity:
    """The identity of an evaluation that a benchmark asks for."""
    one = identity_of(benchmark, concurrency)
    return replace(one, scenario=EVALUATION, disagg=one.decode is not None, task=task)


def identity_of_row(row: Mapping[str, Any]) -> Identity:
    """The identity of an aggregate's row, or of an evaluation's. Raises ConfigError when it lacks what makes one, or
    has another type there.

    Rows of older versions lack pp, dcp and pcp: they are 1 then, and so they are in rows of evaluations.
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
    # Rows of older versions tell GPUs, and no workers.
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


def _offload(where: str | None, backend: Component | None) -> str:
    if where in (None, "", "none"):
        return "none"
    return f"{where} {backend.name}" if backend else str(where)


T = TypeVar("T")
Coordinate = Callable[[T], float | None]


def frontier(items: Sequence[T], shape: Shape, x: Coordinate[T], y: Coordinate[T]) -> list[T]:
    """The items that no other one beats in both coordinates, as the site draws them: by x up (``lower_right``: down).

    Those whose x or y is not known (None, NaN, an infinity) are left out: the site makes them 0, which is best where
    less is better. Of equal ones the first counts. ``upper_right`` also keeps later ones of equal y, though an item of
    less x beats them: so the site does (InferenceX-app, chart-utils.ts).
    """
    up, down_x = shape.startswith("upper"), shape in ("upper_left", "lower_right")
    known = []
    for item in items:
        at, height = x(item), y(item)
        if at is not None and height is not None and math.isfinite(at) and math.isfinite(height):
            known.append((-at if down_x else at, -height if up else height, item))
    best: tuple[float, float] | None = None
    kept: list[T] = []
    # The best x first: whoever comes later has to be better in y.
    for at, height, item in sorted(known, key=lambda one: one[:2]):
        equal = shape == "upper_right" and best is not None and height == best[1] and at > best[0]
        if best is None or height < best[1] or equal:
            kept.append(item)
            best = at, height
    return kept[::-1] if shape == "upper_left" else kept
