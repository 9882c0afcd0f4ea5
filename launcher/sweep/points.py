"""Which jobs a sweep has, in which order they are started, and what makes the result of one the result of another."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.core.lines import count_of
from launcher.plan.plan import Plan
from launcher.sweep.schema import Job, Order

SCORES: tuple[tuple[float, str, frozenset[str]], ...] = (
    (1.25, "nodes", frozenset({"multi"})),
    (1.0, "scenario", frozenset({"agentic-coding"})),
    (0.75, "precision", frozenset({"fp4"})),
    (0.75, "spec_decoding", frozenset({"mtp", "eagle", "eagle3"})),
    (0.5, "framework", frozenset({"sglang", "vllm", "dynamo-sglang", "dynamo-vllm"})),
    (1.5, "model_prefix", frozenset({"kimik3"})),
)
"""What InferenceX's queue adds to a row's score (workflows at 843c6254f); of models only what is above the others."""


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of a JSON value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]


def fingerprint(plan: Plan, own: Mapping[str, str], image: str = "") -> dict[str, str]:
    """What makes two results comparable, by name; "" is not known.

    ``own`` is what the kind of job adds (recipe or script, srt-slurm), ``image`` the digest of the image, where that is
    known. Another version of the launcher is no part of it, and neither are run, concurrency, nodes and paths.
    """
    model, benchmark = plan.model, plan.benchmark
    declared = digest(model.fingerprint) if model.fingerprint else ""
    gpus = plan.results.gpus or (benchmark.gpus, 0)
    return {
        **own,
        "image": plan.images[0].reference if plan.images else benchmark.image,
        "image digest": image,
        "model": " ".join(filter(None, (model.id or model.path, model.pinned, declared))),
        "lengths": benchmark.measures,
        "gpus": "+".join(str(count) for count in gpus if count),
    }


def points_in(jobs: Sequence[Job]) -> str:
    """``5 points in 2 jobs``."""
    points = count_of(sum(len(job.concurrencies) for job in jobs), "point")
    return f"{points} in {count_of(len(jobs), 'job')}"


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """The parts in which two fingerprints differ, in words; what one of them does not know counts as equal."""
    names = dict.fromkeys((*expected, *actual))
    both = ((name, expected.get(name, ""), actual.get(name, "")) for name in names)
    return [f"{name} is {b}, not {a}" for name, a, b in both if a and b and a != b]


_IDENTIFYING = tuple(
    name
    for name in Benchmark.__slots__
    if name not in ("concurrencies", "source", "result_filename", "key", "exp_name", "eval_concurrencies")
)


def identity(benchmark: Benchmark, runner: str) -> str:
    """What tells a job of a sweep from all others: what is measured and where, without its concurrencies."""
    return digest([runner, {name: repr(getattr(benchmark, name)) for name in _IDENTIFYING}])


def job_of(plan: Plan, own: Mapping[str, str], image: str = "") -> Job:
    """The job of a plan. Its key says what people call it, what tells it from others, and its concurrencies."""
    benchmark, scheduler = plan.benchmark, plan.scheduler
    name = "-".join([benchmark.model_prefix, benchmark.measures.replace("/", "x"), benchmark.topology]).lower()
    slug = "-".join(filter(None, "".join(c if c.isalnum() else "-" for c in name).split("-")))[:36].strip("-")
    ends = dict.fromkeys((min(benchmark.concurrencies, default=0), max(benchmark.concurrencies, default=0)))
    key = f"{slug}-{identity(benchmark, plan.runner)[:6]}-c{'-'.join(map(str, ends))}"
    return Job(
        key=key,
        runner=plan.runner,
        kind=plan.kind,
        benchmark=benchmark,
        fingerprint=fingerprint(plan, own, image),
        nodes=scheduler.nodes,
        gpus=scheduler.gpus,
        seconds=scheduler.seconds,
        narrow=plan.narrow,
    )


def topology_of(job: Job) -> str:
    """What the points of one curve have in common."""
    return f"{job.runner} {identity(job.benchmark, job.runner)}"


def ordered(jobs: Sequence[Job], order: Order) -> list[Job]:
    """The jobs in the order in which they are started.

    ``spread``: one of each topology before the second of any; of a topology the lowest concurrency, then the highest,
    then what halves the widest gap, so that whatever is measured when a sweep ends early is a useful picture.
    """
    if order == "given":
        return list(jobs)
    if order in ("short-first", "long-first"):
        return sorted(jobs, key=lambda job: (job.seconds or 0.0) * (job.nodes or 1), reverse=order == "long-first")
    if order == "score":
        return sorted(jobs, key=lambda job: -_score(job))
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[topology_of(job)].append(job)
    spread = [_halving(sorted(group, key=lambda job: job.concurrencies[:1])) for group in groups.values()]
    rounds = max(map(len, spread), default=0)
    return [group[position] for position in range(rounds) for group in spread if position < len(group)]


def _halving(jobs: list[Job]) -> list[Job]:
    """First, last, then the middle of the widest gap, again and again."""
    if len(jobs) < 3:
        return jobs
    taken = [0, len(jobs) - 1]
    gaps = [(0, len(jobs) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            taken.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [jobs[position] for position in taken]


def _score(job: Job) -> float:
    values = {name: getattr(job.benchmark, name) for _, name, _ in SCORES if name != "nodes"}
    values["nodes"] = "multi" if job.benchmark.multinode else "single"
    return 1.0 + sum(points for points, name, values_scored in SCORES if str(values[name]) in values_scored)


def canaries(jobs: Sequence[Job], policy: str) -> dict[str, str]:
    """The canary of each runner and image, by job key: the first of the cheapest jobs. ``policy`` is ``auto``, ``off``,
    or the key of the one canary that guards all jobs of its runner and image."""
    if policy == "off":
        return {}
    cheapest: dict[str, Job] = {}
    for job in jobs:
        guarded = guard(job)
        if policy not in ("auto", job.key) or job.benchmark.eval_only:
            continue
        if guarded not in cheapest or _cost(job) < _cost(cheapest[guarded]):
            cheapest[guarded] = job
    return {job.key: guarded for guarded, job in cheapest.items()}


def guard(job: Job) -> str:
    """What a canary speaks for: a runner and an image."""
    return f"{job.runner} {job.benchmark.image}"


def _cost(job: Job) -> tuple[float, int]:
    return (job.nodes or 1) * (job.seconds or 0.0), min(job.concurrencies, default=0)
