"""Parts of a plan that follow from the runner file and the recipe: model, images, workspace, partition, tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.check.schema_validation import Verdicts
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding
from launcher.image.reference import Reference, same_image, squash_name
from launcher.plan.plan import PlannedImage, PlannedModel
from launcher.runner.file import Applied, RunnerFile, applies
from launcher.runner.schema import ImageRule, Images, LaneRule, ModelRule
from launcher.srtctl.locate import OVERLAY
from launcher.srtctl.planned import PlannedOverlay
from launcher.srtctl.recipe import RecipeFacts


@dataclass(frozen=True)
class Context:
    """What a plan depends on beside its three inputs.

    ``runner_name`` is RUNNER_NAME or a stand-in for runs by hand; ``run_key`` names the run; ``today`` is YYYYMMDD;
    ``host`` the environment variables by which a runner file lets its host override it; ``is_directory`` answers
    whether this machine sees a path (a dry run elsewhere answers no to all); ``narrow`` says that the concurrencies
    were chosen by hand, so that the recipe is to run just those; ``state`` is the launcher's own directory;
    ``verdicts`` knows what recipes may say at which srt-slurm.
    """

    workspace: str
    runner_name: str
    run_key: str
    today: str
    host: Mapping[str, str] = field(default_factory=dict)
    is_directory: Callable[[str, str | None], bool] = lambda path, holding: False
    narrow: bool = False
    state: str = "."
    verdicts: Verdicts = field(default_factory=Verdicts)


def known(applied: Sequence[Applied[Any]]) -> list[Finding]:
    """What the runner file itself says is wrong with the rules that apply."""
    said = [(a.rule.known, a.place) for a in applied]
    return [Finding("known-problem", k.severity, k.message, place) for k, place in said if k is not None]


def replaced(
    benchmark: Benchmark, model: Applied[ModelRule], path: str, image: Applied[ImageRule] | None
) -> list[Finding]:
    """That another image is run than the row's, or the hub's weights than the cluster's."""
    found = []
    if image is not None and image.rule.image and not is_image(image.rule.image, benchmark.image):
        message = f"{image.rule.image} is run, and the numbers are published as {benchmark.image}'s"
        found.append(Finding("image-replaced", "error", message, image.place))
    if path.startswith("hf:") and path == model.rule.otherwise:
        message = f"no directory of {model.rule.path} is seen from here: every node would download {path}"
        found.append(Finding("model-otherwise", "warning", message, model.place))
    return found


def setup_script(file: RunnerFile, lane: Applied[LaneRule], benchmark: Benchmark, power: bool) -> str | None:
    later = [a.rule.setup_script for a in file.adjustments(benchmark, power=power)]
    script: str | None = last([lane.rule.setup_script, *later], None)
    return script


def model_path(rule: ModelRule, benchmark: Benchmark, context: Context) -> str:
    """The checkpoint: the host's override, the first candidate that is there, else what the rule has for that."""
    if rule.variable and context.host.get(rule.variable):
        return context.host[rule.variable]
    candidates = [rule.path] if isinstance(rule.path, str) else rule.path
    *candidates, otherwise = (
        fill(path, context).replace("{model}", benchmark.model.rpartition("/")[2])
        for path in [*candidates, rule.otherwise or candidates[0]]
    )
    return next((c for c in candidates if context.is_directory(c, rule.holding)), otherwise)


def model_aliases(rule: ModelRule, seen: RecipeFacts | None) -> list[str]:
    """The aliases to register: the one that the recipe uses if it means this checkpoint; the lane's own if unread."""
    if seen is None:
        return [rule.alias]
    return [seen.model_path] if seen.model_path in (rule.alias, *rule.also) and seen.model_path else []


def images(
    benchmark: Benchmark, file: RunnerFile, seen: RecipeFacts | None, context: Context, own: ImageRule | None = None
) -> tuple[tuple[PlannedImage, ...], dict[str, str]]:
    """The images to have, and the container names of the recipe that they answer.

    ``own`` is the rule for the benchmark's own image, when it has one.
    """
    rule = file.runner.images
    arch = file.runner.node.arch
    main = planned_image(
        (own and own.image) or benchmark.image, "benchmark", rule, arch, context, benchmark.source, own
    )
    planned: dict[str, PlannedImage] = {main.squash: main}
    containers: dict[str, str] = {}
    if seen is None:
        return (main,), {benchmark.image: main.squash}
    for use in seen.container_aliases:
        name, role = use.alias, use.paths[0][0]
        if role == "model" and (name in rule.aliases or is_image(name, benchmark.image)):
            containers[name] = main.squash
            continue
        helper = rule.helpers.get(name) or next((h for h in rule.helpers.values() if is_image(name, h)), None)
        if helper is not None:
            image = planned_image(helper, role, rule, arch, context, f"{file.path} (images.helpers)")
            planned.setdefault(image.squash, image)
            containers[name] = image.squash
    return tuple(planned.values()), containers


