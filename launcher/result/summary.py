"""`summary.json`: what ran, how it ended, and every number, in one document that stands alone.

And such documents of many runs as a table for a terminal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.core.lines import Line, table
from launcher.plan.plan import Plan
from launcher.result.collect import Collected

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Used:
    """What the job really ran with; None or empty where a run ended before that was known.

    ``srt_slurm_sha`` is the checkout's commit. ``images`` are mappings with ``reference``, ``digest``, ``squash`` and
    ``bytes``. ``model`` is `launcher.model.checkpoint.CheckpointReport.as_dict()`. ``stand_ins``: no real engine ran.
    """

    srt_slurm_sha: str | None = None
    images: Sequence[Mapping[str, Any]] = ()
    model: Mapping[str, Any] | None = None
    stand_ins: bool = False


def summary(
    plan: Plan,
    collected: Collected,
    *,
    state: str,
    job_id: str | None,
    used: Used,
    times: Mapping[str, float | None],
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary of the plan's run, ready for JSON; what is not known is null, never left out.

    ``state`` is the last one of the job or of the run (``COMPLETED``, ``TIMEOUT``, ``CANCELLED``, ``unknown``).
    ``times`` are Unix seconds by name (``started``, ``submitted``, ``ended``). Every concurrency that was asked for has
    an entry in ``points``, with ``state`` ok, missing or invalid. ``problems`` are those that do not come from the
    results. A single rehearsed point makes the whole a rehearsal.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "rehearsal": used.stand_ins or any(point.rehearsal for point in collected.points),
        "run_id": plan.run_key,
        "runner": plan.runner,
        "job": {"id": job_id, "state": state},
        "benchmark": _benchmark(plan.benchmark),
        "srt_slurm": {"sha": used.srt_slurm_sha},
        "images": [
            {key: image.get(key) for key in ("reference", "digest", "squash", "bytes")} for image in used.images
        ],
        "model": None if used.model is None else dict(used.model),
        "points": _points(plan.benchmark, collected),
        "evaluations": list(map(dataclasses.asdict, collected.evaluations)),
        "problems": [*problems, *map(str, collected.problems)],
        "doubts": list(collected.doubts),
        "times": dict(times),
    }


_PLAIN = ("exp_name", "model", "model_prefix", "precision", "framework", "scenario", "spec_decoding", "topology")


def _benchmark(benchmark: Benchmark) -> dict[str, Any]:
    return {
        **{name: getattr(benchmark, name) for name in _PLAIN},
        "isl": benchmark.isl,
        "osl": benchmark.osl,
        "concurrencies": list(benchmark.concurrencies),
        "recipe": benchmark.config_file,
        "recipe_fingerprint": benchmark.recipe_fingerprint,
        "settings": dict(benchmark.settings),
    }


def _points(benchmark: Benchmark, collected: Collected) -> list[dict[str, Any]]:
    measured = {point.concurrency: point for point in collected.points}
    bad = {problem.concurrency: problem for problem in collected.problems if problem.concurrency is not None}
    asked = () if benchmark.eval_only else benchmark.concurrencies
    points = []
    for concurrency in sorted({*asked, *measured}):
        problem, point = bad.get(concurrency), measured.get(concurrency)
        if problem is not None or point is None:
            kind = problem.kind if problem else "missing"
            points.append({"concurrency": concurrency, "state": kind, "reason": problem.text if problem else None})
        else:
            fields = {**dataclasses.asdict(point), "path": str(point.path), "doubts": list(point.doubts)}
            points.append({"concurrency": fields.pop("concurrency"), "state": "ok", **fields})
    return points


REHEARSAL = "REHEARSAL: nothing was served and nothing was measured; the numbers are made up."
_HEAD = ("runner", "benchmark", "configuration", "topology")
_COLUMNS = (*_HEAD, "ISL/OSL", "conc", "tok/s", "tok/s/GPU", "TTFT ms", "TPOT ms", "ITL ms", "state")
_NUMBERS = (("total_throughput", 0), ("throughput_per_gpu", 1), ("ttft_median_ms", 1), ("tpot_median_ms", 2),
            ("itl_median_ms", 2))  # fmt: skip
_SCORES = (*_HEAD, "task", "conc", "score", "least", "samples", "state")
_MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One point: its cells as text, whether it is a good one, and whether it is a rehearsal."""

    cells: tuple[str, ...]
    good: bool
    rehearsal: bool


def rows(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each concurrency asked for, in the order given; a run that asked for none has one row for its state.

    Latencies are medians. ``state`` is ``ok``, or what is wrong with the point or with the job.
    """
    found = []
    for summary in summaries:
        benchmark, job = summary["benchmark"], summary["job"]
        lengths = f"{benchmark['isl']}/{benchmark['osl']}" if benchmark["isl"] else str(benchmark["scenario"])
        ended = "" if job["state"] == "COMPLETED" else ", no job" if job["id"] is None else f", job {job['state']}"
        for point in summary["points"] or [{"state": "ok" if not summary["problems"] else "failed"}]:
            numbers = (_number(point.get(key), digits) for key, digits in _NUMBERS)
            cells = (lengths, str(point.get("concurrency", _MISSING)), *numbers)
            found.append(_row(summary, cells, f"{point['state']}{ended}", good=point["state"] == "ok" and not ended))
    return found


def score_rows(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each task that was evaluated, or was to be; a score below the least one is not good."""
    found = []
    for summary in summaries:
        for one in summary.get("evaluations") or ():
            score, least = one.get("score"), one.get("threshold")
            low = score is not None and least is not None and score < least
            state = "too low" if low and not one.get("reason") else str(one["state"])
            state = f"{state}: {one['reason']}" if one.get("reason") else state
            at = _MISSING if one.get("concurrency") is None else str(one["concurrency"])
            numbers = (_number(score, 4), _number(least, 2), _number(one.get("n_eff"), 0))
            cells = (str(one.get("task") or _MISSING), at, *numbers)
            found.append(_row(summary, cells, state, good=one["state"] == "ok" and not low))
    return found


def _row(summary: Mapping[str, Any], cells: Sequence[str], state: str, *, good: bool) -> Row:
    of = summary["benchmark"]
    method = [of["spec_decoding"]] if of["spec_decoding"] != "none" else []
    head = (summary["runner"], of["exp_name"], " ".join([of["framework"], of["precision"], *method]), of["topology"])
    rehearsal = bool(summary["rehearsal"])
    return Row((*map(str, head), *cells, f"REHEARSAL, {state}" if rehearsal else state), good, rehearsal)


def table_lines(summaries: Sequence[Mapping[str, Any]], width: int | None) -> list[Line]:
    """The tables of points and of scores for a terminal of so many columns; in one line a row where it is none."""
    points, scores = rows(summaries), score_rows(summaries)
    lines = [Line(REHEARSAL, "yellow")] if any(row.rehearsal for row in points) else []
    for columns, found in ((_COLUMNS, points), (_SCORES, scores)):
        styles = ["yellow" if row.rehearsal and row.good else "green" if row.good else "red" for row in found]
        lines += [Line("")] if found is scores and scores else []
        lines += table(columns, [row.cells for row in found], width, styles) if found else []
    return lines


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else _MISSING
