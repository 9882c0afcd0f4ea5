"""Rules about runner files: what they pin, what they exclude, which rows they serve."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from launcher.check.engine import Found, Rule, Subject, rule
from launcher.check.inputs import Everything, HasCommit
from launcher.check.srtctl_schema import Schemas, is_tag
from launcher.core.yaml_source import Place, nearest
from launcher.runner.file import RunnerFile
from launcher.runner.schema import LaneRule, ModelRule, Pattern, When
from launcher.srtctl.planned import SrtctlJob


@dataclass(frozen=True)
class Cluster:
    """A runner file, and what the rules about it need to know beside it."""

    file: RunnerFile
    schemas: Schemas = field(default_factory=Schemas)
    today: date = date.min
    has_commit: HasCommit = lambda url, sha: None
    overlays: Path | None = None

    def place(self, *keys: str | int) -> Place:
        return Place(self.file.document, *keys)

    def lanes(self) -> Iterator[tuple[int, LaneRule]]:
        return iter(enumerate(self.file.runner.lanes))


def _moving(name: str, lane: LaneRule) -> str | None:
    if lane.sha is not None:
        return None
    kind = "a tag, which its owner can move" if is_tag(lane.ref) else "a branch"
    return f"the lane follows {lane.ref} of {lane.repository}, {kind}: two runs may run two versions"


@rule("moving-ref", "warning", "the lane names a branch where a commit belongs")
def moving_ref(s: Subject) -> Iterator[Found]:
    if message := _moving(s.file.runner.name, s.lane.rule):
        yield message, s.lane.place


@rule("moving-ref", "warning", moving_ref.title)
def _moving_lanes(c: Cluster) -> Iterator[Found]:
    for i, lane in c.lanes():
        if message := _moving(c.file.runner.name, lane):
            yield message, c.place("lanes", i)


@rule("sha-other", "error", "the commit is not the one that the lane's tag names")
def sha_other(c: Cluster) -> Iterator[Found]:
    for i, lane in c.lanes():
        tagged = c.schemas.sha(lane.ref) if is_tag(lane.ref) else None
        if lane.sha is not None and tagged is not None and lane.sha != tagged:
            version = c.schemas.name(lane.ref, lane.sha)
            other = f", which is {version}" if version else ""
            yield f"{lane.ref} is {tagged}, and the lane's sha is {lane.sha}{other}", c.place("lanes", i, "sha")


@rule("sha-missing", "error", "the repository has no such commit")
def sha_missing(c: Cluster) -> Iterator[Found]:
    for i, lane in c.lanes():
        url = c.file.runner.repositories[lane.repository]
        released = c.schemas.name(lane.ref, lane.sha) is not None
        if lane.sha is not None and not released and c.has_commit(url, lane.sha) is False:
            yield f"{url} has no commit {lane.sha}", c.place("lanes", i, "sha")


@rule("overlay-missing", "error", "the workspace lacks a directory that the lane lays over srt-slurm")
def overlay_missing(c: Cluster) -> Iterator[Found]:
    if c.overlays is None:
        return
    for i, lane in c.lanes():
        for j, overlay in enumerate(lane.overlays):
            if not (source := c.overlays / overlay.source).exists():
                yield f"there is no {source}", c.place("lanes", i, "overlays", j)


@rule("exclusion-expired", "warning", "the time to look at an excluded node again has come")
def exclusion_expired(c: Cluster) -> Iterator[Found]:
    for i, node in enumerate(c.file.runner.exclude_nodes):
        if node.expires is not None and node.expires < c.today:
            message = f"{node.node} was excluded until {node.expires} ({node.reason})"
            yield message, c.place("exclude-nodes", i, "expires")


@rule("model-shared", "error", "two precisions share a model directory")
def model_shared(c: Cluster) -> Iterator[Found]:
    claimed: dict[str, tuple[int, ModelRule]] = {}
    for i, model in enumerate(c.file.runner.models):
        for path in [model.path] if isinstance(model.path, str) else model.path:
            if "{model}" in path:
                continue  # another directory for every model
            j, other = claimed.setdefault(path.rstrip("/"), (i, model))
            one, two = other.when.precision, model.when.precision
            if i != j and one is not None and two is not None and not set(_each(one)) & set(_each(two)):
                message = f"{path} is to hold {_words(two)}, and {_words(one)} by an earlier rule"
                yield message, c.place("models", i, "path")


@rule("rule-unreachable", "warning", "an earlier rule leaves nothing to this one")
def rule_unreachable(c: Cluster) -> Iterator[Found]:
    tables = (("models", c.file.runner.models), ("lanes", c.file.runner.lanes))
    for table, rules in tables:
        for i, later in enumerate(rules):
            for j, earlier in enumerate(rules[:i]):
                if _covers(earlier.when, later.when):
                    message = f"rule {i + 1} of `{table}` is never reached: rule {j + 1} takes all that it would match"
                    yield message, c.place(table, i)
                    break


def _covers(one: When, two: When) -> bool:
    """Whether every benchmark that ``two`` matches is matched by ``one``: certain, or no."""
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
def setup_script(s: Subject) -> Iterator[Found]:
    if s.setup_script is None or s.setup_found:
        return
    message = f"set-up script {s.setup_script} is not in this repository"
    if s.setup_found is False:
        yield f"{message}, nor in {s.refs}", s.lane.place
    else:
        yield f"{message}; whether the checkout has it is not known yet", s.lane.place, "warning"


@rule("runner-missing", "error", "no runner file serves the row's label")
def runner_missing(every: Everything) -> Iterator[Found]:
    labels = [label for file in every.files for label in file.runner.labels]
    for row in every.rows:
        if row.file is None and row.refused is None:
            label = row.benchmark.runner
            near = nearest(label, labels)
            yield f"no runner file serves the label {label!r}" + (f" (near: {near})" if near else ""), row.place


@rule("runner-invalid", "error", "a runner file cannot be read")
def runner_invalid(every: Everything) -> Iterator[Found]:
    for error in every.broken_files:
        yield f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.where or "runners"


@rule("unsupported", "error", "the runner cannot run the row")
def unsupported(every: Everything) -> Iterator[Found]:
    broken = {recipe.broken.where for recipe in every.recipes if recipe.broken is not None}
    for row in every.rows:
        if row.refused is not None and (row.refused.where is None or row.refused.where not in broken):
            yield row.refused.message, row.place


@rule("model-split", "warning", "rows of one checkpoint take it from several directories")
def model_split(every: Everything) -> Iterator[Found]:
    where: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for row in every.rows:
        if row.plan is not None and not row.plan.model.path.startswith("hf:"):
            key = (row.plan.runner, row.benchmark.model, row.benchmark.precision)
            where[key].setdefault(row.plan.model.path, row.plan.rules["model"])
    for (runner, model, precision), paths in where.items():
        first, *others = paths
        for path in others:
            message = f"{runner} takes {model} ({precision}) from {path}, and for other rows from {first}"
            yield message, paths[path]


@rule("schema-unknown", "note", "what recipes may say at a version is not known")
def schema_unknown(every: Everything) -> Iterator[Found]:
    rows: Counter[tuple[str, str, str | None]] = Counter()
    first: dict[tuple[str, str, str | None], str] = {}
    for row in every.rows:
        if row.plan is None:
            continue
        tree = SrtctlJob.of(row.plan).srt_slurm
        if every.verdicts.schemas.get(tree.ref, tree.sha) is None:
            key = (tree.repository, tree.ref, tree.sha)
            rows[key] += 1
            first.setdefault(key, row.plan.rules["lane"])
    for (repository, ref, sha), count in rows.items():
        at = f"{ref} ({sha[:12]})" if sha and not sha.startswith(ref) else ref
        whose = "a row's recipe runs" if count == 1 else f"recipes of {count} rows run"
        message = f"{whose} at {repository} {at}, and what they may say there is not known here"
        yield message, first[repository, ref, sha]


@rule("sha-unknown", "note", "whether a repository has a commit is not known")
def sha_unknown(every: Everything) -> Iterator[Found]:
    asked = set[tuple[str, str]]()
    for file in every.files:
        for i, lane in enumerate(file.runner.lanes):
            url = file.runner.repositories[lane.repository]
            if lane.sha is None or (url, lane.sha) in asked or file.runner.tools == "rehearsal":
                continue
            asked.add((url, lane.sha))
            released = every.verdicts.schemas.name(lane.ref, lane.sha) is not None
            if not released and every.has_commit(url, lane.sha) is None:
                yield f"whether {url} has {lane.sha} is not known here", Place(file.document, "lanes", i, "sha")


@rule("outside", "note", "rows that this launcher does not run")
def outside(every: Everything) -> Iterator[Found]:
    for framework, places in every.outside.items():
        message = f"{len(places)} rows of {framework} are not run by srtctl, and were not looked at"
        yield message, places[0]
    if every.single_node:
        message = f"{len(every.single_node)} single-node entries were not looked at"
        yield message, every.single_node[0]


RULES: Sequence[Rule[Subject]] = (moving_ref, setup_script)
CLUSTER: Sequence[Rule[Cluster]] = (
    _moving_lanes,
    sha_other,
    sha_missing,
    overlay_missing,
    exclusion_expired,
    model_shared,
    rule_unreachable,
)
WHOLE: Sequence[Rule[Everything]] = (
    runner_missing,
    runner_invalid,
    unsupported,
    model_split,
    schema_unknown,
    sha_unknown,
    outside,
)
