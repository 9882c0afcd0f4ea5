"""Parts of a plan that follow from the runner file and the recipe: model, images, workspace, partition, tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launcher.benchmark import Benchmark
from launcher.errors import ConfigError
from launcher.image.reference import Reference, same_image, squash_name
from launcher.plan import PlannedImage, PlannedModel, PlannedOverlay
from launcher.runner.file import Applied, RunnerFile
from launcher.runner.schema import LaneRule, ModelRule
from launcher.srtctl.locate import OVERLAY
from launcher.srtctl.recipe import RecipeFacts


@dataclass(frozen=True)
class Context:
    """What a plan depends on beside its three inputs.

    ``runner_name`` is RUNNER_NAME or a stand-in for runs by hand; ``run_key`` names the run; ``today`` is YYYYMMDD;
    ``host`` the environment variables by which a runner file lets its host override it; ``is_directory`` answers
    whether this machine sees a path (a dry run elsewhere answers no to all); ``narrow`` says that the concurrencies
    were chosen by hand, so that the recipe is to run just those; ``state`` is the launcher's own directory.
    """

    workspace: str
    runner_name: str
    run_key: str
    today: str
    host: Mapping[str, str] = field(default_factory=dict)
    is_directory: Callable[[str, str | None], bool] = lambda path, holding: False
    narrow: bool = False
    state: str = "."


def setup_script(file: RunnerFile, lane: Applied[LaneRule], benchmark: Benchmark, power: bool) -> str | None:
    later = [a.rule.setup_script for a in file.adjustments(benchmark, power=power)]
    script: str | None = last([lane.rule.setup_script, *later], None)
    return script


def model_path(rule: ModelRule, benchmark: Benchmark, context: Context) -> str:
    """The checkpoint's directory: the host's override, the first candidate that is there, or the first."""
    if rule.variable and context.host.get(rule.variable):
        return context.host[rule.variable]
    candidates = [rule.path] if isinstance(rule.path, str) else rule.path
    candidates = [fill(c, context).replace("{model}", benchmark.model.rpartition("/")[2]) for c in candidates]
    return next((c for c in candidates if context.is_directory(c, rule.holding)), candidates[0])


def model_aliases(rule: ModelRule, seen: RecipeFacts | None) -> list[str]:
    """The aliases to register: the one that the recipe uses if it means this checkpoint; the lane's own if unread."""
    if seen is None:
        return [rule.alias]
    return [seen.model_path] if seen.model_path in (rule.alias, *rule.also) and seen.model_path else []


def images(
    benchmark: Benchmark, file: RunnerFile, seen: RecipeFacts | None, context: Context
) -> tuple[tuple[PlannedImage, ...], dict[str, str]]:
    """The images to have, and the container names of the recipe that they answer."""
    rule = file.runner.images
    main = _planned_image(benchmark.image, "benchmark", file, context)
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
            image = _planned_image(helper, role, file, context)
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


def _planned_image(reference: str, role: str, file: RunnerFile, context: Context) -> PlannedImage:
    rule = file.runner.images
    name = squash_name(reference, rule.name)
    directory = fill(rule.directory, context)
    squash = f"{directory}/{name}"
    return PlannedImage(
        reference=reference,
        uri=Reference.parse(reference).uri,
        squash=squash,
        import_on=rule.import_on,
        role=role,
        lock=rule.lock.format(squash=squash, directory=directory, name=name),
        lock_wait=rule.lock_wait,
        import_timeout=rule.import_timeout,
        temporary=fill(rule.temporary, context) if rule.temporary else None,
    )


def planned_model(file: RunnerFile, path: str, benchmark: Benchmark) -> PlannedModel:
    storage = file.storage_of(path)
    if path.startswith("hf:"):
        return PlannedModel(path, benchmark.precision, "hub", ("login", "compute"))
    kind, seen_by = (storage.kind, tuple(storage.seen_by)) if storage else ("unknown", ("login", "compute"))
    return PlannedModel(path, benchmark.precision, kind, seen_by)


def shared_workspace(file: RunnerFile, context: Context) -> str | None:
    """The copy of the workspace for compute nodes, or None when they see the original."""
    shared = file.runner.workspace.shared
    if shared is None:
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
