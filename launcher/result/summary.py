"""Builds `summary.json`: a run's inputs, its end and all its numbers, in one self-contained document."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.plan.plan import Plan
from launcher.result.collect import CollectedResults

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """What the job really used; None or empty if the run ended before that was known.

    ``srt_slurm_sha`` is the checkout's commit. ``images`` are mappings with ``reference``, ``digest``, ``squash`` and
    ``bytes``. ``model`` is `launcher.model.checkpoint.CheckpointReport.as_dict()`. ``stand_ins``: no real engine ran.
    """

    srt_slurm_sha: str | None = None
    images: Sequence[Mapping[str, Any]] = ()
    model: Mapping[str, Any] | None = None
    stand_ins: bool = False


def summary(
    plan: Plan,
    collected: CollectedResults,
    *,
    state: str,
    job_id: str | None,
    used: Provenance,
    times: Mapping[str, float | None],
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary of the plan's run as a JSON document; unknown values are null, never left out.

    ``state`` is the last state of the job or of the run (``COMPLETED``, ``TIMEOUT``, ``CANCELLED``, ``unknown``).
    ``times`` are Unix seconds by name (``started``, ``submitted``, ``ended``). Every requested concurrency has an entry
    in ``points``, with ``state`` ok, missing or invalid. ``problems`` are those that do not come from the results. One
    rehearsed point makes the whole summary a rehearsal.
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


def _points(benchmark: Benchmark, collected: CollectedResults) -> list[dict[str, Any]]:
    measured = {point.concurrency: point for point in collected.points}
    problems = {problem.concurrency: problem for problem in collected.problems if problem.concurrency is not None}
    requested = () if benchmark.eval_only else benchmark.concurrencies
    points = []
    for concurrency in sorted({*requested, *measured}):
        problem, point = problems.get(concurrency), measured.get(concurrency)
        if problem is not None or point is None:
            kind = problem.kind if problem else "missing"
            points.append({"concurrency": concurrency, "state": kind, "reason": problem.text if problem else None})
        else:
            fields = {**dataclasses.asdict(point), "path": str(point.path), "doubts": list(point.doubts)}
            points.append({"concurrency": fields.pop("concurrency"), "state": "ok", **fields})
    return points
