"""The table, as a terminal and a pipe see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.result.collect import CollectedResults
from launcher.result.summary_file import REHEARSAL, Evaluation, rows, score_rows, table_lines
from tests.result.test_summary import BENCHMARK, GOOD, USED, a_plan, made

MISSING = ("-",) * 5


def test_a_missing_point_is_shown_as_missing() -> None:
    table = rows([made(), made(CollectedResults(), state="TIMEOUT")])
    head = ("gb200-nv", "minimaxm3_8k1k", "dynamo-vllm fp4", "2P1D DEP4/TP8", "8192/1024")
    assert [row.cells for row in table] == [
        (*head, "4", "960", "-", "84.2", "-", "-", "ok"),
        (*head, "16", *MISSING, "invalid"),
        (*head, "64", *MISSING, "missing"),
        *((*head, str(at), *MISSING, "missing, job TIMEOUT") for at in (4, 16, 64)),
    ]
    assert [row.good for row in table] == [True] + [False] * 5


def test_what_differs_in_framework_precision_or_method_does_not_look_alike() -> None:
    others = ({"framework": "trt"}, {"precision": "fp8"}, {"spec_decoding": "mtp"})
    table = rows([made(plan=a_plan(benchmark=replace(BENCHMARK, **other))) for other in ({}, *others)])
    assert [row.cells[2] for row in table if row.cells[5] == "4"] == [
        "dynamo-vllm fp4",
        "trt fp4",
        "dynamo-vllm fp8",
        "dynamo-vllm fp4 mtp",
    ]


def test_a_point_of_a_job_that_failed_is_not_good() -> None:
    row = rows([made(CollectedResults(points=(GOOD,)), state="NODE_FAIL")])[0]
    assert (row.cells[-1], row.good) == ("ok, job NODE_FAIL", False)


@pytest.mark.parametrize(("problems", "state"), [((), "ok"), (("no results*.json",), "failed")])
def test_a_run_without_points_has_one_row(problems: tuple[str, ...], state: str) -> None:
    document = made(CollectedResults(), plan=a_plan(benchmark=replace(BENCHMARK, eval_only=True)), problems=problems)
    assert [(row.cells[5], row.cells[-1]) for row in rows([document])] == [("-", state)]


def test_a_rehearsal_is_said_in_every_form() -> None:
    document = made(used=replace(USED, stand_ins=True))
    assert all(row.cells[-1].startswith("REHEARSAL, ") for row in rows([document]))
    assert REHEARSAL in plain([document])


def plain(summaries: list[dict[str, Any]]) -> str:
    return "\n".join(table_lines(summaries, None))


def test_a_pipe_gets_plain_text_with_one_line_a_row() -> None:
    text = plain([made(plan=a_plan(benchmark=replace(BENCHMARK, exp_name="x" * 150)))])
    assert text.isascii() and "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[1].split()[-7:] == ["4", "960", "-", "84.2", "-", "-", "ok"]


def test_markup_in_a_name_is_text() -> None:
    assert "[bold]x[/bold]" in plain([made(plan=a_plan(runner="[bold]x[/bold]"))])


def test_scores_have_a_table_of_their_own() -> None:
    good = Evaluation(64, "gsm8k", score=0.95, threshold=0.9, n_eff=1319)
    low, missing = replace(good, task="gpqa", score=0.2), Evaluation(None, state="missing", reason="no results*.json")
    document = made(CollectedResults(points=(GOOD,), evaluations=(good, low, missing)))
    head = ("gb200-nv", "minimaxm3_8k1k", "dynamo-vllm fp4", "2P1D DEP4/TP8")
    assert [(row.cells, row.good) for row in score_rows([document])] == [
        ((*head, "gsm8k", "64", "0.9500", "0.90", "1319", "ok"), True),
        ((*head, "gpqa", "64", "0.2000", "0.90", "1319", "too low"), False),
        ((*head, "-", "-", "-", "-", "-", "missing: no results*.json"), False),
    ]
    text = "\n".join(table_lines([document], 80))
    assert "gsm8k" in text and "0.9500" in text and "no results*.json" in text
    assert "task" not in "\n".join(table_lines([made()], 80))
