"""A runner file compared with the facts of its cluster. Pure.

Two tables at the end have a row for each key: which fact speaks about it, and how its value is compared with that fact.
Directories have a table of their own, in `launcher.doctor.required_paths`, because a fact about one is what every side
must see and do there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.core.errors import closest
from launcher.doctor import required_paths, scheduling
from launcher.doctor.facts import Agree, ClusterFacts, Differ, Fact, Host, Outcome, Side, Unknown
from launcher.doctor.required_paths import Fill
from launcher.doctor.statements import Statement, dotted, statements
from launcher.image.probe import Probed
from launcher.runner.file import RunnerFile


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
    """A key of runner files, the fact that speaks about it, and how its value is compared with that fact.

    ``pattern`` is read by `statements`. A fact that is Unknown makes the claim unknown; where it is None, nothing was
    asked, and no claim is made. ``compare`` gets any other fact, and returns None for no claim, too. ``says`` is the
    value as people are shown it, ``default`` the value of a key that is not in its table.
    """

    pattern: str
    fact: Callable[[ClusterFacts], Any]
    compare: Callable[[Statement, Any], Outcome | None]
    says: Callable[[Statement, Any], str] = lambda statement, fact: _word(statement.value)
    default: object = None


def compare(file: RunnerFile, facts: ClusterFacts, fill: Fill) -> list[Claim]:
    """Every claim of the file, in the order of its lines. ``fill`` puts values for the placeholders of paths."""
    claims = list(_compared(_SLURM, file, facts)) if file.runner.scheduler.kind == "slurm" else []
    for statement, required in required_paths.required(file, fill, models_are_made=bool(facts.stand_ins)):
        claims.append(_claim(file, statement, required.says, required_paths.compare_path(required, facts)))
    claims += _compared(_ROWS, file, facts)
    return sorted(claims, key=lambda claim: int(claim.where.rpartition(":")[2]))


def _compared(rows: Sequence[Row], file: RunnerFile, facts: ClusterFacts) -> Iterator[Claim]:
    for row in rows:
        for statement in statements(file, row.pattern, row.default):
            fact = row.fact(facts)
            if fact is None:
                continue
            outcome = fact if isinstance(fact, Unknown) else row.compare(statement, fact)
            if outcome is not None:
                yield _claim(file, statement, row.says(statement, fact), outcome)


def _claim(file: RunnerFile, statement: Statement, says: str, outcome: Outcome) -> Claim:
    key, where = dotted(statement.keys), file.where(*statement.keys)
    if isinstance(outcome, Agree):
        return Claim(key, where, says, "agree", found=outcome.found)
    if isinstance(outcome, Differ):
        return Claim(key, where, says, "differ", found=outcome.found, hint=outcome.hint)
    return Claim(key, where, says, "unknown", why=outcome.why, hint=outcome.hint)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
    hint = "images may be imported twice at once; what is published is whole all the same (docs/images.md)"
    return Differ(found, hint)


def _compare_repository(statement: Statement, repositories: Mapping[str, Fact[Mapping[str, str]]]) -> Outcome:
    refs = repositories.get(str(statement.keys[-1]), Unknown("not asked"))
    return refs if isinstance(refs, Unknown) else Agree(f"answers, {len(refs)} refs")


def _compare_ref(statement: Statement, repositories: Mapping[str, Fact[Mapping[str, str]]]) -> Outcome | None:
    ref, sha, refs = statement.value, statement.table.sha, repositories.get(statement.table.repository)
    if refs is None or isinstance(refs, Unknown) or re.fullmatch(r"[0-9a-f]{40}", ref):
        return None  # the repository has its own line; a commit is in no list of refs
    tag, branch = refs.get(f"refs/tags/{ref}"), refs.get(f"refs/heads/{ref}")
    if tag is None and branch is None:
        near = closest(ref, [name.split("/", 2)[-1] for name in refs])
        hint = f"did you mean {near}?" if near else "`git ls-remote` lists what there is"
        return Differ("the repository has no such tag or branch", hint)
    if tag is not None and sha not in (None, tag):
        return Differ(f"the tag is {tag}, the lane's sha {sha}", f"sha: {tag}, if that is meant")
    if tag is None and sha not in (None, branch):
        return Agree(f"the branch has moved on to {branch}; the lane stays at its sha")
    return Agree(f"{'tag' if tag else 'branch'} at {tag or branch}")


def _everything(facts: ClusterFacts) -> ClusterFacts:
    return facts


def _stand_ins(statement: Statement, fact: object) -> Outcome:
    return Unknown("enroot, srtctl and the engine are stand-ins: nothing to ask about")


def _job(statement: Statement, fact: object) -> str:
    return "a job of one node"


def _option(statement: Statement, fact: object) -> str:
    return scheduling.directive(statement)


def _on_login(statement: Statement, fact: object) -> str:
    return f"{statement.value} on login"


def _between(statement: Statement, fact: Fact[Probed]) -> str:
    return "holds" if isinstance(fact, Unknown) else f"holds ({fact.where})"


_SLURM: Sequence[Row] = (
    Row("scheduler.partition", lambda facts: facts.slurm.partitions, scheduling.compare_partition),
    Row("images.import-partition", lambda facts: facts.slurm.partitions, scheduling.compare_partition),
    Row("scheduler.account", _everything, scheduling.compare_account),
    Row("scheduler.time-limit", lambda facts: facts.partition, scheduling.compare_time_limit),
    Row("lanes.[].time-limit", lambda facts: facts.partition, scheduling.compare_time_limit),
    Row("adjust.[].time-limit", lambda facts: facts.partition, scheduling.compare_time_limit),
    Row("scheduler", _everything, scheduling.compare_job, says=_job),
    *(
        Row(f"srtslurm.{key}", _everything, scheduling.compare_directive, default=default)
        for key, (default, _) in scheduling.DIRECTIVE_SWITCHES.items()
    ),
    Row(f"srtslurm.{scheduling.DIRECTIVES}.*", _everything, scheduling.compare_directive, says=_option),
    Row("node.gpus", scheduling.gpus, scheduling.compare_gpus),
    Row("node.arch", scheduling.architectures, scheduling.compare_architecture),
    Row("node.arch", lambda facts: facts.login, scheduling.compare_login_architecture, says=_on_login),
    Row("node.login-arch", lambda facts: facts.login, scheduling.compare_login_architecture, says=_on_login),
    Row("node.count", _everything, scheduling.compare_count),
    Row("exclude-nodes.[].node", _everything, scheduling.compare_excluded),
)
"""Claims about Slurm and its nodes."""

_ROWS: Sequence[Row] = (
    Row("tools", lambda facts: facts.stand_ins or None, _stand_ins),
    Row("images.import-on", _everything, _compare_importer),
    Row("images.lock", lambda facts: facts.locks, _compare_locks, says=_between),
    Row("images.lock", lambda facts: facts.locks_with_node, _compare_locks, says=_between),
    Row("repositories.*", lambda facts: facts.refs, _compare_repository),
    Row("lanes.[].ref", lambda facts: facts.refs, _compare_ref),
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
