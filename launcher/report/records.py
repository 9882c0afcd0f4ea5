"""Points of run records: what each run was to measure, what it measured, and why the rest is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError
from launcher.core.reading import json_of, read_file
from launcher.report.document import Image, Run
from launcher.report.gathered import Gathered
from launcher.report.points import Point, State, identity_of
from launcher.result.refusals import rule_of
from launcher.result.row_fields import finite
from launcher.run.fields import ENDED, LARGEST, RunFields, read_fields
from launcher.run.record import UnreadableRecord, each_record
from launcher.sweep.attempts import WHOLE

_METRICS = {
    "tput_per_gpu": ("throughput_per_gpu", 1.0),
    "output_tput_per_gpu": ("output_throughput_per_gpu", 1.0),
    **{
        f"{statistic}_{family}": (f"{family}_{statistic}_ms", 1000.0)
        for family in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("median", "p99")
    },
}
"""An aggregate's key, the key of ``summary.json`` that has the same, and by what it is divided."""


class _Measured(msgspec.Struct, frozen=True):
    """A point of ``summary.json``."""

    concurrency: int
    state: str
    reason: str | None = None
    rehearsal: bool = False
    duration_s: float | None = None
    ended: float | None = None
    doubts: tuple[str, ...] = ()


class _Summary(msgspec.Struct, frozen=True):
    """What a report needs of ``summary.json``."""

    points: tuple[msgspec.Raw, ...]
    rehearsal: bool = False
    srt_slurm: dict[str, Any] = {}
    images: tuple[dict[str, Any], ...] = ()
    model: dict[str, Any] | None = None


class _Plan(msgspec.Struct, frozen=True):
    benchmark: Benchmark


_POINT = msgspec.json.Decoder(_Measured)
_SUMMARY = msgspec.json.Decoder(_Summary)
_PLAN = msgspec.json.Decoder(_Plan)


def add_runs(gathered: Gathered, runs: Path) -> None:
    """All runs of a directory of records, oldest first; what cannot be read is a problem."""
    unreadable: list[UnreadableRecord] = []
    records = sorted(each_record(runs, unreadable, facts=False), key=lambda record: record.fields.created)
    for record in records:
        _add(gathered, record.directory, record.fields)
    gathered.problems += [f"run {one.id}: {one.error.message}" for one in unreadable]


def add_run(gathered: Gathered, directory: Path) -> None:
    """One run. Raises ConfigError when its record cannot be read."""
    try:
        fields = read_fields(directory / "run.json", directory.name, facts=False)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError("there is no run.json", where=str(directory)) from None
    _add(gathered, directory, fields)


def _add(gathered: Gathered, directory: Path, fields: RunFields) -> None:
    try:
        run, points = read_run(directory, fields)
    except ConfigError as error:
        gathered.problems.append(f"run {fields.id}: {error.message}")
    else:
        gathered.add(run, points)


def read_run(directory: Path, fields: RunFields) -> tuple[Run, list[Point]]:
    """A run and its points, one for each concurrency that was asked for or measured.

    Raises ConfigError when its plan cannot be read: then nobody knows what was asked for.
    """
    try:
        benchmark = _PLAN.decode(read_file(directory / "plan.json", LARGEST)).benchmark
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"its plan cannot be read: {error}") from None
    summary, measured, wrong = _summary(directory)
    run = _run(directory, fields, benchmark, summary, [one for one, _ in measured.values()])
    rows = _rows(directory / "results") if benchmark.agentic or fields.results == "run" else {}
    shared, points = run.known, []
    asked = () if benchmark.eval_only else benchmark.concurrencies
    for concurrency in sorted({*asked, *measured}):
        one, said = measured.get(concurrency, (None, {}))
        state, reason, layer = _state(one, fields, rehearsal=summary is not None and summary.rehearsal, wrong=wrong)
        good = state in ("ok", "rehearsal")
        known = {**shared, "notes": one.doubts if one else ()}
        if state in ("refused", "stale"):
            known["rule"] = rule_of(reason)
        row = {**_row(said), **rows.get(concurrency, {})} if good else {}
        points.append(Point(identity_of(benchmark, concurrency), row, state, reason, layer, known))
    return run, points


