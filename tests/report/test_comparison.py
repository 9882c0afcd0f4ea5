"""`--against`: which points are better, same or worse, what else differs beside it, and when the command fails.

First the parts: direction, thresholds, the four answers; then the command.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.core.errors import ConfigError
from launcher.report.comparison import Threshold, compare_points, metric_change, threshold_failures
from launcher.report.document import Image, ReportInput, Run
from launcher.report.points import Point, identity_of_row, metric
from tests.report.made import row, write_rows, write_runs
from tests.report.test_points import ROW
from tests.report.test_sources import MISSING
from tests.report.test_sources import change as change_files


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
    assert metric_change(Threshold(metric(name)), before, after).answer == answer


def test_repeats_give_a_median_and_a_spread() -> None:
    result = metric_change(Threshold(metric("tput_per_gpu")), [90.0, 100.0, 130.0], [80.0, 100.0])
    assert (result.base, result.now, result.spread, result.change) == (100.0, 90.0, (40.0, 20.0), -0.1)


@pytest.mark.parametrize(
    ("text", "share"),
    [("tput_per_gpu:-5%", 0.05), ("tput_per_gpu:5%", 0.05), ("median_ttft:+12.5%", 0.125), ("p99.9_e2el:0%", 0.0)],
)
def test_thresholds(text: str, share: float) -> None:
    assert Threshold.parse(text).share == share


@pytest.mark.parametrize(
    ("text", "problem"),
    [("tput_per_gpu:+5%", "better"), ("median_ttft:-5%", "better"), ("tput:-5%", "no metric"), ("x", "no threshold"),
     ("tput_per_gpu:-5", "no threshold"), ("std_ttft:+5%", "neither"), ("tput_per_gpu:-5000%", "no threshold")],
)  # fmt: skip
def test_what_is_no_threshold(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Threshold.parse(text)


def point(conc: int, tput: float | None, **changed: Any) -> Point:
    row = {**ROW, "conc": conc, "tput_per_gpu": tput}
    return dataclasses.replace(Point(identity_of_row(row), row), **changed)


def test_points_are_compared_by_identity_and_what_is_missing_is_said() -> None:
    before = [point(4, 100.0, run="1"), point(8, 100.0), point(16, 100.0)]
    after = [point(4, 90.0, run="2"), point(8, 100.0, state="missing", reason="lost")]
    thresholds = {one.metric.name: one for one in map(Threshold.parse, ("tput_per_gpu:-5%", "p99_e2el:+5%"))}
    now, base = (
        ReportInput(points, {run: Run(id=run, images=(Image(reference=image),))})
        for points, run, image in ((after, "2", "b"), (before, "1", "a"))
    )
    result = list(compare_points(now, base, thresholds, {}))
    four, eight, sixteen = (one for _, one in result)
    assert (four.answer, four.differs, four.samples) == ("worse", ("image: a → b",), (1, 1))
    assert (eight.answer, eight.reason) == ("not comparable", "not ok in this run: lost")
    assert sixteen.reason == "not in this run"
    sentences = [text for identity, one in result[:2] for text in threshold_failures(identity, one, thresholds)]
    assert [text.partition(": ")[2] for text in sentences] == [
        "tput_per_gpu changed by -10.0%, 0.05 is the most",
        "p99_e2el is not in both runs",
        "not ok in this run: lost",
    ]
    assert [*threshold_failures(*result[0], {}), *threshold_failures(*result[1], {})] == []


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object], str]:
    """Exit code, the comparison of report.json, and what the terminal says."""
    code = main(["report", *arguments, "--json"])
    document = json.loads(capsys.readouterr().out) if code in (0, 2, 7) else {}
    assert main(["report", *arguments, "--format", "text"]) == code
    return code, document.get("comparison", {}), capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "fail_on", "code", "answer"),
    [
        ({}, (), 0, "same"),
        ({"tput_per_gpu": 0.98}, ("tput_per_gpu:-1%",), 7, "worse"),
        ({"tput_per_gpu": 0.98}, ("tput_per_gpu:-2%",), 0, "same"),
        ({"tput_per_gpu": 0.9}, (), 0, "worse"),
        ({"tput_per_gpu": 0.9}, ("median_ttft:+5%",), 0, "worse"),
        ({"tput_per_gpu": 1.1}, ("tput_per_gpu:-5%",), 0, "better"),
        ({"median_ttft": 1.2}, ("tput_per_gpu:-5%", "median_ttft:+10%"), 7, "worse"),
    ],
)
def test_a_threshold(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, float],
    fail_on: tuple[str, ...],
    code: int,
    answer: str,
) -> None:
    before = row()
    write_rows(tmp_path / "a", [before])
    write_rows(tmp_path / "b", [{**before, **{name: before[name] * by for name, by in changes.items()}, "image": "v2"}])
    flags = ["--fail-on", *fail_on] if fail_on else []
    result = command(capsys, str(tmp_path / "b"), "--against", str(tmp_path / "a"), *flags)
    assert result[0] == code
    (point,) = result[1]["points"]  # type: ignore[misc]
    assert point["answer"] == answer and point["samples"] == [1, 1]
    assert f"image: {before['image']} → v2" in point["differs"]
    assert f"1 {answer}" in result[2] and ("n = 1" in result[2] or answer == "same")
    assert bool(result[1].get("failed")) == (code == 7)


def test_a_missing_point_is_a_failure_where_a_threshold_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (before,) = write_runs(tmp_path / "a", 1)
    (now,) = write_runs(tmp_path / "b", 1)
    change_files(tmp_path / "b", now, "summary", points={16: {**MISSING, "reason": "the server died"}})
    arguments = (str(tmp_path / "b"), "--against", str(tmp_path / "a" / "runs" / before))
    code, result, output = command(capsys, *arguments)
    assert code == 0 and "1 not comparable" in output and "the server died" in output
    code, result, output = command(capsys, *arguments, "--fail-on", "tput_per_gpu:-50%")
    assert code == 7 and len(result["failed"]) == 1 and "concurrency 16" in output  # type: ignore[arg-type]


def test_nothing_to_compare_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "a", [row(concurrency=4)])
    write_rows(tmp_path / "b", [row(concurrency=8)])
    code, _, output = command(capsys, str(tmp_path / "b"), "--against", str(tmp_path / "a"))
    assert code == 2 and "2 not comparable" in output
    for wrong in (["--fail-on", "tput_per_gpu:-5%"], ["--against", str(tmp_path / "a"), "--fail-on", "tput:-5%"]):
        assert main(["report", str(tmp_path / "b"), *wrong]) == 2


def test_several_measurements_give_median_and_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, by in enumerate((1.0, 1.2, 0.8)):
        one = row()
        write_rows(tmp_path / f"a{number}", [{**one, "tput_per_gpu": one["tput_per_gpu"] * by}])
    write_rows(tmp_path / "b", [row()])
    before = [str(tmp_path / f"a{number}") for number in range(3)]
    code, result, _ = command(capsys, str(tmp_path / "b"), "--against", *before)
    (point,) = result["points"]  # type: ignore[misc]
    tput = next(one for one in point["changes"] if one["metric"] == "tput_per_gpu")
    assert code == 0 and point["answer"] == "same" and point["samples"] == [3, 1]
    faster = row(tput_per_gpu=row()["tput_per_gpu"] * 2)
    write_rows(tmp_path / "c", [faster])
    _, _, output = command(capsys, str(tmp_path / "c"), "--against", *before)
    assert f"(+100.0 %, spread {tput['spread'][0]:.1f} → 0.0)" in output and "n = 1, of the base 3" in output
    assert tput["base"] == row()["tput_per_gpu"] and tput["spread"][0] == pytest.approx(0.4 * tput["base"])


def test_the_comparison_is_in_page_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = row()
    write_rows(tmp_path / "a", [before])
    write_rows(tmp_path / "b", [{**before, "tput_per_gpu": before["tput_per_gpu"] * 0.9}])
    arguments = [str(tmp_path / "b"), "--against", str(tmp_path / "a"), "--fail-on", "tput_per_gpu:-5%"]
    assert main(["report", *arguments, "-o", str(tmp_path / "out")]) == 7
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "Compared with" in text and "-10.0 %" in text and "n = 1" in text and "1 worse" in text
