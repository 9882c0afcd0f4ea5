"""The rules of one plan, applied when it is made (those for `launcher check` alone are in `report`): here those beside
its recipe, about its workers, its lane, its srt-slurm version, the names of its results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial

from launcher.benchmark.benchmark import Benchmark, Role, agentic_result_name, fixed_result_name
from launcher.benchmark.environment import unknown_settings
from launcher.benchmark.fields import WHERE
from launcher.check import recipe_rules
from launcher.check.inputs import Found, Rule, Subject, rule
from launcher.check.schema_validation import Schema
from launcher.check.srtctl_schema import Schemas, is_tag, known_at
from launcher.core.finding import Finding
from launcher.core.lines import count_of
from launcher.core.publish import NAME_MAX
from launcher.core.yaml_source import SourceLocation
from launcher.plan.derive import Resolved, is_image, known
from launcher.runner.schema import LaneRule
from launcher.srtctl.facts import RecipeFacts, RoleFacts
from launcher.srtctl.planned import SrtctlResolved

RULES: list[Rule] = []
plan_rule, recipe_rule = partial(rule, RULES, "plan"), partial(rule, RULES, "recipe")
version_rule, any_rule = partial(rule, RULES, "version"), partial(rule, RULES, "any plan")


def _pairs(s: SrtctlResolved, f: RecipeFacts) -> Iterator[tuple[str, Role, RoleFacts]]:
    """The sides that both the row and the recipe have."""
    b = s.rules.benchmark
    apart = b.decode is not None and b.decode.workers > 0
    if f.aggregated is not None and b.prefill is not None and not apart:
        yield "agg", b.prefill, f.aggregated
        return
    for name, asked, side in (("prefill", b.prefill, f.prefill), ("decode", b.decode, f.decode)):
        if asked is not None and asked.workers and side is not None:
            yield name, asked, side


def _same_replicas(name: str, asked: Role, side: RoleFacts) -> bool:
    """Whether one aggregated worker of dp replicas is what the matrix counts as that many workers."""
    replicas = (side.dp or 1) * (side.workers or 1)
    return name == "agg" and asked.workers > 1 and asked.workers == replicas and asked.tp == side.tp


@recipe_rule("disaggregation", "warning", "the row and the recipe differ in whether prefill and decode are apart")
def disaggregation(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    apart = f.prefill is not None
    if apart == (f.aggregated is None) and apart != s.rules.benchmark.disagg:
        said = ("disaggregated", "aggregated") if apart else ("aggregated", "disaggregated")
        message = f"the recipe is {said[0]}, and the matrix publishes its numbers as {said[1]}"
        yield message, s.place("resources")


@recipe_rule("workers", "error", "the recipe starts another number of workers than the row says")
def workers(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    for name, asked, side in _pairs(s, f):
        if side.workers is None or side.workers == asked.workers:
            continue
        place = s.place("resources", f"{name}_workers")
        if _same_replicas(name, asked, side):
            one = f"{side.workers} {name} worker of {side.dp} data-parallel replicas"
            publishes = count_of(asked.workers, "worker")
            yield f"the recipe starts {one}, and the matrix publishes {publishes}", place, "warning"
        else:
            starts = count_of(side.workers, f"{name} worker")
            yield f"the recipe starts {starts}, and the matrix says {asked.workers}", place


@recipe_rule("parallelism", "error", "the recipe's parallelism is not the row's")
def parallelism(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    for name, asked, side in _pairs(s, f):
        has = side.as_role()
        if has is None or _same_replicas(name, asked, side):
            continue
        tp = has.tp
        if asked.dp_attention and has.dp_attention and asked.tp == 1 and asked.ep == has.tp:
            tp = 1  # DEP8 stands in the matrices as tp 8 and as tp 1, ep 8 alike
        pairs = (
            ("TP", tp, asked.tp),
            ("PP", has.pp, asked.pp),
            ("EP", has.ep, asked.ep),
            ("DP attention", has.dp_attention, asked.dp_attention),
        )
        if different := [f"{what} {its} against {wanted}" for what, its, wanted in pairs if its != wanted]:
            message = f"{name} parallelism of the recipe is not the matrix's: {', '.join(different)}"
            yield message, s.place("backend")


@recipe_rule("gpus-counted", "error", "an agentic row counts other GPUs than its recipe's workers have")
def gpus_counted(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    # Of fixed lengths the divisor is in the result's name, where sa-bench counts what the recipe starts.
    counted, held = s.plan.results.gpus, s.plan.results.held
    if s.plan.results.mode == "agentic" and counted is not None and held not in (None, sum(counted)):
        counts = f"the row counts {sum(counted)} GPUs, by which tokens/s/GPU is divided"
        yield f"{counts}, and the recipe's workers have {held}", s.place("resources")


@recipe_rule("gpus-per-node", "error", "the recipe counts other GPUs per node than the cluster has")
def gpus_per_node(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    has = s.rules.file.runner.node.gpus
    if f.gpus_per_node is None or f.gpus_per_node == has:
        return
    # Fewer are no mistake where each worker fits into them: a recipe may want just a part of each node.
    widest = max((side.gpus_per_worker or 0 for side in f.roles.values()), default=0)
    if f.gpus_per_node > has or widest > f.gpus_per_node:
        message = (
            f"the recipe counts {count_of(f.gpus_per_node, 'GPU')} a node, and {s.rules.file.runner.name} has {has}"
        )
        yield message, s.place("resources", "gpus_per_node")


@recipe_rule("nodes", "error", "the recipe needs more nodes than the partition has")
def nodes(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    count = s.rules.file.runner.node.count
    if f.nodes is not None and count is not None and f.nodes > count:
        yield f"the recipe needs {f.nodes} nodes, and the partition has {count}", s.place("resources")


@recipe_rule("capacity", "error", "the recipe's nodes cannot hold its workers")
def capacity(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Found]:
    gpus = s.rules.file.runner.node.gpus
    for name, side in f.roles.items():
        needed = (side.workers or 0) * (side.gpus_per_worker or 0)
        if side.nodes and side.nodes * gpus < needed:
            held = f"{count_of(side.workers or 0, f'{name} worker')} of {side.gpus_per_worker}"
            yield f"{count_of(side.nodes, 'node')} of {count_of(gpus, 'GPU')} cannot hold {held}", s.place("resources")


@plan_rule("moving-ref", "warning", "the lane names a branch where a commit belongs")
def moving_ref(s: SrtctlResolved) -> Iterator[Found]:
    yield from moving(s.rules.lane.rule, s.rules.lane.location)


def moving(lane: LaneRule, place: SourceLocation) -> Iterator[Found]:
    """What is to be said of a lane that pins no commit."""
    if lane.sha is None:
        kind = "a tag, which its owner can move" if is_tag(lane.ref) else "a branch"
        yield f"the lane follows {lane.ref} of {lane.repository}, {kind}: two runs may run two versions", place


@plan_rule("setup-script", "error", "the lane's set-up script is not there")
def setup_script(s: SrtctlResolved) -> Iterator[Found]:
    if s.setup is None or s.setup.found:
        return
    message = f"set-up script {s.setup.name} is not in this repository"
    if s.setup.found is False:
        yield f"{message}, nor in {s.refs}", s.rules.lane.location
    else:
        yield f"{message}; whether srt-slurm has it shows after the checkout", s.rules.lane.location, "warning"


@plan_rule("name-too-long", "error", "a result file's name is longer than a name may be")
def name_too_long(s: SrtctlResolved) -> Iterator[Found]:
    # A benchmark that came with its result's name is a workflow's, which aggregates each result under a longer name.
    before = "agg_" if s.rules.benchmark.result_filename and not s.rules.benchmark.agentic else ""
    longest = before + longest_result_name(s.rules.benchmark, s.plan.results.filename)
    if bytes_of(longest) > NAME_MAX:
        yield f"{longest} has {bytes_of(longest)} bytes, and a name may have {NAME_MAX}", s.rules.benchmark.source


def longest_result_name(b: Benchmark, stem: str) -> str:
    """Of a benchmark's result files, which all begin with ``stem``, the name that has the most digits."""
    concurrency = max(b.concurrencies, default=0)
    if not b.multinode:  # one concurrency, which the stem has
        return f"{stem}.json"
    if b.agentic:
        return agentic_result_name(stem, concurrency)
    prefill, decode = (r.workers * r.gpus_per_worker if r else 0 for r in (b.prefill, b.decode))
    directory, split = f"sa-bench_isl_{b.isl}_osl_{b.osl}", (prefill, decode) if b.disagg else None
    return fixed_result_name(stem, directory, concurrency, prefill + decode, split)


