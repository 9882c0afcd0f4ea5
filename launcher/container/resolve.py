"""From a benchmark of one node and a runner to the plan of a job in a container. No socket, process, clock."""

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
"""Where the workflow's RESULT_DIR and most scripts expect the checkout in the container."""

EVAL = (
    "meta_env.json",
    "results*.json",
    "sample*.jsonl",
    "agent_preds.json",
    "predictions.jsonl",
    "swebench_report_*.json",
    "*.traj*",
)
"""What evaluations leave in the checkout (benchmark_lib.sh, append_lm_eval_summary)."""

LOGS = ("server.log", "results/**", "LOGS/**", "profile_*.trace.json.gz", "profiles/**")
METRICS = ("gpu_metrics.csv", "gpu_metrics_energy_*.csv", "gpu_metrics_identity.json")

_MOUNTED = re.compile(r"/[^,:\x00-\x1f\x7f]*(:ro)?")
"""A side of a mount. A comma begins pyxis's next mount and a colon the next side of any engine's, which a path of the
host's environment must not become; docker takes a relative path for the name of a volume."""

PULLED = ("docker", "podman")
"""Engines that have images of their own."""


class ContainerPlanner:
    """Plans jobs that run a benchmark's script in a container; it reads each script once.

    ``recipes`` is the directory whose ``benchmarks`` has the scripts that come with the launcher.
    """

    def __init__(self, recipes: Path) -> None:
        self._recipes = recipes
        self._scripts = Scripts()

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> ContainerResolved:
        """Decide everything that a run will do.

        Raises ConfigError when the runner supports no such benchmark, when it has no script, and when the script asks
        for a variable that it would not get.
        """
        rules = AppliedRules.of(benchmark, file)
        lane = rules.lane.rule.container
        if benchmark.multinode or lane is None:
            message = f"runner {file.runner.name} runs {benchmark.title} in no container of one node"
            raise ConfigError(message, where=rules.lane.where)
        own = own_workspace(file, context, self._recipes)
        inside = context if own is None else msgspec.structs.replace(context, workspace=own.path)
        stem = result_stem(benchmark, context.runner_name)
        environment = {**contract_of(benchmark, stem, inside), "GPU_COUNT": str(benchmark.gpus)}
        passed = passed_variables(context.host, file.runner.pass_environment)
        path = derive.model_path(rules.model.rule, benchmark, context)
        cache = _cache(rules, context, environment)
        images = _images(rules, lane, context)
        container = PlannedContainer(
            engine=lane.engine,
            image=images[0].squash if images else _reference(benchmark, lane),
            workdir=_workdir(rules, lane),
            mounts=_mounts(rules, lane, inside, path, cache),
            options=_options(lane, benchmark),
            environment=_own_environment(rules, lane, context, path),
            passes=tuple(sorted({*environment, *passed})),
        )
        given = {**environment, **dict.fromkeys(passed, "given"), **container.environment}
        scripts = context if own is None else msgspec.structs.replace(context, workspace=str(self._recipes))
        script = self._scripts.planned(lane.script, benchmark, scripts, given)
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
            model=derive.planned_model(rules, path, context, cache, mounted=_same(container.mounts)),
            results=_results(stem, benchmark, inside, _workdir(rules, lane)),
            holds=Allocation(str(minutes) if minutes is not None else None, 1, held),
            details=job,
        )
        return ContainerResolved(plan, rules, job)


def own_workspace(file: RunnerFile, context: Context, recipes: Path) -> OwnWorkspace | None:
    """The workspace that is made for a job, where the runner file says so; ``recipes`` has its ``benchmarks``."""
    if (own := file.runner.workspace.own) is None:
        return None
    return OwnWorkspace(f"{derive.fill_path(own, context)}/{context.run_key}", str(recipes / "benchmarks"))


def contract_of(benchmark: Benchmark, stem: str, context: Context) -> dict[str, str]:
    """The variables of the workflow's contract, as the workflow's launch step has them."""
    return {
        **environment_of(benchmark),
        "RUNNER_NAME": context.runner_name,
        "RESULT_FILENAME": stem,
        "RESULT_FILENAME_BASE": context.host.get("RESULT_FILENAME_BASE") or stem,
        "GITHUB_WORKSPACE": context.workspace,
    }


def _cache(rules: AppliedRules, context: Context, environment: Mapping[str, str]) -> ModelCache | None:
    rule = rules.model.rule
    if rule.cache is None:
        return None
    host = (rule.variable and context.host.get(rule.variable)) or derive.fill_path(rule.cache, context)
    return ModelCache(host, environment["HF_HUB_CACHE"])


