"""Rules about rows, recipe files and runner files side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from launcher.benchmark.benchmark import Benchmark
from launcher.check.inputs import CheckInput, Found, RecipeFile, Row, Rule, rule
from launcher.check.plan_rules import bytes_of, longest_result_name, moving
from launcher.check.recipe_rules import lost_directives, unknown_type
from launcher.check.schema_validation import Schema, Violation
from launcher.check.srtctl_schema import is_tag
from launcher.core.errors import closest
from launcher.core.publish import NAME_MAX
from launcher.core.yaml_source import SourceLocation, reached
from launcher.runner.file import RunnerFile
from launcher.runner.schema import LaneRule, ModelRule, Pattern, When
from launcher.srtctl.recipe import Variant

RULES: list[Rule] = []
whole_rule = partial(rule, RULES, "everything")


def _lanes(given: CheckInput) -> Iterator[tuple[RunnerFile, LaneRule, SourceLocation]]:
    """Every lane of every runner file that runs srt-slurm, and where it stands."""
    for file in given.files:
        for i, lane in enumerate(file.runner.lanes):
            if lane.repository:
                yield file, lane, SourceLocation(file.document, "lanes", i)


@whole_rule("moving-ref", "warning", "the lane names a branch where a commit belongs")
def moving_lanes(given: CheckInput) -> Iterator[Found]:
    for _, lane, place in _lanes(given):
        yield from moving(lane, place)


@whole_rule("sha-other", "error", "the commit is not the one that the lane's tag names")
def sha_other(given: CheckInput) -> Iterator[Found]:
    schemas = given.schemas
    for file, lane, place in _lanes(given):
        tagged = schemas.sha(lane.ref) if is_tag(lane.ref) else None
        if lane.sha is not None and tagged is not None and lane.sha != tagged:
            version = schemas.name(lane.ref, lane.sha)
            other = f", which is {version}" if version else ""
            message = f"{lane.ref} is {tagged}, and the lane's sha is {lane.sha}{other}"
            yield message, SourceLocation(file.document, *place.keys, "sha")


def _commits(given: CheckInput) -> Iterator[tuple[str, str, SourceLocation]]:
    """Repository, commit and place of each lane that pins no known version of srt-slurm."""
    for file, lane, place in _lanes(given):
        if lane.sha is not None and given.schemas.name(lane.ref, lane.sha) is None:
            url = file.runner.repositories[lane.repository]
            yield url, lane.sha, SourceLocation(file.document, *place.keys, "sha")


@whole_rule("sha-missing", "error", "the repository has no such commit")
def sha_missing(given: CheckInput) -> Iterator[Found]:
    for url, sha, place in _commits(given):
        if given.has_commit(url, sha) is False:
            yield f"{url} has no commit {sha}", place


@whole_rule("overlay-missing", "error", "the workspace lacks a directory that the lane lays over srt-slurm")
def overlay_missing(given: CheckInput) -> Iterator[Found]:
    for file, lane, place in _lanes(given):
        for j, overlay in enumerate(lane.overlays):
            if given.overlays is not None and not (source := given.overlays / overlay.source).exists():
                yield f"there is no {source}", SourceLocation(file.document, *place.keys, "overlays", j)


@whole_rule("deprecated-name", "warning", "a key of the runner file has another name now")
def deprecated_names(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        for one, place in file.renamed:
            yield one.text, place


@whole_rule("exclusion-expired", "warning", "the time to look at an excluded node again has come")
def exclusion_expired(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        for i, node in enumerate(file.runner.exclude_nodes):
            if node.expires is not None and node.expires < given.today:
                message = f"{node.node} was excluded until {node.expires} ({node.reason})"
                yield message, SourceLocation(file.document, "exclude-nodes", i, "expires")


@whole_rule("model-shared", "error", "two precisions share a model directory")
def model_shared(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        claimed: dict[str, tuple[int, ModelRule]] = {}
        for i, model in enumerate(file.runner.models):
            for path in _each(model.path):
                if "{model}" in path:
                    continue  # another directory for every model
                j, other = claimed.setdefault(path.rstrip("/"), (i, model))
                one, two = other.when.precision, model.when.precision
                if i != j and one is not None and two is not None and not set(_each(one)) & set(_each(two)):
                    held, before = " or ".join(_each(two)), " or ".join(_each(one))
                    message = f"this rule says that {path} holds {held}, and an earlier rule says {before}"
                    yield message, SourceLocation(file.document, "models", i, "path")


@whole_rule("rule-unreachable", "warning", "an earlier rule leaves nothing to this one")
def rule_unreachable(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        tables: dict[str, Sequence[LaneRule | ModelRule]] = {"models": file.runner.models, "lanes": file.runner.lanes}
        for table, rules in tables.items():
            for i, later in enumerate(rules):
                j = next((j for j, earlier in enumerate(rules[:i]) if _covers(earlier.when, later.when)), None)
                if j is not None:
                    message = f"rule {i + 1} of `{table}` is never reached: rule {j + 1} takes all that it would match"
                    yield message, SourceLocation(file.document, table, i)


def _covers(one: When, two: When) -> bool:
    """Whether it is certain that ``one`` matches every benchmark that ``two`` matches."""
    for name in one.__struct_fields__:
        wide, narrow = getattr(one, name), getattr(two, name)
        if wide is None or wide == narrow:
            continue
        if narrow is None or isinstance(wide, bool):
            return False
        if any(set("*?[!") & set(pattern) for pattern in (*_each(wide), *_each(narrow))):
            return False
        if not set(_each(narrow)) <= set(_each(wide)):
            return False
    return True


def _each(pattern: Pattern) -> list[str]:
    return [pattern] if isinstance(pattern, str) else list(pattern)


@whole_rule("runner-missing", "error", "no runner file serves the row's label")
def runner_missing(given: CheckInput) -> Iterator[Found]:
    labels = [label for file in given.files for label in file.runner.labels]
    for row in given.rows:
        if row.file is None and row.refused is None:
            label = row.benchmark.runner
            near = closest(label, labels)
            yield f"no runner file serves the label {label!r}" + (f" (near: {near})" if near else ""), row.place


@whole_rule("label-unknown", "warning", "no runner is registered for the row's label")
def label_unknown(given: CheckInput) -> Iterator[Found]:
    """Only where the workspace lists its runners, and once for a label: the list is what would be mended."""
    waiting: dict[str, list[Row]] = defaultdict(list)
    for row in _jobs(given.rows) if given.runners else ():
        if row.benchmark.runner not in given.runners:
            waiting[row.benchmark.runner].append(row)
    for label, rows in waiting.items():
        who = "the row's job" if len(rows) == 1 else f"the jobs of {len(rows)} rows"
        near = closest(label, given.runners)
        message = f"runners.yaml has no label {label!r}, so that no runner takes {who}"
        yield message + (f" (near: {near})" if near else ""), rows[0].place


@whole_rule("row-twice", "warning", "two rows are the same in everything")
def row_twice(given: CheckInput) -> Iterator[Found]:
    seen: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in _jobs(given.rows):
        b = row.benchmark
        alike = seen[b.runner, b.exp_name, b.image, b.concurrencies]
        first = next((other for other in alike if _same(row, other)), None)
        if first is None:
            alike.append(row)
        else:
            whose = f"{first.benchmark.key}'s row at {first.place}"
            yield f"this is {whose} once more: two jobs measure one thing, and their results have one name", row.place


def _jobs(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, each once: one that several clusters serve is one job, which lands on one of them."""
    return list({id(row.benchmark): row for row in rows}.values())


