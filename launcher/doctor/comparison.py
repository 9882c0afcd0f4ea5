"""A runner file compared with the facts of its cluster. Pure.

Two tables at the end have a row for each key: which fact speaks about it, and how its value is compared with that fact.
Directories are compared by what every side must see and do there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core.errors import suggest
from launcher.doctor import scheduling
from launcher.doctor.facts import (
    Agree,
    ClusterFacts,
    Differ,
    DirectoryView,
    Fact,
    Host,
    Mount,
    Outcome,
    Side,
    Statement,
    Unknown,
    statements,
)
from launcher.image.probe import Probed
from launcher.runner.cluster_schema import Storage
from launcher.runner.file import RunnerFile

Fill = Callable[[str], str]
"""A path of a runner file with its placeholders filled in."""

_BOTH: tuple[Side, ...] = ("login", "compute")


@dataclass(frozen=True)
class Claim:
    """A value of a runner file compared with its cluster.

    The file has the value ``says`` under ``key``, at ``where`` (``file:line``); the cluster has ``found``. Where the
    verdict is unknown, ``why`` is the reason. ``hint`` is how to fix it.
    """

    key: str
    where: str
    says: str
    verdict: Literal["agree", "differ", "unknown"]
    found: str = ""
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """A key of runner files, how its value is compared, and the fact that speaks about it (or all facts).

    ``pattern`` is read by `statements`. A fact that is Unknown makes the claim unknown; where it is None, nothing was
    asked, and no claim is made. ``compare`` gets any other fact, and returns None for no claim, too. ``says`` is the
    value as people are shown it, ``default`` the value of a key that is not in its table.
    """

    pattern: str
    compare: Callable[[Statement, Any], Outcome | None]
    fact: Callable[[ClusterFacts], Any] = lambda facts: facts
    says: Callable[[Statement, Any], str] = lambda statement, _: (
        str(statement.value).lower() if isinstance(statement.value, bool) else str(statement.value)
    )
    default: object = None


def compare(file: RunnerFile, facts: ClusterFacts, fill: Fill) -> list[Claim]:
    """Every claim of the file, in the order of its lines. ``fill`` puts values for the placeholders of paths."""
    claims = list(_compared(_SLURM, file, facts)) if file.runner.scheduler.kind == "slurm" else []
    for statement, path in required(file, fill, models_are_made=bool(facts.stand_ins)):
        claims.append(_claim(file, statement, path.says, _compare_path(path, facts)))
    claims += _compared(_ROWS, file, facts)
    return sorted(claims, key=lambda claim: int(claim.where.rpartition(":")[2]))


def _compared(rows: Sequence[Row], file: RunnerFile, facts: ClusterFacts) -> Iterator[Claim]:
    for row in rows:
        for statement in statements(file, row.pattern, row.default):
            fact = row.fact(facts)
            outcome = fact if fact is None or isinstance(fact, Unknown) else row.compare(statement, fact)
            if outcome is not None:
                yield _claim(file, statement, row.says(statement, fact), outcome)


def _claim(file: RunnerFile, statement: Statement, says: str, outcome: Outcome) -> Claim:
    key, where = statement.dotted, file.location(*statement.keys)
    if isinstance(outcome, Agree):
        return Claim(key, where, says, "agree", found=outcome.found)
    if isinstance(outcome, Differ):
        return Claim(key, where, says, "differ", found=outcome.found, hint=outcome.hint)
    return Claim(key, where, says, "unknown", why=outcome.why, hint=outcome.hint)


@dataclass(frozen=True)
class RequiredPath:
    """A directory that must be there, or candidates of which one must. ``says`` is what the file writes.

    ``seen`` are the sides that must see it, ``written`` those that must be able to write it. ``made`` says that the
    launcher makes it when it is missing; ``storage`` is what the file says of the file system below it.
    """

    says: str
    paths: tuple[str, ...]
    seen: tuple[Side, ...]
    written: tuple[Side, ...] = ()
    made: bool = False
    storage: Storage | None = None
    mounted: bool = False
    """Whether this is `storage` itself, so that its kind is compared."""


def required(
    file: RunnerFile, fill: Fill, *, models_are_made: bool = False
) -> Iterator[tuple[Statement, RequiredPath]]:
    """Every directory that the file names, with where it names it, in the file's order of tables.

    ``models_are_made`` says that runs make a checkpoint that is not there.
    """
    runner = file.runner
    for statement in statements(file, "storage.[]"):
        storage: Storage = statement.value
        yield statement, RequiredPath(storage.path, (storage.path,), storage.seen_by, storage=storage, mounted=True)
    importer: tuple[Side, ...] = (runner.images.import_on,)
    for pattern, seen, written in (
        # The login host looks at what a compute node imported, too: whether an image is there is decided there.
        ("images.directory", _BOTH, importer),
        ("images.temporary", importer, importer),
        ("images.rules.[].directory", _BOTH, importer),
        ("checkout.directory", _BOTH, _BOTH),
        ("checkout.cache", ("login",), ("login",)),
        ("workspace.shared", _BOTH, ("login",)),
    ):
        for statement in statements(file, pattern):
            path = fill(statement.value)
            yield statement, RequiredPath(statement.value, (path,), seen, written, True, file.storage_of(path))
    for statement in statements(file, "models.[].path"):
        model, value = statement.table, statement.value
        candidates = [path for path in ([value] if isinstance(value, str) else value) if not path.startswith("hf:")]
        if candidates:
            # {model} is another directory for each benchmark: what is above it is what can be asked about.
            paths = tuple(fill(path.partition("{model}")[0]).rstrip("/") or "/" for path in candidates)
            made = (model.stage and model.source is not None) or models_are_made
            on = file.storage_of(paths[0])
            seen = on.seen_by if on is not None else _BOTH
            written = ("login",) if made and "login" in seen else ()
            yield statement, RequiredPath(" or ".join(candidates), paths, seen, written, made, on)


def _compare_path(required: RequiredPath, facts: ClusterFacts) -> Outcome:
    """One directory: it agrees only when every side that must see and write it does."""
    good: list[str] = []
    unknown: list[str] = []
    problems: list[Differ] = []
    for side in required.seen:
        candidate = _candidate(facts.side(side), required.paths)
        if isinstance(candidate, Unknown):
            unknown.append(f"{side}: {candidate}")
            continue
        host, path, seen = candidate
        found = _access(required, side, path, seen, facts.slurm.user)
        problem = found or _kind(required, seen) or _sharing(required, side, seen)
        if problem is not None:
            problems.append(Differ(f"{side} ({host}): {problem.found}", problem.hint))
        else:
            good.append(f"{side} ({host}): {_description(path, seen)}")
    problems += _hidden_sides(required, facts)[:1]
    if problems:
        return Differ("; ".join(problem.found for problem in problems), problems[0].hint)
    return Unknown("; ".join([*unknown, *good])) if unknown else Agree("; ".join(good))


def _candidate(host: Fact[Host], paths: Sequence[str]) -> Fact[tuple[str, str, DirectoryView]]:
    """The host's name, and the first path that is there, or where none is the first one with what is above it."""
    if isinstance(host, Unknown):
        return host
    views = [(path, host.directory(path)) for path in paths]
    seen = [(host.name, path, view) for path, view in views if isinstance(view, DirectoryView)]
    if not seen:
        return Unknown(str(views[0][1]))
    return next((one for one in seen if one[2].is_at(one[1])), seen[0])


