"""Rows of evaluations: of lm-eval's ``results*.json`` beside ``meta_env.json``.

Equal to InferenceX's utils/collect_eval_results.py, but that a score that is NaN is refused and the error of one is
null. Whether files can be believed and scores are good enough is evaluations.py's. Files are read here, none written.
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
_CONCURRENCY = re.compile(r"_conc(\d+)(?:_\d+)?\.json$")
_HELD = ("em_strict", "em_flexible", "score")


def _document(path: Path) -> Any:
    """A file's JSON; None where it is none."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None


def concurrency_of(name: str) -> int | None:
    """The concurrency in the name of a batched result."""
    found = _CONCURRENCY.search(name)
    return int(found[1]) if found else None


def evaluation_rows(root: Path) -> list[Row]:
    """The rows of all evaluations in ``root`` and in the directories below it, in the file system's order.

    Files that do not parse are passed over. Raises ResultError for a document of another form, or a score of NaN.
    """
    sets = [d for d in (root, *(root.iterdir() if root.is_dir() else ())) if d.is_dir() and (d / META).exists()]
    rows = [row for directory in sets for row in rows_of_directory(directory)]
    for row in rows:
        for key in [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
            if not key.endswith("_se"):
                raise ResultError(f"{key} of {row['task']} is {row[key]}", where=str(row["source"]))
            row[key] = None
    return rows


def rows_of_directory(directory: Path) -> list[Row]:
    """The rows of the evaluation in a directory, whatever its scores are. Raises ResultError for another form."""
    rows = []
    with refuse_unknown_form(str(directory)):
        for meta, path in _results(directory, _document(directory / META) or {}):
            document = _document(path) or {}
            mark = {"rehearsal": True} if document.get("rehearsal") else {}  # a rehearsal must not pass for a result
            rows += [evaluation_row(meta, {**scores, "source": str(path)}) | mark for scores in task_scores(document)]
    return rows


def requested_rows(directory: Path, meta: Any) -> list[Row]:
    """The rows of an evaluation's directory, which has this metadata; of what has no result one without a task.
    Raises ResultError for another form."""
    with refuse_unknown_form(str(directory)):
        rows, asked = rows_of_directory(directory), meta.get("eval_concs")
        asked = asked if isinstance(asked, list) else [meta["conc"]] if "conc" in meta and not rows else []
        there = {row["conc"] for row in rows}
        return rows + [evaluation_row({**meta, "conc": one}, {}) for one in asked if one not in there]


@contextlib.contextmanager
def refuse_unknown_form(where: str) -> Iterator[None]:
    """Raises ResultError for a document of another form than lm-eval's."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ResultError(f"no evaluation of a known form: {error!r}", where=where) from None


def _results(directory: Path, meta: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """The newest result of a set with its metadata; of a batched one the newest of each completed concurrency."""
    asked = meta.get("eval_concs")
    latest: dict[int | None, Path] = {}
    for path in sorted(directory.glob("*.json")):
        found = _document(path) if path.name != META else None
        if not isinstance(found, dict) or "lm_eval_version" not in found:
            continue
        key = concurrency_of(path.name) if isinstance(asked, list) else -1
        if key is not None and (key not in latest or path.stat().st_mtime > latest[key].stat().st_mtime):
            latest[key] = path
    if not isinstance(asked, list):
        yield from ((meta, path) for path in latest.values())
        return
    completed = meta.get("completed_eval_concs", asked)
    allowed = {_whole(one, -1) for one in completed} if isinstance(completed, list) else None
    for concurrency, path in sorted(latest.items(), key=lambda one: one[0] or 0):
        if allowed is None or concurrency in allowed:
            yield {**meta, "conc": concurrency}, path


def task_scores(document: Mapping[str, Any]) -> Iterator[Row]:
    """Per task of one result: the strict (or resolved) score, the flexible one, the accuracy, with their errors."""
    for task, said in (document.get("results", {}) or {}).items():
        config = document.get("configs", {}).get(task, {})
        metric = (config.get("metric_list") or [{"metric": "exact_match"}])[0]["metric"]
        filters = [one["name"] for one in config.get("filter_list") or []]
        taken = [] if filters else [("accuracy", "acc", "")] if "acc" in said else [("strict", metric, "")]
        for name in filters:
            words = {"strict": "strict", "resolved": "strict", "flex": "flex", "extract": "flex"}
            taken += [(score, metric, f",{name}") for word, score in words.items() if word in name][:1]
        found: Row = {}
        for score, key, suffix in taken:
            found |= {score: said.get(f"{key}{suffix}"), f"{score}_se": said.get(f"{key}_stderr{suffix}")}
        model = document.get("model_name") or config.get("metadata", {}).get("model")
        samples = document.get("n-samples", {}).get(task, {}).get("effective")
        yield {**found, "task": task, "n_eff": samples, "model": model}


def main_score(scores: Mapping[str, Any]) -> Row:
    """Of one task's scores the one that counts: the strict one, else the accuracy."""
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


def _whole(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise


def evaluation_row(meta: Mapping[str, Any], scores: Mapping[str, Any]) -> Row:
    """The row of one task: the evaluation's metadata, and its scores (`task_scores`), of which there may be none."""
    sides: Row = {}
    said = meta.get("dp_attention", "none")
    attention = [said if (own := meta.get(f"{side}_dp_attention")) is None else own for side in ("prefill", "decode")]
    for side, own in zip(("prefill", "decode"), attention, strict=True):
        for key, whole in (("tp", meta.get("tp", 1)), ("ep", meta.get("ep", 1)), ("num_workers", 1)):
            sides[f"{side}_{key}"] = _whole(meta.get(f"{side}_{key}", whole), 1)
        sides[f"{side}_dp_attention"] = str(own).lower()
    multinode = meta.get("is_multinode")
    multinode = multinode if isinstance(multinode, bool) else str(multinode).lower() == "true"
    if multinode:
        differ = f"prefill={str(attention[0]).lower()},decode={str(attention[1]).lower()}"
        said = attention[0] if attention[0] == attention[1] else differ
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
        "dp_attention": str(said).lower(),
        "task": scores.get("task", ""),
        "source": scores.get("source", ""),
        **main_score(scores),
    }


def is_evaluation(value: Any) -> bool:
    """Whether a document is an evaluation's row, as the workflow collects them."""
    return isinstance(value, dict) and {"task", "score_name", "model_prefix", "hw", "conc"} <= value.keys()


def evaluation_state(row: Mapping[str, Any]) -> tuple[Literal["ok", "missing", "refused", "rehearsal"], str]:
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
