"""Rules about the recipe that a row names: whether it can be had, and whether it measures what the row publishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from launcher.check.engine import Found, Rule, rule
from launcher.core.slurm_notation import limit_seconds
from launcher.core.yaml_source import Place
from launcher.plan.derive import Resolved
from launcher.srtctl.planned import SrtctlResolved


@rule("recipe-missing", "error", "the recipe is in none of the trees")
def recipe_missing(s: SrtctlResolved) -> Iterator[Found]:
    if s.recipe.found is None and s.recipe.tree_at_hand:
        path = (s.benchmark.config_file or "").partition(":")[0]
        yield f"{path} is neither in the workspace, nor in this repository, nor in {s.refs}", s.benchmark.source


@rule("recipe-unread", "warning", "the recipe is not at hand, and nothing of it could be checked")
def recipe_unread(s: SrtctlResolved) -> Iterator[Found]:
    if s.recipe.found is None and not s.recipe.tree_at_hand:
        path = (s.benchmark.config_file or "").partition(":")[0]
        message = f"{path} is not here; it will be read from {s.refs} after the checkout, and checked then"
        yield message, s.benchmark.source


@rule("recipe-elsewhere", "warning", "of several copies of the recipe a later one is taken")
def recipe_elsewhere(s: SrtctlResolved) -> Iterator[Found]:
    found, passed_over = s.recipe.found, s.recipe.passed_over
    if passed_over is not None and found is not None:
        message = (
            f"the copy of {found.path} in the {passed_over.origin} runs another image than the matrix row; "
            f"the copy of {found.origin} runs the row's image and is used"
        )
        yield message, Place(passed_over.file)


@rule("selector-none", "error", "the selector picks no variant of the recipe")
def selector_none(s: SrtctlResolved) -> Iterator[Found]:
    if s.recipe.found is None or s.recipe.variants:
        return
    message = s.recipe.selector_problem or "the recipe has only a base and no variant; srtctl submits nothing"
    yield message, Place(s.recipe.found.file)


@rule("selector-several", "error", "the recipe gives several variants, hence several jobs")
def selector_several(s: SrtctlResolved) -> Iterator[Found]:
    found, count = s.recipe.found, len(s.recipe.variants)
    if found is not None and count > 1:
        asked = f"selector {found.selector!r}" if found.selector else "a recipe of variants without a selector"
        yield f"{asked} gives {count} variants, and srtctl would submit a job for each", Place(found.file)


@rule("alias-unregistered", "error", "the runner registers no such model alias")
def alias_unregistered(s: SrtctlResolved) -> Iterator[Found]:
    path = s.facts.model_path if s.facts else None
    if path is None or s.job.models or path.startswith(("/", "hf:")):
        return
    rule = s.rules.model.rule
    message = (
        f"model alias {path!r} is not registered: runner {s.file.runner.name} registers "
        f"{', '.join([rule.alias, *rule.also])} for {s.benchmark.model}"
    )
    yield message, s.place("model", "path")


@rule("alias-by-accident", "warning", "the model alias is not the lane's own, and resolves by another spelling")
def alias_by_accident(s: SrtctlResolved) -> Iterator[Found]:
    rule = s.rules.model.rule
    path = s.facts.model_path if s.facts else None
    if path is not None and path != rule.alias and path in rule.also:
        message = (
            f"model alias {path!r} is a further spelling of {rule.alias!r}: without it, srtctl would take the alias "
            f"itself for a directory"
        )
        yield message, s.place("model", "path")


@rule("model-from-hub", "warning", "the recipe takes its model from the hub, not from the cluster")
def model_from_hub(s: SrtctlResolved) -> Iterator[Found]:
    path = s.facts.model_path if s.facts else None
    if path is not None and path.startswith("hf:"):
        said = s.rules.model.rule.path
        there = said if isinstance(said, str) else " or ".join(said)
        yield f"the recipe takes its model from {path}, whatever lies at {there}", s.place("model", "path")


@rule("model-otherwise", "warning", "the checkpoint is not seen from here, and would be downloaded")
def model_otherwise(r: Resolved) -> Iterator[Found]:
    path, model = r.plan.model.path, r.rules.model
    if path.startswith("hf:") and path == model.rule.otherwise:
        yield f"no directory of {model.rule.path} is seen from here: every node would download {path}", model.place


_READ = frozenset(
    {
        "CONFIG_FILE",
        "EVAL_CONFIG_FILE",
        "NUM_SPEC_TOKENS",
        "SYNTHETIC_ACCEPTANCE",
        "SYNTHETIC_ACCEPTANCE_LENGTH",
        "THINKING_MODE",
    }
)
"""Settings of a row that mean something where srtctl runs it; the others are for the lanes of AMD, llm-d and tilert.

