"""Plans a job of srtctl from a benchmark, a runner and a recipe. Pure decisions: no socket, no process, no clock."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from msgspec.structs import replace

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import environment_of
from launcher.core.errors import ConfigError
from launcher.core.slurm_notation import limit_seconds
from launcher.image.reference import PlannedImage, is_image_reference
from launcher.plan import derive
from launcher.plan.derive import AppliedRules, Context, passed_variables
from launcher.plan.expected import expected_results, result_stem
from launcher.plan.plan import Allocation, Expected
from launcher.runner.file import RunnerFile, fill_in
from launcher.runner.schema import Edit, LaneRule
from launcher.srtctl.edit import acceptance_edits, apply_edits, with_comment
from launcher.srtctl.facts import RecipeFacts
from launcher.srtctl.locate import OVERLAY, FoundRecipe, RecipeFinder, SetupScript
from launcher.srtctl.planned import (
    PlannedOverlay,
    PlannedRecipe,
    RecipeLookup,
    SrtctlJob,
    SrtctlResolved,
    SrtSlurm,
    Submit,
)
from launcher.srtctl.recipe import Variant, family_member

SA_BENCH = "sa-bench"
"""srtctl's own client for fixed sequence lengths: its name in recipes, and the prefix of its results' directory."""

HasFile = Callable[[str, str | None, str], bool | None]
"""(ref, sha, path) → whether srt-slurm has the file at that version; None when that is unknown."""


class SrtctlPlanner:
    """Plans jobs of srtctl.

    ``finder`` looks recipes and set-up scripts up in the available trees, ``has_file`` knows the files of the others.
    """

    def __init__(self, finder: RecipeFinder, has_file: HasFile) -> None:
        self.finder = finder
        self.has_file = has_file

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> SrtctlResolved:
        """Decide everything that a run will do.

        Raises ConfigError when the runner does not support the benchmark, when the benchmark names no recipe, and when
        the recipe cannot be read or edited.
        """
        rules, recipe = self._rules_and_recipe(benchmark, file)
        lane, adjustments = rules.lane.rule, [adjustment.rule for adjustment in rules.adjustments]
        script: str | None = derive.last_given([lane.setup_script, *(a.setup_script for a in adjustments)], None)
        listed = self._has(lane, f"configs/{script}") if script else None
        setup = self.finder.setup_script(script, _refs(lane), listed) if script else None
        # The recipe runs its own concurrencies unless a person chose others.
        chosen, own = set(benchmark.concurrencies), set((recipe.facts and recipe.facts.concurrencies) or ())
        narrowed = context.narrow and (chosen < own or (bool(own) and not chosen & own))

        rule = rules.model.rule
        model_path = derive.model_path(rule, benchmark, context)
        if model_path is None:
            raise ConfigError("a model of srtctl needs `path`", where=rules.model.where)
        # Register the alias that the recipe uses if it names this checkpoint; without a recipe, the lane's own alias.
        alias = rule.alias if recipe.facts is None else recipe.facts.model_path
        models = {alias: model_path} if alias and alias in (rule.alias, *rule.also) else {}
        images, containers = _images(rules, recipe.facts, context)
        tree = _srt_slurm(rules, context, setup)
        srtslurm = _srtslurm_document(rules, context) | {
            "srtctl_root": tree.root,
            "model_paths": models,
            "containers": containers,
        }
        if mounts := {k: v for a in adjustments for k, v in a.mounts.items()}:
            srtslurm["default_mounts"] = mounts
        expected = expected_results(benchmark, result_stem(benchmark, context.runner_name))
        planned_recipe = _planned_recipe(rules, recipe, context, narrowed)
        exports = {
            "MODEL_PATH": model_path,
            "SRT_SLURM_MODEL_PREFIX": next(iter(models), rule.alias),
            "SRTSLURM_CONFIG": f"{tree.root}/srtslurm.yaml",
            **_exports(rules, context, expected.filename),
        }
        argv = _argv(rules, planned_recipe, setup, derive.job_tags(rules, context))
        submit = Submit(argv, {**environment_of(benchmark), **exports})
        job = SrtctlJob(models, tree, srtslurm, planned_recipe, submit, rules.power, _preflight(rules) == "node")
        limit = lengthened((recipe.facts and recipe.facts.time_limit) or srtslurm.get("default_time_limit"), context)
        plan = derive.assemble_plan(
            rules,
            context,
            images=images,
            model=derive.planned_model(
                rules, model_path, context, pinned=recipe.facts.pinned if recipe.facts is not None else None
            ),
            results=_results(expected, recipe.facts),
            holds=_holds(recipe.facts, limit, file),
            details=job,
        )
        return SrtctlResolved(plan, rules, job, recipe, setup, narrowed)

    def _rules_and_recipe(self, benchmark: Benchmark, file: RunnerFile) -> tuple[AppliedRules, RecipeLookup]:
        """The rules that apply, and the recipe if an available tree has it.

        The workspace's copy is read before the lane is known, because its power telemetry can decide the lane. The lane
        then decides in which srt-slurm tree other copies are looked up.
        """
        config_file = benchmark.config_file
        if not config_file:
            raise ConfigError(
                "no recipe: CONFIG_FILE is not set, and lanes that srtctl does not run are not supported",
                where=benchmark.source,
                hint="additional-settings: [CONFIG_FILE=recipes/…]",
            )
        found, passed_over = self._choose_copy(benchmark, config_file, ())
        power = found is not None and _asks_for_power(found.document)
        rules = AppliedRules.of(benchmark, file, power=power)
        refs = _refs(rules.lane.rule)
        if found is None:
            found, passed_over = self._choose_copy(benchmark, config_file, refs)
        variants, problem = found.variants if found is not None else ([], None)
        at_hand = self.finder.tree_at_hand(refs) is not None or (
            found is None and self._is_known_missing(rules, config_file)
        )
        facts = found.facts if found is not None else None
        return rules, RecipeLookup(found, passed_over, variants, problem, facts, at_hand)

    def _choose_copy(
        self, benchmark: Benchmark, config_file: str, refs: tuple[str, ...]
    ) -> tuple[FoundRecipe | None, FoundRecipe | None]:
        """The copy of a recipe that belongs to the benchmark's row, and an earlier copy that does not.

        Of several copies the row means the first that runs the row's image. If none does, the first is used, and
        `check` reports its problem.
        """
        first = None
        for recipe in self.finder.find_all(config_file, refs):
            variants, _ = recipe.variants
            model = variants[0].document.get("model") if variants else None
            image = model.get("container") if isinstance(model, dict) else None
            if not isinstance(image, str) or not is_image_reference(image) or derive.is_image(image, benchmark.image):
                return recipe, first
            first = first or recipe
        return first, None

    def _is_known_missing(self, rules: AppliedRules, config_file: str) -> bool:
        """Whether a recipe that no available tree has is known to be missing from the lane's srt-slurm too.

        This is known only if the workspace was searched, whose recipes are copied over srt-slurm's.
        """
        lane = rules.lane.rule
        path = config_file.partition(":")[0]
        family = (member := family_member(path)) is not None and self._has(lane, member[0])
        patched = any(patch.path == path for patch in lane.patches)
        return self.finder.overlays is not None and not family and not patched and self._has(lane, path) is False

    def _has(self, lane: LaneRule, path: str) -> bool | None:
        return self.has_file(lane.ref, lane.sha, path)


def lengthened(limit: str | None, context: Context) -> str | None:
    """A time limit in Slurm's notation, multiplied by `Context.longer`."""
    seconds = limit_seconds(limit)
    if context.longer == 1.0 or not seconds:
        return limit
    hours, rest = divmod(round(seconds * context.longer), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _holds(recipe: RecipeFacts | None, limit: str | None, file: RunnerFile) -> Allocation:
    """The resources that srtctl requests from Slurm: whole nodes."""
    nodes = recipe.nodes if recipe is not None else None
    per_node = (recipe.gpus_per_node if recipe is not None else None) or file.runner.node.gpus
    return Allocation(limit, nodes, None if nodes is None else nodes * per_node)


def _results(expected: Expected, recipe: RecipeFacts | None) -> Expected:
    """The expected results, with the values that the recipe decides: client, engine, model names, GPUs.

    For fixed lengths the workflow reads the GPUs from the file's name, where sa-bench writes those that the recipe
    starts; the row's own numbers count data parallelism in several ways. An agentic result has the row's numbers.
    """
    if recipe is None:
        return replace(expected, gpus=expected.gpus if expected.mode == "agentic" else None)
    sides = [recipe.aggregated] if recipe.prefill is None else [recipe.prefill, recipe.decode]
    counts = [(s.workers or 0) * (s.gpus_per_worker or 0) if s is not None else 0 for s in sides]
    total, gpus = sum(counts) if all(counts) else None, expected.gpus
    if expected.mode != "agentic":
        if recipe.prefill is None and recipe.aggregated is not None and recipe.benchmark_type == SA_BENCH:
            # srtctl tells sa-bench all GPUs of the nodes, also those without a worker (sa_bench.py, c88ef731).
            counts = [(recipe.aggregated.nodes or 1) * (recipe.gpus_per_node or 4)]
        gpus = (counts[0], counts[1] if len(counts) > 1 else 0) if all(counts) else None
    served = [side.served_model_name for side in recipe.roles.values()]
    models = tuple(dict.fromkeys([*expected.models, *(name for name in (*served, recipe.model_path) if name)]))
    tool = SA_BENCH if expected.mode == "fixed" and recipe.benchmark_type == SA_BENCH else None
    return replace(expected, gpus=gpus, held=total, models=models, tool=tool, engine=recipe.engine)


def _refs(lane: LaneRule) -> tuple[str, ...]:
    """The names that the lane's srt-slurm tree may have."""
    return tuple(r for r in (lane.sha, lane.ref) if r)


def _asks_for_power(document: Mapping[str, Any]) -> bool:
    sections = [document, document.get("base")]
    tables = [section.get("telemetry") for section in sections if isinstance(section, Mapping)]
    return any(
        isinstance(t, Mapping) and t.get("provider") == "dcgm-power" and t.get("enabled") is True for t in tables
    )


def _images(
    rules: AppliedRules, recipe: RecipeFacts | None, context: Context
) -> tuple[tuple[PlannedImage, ...], dict[str, str]]:
    """The required images, and the squash file of each container name of the recipe."""
    benchmark, runner = rules.benchmark, rules.file.runner
    main = derive.benchmark_image(rules, context)
    if recipe is None:
        return (main,), {benchmark.image: main.squash}
    planned: dict[str, PlannedImage] = {main.squash: main}
    containers: dict[str, str] = {}
    helpers = runner.images.helpers
    where = f"{rules.file.path} (images.helpers)"
    for use in recipe.container_aliases:
        name, role = use.alias, use.paths[0][0]
        if role == "model" and (name in runner.images.aliases or derive.is_image(name, benchmark.image)):
            containers[name] = main.squash
            continue
        helper = helpers.get(name) or next((h for h in helpers.values() if derive.is_image(name, h)), None)
        if helper is not None:
            image = derive.planned_image(helper, role, runner.images, runner.node.arch, context, where)
            planned.setdefault(image.squash, image)
            containers[name] = image.squash
    return tuple(planned.values()), containers


def _srt_slurm(rules: AppliedRules, context: Context, setup: SetupScript | None) -> SrtSlurm:
    """The srt-slurm tree of the run."""
    lane, runner = rules.lane.rule, rules.file.runner
    overlays = [
        PlannedOverlay(str(PurePosixPath(context.workspace, OVERLAY, o.source)), o.destination or f"recipes/{o.source}")
        for o in lane.overlays
    ]
    arch = {"arch": runner.node.arch or ""}
    if setup is not None and setup.directory:
        overlays.append(PlannedOverlay(setup.directory, "configs"))
    return SrtSlurm(
        repository=derive.fill_path(runner.repositories[lane.repository], context),
        ref=lane.ref,
        sha=lane.sha,
        overlays=tuple(overlays),
        patches=tuple(lane.patches),
        setup=tuple(tuple(fill_in(word, arch) for word in argv) for argv in runner.checkout.setup),
        setup_timeout=runner.checkout.setup_timeout,
        root=derive.fill_path(runner.checkout.directory, context) + f"/srt-slurm-{context.run_key}",
        cache=derive.fill_path(runner.checkout.cache, context),
    )


def _srtslurm_document(rules: AppliedRules, context: Context) -> dict[str, Any]:
    """The part of srtslurm.yaml that runner file and row decide; a key that is None is left out."""
    runner = rules.file.runner
    partition, account = derive.partition_and_account(rules, context)
    limits = [rules.lane.rule.time_limit, *(a.rule.time_limit for a in rules.adjustments)]
    document: dict[str, Any] = {
        "default_account": account,
        "default_partition": partition,
        "default_time_limit": derive.last_given(limits, runner.scheduler.time_limit),
        "gpus_per_node": runner.node.gpus,
        **runner.srtslurm,
    }
    for adjustment in rules.adjustments:
        document.update(adjustment.rule.srtslurm)
    return {key: value for key, value in document.items() if value is not None}


def _exports(rules: AppliedRules, context: Context, stem: str) -> dict[str, str]:
    """The job's variables by runner file and row; later adjustments win. ``stem`` is RESULT_FILENAME."""
    runner = rules.file.runner
    exports = {
        runner.workspace.variable: derive.shared_workspace(rules, context) or context.workspace,
        "GITHUB_WORKSPACE": context.workspace,
        "RUNNER_NAME": fill_in(runner.scheduler.job_name, {"runner": context.runner_name}),
        "RESULT_FILENAME": stem,
    }
    if rules.model.rule.served:
        exports["SERVED_MODEL_NAME"] = fill_in(rules.model.rule.served, {"model": rules.benchmark.model})
    passed = passed_variables(context.host, runner.pass_environment)
    for adjustment in rules.adjustments:  # for a variable in `pass-environment`, the host's value wins
        exports.update({name: value for name, value in adjustment.rule.exports.items() if name not in passed})
    return exports


def _preflight(rules: AppliedRules) -> bool | str:
    """Who checks images and model before the submission: srtctl (True), nobody (False), or ``"node"``."""
    value: bool | str = derive.last_given(
        [rules.lane.rule.preflight, *(a.rule.preflight for a in rules.adjustments)], True
    )
    return value


def _argv(rules: AppliedRules, recipe: PlannedRecipe, setup: SetupScript | None, tags: str) -> tuple[str, ...]:
    """The command that submits the job."""
    submitted = f"{recipe.path}:{recipe.selector}" if recipe.selector else recipe.path
    argv = ["srtctl", "apply", "-f", submitted, "--tags", tags]
    if setup is not None:
        argv += ["--setup-script", setup.name]
    if _preflight(rules) is not True:
        argv.append("--no-preflight")
    return tuple(argv)


def _planned_recipe(rules: AppliedRules, recipe: RecipeLookup, context: Context, narrowed: bool) -> PlannedRecipe:
    """The recipe as it will be submitted; a narrowed one is a single variant, and so has no selector."""
    path, _, selector = (rules.benchmark.config_file or "").partition(":")
    selected = None if narrowed else selector or None
    found, variant = recipe.found, recipe.variant
    if found is None:
        return PlannedRecipe(path, selected, document=None, origin="not at hand")
    return PlannedRecipe(
        path=path,
        selector=selected,
        document=_edited(found.document, rules, recipe, context, variant if narrowed else None),
        origin=found.origin,
        file=found.file.path,
        section=next(iter(found.section), variant.selector if variant is not None else None),
    )


def _edited(
    document: Mapping[str, Any], rules: AppliedRules, recipe: RecipeLookup, context: Context, narrowed: Variant | None
) -> dict[str, Any]:
    """A recipe with the runner's edits, excluded nodes, chosen concurrencies and the run's token.

    ``narrowed`` is the variant to run alone, with the concurrencies of the benchmark, or None.
    """
    benchmark = rules.benchmark
    edits = [edit for adjustment in rules.adjustments for edit in adjustment.rule.edits]
    edits += acceptance_edits(benchmark, document)
    if context.longer != 1.0:
        limits = [rules.lane.rule.time_limit, *(a.rule.time_limit for a in rules.adjustments)]
        limit = (recipe.facts and recipe.facts.time_limit) or derive.last_given(
            limits, rules.file.runner.scheduler.time_limit
        )
        edits.append(Edit(("slurm", "time_limit"), lengthened(limit, context)))
    if narrowed is not None:
        document = narrowed.document
        edits.append(Edit(("benchmark", "concurrencies"), "x".join(str(c) for c in benchmark.concurrencies)))
    excluded = str((recipe.facts.sbatch_directives.get("exclude") if recipe.facts is not None else None) or "")
    nodes = derive.excluded_nodes(rules, context)
    nodes = [n for n in nodes if not any(fnmatch.fnmatchcase(n, pattern) for pattern in excluded.split(","))]
    if nodes:
        edits.append(Edit(("sbatch_directives", "exclude"), ",".join([*filter(None, [excluded]), *nodes])))
    return with_comment(apply_edits(document, edits), context.run_key)
