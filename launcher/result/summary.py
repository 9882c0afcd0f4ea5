"""`summary.json`: what ran, how it ended, and every number, in one document that stands alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.result.collect import Collected
from launcher.result.validate import Point

SCHEMA_VERSION = 1


def summary(
    *,
    run_id: str,
    runner: str,
    benchmark: Benchmark,
    state: str,
    job_id: str | None = None,
    srt_slurm_sha: str | None = None,
    images: Sequence[Mapping[str, Any]] = (),
    model: Mapping[str, Any] | None = None,
    collected: Collected | None = None,
    times: Mapping[str, float | None] | None = None,
    rehearsal: bool = False,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary of one run, ready for JSON; what is not known is null, never left out.

    ``state`` is the job's or the run's last (``COMPLETED``, ``TIMEOUT``, ``CANCELLED``, ``unknown``). ``images`` are
    mappings with ``reference``, ``digest``, ``squash`` and ``bytes`` of what really ran; ``model`` is
    `Verdict.as_dict()`; ``times`` are Unix seconds by name (``started``, ``submitted``, ``ended``). Every concurrency
    that was asked for has an entry in ``points``, with ``state`` ok, missing or invalid. ``problems`` are those
    outside of the results. A single rehearsed point makes the whole a rehearsal.
    """
    found = collected or Collected()
    return {
        "schema_version": SCHEMA_VERSION,
        "rehearsal": rehearsal or any(point.rehearsal for point in found.points),
        "run_id": run_id,
        "runner": runner,
        "job": {"id": job_id, "state": state},
        "benchmark": {
            "exp_name": benchmark.exp_name,
            "model": benchmark.model,
            "model_prefix": benchmark.model_prefix,
            "precision": benchmark.precision,
            "framework": benchmark.framework,
            "scenario": benchmark.scenario,
            "spec_decoding": benchmark.spec_decoding,
            "topology": benchmark.topology,
            "isl": benchmark.isl,
            "osl": benchmark.osl,
            "concurrencies": list(benchmark.concurrencies),
            "recipe": benchmark.config_file,
            "recipe_fingerprint": benchmark.recipe_fingerprint,
            "settings": dict(benchmark.settings),
        },
        "srt_slurm": {"sha": srt_slurm_sha},
        "images": [{key: image.get(key) for key in ("reference", "digest", "squash", "bytes")} for image in images],
        "model": dict(model) if model is not None else None,
        "points": _points(benchmark, found),
        "problems": [*problems, *map(str, found.problems)],
        "doubts": list(found.doubts),
        "times": dict(times or {}),
    }


def _points(benchmark: Benchmark, collected: Collected) -> list[dict[str, Any]]:
    measured = {point.concurrency: point for point in collected.points}
    bad = {problem.concurrency: problem for problem in collected.problems if problem.concurrency is not None}
    asked = () if benchmark.eval_only else benchmark.concurrencies
    points = []
    for concurrency in sorted({*asked, *measured}):
        problem = bad.get(concurrency)
        if problem is not None or concurrency not in measured:
            kind = problem.kind if problem else "missing"
            points.append({"concurrency": concurrency, "state": kind, "reason": problem.text if problem else None})
        else:
            points.append(_point(measured[concurrency]))
    return points


def _point(point: Point) -> dict[str, Any]:
    fields = {**dataclasses.asdict(point), "path": str(point.path), "doubts": list(point.doubts)}
    return {"concurrency": fields.pop("concurrency"), "state": "ok", **fields}
