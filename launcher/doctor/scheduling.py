"""Slurm and its nodes: the jobs to ask Slurm about, and a runner file's values compared with its answers. Pure.

Each ``compare_…`` takes one statement of the file and the fact that its row in `launcher.doctor.comparison` names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.core.errors import suggest
from launcher.core.slurm_notation import limit_seconds, node_names
from launcher.doctor.facts import (
    Agree,
    ClusterFacts,
    Differ,
    Fact,
    Host,
    Node,
    Outcome,
    Partition,
    SlurmFacts,
    Statement,
    SubmissionCheck,
    Unknown,
    gpu_types,
    known,
    statements,
)
from launcher.runner.file import RunnerFile

DIRECTIVE_SWITCHES: Mapping[str, tuple[bool, str]] = {
    "use_gpus_per_node_directive": (True, "--gpus-per-node=1"),
    "use_segment_sbatch_directive": (True, "--segment=1"),
    "use_exclusive_sbatch_directive": (False, "--exclusive"),
}
"""Keys of srtslurm.yaml that switch a directive of sbatch: srtctl's default (job_script_minimal.j2 of srt-slurm), and
the directive as small as it can be asked for."""

DIRECTIVES = "default_sbatch_directives"
"""Key of srtslurm.yaml with more directives for every job: option → value, empty for an option without one."""


def smallest_job(partition: str | None, account: str | None, time_limit: str = "1") -> list[str]:
    """sbatch's options for the smallest job of a partition and an account."""
    given = {"partition": partition, "account": account}
    return ["--nodes=1", "--ntasks=1", f"--time={time_limit}", *(f"--{k}={v}" for k, v in given.items() if v)]


def gpu_requests(nodes: tuple[Node, ...]) -> list[str]:
    """The ways to ask for one GPU on these nodes: by node, by GRES, by GRES with its type."""
    return ["--gpus-per-node=1", "--gres=gpu:1", *(f"--gres=gpu:{each}:1" for each in gpu_types(nodes))]


def jobs_to_check(file: RunnerFile, slurm: SlurmFacts) -> dict[str, list[str]]:
    """The jobs to ask Slurm about (sbatch's options), by name.

    They are the smallest one ("job"), the smallest one with each directive and with each form of a GPU request, and the
    one with everything that the file gives ("whole").
    """
    scheduler = file.runner.scheduler
    small = smallest_job(scheduler.partition, scheduler.account, scheduler.time_limit or "1")
    jobs, whole = {"job": small}, list(small)
    for key, (default, option) in DIRECTIVE_SWITCHES.items():
        if file.runner.srtslurm.get(key, default):
            jobs[key] = [*small, option]
            whole.append(f"--gpus-per-node={file.runner.node.gpus}" if "gpus" in key else option)
    for statement in statements(file, f"srtslurm.{DIRECTIVES}.*"):
        jobs[f"{DIRECTIVES}.{statement.keys[-1]}"] = [*small, directive(statement)]
        whole.append(directive(statement))
    if (partition := slurm.partition(scheduler.partition)) is not None:
        jobs |= {form: [*small, form] for form in gpu_requests(known(slurm.nodes_of(partition.name)))}
    return {**jobs, "whole": whole}


def directive(statement: Statement) -> str:
    """A directive of `DIRECTIVES` as sbatch's option."""
    return f"--{statement.keys[-1]}={statement.value}" if statement.value else f"--{statement.keys[-1]}"


def compare_partition(statement: Statement, partitions: tuple[Partition, ...]) -> Outcome:
    by_name = {partition.name: partition for partition in partitions}
    found = by_name.get(statement.value)
    if found is None:
        hint = suggest(statement.value, by_name, f"there are {', '.join(by_name)}")
        return Differ("Slurm shows no such partition", hint)
    if found.state != "UP":
        return Differ(f"the partition is {found.state}", "wait, or ask for `scontrol update … State=UP`")
    kind = ", the default one" if found.default else ", hidden" if found.hidden else ""
    return Agree(f"up, {found.nodes} nodes{kind}")