def _same(one: Row, other: Row) -> bool:
    """Whether two rows are the same but for where they stand."""
    names = (name for name in Benchmark.__slots__ if name not in ("key", "source"))
    return all(getattr(one.benchmark, name) == getattr(other.benchmark, name) for name in names)


@whole_rule("runner-invalid", "error", "a runner file cannot be read")
def runner_invalid(given: CheckInput) -> Iterator[Found]:
    for error in given.broken_files:
        yield f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.where or "runners"


@whole_rule("matrix-invalid", "error", "a row, a key or a file of a matrix cannot be read")
def matrix_invalid(given: CheckInput) -> Iterator[Found]:
    for error in given.broken_rows:
        yield f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.where or "matrix"


@whole_rule("unsupported", "error", "the runner cannot run the row")
def unsupported(given: CheckInput) -> Iterator[Found]:
    broken = {error.where for error in given.broken_recipes if error.where is not None}
    for row in given.rows:
        if row.refused is not None and row.refused.where not in broken:
            yield row.refused.message, row.place


@whole_rule("model-split", "warning", "rows of one checkpoint take it from several directories")
def model_split(given: CheckInput) -> Iterator[Found]:
    where: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in given.rows:
        path = row.plan.model.path if row.plan is not None else None
        if row.plan is not None and path is not None and not path.startswith("hf:"):
            key = (row.plan.runner, row.benchmark.model, row.benchmark.precision)
            where[key].setdefault(path, row.plan.rules["model"])
    for (runner, model, precision), paths in where.items():
        first, *others = paths
        for path in others:
            message = f"{runner} takes {model} ({precision}) from {path}, and for other rows from {first}"
            yield message, paths[path]