def bytes_of(name: str) -> int:
    """The length of a file's name as the file system counts it."""
    return len(name.encode())


def _refused(rule: str, s: SrtctlResolved, schema: Schema) -> Iterator[Found]:
    """What the lane's srt-slurm refuses in the recipe by this rule."""
    recipe, variant = s.recipe.found, s.recipe.variant
    if variant is None or recipe is None:
        return
    for violation in schema.violations(variant.document, (recipe.file.path, *recipe.section, variant.selector or "")):
        if violation.rule == rule:
            there = known_at(violation)
            message = f"{s.refs} refuses the recipe: {violation.message}" + (f"; known at {there}" if there else "")
            yield message, s.place(*violation.keys)


for _id, _title in (
    ("unknown-field", "the recipe has a key that its srt-slurm does not know"),
    ("wrong-type", "a value of the recipe is of the wrong kind"),
    ("missing-field", "the recipe lacks a key that its srt-slurm requires"),
    ("value-refused", "its srt-slurm does not accept a value of the recipe"),
):
    version_rule(_id, "error", _title)(partial(_refused, _id))


@version_rule("option-unknown", "error", "the lane's srt-slurm has no such option")
def option_unknown(s: SrtctlResolved, schema: Schema) -> Iterator[Found]:
    asked = {"--tags": True, "--setup-script": s.setup is not None, "--no-preflight": not s.preflight}
    for option, is_asked in asked.items():
        if is_asked and schema.options and option not in schema.options:
            message = f"`srtctl apply` of {s.refs} has no {option}, and ends with exit code 2"
            yield message, s.rules.lane.location


