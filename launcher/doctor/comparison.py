"""A runner file compared with the facts of its cluster. Pure.

Two tables at the end have a row for each key: which fact speaks about it, and how its value is compared with that fact.
Directories are compared by what every side must see and do there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from launcher.core.errors import suggest
from launcher.core.lines import count_of
from launcher.doctor import scheduling
from launcher.doctor.facts import (
    ClusterFacts,
    Differ,
    DirectoryView,
    Host,
    Imported,
    Looked,
    Mount,
    Side,
    Statement,
    Unknown,
    known,
    statements,
)
from launcher.image.probe import LockProbe
from launcher.plan.preflight import ROOM
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

    ``pattern`` is read by `statements`. ``compare`` gets a fact that is known; where it is None, nothing was asked. No
    claim is made then, nor where ``compare`` returns None. ``says`` is the value as people are shown it, ``default``
    the value of a key that is not in its table.
    """

    pattern: str
    compare: Callable[[Statement, Any], str | None]
    fact: Callable[[ClusterFacts], Any] = lambda facts: facts
    says: Callable[[Statement], str] = str
    default: object = None

    def judged(self, said: Statement, facts: ClusterFacts) -> str | None:
        """What `compare` makes of the fact."""
        fact = known(self.fact(facts))
        return None if fact is None else self.compare(said, fact)


def compare(file: RunnerFile, facts: ClusterFacts, fill: Fill) -> list[Claim]:
    """Every claim of the file, in the order of its lines. ``fill`` puts values for the placeholders of paths."""
    claims: list[Claim | None] = []
    for path in required(file, fill, models_are_made=bool(facts.stand_ins)):
        claims.append(_claim(file, path.said, path.says, partial(_compare_path, path, facts)))
    for row in (*(_SLURM if file.runner.scheduler.kind == "slurm" else ()), *_ROWS):
        for said in statements(file, row.pattern, row.default):
            claims.append(_claim(file, said, row.says(said), partial(row.judged, said, facts)))
    return sorted(filter(None, claims), key=lambda claim: int(claim.where.rpartition(":")[2]))


def _claim(file: RunnerFile, said: Statement, says: str, judged: Callable[[], str | None]) -> Claim | None:
    claim = Claim(said.dotted, file.location(*said.keys), says, "agree")
    try:
        found = judged()
    except Differ as other:
        return replace(claim, verdict="differ", found=other.found, hint=other.hint)
    except Unknown as unknown:
        return replace(claim, verdict="unknown", why=unknown.why, hint=unknown.hint)
    return None if found is None else replace(claim, found=found)


@dataclass(frozen=True)
class RequiredPath:
    """A directory that must be there, or candidates of which one must: ``said`` names it in the file, as ``says``.

    ``seen`` are the sides that must see it, ``written`` those that must be able to write it. ``made`` says that the
    launcher makes it when it is missing; ``storage`` is what the file says of the file system below it, and ``mounted``
    whether the directory is that file system itself, so that its kind is compared.
    """

    said: Statement
    says: str
    paths: tuple[str, ...]
    seen: tuple[Side, ...]
    written: tuple[Side, ...] = ()
    made: bool = False
    storage: Storage | None = None
    mounted: bool = False