@whole_rule("schema-unknown", "note", "what recipes may say at a version is not known")
def schema_unknown(given: CheckInput) -> Iterator[Found]:
    unknown: dict[tuple[str, str, str | None], list[str]] = defaultdict(list)
    for row in given.rows:
        if row.plan is not None and row.job is not None:
            tree = row.job.srt_slurm
            if given.schemas.get(tree.ref, tree.sha) is None:
                unknown[tree.repository, tree.ref, tree.sha].append(row.plan.rules["lane"])
    for (repository, ref, sha), lanes in unknown.items():
        at = f"{ref} ({sha[:12]})" if sha and not sha.startswith(ref) else ref
        whose = "a row's recipe runs" if len(lanes) == 1 else f"recipes of {len(lanes)} rows run"
        yield f"{whose} at {repository} {at}, and what they may say there is not known", lanes[0]


@whole_rule("sha-unknown", "note", "whether a repository has a commit is not known")
def sha_unknown(given: CheckInput) -> Iterator[Found]:
    asked = set[tuple[str, str]]()
    for url, sha, place in _commits(given):
        # A repository below the state directory is one that a run makes for itself.
        if (url, sha) not in asked and not url.startswith("{state}/"):
            asked.add((url, sha))
            if given.has_commit(url, sha) is None:
                yield f"no mirror on this machine tells whether {url} has {sha}", place


@whole_rule("outside", "note", "rows whose scripts are not at hand")
def outside(given: CheckInput) -> Iterator[Found]:
    for what, places in given.outside.items():
        yield f"{len(places)} {what} were not checked", places[0]


@whole_rule("recipe-invalid", "error", "a recipe file cannot be read")
def recipe_invalid(given: CheckInput) -> Iterator[Found]:
    for error in given.broken_recipes:
        yield error.message, error.where or "recipes"