@version_rule("preflight-blind", "error", "srtctl looks for the model where it cannot be seen")
def preflight_blind(s: SrtctlResolved, schema: Schema) -> Iterator[Found]:
    # Versions with the option look before they submit; of those without, none does for a plain recipe (517d3c37).
    if s.preflight and "--no-preflight" in schema.options and s.job.models:
        path = s.plan.model.path
        storage = s.rules.file.storage_of(path) if path is not None else None
        if storage is not None and "login" not in storage.seen_by:
            message = f"{s.refs} looks for {path} before it submits, and only compute nodes see {storage.path}"
            yield message, s.rules.lane.location


@any_rule("known-problem", "warning", "the runner file says what is wrong with a rule that applies")
def known_problem(r: Resolved) -> Iterator[Found]:
    for finding in known(r.rules.all):
        yield finding.message, finding.place, finding.severity


@any_rule("image-replaced", "error", "another image is run than the row's")
def image_replaced(r: Resolved) -> Iterator[Found]:
    own, published = r.rules.image, r.rules.benchmark.image
    if own is not None and own.rule.image and not is_image(own.rule.image, published):
        yield f"{own.rule.image} is run, and the numbers are published as {published}'s", own.location


@any_rule("model-otherwise", "warning", "the checkpoint is not seen from here, and would be downloaded")
def model_otherwise(r: Resolved) -> Iterator[Found]:
    path, model = r.plan.model.path, r.rules.model
    if path is not None and path.startswith("hf:") and path == model.rule.otherwise:
        yield f"no directory of {model.rule.path} is seen from here: every node would download {path}", model.location


_MAKES = {"arm64": "aarch64", "aarch64": "aarch64", "amd64": "x86_64", "x86_64": "x86_64", "x86-64": "x86_64"}
_MAKE = re.compile(r"(?<![a-z0-9])(arm64|aarch64|amd64|x86[_-]64)(?![a-z0-9])")


@any_rule("image-architecture", "error", "the image's tag names another make of processor than the nodes have")
def image_architecture(r: Resolved) -> Iterator[Found]:
    benchmark, runner = r.rules.benchmark, r.rules.file.runner
    images: list[tuple[str, SourceLocation | str]] = [(benchmark.image, benchmark.source)]
    container = r.recipe.facts.container if isinstance(r, SrtctlResolved) and r.recipe.facts is not None else None
    if isinstance(r, SrtctlResolved) and container and container != benchmark.image:
        images.append((container, r.place("model", "container")))
    for image, place in images:
        makes = {_MAKES[found] for found in _MAKE.findall(image.lower())}
        if runner.node.arch is not None and makes and runner.node.arch not in makes:
            message = f"{image} is built for {', '.join(sorted(makes))}, and {runner.name} has {runner.node.arch} nodes"
            yield message, place


PLAN: tuple[Rule, ...] = (*recipe_rules.RULES, *RULES)
"""The rules of one plan but for those about a job in a container: no other plan waits for them to be imported."""

ENVIRONMENT = (Rule("setting-unknown", "warning", "a variable looks like a setting of the row, and is none"),)
"""Rules about the environment of a GitHub job alone: `launcher.project` looks when it plans from one."""


def check_plan(resolved: Resolved, schemas: Schemas) -> tuple[Finding, ...]:
    """All findings of one plan, in the order of the rules."""
    rules = PLAN
    subjects: dict[Subject, tuple[object, ...]] = {"any plan": (resolved,)}
    if isinstance(resolved, SrtctlResolved):
        subjects["plan"] = (resolved,)
        if resolved.recipe.facts is not None:
            subjects["recipe"] = (resolved, resolved.recipe.facts)
        lane = resolved.rules.lane.rule
        if (schema := schemas.get(lane.ref, lane.sha)) is not None:
            subjects["version"] = (resolved, schema)
    else:
        from launcher.check import container_rules
        from launcher.container.planned import ContainerResolved

        rules = (*PLAN, *container_rules.RULES)
        if isinstance(resolved, ContainerResolved):
            subjects["container"] = (resolved,)
    return tuple(
        each.finding(one) for each in rules if each.subject in subjects for one in each.look(*subjects[each.subject])
    )


def unknown_settings_of(environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """A finding for each variable of a job that looks like an additional setting of its row, and is passed over."""
    (one,) = ENVIRONMENT
    found = []
    for name, near in unknown_settings(environ):
        hint = f": did you mean {near}?" if near is not None else ""
        found.append(Finding(one.id, one.severity, f"{name} is no known setting, and is passed over{hint}", WHERE))
    return tuple(found)
