"""Points of run records: the points that each run was to measure, their results, and why results are missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError, ResultError
from launcher.core.reading import load_json, read_file
from launcher.report.document import Image, ReportInput, Run
from launcher.report.points import SCORES, Point, State, identity_of, identity_of_evaluation
from launcher.result.contradictions import rule_of
from launcher.result.evaluation_rows import evaluation_state
from launcher.result.row_fields import finite, is_row
from launcher.result.summary_file import Evaluation, Summary, SummaryPoint, read_summary
from launcher.run.fields import ENDED, LARGEST, WHOLE, RunFields, read_fields

_METRICS = {
    "tput_per_gpu": ("throughput_per_gpu", 1.0),
    "output_tput_per_gpu": ("output_throughput_per_gpu", 1.0),
    **{
        f"{statistic}_{family}": (f"{family}_{statistic}_ms", 1000.0)
        for family in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("median", "p99")
    },
    "p90_e2e_norm_intvty": ("e2e_norm_intvty_p90", 1.0),
}
"""A key of an aggregate, the key of ``summary.json`` with the same metric, and the divisor between the two."""


class _Plan(msgspec.Struct, frozen=True):
    benchmark: Benchmark


_PLAN = msgspec.json.Decoder(_Plan)


def add_runs(gathered: ReportInput, runs: Path) -> None:
    """Add all runs of a directory of records, the oldest first; unreadable records become problems."""
    from launcher.run.listing import UnreadableRecord, each_record

    unreadable: list[UnreadableRecord] = []
    records = sorted(each_record(runs, unreadable, facts=False), key=lambda record: record.fields.created)
    for record in records:
        _add(gathered, record.directory, record.fields)
    gathered.problems += [f"run {one.id}: {one.error.message}" for one in unreadable]


def add_run(gathered: ReportInput, directory: Path) -> None:
    """Add one run. Raises ConfigError if its record cannot be read."""
    _add(gathered, directory, fields_of(directory))


def fields_of(directory: Path) -> RunFields:
    """The fields of a run's record. Raises ConfigError if it is missing or unreadable."""
    try:
        return read_fields(directory / "run.json", directory.name, facts=False)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError("there is no record", where=str(directory)) from None


def _add(gathered: ReportInput, directory: Path, fields: RunFields) -> None:
    try:
        run, points = read_run(directory, fields)
    except ConfigError as error:
        gathered.problems.append(f"run {fields.id}: {error.message}")
    else:
        gathered.add(run, points)


def read_run(directory: Path, fields: RunFields) -> tuple[Run, list[Point]]:
    """A run and its points: one for each requested or measured concurrency, and for each evaluated task.

    Raises ConfigError if its plan cannot be read, since the requested points are unknown then.
    """
    try:
        benchmark = _PLAN.decode(read_file(directory / "plan.json", LARGEST)).benchmark
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"its plan cannot be read: {error}") from None
    written, problem = None, ""
    try:
        written = read_summary(directory)
    except ResultError as error:
        problem = error.message
    summary = written or Summary()
    measured = {point.concurrency: point for point in summary.points if point.concurrency is not None}
    run = _run(directory, fields, benchmark, summary)
    rows = _rows(directory / "results") if benchmark.agentic or fields.results == "run" else {}
    points = []
    requested = () if benchmark.eval_only else benchmark.concurrencies
    for concurrency in sorted({*requested, *measured}):
        point = measured.get(concurrency)
        state, reason, layer = _state(point, fields, rehearsal=summary.rehearsal, problem=problem)
        row = {**_row(point), **rows.get(concurrency, {})} if point and state in ("ok", "rehearsal") else {}
        notes = point.doubts if point else ()
        points.append(Point(identity_of(benchmark, concurrency), row, state, reason, layer, run.id, notes))
    evaluations = summary.evaluations or ()
    if written is None and (benchmark.eval_only or benchmark.run_eval):
        evaluations = tuple(Evaluation(c, state="missing") for c in benchmark.eval_concurrencies or (None,))
    for evaluation in evaluations:
        points.append(_evaluation(evaluation, benchmark, fields, rehearsal=summary.rehearsal, problem=problem))
    return run, points


def _evaluation(
    evaluation: Evaluation, benchmark: Benchmark, fields: RunFields, *, rehearsal: bool, problem: str
) -> Point:
    """The point of one task. An evaluation without a concurrency ran at the largest one of the job."""
    has_result = evaluation.reason or evaluation.state != "missing"
    state, reason, layer = _state(evaluation if has_result else None, fields, rehearsal=rehearsal, problem=problem)
    row = {name: number for name in SCORES if (number := getattr(evaluation, name)) is not None}
    if state == "ok":
        state, reason = evaluation_state({**row, "task": evaluation.task})
        layer = "results" if reason else ""
    largest = max((*benchmark.eval_concurrencies, *benchmark.concurrencies), default=0)
    identity = identity_of_evaluation(benchmark, evaluation.concurrency or largest, evaluation.task)
    return Point(identity, row, state, reason, layer, fields.id)