@whole_rule("recipe-variants", "error", "a section of the recipe cannot be expanded")
def recipe_variants(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        for key, error in recipe.expanded[1]:
            yield error.message, SourceLocation(recipe.document, *key)


@whole_rule("key-twice", "warning", "a key stands twice in one mapping")
def key_twice(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        document = recipe.document
        for key, line in document.repeated:
            said, place = f"{key} stands twice in this mapping, and srtctl", f"{document.path}:{line}"
            if isinstance(document.data, dict) and "base" in document.data:
                # Variants are submitted through ruamel.yaml, which refuses such a file (`load_yaml_with_comments`).
                yield f"{said} refuses the file", place, "error"
            else:
                yield f"{said} takes the second", place


@whole_rule("recipe-refused", "warning", "no known srt-slurm accepts a recipe that no row runs")
def recipe_refused(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        for variant in recipe.expanded[0]:
            if variant.selector not in recipe.used:
                schema, violations = _least(given, recipe, variant)
                for violation in violations:
                    # The longest part of the violation's keys that stands in the file; a missing key stands in none.
                    keys = max(variant.places(violation.keys), key=partial(reached, recipe.document.data))
                    message = f"srt-slurm {schema.name} refuses the recipe: {violation.message}"
                    yield message, SourceLocation(recipe.document, *keys)
                lost = [(keys, message) for keys, message, _ in lost_directives(variant.document)]
                wrong = unknown_type(variant.document, schema)
                for own, message in [*lost, *([(("benchmark", "type"), wrong)] if wrong else [])]:
                    place = max(variant.places(own), key=partial(reached, recipe.document.data))
                    yield message, SourceLocation(recipe.document, *place)


def _least(given: CheckInput, recipe: RecipeFile, variant: Variant) -> tuple[Schema, list[Violation]]:
    """The newest schema version with the fewest violations, and those."""
    schemas = given.schemas
    known = [recipe.schema] if recipe.schema is not None else (schemas.get(name, None) for name in schemas.versions)
    judged = []
    for schema in filter(None, known):
        judged.append((schema, schema.violations(variant.document)))
        if not judged[-1][1]:
            break
    return min(judged, key=lambda pair: len(pair[1]))


def _longest_names(given: CheckInput) -> Iterator[tuple[Row, str]]:
    """The longest name of a result in a workflow, for rows whose results the workflow processes."""
    for row in given.rows:
        stem = given.workflow_names.get(id(row))
        if not row.benchmark.agentic and not row.benchmark.eval_only and row.plan is not None and stem is not None:
            fingerprint = "" if row.benchmark.recipe_fingerprint else f"_recipe-{'f' * 16}"
            yield row, longest_result_name(row.benchmark, stem + fingerprint)


@whole_rule(
    "workflow-name-too-long", "error", "a name that the workflow makes of a result's is longer than a name may be"
)
def workflow_name_too_long(given: CheckInput) -> Iterator[Found]:
    for row, name in _longest_names(given):
        aggregate = f"agg_{name}"  # by process_result.py
        if bytes_of(aggregate) > NAME_MAX:
            yield f"in a workflow, {aggregate} would have {bytes_of(aggregate)} bytes of {NAME_MAX}", row.place


@whole_rule("audit-name-too-long", "warning", "the power audit's name is longer than a name may be")
def audit_name_too_long(given: CheckInput) -> Iterator[Found]:
    """The audit is lost then, and nothing else: so the rows of a key are said together, where no power is measured."""
    harmless: dict[str | None, list[tuple[Row, int]]] = defaultdict(list)
    for row, name in _longest_names(given):
        audit = f"power_validation_{name}"  # by process_result.py
        if bytes_of(f"agg_{name}") > NAME_MAX or bytes_of(audit) <= NAME_MAX:
            continue
        if row.job is not None and row.job.power:
            yield f"in a workflow, {audit} would have {bytes_of(audit)} bytes of {NAME_MAX}", row.place, "error"
        else:
            harmless[row.benchmark.key].append((row, bytes_of(audit)))
    for rows in harmless.values():
        most = max(length for _, length in rows)
        who = "a row" if len(rows) == 1 else f"{len(rows)} rows"
        message = f"in a workflow, power_validation_… of {who} of this key would have up to {most} bytes of {NAME_MAX}"
        yield f"{message}, and be lost", rows[0][0].place


@whole_rule("name-duplicate", "warning", "rows share the name of their results")
def name_duplicate(given: CheckInput) -> Iterator[Found]:
    """Throughput rows get a fingerprint in a sweep, and so collide only in an end-to-end run; evaluations get none.

    Rows that are the same have one fingerprint too: `row-twice` says them.
    """
    for rows, kind in ((given.rows, "without a fingerprint (an end-to-end run)"), (given.evaluations, "of evaluation")):
        named: dict[str, list[Row]] = defaultdict(list)
        for row in _jobs(rows):
            if (name := given.workflow_names.get(id(row))) is not None:
                named[name].append(row)
        for first, *others in named.values():
            for row in others:
                if not row.benchmark.eval_only and _same(first, row):
                    continue
                message = f"results {kind} have the name of those of {first.benchmark.key}'s row at {first.place}"
                yield message, row.place, "error" if row.benchmark.eval_only else "warning"
