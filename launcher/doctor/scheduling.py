"""Slurm and its nodes: the test submissions to ask about, and a runner file's values against the answers. Pure.

Each ``compare_…`` takes one statement of the file and the fact that speaks about it; `launcher.doctor.comparison` has
the table of which belongs to which key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.core.slurm_notation import limit_seconds, node_names
from launcher.core.yaml_source import nearest
from launcher.doctor.facts import (
    Agree,
    Cluster,
    Differ,
    Fact,
    Host,
    Node,
    Outcome,
    Partition,
    Site,
    Tried,
    Unknown,
    gpu_types,
)
from launcher.doctor.statements import Statement, statements
from launcher.runner.file import RunnerFile

SWITCHES: Mapping[str, tuple[bool, str]] = {
    "use_gpus_per_node_directive": (True, "--gpus-per-node=1"),
    "use_segment_sbatch_directive": (True, "--segment=1"),
    "use_exclusive_sbatch_directive": (False, "--exclusive"),
}
"""Keys of srtslurm.yaml that switch a directive, with srtctl's default (job_script_minimal.j2 of srt-slurm), and the
smallest job that has it."""

DIRECTIVES = "default_sbatch_directives"
"""Key of srtslurm.yaml with more directives for every job: option → value, empty for an option without one."""


def base(partition: str | None, account: str | None, time_limit: str = "1") -> list[str]:
    """sbatch's options for the smallest job of a partition and an account."""
    options = ["--nodes=1", "--ntasks=1", f"--time={time_limit}"]
    options += [f"--partition={partition}"] if partition else []
    return options + ([f"--account={account}"] if account else [])


def gpu_forms(nodes: Fact[tuple[Node, ...]], count: int = 1) -> list[str]:
    """The ways to ask for GPUs on these nodes: by node, by GRES, by GRES with its type."""
    types = [] if isinstance(nodes, Unknown) else gpu_types(nodes)
    return [f"--gpus-per-node={count}", f"--gres=gpu:{count}", *(f"--gres=gpu:{t}:{count}" for t in types)]


def questions(file: RunnerFile, cluster: Cluster) -> dict[str, list[str]]:
    """The jobs to ask Slurm about, by name: the smallest one, that with each directive, and the whole one."""
    scheduler = file.runner.scheduler
    small = base(scheduler.partition, scheduler.account, scheduler.time_limit)
    asked = {"job": small}
    whole = list(small)
    for key, (default, option) in SWITCHES.items():
        if file.runner.srtslurm.get(key, default):
            asked[key] = [*small, option]
            whole.append(f"--gpus-per-node={file.runner.node.gpus}" if "gpus" in key else option)
    for stated in statements(file, f"srtslurm.{DIRECTIVES}.*"):
        option = directive(stated)
        asked[f"{DIRECTIVES}.{stated.keys[-1]}"] = [*small, option]
        whole.append(option)
    partition = cluster.partition(scheduler.partition)
    if partition is not None:
        for form in gpu_forms(cluster.nodes_of(partition.name)):
            asked[form] = [*small, form]
    return {**asked, "whole": whole}


def directive(stated: Statement) -> str:
    """A directive of `DIRECTIVES` as sbatch's option."""
    return f"--{stated.keys[-1]}={stated.value}" if stated.value else f"--{stated.keys[-1]}"


def compare_partition(stated: Statement, partitions: tuple[Partition, ...]) -> Outcome:
    found = next((p for p in partitions if p.name == stated.value), None)
    if found is None:
        known = [p.name for p in partitions]
        near = nearest(stated.value, known)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
        return Differ("Slurm shows no such partition", hint)
    if found.state != "UP":
        return Differ(f"the partition is {found.state}", "wait, or ask for `scontrol update … State=UP`")
    kind = ", the default one" if found.default else ", hidden" if found.hidden else ""
    return Agree(f"up, {found.nodes} nodes{kind}")


