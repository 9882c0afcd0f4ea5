"""How long jobs will take, by earlier runs of the same: an expectation for people, never a reason for anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.core.lines import count_of
from launcher.sweep.schema import Job


@dataclass(frozen=True)
class EarlierRun:
    """An earlier run whose results were good: ``what`` (runner, model, topology, lengths or scenario) it measured at
    which concurrencies, and how many seconds its job ran."""

    what: tuple[str, str, str, str]
    concurrencies: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Seconds that a job may take: the median of ``n`` earlier runs, the shortest and the longest of them."""

    seconds: float
    low: float
    high: float
    n: int


def estimates(jobs: Sequence[Job], history: Iterable[EarlierRun]) -> dict[str, Estimate]:
    """What is expected of each job that was run before, on the same runner, by its model, topology and lengths.

    Of other concurrencies the time is taken to be linear in their sum, as the number of requests is.
    """
    import statistics  # `sweep status` has no use for it

    past: dict[tuple[str, ...], list[EarlierRun]] = defaultdict(list)
    for run in history:
        past[run.what].append(run)
    by_job = {}
    for job in jobs:
        benchmark = job.benchmark
        earlier = past.get((job.runner, benchmark.model, benchmark.topology, benchmark.measures), [])
        same = [run.seconds for run in earlier if run.concurrencies == job.concurrencies]
        scaled = [
            run.seconds * sum(job.concurrencies) / sum(run.concurrencies) for run in earlier if sum(run.concurrencies)
        ]
        if seconds := same or scaled:
            by_job[job.key] = Estimate(statistics.median(seconds), min(seconds), max(seconds), len(seconds))
    return by_job


def expected(jobs: Sequence[Job], by_job: dict[str, Estimate], at_once: int) -> str:
    """The sum of it in words: GPU-hours and hours, the bound where nothing is known."""
    known = [(job, by_job[job.key]) for job in jobs if job.key in by_job]
    if not known:
        return "no earlier run says how long it takes: at most what is given above"
    hours = sum((job.gpus or 0) * estimate.seconds for job, estimate in known) / 3600
    low, high = (
        sum((job.gpus or 0) * getattr(estimate, end) for job, estimate in known) / 3600 for end in ("low", "high")
    )
    unknown = [job for job in jobs if job.key not in by_job]
    seconds = sum(estimate.seconds for _, estimate in known) + sum(job.seconds or 0.0 for job in unknown)
    most = f"{sum(job.gpu_hours or 0.0 for job in unknown):.1f} of {count_of(len(unknown), 'job')}"
    bound = f", beside at most {most}" if unknown else ""
    runs = sum(estimate.n for _, estimate in known)
    spread = f"{low:.1f} to {high:.1f} by {count_of(runs, 'earlier run')}"
    end = f"some {seconds / at_once / 3600:.1f} h with {at_once} at once"
    return f"expected {hours:.1f} GPU-hours ({spread}){bound}; {end}"
