"""Plans a job in a container on one node, from a benchmark and a runner. No socket, no process, no clock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import environment_of
from launcher.container.planned import (
    ContainerJob,
    ContainerOptions,
    ContainerResolved,
    OwnWorkspace,
    PlannedAllocation,
    PlannedContainer,
    PlannedStaging,
)
from launcher.container.script import Scripts
from launcher.core import slurm_notation
from launcher.core.errors import ConfigError
from launcher.image.reference import PlannedImage, Reference
from launcher.plan import derive
from launcher.plan.derive import AppliedRules, Context, passed_variables
from launcher.plan.expected import expected_results, result_stem
from launcher.plan.plan import Allocation, Expected, ModelCache
from launcher.runner.container_schema import Container, Port
from launcher.runner.file import RunnerFile, fill_in

WORKSPACE = "/workspace"
"""The path in the container at which the workflow's RESULT_DIR and most scripts expect the checkout."""

EVALUATION_FILES = (
    "meta_env.json",
    "results*.json",
    "sample*.jsonl",
    "agent_preds.json",
    "predictions.jsonl",
    "swebench_report_*.json",
    "*.traj*",
)
"""Files that evaluations write into the checkout (benchmark_lib.sh, append_lm_eval_summary)."""

LOG_FILES = ("server.log", "results/**", "LOGS/**", "profile_*.trace.json.gz", "profiles/**")
METRIC_FILES = ("gpu_metrics.csv", "gpu_metrics_energy_*.csv", "gpu_metrics_identity.json")

_MOUNT_PATH = re.compile(r"/[^,:\x00-\x1f\x7f]*(:ro)?")
"""A valid path of a mount. pyxis separates mounts by commas, all engines separate paths by colons, and docker takes a
relative path for the name of a volume."""

PULLING_ENGINES = ("docker", "podman")
"""Engines that pull and store images themselves."""


class ContainerPlanner:
    """Plans jobs that run a benchmark's script in a container; it reads each script once.

    ``recipes`` is the directory whose ``benchmarks`` has the scripts that come with the launcher.
    """

    def __init__(self, recipes: Path) -> None:
        self._recipes = recipes
        self._scripts = Scripts()

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> ContainerResolved:
        """Decide everything that a run will do.

        Raises ConfigError when the runner does not support the benchmark, when there is no script for it, and when the
        script requires a variable that it would not get.
        """
        rules = AppliedRules.of(benchmark, file)
        lane = rules.lane.rule.container
        if benchmark.multinode or lane is None:
            message = f"runner {file.runner.name} runs {benchmark.title} in no container of one node"
            raise ConfigError(message, where=rules.lane.where)
        own = own_workspace(file, context, self._recipes)
        inside = context if own is None else msgspec.structs.replace(context, workspace=own.path)
        stem = result_stem(benchmark, context.runner_name)
        environment = {**workflow_variables(benchmark, stem, inside), "GPU_COUNT": str(benchmark.gpus)}
        passed = passed_variables(context.host, file.runner.pass_environment)
        path = derive.model_path(rules.model.rule, benchmark, context)
        cache = _model_cache(rules, context, environment)
        images = _images(rules, lane, context)
        container = PlannedContainer(
            engine=lane.engine,
            image=images[0].squash if images else _image_reference(benchmark, lane),
            workdir=_workdir(rules, lane),
            mounts=_mounts(rules, lane, inside, path, cache),
            options=_options(lane, benchmark),
            environment=_own_variables(rules, lane, context, path),
            passes=tuple(sorted({*environment, *passed})),
        )
        available = {**environment, **dict.fromkeys(passed, "set"), **container.environment}
        scripts = context if own is None else msgspec.structs.replace(context, workspace=str(self._recipes))
        script = self._scripts.choose(lane.script, benchmark, scripts, available)
        limits = [file.runner.scheduler.time_limit, lane.allocation.time_limit]
        limits += [a.rule.time_limit for a in rules.adjustments]
        minutes = minutes_of(limits, lane.allocation.time_limit_variable, context, rules.lane.where)
        allocation = _allocation(rules, lane, context, minutes) if file.runner.scheduler.kind == "slurm" else None
        held = file.runner.node.gpus if allocation is not None and allocation.exclusive else benchmark.gpus
        job = ContainerJob(allocation, container, script, environment, _staging(lane), own_workspace=own)
        plan = derive.assemble_plan(
            rules,
            context,
            images=images,
            model=derive.planned_model(rules, path, context, cache, mounted=_identity_mounts(container.mounts)),
            results=_results(stem, benchmark, inside, _workdir(rules, lane)),
            holds=Allocation(str(minutes) if minutes is not None else None, 1, held),
            details=job,
        )
        return ContainerResolved(plan, rules, job)


