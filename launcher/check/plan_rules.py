"""Rules that are applied whenever a plan is made: about its workers, lane, srt-slurm version and result names.

Rules about the plan's recipe are in `recipe_rules`; rules for `launcher check` alone are in `whole_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial

from launcher.benchmark.benchmark import Benchmark, Role, agentic_result_name, fixed_result_name
from launcher.benchmark.environment import unknown_settings
from launcher.benchmark.fields import ENVIRONMENT
from launcher.check import recipe_rules
from launcher.check.inputs import Problem, Rule, Subject, rule
from launcher.check.schema_validation import Schema
from launcher.check.srtctl_schema import Schemas, is_tag, versions_with_key
from launcher.core.finding import Finding
from launcher.core.lines import count_of
from launcher.core.publish import NAME_MAX
from launcher.core.yaml_source import SourceLocation
from launcher.plan.derive import Resolved, is_image, known_problems
from launcher.runner.schema import LaneRule
from launcher.srtctl.facts import RecipeFacts, RoleFacts
from launcher.srtctl.planned import SrtctlResolved

RULES: list[Rule] = []
plan_rule, recipe_rule = partial(rule, RULES, "plan"), partial(rule, RULES, "recipe")
version_rule, any_rule = partial(rule, RULES, "version"), partial(rule, RULES, "any plan")


def _compared_roles(s: SrtctlResolved, f: RecipeFacts) -> Iterator[tuple[str, Role, RoleFacts]]:
    """Name, the row's role and the recipe's facts, for the roles that both have."""
    b = s.rules.benchmark
    disaggregated = b.decode is not None and b.decode.workers > 0
    if f.aggregated is not None and b.prefill is not None and not disaggregated:
        yield "agg", b.prefill, f.aggregated
        return
    for name, role, facts in (("prefill", b.prefill, f.prefill), ("decode", b.decode, f.decode)):
        if role is not None and role.workers and facts is not None:
            yield name, role, facts


def _same_replicas(name: str, role: Role, facts: RoleFacts) -> bool:
    """Whether the matrix counts the data-parallel replicas of an aggregated worker as workers."""
    replicas = (facts.dp or 1) * (facts.workers or 1)
    return name == "agg" and role.workers > 1 and role.workers == replicas and role.tp == facts.tp


@recipe_rule("disaggregation", "warning", "the row and the recipe differ in whether prefill and decode are apart")
def disaggregation(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    disaggregated = f.prefill is not None
    if disaggregated == (f.aggregated is None) and disaggregated != s.rules.benchmark.disagg:
        words = ("disaggregated", "aggregated") if disaggregated else ("aggregated", "disaggregated")
        message = f"the recipe is {words[0]}, and the matrix publishes its numbers as {words[1]}"
        yield message, s.place("resources")


@recipe_rule("workers", "error", "the recipe starts another number of workers than the row says")
def workers(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    for name, role, facts in _compared_roles(s, f):
        if facts.workers is None or facts.workers == role.workers:
            continue
        place = s.place("resources", f"{name}_workers")
        if _same_replicas(name, role, facts):
            started = f"{facts.workers} {name} worker of {facts.dp} data-parallel replicas"
            published = count_of(role.workers, "worker")
            yield f"the recipe starts {started}, and the matrix publishes {published}", place, "warning"
        else:
            started = count_of(facts.workers, f"{name} worker")
            yield f"the recipe starts {started}, and the matrix says {role.workers}", place


@recipe_rule("parallelism", "error", "the recipe's parallelism is not the row's")
def parallelism(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    for name, role, facts in _compared_roles(s, f):
        actual = facts.as_role()
        if actual is None or _same_replicas(name, role, facts):
            continue
        tp = actual.tp
        if role.dp_attention and actual.dp_attention and role.tp == 1 and role.ep == actual.tp:
            tp = 1  # matrices write DEP8 as tp 8, or as tp 1 with ep 8
        sizes = (
            ("TP", tp, role.tp),
            ("PP", actual.pp, role.pp),
            ("EP", actual.ep, role.ep),
            ("DP attention", actual.dp_attention, role.dp_attention),
        )
        if different := [f"{label} {ours} against {rows}" for label, ours, rows in sizes if ours != rows]:
            message = f"{name} parallelism of the recipe is not the matrix's: {', '.join(different)}"
            yield message, s.place("backend")


@recipe_rule("gpus-counted", "error", "an agentic row counts other GPUs than its recipe's workers have")
def gpus_counted(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    # For fixed lengths the divisor is in the result's name, where sa-bench counts the GPUs that the recipe starts.
    counted, actual = s.plan.results.gpus, s.plan.results.held
    if s.plan.results.mode == "agentic" and counted is not None and actual not in (None, sum(counted)):
        counts = f"the row counts {sum(counted)} GPUs, by which tokens/s/GPU is divided"
        yield f"{counts}, and the recipe's workers have {actual}", s.place("resources")


@recipe_rule("gpus-per-node", "error", "the recipe counts other GPUs per node than the cluster has")
def gpus_per_node(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    available = s.rules.file.runner.node.gpus
    if f.gpus_per_node is None or f.gpus_per_node == available:
        return
    # A recipe may use a part of each node: fewer GPUs are right when each worker fits into them.
    largest_worker = max((role.gpus_per_worker or 0 for role in f.roles.values()), default=0)
    if f.gpus_per_node > available or largest_worker > f.gpus_per_node:
        counts = f"the recipe counts {count_of(f.gpus_per_node, 'GPU')} a node"
        yield f"{counts}, and {s.rules.file.runner.name} has {available}", s.place("resources", "gpus_per_node")


@recipe_rule("nodes", "error", "the recipe needs more nodes than the partition has")
def nodes(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    count = s.rules.file.runner.node.count
    if f.nodes is not None and count is not None and f.nodes > count:
        yield f"the recipe needs {f.nodes} nodes, and the partition has {count}", s.place("resources")


@recipe_rule("capacity", "error", "the recipe's nodes cannot hold its workers")
def capacity(s: SrtctlResolved, f: RecipeFacts) -> Iterator[Problem]:
    gpus = s.rules.file.runner.node.gpus
    for name, role in f.roles.items():
        needed = (role.workers or 0) * (role.gpus_per_worker or 0)
        if role.nodes and role.nodes * gpus < needed:
            available = f"{count_of(role.nodes, 'node')} of {count_of(gpus, 'GPU')}"
            workers = f"{count_of(role.workers or 0, f'{name} worker')} of {role.gpus_per_worker}"
            yield f"{available} cannot hold {workers}", s.place("resources")


@plan_rule("moving-ref", "warning", "the lane names a branch where a commit belongs")
def moving_ref(s: SrtctlResolved) -> Iterator[Problem]:
    yield from moving_ref_problems(s.rules.lane.rule, s.rules.lane.location)


def moving_ref_problems(lane: LaneRule, place: SourceLocation) -> Iterator[Problem]:
    """The problem of a lane that pins no commit."""
    if lane.sha is None:
        kind = "a tag, which its owner can move" if is_tag(lane.ref) else "a branch"
        yield f"the lane follows {lane.ref} of {lane.repository}, {kind}: two runs may run two versions", place


@plan_rule("setup-script", "error", "the lane's set-up script is not there")
def setup_script(s: SrtctlResolved) -> Iterator[Problem]:
    if s.setup is None or s.setup.found:
        return
    message = f"set-up script {s.setup.name} is not in this repository"
    if s.setup.found is False:
        yield f"{message}, nor in {s.refs}", s.rules.lane.location
    else:
        yield f"{message}; whether srt-slurm has it shows after the checkout", s.rules.lane.location, "warning"


@plan_rule("name-too-long", "error", "a result file's name is longer than a name may be")
def name_too_long(s: SrtctlResolved) -> Iterator[Problem]:
    # Only a workflow gives a benchmark its result's name; it aggregates each result under a longer name.
    prefix = "agg_" if s.rules.benchmark.result_filename and not s.rules.benchmark.agentic else ""
    longest = prefix + longest_result_name(s.rules.benchmark, s.plan.results.filename)
    if byte_length(longest) > NAME_MAX:
        yield f"{longest} has {byte_length(longest)} bytes, and a name may have {NAME_MAX}", s.rules.benchmark.source


def longest_result_name(b: Benchmark, stem: str) -> str:
    """The longest name among a benchmark's result files, which all begin with ``stem``."""
    concurrency = max(b.concurrencies, default=0)
    if not b.multinode:  # one concurrency, which the stem has
        return f"{stem}.json"
    if b.agentic:
        return agentic_result_name(stem, concurrency)
    prefill, decode = (r.workers * r.gpus_per_worker if r else 0 for r in (b.prefill, b.decode))
    directory, split = f"sa-bench_isl_{b.isl}_osl_{b.osl}", (prefill, decode) if b.disagg else None
    return fixed_result_name(stem, directory, concurrency, prefill + decode, split)