THINKING_MODE and NUM_SPEC_TOKENS describe the acceptance that is simulated (reference/launchers.md, section 2.8).
"""


@rule("setting-ignored", "warning", "the row sets what nothing of its lane reads")
def setting_ignored(s: SrtctlResolved) -> Iterator[Found]:
    scheduler = s.file.runner.scheduler
    read = {*_READ, scheduler.partition_variable, scheduler.account_variable}
    for key, value in s.benchmark.settings.items():
        # Every setting is exported to the job: commands of the recipe may use it.
        if key not in read and not (s.recipe.found is None or key in s.recipe.found.file.text):
            where = _INSTEAD.get(key)
            message = f"{key}={value} is set, and neither srtctl nor the recipe reads it"
            yield message + (f"; it belongs in {where}" if where else ""), s.benchmark.source


_INSTEAD = {
    "TIME_LIMIT": "slurm.time_limit of the recipe",
    "SLURM_EXCLUDE_NODES": "`exclude-nodes` of the runner file",
    "GPUS_PER_NODE": "resources.gpus_per_node of the recipe",
    "PREFILL_NODES": "resources.prefill_nodes of the recipe",
    "DECODE_NODES": "resources.decode_nodes of the recipe",
    "PREFILL_WORKERS": "resources.prefill_workers of the recipe",
    "DECODE_WORKERS": "resources.decode_workers of the recipe",
}


@rule("sequence-length", "error", "the recipe measures other lengths than the row")
def sequence_length(s: SrtctlResolved) -> Iterator[Found]:
    b, f = s.benchmark, s.facts
    if f is None or b.agentic:
        return
    for name, asked, has in (("isl", b.isl, f.isl), ("osl", b.osl, f.osl)):
        if asked is not None and has is not None and asked != has:
            yield f"the recipe measures {name} {has}, and the matrix asks for {asked}", s.place("benchmark", name)


@rule("max-model-len", "error", "a worker takes fewer tokens than a request has")
def max_model_len(s: SrtctlResolved) -> Iterator[Found]:
    b, f = s.benchmark, s.facts
    if f is None or b.agentic or b.isl is None or b.osl is None:
        return
    for name, side in f.roles.items():
        # A prefill worker hands over after the first token: it never sees the output (TensorRT-LLM recipes say 8232).
        needed = b.isl if name == "prefill" else b.isl + b.osl
        if side.max_model_len is not None and side.max_model_len < needed:
            message = f"{name} takes at most {side.max_model_len} tokens, and a request has up to {needed}"
            yield message, s.place("backend")


def _concurrencies(s: SrtctlResolved) -> tuple[set[int], set[int]]:
    """What the row asks for and the recipe lacks, and the other way round."""
    f = s.facts
    if f is None or not f.concurrencies or s.benchmark.agentic or s.benchmark.eval_only:
        return set(), set()
    asked, has = set(s.benchmark.concurrencies), set(f.concurrencies)
    return asked - has, has - asked


@rule("concurrency", "error", "the recipe does not run a concurrency that the row asks for")
def concurrency(s: SrtctlResolved) -> Iterator[Found]:
    missing, more = _concurrencies(s)
    if missing:
        instead = f"; it runs {_several(more)}" if more else ""
        message = f"the recipe does not run concurrency {_several(missing)}, which the matrix asks for{instead}"
        yield message, s.place("benchmark", "concurrencies")


@rule("concurrency-extra", "warning", "the recipe runs a concurrency that the row does not ask for")
def concurrency_extra(s: SrtctlResolved) -> Iterator[Found]:
    missing, more = _concurrencies(s)
    if more and not missing and not s.narrowed:
        message = f"the recipe also runs concurrency {_several(more)}, which the matrix does not ask for"
        yield message, s.place("benchmark", "concurrencies")


def _several(numbers: set[int]) -> str:
    return ", ".join(str(n) for n in sorted(numbers))


_FAMILY = {"nvfp4": "fp4", "mxfp4": "fp4", "mxfp8": "fp8"}
"""Formats by the word that matrices have for them."""


@rule("precision", "warning", "the recipe says another precision than the row")
def precision(s: SrtctlResolved) -> Iterator[Found]:
    has = s.facts.precision if s.facts else None
    if has is not None and _FAMILY.get(has.lower(), has.lower()) != s.benchmark.precision.lower():
        message = f"the recipe says precision {has}, and the matrix says {s.benchmark.precision}"
        yield message, s.place("model", "precision")


CI_MINUTES = {True: 780, False: 480}
"""The workflow's limit of a job (benchmark-multinode-tmpl.yml), which covers the queue too, by "is it agentic"."""