def own_workspace(file: RunnerFile, context: Context, recipes: Path) -> OwnWorkspace | None:
    """The workspace that is made for a job, if the runner file has one; ``recipes`` has its ``benchmarks``."""
    if (own := file.runner.workspace.own) is None:
        return None
    return OwnWorkspace(f"{derive.fill_path(own, context)}/{context.run_key}", str(recipes / "benchmarks"))


def workflow_variables(benchmark: Benchmark, stem: str, context: Context) -> dict[str, str]:
    """The variables of the workflow's contract with the values of the workflow's launch step."""
    return {
        **environment_of(benchmark),
        "RUNNER_NAME": context.runner_name,
        "RESULT_FILENAME": stem,
        "RESULT_FILENAME_BASE": context.host.get("RESULT_FILENAME_BASE") or stem,
        "GITHUB_WORKSPACE": context.workspace,
    }


def _model_cache(rules: AppliedRules, context: Context, environment: Mapping[str, str]) -> ModelCache | None:
    rule = rules.model.rule
    if rule.cache is None:
        return None
    host = (rule.variable and context.host.get(rule.variable)) or derive.fill_path(rule.cache, context)
    return ModelCache(host, environment["HF_HUB_CACHE"])


def _images(rules: AppliedRules, lane: Container, context: Context) -> tuple[PlannedImage, ...]:
    """The required squash file; none for an engine that pulls the image itself."""
    if lane.pull or lane.engine in PULLING_ENGINES:
        return ()
    image = derive.benchmark_image(rules, context)
    if not rules.file.runner.images.shared:
        image = replace(image, import_on="compute")
    return (image,)


def _image_reference(benchmark: Benchmark, lane: Container) -> str:
    """The image reference for an engine that pulls it."""
    reference = Reference.parse(benchmark.image)
    return reference.for_docker if lane.engine in PULLING_ENGINES else reference.uri.removeprefix("docker://")


def _options(lane: Container, benchmark: Benchmark) -> ContainerOptions:
    return ContainerOptions(
        home=lane.home,
        remap_root=lane.remap_root,
        writable=lane.writable,
        mpi=lane.mpi,
        flags=tuple(fill_in(flag, {"gpus": str(benchmark.gpus)}) for flag in lane.flags),
    )


def _workdir(rules: AppliedRules, lane: Container) -> str:
    workdir: str = derive.last_given([a.rule.workdir for a in rules.adjustments], lane.workdir)
    return workdir


def _mounts(
    rules: AppliedRules, lane: Container, context: Context, model_path: str | None, cache: ModelCache | None
) -> dict[str, str]:
    """Target → source: the checkout or its copy, the cache, mounts of adjustments, and the checkpoint."""
    checkout = lane.staging.directory if lane.staging is not None else context.workspace
    mounts = {_workdir(rules, lane): checkout}
    if cache is not None:
        mounts[cache.at.rstrip("/")] = cache.host
    for adjustment in rules.adjustments:
        mounts |= {target: source for source, target in adjustment.rule.mounts.items()}
    if model_path is not None and lane.model_variables:
        is_mounted = any(model_path.startswith(f"{tree}/") for tree in _identity_mounts(mounts))
        mounts |= {} if is_mounted else {model_path: model_path}
    if invalid := [path for mount in mounts.items() for path in mount if not _MOUNT_PATH.fullmatch(path)]:
        message = f"{invalid[0]!r} cannot be mounted into a container; expected an absolute path without ',' and ':'"
        raise ConfigError(message, where=rules.lane.where)
    return mounts


def _identity_mounts(mounts: Mapping[str, str]) -> tuple[str, ...]:
    """The directories that have the same path in the container as on the host."""
    pairs = ((target.rstrip("/"), source.rstrip("/")) for target, source in mounts.items())
    return tuple(target for target, source in pairs if source == target)


