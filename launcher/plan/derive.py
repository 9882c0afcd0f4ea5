"""The parts of a plan that are the same for every kind of job: model, images, workspace, partition, tags.

A kind of job decides the rest itself, and puts its plan together with `assemble_plan`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.contracts import SECRETS
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding
from launcher.image.reference import PlannedImage, Reference, squash_name
from launcher.plan.expected import result_stem, with_validation
from launcher.plan.plan import Allocation, Expected, ModelCache, Plan, PlannedModel, SchedulerPlan, WorkspacePlan
from launcher.runner.cluster_schema import Storage
from launcher.runner.file import AppliedRule, RunnerFile, applies, fill_in
from launcher.runner.schema import Adjustment, ImageRule, Images, LaneRule, ModelRule


class Context(msgspec.Struct, frozen=True):
    """What a plan depends on beside its three inputs.

    ``runner_name`` is RUNNER_NAME or a stand-in for runs by hand; ``run_key`` names the run; ``today`` is YYYYMMDD;
    ``host`` the environment variables by which a runner file lets its host override it; ``is_directory`` answers
    whether this machine sees a path (a dry run elsewhere answers no to all); ``narrow`` says that the concurrencies
    were chosen by hand, so that the recipe is to run just those; ``state`` is the launcher's own directory;
    ``exclude`` are nodes that the job must not get beside those of the runner file; ``longer`` is by how much its time
    limit is multiplied.
    """

    workspace: str
    runner_name: str
    run_key: str
    today: str
    host: Mapping[str, str] = msgspec.field(default_factory=dict)
    is_directory: Callable[[str, str | None], bool] = lambda path, holding: False
    narrow: bool = False
    state: str = "."
    exclude: tuple[str, ...] = ()
    longer: float = 1.0


class AppliedRules(msgspec.Struct, frozen=True):
    """A benchmark on a runner, and the rules of the runner file that apply to it.

    ``power`` says that the benchmark measures power, which rules may ask for. ``image`` is None when no rule is about
    the place of the benchmark's image.
    """

    benchmark: Benchmark
    file: RunnerFile
    power: bool
    model: AppliedRule[ModelRule]
    lane: AppliedRule[LaneRule]
    image: AppliedRule[ImageRule] | None
    adjustments: Sequence[AppliedRule[Adjustment]]

    @classmethod
    def of(cls, benchmark: Benchmark, file: RunnerFile, *, power: bool = False) -> AppliedRules:
        """Look the rules up. Raises ConfigError when the runner has no lane or no model for the benchmark."""
        lane = file.lane(benchmark, power=power)
        model = file.model(benchmark, power=power)
        image = file.image(benchmark, power=power)
        return cls(benchmark, file, power, model, lane, image, file.adjustments(benchmark, power=power))

    @property
    def all(self) -> list[AppliedRule[Any]]:
        """Every rule that applies: of the model, the lane, the image, then the adjustments."""
        return [self.model, self.lane, *([self.image] if self.image is not None else []), *self.adjustments]


class Resolved(msgspec.Struct, frozen=True):
    """A plan without findings, and the rules that it follows from: what `launcher.check` judges.

    A kind of job that has rules of its own in `launcher.check` extends this with what those look at.
    """

    plan: Plan
    rules: AppliedRules


def known_problems(applied: Sequence[AppliedRule[Any]]) -> list[Finding]:
    """The problems that the runner file itself declares (`known`) for the rules that apply."""
    problems = [(a.rule.known, a.location) for a in applied]
    return [
        Finding("known-problem", problem.severity, problem.message, location)
        for problem, location in problems
        if problem is not None
    ]


def model_path(rule: ModelRule, benchmark: Benchmark, context: Context) -> str | None:
    """The checkpoint: the host's override, the first candidate that exists, else the rule's `otherwise`.

    None where the rule has no directory, because the benchmark's script downloads the checkpoint.
    """
    if not rule.path:
        return None
    if rule.variable and context.host.get(rule.variable):
        return context.host[rule.variable]
    candidates = [rule.path] if isinstance(rule.path, str) else rule.path
    *candidates, otherwise = (
        fill_path(path, context).replace("{model}", benchmark.model.rpartition("/")[2])
        for path in [*candidates, rule.otherwise or candidates[0]]
    )
    return next((c for c in candidates if context.is_directory(c, rule.holding)), otherwise)


def is_image(name: str, image: str) -> bool:
    """Whether a container name of a recipe means this image, in whatever notation; an alias does not."""
    if name == image:
        return True
    try:
        return Reference.parse(name).uri == Reference.parse(image).uri
    except ConfigError:
        return False


def benchmark_image(rules: AppliedRules, context: Context) -> PlannedImage:
    """The image that the benchmark is measured with: its own, unless a rule of the runner file replaces it."""
    own, runner = rules.image.rule if rules.image is not None else None, rules.file.runner
    reference = (own and own.image) or rules.benchmark.image
    return planned_image(reference, "benchmark", runner.images, runner.node.arch, context, rules.benchmark.source, own)


def planned_image(
    reference: str,
    role: str,
    rule: Images,
    architecture: str | None,
    context: Context,
    where: str | None = None,
    own: ImageRule | None = None,
) -> PlannedImage:
    """An image as a runner has it; ``where`` is the place that names it, ``own`` a rule for its place."""
    name = squash_name(reference, (own and own.name) or rule.name)
    directory = fill_path((own and own.directory) or rule.directory, context)
    squash = f"{directory}/{name}"
    # enroot's environment comes before its configuration file (enroot 4.1.2, doc/cmd/import.md).
    environment = {"ENROOT_SQUASH_OPTIONS": rule.squash_options, "ENROOT_TRANSFER_RETRIES": str(rule.transfer_retries)}
    if rule.processors:
        environment["ENROOT_MAX_PROCESSORS"] = str(rule.processors)
    own_environment = own.environment if own is not None else {}
    environment |= {
        k: v.replace("{home}", context.host.get("HOME", "")) for k, v in {**rule.environment, **own_environment}.items()
    }
    return PlannedImage(
        reference=reference,
        uri=Reference.parse(reference).uri,
        squash=squash,
        import_on=(own and own.import_on) or rule.import_on,
        role=role,
        lock=fill_in(rule.lock, {"squash": squash, "directory": directory, "name": name.removesuffix(".sqsh")}),
        lock_wait=rule.lock_wait,
        import_timeout=rule.import_timeout,
        temporary=fill_path(rule.temporary, context) if rule.temporary else None,
        environment=environment,
        where=where,
        architecture=architecture,
        moved_tag=rule.moved_tag,
        processors=rule.processors,
        import_partition=rule.import_partition,
        import_options=tuple(rule.import_options),
        shared=rule.shared,
    )


def planned_model(
    rules: AppliedRules,
    path: str | None,
    context: Context,
    cache: ModelCache | None = None,
    *,
    mounted: tuple[str, ...] = (),
    pinned: str | None = None,
) -> PlannedModel:
    """The checkpoint at a path of the runner file: what the file says of the storage, and of staging.

    ``mounted`` are directories that the container sees under the host's paths, ``pinned`` the commit that the recipe's
    own identity names, for where the runner file pins none.
    """
    rule, benchmark = rules.model.rule, rules.benchmark
    if path is None or path.startswith("hf:"):
        seen: tuple[str, ...] = ("login", "compute")
        return PlannedModel(
            *(path, benchmark.precision, "hub", seen), id=benchmark.model, cache=cache, mounted=mounted, pinned=pinned
        )
    storage = rules.file.storage_of(path)
    kind, seen_by = (storage.kind, tuple(storage.seen_by)) if storage else ("unknown", ("login", "compute"))
    source = fill_path(rule.source, context) if rule.stage and rule.source else None
    striping = storage.striping if storage else None
    layouts = None if striping is None else tuple((s.at_least, s.count, s.size) for s in striping)
    origin = fill_path(rule.source, context) if rule.source else ""
    return PlannedModel(
        *(path, benchmark.precision, kind, seen_by, source, layouts, benchmark.model, cache, rule.downloads),
        fingerprint=rule.fingerprint,
        pinned=origin if re.fullmatch(r"hf:[^@]+@[0-9a-f]{40}", origin) else pinned,
        mounted=mounted,
    )


def shared_workspace(rules: AppliedRules, context: Context) -> str | None:
    """The copy of the workspace for compute nodes, or None when they see the original or the benchmark needs none."""
    workspace = rules.file.runner.workspace
    only = workspace.only
    if workspace.shared is None or (only and not any(applies(when, rules.benchmark) for when in only)):
        return None
    storage = rules.file.storage_of(context.workspace)
    if storage is not None and "compute" in storage.seen_by:
        return None
    return f"{workspace.shared.rstrip('/')}/infmax-workspace-{context.run_key}"


def partition_and_account(rules: AppliedRules, context: Context) -> tuple[str | None, str | None]:
    """Slurm's partition and account: the row's setting, else the host's variable, else the runner file's own."""
    scheduler, settings = rules.file.runner.scheduler, rules.benchmark.settings

    def choose(variable: str | None, default: str | None) -> str | None:
        return (variable and (settings.get(variable) or context.host.get(variable))) or default

    return (
        choose(scheduler.partition_variable, scheduler.partition),
        choose(scheduler.account_variable, scheduler.account),
    )


def excluded_nodes(rules: AppliedRules, context: Context) -> list[str]:
    """The nodes that the job must not get: those of the host's variable that a rule names, else the rule's own; and
    those that were chosen for this run.

    Several rules may name one variable, which stands for all of their nodes.
    """
    nodes: list[str] = []
    for rule in (excluded.rule for excluded in rules.file.excluded(rules.benchmark, power=rules.power)):
        nodes_of_host = context.host.get(rule.variable) if rule.variable is not None else None
        nodes += [n for n in nodes_of_host.split(",") if n] if nodes_of_host is not None else [rule.node]
    return list(dict.fromkeys((*nodes, *context.exclude)))


def job_tags(rules: AppliedRules, context: Context) -> str:
    """The runner file's tags for the job, filled in; a comma stands between two."""
    benchmark, runner = rules.benchmark, rules.file.runner
    template: str = last_given([a.rule.tags for a in rules.adjustments], runner.tags)
    values = {
        "sku": runner.sku,
        "prefix": benchmark.model_prefix,
        "precision": benchmark.precision,
        "isl": "" if benchmark.isl is None else benchmark.isl,
        "osl": "" if benchmark.osl is None else benchmark.osl,
        "date": context.today,
    }
    return fill_in(template, values)