def _images(rules: AppliedRules, lane: Container, context: Context) -> tuple[PlannedImage, ...]:
    """The squash file to have; none where the engine pulls the image itself."""
    if lane.pull or lane.engine in PULLED:
        return ()
    image = derive.benchmark_image(rules, context)
    if not rules.file.runner.images.shared:
        image = replace(image, import_on="compute")
    return (image,)


def _reference(benchmark: Benchmark, lane: Container) -> str:
    """The image as an engine that pulls it reads it."""
    reference = Reference.parse(benchmark.image)
    if lane.engine not in PULLED:
        return reference.uri.removeprefix("docker://")
    return reference.for_docker


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
    """Target → source: the checkout or its copy, the cache, what adjustments add, and the checkpoint."""
    checkout = lane.staging.directory if lane.staging is not None else context.workspace
    mounts = {_workdir(rules, lane): checkout}
    if cache is not None:
        mounts[cache.at.rstrip("/")] = cache.host
    for adjustment in rules.adjustments:
        mounts |= {target: source for source, target in adjustment.rule.mounts.items()}
    whole = _same(mounts)
    seen = model_path is None or any(model_path.startswith(f"{tree}/") for tree in whole)
    if model_path is not None and lane.model_variables and not seen:
        mounts[model_path] = model_path
    if bad := [path for mount in mounts.items() for path in mount if not _MOUNTED.fullmatch(path)]:
        message = f"{bad[0]!r} cannot be mounted into a container; expected an absolute path without ',' and ':'"
        raise ConfigError(message, where=rules.lane.where)
    return mounts


def _same(mounts: Mapping[str, str]) -> tuple[str, ...]:
    """The directories that the container sees under the host's paths."""
    pairs = ((target.rstrip("/"), source.rstrip("/")) for target, source in mounts.items())
    return tuple(target for target, source in pairs if source == target)


def _own_environment(rules: AppliedRules, lane: Container, context: Context, model_path: str | None) -> dict[str, str]:
    """What the container has set beyond what it is passed; later adjustments win."""
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
        # A name that ends otherwise has no number: shells take such a word for 0.
        return str(port.base + (int(digit) if digit.isascii() and digit.isdigit() else 0))
    return str(port.base)


def _allocation(rules: AppliedRules, lane: Container, context: Context, minutes: int | None) -> PlannedAllocation:
    partition, account = derive.partition_and_account(rules, context)
    asked, scheduler = lane.allocation, rules.file.runner.scheduler
    return PlannedAllocation(
        partition=partition,
        account=account,
        nodes=1,
        gpus=rules.benchmark.gpus,
        gpu_type=asked.gpu_type,
        cpus_per_task=asked.cpus_per_task,
        memory=asked.memory,
        exclusive=asked.exclusive,
        minutes=minutes,
        job_name=fill_in(scheduler.job_name, {"runner": context.runner_name}),
        exclude=tuple(derive.excluded_nodes(rules, context)),
    )


def minutes_of(limits: Sequence[str | None], variable: str | None, context: Context, where: str) -> int | None:
    """A job's limit in minutes: the host's variable, else the last of ``limits`` that there is; None where none is.

    Raises ConfigError for one that means nothing; ``where`` is the lane.
    """
    said = context.host.get(variable) if variable else None
    limit = said or derive.last_given(limits, None)
    if limit is None:
        return None
    seconds = slurm_notation.limit_seconds(limit)
    if not seconds:  # Slurm takes 0 for no limit at all
        name, where = (variable, "environment") if said else ("the time limit", where)
        raise ConfigError(f"{name} is {limit!r}; expected one as Slurm writes it, longer than nothing", where=where)
    return max(1, round(seconds * context.longer / 60))


def _staging(lane: Container) -> PlannedStaging | None:
    if lane.staging is None:
        return None
    return PlannedStaging(lane.staging.directory, (".git", *lane.staging.exclude), tuple(lane.staging.back))


def _required(stem: str, benchmark: Benchmark, workdir: str) -> tuple[str, ...]:
    """The files without which the run has failed, by their names in the workspace."""
    if benchmark.eval_only:
        return ("results*.json",)
    if out := benchmark.options.get("OUT_YAML"):  # speedbench-al.yml measures no point, and reads this file alone
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
        eval=EVAL if benchmark.run_eval or benchmark.eval_only else (),
        logs=LOGS,
        metrics=METRICS,
    )