def _own_variables(rules: AppliedRules, lane: Container, context: Context, model_path: str | None) -> dict[str, str]:
    """The variables that are set for the container only; later adjustments win."""
    own = {"PORT": _port(lane.port, rules, context)}
    if model_path is not None:
        own |= dict.fromkeys(lane.model_variables, model_path)
    if (workdir := _workdir(rules, lane)) != WORKSPACE:
        own["RESULT_DIR"] = f"{workdir}/results"
    gpus = ",".join(str(index) for index in range(rules.benchmark.gpus))
    for adjustment in rules.adjustments:
        own |= {name: fill_in(value, {"gpu-list": gpus}) for name, value in adjustment.rule.exports.items()}
    for name in rules.file.runner.pass_environment:
        if context.host.get(name):  # the host's value wins
            own.pop(name, None)
    home = context.host.get("HOME", "$HOME")
    return {name: value.replace("$HOME", home) for name, value in own.items()}


def _port(port: Port, rules: AppliedRules, context: Context) -> str:
    if port.variable and (other := context.host.get(port.variable)):
        if not (other.isascii() and other.isdigit() and 0 < int(other) < 65536):
            raise ConfigError(f"{port.variable} is {other!r}; expected a port", where="environment")
        return other
    if port.add == "job-id":
        return f"{port.base}+$JOB%10000"
    if port.add == "runner-digit":
        digit = context.runner_name[-1:]
        # Without a digit at the end the number is 0, as in the bash launchers.
        return str(port.base + (int(digit) if digit.isascii() and digit.isdigit() else 0))
    return str(port.base)


def _allocation(rules: AppliedRules, lane: Container, context: Context, minutes: int | None) -> PlannedAllocation:
    partition, account = derive.partition_and_account(rules, context)
    requested, scheduler = lane.allocation, rules.file.runner.scheduler
    return PlannedAllocation(
        partition=partition,
        account=account,
        nodes=1,
        gpus=rules.benchmark.gpus,
        gpu_type=requested.gpu_type,
        cpus_per_task=requested.cpus_per_task,
        memory=requested.memory,
        exclusive=requested.exclusive,
        minutes=minutes,
        job_name=fill_in(scheduler.job_name, {"runner": context.runner_name}),
        exclude=tuple(derive.excluded_nodes(rules, context)),
    )


def minutes_of(limits: Sequence[str | None], variable: str | None, context: Context, where: str) -> int | None:
    """A job's limit in minutes: the host's variable, else the last of ``limits`` that is set; None without a limit.

    Raises ConfigError for an invalid one; ``where`` is the lane.
    """
    host_value = context.host.get(variable) if variable else None
    limit = host_value or derive.last_given(limits, None)
    if limit is None:
        return None
    seconds = slurm_notation.limit_seconds(limit)
    if not seconds:  # Slurm takes 0 for no limit at all
        name, where = (variable, "environment") if host_value else ("the time limit", where)
        raise ConfigError(f"{name} is {limit!r}; expected one as Slurm writes it, longer than nothing", where=where)
    return max(1, round(seconds * context.longer / 60))


def _staging(lane: Container) -> PlannedStaging | None:
    if lane.staging is None:
        return None
    return PlannedStaging(lane.staging.directory, (".git", *lane.staging.exclude), tuple(lane.staging.back))


def _required(stem: str, benchmark: Benchmark, workdir: str) -> tuple[str, ...]:
    """The files that the run must have, by their names in the workspace."""
    if benchmark.eval_only:
        return ("results*.json",)
    if out := benchmark.options.get("OUT_YAML"):  # speedbench-al.yml measures no point, and reads only this file
        path = PurePosixPath(out)
        if ".." in path.parts or not path.is_relative_to(workdir) or path == PurePosixPath(workdir):
            message = f"OUT_YAML is {out!r}, and the container has the checkout at {workdir}: the file would be lost"
            raise ConfigError(message, where="environment")
        return (str(path.relative_to(workdir)),)
    profiled = benchmark.options.get("PROFILE") == "1"
    return (f"{stem}.json", *([f"profile_{stem}.trace.json.gz"] if profiled else []))


def _results(stem: str, benchmark: Benchmark, context: Context, workdir: str) -> Expected:
    return expected_results(
        benchmark,
        stem,
        directory=context.workspace,
        required=_required(stem, benchmark, workdir),
        eval=EVALUATION_FILES if benchmark.run_eval or benchmark.eval_only else (),
        logs=LOG_FILES,
        metrics=METRIC_FILES,
    )
