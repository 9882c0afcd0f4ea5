"""Rules about rows, recipe files and runner files side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from launcher.check.inputs import CheckInput, Problem, RecipeFile, Row, Rule, rule
from launcher.check.plan_rules import byte_length, longest_result_name, moving_ref_problems
from launcher.check.recipe_rules import lost_directives, unknown_benchmark_type
from launcher.check.schema_validation import Schema, Violation
from launcher.check.srtctl_schema import is_tag
from launcher.core.errors import closest
from launcher.core.publish import NAME_MAX
from launcher.core.yaml_source import SourceLocation, depth_reached
from launcher.runner.file import RunnerFile
from launcher.runner.schema import LaneRule, ModelRule, Pattern, When
from launcher.srtctl.recipe import Variant

RULES: list[Rule] = []
whole_rule = partial(rule, RULES, "everything")


def _lanes(inputs: CheckInput) -> Iterator[tuple[RunnerFile, LaneRule, SourceLocation]]:
    """Every lane that runs srt-slurm, with its runner file and place."""
    for file in inputs.files:
        for i, lane in enumerate(file.runner.lanes):
            if lane.repository:
                yield file, lane, SourceLocation(file.document, "lanes", i)


@whole_rule("moving-ref", "warning", "the lane names a branch where a commit belongs")
def moving_lanes(inputs: CheckInput) -> Iterator[Problem]:
    for _, lane, place in _lanes(inputs):
        yield from moving_ref_problems(lane, place)


@whole_rule("sha-other", "error", "the commit is not the one that the lane's tag names")
def sha_other(inputs: CheckInput) -> Iterator[Problem]:
    schemas = inputs.schemas
    for file, lane, place in _lanes(inputs):
        tagged = schemas.sha(lane.ref) if is_tag(lane.ref) else None
        if lane.sha is not None and tagged is not None and lane.sha != tagged:
            version = schemas.name(lane.ref, lane.sha)
            other = f", which is {version}" if version else ""
            message = f"{lane.ref} is {tagged}, and the lane's sha is {lane.sha}{other}"
            yield message, SourceLocation(file.document, *place.keys, "sha")


def _unreleased_commits(inputs: CheckInput) -> Iterator[tuple[str, str, SourceLocation]]:
    """Repository, commit and place of each lane that pins no known version of srt-slurm."""
    for file, lane, place in _lanes(inputs):
        if lane.sha is not None and inputs.schemas.name(lane.ref, lane.sha) is None:
            url = file.runner.repositories[lane.repository]
            yield url, lane.sha, SourceLocation(file.document, *place.keys, "sha")


@whole_rule("sha-missing", "error", "the repository has no such commit")
def sha_missing(inputs: CheckInput) -> Iterator[Problem]:
    for url, sha, place in _unreleased_commits(inputs):
        if inputs.has_commit(url, sha) is False:
            yield f"{url} has no commit {sha}", place


@whole_rule("overlay-missing", "error", "the workspace lacks a directory that the lane lays over srt-slurm")
def overlay_missing(inputs: CheckInput) -> Iterator[Problem]:
    for file, lane, place in _lanes(inputs):
        for j, overlay in enumerate(lane.overlays):
            if inputs.overlays is not None and not (source := inputs.overlays / overlay.source).exists():
                yield f"there is no {source}", SourceLocation(file.document, *place.keys, "overlays", j)


@whole_rule("deprecated-name", "warning", "a key of the runner file has another name now")
def deprecated_names(inputs: CheckInput) -> Iterator[Problem]:
    for file in inputs.files:
        for renamed, place in file.renamed:
            yield renamed.text, place


@whole_rule("exclusion-expired", "warning", "the time to look at an excluded node again has come")
def exclusion_expired(inputs: CheckInput) -> Iterator[Problem]:
    for file in inputs.files:
        for i, node in enumerate(file.runner.exclude_nodes):
            if node.expires is not None and node.expires < inputs.today:
                message = f"{node.node} was excluded until {node.expires} ({node.reason})"
                yield message, SourceLocation(file.document, "exclude-nodes", i, "expires")


@whole_rule("model-shared", "error", "two precisions share a model directory")
def model_shared(inputs: CheckInput) -> Iterator[Problem]:
    for file in inputs.files:
        first_rules: dict[str, tuple[int, ModelRule]] = {}
        for i, model in enumerate(file.runner.models):
            for path in _patterns(model.path):
                if "{model}" in path:
                    continue  # another directory for every model
                j, other = first_rules.setdefault(path.rstrip("/"), (i, model))
                if i == j or other.when.precision is None or model.when.precision is None:
                    continue
                earlier, later = _patterns(other.when.precision), _patterns(model.when.precision)
                if not set(earlier) & set(later):
                    holds = f"this rule says that {path} holds {' or '.join(later)}"
                    message = f"{holds}, and an earlier rule says {' or '.join(earlier)}"
                    yield message, SourceLocation(file.document, "models", i, "path")


@whole_rule("rule-unreachable", "warning", "an earlier rule leaves nothing to this one")
def rule_unreachable(inputs: CheckInput) -> Iterator[Problem]:
    for file in inputs.files:
        tables: dict[str, Sequence[LaneRule | ModelRule]] = {"models": file.runner.models, "lanes": file.runner.lanes}
        for table, rules in tables.items():
            for i, later in enumerate(rules):
                j = next((j for j, earlier in enumerate(rules[:i]) if _covers(earlier.when, later.when)), None)
                if j is not None:
                    message = f"rule {i + 1} of `{table}` is never reached: rule {j + 1} takes all that it would match"
                    yield message, SourceLocation(file.document, table, i)


def _covers(earlier: When, later: When) -> bool:
    """Whether ``earlier`` certainly matches every benchmark that ``later`` matches."""
    for name in earlier.__struct_fields__:
        wide, narrow = getattr(earlier, name), getattr(later, name)
        if wide is None or wide == narrow:
            continue
        if narrow is None or isinstance(wide, bool):
            return False
        if any(set("*?[!") & set(pattern) for pattern in (*_patterns(wide), *_patterns(narrow))):
            return False
        if not set(_patterns(narrow)) <= set(_patterns(wide)):
            return False
    return True


def _patterns(pattern: Pattern) -> list[str]:
    return [pattern] if isinstance(pattern, str) else list(pattern)


@whole_rule("runner-missing", "error", "no runner file serves the row's label")
def runner_missing(inputs: CheckInput) -> Iterator[Problem]:
    labels = [label for file in inputs.files for label in file.runner.labels]
    for row in inputs.rows:
        if row.file is None and row.refused is None:
            label = row.benchmark.runner
            near = closest(label, labels)
            yield f"no runner file serves the label {label!r}" + (f" (near: {near})" if near else ""), row.place


@whole_rule("label-unknown", "warning", "no runner is registered for the row's label")
def label_unknown(inputs: CheckInput) -> Iterator[Problem]:
    """Reported only when the workspace lists its runners, and once for a label, because the list is to be fixed."""
    rows_by_label: dict[str, list[Row]] = defaultdict(list)
    for row in _distinct_jobs(inputs.rows) if inputs.runners else ():
        if row.benchmark.runner not in inputs.runners:
            rows_by_label[row.benchmark.runner].append(row)
    for label, rows in rows_by_label.items():
        jobs = "the row's job" if len(rows) == 1 else f"the jobs of {len(rows)} rows"
        near = closest(label, inputs.runners)
        message = f"runners.yaml has no label {label!r}, so that no runner takes {jobs}"
        yield message + (f" (near: {near})" if near else ""), rows[0].place


@whole_rule("row-twice", "warning", "two rows are the same in everything")
def row_twice(inputs: CheckInput) -> Iterator[Problem]:
    seen: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in _distinct_jobs(inputs.rows):
        b = row.benchmark
        alike = seen[b.runner, b.exp_name, b.image, b.concurrencies]
        first = next((other for other in alike if _are_equal(row, other)), None)
        if first is None:
            alike.append(row)
        else:
            same = f"this is {first.benchmark.key}'s row at {first.place} once more"
            yield f"{same}: two jobs measure one thing, and their results have one name", row.place


def _distinct_jobs(rows: Sequence[Row]) -> Sequence[Row]:
    """One row per benchmark: a row that several clusters serve is one job, which runs on one of them."""
    return list({id(row.benchmark): row for row in rows}.values())


def _are_equal(one: Row, other: Row) -> bool:
    """Whether the benchmarks of two rows differ in nothing but their place."""
    return replace(one.benchmark, key=other.benchmark.key, source=other.benchmark.source) == other.benchmark


@whole_rule("runner-invalid", "error", "a runner file cannot be read")
def runner_invalid(inputs: CheckInput) -> Iterator[Problem]:
    for error in inputs.broken_files:
        yield f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.where or "runners"


@whole_rule("matrix-invalid", "error", "a row, a key or a file of a matrix cannot be read")
def matrix_invalid(inputs: CheckInput) -> Iterator[Problem]:
    for error in inputs.broken_rows:
        yield f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.where or "matrix"


@whole_rule("unsupported", "error", "the runner cannot run the row")
def unsupported(inputs: CheckInput) -> Iterator[Problem]:
    broken = {error.where for error in inputs.broken_recipes if error.where is not None}
    for row in inputs.rows:
        if row.refused is not None and row.refused.where not in broken:
            yield row.refused.message, row.place


@whole_rule("model-split", "warning", "rows of one checkpoint take it from several directories")
def model_split(inputs: CheckInput) -> Iterator[Problem]:
    paths_by_model: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in inputs.rows:
        path = row.plan.model.path if row.plan is not None else None
        if row.plan is not None and path is not None and not path.startswith("hf:"):
            key = (row.plan.runner, row.benchmark.model, row.benchmark.precision)
            paths_by_model[key].setdefault(path, row.plan.rules["model"])
    for (runner, model, precision), paths in paths_by_model.items():
        first, *others = paths
        for path in others:
            message = f"{runner} takes {model} ({precision}) from {path}, and for other rows from {first}"
            yield message, paths[path]


@whole_rule("schema-unknown", "note", "what recipes may say at a version is not known")
def schema_unknown(inputs: CheckInput) -> Iterator[Problem]:
    unknown: dict[tuple[str, str, str | None], list[str]] = defaultdict(list)
    for row in inputs.rows:
        if row.plan is not None and row.job is not None:
            tree = row.job.srt_slurm
            if inputs.schemas.get(tree.ref, tree.sha) is None:
                unknown[tree.repository, tree.ref, tree.sha].append(row.plan.rules["lane"])
    for (repository, ref, sha), lanes in unknown.items():
        version = f"{ref} ({sha[:12]})" if sha and not sha.startswith(ref) else ref
        recipes = "a row's recipe runs" if len(lanes) == 1 else f"recipes of {len(lanes)} rows run"
        yield f"{recipes} at {repository} {version}, and what they may say there is not known", lanes[0]


@whole_rule("sha-unknown", "note", "whether a repository has a commit is not known")
def sha_unknown(inputs: CheckInput) -> Iterator[Problem]:
    reported = set[tuple[str, str]]()
    for url, sha, place in _unreleased_commits(inputs):
        # A repository below the state directory is one that a run makes for itself.
        if (url, sha) not in reported and not url.startswith("{state}/"):
            reported.add((url, sha))
            if inputs.has_commit(url, sha) is None:
                yield f"no mirror on this machine tells whether {url} has {sha}", place


@whole_rule("outside", "note", "rows whose scripts are not at hand")
def outside(inputs: CheckInput) -> Iterator[Problem]:
    for rows, places in inputs.outside.items():
        yield f"{len(places)} {rows} were not checked", places[0]


@whole_rule("recipe-invalid", "error", "a recipe file cannot be read")
def recipe_invalid(inputs: CheckInput) -> Iterator[Problem]:
    for error in inputs.broken_recipes:
        yield error.message, error.where or "recipes"


@whole_rule("recipe-variants", "error", "a section of the recipe cannot be expanded")
def recipe_variants(inputs: CheckInput) -> Iterator[Problem]:
    for recipe in inputs.recipes:
        for key, error in recipe.variants_and_errors[1]:
            yield error.message, SourceLocation(recipe.document, *key)


@whole_rule("key-twice", "warning", "a key stands twice in one mapping")
def key_twice(inputs: CheckInput) -> Iterator[Problem]:
    for recipe in inputs.recipes:
        document = recipe.document
        for key, line in document.repeated:
            problem, place = f"{key} stands twice in this mapping, and srtctl", f"{document.path}:{line}"
            if isinstance(document.data, dict) and "base" in document.data:
                # Variants are submitted through ruamel.yaml, which refuses such a file (`load_yaml_with_comments`).
                yield f"{problem} refuses the file", place, "error"
            else:
                yield f"{problem} takes the second", place


@whole_rule("recipe-refused", "warning", "no known srt-slurm accepts a recipe that no row runs")
def recipe_refused(inputs: CheckInput) -> Iterator[Problem]:
    for recipe in inputs.recipes:
        for variant in recipe.variants_and_errors[0]:
            if variant.selector in recipe.used:
                continue
            schema, violations = _closest_schema(inputs, recipe, variant)
            problems = [(v.keys, f"srt-slurm {schema.name} refuses the recipe: {v.message}") for v in violations]
            problems += [(keys, message) for keys, message, _ in lost_directives(variant.document)]
            if unknown := unknown_benchmark_type(variant.document, schema):
                problems.append((("benchmark", "type"), unknown))
            for keys, message in problems:
                # The longest prefix of the keys that exists in the file; a missing key itself does not.
                place = max(variant.places(keys), key=partial(depth_reached, recipe.document.data))
                yield message, SourceLocation(recipe.document, *place)


def _closest_schema(inputs: CheckInput, recipe: RecipeFile, variant: Variant) -> tuple[Schema, list[Violation]]:
    """The schema version with the fewest violations, the newest of several, and its violations."""
    schemas = inputs.schemas
    known = [recipe.schema] if recipe.schema is not None else (schemas.get(name, None) for name in schemas.versions)
    candidates = []
    for schema in filter(None, known):
        candidates.append((schema, schema.violations(variant.document)))
        if not candidates[-1][1]:
            break
    return min(candidates, key=lambda candidate: len(candidate[1]))


def _longest_names(inputs: CheckInput) -> Iterator[tuple[Row, str]]:
    """Each row whose results a workflow processes, with the longest name of a result there."""
    for row in inputs.rows:
        stem = inputs.workflow_names.get(id(row))
        if not row.benchmark.agentic and not row.benchmark.eval_only and row.plan is not None and stem is not None:
            fingerprint = "" if row.benchmark.recipe_fingerprint else f"_recipe-{'f' * 16}"
            yield row, longest_result_name(row.benchmark, stem + fingerprint)


@whole_rule(
    "workflow-name-too-long", "error", "a name that the workflow makes of a result's is longer than a name may be"
)
def workflow_name_too_long(inputs: CheckInput) -> Iterator[Problem]:
    for row, name in _longest_names(inputs):
        aggregate = f"agg_{name}"  # by process_result.py
        if byte_length(aggregate) > NAME_MAX:
            yield f"in a workflow, {aggregate} would have {byte_length(aggregate)} bytes of {NAME_MAX}", row.place


@whole_rule("audit-name-too-long", "warning", "the power audit's name is longer than a name may be")
def audit_name_too_long(inputs: CheckInput) -> Iterator[Problem]:
    """Only the audit is lost then; where no power is measured, the rows of a key are reported together."""
    harmless: dict[str | None, list[tuple[Row, int]]] = defaultdict(list)
    for row, name in _longest_names(inputs):
        audit = f"power_validation_{name}"  # by process_result.py
        if byte_length(f"agg_{name}") > NAME_MAX or byte_length(audit) <= NAME_MAX:
            continue
        if row.job is not None and row.job.power:
            yield f"in a workflow, {audit} would have {byte_length(audit)} bytes of {NAME_MAX}", row.place, "error"
        else:
            harmless[row.benchmark.key].append((row, byte_length(audit)))
    for rows in harmless.values():
        most = max(length for _, length in rows)
        rows_word = "a row" if len(rows) == 1 else f"{len(rows)} rows"
        names = f"power_validation_… of {rows_word} of this key"
        message = f"in a workflow, {names} would have up to {most} bytes of {NAME_MAX}, and be lost"
        yield message, rows[0][0].place


@whole_rule("name-duplicate", "warning", "rows share the name of their results")
def name_duplicate(inputs: CheckInput) -> Iterator[Problem]:
    """A sweep gives throughput rows a fingerprint, so they collide only in an end-to-end run; evaluations get none.

    Equal rows have equal fingerprints too: `row-twice` reports them.
    """
    kinds = ((inputs.rows, "without a fingerprint (an end-to-end run)"), (inputs.evaluations, "of evaluation"))
    for rows, kind in kinds:
        named: dict[str, list[Row]] = defaultdict(list)
        for row in _distinct_jobs(rows):
            if (name := inputs.workflow_names.get(id(row))) is not None:
                named[name].append(row)
        for first, *others in named.values():
            for row in others:
                if not row.benchmark.eval_only and _are_equal(first, row):
                    continue
                message = f"results {kind} have the name of those of {first.benchmark.key}'s row at {first.place}"
                yield message, row.place, "error" if row.benchmark.eval_only else "warning"