def compare_account(stated: Statement, site: Site) -> Outcome:
    cluster, account, job = site.cluster, stated.value, site.job
    enforced = cluster.setting("AccountingStorageEnforce")
    enforces = isinstance(enforced, str) and "associations" in enforced
    known, accounts = cluster.associations, ", ".join(cluster.accounts)
    if cluster.accounting is False:
        return Unknown("this Slurm keeps no accounting, and takes every account")
    if job.accepted is False and "account" in job.said.lower():
        # Before the associations: a partition may refuse an account (AllowAccounts) that the user may use elsewhere.
        hint = f"{cluster.user} may use {accounts}" if accounts else "`sacctmgr add user … account=…`"
        return Differ(f"sbatch --test-only: {job.said}", hint)
    of_partition = ("", stated.table.partition)
    if not isinstance(known, Unknown) and any(a.account == account and a.partition in of_partition for a in known):
        return Agree(f"{cluster.user} may use it")
    if job.accepted and enforces:
        return Agree("sbatch --test-only takes it, and associations are enforced")
    if isinstance(known, Unknown):
        return known
    if enforces:
        hint = f"one of {accounts}" if accounts else "`sacctmgr add user … account=…`"
        return Differ(f"{cluster.user} has no association with it", hint)
    why = f"{cluster.user} has no association with it, but this Slurm takes every account"
    return Unknown(f"{why} (AccountingStorageEnforce={enforced})")


def compare_time_limit(stated: Statement, partition: Partition) -> Outcome:
    # By MaxTime itself: with EnforcePartLimits=NO sbatch takes a job that is too long, and never starts it (22.05).
    if partition.max_time is None:
        return Agree(f"{partition.name} has no MaxTime")
    limit, most = limit_seconds(stated.value), duration(partition.max_time)
    found = f"MaxTime of {partition.name} is {most}"
    if limit is None or limit > partition.max_time:
        return Differ(found, f'at most "{most}", or another partition')
    return Agree(found)


