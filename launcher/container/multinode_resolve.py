"""From a benchmark of several nodes and a runner to the plan of a job of one container a node. No process, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as change

from launcher.benchmark.benchmark import Benchmark
from launcher.container.multinode_placeholders import Nodes, fill_placeholders, placeholder_values
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
from launcher.container.resolve import EVAL, METRICS, contract_of, minutes_of, own_workspace
from launcher.container.script import Scripts, no_script, refuse_lacks
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

Fill = Callable[[str], str]
"""Fills the names in a text of the runner file in."""

HOSTS = ("GITHUB_WORKSPACE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
"""Variables of the contract that mean nothing in a container, whose scripts set their own."""

SKIPS = {"SKIP_RDMA_CHECK": "rdma", "SKIP_GPU_SANITY": "gpu-clean"}
"""Variables of the host by which the bash launchers leave out a look at the nodes; 1 does."""

LOGS = ("LOGS/**", "server_*.log", "tilert_*.log")


class MultinodePlanner:
    """Plans jobs of one container a node; it reads each file of a workspace once. ``login`` is the name of this
    process's user by the password database, which the workflow's USER need not be; ``recipes`` is the directory whose
    ``benchmarks`` has the scripts that come with the launcher."""

    def __init__(self, login: str, recipes: Path = Path()) -> None:
        self._login, self._recipes = login, recipes
        self._scripts = Scripts()
        self._documents: dict[Path, Any] = {}

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> MultinodeResolved:
        """Decide everything that a run will do.

        Raises ConfigError when the runner supports no such benchmark, when its scripts or its model are not among
        upstream's, and when a script asks for a variable that it would not get.
        """
        rules = AppliedRules.of(benchmark, file)
        lane = rules.lane.rule.multinode
        if lane is None or not benchmark.multinode:
            message = f"runner {file.runner.name} runs {benchmark.title} in no containers of several nodes"
            raise ConfigError(message, where=rules.lane.where)
        made = own_workspace(file, context, self._recipes)
        given = self._given(rules, lane, context if made is None else change(context, workspace=made.path))
        path = self._model(given)
        images = _images(rules, lane, context)
        containers = tuple(
            _container(given, role, image) for role, (image, _) in zip(_roles(lane), images, strict=True)
        )
        scripts = context.workspace if made is None else str(self._recipes)
        script = self._script(given, scripts, {**given.contract, "MODEL_PATH": path or ""}, containers)
        # What a container has otherwise than the workflow is not in the job's environment either.
        own = {name for container in containers for name in container.environment}
        environment = {name: value for name, value in given.contract.items() if name not in own}
        allocation = self._allocation(given)
        submit = _submit(allocation, lane, context.run_key, environment)
        job = MultinodeJob(allocation, submit, _job(given, containers), script, _files(rules, lane), own_workspace=made)
        plan = derive.assemble_plan(
            rules,
            context,
            images=tuple({planned.squash: planned for _, planned in images if planned is not None}.values()),
            model=derive.planned_model(rules, path, context),
            results=_results(given, containers),
            holds=Allocation(
                str(allocation.minutes) if allocation.minutes else None,
                given.nodes.all,
                given.nodes.all * given.nodes.gpus,
            ),
            details=job,
        )
        return MultinodeResolved(replace(plan, job_name=allocation.job_name), rules, job)

    def _given(self, rules: AppliedRules, lane: Multinode, context: Context) -> _Given:
        benchmark = rules.benchmark
        nodes = Nodes.of(benchmark, lane.allocation.gpus or rules.file.runner.node.gpus)
        if lane.roles and nodes.all != len(lane.roles):
            used = count_of(len(lane.roles), "role uses one", "roles use one each")
            message = f"the row asks for {count_of(nodes.all, 'node')}, and {used}"
            raise ConfigError(message, where=benchmark.source)
        words = placeholder_values(benchmark, nodes)
        # The workspace is filled in where the job works.
        words |= {"workspace": "{workspace}", "logs": f"{{workspace}}/{lane.logs}", "login": self._login}
        words["state"] = context.state
        words["user"] = context.host.get("USER") or self._login
        expected = expected_results(benchmark, result_stem(benchmark, context.runner_name))
        expected = change(expected, gpus=_gpus(lane, benchmark, nodes))
        contract = contract_of(benchmark, expected.filename, context)
        return _Given(rules, lane, context, nodes, words, contract, expected)

    def _model(self, given: _Given) -> str | None:
        """The checkpoint's directory; upstream's list of models may call it otherwise than by its name."""
        benchmark, lane, context = given.benchmark, given.lane, given.context
        path = derive.model_path(given.rules.model.rule, benchmark, context)
        if lane.models is None or path is None:
            return path
        name, models = benchmark.model.rpartition("/")[2], self._document(Path(context.workspace, lane.models))
        keys = (f"{name}-{'AgentX' if benchmark.agentic else 'DI'}", name)
        if not isinstance(models, dict) or not any(key in models for key in keys):
            message = f"the scripts know no model {keys[0]}, nor {name}"
            raise ConfigError(message, where=str(Path(context.workspace, lane.models)))
        own = models.get(name)
        folder = own.get("hf_dir") if isinstance(own, dict) else None
        return str(Path(path).with_name(folder)) if isinstance(folder, str) and "/" not in folder else path

    def _document(self, path: Path) -> Any:
        """A file of YAML; None where there is none."""
        if path not in self._documents:
            self._documents[path] = Document.read(path, strict=False).data if path.is_file() else None
        return self._documents[path]

    def _script(
        self, given: _Given, workspace: str, passed: Mapping[str, str], containers: tuple[NodeContainer, ...]
    ) -> PlannedScript:
        """What runs in the containers. What upstream's script for the row asks for is passed, or it is refused."""
        wrapper, script = given.fill(given.lane.wrapper), given.fill(given.lane.script)
        if missing := [path for path in (wrapper, script) if self._scripts.asked(workspace, path) is None]:
            raise no_script(given.benchmark, missing, workspace)
        known = {**passed, **{k: v for c in containers for k, v in c.environment.items()}}
        asks = self._scripts.asked(workspace, wrapper) or ()
        refuse_lacks(asks, known, wrapper)
        return PlannedScript(script, (wrapper, script), True, asks, ())

    def _allocation(self, given: _Given) -> PlannedAllocation:
        rules, context, asked = given.rules, given.context, given.lane.allocation
        scheduler = rules.file.runner.scheduler
        partition, account = derive.partition_and_account(rules, context)
        limits = [scheduler.time_limit, asked.time_limit, *(a.rule.time_limit for a in rules.adjustments)]
        if asked.recipe is not None:
            recipe = self._document(Path(context.workspace, given.fill(asked.recipe)))
            section = recipe.get("slurm") if isinstance(recipe, dict) else None
            limits.append(str(section["time_limit"]) if isinstance(section, dict) and "time_limit" in section else None)
        variable = asked.exclude_variable
        said = (variable and (given.benchmark.settings.get(variable) or context.host.get(variable))) or ""
        named = [node for node in said.split(",") if node]
        return PlannedAllocation(
            partition=partition,
            account=given.fill(asked.account) if asked.account else account,
            nodes=given.nodes.all,
            gpus=given.nodes.gpus,
            gpu_type=None,
            cpus_per_task=None,
            memory=asked.memory,
            exclusive=True,
            minutes=minutes_of(limits, asked.time_limit_variable, context, rules.lane.where),
            job_name=(asked.job_name or scheduler.job_name).replace("{runner}", context.runner_name),
            exclude=(*named, *context.exclude) if named else tuple(derive.excluded_nodes(rules, context)),
        )


