"""From a benchmark, a runner and a recipe to a plan: pure decisions. No socket, no process, no clock."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import environment_of, result_filename
from launcher.check import Subject, check, names_an_image
from launcher.core.errors import ConfigError
from launcher.plan import derive
from launcher.plan.derive import Context
from launcher.plan.plan import (
    SRTCTL,
    Expected,
    Plan,
    SchedulerPlan,
    WorkspacePlan,
)
from launcher.runner.file import RunnerFile
from launcher.runner.schema import LaneRule
from launcher.srtctl.acceptance import acceptance_edits
from launcher.srtctl.locate import FoundRecipe, RecipeFinder, variants_or_none
from launcher.srtctl.planned import PlannedPatch, PlannedRecipe, SrtctlJob, SrtSlurm, Submit
from launcher.srtctl.recipe import (
    Edit,
    RecipeFacts,
    Variant,
    apply_edits,
    facts,
    family_member,
    with_comment,
)

__all__ = ["Context", "plan_benchmark", "resolve", "run_key"]


def plan_benchmark(benchmark: Benchmark, file: RunnerFile, finder: RecipeFinder, context: Context) -> Plan:
    """Find the recipe of a benchmark as far as it is at hand, and resolve.

    The workspace's copy is looked at before the lane is known, since what it asks for (power telemetry) can decide the
    lane. Raises ConfigError when the runner supports no such benchmark, or when it names no recipe.
    """
    config_file = benchmark.config_file
    if not config_file:
        raise ConfigError(
            "no recipe: CONFIG_FILE is not set, and lanes that srtctl does not run are not supported",
            where=benchmark.source,
            hint="additional-settings: [CONFIG_FILE=recipes/…]",
        )
    recipe, passed_over = _choose(finder, benchmark, config_file, ())
    power = recipe is not None and _asks_for_power(recipe.document)
    lane = file.lane(benchmark, power=power)
    refs = tuple(r for r in (lane.rule.sha, lane.rule.ref) if r)
    if recipe is None:
        recipe, passed_over = _choose(finder, benchmark, config_file, refs)
    script = derive.setup_script(file, lane, benchmark, power)
    return resolve(
        benchmark,
        file,
        recipe,
        context,
        power=power,
        passed_over=passed_over,
        tree_at_hand=finder.tree_at_hand(refs) is not None
        or (recipe is None and _lacks(lane.rule, config_file, finder, context)),
        setup_directory=str(found) if script and (found := finder.setup_script(script)) else None,
        setup_in_tree=script is not None and _setup_in_tree(lane.rule, script, refs, finder, context),
    )


def _setup_in_tree(
    lane: LaneRule, script: str, refs: tuple[str, ...], finder: RecipeFinder, context: Context
) -> bool | None:
    """Whether the lane's srt-slurm has a set-up script; None when that, or what the workspace adds, is not known."""
    if finder.tree_at_hand(refs) is not None:
        return finder.setup_in_tree(script, refs)
    has = _has(lane, f"configs/{script}", context)
    return None if has is False and not finder.has_setup_scripts else has


def _has(lane: LaneRule, path: str, context: Context) -> bool | None:
    return context.verdicts.schemas.has_file(lane.ref, lane.sha, path)


def _lacks(lane: LaneRule, config_file: str, finder: RecipeFinder, context: Context) -> bool:
    """Whether a recipe that is in no tree at hand is known to be in the lane's srt-slurm neither.

    Only where the workspace was searched, which lays recipes over it; a member of a family may be there as well.
    """
    path = config_file.partition(":")[0]
    family = (member := family_member(path)) is not None and _has(lane, member[0], context)
    patched = any(patch.path == path for patch in lane.patches)
    return finder.overlays is not None and not family and not patched and _has(lane, path, context) is False


def _choose(
    finder: RecipeFinder, benchmark: Benchmark, config_file: str, refs: tuple[str, ...]
) -> tuple[FoundRecipe | None, FoundRecipe | None]:
    """The copy of a recipe that belongs to the benchmark's row, and the one before it that does not.

    A row and a recipe are one pair: of several copies the first that runs the row's image is meant. When none does the
    first is taken, and `check` says what is wrong with it.
    """
    first = None
    for recipe in finder.all(config_file, refs):
        found, _ = variants_or_none(recipe.document, recipe.selector)
        model = found[0].document.get("model") if found else None
        runs = model.get("container") if isinstance(model, dict) else None
        if not isinstance(runs, str) or not names_an_image(runs) or derive.is_image(runs, benchmark.image):
            return recipe, first
        first = first or recipe
    return first, None


