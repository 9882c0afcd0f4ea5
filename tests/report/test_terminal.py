"""The report in a terminal: nothing is cut, however narrow; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.core.lines import Terminal
from launcher.report.document import Document
from launcher.report.points import metrics
from launcher.report.terminal import report_lines
from tests.report.made import evaluation, rows, write_rows, write_runs
from tests.report.test_sources import DIED, REFUSED, change, report


@pytest.fixture
def value(tmp_path: Path) -> Document:
    """Four runs: one again what the first measured, where a point was refused; one died; one has a doubt and scores."""
    first, again, died, last = write_runs(tmp_path, 4)
    for kind in ("plan", "summary"):
        path = tmp_path / f"runs/{first}/{kind}.json"
        (tmp_path / f"runs/{again}/{kind}.json").write_text(path.read_text())
    change(tmp_path, first, "summary", points={16: REFUSED, 64: {**REFUSED, "concurrency": 64}})
    point = next(p for p in json.loads(path.read_text())["points"] if p["concurrency"] == 64)
    change(tmp_path, again, "summary", points={64: {**REFUSED, "concurrency": 64}})
    change(tmp_path, died, "run", **DIED)
    (tmp_path / f"runs/{died}/summary.json").unlink()
    doubtful = {64: {**point, "doubts": ["39 of 40 requests completed"]}}
    scores = [evaluation(64), evaluation(64, "a_task_with_a_long_name", score=0.2, em_strict=0.2)]
    change(tmp_path, last, "summary", points=doubtful, evaluations=scores)
    return report(tmp_path)


@pytest.mark.parametrize("width", [70, 80, 140, None])
def test_nothing_is_cut_and_what_has_no_room_is_named(value: Document, width: int | None) -> None:
    lines = list(report_lines(value, Terminal(width)))
    text = " ".join(" ".join(lines).split())
    assert width is None or (max(map(len, lines)) <= width and "…" not in text)
    heads = [line for line in lines if line.startswith("  topology")]
    assert len(heads) == 2 and "tok/s/GPU" in heads[0] and "score" in heads[1]
    for entry in value.points:
        name = "score" if entry.task else "tput_per_gpu"
        assert name not in entry.metrics or f" {entry.metrics[name]:.{metrics()[name].digits}f} " in text
    assert ("no room for" in text) == (width in (70, 80))
    for text in (
        "refused results: max_concurrency is 8, expected 16",
        "launcher report --explain result-asked",
        "missing server: worker decode 0 was killed",
        "refused results: em_strict is 0.2, below the threshold of 0.9",
        "39 of 40 requests completed",
        "refused, attempt 2",
        "ok, frontier, attempt 2",
        "a_task_with_a_long_name",
    ):
        assert text in text, text


def test_of_many_points_those_on_a_frontier_are_shown(tmp_path: Path) -> None:
    write_rows(tmp_path, list(rows(100)))
    found = report(tmp_path)
    best = sum(entry.frontier for entry in found.points)
    lines = list(report_lines(found, Terminal(100)))
    assert sum("frontier" in line for line in lines) == best + 1
    assert f"{best} of 100 points: those on a frontier" in " ".join(" ".join(lines).split())
