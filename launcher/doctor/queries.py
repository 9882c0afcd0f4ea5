"""Queries about a cluster, made on its login node: all facts that a runner file, or the draft of one, needs.

Formats are those of Slurm 20.02 and later, tried on 22.05; never ``--json`` (see launcher/slurm/commands.py).

host.sh prints what one host sees. It runs here and, by one srun, on one compute node.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from launcher.core.errors import ImageError
from launcher.core.node_partner import answering_nodes
from launcher.core.process import NOT_FOUND, CommandRunner, Completed
from launcher.core.slurm_notation import node_names
from launcher.doctor import comparison, node_checks, programs, scheduling
from launcher.doctor.comparison import Fill
from launcher.doctor.facts import (
    ClusterFacts,
    DirectoryView,
    Fact,
    Host,
    ImportTrial,
    SlurmFacts,
    SubmissionCheck,
    Unknown,
    or_empty,
)
from launcher.doctor.programs import TIMEOUT, ask, no_answer
from launcher.image import probe
from launcher.image.probe import LockProbe
from launcher.runner.file import RunnerFile

SCRIPT_TIMEOUT = 60.0
"""Seconds that host.sh may take: it hangs in a directory of a dead NFS server."""

JOB_MINUTES = 2
"""Time limit of the node's job; Slurm's smallest unit is a minute."""

_SILENT = re.compile(
    r"unable to contact slurm controller|connection (refused|timed out)|socket timed out|unable to establish config"
    r"|could not establish a configuration source|protocol authentication error|munge",
    re.IGNORECASE,
)
"""Errors of sbatch that do not judge the job. Every other non-zero exit is a refusal."""

_BUSY = re.compile(r"nodes are busy|immediate execution impossible", re.IGNORECASE)
"""Errors of srun after the time of --immediate (22.05 and later: the first)."""

_SYSTEM = ("/", "/boot", "/boot/efi", "/var", "/usr", "/home", "/tmp", "/etc", "/run", "/proc", "/sys", "/dev")

_SCRIPT = Path(__file__).with_name("host.sh").read_text(encoding="ascii")


def cluster_facts(
    file: RunnerFile,
    slurm: SlurmFacts,
    fill: Fill,
    run: CommandRunner,
    *,
    node: bool,
    wait: float,
    log: Callable[[str], None],
) -> ClusterFacts:
    """The facts about the jobs and the directories of a file, added to those of Slurm.

    ``fill`` puts values for the placeholders of paths. With ``node`` a short job probes a node, which ``log`` is given
    a line about first; the job may wait ``wait`` seconds for its node.
    """
    on_slurm, partition = file.runner.scheduler.kind == "slurm", file.runner.scheduler.partition
    paths = [path for required in comparison.required_paths(file, fill) for path in required.paths]
    submissions = check_submissions(run, scheduling.jobs_to_check(file, slurm)) if on_slurm else {}
    one_node = {"job", *scheduling.gpu_requests(slurm, partition)}  # a partition may refuse jobs without GPUs
    start = node and any(check.accepted for name, check in submissions.items() if name in one_node)
    if start:
        log(f"looking from a node of {partition or 'the default partition'} (a job of at most {JOB_MINUTES} minutes)")
    options = _srun_options(file, slurm) if start else ()
    images, checks = fill(file.runner.images.directory), node_checks.checkpoint_checks(file, fill)
    storage = file.storage_of(images)
    local_locks = storage is not None and storage.locks == "local"
    login, compute = probe_hosts(
        run, paths, options, wait=wait, meeting_directory=images, local_locks=local_locks, checks=checks
    )
    if node and not on_slurm:
        compute = login  # the embedded scheduler runs its jobs on this very machine
    elif node and not start:
        compute = Unknown(f"no job was started to look: sbatch --test-only: {submissions['job'].answer}")
    return ClusterFacts(slurm, login, compute, partition, submissions)


def with_locks_and_refs(file: RunnerFile, facts: ClusterFacts, fill: Fill, run: CommandRunner) -> ClusterFacts:
    """``facts`` with the refs of the repositories, and with a trial of locks between two processes here."""
    urls = {name: fill(url) for name, url in file.runner.repositories.items()}
    with ThreadPoolExecutor(1) as pool:
        refs = pool.submit(repository_refs, run, urls.values())
        locks = _locks(run, fill(file.runner.images.directory), facts)
    by_name = {name: refs.result()[url] for name, url in urls.items()}
    return replace(facts, locks=locks, refs=by_name)


def with_import(file: RunnerFile, facts: ClusterFacts, fill: Fill, run: CommandRunner, *, wait: float) -> ClusterFacts:
    """``facts`` with a trial import of a tiny image from a registry on loopback, on the host that imports images.

    It is not tried where that host has no enroot, which is a claim of its own, nor on a node that was not probed.
    """
    images = file.runner.images
    side = facts.side(images.import_on)
    if isinstance(side, Unknown) or isinstance(side.enroot, Unknown):
        return facts
    argv = [sys.executable, "-m", "launcher.doctor.import_proof", fill(images.temporary or "/tmp")]
    argv.append(images.squash_options)
    if images.import_on == "compute" and file.runner.scheduler.kind == "slurm":
        argv = ["srun", *_srun_options(file, facts.slurm)[0], f"--immediate={wait:.0f}", *argv]
    answer = run(argv, timeout=wait + SCRIPT_TIMEOUT * 2)
    try:
        return replace(facts, imports=ImportTrial(**json.loads(answer.stdout.splitlines()[-1])))
    except (IndexError, ValueError, TypeError):
        return replace(facts, imports=no_answer(answer))


def _srun_options(file: RunnerFile, slurm: SlurmFacts) -> tuple[list[str], ...]:
    """srun's options for one node, in the order to try them: without a GPU, then with one.

    srun refuses a job that excludes an unknown node, so only nodes that exist are excluded.
    """
    scheduler, existing = file.runner.scheduler, {node.name for node in or_empty(slurm.nodes)}
    excluded = (name for rule in file.runner.exclude_nodes for name in node_names(rule.node) if name in existing)
    exclude = ",".join(dict.fromkeys(excluded))
    values = {"partition": scheduler.partition, "account": scheduler.account, "exclude": exclude}
    options = [f"--{name}={value}" for name, value in values.items() if value]
    has_gpus = any(node.gpus for node in or_empty(slurm.nodes_of(scheduler.partition)))
    forms = scheduling.gpu_requests(slurm, scheduler.partition) if has_gpus else []
    return (options, *([*options, form] for form in forms[:1] + forms[-1:]))


def _locks(run: CommandRunner, directory: str, facts: ClusterFacts) -> Fact[LockProbe]:
    """Whether locks hold in the image directory between two processes here."""
    view = facts.login.directory(directory)
    if isinstance(view, Unknown) or view.write_error:
        return Unknown("the image directory cannot be written from here")
    try:
        return probe.probe_processes(Path(view.existing), run)
    except ImageError as error:
        return Unknown(error.message)


def slurm_facts(run: CommandRunner) -> SlurmFacts:
    """The facts of Slurm, and of this user's accounts. It takes as long as the slowest program."""
    user = pwd.getpwuid(os.getuid()).pw_name
    show, accounting = ["scontrol", "--all", "--oneliner", "show"], ["sacctmgr", "-nP", "show"]
    queries: dict[str, tuple[list[str], Callable[[str], Any]]] = {
        "version": (["sinfo", "--version"], partial(_first, r"\d+\.\d+\.\d+\S*")),
        "config": (["scontrol", "show", "config"], programs.config),
        "partitions": ([*show, "partition"], programs.partitions),
        "nodes": ([*show, "node"], programs.nodes),
        "default_account": ([*accounting, "user", user, "format=DefaultAccount"], partial(_first, r"\S+")),
    }
    with ThreadPoolExecutor(len(queries)) as pool:
        answers = {name: pool.submit(ask, run, argv, read) for name, (argv, read) in queries.items()}
        config = answers["config"].result()
        cluster = config.get("ClusterName") if isinstance(config, Mapping) else None
        mine = [f"user={user}", *([f"cluster={cluster}"] if cluster else []), "format=Account,Partition"]
        associations = ask(run, [*accounting, "assoc", *mine], programs.associations, may_be_empty=True)
    return SlurmFacts(user=user, associations=associations, **{name: fact.result() for name, fact in answers.items()})


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


