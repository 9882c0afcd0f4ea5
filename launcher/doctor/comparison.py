"""A runner file against what its cluster says: one row for each key, one loop, one claim for each value. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core.yaml_source import nearest
from launcher.doctor import required_paths, scheduling
from launcher.doctor.facts import Agree, Differ, Fact, Host, Locks, Outcome, Side, Site, Unknown
from launcher.doctor.required_paths import Fill
from launcher.doctor.statements import Statement, dotted, statements
from launcher.runner.file import RunnerFile


@dataclass(frozen=True)
class Claim:
    """A value of a runner file, and what became of it.

    ``key`` and ``where`` (``file:line``) say where the file has it, ``says`` is the file's word, ``found`` the
    cluster's; ``why`` says what is not known, ``hint`` how to fix it.
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
    """A key of runner files, the fact that speaks about it, and how its value is compared with that fact.

    ``pattern`` is read by `statements`. No claim is made where ``fact`` is None: nothing was asked about it; where it
    is Unknown, so is the claim. ``compare`` gets what the fact is otherwise, and may return None for no claim, too.
    ``says`` is the value as a person is shown it.
    """

    pattern: str
    fact: Callable[[Statement, RunnerFile, Site], Any]
    compare: Callable[[Statement, Any], Outcome | None]
    says: Callable[[Statement, Any], str] = lambda stated, fact: _word(stated.value)
    default: object = None


def compare(file: RunnerFile, site: Site, fill: Fill) -> list[Claim]:
    """Every claim of the file, in the order of its lines. ``fill`` puts values for the placeholders of paths."""
    claims = list(_compared(_SLURM, file, site)) if file.runner.scheduler.kind == "slurm" else []
    for stated, need in required_paths.needs(file, fill, models_are_made=bool(site.stand_ins)):
        claims.append(_claim(file, stated, need.says, required_paths.compare_path(need, site)))
    claims += _compared(_ROWS, file, site)
    return sorted(claims, key=lambda claim: int(claim.where.rpartition(":")[2]))


def _compared(rows: Sequence[Row], file: RunnerFile, site: Site) -> Iterator[Claim]:
    for row in rows:
        for stated in statements(file, row.pattern, row.default):
            fact = row.fact(stated, file, site)
            if fact is None:
                continue
            outcome = fact if isinstance(fact, Unknown) else row.compare(stated, fact)
            if outcome is not None:
                yield _claim(file, stated, row.says(stated, fact), outcome)


def _claim(file: RunnerFile, stated: Statement, says: str, outcome: Outcome) -> Claim:
    key, where = dotted(stated.keys), file.where(*stated.keys)
    if isinstance(outcome, Agree):
        return Claim(key, where, says, "agree", found=outcome.found)
    if isinstance(outcome, Differ):
        return Claim(key, where, says, "differ", found=outcome.found, hint=outcome.hint)
    return Claim(key, where, says, "unknown", why=outcome.why, hint=outcome.hint)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _importer(stated: Statement, file: RunnerFile, site: Site) -> Fact[tuple[Host, Side | None]] | None:
    """The host that imports images, and the other side when that one has enroot. None when enroot is a stand-in."""
    if site.stand_ins:
        return None
    side: Side = stated.value
    other: Side = "compute" if side == "login" else "login"
    host, elsewhere = site.side(side), site.side(other)
    if isinstance(host, Unknown):
        return host
    return host, other if isinstance(elsewhere, Host) and isinstance(elsewhere.enroot, str) else None


def _compare_importer(stated: Statement, fact: tuple[Host, Side | None]) -> Outcome:
    host, elsewhere = fact
    if isinstance(host.enroot, str):
        return Agree(f"enroot {host.enroot} on {host.name}")
    instead = f"import-on: {elsewhere}, where enroot is" if elsewhere else ""
    return Differ(str(host.enroot), instead or "install enroot, or put it on the runner's PATH")


def _lock(number: int) -> Row:
    """A row for one of the pairs of processes between which locks were tried."""
    return Row(
        "images.lock",
        lambda stated, file, site: site.locks[number] if number < len(site.locks) else None,
        _compare_lock,
        says=lambda stated, fact: f"holds ({fact.where})" if isinstance(fact, Locks) else "holds",
    )


def _compare_lock(stated: Statement, locks: Locks) -> Outcome:
    if locks.one_at_a_time:
        return Agree(locks.said)
    hint = "images may be imported twice at once; what is published is whole all the same (docs/images.md)"
    return Differ(locks.said, hint)


def _compare_ref(stated: Statement, refs: Mapping[str, str]) -> Outcome | None:
    ref, sha = stated.value, stated.table.sha
    tag, branch = refs.get(f"refs/tags/{ref}"), refs.get(f"refs/heads/{ref}")
    if re.fullmatch(r"[0-9a-f]{40}", ref):
        return None  # a commit is in no list of refs
    if tag is None and branch is None:
        near = nearest(ref, [name.split("/", 2)[-1] for name in refs])
        hint = f"did you mean {near}?" if near else "`git ls-remote` lists what there is"
        return Differ("the repository has no such tag or branch", hint)
    if tag is not None and sha not in (None, tag):
        return Differ(f"the tag is {tag}, the lane's sha {sha}", f"sha: {tag}, if that is meant")
    if tag is None and sha not in (None, branch):
        return Agree(f"the branch has moved on to {branch}; the lane stays at its sha")
    return Agree(f"{'tag' if tag else 'branch'} at {tag or branch}")