def required(file: RunnerFile, fill: Fill, *, models_are_made: bool = False) -> Iterator[RequiredPath]:
    """Every directory that the file names, in its order of tables.

    ``models_are_made`` says that runs make a checkpoint that is not there.
    """
    for said in statements(file, "storage.[]"):
        storage: Storage = said.value
        yield RequiredPath(said, storage.path, (storage.path,), storage.seen_by, storage=storage, mounted=True)
    importer: tuple[Side, ...] = (file.runner.images.import_on,)
    for pattern, seen, written in (
        # The login host looks at what a compute node imported, too: whether an image is there is decided there.
        ("images.directory", _BOTH, importer),
        ("images.temporary", importer, importer),
        ("images.rules.[].directory", _BOTH, importer),
        ("checkout.directory", _BOTH, _BOTH),
        ("checkout.cache", ("login",), ("login",)),
        ("workspace.shared", _BOTH, ("login",)),
    ):
        for said in statements(file, pattern):
            path = fill(said.value)
            yield RequiredPath(said, said.value, (path,), seen, written, True, file.storage_of(path))
    for said in statements(file, "models.[].path"):
        model, value = said.table, said.value
        candidates = [path for path in ([value] if isinstance(value, str) else value) if not path.startswith("hf:")]
        if candidates:
            # {model} is another directory for each benchmark: what is above it is what can be asked about.
            paths = tuple(fill(path.partition("{model}")[0]).rstrip("/") or "/" for path in candidates)
            made = (model.stage and model.source is not None) or models_are_made
            on = file.storage_of(paths[0])
            seen = on.seen_by if on is not None else _BOTH
            written = ("login",) if made and "login" in seen else ()
            yield RequiredPath(said, " or ".join(candidates), paths, seen, written, made, on)


def _compare_path(required: RequiredPath, facts: ClusterFacts) -> str:
    """One directory: it agrees only when every side that must see and write it does."""
    good, unknown, problems = list[str](), list[str](), list[Differ]()
    for side in _BOTH:
        try:
            host = known(facts.side(side))
            path, seen = _candidate(host, required.paths)
            _check(required, side, path, seen, facts.slurm.user)
            good += [f"{side} ({host.name}): {_description(path, seen)}"] if side in required.seen else []
        except Unknown as why:
            unknown += [f"{side}: {why}"] if side in required.seen else []
        except Differ as other:
            problems.append(Differ(f"{side} ({host.name}): {other.found}", other.hint))
    if problems:
        raise Differ("; ".join(problem.found for problem in problems), problems[0].hint)
    if unknown:
        raise Unknown("; ".join([*unknown, *good]))
    return "; ".join(good)


def _candidate(host: Host, paths: Sequence[str]) -> tuple[str, DirectoryView]:
    """The first path that is there, or where none is the first one that was seen, with what is above it."""
    views = {path: host.directory(path) for path in paths}
    seen = [(path, view) for path, view in views.items() if isinstance(view, DirectoryView)]
    if not seen:
        known(views[paths[0]])
    return next((one for one in seen if one[1].is_at(one[0])), seen[0])


def _check(required: RequiredPath, side: Side, path: str, seen: DirectoryView, user: str) -> None:
    """Raises Differ with the first thing that is wrong with a directory on one side."""
    there, mount, refused = seen.is_at(path), seen.mount, seen.refused
    read_only = side in required.written and not seen.writable
    kind = required.storage.kind if required.storage is not None else ""
    if side not in required.seen:
        if required.mounted and kind in ("lustre", "nfs") and there and isinstance(mount, Mount) and mount.network:
            raise Differ(f"sees it too: {mount}", "add the side to seen-by, or say which part of it is not shared")
        return
    if refused.endswith("is not a directory"):
        raise Differ(refused, "name a directory")
    if there and not seen.readable:
        raise Differ(f"{user} cannot list {path}", "chmod or chgrp it for the runner's user, or name another")
    if there and read_only:
        raise Differ(f"{user} cannot write {path}: {refused}", "give it to the runner's user, or name another")
    missing = f"{path} is not there; the nearest directory above it is {seen.at}"
    if not there and not required.made:
        what = "mount or stage what belongs there"
        raise Differ(missing, f"correct the path, {what}, or correct `seen-by` of its storage")
    if not there and read_only:
        raise Differ(f"{missing}, where {user} cannot make it: {refused}", "have it made for the runner's user")
    if side in required.written and seen.free is not None and seen.free < ROOM << 20:
        found = f"{seen.free >> 20} MiB left in {seen.at}, and at least {ROOM} are needed"
        raise Differ(found, "make room, or name another directory")
    if required.mounted and isinstance(mount, Mount) and kind not in mount.kinds:
        raise Differ(f"not {kind}: {mount}", f"kind: {' or '.join(mount.kinds)}")
    if side == "compute" and len(required.seen) == 2 and kind != "node-local" and seen.shared is False:
        found = f"what the login host writes into {seen.at} is not seen there: it is another {seen.at}"
        raise Differ(found, "name a directory on a shared file system, or say `kind: node-local` of its storage")