def resolve(
    benchmark: Benchmark,
    file: RunnerFile,
    recipe: FoundRecipe | None,
    context: Context,
    *,
    power: bool = False,
    passed_over: FoundRecipe | None = None,
    tree_at_hand: bool = False,
    setup_directory: str | None = None,
    setup_in_tree: bool | None = False,
) -> Plan:
    """Decide everything that a run will do.

    ``tree_at_hand`` tells whether it is known what the lane's own srt-slurm tree holds; ``setup_directory`` is this
    repository's directory that holds the lane's container set-up script, when it has it; ``setup_in_tree`` says whether
    srt-slurm itself has it, and None that this cannot be told.
    """
    runner = file.runner
    model_rule = file.model(benchmark, power=power)
    lane = file.lane(benchmark, power=power)
    adjustments = file.adjustments(benchmark, power=power)
    config_file = benchmark.config_file or ""
    path, _, selector = config_file.partition(":")
    found_variants, selector_problem = (
        variants_or_none(recipe.document, recipe.selector) if recipe is not None else ([], None)
    )
    variant = found_variants[0] if found_variants else None
    seen = facts(variant.document) if variant is not None else None

    model_path = derive.model_path(model_rule.rule, benchmark, context)
    aliases = derive.model_aliases(model_rule.rule, seen)
    own_image = file.image(benchmark, power=power)
    images, containers = derive.images(benchmark, file, seen, context, own_image.rule if own_image else None)
    job_name = runner.scheduler.job_name.format(runner=context.runner_name)
    shared = derive.shared_workspace(file, benchmark, context)
    root = derive.fill(runner.checkout.directory, context) + f"/srt-slurm-{context.run_key}"
    partition, account = derive.partition_and_account(file, benchmark, context)
    filename = benchmark.result_filename or result_filename(benchmark, context.runner_name)
    setup_script = derive.setup_script(file, lane, benchmark, power)

    narrowed = variant is not None and _narrows(benchmark, context, seen)
    document = _edited(recipe, variant, benchmark, file, context, power, seen) if recipe is not None else None
    srtslurm: dict[str, Any] = {
        "default_account": account,
        "default_partition": partition,
        "default_time_limit": derive.last(
            [lane.rule.time_limit, *(a.rule.time_limit for a in adjustments)], runner.scheduler.time_limit
        ),
        "gpus_per_node": runner.node.gpus,
        **runner.srtslurm,
    }
    for adjustment in adjustments:
        srtslurm.update(adjustment.rule.srtslurm)
    srtslurm = {key: value for key, value in srtslurm.items() if value is not None}
    srtslurm["srtctl_root"] = root
    srtslurm["model_paths"] = dict.fromkeys(aliases, model_path)
    srtslurm["containers"] = containers
    mounts = {k: v for a in adjustments for k, v in a.rule.mounts.items()}
    if mounts:
        srtslurm["default_mounts"] = mounts

    exports = {
        "MODEL_PATH": model_path,
        "SRT_SLURM_MODEL_PREFIX": next(iter(aliases), model_rule.rule.alias),
        runner.workspace.variable: shared or context.workspace,
        "GITHUB_WORKSPACE": context.workspace,
        "RUNNER_NAME": job_name,
        "RESULT_FILENAME": filename,
        "SRTSLURM_CONFIG": f"{root}/srtslurm.yaml",
    }
    if model_rule.rule.served:
        exports["SERVED_MODEL_NAME"] = model_rule.rule.served.format(model=benchmark.model)
    for adjustment in adjustments:
        exports.update(adjustment.rule.exports)

    submitted = path if narrowed or not selector else f"{path}:{selector}"
    argv = ["srtctl", "apply", "-f", submitted, "--tags", derive.tags(file, adjustments, benchmark, context)]
    if setup_script:
        argv += ["--setup-script", setup_script]
    if not derive.last([lane.rule.preflight, *(a.rule.preflight for a in adjustments)], True):
        argv.append("--no-preflight")

    findings = check(
        Subject(
            benchmark=benchmark,
            file=file,
            model=model_rule,
            lane=lane,
            recipe=recipe,
            variant=variant,
            variants=len(found_variants),
            selector_problem=selector_problem,
            facts=seen,
            tree_at_hand=tree_at_hand,
            aliases=aliases,
            containers=containers,
            filename=filename,
            setup_script=setup_script,
            setup_found=True if setup_directory is not None else setup_in_tree,
            narrowed=narrowed,
            passed_over=passed_over,
            model_path=model_path,
            time_limit=srtslurm.get("default_time_limit"),
            preflight="--no-preflight" not in argv,
            edited=document,
            verdicts=context.verdicts,
        )
    )
    findings += derive.known([model_rule, lane, *([own_image] if own_image else []), *adjustments])
    findings += derive.replaced(benchmark, model_rule, model_path, own_image)
    job = SrtctlJob(
        models=dict.fromkeys(aliases, model_path),
        srt_slurm=SrtSlurm(
            repository=derive.fill(runner.repositories[lane.rule.repository], context),
            ref=lane.rule.ref,
            sha=lane.rule.sha,
            overlays=derive.overlays(lane, context, setup_directory),
            patches=tuple(PlannedPatch(p.commit, p.path) for p in lane.rule.patches),
            setup=tuple(tuple(w.format(arch=runner.node.arch or "") for w in argv) for argv in runner.checkout.setup),
            setup_timeout=runner.checkout.setup_timeout,
            root=root,
            cache=derive.fill(runner.checkout.cache, context),
        ),
        srtslurm=srtslurm,
        recipe=PlannedRecipe(
            path=path,
            selector=None if narrowed else selector or None,
            document=document,
            origin=recipe.origin if recipe is not None else "not at hand",
            file=recipe.file.path if recipe is not None else None,
            section=next(iter(recipe.section), variant and variant.selector) if recipe is not None else None,
        ),
        submit=Submit(tuple(argv), {**environment_of(benchmark), **exports}),
        power=power,
    )
    return Plan(
        kind=SRTCTL,
        runner=runner.name,
        runner_name=context.runner_name,
        job_name=job_name,
        run_key=context.run_key,
        sku=runner.sku,
        tools=runner.tools,
        benchmark=benchmark,
        scheduler=SchedulerPlan(
            runner.scheduler.kind,
            partition,
            account,
            runner.scheduler.backend,
            str(own) if (own := seen and seen.time_limit) else srtslurm.get("default_time_limit"),
        ),
        workspace=WorkspacePlan(context.workspace, shared),
        images=images,
        model=derive.planned_model(file, model_path, benchmark, model_rule.rule, context),
        results=Expected(
            concurrencies=benchmark.concurrencies,
            filename=filename,
            mode="eval" if benchmark.eval_only else "agentic" if benchmark.agentic else "fixed",
            run_eval=benchmark.run_eval,
            isl=benchmark.isl,
            osl=benchmark.osl,
        ),
        rules={"model": model_rule.where, "lane": lane.where},
        findings=tuple(findings),
        narrow=context.narrow,
        details=job.as_details(),
    )