_HEALTH = (180, 10)
"""srtctl's own attempts and seconds between them, where a recipe does not say."""


@rule("time-budget", "warning", "a wait is as long as what contains it")
def time_budget(s: SrtctlResolved) -> Iterator[Found]:
    """The wait for the servers lies inside the job's limit, and the job inside the workflow's, with the queue."""
    own = s.facts.time_limit if s.facts is not None else None
    seconds = limit_seconds(own or s.job.srtslurm.get("default_time_limit"))
    if s.facts is None or seconds is None:
        return
    limit = seconds / 60
    attempts, interval = _health(s)
    waiting, most = attempts * interval / 60, CI_MINUTES[s.benchmark.agentic]
    if waiting >= limit:
        message = (
            f"srtctl waits up to {waiting:g} min for the servers, and the job may run {limit:g} min: Slurm ends the "
            f"job before srtctl gives up on servers that do not come up"
        )
        yield message, s.place("health_check")
    if limit >= most:
        message = (
            f"the job may run {limit:g} min, and the workflow ends after {most} min, the time in Slurm's queue included"
        )
        yield message, s.place("slurm", "time_limit") if s.facts.time_limit else s.rules.lane.place


def _health(s: SrtctlResolved) -> tuple[float, float]:
    """Attempts and seconds between them, after the runner file's edits."""
    said: dict[str, Any] = {}
    edited = s.job.recipe.document or {}
    keys = s.recipe.variant.keys[:1] if s.recipe.variant is not None else ()
    for holder in (edited, edited.get("base"), *(edited.get(str(k)) for k in keys)):
        part = holder.get("health_check") if isinstance(holder, dict) else None
        said.update(part if isinstance(part, dict) else {})
    values = [said.get("max_attempts", _HEALTH[0]), said.get("interval_seconds", _HEALTH[1])]
    attempts, interval = (v if isinstance(v, (int, float)) else d for v, d in zip(values, _HEALTH, strict=True))
    return attempts, interval


RULES: Sequence[Rule[SrtctlResolved]] = (
    recipe_missing,
    recipe_unread,
    recipe_elsewhere,
    selector_none,
    selector_several,
    alias_unregistered,
    alias_by_accident,
    model_from_hub,
    setting_ignored,
    sequence_length,
    max_model_len,
    concurrency,
    concurrency_extra,
    precision,
    time_budget,
)
