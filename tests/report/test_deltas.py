"""Comparing two runs: direction, thresholds, and the four answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.report.deltas import Threshold, compare, delta, failures
from launcher.report.points import Point, identity_of_row, metric
from tests.report.test_points import ROW


@pytest.mark.parametrize(
    ("name", "before", "after", "answer"),
    [
        ("tput_per_gpu", [100.0], [104.0], "better"), ("tput_per_gpu", [100.0], [96.9], "worse"),
        ("tput_per_gpu", [100.0], [103.0], "same"), ("tput_per_gpu", [100.0], [97.0], "same"),
        ("median_ttft", [0.3], [0.2], "better"), ("median_ttft", [0.3], [0.4], "worse"),
        ("median_ttft", [0.0], [0.4], "not comparable"), ("median_ttft", [], [0.4], "not comparable"),
        ("median_ttft", [0.4], [], "not comparable"), ("std_ttft", [1.0], [2.0], "not comparable"),
        ("tput_per_gpu", [100.0, 90.0, 110.0], [120.0], "better"), ("tput_per_gpu", [100.0], [0.0], "worse"),
    ],
)  # fmt: skip
def test_each_metric_has_its_direction(name: str, before: list[float], after: list[float], answer: str) -> None:
    found = delta(metric(name), before, after)
    assert (found.answer, found.n) == (answer, (len(before), len(after)))


def test_repeats_give_a_median_and_a_spread() -> None:
    found = delta(metric("tput_per_gpu"), [90.0, 100.0, 130.0], [80.0, 100.0])
    assert (found.before, found.after, found.spread, found.change) == (100.0, 90.0, (40.0, 20.0), -0.1)


@pytest.mark.parametrize(
    ("text", "share"),
    [("tput_per_gpu:-5%", 0.05), ("tput_per_gpu:5%", 0.05), ("median_ttft:+12.5%", 0.125), ("p99.9_e2el:0%", 0.0)],
)
def test_thresholds(text: str, share: float) -> None:
    assert Threshold.parse(text).share == share


@pytest.mark.parametrize(
    ("text", "said"),
    [("tput_per_gpu:+5%", "better"), ("median_ttft:-5%", "better"), ("tput:-5%", "no metric"), ("x", "no threshold"),
     ("tput_per_gpu:-5", "no threshold"), ("std_ttft:+5%", "neither"), ("tput_per_gpu:-5000%", "no threshold")],
)  # fmt: skip
def test_what_is_no_threshold(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Threshold.parse(text)


def point(conc: int, tput: float | None, **changed: Any) -> Point:
    row = {**ROW, "conc": conc, "tput_per_gpu": tput}
    return dataclasses.replace(Point(identity_of_row(row), row), **changed)


def test_points_are_compared_by_identity_and_what_is_missing_is_said() -> None:
    before = [point(4, 100.0, provenance={"image": "a", "run": "1"}), point(8, 100.0), point(16, 100.0)]
    after = [point(4, 90.0, provenance={"image": "b", "run": "2"}), point(8, 100.0, state="missing", reason="lost")]
    thresholds = [Threshold.parse("tput_per_gpu:-5%"), Threshold.parse("p99_e2el:+5%")]
    four, eight, sixteen = compare(after, before, thresholds)
    assert (four.answer, four.changed) == ("worse", (("image", "a", "b"),))
    assert (eight.answer, eight.reason) == ("not comparable", "not ok in this run: lost")
    assert sixteen.reason == "not in this run"
    said = failures([four, eight, sixteen], thresholds)
    assert [text.partition(": ")[2] for text in said] == [
        "tput_per_gpu changed by -10.0%, 0.05 is the most",
        "p99_e2el is not in both runs",
        "not ok in this run: lost",
        "not in this run",
    ]
    assert failures([four, eight], []) == []