def _access(required: RequiredPath, side: Side, path: str, seen: DirectoryView, user: str) -> Differ | None:
    """What keeps one side from using the directory as it must."""
    if seen.refused.endswith("is not a directory"):
        return Differ(seen.refused, "name a directory")
    read_only = side in required.written and not seen.writable
    if seen.is_at(path) and not seen.readable:
        return Differ(f"{user} cannot list {path}", "chmod or chgrp it for the runner's user, or name another")
    if seen.is_at(path):
        found = f"{user} cannot write {path}: {seen.refused}"
        return Differ(found, "give it to the runner's user, or name another") if read_only else None
    missing = f"{path} is not there; the nearest directory above it is {seen.at}"
    if not required.made:
        put = "mount" if required.mounted else "stage"
        return Differ(missing, f"correct the path, {put} what belongs there, or correct `seen-by` of its storage")
    found = f"{missing}, where {user} cannot make it: {seen.refused}"
    return Differ(found, "have it made, and given to the runner's user") if read_only else None


def _kind(required: RequiredPath, seen: DirectoryView) -> Differ | None:
    """Whether a storage is of the kind that the file gives."""
    if not required.mounted or required.storage is None or isinstance(seen.mount, Unknown):
        return None
    kind, mount = required.storage.kind, seen.mount
    actual = "lustre" if mount.type == "lustre" else "nfs" if mount.network else "local or node-local"
    return None if kind in actual.split(" or ") else Differ(f"not {kind}: {mount}", f"kind: {actual}")