def _state(
    result: SummaryPoint | Evaluation | None, fields: RunFields, *, rehearsal: bool, problem: str
) -> tuple[State, str, str]:
    """The state of a point, the reason, and the layer at fault. ``problem`` is why the summary is unreadable."""
    verdict = fields.verdict
    layer = verdict.layer if verdict is not None else ""
    if result is not None and result.state == "ok":
        if result.rehearsal or rehearsal:
            return "rehearsal", "stand-ins ran, and nothing was measured", ""
        if layer not in WHOLE:
            return "refused", f"its job failed, so that none of its results is believed; {fields.verdict}", layer
        return "ok", "", ""
    if result is not None and result.state == "invalid":
        reason = result.reason or "its result cannot be believed"
        return ("stale" if rule_of(reason) == "result-stale" else "refused"), reason, layer or "results"
    if verdict is not None and verdict.layer and (result is None or verdict.layer != "results"):
        return "missing", verdict.text, layer
    if result is not None or problem:
        return "missing", (result.reason if result else problem) or "there is no result", layer or "results"
    if fields.state in ENDED:
        return "missing", "there is no result", "results"
    if fields.job is not None and not fields.job.over:
        return "missing", f"not measured yet: job {fields.job.id} {fields.job.says}".strip(), ""
    return "missing", f"not measured yet: the run is {fields.state}", ""


def _row(point: SummaryPoint) -> dict[str, Any]:
    """A summary's point with the keys of an aggregate of fixed lengths."""
    row: dict[str, Any] = {}
    value: Any
    for name, (key, scale) in _METRICS.items():
        if finite(value := getattr(point, key)):
            row[name] = value / scale
    for statistic in ("median", "p99"):
        if finite(value := getattr(point, f"tpot_{statistic}_ms")) and value:
            row[f"{statistic}_intvty"] = 1000.0 / value
    return row


def _rows(results: Path) -> dict[int, dict[str, Any]]:
    """The aggregates beside a run's results, by concurrency; those of agentic runs are the results themselves."""
    rows = {}
    for path in sorted(results.glob("agg_*.json")) or sorted(results.glob("*_conc*.json")):
        try:
            row = load_json(path, LARGEST)
        except (OSError, ValueError):
            continue
        if is_row(row) and isinstance(row["conc"], int):
            rows[row["conc"]] = row
    return rows


def _run(directory: Path, fields: RunFields, benchmark: Benchmark, summary: Summary) -> Run:
    job, verdict = fields.job, fields.verdict
    model, sha = summary.model or {}, summary.srt_slurm.get("sha")
    images = tuple(Image(reference=one.reference or "", digest=one.digest or "") for one in summary.images)
    return Run(
        id=fields.id,
        runner=fields.runner,
        state=fields.state,
        layer=verdict.layer if verdict is not None else "",
        verdict=verdict.text if verdict is not None else "",
        job=job.id if job is not None else "",
        nodes=job.nodes if job is not None else "",
        images=images or (Image(reference=benchmark.image),),
        model=str(model.get("path") or benchmark.model),
        srt_slurm=str(sha or ""),
        commit=fields.commit,
        recipe=benchmark.config_file or "",
        fingerprint=benchmark.recipe_fingerprint or "",
        key=benchmark.key or f"{benchmark.model_prefix}-{benchmark.precision}-{benchmark.runner}-{benchmark.framework}",
        created=fields.created or None,
        submitted=job.submitted if job is not None else None,
        started=job.started if job is not None else None,
        ended=(job.ended if job is not None else None) or fields.ended,
        measured=tuple(
            (one.concurrency, one.ended - one.duration_s, one.ended)
            for one in summary.points
            if one.concurrency is not None and one.ended is not None and one.duration_s is not None
        ),
        notes=_notes(summary),
        source=str(directory),
    )


def _notes(summary: Summary) -> tuple[str, ...]:
    """Problems and doubts that belong to no concurrency and are no evaluation's reason."""
    reasons = {f"eval: {evaluation.reason}" for evaluation in summary.evaluations or ()}
    texts = (*summary.problems, *summary.doubts)
    return tuple(text for text in texts if text not in reasons and not re.match(r"concurrency \d+: ", text))