@dataclass(frozen=True)
class _Given:
    """What the parts of a plan follow from."""

    rules: AppliedRules
    lane: Multinode
    context: Context
    nodes: Nodes
    words: Mapping[str, str]
    contract: Mapping[str, str]
    expected: Expected

    @property
    def benchmark(self) -> Benchmark:
        return self.rules.benchmark

    def fill(self, text: str) -> str:
        """A text of the runner file with its names filled in. Raises ConfigError."""
        return fill_placeholders(text, self.words, self.benchmark)


def _container(given: _Given, role: RoleRule | None, image: str) -> NodeContainer:
    rules, lane, benchmark = given.rules, given.lane, given.benchmark
    exports, mounts = _exports(rules, lane), dict(lane.mounts)
    for own in [*(e.mounts for e in _extras(lane, benchmark)), *(a.rule.mounts for a in rules.adjustments)]:
        mounts |= own
    if (file := lane.settings_file) is not None:
        mounts[f"{{logs}}/{file.name}:ro"] = file.target
        exports = {name: value for name, value in exports.items() if name not in file.names}
    exports |= role.exports if role is not None else {}
    environment = {name: given.fill(value) for name, value in exports.items()}
    # The row's own value wins over a default of the lane, written NAME: "?default".
    environment = {
        name: (given.contract.get(name) or benchmark.settings.get(name) or value[1:]) if value[:1] == "?" else value
        for name, value in environment.items()
    }
    passes = {
        *(name for name in given.contract if name not in environment and name not in HOSTS),
        *passed_variables(given.context.host, rules.file.runner.pass_environment),
    }
    return NodeContainer(
        role=role.name if role is not None else None,
        engine=lane.engine,
        image=image,
        workdir=lane.workdir,
        mounts={given.fill(target): given.fill(path) for path, target in mounts.items()},
        options=ContainerOptions(
            remap_root=lane.remap_root, writable=lane.writable, entrypoint=lane.entrypoint, flags=tuple(lane.flags)
        ),
        environment=environment,
        passes=tuple(sorted(passes)),
    )