def _sharing(required: RequiredPath, side: Side, seen: DirectoryView) -> Differ | None:
    """Whether a node sees the same directory as the login host, where both must see it."""
    shared = len(required.seen) == 2 and (required.storage is None or required.storage.kind != "node-local")
    if side == "login" or not shared or (seen.shared is not False and seen.back is not False):
        return None
    found = f"what the login host writes into {seen.at} is not seen there: it is another {seen.at}"
    return Differ(found, "name a directory on a shared file system, or say `kind: node-local` of its storage")


def _hidden_sides(required: RequiredPath, facts: ClusterFacts) -> list[Differ]:
    """The sides that see a shared file system, and the file says that they do not."""
    if not required.mounted or required.storage is None or required.storage.kind not in ("lustre", "nfs"):
        return []
    found = []
    for side in (side for side in _BOTH if side not in required.seen):
        candidate = _candidate(facts.side(side), required.paths)
        if not isinstance(candidate, Unknown) and candidate[2].is_at(candidate[1]):
            mount = candidate[2].mount
            if isinstance(mount, Mount) and mount.network:
                hint = "add the side to seen-by, or say which part of it is not shared"
                found.append(Differ(f"{side} sees it too: {mount}", hint))
    return found


def _description(path: str, seen: DirectoryView) -> str:
    parts = [] if seen.is_at(path) else [f"will be made below {seen.at}"]
    if isinstance(seen.mount, Mount):
        parts.append(f"{seen.mount.type} from {seen.mount.source}")
    if seen.free is not None:
        parts.append(f"{seen.free / 1024**3:.0f} GiB free")
    parts += ["shared with the login host"] if seen.shared else []
    return ", ".join([*parts, "writable" if seen.writable else "read-only for us"])


def _compare_importer(statement: Statement, facts: ClusterFacts) -> Outcome | None:
    if facts.stand_ins:
        return None  # images are made by a stand-in, wherever enroot is
    other: Side = "compute" if statement.value == "login" else "login"
    host, elsewhere = facts.side(statement.value), facts.side(other)
    if isinstance(host, Unknown):
        return host
    if isinstance(host.enroot, str):
        return Agree(f"enroot {host.enroot} on {host.name}")
    if isinstance(elsewhere, Host) and isinstance(elsewhere.enroot, str):
        return Differ(str(host.enroot), f"import-on: {other}, where enroot is")
    return Differ(str(host.enroot), "install enroot, or put it on the runner's PATH")


def _compare_locks(statement: Statement, probed: Probed) -> Outcome:
    late = "" if probed.clocks < 5 else f"; the clocks differ by {probed.clocks:g} s"
    found = f"flock {probed.flock}, owner file {probed.owner_file}{late}"
    if probed.one_at_a_time:
        return Agree(found)
    return Differ(
        found, "images may be imported twice at once; what is published is whole all the same (docs/images.md)"
    )


def _compare_repository(statement: Statement, facts: ClusterFacts) -> Outcome:
    refs = facts.refs.get(str(statement.keys[-1]), Unknown("not asked"))
    return refs if isinstance(refs, Unknown) else Agree(f"answers, {len(refs)} refs")


def _compare_ref(statement: Statement, facts: ClusterFacts) -> Outcome | None:
    ref, sha, refs = statement.value, statement.table.sha, facts.refs.get(statement.table.repository)
    if refs is None or isinstance(refs, Unknown) or re.fullmatch(r"[0-9a-f]{40}", ref):
        return None  # the repository has its own line; a commit is in no list of refs
    tag, branch = refs.get(f"refs/tags/{ref}"), refs.get(f"refs/heads/{ref}")
    if tag is None and branch is None:
        hint = suggest(ref, [name.split("/", 2)[-1] for name in refs], "`git ls-remote` lists what there is")
        return Differ("the repository has no such tag or branch", hint)
    if tag is not None and sha not in (None, tag):
        return Differ(f"the tag is {tag}, the lane's sha {sha}", f"sha: {tag}, if that is meant")
    if tag is None and sha not in (None, branch):
        return Agree(f"the branch has moved on to {branch}; the lane stays at its sha")
    return Agree(f"{'tag' if tag else 'branch'} at {tag or branch}")