def check_submissions(run: CommandRunner, jobs: Mapping[str, Sequence[str]]) -> dict[str, SubmissionCheck]:
    """Whether Slurm would accept each of these jobs (sbatch's options, by name).

    `sbatch --test-only` submits nothing. It asks the controller, so account, QOS, limits and GRES are judged as those
    of a real job; each call uses up a job id (22.05).
    """
    checks: dict[str, SubmissionCheck] = {}
    for name, options in jobs.items():
        argv = ["sbatch", "--test-only", "--job-name=launcher-doctor", *options, "--wrap=true"]
        checks[name] = _submission_check(tuple(options), run(argv, timeout=TIMEOUT))
        if checks[name].accepted is None:
            break  # the controller does not answer, and each further call would cost the whole time-out
    return checks


def _submission_check(options: tuple[str, ...], answer: Completed) -> SubmissionCheck:
    text = re.sub(r"sbatch: (error: )?|allocation failure: ", "", answer.tail(3))
    text = "; ".join(dict.fromkeys(line.strip() for line in text.splitlines() if "Try " not in line))
    if answer.ok:
        return SubmissionCheck(options, True, text)
    if answer.timed_out or answer.returncode == NOT_FOUND or _SILENT.search(answer.stderr):
        return SubmissionCheck(options, None, no_answer(answer).why)
    return SubmissionCheck(options, False, text or f"exit {answer.returncode}")