def compare_account(statement: Statement, facts: ClusterFacts) -> Outcome:
    slurm, account, job = facts.slurm, statement.value, facts.job
    enforced = slurm.setting("AccountingStorageEnforce")
    enforces = isinstance(enforced, str) and "associations" in enforced
    associations, accounts = slurm.associations, ", ".join(slurm.accounts)
    if slurm.accounting is False:
        return Unknown("this Slurm keeps no accounting, and takes every account")
    if job.accepted is False and "account" in job.answer.lower():
        # Before the associations: a partition may refuse an account (AllowAccounts) that the user may use elsewhere.
        hint = f"{slurm.user} may use {accounts}" if accounts else "`sacctmgr add user … account=…`"
        return Differ(f"sbatch --test-only: {job.answer}", hint)
    of_partition = ("", statement.table.partition)
    if any(each.account == account and each.partition in of_partition for each in known(associations)):
        return Agree(f"{slurm.user} may use it")
    if job.accepted and enforces:
        return Agree("sbatch --test-only takes it, and associations are enforced")
    if isinstance(associations, Unknown):
        return associations
    if enforces:
        hint = f"one of {accounts}" if accounts else "`sacctmgr add user … account=…`"
        return Differ(f"{slurm.user} has no association with it", hint)
    why = f"{slurm.user} has no association with it, but this Slurm takes every account"
    return Unknown(f"{why} (AccountingStorageEnforce={enforced})")


def compare_time_limit(statement: Statement, partition: Partition) -> Outcome:
    # We compare with MaxTime ourselves: with EnforcePartLimits=NO sbatch takes a job that is too long, and Slurm never
    # starts it (22.05).
    if partition.max_time is None:
        return Agree(f"{partition.name} has no MaxTime")
    limit, most = limit_seconds(statement.value), duration(partition.max_time)
    found = f"MaxTime of {partition.name} is {most}"
    if limit is None or limit > partition.max_time:
        return Differ(found, f'at most "{most}", or another partition')
    return Agree(found)