def _description(path: str, seen: DirectoryView) -> str:
    parts = [] if seen.is_at(path) else [f"will be made below {seen.at}"]
    if isinstance(seen.mount, Mount):
        parts.append(f"{seen.mount.type} from {seen.mount.source}")
    if seen.free is not None:
        parts.append(f"{seen.free / 1024**3:.0f} GiB free")
    parts += ["shared with the login host"] if seen.shared else []
    return ", ".join([*parts, "writable" if seen.writable else "read-only for us"])


def _compare_importer(said: Statement, facts: ClusterFacts) -> str | None:
    if facts.stand_ins:
        return None  # images are made by a stand-in, wherever enroot is
    other: Side = "compute" if said.value == "login" else "login"
    host, elsewhere = known(facts.side(said.value)), facts.side(other)
    if isinstance(host.enroot, str):
        return f"enroot {host.enroot} on {host.name}"
    if isinstance(elsewhere, Host) and isinstance(elsewhere.enroot, str):
        raise Differ(str(host.enroot), f"import-on: {other}, where enroot is")
    raise Differ(str(host.enroot), "install enroot, or put it on the runner's PATH")


def _compare_import(said: Statement, tried: Imported) -> str:
    if not tried.imported:
        raise Differ(" ".join(tried.say.split()), tried.fix or "as it says")
    return tried.say


def _compare_locks(said: Statement, probed: LockProbe) -> str:
    late = "" if probed.clocks < 5 else f"; the clocks differ by {probed.clocks:g} s"
    found = f"{probed.where}: flock {probed.flock}, owner file {probed.owner_file}{late}"
    if not probed.one_at_a_time:
        hint = "images may be imported twice at once; what is published is whole all the same (docs/guides/images.md)"
        raise Differ(found, hint)
    return found


def _compare_look(said: Statement, looked: Looked, hint: str) -> str:
    if ", though the runner file" in looked.fact:  # the storage has `locks: local`, and a node finds the contrary
        raise Differ(looked.fact, "take `locks: local` out of its `storage`")
    if looked.red:
        raise Differ(looked.red, hint)
    if not looked.fact:
        raise Unknown("the node did not come to it")
    return f"looked at as jobs do: {looked.fact.replace('_', ' ')}"


def _compare_checkpoints(said: Statement, facts: ClusterFacts) -> str | None:
    """Of several candidates one has to be whole."""
    paths = [said.value] if isinstance(said.value, str) else said.value
    found = [looked for path in paths if (looked := facts.looked(path)) is not None]
    if not found:
        return None
    there = [looked for looked in found if not isinstance(looked, Unknown)]
    good = next((looked for looked in there if not looked.red), None)
    made = bool(facts.stand_ins) or (said.table.stage and said.table.source is not None)
    if made and good is None and all(looked.red.startswith("the checkpoint is not on") for looked in there):
        return None  # a run puts it there
    return _compare_look(said, good or (there[0] if there else known(found[0])), "stage it whole, or correct the path")


_CLOCK = "have chrony or ntpd set the clocks of both"
_LOCK = "images may be imported twice at once, and every job of such a node ends; not with `locks: local` in `storage`"


def _compare_repository(said: Statement, facts: ClusterFacts) -> str:
    refs = known(facts.refs.get(str(said.keys[-1]), Unknown("not asked")))
    return f"answers, {count_of(len(refs), 'ref')}"