def byte_length(name: str) -> int:
    """The length of a file's name in bytes, as the file system counts it."""
    return len(name.encode())


def _version_problems(rule: str, s: SrtctlResolved, schema: Schema) -> Iterator[Problem]:
    """The violations of one rule that the lane's srt-slurm finds in the recipe."""
    recipe, variant = s.recipe.found, s.recipe.variant
    if variant is None or recipe is None:
        return
    for violation in schema.violations(variant.document, (recipe.file.path, *recipe.section, variant.selector or "")):
        if violation.rule == rule:
            versions = versions_with_key(violation)
            known_at = f"; known at {versions}" if versions else ""
            yield f"{s.refs} refuses the recipe: {violation.message}{known_at}", s.place(*violation.keys)


for _id, _title in (
    ("unknown-field", "the recipe has a key that its srt-slurm does not know"),
    ("wrong-type", "a value of the recipe is of the wrong kind"),
    ("missing-field", "the recipe lacks a key that its srt-slurm requires"),
    ("value-refused", "its srt-slurm does not accept a value of the recipe"),
):
    version_rule(_id, "error", _title)(partial(_version_problems, _id))


@version_rule("option-unknown", "error", "the lane's srt-slurm has no such option")
def option_unknown(s: SrtctlResolved, schema: Schema) -> Iterator[Problem]:
    options = {"--tags": True, "--setup-script": s.setup is not None, "--no-preflight": not s.preflight}
    for option, is_used in options.items():
        if is_used and schema.options and option not in schema.options:
            message = f"`srtctl apply` of {s.refs} has no {option}, and ends with exit code 2"
            yield message, s.rules.lane.location


