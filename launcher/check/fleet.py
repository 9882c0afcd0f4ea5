"""Rules about runner files and their lanes: what they pin, what they exclude, which rows they serve."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from launcher.check.engine import Found, Rule, rule
from launcher.check.inputs import CheckInput
from launcher.check.srtctl_schema import is_tag
from launcher.core.errors import closest
from launcher.core.yaml_source import Place
from launcher.plan.derive import Resolved, known
from launcher.runner.file import RunnerFile
from launcher.runner.schema import LaneRule, ModelRule, Pattern, When
from launcher.srtctl.planned import SrtctlResolved


def _lanes(given: CheckInput) -> Iterator[tuple[RunnerFile, LaneRule, Place]]:
    """Every lane of every runner file, and where it stands."""
    for file in given.files:
        for i, lane in enumerate(file.runner.lanes):
            yield file, lane, Place(file.document, "lanes", i)


@rule("known-problem", "warning", "the runner file says what is wrong with a rule that applies")
def known_problem(r: Resolved) -> Iterator[Found]:
    for finding in known(r.rules.all):
        yield finding.message, finding.place, finding.severity


def _moving(lane: LaneRule, place: Place) -> Iterator[Found]:
    if lane.sha is None:
        kind = "a tag, which its owner can move" if is_tag(lane.ref) else "a branch"
        yield f"the lane follows {lane.ref} of {lane.repository}, {kind}: two runs may run two versions", place


@rule("moving-ref", "warning", "the lane names a branch where a commit belongs")
def moving_ref(s: SrtctlResolved) -> Iterator[Found]:
    yield from _moving(s.rules.lane.rule, s.rules.lane.place)


@rule("moving-ref", "warning", moving_ref.title)
def _moving_lanes(given: CheckInput) -> Iterator[Found]:
    for _, lane, place in _lanes(given):
        yield from _moving(lane, place)


@rule("sha-other", "error", "the commit is not the one that the lane's tag names")
def sha_other(given: CheckInput) -> Iterator[Found]:
    schemas = given.validator.schemas
    for file, lane, place in _lanes(given):
        tagged = schemas.sha(lane.ref) if is_tag(lane.ref) else None
        if lane.sha is not None and tagged is not None and lane.sha != tagged:
            version = schemas.name(lane.ref, lane.sha)
            other = f", which is {version}" if version else ""
            message = f"{lane.ref} is {tagged}, and the lane's sha is {lane.sha}{other}"
            yield message, Place(file.document, *place.keys, "sha")


@rule("sha-missing", "error", "the repository has no such commit")
def sha_missing(given: CheckInput) -> Iterator[Found]:
    for file, lane, place in _lanes(given):
        url = file.runner.repositories[lane.repository]
        if _is_no_release(given, lane) and given.has_commit(url, str(lane.sha)) is False:
            yield f"{url} has no commit {lane.sha}", Place(file.document, *place.keys, "sha")


def _is_no_release(given: CheckInput, lane: LaneRule) -> bool:
    """Whether a lane pins a commit that no known version of srt-slurm is."""
    return lane.sha is not None and given.validator.schemas.name(lane.ref, lane.sha) is None


@rule("overlay-missing", "error", "the workspace lacks a directory that the lane lays over srt-slurm")
def overlay_missing(given: CheckInput) -> Iterator[Found]:
    if given.overlays is None:
        return
    for file, lane, place in _lanes(given):
        for j, overlay in enumerate(lane.overlays):
            if not (source := given.overlays / overlay.source).exists():
                yield f"there is no {source}", Place(file.document, *place.keys, "overlays", j)


@rule("exclusion-expired", "warning", "the time to look at an excluded node again has come")
def exclusion_expired(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        for i, node in enumerate(file.runner.exclude_nodes):
            if node.expires is not None and node.expires < given.today:
                message = f"{node.node} was excluded until {node.expires} ({node.reason})"
                yield message, Place(file.document, "exclude-nodes", i, "expires")


@rule("model-shared", "error", "two precisions share a model directory")
def model_shared(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        claimed: dict[str, tuple[int, ModelRule]] = {}
        for i, model in enumerate(file.runner.models):
            for path in [model.path] if isinstance(model.path, str) else model.path:
                if "{model}" in path:
                    continue  # another directory for every model
                j, other = claimed.setdefault(path.rstrip("/"), (i, model))
                one, two = other.when.precision, model.when.precision
                if i != j and one is not None and two is not None and not set(_each(one)) & set(_each(two)):
                    message = f"this rule says that {path} holds {_words(two)}, and an earlier rule says {_words(one)}"
                    yield message, Place(file.document, "models", i, "path")


@rule("rule-unreachable", "warning", "an earlier rule leaves nothing to this one")
def rule_unreachable(given: CheckInput) -> Iterator[Found]:
    for file in given.files:
        tables: dict[str, Sequence[LaneRule | ModelRule]] = {"models": file.runner.models, "lanes": file.runner.lanes}
        for table, rules in tables.items():
            for i, later in enumerate(rules):
                j = next((j for j, earlier in enumerate(rules[:i]) if _covers(earlier.when, later.when)), None)
                if j is not None:
                    message = f"rule {i + 1} of `{table}` is never reached: rule {j + 1} takes all that it would match"
                    yield message, Place(file.document, table, i)


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


def _words(pattern: Pattern) -> str:
    return " or ".join(_each(pattern))


@rule("setup-script", "error", "the lane's set-up script is not there")
def setup_script(s: SrtctlResolved) -> Iterator[Found]:
    if s.setup is None or s.setup.found:
        return
    message = f"set-up script {s.setup.name} is not in this repository"
    if s.setup.found is False:
        yield f"{message}, nor in {s.refs}", s.rules.lane.place
    else:
        yield f"{message}; whether srt-slurm has it shows after the checkout", s.rules.lane.place, "warning"


@rule("runner-missing", "error", "no runner file serves the row's label")
def runner_missing(given: CheckInput) -> Iterator[Found]:
    labels = [label for file in given.files for label in file.runner.labels]
    for row in given.rows:
        if row.file is None and row.refused is None:
            label = row.benchmark.runner
            near = closest(label, labels)
            yield f"no runner file serves the label {label!r}" + (f" (near: {near})" if near else ""), row.place


@rule("runner-invalid", "error", "a runner file cannot be read")
def runner_invalid(given: CheckInput) -> Iterator[Found]:
    for error in given.broken_files:
        yield f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.where or "runners"


@rule("unsupported", "error", "the runner cannot run the row")
def unsupported(given: CheckInput) -> Iterator[Found]:
    broken = {recipe.broken.where for recipe in given.recipes if recipe.broken is not None}
    for row in given.rows:
        if row.refused is not None and (row.refused.where is None or row.refused.where not in broken):
            yield row.refused.message, row.place


@rule("model-split", "warning", "rows of one checkpoint take it from several directories")
def model_split(given: CheckInput) -> Iterator[Found]:
    where: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in given.rows:
        if row.plan is not None and not row.plan.model.path.startswith("hf:"):
            key = (row.plan.runner, row.benchmark.model, row.benchmark.precision)
            where[key].setdefault(row.plan.model.path, row.plan.rules["model"])
    for (runner, model, precision), paths in where.items():
        first, *others = paths
        for path in others:
            message = f"{runner} takes {model} ({precision}) from {path}, and for other rows from {first}"
            yield message, paths[path]


@rule("schema-unknown", "note", "what recipes may say at a version is not known")
def schema_unknown(given: CheckInput) -> Iterator[Found]:
    rows: Counter[tuple[str, str, str | None]] = Counter()
    first: dict[tuple[str, str, str | None], str] = {}
    for row in given.rows:
        if row.plan is None or row.job is None:
            continue
        tree = row.job.srt_slurm
        if given.validator.schemas.get(tree.ref, tree.sha) is None:
            key = (tree.repository, tree.ref, tree.sha)
            rows[key] += 1
            first.setdefault(key, row.plan.rules["lane"])
    for (repository, ref, sha), count in rows.items():
        at = f"{ref} ({sha[:12]})" if sha and not sha.startswith(ref) else ref
        whose = "a row's recipe runs" if count == 1 else f"recipes of {count} rows run"
        message = f"{whose} at {repository} {at}, and what they may say there is not known"
        yield message, first[repository, ref, sha]


@rule("sha-unknown", "note", "whether a repository has a commit is not known")
def sha_unknown(given: CheckInput) -> Iterator[Found]:
    asked = set[tuple[str, str | None]]()
    for file, lane, place in _lanes(given):
        url = file.runner.repositories[lane.repository]
        # A repository below the state directory is one that a run makes for itself.
        if not _is_no_release(given, lane) or (url, lane.sha) in asked or url.startswith("{state}/"):
            continue
        asked.add((url, lane.sha))
        if given.has_commit(url, str(lane.sha)) is None:
            yield (
                f"no mirror on this machine tells whether {url} has {lane.sha}",
                Place(file.document, *place.keys, "sha"),
            )


@rule("outside", "note", "rows that this launcher does not run")
def outside(given: CheckInput) -> Iterator[Found]:
    for framework, places in given.outside.items():
        message = f"{len(places)} rows of {framework} are not run by srtctl, and were not checked"
        yield message, places[0]
    if given.single_node:
        message = f"{len(given.single_node)} single-node entries were not checked"
        yield message, given.single_node[0]


RULES: Sequence[Rule[SrtctlResolved]] = (moving_ref, setup_script)
WHOLE: Sequence[Rule[CheckInput]] = (
    _moving_lanes,
    sha_other,
    sha_missing,
    overlay_missing,
    exclusion_expired,
    model_shared,
    rule_unreachable,
    runner_missing,
    runner_invalid,
    unsupported,
    model_split,
    schema_unknown,
    sha_unknown,
    outside,
)
