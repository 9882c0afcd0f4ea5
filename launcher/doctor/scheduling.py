"""Slurm and its nodes: the jobs to ask Slurm about, and a runner file's values compared with its answers. Pure.

Each ``compare_…`` takes a setting of the file and the fact that its row in `launcher.doctor.comparison` names.
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
    Host,
    Mismatch,
    Partition,
    Setting,
    SlurmFacts,
    SubmissionCheck,
    Unknown,
    gpu_types,
    or_empty,
    require,
    settings,
)
from launcher.runner.file import RunnerFile

DIRECTIVE_SWITCHES: Mapping[str, tuple[bool, str]] = {
    "use_gpus_per_node_directive": (True, "--gpus-per-node=1"),
    "use_segment_sbatch_directive": (True, "--segment=1"),
    "use_exclusive_sbatch_directive": (False, "--exclusive"),
}
"""Keys of srtslurm.yaml that switch a directive of sbatch, each with srtctl's default (job_script_minimal.j2 of
srt-slurm) and the smallest request by that directive."""

DIRECTIVES = "default_sbatch_directives"
"""Key of srtslurm.yaml with more directives for every job: option → value, empty for an option without one."""


def gpu_requests(slurm: SlurmFacts, partition: str | None) -> list[str]:
    """The options that request one GPU on a partition's nodes: by node, by GRES, by GRES with its type."""
    types = gpu_types(or_empty(slurm.nodes_of(partition)))
    return ["--gpus-per-node=1", "--gres=gpu:1", *(f"--gres=gpu:{each}:1" for each in types)]


def jobs_to_check(file: RunnerFile, slurm: SlurmFacts) -> dict[str, list[str]]:
    """The jobs to ask Slurm about (sbatch's options), by name.

    They are the smallest job ("job"), the smallest job with each directive and with each form of a GPU request, and the
    job with everything that the file gives ("whole").
    """
    scheduler = file.runner.scheduler
    options = {"time": scheduler.time_limit, "partition": scheduler.partition, "account": scheduler.account}
    small = ["--nodes=1", "--ntasks=1", *(f"--{name}={value}" for name, value in options.items() if value)]
    jobs, whole = {"job": small}, list(small)
    for key, (default, option) in DIRECTIVE_SWITCHES.items():
        if file.runner.srtslurm.get(key, default):
            jobs[key] = [*small, option]
            whole.append(f"--gpus-per-node={file.runner.node.gpus}" if "gpus" in key else option)
    for setting in settings(file, f"srtslurm.{DIRECTIVES}.*"):
        jobs[f"{DIRECTIVES}.{setting.keys[-1]}"] = [*small, directive(setting)]
        whole.append(directive(setting))
    forms = gpu_requests(slurm, scheduler.partition)
    return {**jobs, **{form: [*small, form] for form in forms}, "whole": whole}


def directive(setting: Setting) -> str:
    """A directive of `DIRECTIVES` as an option of sbatch."""
    return f"--{setting.keys[-1]}={setting.value}" if setting.value else f"--{setting.keys[-1]}"


def compare_partition(setting: Setting, slurm: SlurmFacts) -> str:
    require(slurm.partitions)
    partition = slurm.partition(setting.value)
    if isinstance(partition, Unknown):
        raise Mismatch(partition.why, partition.hint)
    if partition.state != "UP":
        raise Mismatch(f"the partition is {partition.state}", "wait, or ask for `scontrol update … State=UP`")
    kind = ", the default one" if partition.default else ", hidden" if partition.hidden else ""
    return f"up, {count_of(partition.nodes, 'node')}{kind}"


def compare_account(setting: Setting, facts: ClusterFacts) -> str:
    slurm, job, accounts = facts.slurm, facts.job, ", ".join(facts.slurm.accounts)
    enforced = slurm.config_value("AccountingStorageEnforce")
    enforces = isinstance(enforced, str) and "associations" in enforced
    hint = f"{slurm.user} may use {accounts}" if accounts else "`sacctmgr add user … account=…`"
    if slurm.no_accounting:
        raise Unknown("this Slurm keeps no accounting, and takes every account")
    if job.accepted is False and "account" in job.answer.lower():
        # Before the associations: a partition may refuse an account (AllowAccounts) that the user may use elsewhere.
        raise Mismatch(f"sbatch --test-only: {job.answer}", hint)
    if {(setting.value, ""), (setting.value, setting.table.partition)} & set(or_empty(slurm.associations)):
        return f"{slurm.user} may use it"
    if job.accepted and enforces:
        return "sbatch --test-only takes it, and associations are enforced"
    require(slurm.associations)
    problem = f"{slurm.user} has no association with it"
    if enforces:
        raise Mismatch(problem, hint)
    raise Unknown(f"{problem}, but this Slurm takes every account (AccountingStorageEnforce={enforced})")


def compare_time_limit(setting: Setting, partition: Partition) -> str:
    # We compare with MaxTime ourselves: with EnforcePartLimits=NO sbatch takes a job that is too long, and Slurm never
    # starts it (22.05).
    if partition.max_time is None:
        return f"{partition.name} has no MaxTime"
    limit, longest = limit_seconds(setting.value), duration(partition.max_time)
    found = f"MaxTime of {partition.name} is {longest}"
    if limit is None or limit > partition.max_time:
        raise Mismatch(found, f'at most "{longest}", or another partition')
    return found