def _refs_of_lane(stated: Statement, file: RunnerFile, site: Site) -> Mapping[str, str] | None:
    refs = site.refs.get(file.runner.repositories[stated.table.repository])
    return None if isinstance(refs, Unknown) else refs  # the repository has its own line


def _partitions(stated: Statement, file: RunnerFile, site: Site) -> object:
    return site.cluster.partitions


def _partition(stated: Statement, file: RunnerFile, site: Site) -> object:
    return scheduling.partition_of(file, site.cluster)


def _count(stated: Statement, file: RunnerFile, site: Site) -> object:
    partition = scheduling.partition_of(file, site.cluster)
    return partition if isinstance(partition, Unknown) else (partition, scheduling.nodes_of(file, site.cluster))


def _excluded(stated: Statement, file: RunnerFile, site: Site) -> object:
    nodes = site.cluster.nodes
    return nodes if isinstance(nodes, Unknown) else (nodes, scheduling.partition_of(file, site.cluster))


def _directive(stated: Statement, file: RunnerFile, site: Site) -> object:
    return scheduling.directive_answers(stated, site)


def _on_login(stated: Statement, fact: object) -> str:
    return f"{stated.value} on login"


_SLURM: Sequence[Row] = (
    Row("scheduler.partition", _partitions, scheduling.compare_partition),
    Row("images.import-partition", _partitions, scheduling.compare_partition),
    Row("scheduler.account", lambda stated, file, site: site, scheduling.compare_account),
    Row("scheduler.time-limit", _partition, scheduling.compare_time_limit),
    Row("lanes.[].time-limit", _partition, scheduling.compare_time_limit),
    Row("adjust.[].time-limit", _partition, scheduling.compare_time_limit),
    Row(
        "scheduler",
        lambda stated, file, site: site.tried,
        scheduling.compare_job,
        says=lambda stated, fact: "a job of one node",
    ),
    *(
        Row(f"srtslurm.{key}", _directive, scheduling.compare_directive, default=default)
        for key, (default, _) in scheduling.SWITCHES.items()
    ),
    Row(
        f"srtslurm.{scheduling.DIRECTIVES}.*",
        _directive,
        scheduling.compare_directive,
        says=lambda stated, fact: scheduling.directive(stated),
    ),
    Row(
        "node.gpus",
        lambda stated, file, site: scheduling.gpus_of(scheduling.nodes_of(file, site.cluster), site.compute),
        scheduling.compare_gpus,
    ),
    Row(
        "node.arch",
        lambda stated, file, site: scheduling.architectures(scheduling.nodes_of(file, site.cluster), site.compute),
        scheduling.compare_architecture,
    ),
    Row(
        "node.arch",
        lambda stated, file, site: None if stated.table.login_arch else site.login,
        scheduling.compare_login_architecture,
        says=_on_login,
    ),
    Row(
        "node.login-arch",
        lambda stated, file, site: site.login,
        scheduling.compare_login_architecture,
        says=_on_login,
    ),
    Row("node.count", _count, scheduling.compare_count),
    Row("exclude-nodes.[].node", _excluded, scheduling.compare_excluded),
)
"""Claims about Slurm and its nodes."""

_ROWS: Sequence[Row] = (
    Row(
        "tools",
        lambda stated, file, site: site.stand_ins or None,
        lambda stated, fact: Unknown("enroot, srtctl and the engine are stand-ins: nothing to ask about"),
    ),
    Row("images.import-on", _importer, _compare_importer),
    _lock(0),
    _lock(1),
    Row(
        "repositories.*",
        lambda stated, file, site: site.refs.get(stated.value, Unknown("not asked")),
        lambda stated, refs: Agree(f"answers, {len(refs)} refs"),
    ),
    Row("lanes.[].ref", _refs_of_lane, _compare_ref),
)
"""Claims about enroot, locks and repositories."""


def notes(site: Site) -> list[str]:
    """What the file does not claim and a person should know of this cluster."""
    cluster = site.cluster
    if isinstance(cluster.config, Unknown):
        return []
    config, notes = cluster.config, []
    if cluster.accounting and "job_comment" not in config.get("AccountingStoreFlags", ""):
        notes.append(
            "AccountingStoreFlags has no job_comment: a job that was lost is found by its comment only as long as the "
            f"controller keeps it (MinJobAge {config.get('MinJobAge', 'unknown')}); accounting will not know it"
        )
    if cluster.accounting is False:
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
    there = [h for h in (site.login, site.compute) if isinstance(h, Host) and isinstance(h.enroot, str)]
    if len({host.enroot for host in there}) > 1:
        notes.append(", ".join(f"enroot is {host.enroot} on {host.name}" for host in there))
    return notes