def duration(limit: float) -> str:
    """Seconds as Slurm writes a time limit."""
    days, rest = divmod(int(limit), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def compare_job(statement: Statement, facts: ClusterFacts) -> Outcome | None:
    """What `sbatch --test-only` says of the smallest job, and of the whole one."""
    job, whole = facts.job, facts.submissions.get("whole")
    if job.accepted is None:
        return Unknown(job.answer)
    if not job.accepted:
        found = f"sbatch --test-only {' '.join(job.options)}: {job.answer}"
        return Differ(found, "see partition, account and limits below")
    if whole is None:
        return None
    found = f"sbatch --test-only {' '.join(whole.options)}"
    if whole.accepted:
        return Agree(f"{found}: taken")
    if any(not t.accepted for name, t in facts.submissions.items() if name != "whole" and not name.startswith("--")):
        return None  # the directive that is refused by itself has its own line
    return Differ(f"{found}: {whole.answer}", "has a node as many GPUs, and all of this at once?")


def compare_directive(statement: Statement, facts: ClusterFacts) -> Outcome | None:
    key, tried = statement.keys[-1], facts.submissions.get(".".join(map(str, statement.keys[1:])))
    if tried is None or not facts.job.accepted:
        return None  # not asked, or the smallest job is refused, which has its own line
    option = tried.options[-1]
    if tried.accepted is None:
        return Unknown(tried.answer)
    if tried.accepted:
        return Agree(f"sbatch --test-only takes {option}")
    if key in ("use_gpus_per_node_directive", "gres"):
        hint = _gpu_hint(facts.submissions)
    else:
        hint = f"{key}: false" if key in DIRECTIVE_SWITCHES else "what does `sbatch --help` of this release know?"
    return Differ(f"sbatch --test-only {option}: {tried.answer}", hint)


def _gpu_hint(tried: Mapping[str, SubmissionCheck]) -> str:
    """The form of a GPU request that works here."""
    form = next((form for form, t in tried.items() if t.accepted and form.startswith("--g")), None)
    if form is None:
        return "does a node of this partition have GPUs as Slurm sees it (`scontrol show node`, Gres)?"
    if form.startswith("--gpus-per-node"):
        return "use_gpus_per_node_directive: true"
    kind = form.removeprefix("--gres=").rpartition(":")[0]
    return f'use_gpus_per_node_directive: false, {DIRECTIVES}: {{gres: "{kind}:<GPUs of a node>"}}'


def gpus(facts: ClusterFacts) -> Fact[tuple[str, Counter[int]]]:
    """What is known of the GPUs of a node, as a text, and on how many nodes each number of GPUs was found.

    It is known from Slurm's GRES; in a partition without any, from the devices of the node that was looked at.
    """
    nodes, compute = facts.nodes, facts.compute
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


def compare_gpus(statement: Statement, fact: tuple[str, Counter[int]]) -> Outcome:
    found, counts = fact
    if statement.value not in counts:
        return Differ(found, f"gpus: {counts.most_common(1)[0][0]}")
    if len(counts) > 1:
        return Unknown(f"the partition is mixed; {found}", "name a partition of one kind of node")
    return Agree(found)


def architectures(facts: ClusterFacts) -> Fact[dict[str, str]]:
    """The architectures of the compute nodes, each with who says so."""
    nodes, compute = facts.nodes, facts.compute
    counts = Counter(node.arch for node in known(nodes) if node.arch)
    found = {arch: f"{arch} on {count} nodes by Slurm" for arch, count in counts.most_common()}
    if isinstance(compute, Host) and isinstance(compute.arch, str):
        by_slurm = [found[compute.arch]] if compute.arch in found else []
        found[compute.arch] = ", ".join([*by_slurm, f"{compute.name} says {compute.arch}"])
    elif isinstance(nodes, Unknown):
        return nodes
    elif not found:
        return compute if isinstance(compute, Unknown) else Unknown(str(compute.arch))
    return found


def compare_architecture(statement: Statement, found: dict[str, str]) -> Outcome:
    text = "; ".join(found.values())
    if statement.value not in found:
        return Differ(text, f"arch: {next(iter(found))}")
    if len(found) > 1:
        return Unknown(f"the partition is mixed: {text}", "name a partition of one architecture")
    return Agree(text)


def compare_login_architecture(statement: Statement, facts: ClusterFacts) -> Outcome | None:
    login = facts.login
    if statement.keys[-1] == "arch" and statement.table.login_arch is not None:
        return None  # the file gives the login node another one
    if isinstance(login.arch, Unknown):
        return login.arch
    found = f"{login.name} is {login.arch}"
    return Agree(found) if login.arch == statement.value else Differ(found, f"login-arch: {login.arch}")


def compare_count(statement: Statement, facts: ClusterFacts) -> Outcome:
    partition = facts.partition
    if isinstance(partition, Unknown):
        return partition
    if partition.nodes != statement.value:
        return Differ(f"{partition.name} has {partition.nodes} nodes", f"count: {partition.nodes}")
    bad = [f"{node.name} {node.state}" for node in known(facts.nodes) if not node.usable]
    out = f"; out of use now: {', '.join(bad[:5])}{' …' if len(bad) > 5 else ''}" if bad else ""
    return Agree(f"{partition.name} has as many{out}")


def compare_excluded(statement: Statement, facts: ClusterFacts) -> Outcome:
    nodes, partition = facts.slurm.nodes, facts.partition
    if isinstance(nodes, Unknown):
        return nodes
    by_name = {node.name: node for node in nodes}
    names = node_names(statement.value)
    if missing := [name for name in names if name not in by_name]:
        hint = suggest(missing[0], by_name, "remove it;") + " sbatch refuses a job that excludes an unknown node"
        return Differ(f"Slurm knows no node {', '.join(missing)}", hint)
    inside = [node.name for node in known(facts.nodes)]
    if isinstance(partition, Partition) and (outside := [name for name in names if name not in inside]):
        return Differ(f"{', '.join(outside)} is not in {partition.name}", "remove the rule")
    return Agree(", ".join(f"{name} is {by_name[name].state}" for name in names))
