"""Plans a job with one container on each of several nodes, from a benchmark and a runner. No process, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as change

from launcher.benchmark.benchmark import Benchmark
from launcher.container.multinode_placeholders import NodeCounts, fill_placeholders, placeholder_values
from launcher.container.planned import (
    ContainerOptions,
    MultinodeJob,
    MultinodeResolved,
    NodeContainer,
    NodeJob,
    PlannedAllocation,
    PlannedLogs,
    PlannedScript,
    PlannedSubmit,
)
from launcher.container.resolve import EVALUATION_FILES, METRIC_FILES, minutes_of, own_workspace, workflow_variables
from launcher.container.script import Scripts, missing_script, require_variables
from launcher.core.errors import ConfigError
from launcher.core.lines import count_of
from launcher.core.yaml_source import Document
from launcher.image.reference import PlannedImage, Reference
from launcher.plan import derive
from launcher.plan.derive import AppliedRules, Context, passed_variables
from launcher.plan.expected import expected_results, result_stem
from launcher.plan.plan import Allocation, Expected
from launcher.runner.container_schema import Extra, Multinode
from launcher.runner.container_schema import Role as RoleRule
from launcher.runner.file import RunnerFile

EXCLUDED_VARIABLES = ("GITHUB_WORKSPACE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
"""Variables of the contract that containers do not get, because their scripts set their own."""

SKIP_VARIABLES = {"SKIP_RDMA_CHECK": "rdma", "SKIP_GPU_SANITY": "gpu-clean"}
"""Variables of the host that skip a check of the nodes when they are 1, as in the bash launchers."""

LOG_FILES = ("LOGS/**", "server_*.log", "tilert_*.log")


class MultinodePlanner:
    """Plans jobs with one container per node; it reads each file of a workspace once. ``login`` is this process's user
    by the password database, from which the workflow's USER may differ. ``recipes`` is the directory whose
    ``benchmarks`` has the scripts that come with the launcher."""

    def __init__(self, login: str, recipes: Path = Path()) -> None:
        self._login, self._recipes = login, recipes
        self._scripts = Scripts()
        self._documents: dict[Path, Any] = {}

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> MultinodeResolved:
        """Decide everything that a run will do.

        Raises ConfigError when the runner does not support the benchmark, when upstream has no such scripts or model,
        and when a script requires a variable that it would not get.
        """
        rules = AppliedRules.of(benchmark, file)
        lane = rules.lane.rule.multinode
        if lane is None or not benchmark.multinode:
            message = f"runner {file.runner.name} runs {benchmark.title} in no containers of several nodes"
            raise ConfigError(message, where=rules.lane.where)
        workspace = own_workspace(file, context, self._recipes)
        inputs = self._plan_inputs(
            rules, lane, context if workspace is None else change(context, workspace=workspace.path)
        )
        path = self._model_path(inputs)
        images = _images(rules, lane, context)
        containers = tuple(
            _container(inputs, role, image) for role, (image, _) in zip(_roles(lane), images, strict=True)
        )
        scripts = context.workspace if workspace is None else str(self._recipes)
        script = self._script(inputs, scripts, {**inputs.contract, "MODEL_PATH": path or ""}, containers)
        # A variable that a container sets itself is not in the job's environment.
        own = {name for container in containers for name in container.environment}
        environment = {name: value for name, value in inputs.contract.items() if name not in own}
        allocation = self._allocation(inputs)
        submit = _submit(allocation, lane, context.run_key, environment)
        job = MultinodeJob(
            allocation, submit, _job(inputs, containers), script, _planned_logs(rules, lane), own_workspace=workspace
        )
        plan = derive.assemble_plan(
            rules,
            context,
            images=tuple({planned.squash: planned for _, planned in images if planned is not None}.values()),
            model=derive.planned_model(rules, path, context),
            results=_results(inputs, containers),
            holds=Allocation(
                str(allocation.minutes) if allocation.minutes else None,
                inputs.nodes.all,
                inputs.nodes.all * inputs.nodes.gpus,
            ),
            details=job,
        )
        return MultinodeResolved(replace(plan, job_name=allocation.job_name), rules, job)

    def _plan_inputs(self, rules: AppliedRules, lane: Multinode, context: Context) -> _PlanInputs:
        benchmark = rules.benchmark
        nodes = NodeCounts.of(benchmark, lane.allocation.gpus or rules.file.runner.node.gpus)
        if lane.roles and nodes.all != len(lane.roles):
            used = count_of(len(lane.roles), "role uses one", "roles use one each")
            message = f"the row asks for {count_of(nodes.all, 'node')}, and {used}"
            raise ConfigError(message, where=benchmark.source)
        placeholders = placeholder_values(benchmark, nodes)
        # The workspace is only known when the job is prepared, so its placeholder stays.
        placeholders |= {"workspace": "{workspace}", "logs": f"{{workspace}}/{lane.logs}", "login": self._login}
        placeholders["state"] = context.state
        placeholders["user"] = context.host.get("USER") or self._login
        expected = expected_results(benchmark, result_stem(benchmark, context.runner_name))
        expected = change(expected, gpus=_gpus_by_side(lane, benchmark, nodes))
        contract = workflow_variables(benchmark, expected.filename, context)
        return _PlanInputs(rules, lane, context, nodes, placeholders, contract, expected)

    def _model_path(self, inputs: _PlanInputs) -> str | None:
        """The checkpoint's directory, which has another name than the model if upstream's list of models says so."""
        benchmark, lane, context = inputs.benchmark, inputs.lane, inputs.context
        path = derive.model_path(inputs.rules.model.rule, benchmark, context)
        if lane.models is None or path is None:
            return path
        name, models = benchmark.model.rpartition("/")[2], self._read_yaml(Path(context.workspace, lane.models))
        keys = (f"{name}-{'AgentX' if benchmark.agentic else 'DI'}", name)
        if not isinstance(models, dict) or not any(key in models for key in keys):
            message = f"the scripts know no model {keys[0]}, nor {name}"
            raise ConfigError(message, where=str(Path(context.workspace, lane.models)))
        own = models.get(name)
        folder = own.get("hf_dir") if isinstance(own, dict) else None
        return str(Path(path).with_name(folder)) if isinstance(folder, str) and "/" not in folder else path

    def _read_yaml(self, path: Path) -> Any:
        """The content of a YAML file; None for a missing one."""
        if path not in self._documents:
            self._documents[path] = Document.read(path, strict=False).data if path.is_file() else None
        return self._documents[path]

    def _script(
        self, inputs: _PlanInputs, workspace: str, passed: Mapping[str, str], containers: tuple[NodeContainer, ...]
    ) -> PlannedScript:
        """The script that runs in the containers. Raises ConfigError when it requires a variable that is not passed."""
        wrapper, script = inputs.fill(inputs.lane.wrapper), inputs.fill(inputs.lane.script)
        facts = {path: self._scripts.read(workspace, path) for path in (wrapper, script)}
        if missing := [path for path in facts if facts[path] is None]:
            raise missing_script(inputs.benchmark, missing, workspace)
        required, _ = facts[wrapper] or ((), False)
        require_variables(required, {**passed, **{k: v for c in containers for k, v in c.environment.items()}}, wrapper)
        return PlannedScript(script, (wrapper, script), True, required, ())

    def _allocation(self, inputs: _PlanInputs) -> PlannedAllocation:
        rules, context, allocation = inputs.rules, inputs.context, inputs.lane.allocation
        scheduler = rules.file.runner.scheduler
        partition, account = derive.partition_and_account(rules, context)
        limits = [scheduler.time_limit, allocation.time_limit, *(a.rule.time_limit for a in rules.adjustments)]
        if allocation.recipe is not None:
            recipe = self._read_yaml(Path(context.workspace, inputs.fill(allocation.recipe)))
            section = recipe.get("slurm") if isinstance(recipe, dict) else None
            limits.append(str(section["time_limit"]) if isinstance(section, dict) and "time_limit" in section else None)
        variable = allocation.exclude_variable
        value = (variable and (inputs.benchmark.settings.get(variable) or context.host.get(variable))) or ""
        excluded = [node for node in value.split(",") if node]
        return PlannedAllocation(
            partition=partition,
            account=inputs.fill(allocation.account) if allocation.account else account,
            nodes=inputs.nodes.all,
            gpus=inputs.nodes.gpus,
            gpu_type=None,
            cpus_per_task=None,
            memory=allocation.memory,
            exclusive=True,
            minutes=minutes_of(limits, allocation.time_limit_variable, context, rules.lane.where),
            job_name=(allocation.job_name or scheduler.job_name).replace("{runner}", context.runner_name),
            exclude=(*excluded, *context.exclude) if excluded else tuple(derive.excluded_nodes(rules, context)),
        )


@dataclass(frozen=True)
class _PlanInputs:
    """The values from which the parts of a plan are derived."""

    rules: AppliedRules
    lane: Multinode
    context: Context
    nodes: NodeCounts
    placeholders: Mapping[str, str]
    contract: Mapping[str, str]
    expected: Expected

    @property
    def benchmark(self) -> Benchmark:
        return self.rules.benchmark

    def fill(self, text: str) -> str:
        """A text of the runner file with its placeholders filled in. Raises ConfigError."""
        return fill_placeholders(text, self.placeholders, self.benchmark)


def _container(inputs: _PlanInputs, role: RoleRule | None, image: str) -> NodeContainer:
    rules, lane, benchmark = inputs.rules, inputs.lane, inputs.benchmark
    exports, mounts = _exports(rules, lane), dict(lane.mounts)
    for more in [*(e.mounts for e in _extras(lane, benchmark)), *(a.rule.mounts for a in rules.adjustments)]:
        mounts |= more
    if (file := lane.settings_file) is not None:
        mounts[f"{{logs}}/{file.name}:ro"] = file.target
        exports = {name: value for name, value in exports.items() if name not in file.names}
    exports |= role.exports if role is not None else {}
    environment = {name: inputs.fill(value) for name, value in exports.items()}
    # The lane writes a default as NAME: "?default"; the row's own value wins over it.
    environment = {
        name: (inputs.contract.get(name) or benchmark.settings.get(name) or value[1:]) if value[:1] == "?" else value
        for name, value in environment.items()
    }
    passes = {
        *(name for name in inputs.contract if name not in environment and name not in EXCLUDED_VARIABLES),
        *passed_variables(inputs.context.host, rules.file.runner.pass_environment),
    }
    return NodeContainer(
        role=role.name if role is not None else None,
        engine=lane.engine,
        image=image,
        workdir=lane.workdir,
        mounts={inputs.fill(target): inputs.fill(path) for path, target in mounts.items()},
        options=ContainerOptions(
            remap_root=lane.remap_root, writable=lane.writable, entrypoint=lane.entrypoint, flags=tuple(lane.flags)
        ),
        environment=environment,
        passes=tuple(sorted(passes)),
    )


def _job(inputs: _PlanInputs, containers: tuple[NodeContainer, ...]) -> NodeJob:
    lane, fill, host = inputs.lane, inputs.fill, inputs.context.host
    extras = _extras(lane, inputs.benchmark)
    skipped = {check for variable, check in SKIP_VARIABLES.items() if host.get(variable) == "1"}
    # A role's rank is its position: roles have one node each.
    roles, coordinator = [role.name for role in lane.roles], lane.coordinator or "0"
    return NodeJob(
        nodes=inputs.nodes.all,
        containers=containers,
        checks=tuple(check for check in lane.checks if check not in skipped),
        coordinator=roles.index(coordinator) if coordinator in roles else int(fill(coordinator)),
        drain=lane.drain,
        at_run_time={name: fill(text) for name, text in lane.at_run_time.items()},
        login_shell=lane.login_shell,
        pulls=tuple(inputs.benchmark.settings[e.setting] for e in extras if e.image),
        beside=tuple(fill(e.container) for e in extras if e.container),
        rdma_check=lane.rdma_check,
        gpu_patience=lane.gpu_patience,
        host_libraries=lane.host_libraries,
    )


def _roles(lane: Multinode) -> list[RoleRule | None]:
    return [*lane.roles] or [None]


def _extras(lane: Multinode, benchmark: Benchmark) -> list[Extra]:
    return [extra for extra in lane.extras if benchmark.settings.get(extra.setting)]


def _images(rules: AppliedRules, lane: Multinode, context: Context) -> list[tuple[str, PlannedImage | None]]:
    """The image of each role as the engine takes it, and the planned squash file, if the engine uses one.

    Raises ConfigError when the row does not name a required image.
    """
    benchmark, runner = rules.benchmark, rules.file.runner
    image_rule = rules.image.rule if rules.image is not None else None
    images: list[tuple[str, PlannedImage | None]] = []
    for role in _roles(lane):
        setting = role.image_setting if role is not None else None
        name = benchmark.settings.get(setting or "")
        if name is None and role is not None and role.image_required:
            raise ConfigError(f"the row sets no {setting}, the image of its {role.name} side", where=benchmark.source)
        if lane.engine == "docker":
            images.append((Reference.parse(name or benchmark.image).for_docker, None))
            continue
        image = derive.benchmark_image(rules, context)
        if name is not None:
            arch, where = runner.node.arch, benchmark.source
            image = derive.planned_image(name, "benchmark", runner.images, arch, context, where, image_rule)
        images.append((image.squash, image))
    return images


def _gpus_by_side(lane: Multinode, benchmark: Benchmark, nodes: NodeCounts) -> tuple[int, int]:
    """GPUs of prefill and decode in the names of results. Without roles or docker a side has whole nodes."""
    sides = [(benchmark.prefill, nodes.prefill), (benchmark.decode, nodes.decode)]
    if lane.roles:
        prefill, decode = (role.workers * role.tp if role is not None else 0 for role, _ in sides)
    elif lane.engine == "docker":
        prefill, decode = (count * role.tp if role is not None else 0 for role, count in sides)
    else:
        prefill, decode = (count * nodes.gpus for _, count in sides)
    return prefill, decode


def _submit(
    allocation: PlannedAllocation, lane: Multinode, run_key: str, environment: Mapping[str, str]
) -> PlannedSubmit:
    log = f"{{workspace}}/{lane.logs}/slurm_job-%j.out"
    argv = (*allocation.options(run_key), f"--output={log}", f"--error={log}")
    directives = ("--ntasks-per-node=1", f"--gres=gpu:{allocation.gpus}", *lane.allocation.directives)
    return PlannedSubmit(argv, directives, environment)


def _exports(rules: AppliedRules, lane: Multinode) -> dict[str, str]:
    """Variables of the lane, of its extras that the row uses, and of adjustments; later ones win."""
    exports = dict(lane.exports)
    for more in [*(e.exports for e in _extras(lane, rules.benchmark)), *(a.rule.exports for a in rules.adjustments)]:
        exports |= more
    return exports


def _planned_logs(rules: AppliedRules, lane: Multinode) -> PlannedLogs:
    file, exports = lane.settings_file, _exports(rules, lane)
    if file is None:
        return PlannedLogs(lane.logs, lane.run_logs)
    return PlannedLogs(lane.logs, lane.run_logs, file.name, {name: exports.get(name, "") for name in file.names})


def _results(inputs: _PlanInputs, containers: tuple[NodeContainer, ...]) -> Expected:
    """The expected results: files that the run must have, and other files that the job leaves in the workspace."""
    benchmark, expected, lane = inputs.benchmark, inputs.expected, inputs.lane
    names = "{result}_conc{concurrency}.json" if benchmark.agentic else lane.results
    required = [
        names.replace("{result}", expected.filename).replace("{concurrency}", str(at)) for at in expected.concurrencies
    ]
    # A client names the model by its served name, or by its directory in the container.
    models = {
        containers[0].environment.get("MODEL_NAME", ""),
        "/models",
        f"/models/{inputs.placeholders['model-name']}",
    }
    return change(
        expected,
        models=tuple(sorted(models - {""})),
        directory=inputs.context.workspace,
        required=("results*.json",) if benchmark.eval_only else tuple(required),
        eval=EVALUATION_FILES if benchmark.run_eval or benchmark.eval_only else (),
        logs=(*LOG_FILES, f"{lane.logs}/**"),
        metrics=METRIC_FILES,
    )