@version_rule("preflight-blind", "error", "srtctl looks for the model where it cannot be seen")
def preflight_blind(s: SrtctlResolved, schema: Schema) -> Iterator[Problem]:
    # Versions with the option look for the model before they submit; versions without it do not for a plain recipe
    # (517d3c37).
    if s.preflight and "--no-preflight" in schema.options and s.job.models:
        path = s.plan.model.path
        storage = s.rules.file.storage_of(path) if path is not None else None
        if storage is not None and "login" not in storage.seen_by:
            message = f"{s.refs} looks for {path} before it submits, and only compute nodes see {storage.path}"
            yield message, s.rules.lane.location


@any_rule("known-problem", "warning", "the runner file says what is wrong with a rule that applies")
def known_problem(r: Resolved) -> Iterator[Problem]:
    for finding in known_problems(r.rules.all):
        yield finding.message, finding.place, finding.severity


@any_rule("image-replaced", "error", "another image is run than the row's")
def image_replaced(r: Resolved) -> Iterator[Problem]:
    own, published = r.rules.image, r.rules.benchmark.image
    if own is not None and own.rule.image and not is_image(own.rule.image, published):
        yield f"{own.rule.image} is run, and the numbers are published as {published}'s", own.location


@any_rule("model-otherwise", "warning", "the checkpoint is not seen from here, and would be downloaded")
def model_otherwise(r: Resolved) -> Iterator[Problem]:
    path, model = r.plan.model.path, r.rules.model
    if path is not None and path.startswith("hf:") and path == model.rule.otherwise:
        yield f"no directory of {model.rule.path} is seen from here: every node would download {path}", model.location


_ARCHITECTURES = {"arm64": "aarch64", "aarch64": "aarch64", "amd64": "x86_64", "x86_64": "x86_64", "x86-64": "x86_64"}
_ARCHITECTURE = re.compile(r"(?<![a-z0-9])(arm64|aarch64|amd64|x86[_-]64)(?![a-z0-9])")


@any_rule("image-architecture", "error", "the image's tag names another make of processor than the nodes have")
def image_architecture(r: Resolved) -> Iterator[Problem]:
    benchmark, runner = r.rules.benchmark, r.rules.file.runner
    images: list[tuple[str, SourceLocation | str]] = [(benchmark.image, benchmark.source)]
    container = r.recipe.facts.container if isinstance(r, SrtctlResolved) and r.recipe.facts is not None else None
    if isinstance(r, SrtctlResolved) and container and container != benchmark.image:
        images.append((container, r.place("model", "container")))
    for image, place in images:
        architectures = {_ARCHITECTURES[name] for name in _ARCHITECTURE.findall(image.lower())}
        if runner.node.arch is not None and architectures and runner.node.arch not in architectures:
            built_for = f"{image} is built for {', '.join(sorted(architectures))}"
            yield f"{built_for}, and {runner.name} has {runner.node.arch} nodes", place


PLAN: tuple[Rule, ...] = (*recipe_rules.RULES, *RULES)
"""The rules of a plan, without those about a job in a container: they are imported only for a plan of such a job."""

SETTING_UNKNOWN = Rule("setting-unknown", "warning", "a variable looks like a setting of the row, and is none")
"""A rule about the environment of a GitHub job: `launcher.project` applies it when it plans from one."""


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
    applicable = [rule for rule in rules if rule.subject in subjects]
    return tuple(rule.finding(problem) for rule in applicable for problem in rule.check(*subjects[rule.subject]))


def unknown_settings_of(environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """A finding for each variable of a job that looks like an additional setting of its row, and is ignored."""
    findings = []
    for name, near in unknown_settings(environ):
        hint = f": did you mean {near}?" if near is not None else ""
        findings.append(SETTING_UNKNOWN.finding((f"{name} is no known setting, and is passed over{hint}", ENVIRONMENT)))
    return tuple(findings)
