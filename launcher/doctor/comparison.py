"""A runner file compared with the facts of its cluster. Pure.

Two tables at the end have a row for each key: the fact that its value is compared with, and the function that compares.
Directories are compared by what each side (login host, compute node) must see and write there.
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
    DirectoryView,
    Host,
    ImportTrial,
    Mismatch,
    Mount,
    NodeCheck,
    Setting,
    Side,
    Unknown,
    require,
    settings,
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

    The file has the value ``says`` under ``key``, at ``where`` (``file:line``); the cluster has ``found``. ``why`` is
    the reason of an unknown verdict, ``hint`` how to fix a difference.
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
    """A key of runner files, the fact that its value is compared with (all facts by default), and the comparison.

    ``pattern`` and ``default`` are those of `settings`. ``compare`` gets a fact that is known. No claim is made where
    the fact is None, because nobody asked for it, nor where ``compare`` returns None. ``says`` is the value as shown.
    """

    pattern: str
    compare: Callable[[Setting, Any], str | None]
    fact: Callable[[ClusterFacts], Any] = lambda facts: facts
    says: Callable[[Setting], str] = str
    default: object = None

    def compared(self, setting: Setting, facts: ClusterFacts) -> str | None:
        """What the cluster has, None for no claim. Raises Mismatch, Unknown."""
        fact = require(self.fact(facts))
        return None if fact is None else self.compare(setting, fact)


def compare(file: RunnerFile, facts: ClusterFacts, fill: Fill) -> list[Claim]:
    """Every claim of the file, in the order of its lines. ``fill`` puts values for the placeholders of paths."""
    claims: list[Claim | None] = []
    for path in required_paths(file, fill, models_are_made=bool(facts.stand_ins)):
        claims.append(_claim(file, path.setting, path.text, partial(_compare_path, path, facts)))
    for row in (*(_SLURM if file.runner.scheduler.kind == "slurm" else ()), *_ROWS):
        for setting in settings(file, row.pattern, row.default):
            claims.append(_claim(file, setting, row.says(setting), partial(row.compared, setting, facts)))
    return sorted(filter(None, claims), key=lambda claim: int(claim.where.rpartition(":")[2]))


def _claim(file: RunnerFile, setting: Setting, says: str, compared: Callable[[], str | None]) -> Claim | None:
    claim = Claim(setting.dotted, file.location(*setting.keys), says, "agree")
    try:
        found = compared()
    except Mismatch as mismatch:
        return replace(claim, verdict="differ", found=mismatch.found, hint=mismatch.hint)
    except Unknown as unknown:
        return replace(claim, verdict="unknown", why=unknown.why, hint=unknown.hint)
    return None if found is None else replace(claim, found=found)


@dataclass(frozen=True)
class RequiredPath:
    """A directory that a ``setting`` requires, or candidates of which one must exist. ``text`` is the setting as shown.

    ``seen_by`` are the sides that must see it, ``written_by`` those that must be able to write it. The launcher makes a
    ``creatable`` one where it is missing. ``storage`` is the file's entry for the file system below it; ``mounted``
    says that the directory is that file system's mount point, so that its kind is compared.
    """

    setting: Setting
    text: str
    paths: tuple[str, ...]
    seen_by: tuple[Side, ...]
    written_by: tuple[Side, ...] = ()
    creatable: bool = False
    storage: Storage | None = None
    mounted: bool = False


def required_paths(file: RunnerFile, fill: Fill, *, models_are_made: bool = False) -> Iterator[RequiredPath]:
    """Every directory that the file names, in its order of tables.

    With ``models_are_made`` runs make a checkpoint that is missing.
    """
    for setting in settings(file, "storage.[]"):
        storage: Storage = setting.value
        yield RequiredPath(setting, storage.path, (storage.path,), storage.seen_by, storage=storage, mounted=True)
    importer: tuple[Side, ...] = (file.runner.images.import_on,)
    for pattern, seen_by, written_by in (
        # The login host decides whether an image exists, hence sees what a compute node imported.
        ("images.directory", _BOTH, importer),
        ("images.temporary", importer, importer),
        ("images.rules.[].directory", _BOTH, importer),
        ("checkout.directory", _BOTH, _BOTH),
        ("checkout.cache", ("login",), ("login",)),
        ("workspace.shared", _BOTH, ("login",)),
    ):
        for setting in settings(file, pattern):
            path = fill(setting.value)
            yield RequiredPath(setting, setting.value, (path,), seen_by, written_by, True, file.storage_of(path))
    for setting in settings(file, "models.[].path"):
        model, value = setting.table, setting.value
        candidates = [path for path in ([value] if isinstance(value, str) else value) if not path.startswith("hf:")]
        if candidates:
            # {model} differs between benchmarks, so the directory above it is compared.
            paths = tuple(fill(path.partition("{model}")[0]).rstrip("/") or "/" for path in candidates)
            creatable = (model.stage and model.source is not None) or models_are_made
            below = file.storage_of(paths[0])
            seen_by = below.seen_by if below is not None else _BOTH
            written_by = ("login",) if creatable and "login" in seen_by else ()
            yield RequiredPath(setting, " or ".join(candidates), paths, seen_by, written_by, creatable, below)


def _compare_path(required: RequiredPath, facts: ClusterFacts) -> str:
    """What both sides see. Each side that must see and write the directory has to. Raises Mismatch, Unknown."""
    good, unknown, mismatches = list[str](), list[str](), list[Mismatch]()
    for side in _BOTH:
        must_see = side in required.seen_by
        try:
            host = require(facts.side(side))
            path, view = _candidate(host, required.paths)
            _check_directory(required, side, path, view, facts.slurm.user)
            good += [f"{side} ({host.name}): {_description(path, view)}"] if must_see else []
        except Unknown as reason:
            unknown += [f"{side}: {reason}"] if must_see else []
        except Mismatch as mismatch:
            mismatches.append(Mismatch(f"{side} ({host.name}): {mismatch.found}", mismatch.hint))
    if mismatches:
        raise Mismatch("; ".join(mismatch.found for mismatch in mismatches), mismatches[0].hint)
    if unknown:
        raise Unknown("; ".join([*unknown, *good]))
    return "; ".join(good)


def _candidate(host: Host, paths: Sequence[str]) -> tuple[str, DirectoryView]:
    """The first path that exists; where none does, the first one that the host was asked about."""
    views = {path: host.directory(path) for path in paths}
    seen = [(path, view) for path, view in views.items() if isinstance(view, DirectoryView)]
    if not seen:
        require(views[paths[0]])
    return next(((path, view) for path, view in seen if view.is_at(path)), seen[0])


def _check_directory(required: RequiredPath, side: Side, path: str, view: DirectoryView, user: str) -> None:
    """Raises Mismatch for the first problem of a directory on one side."""
    exists, mount, write_error = view.is_at(path), view.mount, view.write_error
    must_write = side in required.written_by
    kind = required.storage.kind if required.storage is not None else ""
    if side not in required.seen_by:
        if required.mounted and kind in ("lustre", "nfs") and exists and isinstance(mount, Mount) and mount.network:
            raise Mismatch(f"sees it too: {mount}", "add the side to seen-by, or say which part of it is not shared")
        return
    if write_error.endswith("is not a directory"):
        raise Mismatch(write_error, "name a directory")
    if exists and not view.readable:
        raise Mismatch(f"{user} cannot list {path}", "chmod or chgrp it for the runner's user, or name another")
    if exists and must_write and write_error:
        raise Mismatch(f"{user} cannot write {path}: {write_error}", "give it to the runner's user, or name another")
    missing = f"{path} is not there; the nearest directory above it is {view.existing}"
    if not exists and not required.creatable:
        hint = "correct the path, mount or stage what belongs there, or correct `seen-by` of its storage"
        raise Mismatch(missing, hint)
    if not exists and must_write and write_error:
        raise Mismatch(f"{missing}, where {user} cannot make it: {write_error}", "have it made for the runner's user")
    if must_write and view.free is not None and view.free < ROOM << 20:
        found = f"{view.free >> 20} MiB left in {view.existing}, and at least {ROOM} are needed"
        raise Mismatch(found, "make room, or name another directory")
    if required.mounted and isinstance(mount, Mount) and kind not in mount.kinds:
        raise Mismatch(f"not {kind}: {mount}", f"kind: {' or '.join(mount.kinds)}")
    if side == "compute" and len(required.seen_by) == 2 and kind != "node-local" and view.shared is False:
        found = f"what the login host writes into {view.existing} is not seen there: it is another {view.existing}"
        raise Mismatch(found, "name a directory on a shared file system, or say `kind: node-local` of its storage")


def _description(path: str, view: DirectoryView) -> str:
    parts = [] if view.is_at(path) else [f"will be made below {view.existing}"]
    if isinstance(view.mount, Mount):
        parts.append(f"{view.mount.type} from {view.mount.source}")
    if view.free is not None:
        parts.append(f"{view.free / 1024**3:.0f} GiB free")
    parts += ["shared with the login host"] if view.shared else []
    return ", ".join([*parts, "read-only for us" if view.write_error else "writable"])


def _compare_importer(setting: Setting, facts: ClusterFacts) -> str | None:
    if facts.stand_ins:
        return None  # images are made by a stand-in, wherever enroot is
    other: Side = "compute" if setting.value == "login" else "login"
    host, elsewhere = require(facts.side(setting.value)), facts.side(other)
    if isinstance(host.enroot, str):
        return f"enroot {host.enroot} on {host.name}"
    if isinstance(elsewhere, Host) and isinstance(elsewhere.enroot, str):
        raise Mismatch(str(host.enroot), f"import-on: {other}, where enroot is")
    raise Mismatch(str(host.enroot), "install enroot, or put it on the runner's PATH")


def _compare_import(setting: Setting, trial: ImportTrial) -> str:
    if not trial.imported:
        raise Mismatch(" ".join(trial.say.split()), trial.fix or "as it says")
    return trial.say


def _compare_locks(setting: Setting, probed: LockProbe) -> str:
    skew = "" if probed.clocks < 5 else f"; the clocks differ by {probed.clocks:g} s"
    found = f"{probed.where}: flock {probed.flock}, owner file {probed.owner_file}{skew}"
    if not probed.one_at_a_time:
        hint = "images may be imported twice at once; what is published is whole all the same (docs/guides/images.md)"
        raise Mismatch(found, hint)
    return found


def _compare_node_check(setting: Setting, check: NodeCheck, hint: str) -> str:
    if ", though the runner file" in check.result:  # locks hold, and the storage has `locks: local`
        raise Mismatch(check.result, "take `locks: local` out of its `storage`")
    if check.failure:
        raise Mismatch(check.failure, hint)
    if not check.result:
        raise Unknown("the node did not come to it")
    return f"looked at as jobs do: {check.result.replace('_', ' ')}"


def _compare_checkpoints(setting: Setting, facts: ClusterFacts) -> str | None:
    """One of several candidates has to be whole."""
    paths = [setting.value] if isinstance(setting.value, str) else setting.value
    outcomes = [outcome for path in paths if (outcome := facts.node_check(path)) is not None]
    if not outcomes:
        return None
    checks = [outcome for outcome in outcomes if not isinstance(outcome, Unknown)]
    passed = next((check for check in checks if not check.failure), None)
    creatable = bool(facts.stand_ins) or (setting.table.stage and setting.table.source is not None)
    missing = "the checkpoint is not on"
    if creatable and passed is None and all(check.failure.startswith(missing) for check in checks):
        return None  # a run puts it there
    check = passed or (checks[0] if checks else require(outcomes[0]))
    return _compare_node_check(setting, check, "stage it whole, or correct the path")


_compare_clock = partial(_compare_node_check, hint="have chrony or ntpd set the clocks of both")
_NO_LOCKS = (
    "images may be imported twice at once, and every job of such a node ends; not with `locks: local` in `storage`"
)
_compare_node_locks = partial(_compare_node_check, hint=_NO_LOCKS)


def _compare_repository(setting: Setting, facts: ClusterFacts) -> str:
    refs = require(facts.refs.get(str(setting.keys[-1]), Unknown("not asked")))
    return f"answers, {count_of(len(refs), 'ref')}"


def _compare_ref(setting: Setting, facts: ClusterFacts) -> str | None:
    ref, sha, refs = setting.value, setting.table.sha, facts.refs.get(setting.table.repository)
    if refs is None or isinstance(refs, Unknown) or re.fullmatch(r"[0-9a-f]{40}", ref):
        return None  # `repositories.*` has its own claim; `git ls-remote` lists no commits
    tag, branch = refs.get(f"refs/tags/{ref}"), refs.get(f"refs/heads/{ref}")
    if tag is None and branch is None:
        hint = suggest(ref, [name.split("/", 2)[-1] for name in refs], "`git ls-remote` lists what there is")
        raise Mismatch("the repository has no such tag or branch", hint)
    if tag is not None and sha not in (None, tag):
        raise Mismatch(f"the tag is {tag}, the lane's sha {sha}", f"sha: {tag}, if that is meant")
    if tag is None and sha not in (None, branch):
        return f"the branch has moved on to {branch}; the lane stays at its sha"
    return f"{'tag' if tag else 'branch'} at {tag or branch}"


_STAND_INS = Unknown("enroot, srtctl and the engine are stand-ins: nothing to ask about")
_SLURM: Sequence[Row] = (
    Row("scheduler.partition", scheduling.compare_partition, lambda facts: facts.slurm),
    Row("images.import-partition", scheduling.compare_partition, lambda facts: facts.slurm),
    Row("scheduler.account", scheduling.compare_account),
    Row("scheduler.time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("lanes.[].time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("adjust.[].time-limit", scheduling.compare_time_limit, lambda facts: facts.partition),
    Row("scheduler", scheduling.compare_job, says=lambda setting: "a job of one node"),
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
    Row("tools", lambda setting, fact: None, lambda facts: _STAND_INS if facts.stand_ins else None),
    Row("images.import-on", _compare_importer),
    Row("images.import-on", _compare_import, lambda facts: facts.imports, "enroot imports there ({})".format),
    Row("images.lock", _compare_locks, lambda facts: facts.locks, lambda setting: "holds between two processes"),
    Row("images.lock", _compare_node_locks, lambda facts: facts.node_check("locks"), lambda _: "holds with a node"),
    Row("node", _compare_clock, lambda facts: facts.node_check("clock"), lambda _: "a clock within 5 s of this host's"),
    Row("models.[].path", _compare_checkpoints, says="{} is whole on a node".format),
    Row("repositories.*", _compare_repository),
    Row("lanes.[].ref", _compare_ref),
)
"""Claims about enroot, locks and repositories."""


def notes(facts: ClusterFacts) -> list[str]:
    """Facts of this cluster that people should know, and that no setting of a runner file is about."""
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
    hosts = [h for h in (facts.login, facts.compute) if isinstance(h, Host) and isinstance(h.enroot, str)]
    if len({host.enroot for host in hosts}) > 1:
        notes.append(", ".join(f"enroot is {host.enroot} on {host.name}" for host in hosts))
    return notes