def is_image(name: str, image: str) -> bool:
    """Whether a container name of a recipe is this image, in whatever notation; an alias is none."""
    if name == image:
        return True
    try:
        return same_image(name, image)
    except ConfigError:
        return False


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
    directory = fill((own and own.directory) or rule.directory, context)
    squash = f"{directory}/{name}"
    return PlannedImage(
        reference=reference,
        uri=Reference.parse(reference).uri,
        squash=squash,
        import_on=rule.import_on,
        role=role,
        lock=rule.lock.format(squash=squash, directory=directory, name=name.removesuffix(".sqsh")),
        lock_wait=rule.lock_wait,
        import_timeout=rule.import_timeout,
        temporary=fill(rule.temporary, context) if rule.temporary else None,
        environment=_enroot_environment(rule, context),
        where=where,
        architecture=architecture,
        moved_tag=rule.moved_tag,
        processors=rule.processors,
        import_partition=rule.import_partition,
        import_options=tuple(rule.import_options),
    )


def _enroot_environment(rule: Images, context: Context) -> dict[str, str]:
    """enroot's settings (enroot 4.1.2, doc/cmd/import.md): its environment comes before its configuration file."""
    return {
        "ENROOT_SQUASH_OPTIONS": rule.squash_options,
        "ENROOT_TRANSFER_RETRIES": str(rule.transfer_retries),
        **({"ENROOT_MAX_PROCESSORS": str(rule.processors)} if rule.processors else {}),
        **{k: v.replace("{home}", context.host.get("HOME", "")) for k, v in rule.environment.items()},
    }


def planned_model(file: RunnerFile, path: str, benchmark: Benchmark, rule: ModelRule, context: Context) -> PlannedModel:
    storage = file.storage_of(path)
    if path.startswith("hf:"):
        return PlannedModel(path, benchmark.precision, "hub", ("login", "compute"))
    kind, seen_by = (storage.kind, tuple(storage.seen_by)) if storage else ("unknown", ("login", "compute"))
    source = fill(rule.source, context) if rule.stage and rule.source else None
    striping = storage.striping if storage else None
    layouts = None if striping is None else tuple((s.at_least, s.count, s.size) for s in striping)
    return PlannedModel(path, benchmark.precision, kind, seen_by, source, layouts)


def shared_workspace(file: RunnerFile, benchmark: Benchmark, context: Context) -> str | None:
    """The copy of the workspace for compute nodes, or None when they see the original or the benchmark needs none."""
    shared, only = file.runner.workspace.shared, file.runner.workspace.only
    if shared is None or (only and not any(applies(when, benchmark) for when in only)):
        return None
    storage = file.storage_of(context.workspace)
    if storage is not None and "compute" in storage.seen_by:
        return None
    return f"{shared.rstrip('/')}/infmax-workspace-{context.run_key}"


def partition_and_account(file: RunnerFile, benchmark: Benchmark, context: Context) -> tuple[str | None, str | None]:
    scheduler = file.runner.scheduler

    def choose(variable: str | None, default: str | None) -> str | None:
        return (variable and (benchmark.settings.get(variable) or context.host.get(variable))) or default

    return (
        choose(scheduler.partition_variable, scheduler.partition),
        choose(scheduler.account_variable, scheduler.account),
    )


def tags(file: RunnerFile, adjustments: Sequence[Applied[Any]], benchmark: Benchmark, context: Context) -> str:
    template: str = last([a.rule.tags for a in adjustments], file.runner.tags)
    return template.format(
        sku=file.runner.sku,
        prefix=benchmark.model_prefix,
        precision=benchmark.precision,
        isl="" if benchmark.isl is None else benchmark.isl,
        osl="" if benchmark.osl is None else benchmark.osl,
        date=context.today,
    )


def overlays(lane: Applied[LaneRule], context: Context, setup_directory: str | None) -> tuple[PlannedOverlay, ...]:
    planned = [
        PlannedOverlay(str(PurePosixPath(context.workspace, OVERLAY, o.source)), o.destination or f"recipes/{o.source}")
        for o in lane.rule.overlays
    ]
    if setup_directory:
        planned.append(PlannedOverlay(setup_directory, "configs"))
    return tuple(planned)


def fill(template: str, context: Context) -> str:
    """A path of the runner file with its placeholders filled in."""
    return template.replace("{workspace}", context.workspace).replace("{state}", context.state).rstrip("/")


def last(values: Sequence[Any], default: Any) -> Any:
    return next((v for v in reversed(values) if v is not None), default)
