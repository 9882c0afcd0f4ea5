"""Rules about the recipe that a row names: whether it exists, and whether it runs what the row publishes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from launcher.check.inputs import Problem, Rule, rule
from launcher.check.schema_validation import Schema
from launcher.core.errors import closest, suggest
from launcher.core.finding import Severity
from launcher.core.slurm_notation import limit_seconds
from launcher.core.yaml_source import SourceLocation
from launcher.image.reference import is_image_reference
from launcher.srtctl.facts import ContainerUse, RecipeFacts
from launcher.srtctl.planned import SrtctlResolved

RULES: list[Rule] = []
plan_rule, recipe_rule = partial(rule, RULES, "plan"), partial(rule, RULES, "recipe")
version_rule = partial(rule, RULES, "version")


@plan_rule("recipe-missing", "error", "the recipe is in none of the trees")
def recipe_missing(s: SrtctlResolved) -> Iterator[Problem]:
    if s.recipe.found is None and s.recipe.tree_at_hand:
        trees = f"neither in the workspace, nor in this repository, nor in {s.refs}"
        yield f"{s.rules.benchmark.config_file} is {trees}", s.rules.benchmark.source


@plan_rule("recipe-unread", "warning", "the recipe is not at hand, and nothing of it could be checked")
def recipe_unread(s: SrtctlResolved) -> Iterator[Problem]:
    if s.recipe.found is None and not s.recipe.tree_at_hand:
        later = f"it is read, and checked, after the checkout of {s.refs}"
        yield f"{s.rules.benchmark.config_file} is not here: {later}", s.rules.benchmark.source


@plan_rule("recipe-elsewhere", "warning", "of several copies of the recipe a later one is taken")
def recipe_elsewhere(s: SrtctlResolved) -> Iterator[Problem]:
    found, passed_over = s.recipe.found, s.recipe.passed_over
    if passed_over is not None and found is not None:
        other = f"the copy in the {passed_over.origin} runs another image than the row"
        yield f"{other}; the copy of {found.origin} is used", SourceLocation(passed_over.file)


@plan_rule("selector-none", "error", "the selector picks no variant of the recipe")
def selector_none(s: SrtctlResolved) -> Iterator[Problem]:
    if s.recipe.found is not None and not s.recipe.variants:
        message = s.recipe.selector_problem or "the recipe has only a base and no variant; srtctl submits nothing"
        yield message, SourceLocation(s.recipe.found.file)


@plan_rule("selector-several", "error", "the recipe gives several variants, hence several jobs")
def selector_several(s: SrtctlResolved) -> Iterator[Problem]:
    found, count = s.recipe.found, len(s.recipe.variants)
    if found is not None and count > 1:
        selector = f"selector {found.selector!r}" if found.selector else "a recipe of variants without a selector"
        yield f"{selector} gives {count} variants, and srtctl would submit a job for each", SourceLocation(found.file)


@recipe_rule("alias-unregistered", "error", "the runner registers no such model alias")
def alias_unregistered(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    if f.model_path is not None and not s.job.models and not f.model_path.startswith(("/", "hf:")):
        own = s.rules.model.rule
        registers = f"runner {s.rules.file.runner.name} registers {', '.join([own.alias, *own.also])}"
        message = f"model alias {f.model_path!r} is not registered: {registers} for {s.rules.benchmark.model}"
        yield message, s.place("model", "path")


@recipe_rule("alias-by-accident", "warning", "the model alias is not the lane's own, and resolves by another spelling")
def alias_by_accident(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    own = s.rules.model.rule
    if f.model_path != own.alias and f.model_path in own.also:
        spelling = f"model alias {f.model_path!r} is a further spelling of {own.alias!r}"
        message = f"{spelling}: without it, srtctl would take the alias itself for a directory"
        yield message, s.place("model", "path")


@recipe_rule("model-from-hub", "warning", "the recipe takes its model from the hub, not from the cluster")
def model_from_hub(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    if f.model_path is not None and f.model_path.startswith("hf:"):
        paths = s.rules.model.rule.path
        path = paths if isinstance(paths, str) else " or ".join(paths)
        yield f"the recipe takes its model from {f.model_path}, whatever lies at {path}", s.place("model", "path")


_SETTINGS_READ = [
    "CONFIG_FILE",
    "EVAL_CONFIG_FILE",
    "NUM_SPEC_TOKENS",
    "RESULT_CLOCK_SKEW",
    "RESULT_FAILED",
    "RESULT_LONGEST",
    "RESULT_SHORTEST",
    "RESULT_TOLERANCE",
    "SYNTHETIC_ACCEPTANCE",
    "SYNTHETIC_ACCEPTANCE_LENGTH",
    "THINKING_MODE",
]
"""Settings of a row that srtctl's lanes read; the others are for the lanes of AMD, llm-d and tilert.