def fill_path(template: str, context: Context) -> str:
    """A path of the runner file with its placeholders filled in."""
    return template.replace("{workspace}", context.workspace).replace("{state}", context.state).rstrip("/")


def last_given(values: Sequence[Any], default: Any) -> Any:
    """The last value that is not None, else ``default``: a later rule of a runner file wins."""
    return next((v for v in reversed(values) if v is not None), default)


def run_key(benchmark: Benchmark, runner_name: str, run: str, attempt: str) -> str:
    """The identity of a run: ``<run>-<attempt>-<12 hex digits>`` of what is measured and where.

    Two rows of one workflow run on one runner differ by their result names, hence by the digits.
    """
    name = result_stem(benchmark, runner_name)
    digest = hashlib.sha1(f"{runner_name}\0{name}\0{benchmark.eval_only}".encode(), usedforsecurity=False)
    return f"{run}-{attempt}-{digest.hexdigest()[:12]}"


def local_locks(storage: Sequence[Storage]) -> dict[str, bool]:
    """By file system, whether its locks are local to each host; empty when no file system has such locks."""
    locks_are_local = {file_system.path: file_system.locks == "local" for file_system in storage}
    return locks_are_local if any(locks_are_local.values()) else {}


def assemble_plan(
    rules: AppliedRules,
    context: Context,
    *,
    images: Sequence[PlannedImage],
    model: PlannedModel,
    results: Expected,
    holds: Allocation,
    details: Any,
) -> Plan:
    """The plan of a job of the lane's kind, without findings; ``details`` is what only this kind plans."""
    benchmark, runner = rules.benchmark, rules.file.runner
    partition, account = partition_and_account(rules, context)
    scheduler = runner.scheduler
    return Plan(
        kind=rules.lane.rule.kind,
        runner=runner.name,
        runner_name=context.runner_name,
        job_name=fill_in(scheduler.job_name, {"runner": context.runner_name}),
        run_key=context.run_key,
        sku=runner.sku,
        tools=runner.tools,
        benchmark=benchmark,
        scheduler=SchedulerPlan(scheduler.kind, partition, account, scheduler.backend, *holds),
        workspace=WorkspacePlan(context.workspace, shared_workspace(rules, context)),
        images=tuple(images),
        model=model,
        results=with_validation(results, benchmark, runner, rules.model.rule, model.path),
        rules={"model": rules.model.where, "lane": rules.lane.where},
        narrow=context.narrow,
        exclude=context.exclude,
        passes=passed_variables(context.host, runner.pass_environment),
        local_locks=local_locks(runner.storage),
        details=details,
    )


def passed_variables(host: Mapping[str, str], pass_environment: Sequence[str]) -> tuple[str, ...]:
    """The names that a plan passes to its job: secrets, and those that the runner file lists, where they are set."""
    return tuple(dict.fromkeys(name for name in (*SECRETS, *pass_environment) if host.get(name)))
