"""Slurm and its nodes: the jobs to ask Slurm about, and a runner file's values compared with its answers. Pure.

Each ``compare_…`` takes one statement of the file and the fact that its row in `launcher.doctor.comparison` names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from launcher.core.errors import suggest
from launcher.core.lines import count_of
from launcher.core.slurm_notation import limit_seconds, node_names
from launcher.doctor.facts import (
    ClusterFacts,
    Differ,
    Host,
    Partition,
    SlurmFacts,
    Statement,
    SubmissionCheck,
    Unknown,
    gpu_types,
    known,
    listed,
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


def gpu_requests(slurm: SlurmFacts, partition: str | None) -> list[str]:
    """The ways to ask for one GPU on a partition's nodes: by node, by GRES, by GRES with its type."""
    types = gpu_types(listed(slurm.nodes_of(partition)))
    return ["--gpus-per-node=1", "--gres=gpu:1", *(f"--gres=gpu:{each}:1" for each in types)]


def jobs_to_check(file: RunnerFile, slurm: SlurmFacts) -> dict[str, list[str]]:
    """The jobs to ask Slurm about (sbatch's options), by name.

    They are the smallest one ("job"), the smallest one with each directive and with each form of a GPU request, and the
    one with everything that the file gives ("whole").
    """
    scheduler = file.runner.scheduler
    given = {"time": scheduler.time_limit, "partition": scheduler.partition, "account": scheduler.account}
    small = ["--nodes=1", "--ntasks=1", *(f"--{name}={value}" for name, value in given.items() if value)]
    jobs, whole = {"job": small}, list(small)
    for key, (default, option) in DIRECTIVE_SWITCHES.items():
        if file.runner.srtslurm.get(key, default):
            jobs[key] = [*small, option]
            whole.append(f"--gpus-per-node={file.runner.node.gpus}" if "gpus" in key else option)
    for said in statements(file, f"srtslurm.{DIRECTIVES}.*"):
        jobs[f"{DIRECTIVES}.{said.keys[-1]}"] = [*small, directive(said)]
        whole.append(directive(said))
    forms = gpu_requests(slurm, scheduler.partition)
    return {**jobs, **{form: [*small, form] for form in forms}, "whole": whole}


def directive(said: Statement) -> str:
    """A directive of `DIRECTIVES` as sbatch's option."""
    return f"--{said.keys[-1]}={said.value}" if said.value else f"--{said.keys[-1]}"


def compare_partition(said: Statement, slurm: SlurmFacts) -> str:
    known(slurm.partitions)
    found = slurm.partition(said.value)
    if isinstance(found, Unknown):
        raise Differ(found.why, found.hint)
    if found.state != "UP":
        raise Differ(f"the partition is {found.state}", "wait, or ask for `scontrol update … State=UP`")
    kind = ", the default one" if found.default else ", hidden" if found.hidden else ""
    return f"up, {count_of(found.nodes, 'node')}{kind}"


def compare_account(said: Statement, facts: ClusterFacts) -> str:
    slurm, job, accounts = facts.slurm, facts.job, ", ".join(facts.slurm.accounts)
    enforced = slurm.setting("AccountingStorageEnforce")
    enforces = isinstance(enforced, str) and "associations" in enforced
    hint = f"{slurm.user} may use {accounts}" if accounts else "`sacctmgr add user … account=…`"
    if slurm.no_accounting:
        raise Unknown("this Slurm keeps no accounting, and takes every account")
    if job.accepted is False and "account" in job.answer.lower():
        # Before the associations: a partition may refuse an account (AllowAccounts) that the user may use elsewhere.
        raise Differ(f"sbatch --test-only: {job.answer}", hint)
    if {(said.value, ""), (said.value, said.table.partition)} & set(listed(slurm.associations)):
        return f"{slurm.user} may use it"
    if job.accepted and enforces:
        return "sbatch --test-only takes it, and associations are enforced"
    known(slurm.associations)
    none = f"{slurm.user} has no association with it"
    if enforces:
        raise Differ(none, hint)
    raise Unknown(f"{none}, but this Slurm takes every account (AccountingStorageEnforce={enforced})")


def compare_time_limit(said: Statement, partition: Partition) -> str:
    # We compare with MaxTime ourselves: with EnforcePartLimits=NO sbatch takes a job that is too long, and Slurm never
    # starts it (22.05).
    if partition.max_time is None:
        return f"{partition.name} has no MaxTime"
    limit, most = limit_seconds(said.value), duration(partition.max_time)
    found = f"MaxTime of {partition.name} is {most}"
    if limit is None or limit > partition.max_time:
        raise Differ(found, f'at most "{most}", or another partition')
    return found