def _summary(directory: Path) -> tuple[_Summary | None, dict[int, tuple[_Measured, dict[str, Any]]], str]:
    """The summary, its points by concurrency with all that they say, and why it cannot be read."""
    try:
        summary = _SUMMARY.decode(read_file(directory / "summary.json", LARGEST))
        found = [(_POINT.decode(raw), msgspec.json.decode(raw)) for raw in summary.points]
    except FileNotFoundError:
        return None, {}, ""
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, {}, f"its summary cannot be read: {error}"
    return summary, {one.concurrency: (one, said) for one, said in found}, ""


def _state(one: _Measured | None, fields: RunFields, *, rehearsal: bool, wrong: str) -> tuple[State, str, str]:
    """How a point stands, why, and whose fault that is."""
    verdict = fields.verdict
    layer = verdict.layer if verdict is not None else ""
    if one is not None and one.state == "ok":
        if one.rehearsal or rehearsal:
            return "rehearsal", "stand-ins ran, and nothing was measured", ""
        if layer not in WHOLE:
            return "refused", f"its job failed, so that none of its results is believed; {fields.verdict}", layer
        return "ok", "", ""
    if one is not None and one.state == "invalid":
        reason = one.reason or "its result cannot be believed"
        return ("stale" if rule_of(reason) == "result-stale" else "refused"), reason, layer or "results"
    if verdict is not None and verdict.layer and (one is None or verdict.layer != "results"):
        return "missing", verdict.text, layer
    if one is not None or wrong:
        return "missing", (one.reason if one else wrong) or "there is no result", layer or "results"
    if fields.state in ENDED:
        return "missing", "there is no result", "results"
    if fields.job is not None and not fields.job.over:
        return "missing", f"not measured yet: job {fields.job.id} {fields.job.says}".strip(), ""
    return "missing", f"not measured yet: the run is {fields.state}", ""


def _row(said: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a summary under the names of an aggregate of fixed lengths."""
    row: dict[str, Any] = {}
    value: Any
    for name, (key, scale) in _METRICS.items():
        if finite(value := said.get(key)):
            row[name] = value / scale
    for statistic in ("median", "p99"):
        if finite(value := said.get(f"tpot_{statistic}_ms")) and value:
            row[f"{statistic}_intvty"] = 1000.0 / value
    return row


def _rows(results: Path) -> dict[int, dict[str, Any]]:
    """The aggregates beside a run's results, by concurrency: of agentic runs the results themselves."""
    rows = {}
    for path in sorted(results.glob("agg_*.json")) or sorted(results.glob("*_conc*.json")):
        try:
            row = json_of(path, LARGEST)
        except (OSError, ValueError):
            continue
        if isinstance(row, dict) and isinstance(row.get("conc"), int) and "infmax_model_prefix" in row:
            rows[row["conc"]] = row
    return rows


def _run(
    directory: Path, fields: RunFields, benchmark: Benchmark, summary: _Summary | None, measured: Sequence[_Measured]
) -> Run:
    job, verdict = fields.job, fields.verdict
    model = (summary.model if summary is not None else None) or {}
    sha = summary.srt_slurm.get("sha") if summary is not None else None
    return Run(
        id=fields.id,
        runner=fields.runner,
        state=fields.state,
        layer=verdict.layer if verdict is not None else "",
        verdict=verdict.text if verdict is not None else "",
        job=job.id if job is not None else "",
        nodes=job.nodes if job is not None else "",
        images=tuple(_images(summary)) or (Image(reference=benchmark.image),),
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
            for one in measured
            if one.ended is not None and one.duration_s is not None
        ),
        source=str(directory),
    )


def _images(summary: _Summary | None) -> Iterator[Image]:
    for image in summary.images if summary is not None else ():
        yield Image(reference=str(image.get("reference") or ""), digest=str(image.get("digest") or ""))
