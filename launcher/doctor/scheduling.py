"""What a runner file claims about Slurm and the nodes: the questions to put, and what the answers say of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from launcher.core.slurm_notation import node_names, seconds
from launcher.core.suggest import closest
from launcher.core.yaml_source import Key
from launcher.doctor.comparison import Claims
from launcher.doctor.facts import Cluster, Fact, Host, Node, Site, Tried, Unknown
from launcher.runner.file import RunnerFile

SWITCHES: Mapping[str, tuple[bool, str]] = {
    "use_gpus_per_node_directive": (True, "--gpus-per-node=1"),
    "use_segment_sbatch_directive": (True, "--segment=1"),
    "use_exclusive_sbatch_directive": (False, "--exclusive"),
}
"""Keys of srtslurm.yaml that switch a directive, with srtctl's default (job_script_minimal.j2 of srt-slurm), and the
smallest job that has it."""

_DIRECTIVES = "default_sbatch_directives"


def base(partition: str | None, account: str | None, time_limit: str = "1") -> list[str]:
    """sbatch's options for the smallest job of a partition and an account."""
    options = ["--nodes=1", "--ntasks=1", f"--time={time_limit}"]
    options += [f"--partition={partition}"] if partition else []
    return options + ([f"--account={account}"] if account else [])


def gpu_forms(nodes: Fact[tuple[Node, ...]], count: int = 1) -> list[str]:
    """The ways to ask for GPUs on these nodes: by node, by GRES, by GRES with its type."""
    known = () if isinstance(nodes, Unknown) else nodes
    types = dict.fromkeys(g.type for node in known for g in node.gres if g.name == "gpu" and g.type)
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
    for name, option in _directives(file).items():
        asked[f"{_DIRECTIVES}.{name}"] = [*small, option]
        whole.append(option)
    partition = cluster.partition(scheduler.partition)
    if partition is not None:
        for form in gpu_forms(cluster.nodes_of(partition.name)):
            asked[form] = [*small, form]
    return {**asked, "whole": whole}


def _directives(file: RunnerFile) -> dict[str, str]:
    said = file.runner.srtslurm.get(_DIRECTIVES)
    pairs = said.items() if isinstance(said, Mapping) else ()
    return {str(k): f"--{k}={v}" if v else f"--{k}" for k, v in pairs}


def judge(file: RunnerFile, site: Site, claims: Claims) -> None:
    """Add the claims about partition, account, limits, directives, nodes."""
    _partition(file, site, claims)
    _account(file, site, claims)
    _limits(file, site, claims)
    _submission(file, site, claims)
    _nodes(file, site, claims)
    _excluded(file, site.cluster, claims)


def _partition(file: RunnerFile, site: Site, claims: Claims) -> None:
    named = (
        (("scheduler", "partition"), file.runner.scheduler.partition),
        (("images", "import-partition"), file.runner.images.import_partition),
    )
    cluster = site.cluster
    for keys, name in named:
        if name is None:
            continue
        if isinstance(cluster.partitions, Unknown):
            claims.unknown(keys, name, cluster.partitions)
        elif (found := cluster.partition(name)) is None:
            known = [p.name for p in cluster.partitions]
            near = closest(name, known)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            claims.differ(keys, name, "Slurm shows no such partition", hint)
        elif found.state != "UP":
            claims.differ(
                keys, name, f"the partition is {found.state}", "wait, or ask for `scontrol update … State=UP`"
            )
        else:
            kind = ", the default one" if found.default else ", hidden" if found.hidden else ""
            claims.agree(keys, name, f"up, {found.nodes} nodes{kind}")


def _account(file: RunnerFile, site: Site, claims: Claims) -> None:
    keys, account = ("scheduler", "account"), file.runner.scheduler.account
    if account is None:
        return
    cluster, job = site.cluster, site.tried.get("job")
    kept, enforced = cluster.accounting, cluster.setting("AccountingStorageEnforce")
    enforces = isinstance(enforced, str) and "associations" in enforced
    known = cluster.associations
    accounts = [] if isinstance(known, Unknown) else list(dict.fromkeys(a.account for a in known))
    of_partition = ("", file.runner.scheduler.partition)
    if kept is False:
        claims.unknown(keys, account, "this Slurm keeps no accounting, and takes every account")
    elif job is not None and job.accepted is False and "account" in job.said.lower():
        # Before the associations: a partition may refuse an account (AllowAccounts) that the user may use elsewhere.
        hint = f"{cluster.user} may use {', '.join(accounts)}" if accounts else "`sacctmgr add user … account=…`"
        claims.differ(keys, account, f"sbatch --test-only: {job.said}", hint)
    elif not isinstance(known, Unknown) and any(a.account == account and a.partition in of_partition for a in known):
        claims.agree(keys, account, f"{cluster.user} may use it")
    elif job is not None and job.accepted and enforces:
        claims.agree(keys, account, "sbatch --test-only takes it, and associations are enforced")
    elif isinstance(known, Unknown):
        claims.unknown(keys, account, known)
    elif enforces:
        hint = f"one of {', '.join(accounts)}" if accounts else "`sacctmgr add user … account=…`"
        claims.differ(keys, account, f"{cluster.user} has no association with it", hint)
    else:
        why = f"{cluster.user} has no association with it, but this Slurm takes every account"
        claims.unknown(keys, account, f"{why} (AccountingStorageEnforce={enforced})")