def _job(given: _Given, containers: tuple[NodeContainer, ...]) -> NodeJob:
    lane, fill, host = given.lane, given.fill, given.context.host
    extras = _extras(lane, given.benchmark)
    skipped = {check for variable, check in SKIPS.items() if host.get(variable) == "1"}
    return NodeJob(
        nodes=given.nodes.all,
        containers=containers,
        checks=tuple(check for check in lane.checks if check not in skipped),
        coordinator=_coordinator(lane, fill),
        drain=lane.drain,
        at_run_time={name: fill(what) for name, what in lane.at_run_time.items()},
        login_shell=lane.login_shell,
        pulls=tuple(given.benchmark.settings[e.setting] for e in extras if e.image),
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
    """What the engine is given for each role, with the squash file to have for it.

    Raises ConfigError when the row does not name an image that it has to.
    """
    benchmark, runner = rules.benchmark, rules.file.runner
    own = rules.image.rule if rules.image is not None else None
    found: list[tuple[str, PlannedImage | None]] = []
    for role in _roles(lane):
        setting = role.image_setting if role is not None else None
        name = benchmark.settings.get(setting or "")
        if name is None and role is not None and role.image_required:
            raise ConfigError(f"the row sets no {setting}, the image of its {role.name} side", where=benchmark.source)
        if lane.engine == "docker":
            found.append((Reference.parse(name or benchmark.image).for_docker, None))
            continue
        image = derive.benchmark_image(rules, context)
        if name is not None:
            place = ("benchmark", runner.images, runner.node.arch, context, benchmark.source, own)
            image = derive.planned_image(name, *place)
        found.append((image.squash, image))
    return found


def _coordinator(lane: Multinode, fill: Fill) -> int:
    """The rank whose container decides: roles have one node each, in their order."""
    names = [role.name for role in lane.roles]
    said = lane.coordinator or "0"
    return names.index(said) if said in names else int(fill(said))


def _gpus(lane: Multinode, benchmark: Benchmark, nodes: Nodes) -> tuple[int, int]:
    """GPUs of prefill and decode, as the scripts name results: AMD's and llm-d's have whole nodes."""
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
    """Variables of the lane, of what the row has beyond the rest, and of adjustments; later ones win."""
    exports = dict(lane.exports)
    own = [e.exports for e in _extras(lane, rules.benchmark)]
    for more in (*own, *(a.rule.exports for a in rules.adjustments)):
        exports |= more
    return exports


def _files(rules: AppliedRules, lane: Multinode) -> PlannedLogs:
    file, exports = lane.settings_file, _exports(rules, lane)
    if file is None:
        return PlannedLogs(lane.logs, lane.run_logs)
    return PlannedLogs(lane.logs, lane.run_logs, file.name, {name: exports.get(name, "") for name in file.names})


def _results(given: _Given, containers: tuple[NodeContainer, ...]) -> Expected:
    """The files without which the run has failed, and those that the job leaves in the workspace."""
    benchmark, expected, lane = given.benchmark, given.expected, given.lane
    names = "{result}_conc{concurrency}.json" if benchmark.agentic else lane.results
    required = [
        names.replace("{result}", expected.filename).replace("{concurrency}", str(at)) for at in expected.concurrencies
    ]
    # What clients call the model: the name that it is served by, or its directory in the container.
    called = {containers[0].environment.get("MODEL_NAME", ""), "/models", f"/models/{given.words['model-name']}"}
    return change(
        expected,
        models=tuple(sorted(called - {""})),
        directory=given.context.workspace,
        required=("results*.json",) if benchmark.eval_only else tuple(required),
        eval=EVAL if benchmark.run_eval or benchmark.eval_only else (),
        logs=(*LOGS, f"{lane.logs}/**"),
        metrics=METRICS,
    )
