"""Evaluations as points: the rows of a tree of artifacts, also of what was asked for and not evaluated; low scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.report.points import State
from launcher.result.evaluation_rows import known_form, row_of, rows_of_set
from launcher.result.row_fields import finite

SCORES = ("score", "score_se", "em_strict", "em_flexible", "n_eff", "threshold")
"""Metrics of an evaluation, by the keys of its row."""

_HELD = ("em_strict", "em_flexible", "score")


def is_evaluation(value: Any) -> bool:
    """Whether a document is an evaluation's row, as the workflow collects them."""
    return isinstance(value, dict) and {"task", "score_name", "model_prefix", "hw", "conc"} <= value.keys()


def rows_of(directory: Path, meta: Any) -> list[dict[str, Any]]:
    """The rows of an evaluation's directory, which has this metadata; of what has no result one without a task.
    Raises ResultError for another form."""
    with known_form(str(directory)):
        rows, asked = rows_of_set(directory), meta.get("eval_concs")
        asked = asked if isinstance(asked, list) else [meta["conc"]] if "conc" in meta and not rows else []
        there = {row["conc"] for row in rows}
        return rows + [row_of({**meta, "conc": one}, {}) for one in asked if one not in there]


def judge(row: Mapping[str, Any]) -> tuple[State, str]:
    """How an evaluation's row stands that nobody has judged; its ``threshold`` is the least score of its task."""
    if row.get("rehearsal"):
        return "rehearsal", "stand-ins ran, and nothing was measured"
    if not row["task"]:
        return "missing", "it was to be evaluated, and there is no result"
    if row.get("score") is None:
        return "refused", f"eval: {row['task']} has no score"
    for name in _HELD:
        value = row.get(name)
        if value is not None and not (finite(value) and 0 <= value <= 1):
            return "refused", f"eval: {name} of {row['task']} is {value!r}, and a share is from 0 to 1"
    least = row.get("threshold")
    for name in _HELD:
        if least is not None and row.get(name) is not None and row[name] < least:
            return "refused", f"{name} is {row[name]:.4g}, below the threshold of {least:g}"
    return "ok", ""