def _limits(file: RunnerFile, site: Site, claims: Claims) -> None:
    """By MaxTime itself: with EnforcePartLimits=NO sbatch takes a job that is too long, and never starts it (22.05)."""
    runner = file.runner
    named: list[tuple[Sequence[Key], str]] = [(("scheduler", "time-limit"), runner.scheduler.time_limit)]
    named += [(("lanes", i, "time-limit"), lane.time_limit) for i, lane in enumerate(runner.lanes) if lane.time_limit]
    named += [(("adjust", i, "time-limit"), rule.time_limit) for i, rule in enumerate(runner.adjust) if rule.time_limit]
    partition = site.cluster.partition(runner.scheduler.partition)
    for keys, text in named:
        limit = seconds(text)
        if partition is None:
            claims.unknown(keys, text, _no_partition(site.cluster))
        elif partition.max_time is None:
            claims.agree(keys, text, f"{partition.name} has no MaxTime")
        elif limit is None or limit > partition.max_time:
            most = _duration(partition.max_time)
            claims.differ(
                keys, text, f"MaxTime of {partition.name} is {most}", f'at most "{most}", or another partition'
            )
        else:
            claims.agree(keys, text, f"MaxTime of {partition.name} is {_duration(partition.max_time)}")


def _no_partition(cluster: Cluster) -> Unknown:
    return cluster.partitions if isinstance(cluster.partitions, Unknown) else Unknown("the partition is not there")