def _compare_ref(said: Statement, facts: ClusterFacts) -> str | None:
    ref, sha, refs = said.value, said.table.sha, facts.refs.get(said.table.repository)
    if refs is None or isinstance(refs, Unknown) or re.fullmatch(r"[0-9a-f]{40}", ref):
        return None  # the repository has its own line; a commit is in no list of refs
    tag, branch = refs.get(f"refs/tags/{ref}"), refs.get(f"refs/heads/{ref}")
    if tag is None and branch is None:
        hint = suggest(ref, [name.split("/", 2)[-1] for name in refs], "`git ls-remote` lists what there is")
        raise Differ("the repository has no such tag or branch", hint)
    if tag is not None and sha not in (None, tag):
        raise Differ(f"the tag is {tag}, the lane's sha {sha}", f"sha: {tag}, if that is meant")
    if tag is None and sha not in (None, branch):
        return f"the branch has moved on to {branch}; the lane stays at its sha"
    return f"{'tag' if tag else 'branch'} at {tag or branch}"


def _look(name: str) -> Callable[[ClusterFacts], Any]:
    return lambda facts: facts.looked(name)


_STAND_INS = Unknown("enroot, srtctl and the engine are stand-ins: nothing to ask about")
_SLURM: Sequence[Row] = (
    Row("scheduler.partition", scheduling.compare_partition, lambda facts: facts.slurm),
    Row("images.import-partition", scheduling.compare_partition, lambda facts: facts.slurm),
    Row("scheduler.account", scheduling.compare_account),
    Row("scheduler.time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("lanes.[].time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("adjust.[].time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("scheduler", scheduling.compare_job, says=lambda said: "a job of one node"),
    *(
        Row(f"srtslurm.{key}", scheduling.compare_directive, default=default)
        for key, (default, _) in scheduling.DIRECTIVE_SWITCHES.items()
    ),
    Row(f"srtslurm.{scheduling.DIRECTIVES}.*", scheduling.compare_directive, says=scheduling.directive),
    Row("node.gpus", scheduling.compare_one_of, scheduling.gpus),
    Row("node.arch", scheduling.compare_one_of, scheduling.architectures),
    Row("node.arch", scheduling.compare_login_architecture, says="{} on login".format),
    Row("node.login-arch", scheduling.compare_login_architecture, says="{} on login".format),
    Row("node.count", scheduling.compare_count),
    Row("exclude-nodes.[].node", scheduling.compare_excluded),
)
"""Claims about Slurm and its nodes."""

_ROWS: Sequence[Row] = (
    Row("tools", lambda said, fact: None, lambda facts: _STAND_INS if facts.stand_ins else None),
    Row("images.import-on", _compare_importer),
    Row("images.import-on", _compare_import, lambda facts: facts.imports, "enroot imports there ({})".format),
    Row("images.lock", _compare_locks, lambda facts: facts.locks, lambda said: "holds between two processes"),
    Row("images.lock", partial(_compare_look, hint=_LOCK), _look("locks"), lambda said: "holds with a node"),
    Row("node", partial(_compare_look, hint=_CLOCK), _look("clock"), lambda said: "a clock within 5 s of this host's"),
    Row("models.[].path", _compare_checkpoints, says="{} is whole on a node".format),
    Row("repositories.*", _compare_repository),
    Row("lanes.[].ref", _compare_ref),
)
"""Claims about enroot, locks and repositories."""


def notes(facts: ClusterFacts) -> list[str]:
    """What people should know about this cluster, and no runner file claims."""
    if isinstance(facts.slurm.config, Unknown):
        return []
    config, notes, no_accounting = facts.slurm.config, [], facts.slurm.no_accounting
    shortest = config.get("MinJobAge", "unknown")
    if not no_accounting and "job_comment" not in config.get("AccountingStoreFlags", ""):
        notes.append(
            "AccountingStoreFlags has no job_comment: a job that was lost is found by its comment only as long as the "
            f"controller keeps it (MinJobAge {shortest}); accounting will not know it"
        )
    if no_accounting:
        notes.append(
            "no accounting: how a job ended is known only from the controller, for MinJobAge, and its exit marker"
        )
    if (age := re.match(r"\d+", shortest)) and int(age[0]) < 60:
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