def _where_locks_hold(statement: Statement, fact: Fact[Probed]) -> str:
    return "holds" if isinstance(fact, Unknown) else f"holds ({fact.where})"


_STAND_INS = Unknown("enroot, srtctl and the engine are stand-ins: nothing to ask about")

_DIRECTIVES = f"srtslurm.{scheduling.DIRECTIVES}.*"

_SLURM: Sequence[Row] = (
    Row("scheduler.partition", scheduling.compare_partition, lambda facts: facts.slurm.partitions),
    Row("images.import-partition", scheduling.compare_partition, lambda facts: facts.slurm.partitions),
    Row("scheduler.account", scheduling.compare_account),
    Row("scheduler.time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("lanes.[].time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("adjust.[].time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("scheduler", scheduling.compare_job, says=lambda *_: "a job of one node"),
    *(
        Row(f"srtslurm.{key}", scheduling.compare_directive, default=default)
        for key, (default, _) in scheduling.DIRECTIVE_SWITCHES.items()
    ),
    Row(_DIRECTIVES, scheduling.compare_directive, says=lambda said, _: scheduling.directive(said)),
    Row("node.gpus", scheduling.compare_gpus, scheduling.gpus),
    Row("node.arch", scheduling.compare_architecture, scheduling.architectures),
    *(
        Row(key, scheduling.compare_login_architecture, says=lambda said, _: f"{said.value} on login")
        for key in ("node.arch", "node.login-arch")
    ),
    Row("node.count", scheduling.compare_count),
    Row("exclude-nodes.[].node", scheduling.compare_excluded),
)
"""Claims about Slurm and its nodes."""

_ROWS: Sequence[Row] = (
    Row("tools", lambda statement, stand_ins: _STAND_INS, lambda facts: facts.stand_ins or None),
    Row("images.import-on", _compare_importer),
    Row("images.lock", _compare_locks, lambda facts: facts.locks, _where_locks_hold),
    Row("images.lock", _compare_locks, lambda facts: facts.locks_with_node, _where_locks_hold),
    Row("repositories.*", _compare_repository),
    Row("lanes.[].ref", _compare_ref),
)
"""Claims about enroot, locks and repositories."""


def notes(facts: ClusterFacts) -> list[str]:
    """What people should know about this cluster, and no runner file claims."""
    slurm = facts.slurm
    if isinstance(slurm.config, Unknown):
        return []
    config, notes = slurm.config, []
    if slurm.accounting and "job_comment" not in config.get("AccountingStoreFlags", ""):
        notes.append(
            "AccountingStoreFlags has no job_comment: a job that was lost is found by its comment only as long as the "
            f"controller keeps it (MinJobAge {config.get('MinJobAge', 'unknown')}); accounting will not know it"
        )
    if slurm.accounting is False:
        notes.append(
            "no accounting: how a job ended is known only from the controller, for MinJobAge, and its exit marker"
        )
    age = re.match(r"\d+", config.get("MinJobAge", ""))
    if age and int(age[0]) < 60:
        notes.append(f"MinJobAge is {age[0]} s: a finished job leaves the controller before the launcher may ask again")
    if config.get("PreemptMode", "OFF") not in ("OFF", "(null)"):
        notes.append(f"PreemptMode is {config['PreemptMode']}: jobs may be ended for others")
    if config.get("ConstrainRAMSpace") == "yes":
        notes.append(
            "ConstrainRAMSpace is on: without --mem=0 or --exclusive an engine may be killed at its memory limit"
        )
    there = [h for h in (facts.login, facts.compute) if isinstance(h, Host) and isinstance(h.enroot, str)]
    if len({host.enroot for host in there}) > 1:
        notes.append(", ".join(f"enroot is {host.enroot} on {host.name}" for host in there))
    return notes