def _duration(limit: float) -> str:
    days, rest = divmod(int(limit), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _submission(file: RunnerFile, site: Site, claims: Claims) -> None:
    """What `sbatch --test-only` says of the smallest job, of each directive by itself, and of the whole job."""
    tried = site.tried
    job = tried.get("job", Tried((), None, "sbatch was not asked"))
    small = " ".join(job.options)
    if job.accepted is None:
        claims.unknown(("scheduler",), "a job of one node", job.said)
        return
    if not job.accepted:
        found = f"sbatch --test-only {small}: {job.said}"
        claims.differ(("scheduler",), "a job of one node", found, "see partition, account and limits below")
        return
    for key, (default, _) in SWITCHES.items():
        if key in tried:
            hint = _gpu_hint(tried) if "gpus" in key else f"{key}: false"
            says = file.runner.srtslurm.get(key, default)
            _directive(("srtslurm", key), says, tried[key], hint, claims)
    for name, option in _directives(file).items():
        if (asked := tried.get(f"{_DIRECTIVES}.{name}")) is not None:
            hint = _gpu_hint(tried) if name == "gres" else "what does `sbatch --help` of this release know?"
            _directive(("srtslurm", _DIRECTIVES, name), option, asked, hint, claims)
    whole = tried.get("whole")
    if whole is None:
        return
    refused = [name for name, t in tried.items() if not t.accepted and not name.startswith("--")]
    found = f"sbatch --test-only {' '.join(whole.options)}"
    if whole.accepted:
        claims.agree(("scheduler",), "a job of one node", f"{found}: taken")
    elif refused == ["whole"]:  # else the directive that is refused by itself has its own line
        hint = "has a node as many GPUs, and all of this at once?"
        claims.differ(("scheduler",), "a job of one node", f"{found}: {whole.said}", hint)


def _directive(keys: Sequence[Key], says: object, tried: Tried, hint: str, claims: Claims) -> None:
    option = tried.options[-1]
    if tried.accepted is None:
        claims.unknown(keys, says, tried.said)
    elif tried.accepted:
        claims.agree(keys, says, f"sbatch --test-only takes {option}")
    else:
        claims.differ(keys, says, f"sbatch --test-only {option}: {tried.said}", hint)


def _gpu_hint(tried: Mapping[str, Tried]) -> str:
    """The form of a GPU request that works here."""
    form = next((form for form, t in tried.items() if t.accepted and form.startswith("--g")), None)
    if form is None:
        return "does a node of this partition have GPUs as Slurm sees it (`scontrol show node`, Gres)?"
    name, _, value = form.removeprefix("--").partition("=")
    if name == "gpus-per-node":
        return "use_gpus_per_node_directive: true"
    kind = value.rpartition(":")[0]
    return f'use_gpus_per_node_directive: false, {_DIRECTIVES}: {{gres: "{kind}:<GPUs of a node>"}}'


def _nodes(file: RunnerFile, site: Site, claims: Claims) -> None:
    node, cluster = file.runner.node, site.cluster
    partition = cluster.partition(file.runner.scheduler.partition)
    nodes = _no_partition(cluster) if partition is None else cluster.nodes_of(partition.name)
    _gpus(node.gpus, nodes, site.compute, claims)
    if node.arch is not None:
        _arch(node.arch, nodes, site.compute, claims)
    login = node.login_arch or node.arch
    if login is not None:
        keys: tuple[Key, ...] = ("node", "login-arch" if node.login_arch else "arch")
        if isinstance(site.login.arch, Unknown):
            claims.unknown(keys, f"{login} on login", site.login.arch)
        elif site.login.arch == login:
            claims.agree(keys, f"{login} on login", f"{site.login.name} is {site.login.arch}")
        else:
            hint = f"login-arch: {site.login.arch}"
            claims.differ(keys, f"{login} on login", f"{site.login.name} is {site.login.arch}", hint)
    if node.count is not None:
        if partition is None:
            claims.unknown(("node", "count"), node.count, nodes)
        elif partition.nodes == node.count:
            bad = [] if isinstance(nodes, Unknown) else [f"{n.name} {n.state}" for n in nodes if not n.usable]
            out = f"; out of use now: {', '.join(bad[:5])}{' …' if len(bad) > 5 else ''}" if bad else ""
            claims.agree(("node", "count"), node.count, f"{partition.name} has as many{out}")
        else:
            found = f"{partition.name} has {partition.nodes} nodes"
            claims.differ(("node", "count"), node.count, found, f"count: {partition.nodes}")


def _gpus(says: int, nodes: Fact[tuple[Node, ...]], compute: Fact[Host], claims: Claims) -> None:
    keys = ("node", "gpus")
    if isinstance(nodes, Unknown):
        claims.unknown(keys, says, nodes)
        return
    counts = Counter(n.gpus for n in nodes)
    found = ", ".join(f"{gpus} on {count} nodes" for gpus, count in counts.most_common())
    types = ", ".join(dict.fromkeys(g.type for n in nodes for g in n.gres if g.name == "gpu" and g.type))
    found = f"GRES: {found}" + (f" ({types})" if types else "")
    devices = Unknown(compute.why) if isinstance(compute, Unknown) else compute.devices
    if not any(counts):
        if isinstance(devices, Unknown) or devices == 0:
            claims.unknown(
                keys, says, "Slurm knows of no GPUs in this partition (no Gres), and no /dev/nvidia was seen"
            )
        elif devices == says:
            claims.agree(keys, says, f"no GRES; {devices} /dev/nvidia devices on the node that was looked at")
        else:
            claims.differ(keys, says, f"no GRES; {devices} /dev/nvidia devices on the node", f"gpus: {devices}")
    elif len(counts) > 1 and says in counts:
        claims.unknown(keys, says, f"the partition is mixed; {found}", "name a partition of one kind of node")
    elif says in counts:
        claims.agree(keys, says, found)
    else:
        claims.differ(keys, says, found, f"gpus: {counts.most_common(1)[0][0]}")


def _arch(says: str, nodes: Fact[tuple[Node, ...]], compute: Fact[Host], claims: Claims) -> None:
    keys = ("node", "arch")
    found: dict[str, str] = {}
    if not isinstance(nodes, Unknown):
        counts = Counter(n.arch for n in nodes if n.arch)
        found = {arch: f"{arch} on {count} nodes by Slurm" for arch, count in counts.most_common()}
    if not isinstance(compute, Unknown) and isinstance(compute.arch, str):
        found[compute.arch] = ", ".join(filter(None, [found.get(compute.arch), f"{compute.name} says {compute.arch}"]))
    text = "; ".join(found.values())
    if not found:
        claims.unknown(keys, says, nodes if isinstance(nodes, Unknown) else compute)
    elif len(found) > 1 and says in found:
        claims.unknown(keys, says, f"the partition is mixed: {text}", "name a partition of one architecture")
    elif says in found:
        claims.agree(keys, says, text)
    else:
        claims.differ(keys, says, text, f"arch: {next(iter(found))}")


def _excluded(file: RunnerFile, cluster: Cluster, claims: Claims) -> None:
    partition = cluster.partition(file.runner.scheduler.partition)
    for i, rule in enumerate(file.runner.exclude_nodes):
        keys = ("exclude-nodes", i, "node")
        if isinstance(cluster.nodes, Unknown):
            claims.unknown(keys, rule.node, cluster.nodes)
            continue
        by_name = {node.name: node for node in cluster.nodes}
        names = node_names(rule.node)
        missing = [name for name in names if name not in by_name]
        outside = [n for n in names if n in by_name and partition and partition.name not in by_name[n].partitions]
        if missing:
            near = closest(missing[0], by_name)
            hint = f"did you mean {near}? sbatch refuses a job that excludes an unknown node" if near else "remove it"
            claims.differ(keys, rule.node, f"Slurm knows no node {', '.join(missing)}", hint)
        elif partition and outside:
            claims.differ(keys, rule.node, f"{', '.join(outside)} is not in {partition.name}", "remove the rule")
        else:
            claims.agree(keys, rule.node, ", ".join(f"{name} is {by_name[name].state}" for name in names))
