"""`--against`: which points are better, same or worse, what else differs beside it, and when the command fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from tests.report.made import row, write_rows, write_runs
from tests.report.test_sources import MISSING, change


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object], str]:
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
    found = compare(capsys, str(tmp_path / "b"), "--against", str(tmp_path / "a"), *flags)
    assert found[0] == code
    (point,) = found[1]["points"]  # type: ignore[misc]
    assert point["answer"] == answer and point["samples"] == [1, 1]
    assert f"image: {before['image']} → v2" in point["differs"]
    assert f"1 {answer}" in found[2] and ("n = 1" in found[2] or answer == "same")
    assert bool(found[1].get("failed")) == (code == 7)


def test_a_missing_point_is_a_failure_where_a_threshold_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (before,) = write_runs(tmp_path / "a", 1)
    (now,) = write_runs(tmp_path / "b", 1)
    change(tmp_path / "b", now, "summary", points={16: {**MISSING, "reason": "the server died"}})
    asked = (str(tmp_path / "b"), "--against", str(tmp_path / "a" / "runs" / before))
    code, found, told = compare(capsys, *asked)
    assert code == 0 and "1 not comparable" in told and "the server died" in told
    code, found, told = compare(capsys, *asked, "--fail-on", "tput_per_gpu:-50%")
    assert code == 7 and len(found["failed"]) == 1 and "concurrency 16" in told  # type: ignore[arg-type]


def test_nothing_to_compare_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "a", [row(concurrency=4)])
    write_rows(tmp_path / "b", [row(concurrency=8)])
    code, _, told = compare(capsys, str(tmp_path / "b"), "--against", str(tmp_path / "a"))
    assert code == 2 and "2 not comparable" in told
    for wrong in (["--fail-on", "tput_per_gpu:-5%"], ["--against", str(tmp_path / "a"), "--fail-on", "tput:-5%"]):
        assert main(["report", str(tmp_path / "b"), *wrong]) == 2


def test_several_measurements_give_median_and_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, by in enumerate((1.0, 1.2, 0.8)):
        one = row()
        write_rows(tmp_path / f"a{number}", [{**one, "tput_per_gpu": one["tput_per_gpu"] * by}])
    write_rows(tmp_path / "b", [row()])
    before = [str(tmp_path / f"a{number}") for number in range(3)]
    code, found, _ = compare(capsys, str(tmp_path / "b"), "--against", *before)
    (point,) = found["points"]  # type: ignore[misc]
    tput = next(change for change in point["changes"] if change["metric"] == "tput_per_gpu")
    assert code == 0 and point["answer"] == "same" and point["samples"] == [3, 1]
    faster = row(tput_per_gpu=row()["tput_per_gpu"] * 2)
    write_rows(tmp_path / "c", [faster])
    _, _, told = compare(capsys, str(tmp_path / "c"), "--against", *before)
    assert f"(+100.0 %, spread {tput['spread'][0]:.1f} → 0.0)" in told and "n = 1, of the base 3" in told
    assert tput["base"] == row()["tput_per_gpu"] and tput["spread"][0] == pytest.approx(0.4 * tput["base"])


def test_the_comparison_is_in_page_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = row()
    write_rows(tmp_path / "a", [before])
    write_rows(tmp_path / "b", [{**before, "tput_per_gpu": before["tput_per_gpu"] * 0.9}])
    asked = [str(tmp_path / "b"), "--against", str(tmp_path / "a"), "--fail-on", "tput_per_gpu:-5%"]
    assert main(["report", *asked, "-o", str(tmp_path / "out")]) == 7
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "Compared with" in text and "-10.0 %" in text and "n = 1" in text and "1 worse" in text