def run_key(benchmark: Benchmark, runner_name: str, run: str, attempt: str) -> str:
    """The identity of a run: ``<run>-<attempt>-<12 hex digits>`` of what is measured and where.

    Two rows of one workflow run on one runner differ by their result names, hence by the digits.
    """
    name = benchmark.result_filename or result_filename(benchmark, runner_name)
    digest = hashlib.sha1(f"{runner_name}\0{name}\0{benchmark.eval_only}".encode(), usedforsecurity=False)
    return f"{run}-{attempt}-{digest.hexdigest()[:12]}"


def _asks_for_power(document: Mapping[str, Any]) -> bool:
    holders = [document, document.get("base")]
    telemetry = [h.get("telemetry") for h in holders if isinstance(h, Mapping)]
    return any(
        isinstance(t, Mapping) and t.get("provider") == "dcgm-power" and t.get("enabled") is True for t in telemetry
    )


def _narrows(benchmark: Benchmark, context: Context, seen: RecipeFacts | None) -> bool:
    asked = set(benchmark.concurrencies)
    return context.narrow and seen is not None and bool(seen.concurrencies) and asked < set(seen.concurrencies or ())


def _edited(
    recipe: FoundRecipe,
    variant: Variant | None,
    benchmark: Benchmark,
    file: RunnerFile,
    context: Context,
    power: bool,
    seen: RecipeFacts | None,
) -> dict[str, Any]:
    """The recipe as it will be submitted: the runner's edits, excluded nodes, chosen concurrencies, our token."""
    document = recipe.document
    edits = [
        Edit(**msgspec.structs.asdict(e))
        for adjustment in file.adjustments(benchmark, power=power)
        for e in adjustment.rule.edits
    ]
    edits += acceptance_edits(benchmark, document)
    if _narrows(benchmark, context, seen) and variant is not None:
        document = variant.document
        edits.append(Edit(("benchmark", "concurrencies"), "x".join(str(c) for c in benchmark.concurrencies)))
    nodes = _excluded_nodes(file, benchmark, context, power)
    already = (seen.sbatch_directives.get("exclude") if seen is not None else None) or ""
    nodes = [n for n in nodes if not any(fnmatch.fnmatchcase(n, a) for a in str(already).split(","))]
    if nodes:
        edits.append(Edit(("sbatch_directives", "exclude"), ",".join([*filter(None, [str(already)]), *nodes])))
    return with_comment(apply_edits(document, edits), context.run_key)


def _excluded_nodes(file: RunnerFile, benchmark: Benchmark, context: Context, power: bool) -> list[str]:
    nodes: list[str] = []
    for rule in file.excluded(benchmark, power=power):
        if rule.rule.variable is not None and rule.rule.variable in context.host:
            nodes += [n for n in context.host[rule.rule.variable].split(",") if n]
        else:
            nodes.append(rule.rule.node)
    return nodes
