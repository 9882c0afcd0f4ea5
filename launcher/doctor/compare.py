"""A runner file against what its cluster says: every claim that can be asked about, judged. Pure."""

from __future__ import annotations

import re

from launcher.core.suggest import closest
from launcher.doctor import required_paths, scheduling
from launcher.doctor.comparison import Claim, Claims
from launcher.doctor.facts import Host, Site, Unknown
from launcher.runner.file import RunnerFile


def compare(file: RunnerFile, site: Site, fill: required_paths.Fill) -> list[Claim]:
    """Every claim of the file, in the order of its lines. ``fill`` puts values for the placeholders of paths."""
    claims = Claims(file)
    if file.runner.scheduler.kind == "slurm":
        scheduling.judge(file, site, claims)
    for need in required_paths.needs(file, fill):
        required_paths.judge(need, site, claims)
    _enroot(file, site, claims)
    _locks(file, site, claims)
    _sources(file, site, fill, claims)
    return claims.sorted()


def _enroot(file: RunnerFile, site: Site, claims: Claims) -> None:
    keys, side = ("images", "import-on"), file.runner.images.import_on
    if file.runner.tools == "rehearsal":
        claims.unknown(("tools",), "rehearsal", "enroot, srtctl and the engine are stand-ins: nothing to ask about")
        return
    host = site.side(side)
    if isinstance(host, Unknown):
        claims.unknown(keys, side, host)
    elif isinstance(host.enroot, Unknown):
        other = site.compute if side == "login" else site.login
        there = isinstance(other, Host) and isinstance(other.enroot, str)
        elsewhere = "compute" if side == "login" else "login"
        hint = f"import-on: {elsewhere}, where enroot is" if there else "install enroot, or put it on the runner's PATH"
        claims.differ(keys, side, str(host.enroot), hint)
    else:
        claims.agree(keys, side, f"enroot {host.enroot} on {host.name}")


def _locks(file: RunnerFile, site: Site, claims: Claims) -> None:
    keys = ("images", "lock")
    for found in site.locks:
        says = "holds" if isinstance(found, Unknown) else f"holds ({found.where})"
        if isinstance(found, Unknown):
            claims.unknown(keys, says, found)
        elif found.one_at_a_time:
            claims.agree(keys, says, found.said)
        else:
            hint = "images may be imported twice at once; what is published is whole all the same (docs/images.md)"
            claims.differ(keys, says, found.said, hint)


def _sources(file: RunnerFile, site: Site, fill: required_paths.Fill, claims: Claims) -> None:
    runner = file.runner
    for name, url in runner.repositories.items():
        refs = site.refs.get(fill(url), Unknown("not asked"))
        if isinstance(refs, Unknown):
            claims.unknown(("repositories", name), url, refs)
        else:
            claims.agree(("repositories", name), url, f"answers, {len(refs)} refs")
    for i, lane in enumerate(runner.lanes):
        refs = site.refs.get(fill(runner.repositories[lane.repository]), Unknown(""))
        if isinstance(refs, Unknown) or re.fullmatch(r"[0-9a-f]{40}", lane.ref):
            continue  # the repository has its own line; a commit is in no list of refs
        keys, tag, branch = ("lanes", i, "ref"), refs.get(f"refs/tags/{lane.ref}"), refs.get(f"refs/heads/{lane.ref}")
        if tag is None and branch is None:
            near = closest(lane.ref, [ref.split("/", 2)[-1] for ref in refs])
            hint = f"did you mean {near}?" if near else "`git ls-remote` lists what there is"
            claims.differ(keys, lane.ref, "the repository has no such tag or branch", hint)
        elif tag is not None and lane.sha not in (None, tag):
            claims.differ(
                keys, lane.ref, f"the tag is {tag}, the lane's sha {lane.sha}", f"sha: {tag}, if that is meant"
            )
        elif tag is None and lane.sha not in (None, branch):
            claims.agree(keys, lane.ref, f"the branch has moved on to {branch}; the lane stays at its sha")
        else:
            claims.agree(keys, lane.ref, f"{'tag' if tag else 'branch'} at {tag or branch}")


def notes(site: Site) -> list[str]:
    """What the file does not claim and a person should know of this cluster."""
    cluster = site.cluster
    if isinstance(cluster.config, Unknown):
        return []
    config = cluster.config
    said = []
    if cluster.accounting and "job_comment" not in config.get("AccountingStoreFlags", ""):
        said.append(
            "AccountingStoreFlags has no job_comment: a job that was lost is found by its comment only as long as the "
            f"controller keeps it (MinJobAge {config.get('MinJobAge', 'unknown')}); accounting will not know it"
        )
    if cluster.accounting is False:
        said.append(
            "no accounting: how a job ended is known only from the controller, for MinJobAge, and its exit marker"
        )
    age = re.match(r"\d+", config.get("MinJobAge", ""))
    if age and int(age[0]) < 60:
        said.append(f"MinJobAge is {age[0]} s: a finished job leaves the controller before the launcher may ask again")
    if config.get("PreemptMode", "OFF") not in ("OFF", "(null)"):
        said.append(f"PreemptMode is {config['PreemptMode']}: jobs may be ended for others")
    if config.get("ConstrainRAMSpace") == "yes":
        said.append(
            "ConstrainRAMSpace is on: without --mem=0 or --exclusive an engine may be killed at its memory limit"
        )
    there = [h for h in (site.login, site.compute) if isinstance(h, Host) and isinstance(h.enroot, str)]
    if len({host.enroot for host in there}) > 1:
        said.append(", ".join(f"enroot is {host.enroot} on {host.name}" for host in there))
    return said
