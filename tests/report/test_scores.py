"""Evaluations in a report: points with a state and a reason, in a table of their own, and on no frontier."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from launcher.report import files
from launcher.report.comparison import compare_reports
from launcher.report.document import Document, Entry, as_json
from launcher.report.gather import gather
from launcher.report.page import render_page
from launcher.result.contradictions import rule_of
from launcher.sweep.ledger import Ledger
from launcher.sweep.schema import Began, Policy, Reused, Started, Sweep
from tests.report.made import evaluation, row, write_evaluation, write_rows, write_runs
from tests.report.test_sources import DIED, change, job, report


def scores(document: Document) -> dict[tuple[int, str], Entry]:
    return {(entry.concurrency, entry.task): entry for entry in document.evaluations}


LOW = evaluation(64, "gpqa", score=0.2, em_strict=0.2, em_flexible=0.31, threshold=0.3)
BAD = evaluation(16, state="invalid", reason="results.json cannot be believed: gsm8k has no score", score=None)


@pytest.fixture
def value(tmp_path: Path) -> Document:
    """Two runs of four points; the first evaluated as well: a score is good, one low, one is none, one is missing."""
    name, _ = write_runs(tmp_path, 2)
    absent = {"concurrency": 4, "state": "missing", "reason": "there is no result"}
    change(tmp_path, name, "summary", evaluations=[evaluation(64), LOW, BAD, absent])
    return report(tmp_path)


def test_a_score_is_a_point_with_a_state_and_a_reason(value: Document) -> None:
    assert value.counts == {"ok": 9, "refused": 2, "missing": 1} and len(value.measured) == 8
    found = scores(value)
    good = found[64, "gsm8k"]
    assert good.metrics == {"score": 0.95, "score_se": 0.006, "em_strict": 0.95, "em_flexible": 0.96, "n_eff": 1319.0,
                            "threshold": 0.9}  # fmt: skip
    assert (good.state, good.run, good.hardware) == ("ok", value.runs[0].id, "gb200")
    low, bad, absent = found[64, "gpqa"], found[16, "gsm8k"], found[4, ""]
    assert (low.state, low.reason, low.rule) == (
        "refused",
        "em_strict is 0.2, below the threshold of 0.3",
        "result-score",
    )
    assert low.metrics["score"] == 0.2, "what was measured is shown"
    assert (bad.state, bad.rule, bad.layer) == ("refused", "result-evaluation", "results")
    assert (absent.state, absent.reason) == ("missing", "there is no result")


def test_a_score_is_in_every_form_and_in_no_picture(value: Document) -> None:
    ids = {entry.id for entry in value.evaluations}
    assert not any(entry.frontier for entry in value.evaluations)
    assert not ids & {key for panel in value.panels for curve in panel.curves for key in curve.points}
    read = {point["id"]: point for point in json.loads(as_json(value))["points"]}
    assert {(read[key]["scenario"], read[key].get("task", "")) for key in ids} >= {("evaluation", "gpqa")}
    lines = {line["id"]: line for line in csv.DictReader(io.StringIO(files.points_csv(value)))}
    assert all(
        (lines[entry.id]["task"], lines[entry.id]["state"]) == (entry.task, entry.state) for entry in value.evaluations
    )
    assert {lines[entry.id]["threshold"] for entry in value.evaluations} == {"0.9", "0.3", ""}
    cases = {case.get("name"): case for case in ElementTree.fromstring(files.junit(value)).iter("testcase")}
    low = next(case for name, case in cases.items() if name and name.endswith("c64 gpqa"))
    failure = low.find("failure")
    assert failure is not None and failure.get("message") == "em_strict is 0.2, below the threshold of 0.3"
    text = files.markdown(value)
    assert "| score, share | standard error, share | strict match, share |" in text
    assert any(
        line.startswith("| refused |") and "| 0.2000 |" in line and line.endswith("| gpqa |")
        for line in text.splitlines()
    )
    shown = render_page(value)
    table = shown.partition("<h2>Evaluations")[2].partition("</table>")[0]
    assert table.count("<tr id=p") == 4 and "<td>gpqa<td>0.2000<td>0.0060<td>0.2000<td>0.3100" in table
    assert "below the threshold of 0.3" in shown.partition("<h2>Frontiers")[0]


def test_a_job_that_died_before_it_evaluated_is_an_attempt_at_what_the_next_one_evaluated(tmp_path: Path) -> None:
    first, second = write_runs(tmp_path, 2)
    for name in (first, second):
        plan = json.loads((tmp_path / f"runs/{first}/plan.json").read_text())
        change(tmp_path, name, "plan", benchmark={**plan["benchmark"], "eval_only": True, "eval_concurrencies": [64]})
    change(tmp_path, first, "run", **DIED)
    (tmp_path / f"runs/{first}/summary.json").unlink()
    change(tmp_path, second, "summary", evaluations=[evaluation(64), evaluation(64, "gpqa")])
    path = tmp_path / f"runs/{second}/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "points": []}))
    found = report(tmp_path)
    assert found.counts == {"ok": 2} and {*scores(found)} == {(64, "gsm8k"), (64, "gpqa")}
    for entry in found.points:
        assert [(one.state, one.run) for one in entry.attempts] == [("missing", first), ("ok", second)]
        assert entry.attempts[0].reason == "worker decode 0 was killed"
    change(tmp_path, second, "run", state="running", verdict=None)
    path.unlink()
    assert [entry.state for entry in report(tmp_path).points] == ["missing"]


def test_a_rehearsed_score_is_none(tmp_path: Path) -> None:
    (name,) = write_runs(tmp_path, 1)
    change(tmp_path, name, "summary", evaluations=[evaluation(64, rehearsal=True)], rehearsal=True)
    assert report(tmp_path).counts == {"rehearsal": 5}
    write_evaluation(tmp_path / "tree/eval_a", {"gsm8k": 0.95}, rehearsal=True)
    assert report(tmp_path, str(tmp_path / "tree")).counts == {"rehearsal": 1}


def test_evaluations_of_downloaded_artifacts(tmp_path: Path) -> None:
    write_rows(tmp_path, [row()])
    write_evaluation(tmp_path / "eval_good", {"gsm8k": 0.95})
    write_evaluation(tmp_path / "eval_low", {"gsm8k": 0.5}, tp=4)
    write_evaluation(tmp_path / "eval_nan", {"gsm8k": float("nan")}, tp=2)
    write_evaluation(tmp_path / "eval_none", {}, tp=1)
    write_evaluation(
        tmp_path / "eval_part", {"gsm8k": 0.95}, conc=4, eval_concs=[4, 16], completed_eval_concs=[4], dp_attention=True
    )
    (tmp_path / "eval_odd").mkdir()
    (tmp_path / "eval_odd/meta_env.json").write_text("[1]")
    from launcher.result.evaluation_rows import evaluation_rows

    collected = [*evaluation_rows(tmp_path / "eval_good"), *evaluation_rows(tmp_path / "eval_low")]
    (tmp_path / "eval_results_all").mkdir()
    (tmp_path / "eval_results_all/agg_eval_all.json").write_text(json.dumps(collected))
    found = report(tmp_path)
    assert [problem.partition(":")[0] for problem in found.problems] == ["eval_odd/meta_env.json"]
    by_shape = {(entry.topology, entry.concurrency): entry for entry in found.evaluations}
    assert {shape: entry.state for shape, entry in by_shape.items()} == {
        ("TP8", 64): "ok", ("TP4", 64): "refused", ("TP2", 64): "refused", ("TP1", 64): "missing", ("DP8", 4): "ok",
        ("DP8", 16): "missing",
    }  # fmt: skip
    assert by_shape["TP4", 64].reason == "em_strict is 0.5, below the threshold of 0.9"
    assert by_shape["TP2", 64].reason == "eval: em_strict of gsm8k is nan, and a share is from 0 to 1"
    assert all(len(entry.attempts) == 1 for entry in found.evaluations), "a collected row is no second attempt"
    assert by_shape["TP8", 64].metrics["n_eff"] == 1319.0 and json.loads(as_json(found))


def test_scores_are_compared_by_their_own_metrics(tmp_path: Path) -> None:
    (name,) = write_runs(tmp_path / "a", 1)
    write_runs(tmp_path / "b", 1)
    for side, score in (("a", 0.95), ("b", 0.91)):
        change(
            tmp_path / side,
            name,
            "summary",
            evaluations=[evaluation(64, score=score, em_strict=score, em_flexible=score)],
        )
    base, now = (gather([str(tmp_path / side)], tmp_path) for side in ("a", "b"))

    def held(*thresholds: str) -> Any:
        return compare_reports(report(tmp_path, str(tmp_path / "b")), now, base, thresholds)

    found = held("tput_per_gpu:-5%")
    assert found.exit_code == 0 and found.failed == ()
    one = next(one for one in found.points if one.point.endswith("c64 gsm8k"))
    assert one.answer == "worse" and {change.metric for change in one.changes} == {"score", "em_strict", "em_flexible"}
    (failed,) = held("score:-2%").failed
    assert "c64" in failed or "concurrency 64" in failed
    assert held("score:-5%").exit_code == 0


def test_a_low_score_is_a_check_of_its_own() -> None:
    assert rule_of("em_strict is 0.8, below the threshold of 0.9") == "result-score"
    assert rule_of("eval: a is empty") == "result-evaluation"


def test_evaluations_of_a_sweep(tmp_path: Path) -> None:
    done, earlier, _, other = ids = write_runs(tmp_path, 4, [64])
    for name in ids:
        plan = json.loads((tmp_path / f"runs/{name}/plan.json").read_text())
        change(tmp_path, name, "plan", benchmark={**plan["benchmark"], "eval_only": True})
        path = tmp_path / f"runs/{name}/summary.json"
        summary = {**json.loads(path.read_text()), "points": [], "evaluations": [evaluation(64)]}
        path.write_text(json.dumps(summary))
    jobs = {name: job(tmp_path, name) for name in ids}
    sweep = Sweep(id="evals", created=1.0, launcher="0", selection=(), policy=Policy(), jobs=tuple(jobs.values()))
    ledger = Ledger.create(tmp_path / "sweeps", sweep)
    ledger.append(Began(time=1.0, driver="me", policy=Policy()))
    for name in (done, other):
        ledger.append(Started(time=2.0, job=jobs[name].key, run=name, concurrencies=(64,)))
    ledger.append(Reused(time=3.0, job=jobs[earlier].key, run=earlier, concurrencies=(64,)))
    found = report(tmp_path, "evals")
    assert [(entry.scenario, entry.task) for entry in found.points if entry.state == "missing"] == [("evaluation", "")]
    assert {entry.run: entry.state for entry in found.points} == {
        done: "ok", other: "ok", earlier: "reused", "": "missing",
    }  # fmt: skip
    assert next(entry.reason for entry in found.points if not entry.run).startswith("planned")