THINKING_MODE and NUM_SPEC_TOKENS describe the acceptance that is simulated (reference/launchers.md, section 2.8).
"""

_REPLACEMENTS = {
    "TIME_LIMIT": "slurm.time_limit of the recipe",
    "SLURM_EXCLUDE_NODES": "`exclude-nodes` of the runner file",
    **{
        name.upper(): f"resources.{name} of the recipe"
        for name in ("gpus_per_node", "prefill_nodes", "decode_nodes", "prefill_workers", "decode_workers")
    },
}


@plan_rule("setting-ignored", "warning", "the row sets what nothing of its lane reads")
def setting_ignored(s: SrtctlResolved) -> Iterator[Problem]:
    scheduler = s.rules.file.runner.scheduler
    known_settings = {*_SETTINGS_READ, scheduler.partition_variable, scheduler.account_variable}
    for key, value in s.rules.benchmark.settings.items():
        # Every setting is exported to the job, so that commands of the recipe may use it.
        if key not in known_settings and not (s.recipe.found is None or key in s.recipe.found.file.text):
            advice = f"; it belongs in {_REPLACEMENTS[key]}" if key in _REPLACEMENTS else ""
            yield f"{key}={value} is set, and neither srtctl nor the recipe reads it{advice}", s.rules.benchmark.source


@recipe_rule("sequence-length", "error", "the recipe measures other lengths than the row")
def sequence_length(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    b = s.rules.benchmark
    for name, wanted, actual in (("isl", b.isl, f.isl), ("osl", b.osl, f.osl)):
        if not b.agentic and wanted is not None and actual is not None and wanted != actual:
            message = f"the recipe measures {name} {actual}, and the matrix asks for {wanted}"
            yield message, s.place("benchmark", name)


@recipe_rule("max-model-len", "error", "a worker takes fewer tokens than a request has")
def max_model_len(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    b = s.rules.benchmark
    if b.agentic or b.isl is None or b.osl is None:
        return
    for name, side in f.roles.items():
        # A prefill worker hands over after the first token, so it never has the output (TensorRT-LLM recipes say 8232).
        needed = b.isl if name == "prefill" else b.isl + b.osl
        if side.max_model_len is not None and side.max_model_len < needed:
            message = f"{name} takes at most {side.max_model_len} tokens, and a request has up to {needed}"
            yield message, s.place("backend")


def _concurrencies(s: SrtctlResolved, f: RecipeFacts) -> tuple[str, str]:
    """The concurrencies that only the row has, and those that only the recipe has, as lists for a message."""
    if not f.concurrencies or s.rules.benchmark.agentic or s.rules.benchmark.eval_only:
        return "", ""
    requested, measured = set(s.rules.benchmark.concurrencies), set(f.concurrencies)
    return ", ".join(map(str, sorted(requested - measured))), ", ".join(map(str, sorted(measured - requested)))


@recipe_rule("concurrency", "error", "the recipe does not run a concurrency that the row asks for")
def concurrency(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    missing, more = _concurrencies(s, f)
    if missing:
        advice = f"; it runs {more}" if more else ""
        message = f"the recipe does not run concurrency {missing}, which the matrix asks for{advice}"
        yield message, s.place("benchmark", "concurrencies")


@recipe_rule("concurrency-extra", "warning", "the recipe runs a concurrency that the row does not ask for")
def concurrency_extra(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    missing, more = _concurrencies(s, f)
    if more and not missing and not s.narrowed:
        message = f"the recipe also runs concurrency {more}, which the matrix does not ask for"
        yield message, s.place("benchmark", "concurrencies")


_PRECISIONS = {"nvfp4": "fp4", "mxfp4": "fp4", "mxfp8": "fp8"}
"""Number format → the word for it in matrices."""


@recipe_rule("precision", "warning", "the recipe says another precision than the row")
def precision(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    wanted, actual = s.rules.benchmark.precision, f.precision
    if actual is not None and _PRECISIONS.get(actual.lower(), actual.lower()) != wanted.lower():
        yield f"the recipe says precision {actual}, and the matrix says {wanted}", s.place("model", "precision")


@recipe_rule("time-budget", "warning", "a wait is as long as what contains it")
def time_budget(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    """The job's limit must cover the wait for the servers; the workflow's limit must cover the job and the queue."""
    seconds = limit_seconds(f.time_limit or s.job.srtslurm.get("default_time_limit"))
    if seconds is None:
        return
    limit, waiting = seconds / 60, _health_wait(s) / 60
    most = 780 if s.rules.benchmark.agentic else 480  # minutes of a job in benchmark-multinode-tmpl.yml
    if waiting >= limit:
        message = f"srtctl waits up to {waiting:g} min for the servers, and Slurm ends the job after {limit:g} min"
        yield message, s.place("health_check")
    if limit >= most:
        message = f"the job may run {limit:g} min, and the workflow ends after {most} min, waits in the queue included"
        yield message, s.place("slurm", "time_limit") if f.time_limit else s.rules.lane.location


def _health_wait(s: SrtctlResolved) -> float:
    """The seconds that srtctl waits for servers, after the edits of the runner file."""
    settings: dict[str, Any] = {}
    edited = s.job.recipe.document or {}
    keys = s.recipe.variant.keys[:1] if s.recipe.variant is not None else ()
    for holder in (edited, edited.get("base"), *(edited.get(str(k)) for k in keys)):
        part = holder.get("health_check") if isinstance(holder, dict) else None
        settings.update(part if isinstance(part, dict) else {})
    wait = 1.0
    for key, default in (("max_attempts", 180), ("interval_seconds", 10)):  # srtctl's own defaults
        wait *= settings[key] if isinstance(settings.get(key), (int, float)) else default
    return wait


def _unresolved_containers(s: SrtctlResolved, f: RecipeFacts) -> Iterator[ContainerUse]:
    """Container names of the recipe that would reach the cluster as they are."""
    for use in f.container_aliases:
        if use.alias not in s.containers and not use.alias.startswith(("/", "./")):
            yield use


def _is_engine(use: ContainerUse) -> bool:
    return use.paths[0][0] == "model"


@recipe_rule("image-mismatch", "error", "the recipe runs another image than the row publishes")
def image_mismatch(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    for use in _unresolved_containers(s, f):
        if _is_engine(use) and is_image_reference(use.alias):
            message = f"the recipe runs {use.alias}, and the matrix publishes its numbers as {s.rules.benchmark.image}"
            yield message, s.place(*use.paths[0])


@recipe_rule("container-unresolved", "error", "a container name of the recipe is no image that the run stages")
def container_unresolved(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    for use in _unresolved_containers(s, f):
        if _is_engine(use) and is_image_reference(use.alias):
            continue
        path, near = use.paths[0], closest(use.alias, s.containers)
        advice = f" (near: {near})" if near else "; every node would pull it by itself"
        key, stager = ".".join(path), f"runner {s.rules.file.runner.name}"
        if _is_engine(use):
            key, stager = "container", "this run"
        yield f"{key} {use.alias!r} is not an image that {stager} stages{advice}", s.place(*path)


@recipe_rule("image-spelling", "warning", "the recipe spells the row's image otherwise")
def image_spelling(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    for use in f.container_aliases:
        name = use.alias
        if _is_engine(use) and name in s.containers and is_image_reference(name) and name != s.rules.benchmark.image:
            spelling = f"the recipe spells the row's image {s.rules.benchmark.image} as {name}"
            yield f"{spelling}, which only this launcher finds", s.place(*use.paths[0])


_VERSION = re.compile(r"(?<![0-9.])v?([0-9]+\.[0-9]+\.[0-9]+(?:[.-]?(?:post|rc|dev|a|b)\.?[0-9]+)?)(?![0-9.])")


@recipe_rule("alias-version", "warning", "a container alias names another version than the image that it stands for")
def alias_version(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    helpers = s.rules.file.runner.images.helpers
    for use in f.container_aliases:
        image = s.rules.benchmark.image if _is_engine(use) else helpers.get(use.alias, "")
        alias_versions, tag = _VERSION.findall(use.alias), image.partition("@")[0].rpartition(":")[2]
        if use.alias not in s.containers or is_image_reference(use.alias) or not alias_versions:
            continue
        # A tag without a version (`latest`, a digest alone) may be any version; a nightly build is no release.
        tag_versions = _VERSION.findall(tag)
        if not set(alias_versions) & set(tag_versions) and (tag_versions or "nightly" in tag):
            yield f"container {use.alias!r} stands for {image} here", s.place(*use.paths[0])


@recipe_rule("nginx-by-default", "warning", "several frontends, and no container for their nginx")
def nginx_by_default(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    if f.nginx_by_default:
        message = "several frontends and no frontend.nginx_container: srtctl's default image has no alias here"
        yield message, s.place("frontend")


_DIRECTIVES: dict[str, tuple[Severity, str]] = {
    "array": ("error", "makes many jobs of one, each of which starts the servers; the launcher follows one id"),
    "clusters": ("error", "submits to another cluster, which the launcher does not ask: no runner file can name one"),
    "test-only": ("error", "submits nothing"),
    "wait": ("error", "has sbatch wait for the job's end, which nobody waits for at a submission"),
    "wrap": ("error", "takes the place of srtctl's own script"),
    "output": ("warning", "moves the job's log away from where srtctl and the launcher look for it"),
    "chdir": ("warning", "starts the job in another directory than srtctl expects"),
}
"""Directives of sbatch whose job the launcher cannot follow, or that submit none: severity, and why."""

_DIRECTIVE_ALIASES = {"a": "array", "cluster": "clusters", "M": "clusters", "W": "wait", "o": "output", "D": "chdir"}
"""Their other names → the name above."""


def lost_directives(document: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, Severity]]:
    """The directives of a recipe with which the launcher loses the job: keys, message, severity."""
    directives = document.get("sbatch_directives")
    for name in directives if isinstance(directives, Mapping) else ():
        option = str(name).lstrip("-")
        if known := _DIRECTIVES.get(_DIRECTIVE_ALIASES.get(option, option)):
            severity, problem = known
            yield ("sbatch_directives", str(name)), f"the directive {str(name)!r} {problem}", severity


def unknown_benchmark_type(document: Mapping[str, Any], schema: Schema) -> str | None:
    """The problem of a `benchmark.type` that srtctl accepts unseen and its job then refuses; None when it is known."""
    benchmark = document.get("benchmark")
    kind = benchmark.get("type") if isinstance(benchmark, Mapping) else None
    if not isinstance(kind, str) or not schema.benchmarks or kind in schema.benchmarks:
        return None
    near = suggest(kind, schema.benchmarks, f"it has {', '.join(sorted(schema.benchmarks))}")
    return f"srt-slurm {schema.name} has no benchmark of type {kind!r}: {near}; its job ends after the servers started"


@plan_rule("directive-lost", "error", "a directive of the recipe makes a job that cannot be followed")
def directive_lost(s: SrtctlResolved) -> Iterator[Problem]:
    variant = s.recipe.variant
    for keys, message, severity in lost_directives(variant.document) if variant is not None else ():
        yield message, s.place(*keys), severity


@version_rule("benchmark-type", "error", "the recipe's type of benchmark is one that its srt-slurm does not have")
def benchmark_type(s: SrtctlResolved, schema: Schema) -> Iterator[Problem]:
    variant = s.recipe.variant
    if variant is not None and (message := unknown_benchmark_type(variant.document, schema)):
        yield message, s.place("benchmark", "type")
