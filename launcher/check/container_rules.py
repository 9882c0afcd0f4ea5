"""Rules about the plan of a job in a container: its image, limit, port, mounts, checkpoint and script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from launcher.check.inputs import Problem, Rule, rule
from launcher.container.planned import ContainerJob, ContainerResolved
from launcher.core import slurm_notation
from launcher.core.lines import count_of

RULES: list[Rule] = []
container_rule = partial(rule, RULES, "container")

LOADING = 1800
"""Seconds that a job needs at least beside a trace's replay: to start its container, load weights and warm up."""

CORPUS = "AIPERF_DATASET_MMAP_CACHE_DIR"
"""The directory in which AIPerf keeps its converted corpus; without it each agentic run converts the corpus again."""

_VENDOR = {
    "amd": re.compile(r"(?<![a-z])rocm|(?<![a-z0-9])mi3\d", re.IGNORECASE),
    "nvidia": re.compile(r"(?<![a-z])cu1\d|cuda|tensorrt|trtllm|nvcr\.io", re.IGNORECASE),
}
"""GPU vendor → what is in the names of images made for its GPUs."""

_GENERATION = {"mi30x": ("mi300x", "mi325x"), "mi35x": ("mi350x", "mi355x")}
"""A word in image tags → the GPUs that the image's kernels are built for."""


@container_rule("image-vendor", "error", "the image is made for other GPUs")
def image_vendor(r: ContainerResolved) -> Iterator[Problem]:
    image, runner = r.rules.benchmark.image, r.rules.file.runner
    made_for = [vendor for vendor, pattern in _VENDOR.items() if pattern.search(image)]
    if len(made_for) == 1 and made_for[0] != runner.node.vendor:
        yield f"{image} is made for {made_for[0]}'s GPUs, and {runner.name} has {runner.sku}", r.rules.benchmark.source
    for word, skus in _GENERATION.items():
        if word in image and runner.node.vendor == "amd" and runner.sku not in skus:
            message = f"{image} is built for {' and '.join(skus)}, and {runner.name} has {runner.sku}"
            yield message, r.rules.benchmark.source


@container_rule("limit-short", "error", "the job's limit is shorter than its scenario")
def limit_short(r: ContainerResolved) -> Iterator[Problem]:
    seconds, limit = r.rules.benchmark.duration, slurm_notation.limit_seconds(r.plan.scheduler.time_limit)
    if r.rules.benchmark.agentic and seconds and limit is not None and seconds + LOADING > limit:
        message = f"the trace is replayed for {seconds} s, and the job is ended after {limit / 60:.0f} minutes"
        yield message, r.rules.lane.location


@container_rule("port-shared", "warning", "jobs that share a node would use one port")
def port_shared(r: ContainerResolved) -> Iterator[Problem]:
    allocation, port = r.job.allocation, r.job.container.environment.get("PORT", "")
    if allocation is not None and not allocation.exclusive and "$JOB" not in port:
        free_gpus = r.rules.file.runner.node.gpus - allocation.gpus
        if free_gpus > 0:
            free = f"the job leaves {count_of(free_gpus, 'GPU')} of its node to others"
            yield f"{free}, and every job uses port {port}", r.rules.lane.location


@container_rule("corpus-unmounted", "warning", "an agentic run has no place for its corpus")
def corpus_unmounted(r: ContainerResolved) -> Iterator[Problem]:
    place = r.job.container.environment.get(CORPUS)
    if r.rules.benchmark.agentic and (place is None or not _is_mounted(place, r.job)):
        problem = f"{CORPUS} is {place}, which is not mounted" if place else f"{CORPUS} is not set"
        yield f"{problem}: every agentic run downloads and converts the corpus again", r.rules.lane.location


@container_rule("cache-unmounted", "warning", "a cache lies where nothing is mounted")
def cache_unmounted(r: ContainerResolved) -> Iterator[Problem]:
    for name, value in r.job.container.environment.items():
        if "CACHE" in name and name != CORPUS and not value.startswith("/tmp/") and not _is_mounted(value, r.job):
            yield f"{name} is {value}, which is not mounted: it is lost with the container", r.rules.lane.location


def _is_mounted(path: str, job: ContainerJob) -> bool:
    return any(path == target or path.startswith(f"{target.rstrip('/')}/") for target in job.container.mounts)


@container_rule("model-unstaged", "warning", "the checkpoint is staged nowhere")
def model_unstaged(r: ContainerResolved) -> Iterator[Problem]:
    if r.rules.model.rule.downloads and not r.rules.model.rule.otherwise:
        message = f"{r.rules.benchmark.model} is staged nowhere: a job downloads it to {r.plan.model.path}"
        yield message, r.rules.model.location


@container_rule("result-elsewhere", "error", "the script writes its result where the checkout is not")
def result_elsewhere(r: ContainerResolved) -> Iterator[Problem]:
    if r.job.script.names_workspace and r.job.container.workdir != "/workspace":
        message = f"{r.job.script.path} writes to /workspace, and the checkout is mounted at {r.job.container.workdir}"
        yield message, r.rules.benchmark.source