def repository_refs(run: CommandRunner, urls: Iterable[str]) -> dict[str, Fact[Mapping[str, str]]]:
    """The refs of git repositories, by URL."""
    distinct = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(4) as pool:
        refs = pool.map(lambda url: ask(run, ["git", "ls-remote", "--", url], programs.refs), distinct)
    return dict(zip(distinct, refs, strict=True))


def probe_hosts(
    run: CommandRunner,
    paths: Iterable[str],
    srun: Sequence[Sequence[str]] = (),
    *,
    wait: float = 60.0,
    meeting_directory: str = "",
    local_locks: bool = False,
    checks: Mapping[str, list[str]] = MappingProxyType({}),
) -> tuple[Host, Fact[Host]]:
    """This host and one compute node, and the directories ``paths`` as each of them sees them.

    ``srun`` are sets of srun's options: the next set is tried when Slurm refuses one, because a partition may require
    that jobs request GPUs. Without any set no job is started. The job may wait ``wait`` seconds for its node. Node and
    host compare clock and locks in ``meeting_directory``, one of the paths; ``checks`` are further checks on the node,
    by name. No file is left behind, unless the node's job is killed: then an empty hidden one on a disk of that node.
    """
    paths = list(dict.fromkeys(paths))
    token = secrets.token_hex(4)
    script = ["sh", "-c", _SCRIPT, "sh", token]
    login = _read_host(run([*script, "login", *paths], timeout=SCRIPT_TIMEOUT), token, paths)
    if isinstance(login, Unknown):
        login = Host("this host", login, login, login, unseen=login.why)
    compute: Fact[Host] = Unknown("no job was started to look (--no-node)")
    written = {path: str(paths.index(path)) for path, view in login.directories.items() if not view.write_error}
    seen_again: dict[str, str] = {}
    try:
        if srun:
            meeting = login.directories[meeting_directory].existing if meeting_directory in written else None
            with answering_nodes(Path(meeting)) if meeting is not None else nullcontext() as attended_in:
                if attended_in is not None:
                    checks = {**node_checks.login_checks(attended_in, local_locks=local_locks), **checks}
                compute = _probe_node(run, srun, [token, "compute", *paths], checks, wait)
    finally:
        arguments = [text for path, i in written.items() for text in (i, login.directories[path].existing)]
        if arguments:
            seen_again = dict(_printed(run([*script, "after", *arguments], timeout=SCRIPT_TIMEOUT), token))
    if isinstance(compute, Unknown):
        return login, compute
    directories, outcomes = {}, compute.checks
    for path, view in compute.directories.items():
        shared = view.shared and (bool(view.write_error) or written.get(path) in seen_again)
        directories[path] = replace(view, shared=shared if path in written else None)
    if meeting_directory in directories and not directories[meeting_directory].shared:
        outcomes = {name: outcome for name, outcome in outcomes.items() if name not in node_checks.LOGIN_CHECKS}
    return login, replace(compute, directories=directories, checks=outcomes)