def duration(limit: float) -> str:
    """Seconds as Slurm writes a time limit."""
    days, rest = divmod(int(limit), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def compare_job(setting: Setting, facts: ClusterFacts) -> str | None:
    """The answer of `sbatch --test-only` for the smallest job, and then for the whole one."""
    _require_accepted(facts.job, "see partition, account and limits below")
    whole = facts.submissions.get("whole")
    parts = [check for name, check in facts.submissions.items() if name != "whole" and not name.startswith("--")]
    if whole is None or (whole.accepted is False and any(check.accepted is False for check in parts)):
        return None  # not tried, or one directive alone is refused, which has its own claim
    return _require_accepted(whole, "has a node as many GPUs, and all of this at once?")


def compare_directive(setting: Setting, facts: ClusterFacts) -> str | None:
    key, check = setting.keys[-1], facts.submissions.get(".".join(map(str, setting.keys[1:])))
    if check is None or setting.value is False or not facts.job.accepted:
        return None  # not tried, or the smallest job is refused, which has its own claim
    if key in ("use_gpus_per_node_directive", "gres"):
        hint = _gpu_hint(facts.submissions)
    else:
        hint = f"{key}: false" if key in DIRECTIVE_SWITCHES else "what does `sbatch --help` of this release know?"
    return _require_accepted(check, hint)


def _require_accepted(check: SubmissionCheck, hint: str) -> str:
    if check.accepted is None:
        raise Unknown(check.answer)
    command = f"sbatch --test-only {' '.join(check.options)}"
    if not check.accepted:
        raise Mismatch(f"{command}: {check.answer}", hint)
    return f"{command}: taken"


def _gpu_hint(submissions: Mapping[str, SubmissionCheck]) -> str:
    """The form of a GPU request that Slurm accepts here."""
    if any(check.accepted and form.startswith("--gpus-per-node") for form, check in submissions.items()):
        return "use_gpus_per_node_directive: true"
    kind = accepted_gres(submissions)
    if kind is None:
        return "does a node of this partition have GPUs as Slurm sees it (`scontrol show node`, Gres)?"
    return f'use_gpus_per_node_directive: false, {DIRECTIVES}: {{gres: "{kind}:<GPUs of a node>"}}'


def accepted_gres(submissions: Mapping[str, SubmissionCheck]) -> str | None:
    """The generic resource that requests GPUs here: ``gpu``, or with a type ``gpu:gb200``."""
    accepted = (form for form, check in submissions.items() if check.accepted and form.startswith("--gres="))
    return next((form.removeprefix("--gres=").rpartition(":")[0] for form in accepted), None)


def gpus(facts: ClusterFacts) -> tuple[str, list[int]]:
    """The GPUs of a node, as a text and as numbers: the most frequent first, 0 last. Raises Unknown.

    They are those of Slurm's GRES; in a partition without any, the devices of the node that was probed.
    """
    nodes, compute = require(facts.nodes), facts.compute
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
    """The architectures of the compute nodes, as a text with its sources and as names. Raises Unknown."""
    compute = facts.compute
    counts = Counter(node.arch for node in or_empty(facts.nodes) if node.arch)
    texts = {arch: f"{arch} on {count_of(count, 'node')} by Slurm" for arch, count in counts.most_common()}
    if isinstance(compute, Host) and isinstance(compute.arch, str):
        by_slurm = [texts[compute.arch]] if compute.arch in texts else []
        texts[compute.arch] = ", ".join([*by_slurm, f"{compute.name} says {compute.arch}"])
    if not texts:
        require(facts.nodes)
        require(require(compute).arch)
    return "; ".join(texts.values()), list(texts)


def compare_one_of(setting: Setting, fact: tuple[str, list[Any]]) -> str:
    """Whether all nodes have the value of the setting. ``fact`` is a text about the nodes, and their values."""
    found, values = fact
    if setting.value not in values:
        raise Mismatch(found, f"{setting.keys[-1]}: {values[0]}")
    if len(values) > 1:
        raise Unknown(f"the partition is mixed: {found}", "name a partition of one kind of node")
    return found


def compare_login_architecture(setting: Setting, facts: ClusterFacts) -> str | None:
    if setting.keys[-1] == "arch" and setting.table.login_arch is not None:
        return None  # the file gives the login node another one
    arch = require(facts.login.arch)
    found = f"{facts.login.name} is {arch}"
    if arch != setting.value:
        raise Mismatch(found, f"login-arch: {arch}")
    return found


def compare_count(setting: Setting, facts: ClusterFacts) -> str:
    partition = require(facts.partition)
    if partition.nodes != setting.value:
        raise Mismatch(f"{partition.name} has {count_of(partition.nodes, 'node')}", f"count: {partition.nodes}")
    unusable = [f"{node.name} {node.state}" for node in or_empty(facts.nodes) if not node.usable]
    note = f"; out of use now: {', '.join(unusable[:5])}{' …' if len(unusable) > 5 else ''}" if unusable else ""
    return f"{partition.name} has as many{note}"


def compare_excluded(setting: Setting, facts: ClusterFacts) -> str:
    by_name = {node.name: node for node in require(facts.slurm.nodes)}
    names = node_names(setting.value)
    if missing := [name for name in names if name not in by_name]:
        hint = suggest(missing[0], by_name, "remove it;") + " sbatch refuses a job that excludes an unknown node"
        raise Mismatch(f"Slurm knows no node {', '.join(missing)}", hint)
    inside = [node.name for node in require(facts.nodes)]
    if outside := [name for name in names if name not in inside]:
        raise Mismatch(f"{', '.join(outside)} is not in {require(facts.partition).name}", "remove the rule")
    return ", ".join(f"{name} is {by_name[name].state}" for name in names)
