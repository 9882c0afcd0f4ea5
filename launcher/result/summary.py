"""`summary.json`: what ran, how it ended, and every number, in one document that stands alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.plan.plan import Plan
from launcher.result.collect import Collected
from launcher.result.validate import Point

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Used:
    """What the job really ran with; None or empty where a run ended before that was known.

    ``srt_slurm_sha`` is the checkout's commit. ``images`` are mappings with ``reference``, ``digest``, ``squash`` and
    ``bytes``. ``model`` is `launcher.model.checkpoint.Verdict.as_dict()`.
    """

    srt_slurm_sha: str | None = None
    images: Sequence[Mapping[str, Any]] = ()
    model: Mapping[str, Any] | None = None


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
        "rehearsal": plan.tools == "rehearsal" or any(point.rehearsal for point in collected.points),
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
        "problems": [*problems, *map(str, collected.problems)],
        "doubts": list(collected.doubts),
        "times": dict(times),
    }


def _benchmark(benchmark: Benchmark) -> dict[str, Any]:
    return {
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