def _probe_node(
    run: CommandRunner,
    srun: Sequence[Sequence[str]],
    arguments: Sequence[str],
    checks: Mapping[str, list[str]],
    wait: float,
) -> Fact[Host]:
    """What one node sees of itself, by a short job; ``arguments`` are those of host.sh."""
    one_node = ["srun", "--nodes=1", "--ntasks=1", f"--time={JOB_MINUTES}", f"--immediate={max(1, round(wait))}"]
    one_node += ["--job-name=launcher-doctor", "--chdir=/", "--input=none"]
    program = ["bash", "-c", f"{_SCRIPT}\n{node_checks.script(checks)}", "sh", *arguments]
    compute: Fact[Host] = Unknown("no job was started to look")
    for options in srun:
        answer = run([*one_node, *options, *program], timeout=wait + SCRIPT_TIMEOUT)
        compute = _read_host(answer, arguments[0], arguments[2:])
        if isinstance(compute, Host):
            return replace(compute, checks=node_checks.outcomes(dict(_printed(answer, arguments[0])), checks))
        if answer.timed_out:
            break
        if _BUSY.search(answer.stderr):
            return Unknown(f"no node was free within {wait:.0f} s ({compute})")
    return compute


def _printed(answer: Completed, token: str) -> Iterator[tuple[str, str]]:
    """The keys and values that a script printed."""
    for line in answer.stdout.splitlines():
        if len(parts := line.split("\t", 2)) == 3 and parts[0] == token:
            yield parts[1], parts[2].strip()


def _read_host(answer: Completed, token: str, paths: Sequence[str]) -> Fact[Host]:
    """A host by the lines that host.sh printed, also where it hung in a directory and was killed."""
    printed = dict(_printed(answer, token))
    if "name" not in printed:
        return no_answer(answer) if not answer.ok else Unknown(f"{answer.argv[0]} printed nothing that could be read")
    name, devices = printed["name"], printed.get("devices", "")
    no_enroot = f"{name} has no enroot on its PATH" if "enroot.none" in printed else no_answer(answer).why
    mounts = programs.mounts(printed.get("mounts", ""))
    return Host(
        name=name,
        arch=printed.get("arch") or Unknown(no_answer(answer).why),
        enroot=printed.get("enroot") or Unknown(no_enroot),
        devices=int(devices) if devices.isdigit() else Unknown("not seen"),
        directories={path: _directory_view(printed, i) for i, path in enumerate(paths) if f"{i}.end" in printed},
        unseen="" if "end" in printed else f"{name} did not come to it: {no_answer(answer).why}",
        disks=tuple(m for m in mounts if m.source.startswith(("/dev/nvme", "/dev/md")) and m.target not in _SYSTEM),
        shares=tuple(m for m in mounts if m.network),
    )


def _directory_view(printed: dict[str, str], i: int) -> DirectoryView:
    mounts = programs.mounts(printed.get(f"{i}.mount", ""))
    blocks, _, size = printed.get(f"{i}.space", "").partition(" ")
    return DirectoryView(
        existing=printed.get(f"{i}.at", "/"),
        readable=f"{i}.readable" in printed,
        write_error="" if f"{i}.written" in printed else printed.get(f"{i}.refused") or "it cannot be written",
        mount=mounts[-1] if mounts else Unknown(f"findmnt: {printed.get(f'{i}.mount') or 'no answer'}"),
        free=int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None,
        shared={"yes": True, "no": False}.get(printed.get(f"{i}.shared", "")),
    )