def duration(limit: float) -> str:
    days, rest = divmod(int(limit), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def compare_job(stated: Statement, site: Site) -> Outcome | None:
    """What `sbatch --test-only` says of the smallest job, and of the whole one."""
    job, whole = site.job, site.tried.get("whole")
    if job.accepted is None:
        return Unknown(job.said)
    if not job.accepted:
        found = f"sbatch --test-only {' '.join(job.options)}: {job.said}"
        return Differ(found, "see partition, account and limits below")
    if whole is None:
        return None
    found = f"sbatch --test-only {' '.join(whole.options)}"
    if whole.accepted:
        return Agree(f"{found}: taken")
    if any(not t.accepted for name, t in site.tried.items() if name != "whole" and not name.startswith("--")):
        return None  # the directive that is refused by itself has its own line
    return Differ(f"{found}: {whole.said}", "has a node as many GPUs, and all of this at once?")


def compare_directive(stated: Statement, site: Site) -> Outcome | None:
    key, tried = stated.keys[-1], site.tried.get(".".join(map(str, stated.keys[1:])))
    if tried is None or not site.job.accepted:
        return None  # not asked, or the smallest job is refused, which has its own line
    option = tried.options[-1]
    if tried.accepted is None:
        return Unknown(tried.said)
    if tried.accepted:
        return Agree(f"sbatch --test-only takes {option}")
    if key in ("use_gpus_per_node_directive", "gres"):
        hint = _gpu_hint(site.tried)
    else:
        hint = f"{key}: false" if key in SWITCHES else "what does `sbatch --help` of this release know?"
    return Differ(f"sbatch --test-only {option}: {tried.said}", hint)


def _gpu_hint(tried: Mapping[str, Tried]) -> str:
    """The form of a GPU request that works here."""
    form = next((form for form, t in tried.items() if t.accepted and form.startswith("--g")), None)
    if form is None:
        return "does a node of this partition have GPUs as Slurm sees it (`scontrol show node`, Gres)?"
    name, _, value = form.removeprefix("--").partition("=")
    if name == "gpus-per-node":
        return "use_gpus_per_node_directive: true"
    kind = value.rpartition(":")[0]
    return f'use_gpus_per_node_directive: false, {DIRECTIVES}: {{gres: "{kind}:<GPUs of a node>"}}'


def gpus(site: Site) -> Fact[tuple[str, Counter[int]]]:
    """Where the number of GPUs is known from, and on how many nodes each number was found.

    By Slurm's GRES; in a partition without any by the devices of the node that was looked at.
    """
    nodes, compute = site.nodes, site.compute
    if isinstance(nodes, Unknown):
        return nodes
    counts = Counter(node.gpus for node in nodes)
    if any(counts):
        each = ", ".join(f"{gpus} on {count} nodes" for gpus, count in counts.most_common())
        types = ", ".join(gpu_types(nodes))
        return f"GRES: {each}" + (f" ({types})" if types else ""), counts
    if isinstance(compute, Unknown) or isinstance(compute.devices, Unknown) or compute.devices == 0:
        return Unknown("Slurm knows of no GPUs in this partition (no Gres), and no /dev/nvidia was seen")
    found = f"no GRES; {compute.devices} /dev/nvidia devices on the node that was looked at"
    return found, Counter({compute.devices: 1})


def compare_gpus(stated: Statement, fact: tuple[str, Counter[int]]) -> Outcome:
    found, counts = fact
    if stated.value not in counts:
        return Differ(found, f"gpus: {counts.most_common(1)[0][0]}")
    if len(counts) > 1:
        return Unknown(f"the partition is mixed; {found}", "name a partition of one kind of node")
    return Agree(found)


def architectures(site: Site) -> Fact[dict[str, str]]:
    """The architectures of the compute nodes, each with who says so."""
    nodes, compute = site.nodes, site.compute
    found: dict[str, str] = {}
    if not isinstance(nodes, Unknown):
        counts = Counter(n.arch for n in nodes if n.arch)
        found = {arch: f"{arch} on {count} nodes by Slurm" for arch, count in counts.most_common()}
    if isinstance(compute, Host) and isinstance(compute.arch, str):
        by_slurm = [found[compute.arch]] if compute.arch in found else []
        found[compute.arch] = ", ".join([*by_slurm, f"{compute.name} says {compute.arch}"])
    elif isinstance(nodes, Unknown):
        return nodes
    elif not found:
        return compute if isinstance(compute, Unknown) else Unknown(str(compute.arch))
    return found


def compare_architecture(stated: Statement, found: dict[str, str]) -> Outcome:
    text = "; ".join(found.values())
    if stated.value not in found:
        return Differ(text, f"arch: {next(iter(found))}")
    if len(found) > 1:
        return Unknown(f"the partition is mixed: {text}", "name a partition of one architecture")
    return Agree(text)


def compare_login_architecture(stated: Statement, login: Host) -> Outcome | None:
    if stated.keys[-1] == "arch" and stated.table.login_arch is not None:
        return None  # the file gives the login node another one
    if isinstance(login.arch, Unknown):
        return login.arch
    found = f"{login.name} is {login.arch}"
    return Agree(found) if login.arch == stated.value else Differ(found, f"login-arch: {login.arch}")


def compare_count(stated: Statement, site: Site) -> Outcome:
    partition, nodes = site.partition, site.nodes
    if isinstance(partition, Unknown):
        return partition
    if partition.nodes != stated.value:
        return Differ(f"{partition.name} has {partition.nodes} nodes", f"count: {partition.nodes}")
    bad = [] if isinstance(nodes, Unknown) else [f"{n.name} {n.state}" for n in nodes if not n.usable]
    out = f"; out of use now: {', '.join(bad[:5])}{' …' if len(bad) > 5 else ''}" if bad else ""
    return Agree(f"{partition.name} has as many{out}")


def compare_excluded(stated: Statement, site: Site) -> Outcome:
    nodes, partition = site.cluster.nodes, site.partition
    if isinstance(nodes, Unknown):
        return nodes
    by_name = {node.name: node for node in nodes}
    names = node_names(stated.value)
    if missing := [name for name in names if name not in by_name]:
        near = nearest(missing[0], by_name)
        hint = f"did you mean {near}? sbatch refuses a job that excludes an unknown node" if near else "remove it"
        return Differ(f"Slurm knows no node {', '.join(missing)}", hint)
    if isinstance(partition, Partition):
        outside = [name for name in names if partition.name not in by_name[name].partitions]
        if outside:
            return Differ(f"{', '.join(outside)} is not in {partition.name}", "remove the rule")
    return Agree(", ".join(f"{name} is {by_name[name].state}" for name in names))
