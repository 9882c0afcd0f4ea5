"""Rows of evaluations, from lm-eval's ``results*.json`` and the ``meta_env.json`` beside it.

They are equal to those of InferenceX's utils/collect_eval_results.py, except that a score of NaN is refused and a
standard error of NaN becomes null. evaluations.py checks the files and the scores. This module reads files and writes
none.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from launcher.core.errors import ResultError
from launcher.core.reading import load_json
from launcher.result.row_fields import Row, finite

META = "meta_env.json"
_SIDES = ("prefill", "decode")
_CONCURRENCY = re.compile(r"_conc(\d+)(?:_\d+)?\.json$")
_CHECKED_SCORES = ("em_strict", "em_flexible", "score")


def _document(path: Path) -> Any:
    """A file's JSON; None if it cannot be read."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None


def concurrency_of(name: str) -> int | None:
    """The concurrency in the name of a batched result."""
    match = _CONCURRENCY.search(name)
    return int(match[1]) if match else None


def evaluation_rows(root: Path) -> list[Row]:
    """The rows of all evaluations in ``root`` and in its immediate subdirectories, in the file system's order.

    Files that do not parse are skipped. Raises ResultError for a document of another form, or a score of NaN.
    """
    candidates = (root, *(root.iterdir() if root.is_dir() else ()))
    directories = [path for path in candidates if path.is_dir() and (path / META).exists()]
    rows = [row for directory in directories for row in rows_of_directory(directory)]
    for row in rows:
        for key in [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
            if not key.endswith("_se"):
                raise ResultError(f"{key} of {row['task']} is {row[key]}", where=str(row["source"]))
            row[key] = None
    return rows


def rows_of_directory(directory: Path) -> list[Row]:
    """The rows of the evaluation in a directory, with unchecked scores. Raises ResultError for another form."""
    rows = []
    with refuse_unknown_form(str(directory)):
        for meta, path in _results(directory, _document(directory / META) or {}):
            document = _document(path) or {}
            flag = {"rehearsal": True} if document.get("rehearsal") else {}  # nobody may take it for a measurement
            rows += [evaluation_row(meta, {**scores, "source": str(path)}) | flag for scores in task_scores(document)]
    return rows


def requested_rows(directory: Path, meta: Any) -> list[Row]:
    """The rows of an evaluation's directory, whose metadata is ``meta``. A requested concurrency without any result has
    a row without a task. Raises ResultError for another form."""
    with refuse_unknown_form(str(directory)):
        rows, concurrencies = rows_of_directory(directory), meta.get("eval_concs")
        if not isinstance(concurrencies, list):
            concurrencies = [meta["conc"]] if "conc" in meta and not rows else []
        present = {row["conc"] for row in rows}
        return rows + [evaluation_row({**meta, "conc": c}, {}) for c in concurrencies if c not in present]


@contextlib.contextmanager
def refuse_unknown_form(where: str) -> Iterator[None]:
    """Raise ResultError if the code of the block finds a document that does not have lm-eval's form."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ResultError(f"no evaluation of a known form: {error!r}", where=where) from None


def _results(directory: Path, meta: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """The newest result of an evaluation with its metadata; of a batched one the newest of each completed
    concurrency."""
    batched = isinstance(meta.get("eval_concs"), list)
    latest: dict[int | None, Path] = {}
    for path in sorted(directory.glob("*.json")):
        document = _document(path) if path.name != META else None
        if not isinstance(document, dict) or "lm_eval_version" not in document:
            continue
        key = concurrency_of(path.name) if batched else -1
        if key is not None and (key not in latest or path.stat().st_mtime > latest[key].stat().st_mtime):
            latest[key] = path
    if not batched:
        yield from ((meta, path) for path in latest.values())
        return
    completed = meta.get("completed_eval_concs", meta["eval_concs"])
    allowed = {_whole(concurrency, -1) for concurrency in completed} if isinstance(completed, list) else None
    for concurrency, path in sorted(latest.items(), key=lambda item: item[0] or 0):
        if allowed is None or concurrency in allowed:
            yield {**meta, "conc": concurrency}, path


def task_scores(document: Mapping[str, Any]) -> Iterator[Row]:
    """For each task of one result: the strict (or resolved) score, the flexible one and the accuracy, with errors."""
    for task, values in (document.get("results", {}) or {}).items():
        config = document.get("configs", {}).get(task, {})
        metric = (config.get("metric_list") or [{"metric": "exact_match"}])[0]["metric"]
        filters = [one["name"] for one in config.get("filter_list") or []]
        sources = [] if filters else [("accuracy", "acc", "")] if "acc" in values else [("strict", metric, "")]
        for name in filters:
            words = {"strict": "strict", "resolved": "strict", "flex": "flex", "extract": "flex"}
            sources += [(score, metric, f",{name}") for word, score in words.items() if word in name][:1]
        scores: Row = {}
        for score, key, suffix in sources:
            scores |= {score: values.get(f"{key}{suffix}"), f"{score}_se": values.get(f"{key}_stderr{suffix}")}
        model = document.get("model_name") or config.get("metadata", {}).get("model")
        samples = document.get("n-samples", {}).get(task, {}).get("effective")
        yield {**scores, "task": task, "n_eff": samples, "model": model}


def main_score(scores: Mapping[str, Any]) -> Row:
    """The columns of one task's scores. ``score`` is the strict one, otherwise the accuracy."""
    name = next((key for key in ("strict", "accuracy") if scores.get(key) is not None), None)
    return {
        "em_strict": scores.get("strict"),
        "em_strict_se": scores.get("strict_se"),
        "em_flexible": scores.get("flex"),
        "em_flexible_se": scores.get("flex_se"),
        "n_eff": scores.get("n_eff"),
        "score": scores.get(name or ""),
        "score_name": {"strict": "em_strict"}.get(name or "", name),
        "score_se": scores.get(f"{name}_se"),
    }


def _whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def evaluation_row(meta: Mapping[str, Any], scores: Mapping[str, Any]) -> Row:
    """The row of one task: the evaluation's metadata, and its scores (`task_scores`), which may be empty."""
    sides: Row = {}
    attention = meta.get("dp_attention", "none")
    by_side = [attention if (value := meta.get(f"{side}_dp_attention")) is None else value for side in _SIDES]
    for side, value in zip(_SIDES, by_side, strict=True):
        for key, default in (("tp", meta.get("tp", 1)), ("ep", meta.get("ep", 1)), ("num_workers", 1)):
            sides[f"{side}_{key}"] = _whole(meta.get(f"{side}_{key}", default), 1)
        sides[f"{side}_dp_attention"] = str(value).lower()
    multinode = str(meta.get("is_multinode")).lower() == "true"
    if multinode:
        both = "prefill={prefill_dp_attention},decode={decode_dp_attention}".format_map(sides)
        attention = by_side[0] if by_side[0] == by_side[1] else both
    return {
        "is_multinode": multinode,
        "model_prefix": meta.get("infmax_model_prefix", "unknown"),
        "model": scores.get("model") or meta.get("model", "unknown"),
        "hw": meta.get("hw", "unknown").upper(),
        "framework": meta.get("framework", "unknown").lower(),
        "precision": meta.get("precision", "unknown").lower(),
        "spec_decoding": meta.get("spec_decoding", "unknown"),
        "isl": _whole(meta.get("isl", 0), 0),
        "osl": _whole(meta.get("osl", 0), 0),
        "tp": _whole(meta.get("tp", sides["prefill_tp"]), sides["prefill_tp"]),
        "ep": _whole(meta.get("ep", sides["prefill_ep"]), sides["prefill_ep"]),
        **sides,
        "conc": _whole(meta.get("conc", 0), 0),
        "dp_attention": str(attention).lower(),
        "task": scores.get("task", ""),
        "source": scores.get("source", ""),
        **main_score(scores),
    }


def is_evaluation(value: Any) -> bool:
    """Whether a document is an evaluation's row, as the workflow collects them."""
    return isinstance(value, dict) and {"task", "score_name", "model_prefix", "hw", "conc"} <= value.keys()


def evaluation_state(row: Mapping[str, Any]) -> tuple[Literal["ok", "missing", "refused", "rehearsal"], str]:
    """The state of an evaluation's row, and the reason. The row's ``threshold`` is the minimum score of its task."""
    if row.get("rehearsal"):
        return "rehearsal", "stand-ins ran, and nothing was measured"
    if not row["task"]:
        return "missing", "it was to be evaluated, and there is no result"
    if row.get("score") is None:
        return "refused", f"eval: {row['task']} has no score"
    for name in _CHECKED_SCORES:
        value = row.get(name)
        if value is not None and not (finite(value) and 0 <= value <= 1):
            return "refused", f"eval: {name} of {row['task']} is {value!r}, and a share is from 0 to 1"
    threshold = row.get("threshold")
    for name in _CHECKED_SCORES:
        if threshold is not None and row.get(name) is not None and row[name] < threshold:
            return "refused", f"{name} is {row[name]:.4g}, below the threshold of {threshold:g}"
    return "ok", ""
