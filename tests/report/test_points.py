"""Points: identity, metrics, frontier."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, Role
from launcher.core.errors import ConfigError
from launcher.report.points import (
    Identity,
    Point,
    Shape,
    compared,
    frontier,
    identity_of,
    identity_of_row,
    metric,
    metrics,
)
from tests.shared import SHARED

SETS = sorted((SHARED / "cases-results/pareto").glob("*.json")) if SHARED else []
SHAPES: tuple[Shape, ...] = ("upper_left", "upper_right", "lower_left", "lower_right")


def names(points: list[dict[str, Any]], shape: Shape) -> list[str]:
    return [p["name"] for p in frontier(points, shape, lambda p: p["x"], lambda p: p["y"])]


@pytest.mark.skipif(not SETS, reason="the recorded point sets are not beside the project (LAUNCHER_SHARED)")
def test_the_frontier_is_the_sites() -> None:
    assert len(SETS) >= 6
    for path in SETS:
        case = json.loads(path.read_text())
        assert {shape: names(case["points"], shape) for shape in SHAPES} == case["expect"], path.stem


UNKNOWN = (None, math.nan, math.inf, -math.inf)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.sampled_from(SHAPES))
def test_nothing_on_a_frontier_is_beaten_and_nothing_else_is_on_it(points: list[tuple[int, int]], shape: Shape) -> None:
    more_x = shape in ("upper_left", "lower_right")
    signed = [((x if more_x else -x), (y if shape.startswith("upper") else -y)) for x, y in points]

    def beaten(one: tuple[int, int]) -> bool:
        return any(a >= one[0] and b >= one[1] and (a, b) != one for a, b in signed)

    best = {point for point, sign in zip(points, signed, strict=True) if not beaten(sign)}
    found = frontier(points, shape, lambda p: p[0], lambda p: p[1])
    assert len(found) == len(set(found))
    if shape == "upper_right":  # the site also keeps later ones of equal y
        assert best <= set(found) and {y for _, y in found} == {y for _, y in best}
    else:
        assert set(found) == best


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_known_is_on_no_frontier(shape: Shape) -> None:
    points = [{"name": "known", "x": 1.0, "y": 2.0}]
    points += [{"name": "x", "x": bad, "y": 9.0} for bad in UNKNOWN] + [
        {"name": "y", "x": 9.0, "y": b} for b in UNKNOWN
    ]
    assert names(points, shape) == ["known"]


ROW: dict[str, Any] = {
    "hw": "cluster:b200-nv", "conc": 64, "image": "i", "model": "org/X", "infmax_model_prefix": "minimaxm3",
    "framework": "vllm", "precision": "fp8", "spec_decoding": "none", "disagg": False, "isl": 8192, "osl": 1024,
    "is_multinode": False, "tp": 8, "pp": 1, "dcp_size": 1, "pcp_size": 1, "ep": 1, "dp_attention": "false",
    "tput_per_gpu": 1000.0, "median_ttft": 0.25, "p99.9_ttft": 1, "p90_itl": math.nan,
}  # fmt: skip
SIDES: dict[str, Any] = {
    "disagg": True, "is_multinode": True,
    **{f"prefill_{k}": v for k, v in {"tp": 4, "ep": 4, "dp_attention": "true", "num_workers": 2}.items()},
    **{f"decode_{k}": v for k, v in {"tp": 8, "ep": 8, "dp_attention": "True", "num_workers": 1, "pp": 2}.items()},
}  # fmt: skip


def benchmark(**changed: Any) -> Benchmark:
    return Benchmark(
        **{
            "exp_name": "e", "image": "other", "model": "org/X", "model_prefix": "minimaxm3", "precision": "fp8",
            "framework": "vllm", "runner": "cluster:b200-nv", "concurrencies": (64,), "isl": 8192, "osl": 1024,
            "prefill": Role(1, 8), "multinode": False, **changed,
        }
    )  # fmt: skip


def test_a_benchmark_and_its_row_have_one_identity() -> None:
    assert identity_of_row(ROW) == identity_of(benchmark(), 64)
    two = benchmark(multinode=True, disagg=True, prefill=Role(2, 4, 4, True), decode=Role(1, 8, 8, True, pp=2))
    assert identity_of_row({**ROW, **SIDES}) == identity_of(two, 64)
    one = benchmark(multinode=True, prefill=Role(1, 4, 4, True), decode=Role(0, 8))
    alone = {**ROW, **SIDES, "disagg": "false", "prefill_num_workers": 1, "decode_num_workers": 0, "decode_tp": 0}
    assert identity_of_row(alone) == identity_of(one, 64)
    agentic = benchmark(
        scenario=AGENTIC, isl=None, osl=None, kv_offloading="dram", kv_offload_backend=Component("x", "1")
    )
    row = {**ROW, "scenario_type": AGENTIC, "kv_offloading": "dram", "kv_offload_backend": {"name": "x"}}
    assert identity_of_row(row) == identity_of(agentic, 64)
    assert identity_of_row(row).kv_offload == "dram x"


def test_rows_of_older_versions_tell_workers_by_their_gpus() -> None:
    row = {**ROW, **SIDES, "num_prefill_gpu": 8, "num_decode_gpu": 16}
    older = {key: value for key, value in row.items() if not key.endswith("_workers")}
    assert identity_of_row(older) == identity_of_row(row)
    unknown = {key: value for key, value in older.items() if not key.startswith("num_")}
    assert identity_of_row(unknown).topology == "1P1D DEP4/DEP8-PP2"


@pytest.mark.parametrize("suffix", ["-multinode", "-trt", "-disagg"])
def test_the_way_of_running_is_no_hardware(suffix: str) -> None:
    assert identity_of_row({**ROW, "hw": f"B200-NV{suffix}"}).hardware == "b200-nv"


def test_each_part_of_an_identity_tells_points_apart() -> None:
    row = {**ROW, **SIDES}
    changed = [
        {"infmax_model_prefix": "y"}, {"hw": "h"}, {"framework": "f"}, {"precision": "p"}, {"spec_decoding": "mtp"},
        {"disagg": False}, {"isl": 1}, {"osl": 1}, {"conc": 1}, {"kv_offloading": "dram"}, {"scenario_type": AGENTIC},
        *({f"{side}_{key}": 3} for side in ("prefill", "decode") for key in ("tp", "pp", "dcp_size", "pcp_size", "ep")),
        *({f"{side}_num_workers": 4} for side in ("prefill", "decode")), {"prefill_dp_attention": "false"},
    ]  # fmt: skip
    identities = [identity_of_row({**row, **change}) for change in ({}, *changed)]
    assert len(set(identities)) == len(identities)
    same = [{"image": "y"}, {"recipe_fingerprint": "y"}, {"model": "y"}, {"tput_per_gpu": 1}]
    assert {identity_of_row({**row, **change}) for change in same} == {identities[0]}


@pytest.mark.parametrize(
    "change",
    [
        {"hw": None},
        {"hw": 5},
        {"conc": "x"},
        {"conc": math.inf},
        {"isl": None},
        {"tp": []},
        {"kv_offloading": "a", "kv_offload_backend": {"z": 1}},
    ],
)
def test_what_is_no_row_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no row of an aggregate"):
        identity_of_row({**ROW, **change})
    with pytest.raises(ConfigError, match="it has no infmax_model_prefix"):
        identity_of_row({})


def point(row: dict[str, Any]) -> Point:
    return Point(identity_of_row(row), row)


def test_a_metric_is_found_in_either_kind_of_row() -> None:
    fixed = point(ROW)
    assert (fixed.value("tput_per_gpu"), fixed.value("median_ttft"), fixed.value("p99.9_ttft")) == (1000.0, 0.25, 1.0)
    assert fixed.value("p90_itl") is None and fixed.value("p99_ttft") is None
    latency = {"ttft": {"p50": 0.5, "p99.9": 3, "p95": True}, "e2e_norm_intvty": {"p90": 9}}
    per_gpu = {"total_tput_tps": 7}
    row = {**ROW, "scenario_type": AGENTIC, "request_metrics": {"latency": latency, "throughput": {"per_gpu": per_gpu}}}
    seen = {name: point(row).value(name) for name in metrics()}
    assert {name: value for name, value in seen.items() if value is not None} == {
        "tput_per_gpu": 7.0, "median_ttft": 0.5, "p99.9_ttft": 3.0, "p90_e2e_norm_intvty": 9.0,
    }  # fmt: skip
    assert point({**row, "request_metrics": None}).value("median_ttft") is None


def test_every_metric_has_a_unit_and_deviations_no_direction() -> None:
    assert all(m.unit and m.title and m.name == name for name, m in metrics().items())
    assert metric("std_ttft").better is None
    assert metric("p99_intvty").better == "more" and metric("median_ttft").better == "less"
    for scenario in (FIXED, AGENTIC):
        assert all(m.better for m in compared(scenario))
    with pytest.raises(ConfigError, match="did you mean 'median_ttft'"):
        metric("medain_ttft")


def test_panels_and_curves_split_points_as_the_site_does() -> None:
    base = identity_of_row(ROW)
    for change, (panel, curve) in {
        ("concurrency", 1): (True, True), ("prefill", Role(1, 4)): (True, True), ("isl", 1): (False, True),
        ("precision", "fp4"): (True, False), ("disagg", True): (True, False), ("hardware", "h"): (True, False),
    }.items():  # fmt: skip
        other: Identity = dataclasses.replace(base, **dict([change]))
        assert (other.panel == base.panel, other.curve == base.curve) == (panel, curve), change
    assert (base.lengths, base.topology) == ("8192/1024", "TP8")
    assert len(set(itertools.chain([base.panel], [base.curve]))) == 2