def duration(limit: float) -> str:
    """Seconds as Slurm writes a time limit."""
    days, rest = divmod(int(limit), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def compare_job(said: Statement, facts: ClusterFacts) -> str | None:
    """What `sbatch --test-only` says of the smallest job, and of the whole one."""
    _taken(facts.job, "see partition, account and limits below")
    whole = facts.submissions.get("whole")
    alone = [t for name, t in facts.submissions.items() if name != "whole" and not name.startswith("--")]
    if whole is None or (whole.accepted is False and any(tried.accepted is False for tried in alone)):
        return None  # not asked, or a directive is refused by itself, which has its own line
    return _taken(whole, "has a node as many GPUs, and all of this at once?")


def compare_directive(said: Statement, facts: ClusterFacts) -> str | None:
    key, tried = said.keys[-1], facts.submissions.get(".".join(map(str, said.keys[1:])))
    if tried is None or said.value is False or not facts.job.accepted:
        return None  # not asked for, or the smallest job is refused, which has its own line
    if key in ("use_gpus_per_node_directive", "gres"):
        hint = _gpu_hint(facts.submissions)
    else:
        hint = f"{key}: false" if key in DIRECTIVE_SWITCHES else "what does `sbatch --help` of this release know?"
    return _taken(tried, hint)


def _taken(tried: SubmissionCheck, hint: str) -> str:
    if tried.accepted is None:
        raise Unknown(tried.answer)
    found = f"sbatch --test-only {' '.join(tried.options)}"
    if not tried.accepted:
        raise Differ(f"{found}: {tried.answer}", hint)
    return f"{found}: taken"


def _gpu_hint(tried: Mapping[str, SubmissionCheck]) -> str:
    """The form of a GPU request that works here."""
    if any(t.accepted and form.startswith("--gpus-per-node") for form, t in tried.items()):
        return "use_gpus_per_node_directive: true"
    kind = gres_that_works(tried)
    if kind is None:
        return "does a node of this partition have GPUs as Slurm sees it (`scontrol show node`, Gres)?"
    return f'use_gpus_per_node_directive: false, {DIRECTIVES}: {{gres: "{kind}:<GPUs of a node>"}}'


def gres_that_works(tried: Mapping[str, SubmissionCheck]) -> str | None:
    """The generic resource by which GPUs can be asked for here: ``gpu``, or with a type ``gpu:gb200``."""
    taken = (form for form, check in tried.items() if check.accepted and form.startswith("--gres="))
    return next((form.removeprefix("--gres=").rpartition(":")[0] for form in taken), None)


def gpus(facts: ClusterFacts) -> tuple[str, list[int]]:
    """What is known of the GPUs of a node, as a text and as numbers: the likeliest first, 0 last. Raises Unknown.

    It is known from Slurm's GRES; in a partition without any, from the devices of the node that was looked at.
    """
    nodes, compute = known(facts.nodes), facts.compute
    counts = Counter(node.gpus for node in nodes)
    if any(counts):
        each = ", ".join(f"{gpus} on {count_of(count, 'node')}" for gpus, count in counts.most_common())
        types = ", ".join(gpu_types(nodes))
        numbers = [number for number, _ in counts.most_common()]
        return f"GRES: {each}" + (f" ({types})" if types else ""), sorted(numbers, key=lambda number: number == 0)
    if isinstance(compute, Host) and isinstance(compute.devices, int) and compute.devices:
        return f"no GRES; {compute.devices} /dev/nvidia devices on the node that was looked at", [compute.devices]
    raise Unknown("Slurm knows of no GPUs in this partition (no Gres), and no /dev/nvidia was seen")


def architectures(facts: ClusterFacts) -> tuple[str, list[str]]:
    """The architectures of the compute nodes, as a text with who says so and as names. Raises Unknown."""
    compute = facts.compute
    counts = Counter(node.arch for node in listed(facts.nodes) if node.arch)
    found = {arch: f"{arch} on {count_of(count, 'node')} by Slurm" for arch, count in counts.most_common()}
    if isinstance(compute, Host) and isinstance(compute.arch, str):
        by_slurm = [found[compute.arch]] if compute.arch in found else []
        found[compute.arch] = ", ".join([*by_slurm, f"{compute.name} says {compute.arch}"])
    if not found:
        known(facts.nodes)
        known(known(compute).arch)
    return "; ".join(found.values()), list(found)


def compare_one_of(said: Statement, fact: tuple[str, list[Any]]) -> str:
    """Whether nodes are as the file says, and alike: ``fact`` is what is known of them, as a text and as values."""
    found, values = fact
    if said.value not in values:
        raise Differ(found, f"{said.keys[-1]}: {values[0]}")
    if len(values) > 1:
        raise Unknown(f"the partition is mixed: {found}", "name a partition of one kind of node")
    return found


def compare_login_architecture(said: Statement, facts: ClusterFacts) -> str | None:
    if said.keys[-1] == "arch" and said.table.login_arch is not None:
        return None  # the file gives the login node another one
    arch = known(facts.login.arch)
    found = f"{facts.login.name} is {arch}"
    if arch != said.value:
        raise Differ(found, f"login-arch: {arch}")
    return found


def compare_count(said: Statement, facts: ClusterFacts) -> str:
    partition = known(facts.partition)
    if partition.nodes != said.value:
        raise Differ(f"{partition.name} has {count_of(partition.nodes, 'node')}", f"count: {partition.nodes}")
    bad = [f"{node.name} {node.state}" for node in listed(facts.nodes) if not node.usable]
    out = f"; out of use now: {', '.join(bad[:5])}{' …' if len(bad) > 5 else ''}" if bad else ""
    return f"{partition.name} has as many{out}"


def compare_excluded(said: Statement, facts: ClusterFacts) -> str:
    by_name = {node.name: node for node in known(facts.slurm.nodes)}
    names = node_names(said.value)
    if missing := [name for name in names if name not in by_name]:
        hint = suggest(missing[0], by_name, "remove it;") + " sbatch refuses a job that excludes an unknown node"
        raise Differ(f"Slurm knows no node {', '.join(missing)}", hint)
    inside = [node.name for node in known(facts.nodes)]
    if outside := [name for name in names if name not in inside]:
        raise Differ(f"{', '.join(outside)} is not in {known(facts.partition).name}", "remove the rule")
    return ", ".join(f"{name} is {by_name[name].state}" for name in names)
