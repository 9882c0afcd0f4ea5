"""Asking a cluster about itself, from its login node: all that a runner file, or the draft of one, wants to know.

Formats are those of Slurm 20.02 and later, tried on 22.05; never ``--json`` (see launcher/slurm/commands.py).

What one host sees is printed by host.sh, which runs here and, by one srun, on one compute node.
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
from launcher.core.node_partner import attended
from launcher.core.process import NOT_FOUND, CommandRunner, Completed
from launcher.core.slurm_notation import node_names
from launcher.doctor import comparison, node_looks, programs, scheduling
from launcher.doctor.comparison import Fill
from launcher.doctor.facts import (
    ClusterFacts,
    DirectoryView,
    Fact,
    Host,
    Imported,
    SlurmFacts,
    SubmissionCheck,
    Unknown,
    listed,
)
from launcher.doctor.programs import TIMEOUT, ask, no_answer
from launcher.image import probe
from launcher.image.probe import LockProbe
from launcher.runner.file import RunnerFile

SCRIPT_TIMEOUT = 60.0
"""Seconds that the script may take: looking at a directory of a dead NFS server hangs."""

JOB_MINUTES = 2
"""Time limit of the node's job; Slurm's smallest unit is a minute."""

_SILENT = re.compile(
    r"unable to contact slurm controller|connection (refused|timed out)|socket timed out|unable to establish config"
    r"|could not establish a configuration source|protocol authentication error|munge",
    re.IGNORECASE,
)
"""What sbatch says when nobody judged the job. Everything else with a non-zero exit is a refusal."""

_BUSY = re.compile(r"nodes are busy|immediate execution impossible", re.IGNORECASE)
"""What srun says when its --immediate is over (22.05 and later: the first)."""

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
    """Ask about the jobs and the directories of a file, of a cluster whose Slurm was asked already.

    ``fill`` puts values for the placeholders of paths. With ``node`` a short job looks from a node, and ``log`` gets a
    line before; ``wait`` is how many seconds it may wait for its node.
    """
    on_slurm, partition = file.runner.scheduler.kind == "slurm", file.runner.scheduler.partition
    paths = [path for required in comparison.required(file, fill) for path in required.paths]
    submissions = check_submissions(run, scheduling.jobs_to_check(file, slurm)) if on_slurm else {}
    one_node = {"job", *scheduling.gpu_requests(slurm, partition)}  # a partition may refuse jobs that ask for no GPU
    start = node and any(tried.accepted for name, tried in submissions.items() if name in one_node)
    if start:
        log(f"looking from a node of {partition or 'the default partition'} (a job of at most {JOB_MINUTES} minutes)")
    options = _srun_options(file, slurm) if start else ()
    meet, looks = fill(file.runner.images.directory), node_looks.of_checkpoints(file, fill)
    storage = file.storage_of(meet)
    local = storage is not None and storage.locks == "local"
    login, compute = probe_hosts(run, paths, options, wait=wait, meet=meet, local_locks=local, looks=looks)
    if node and not on_slurm:
        compute = login  # the embedded scheduler runs its jobs on this very machine
    elif node and not start:
        compute = Unknown(f"no job was started to look: sbatch --test-only: {submissions['job'].answer}")
    return ClusterFacts(slurm, login, compute, partition, submissions)


def with_locks_and_refs(file: RunnerFile, facts: ClusterFacts, fill: Fill, run: CommandRunner) -> ClusterFacts:
    """Ask the repositories for their refs, too, and try locks between two processes here."""
    urls = {name: fill(url) for name, url in file.runner.repositories.items()}
    with ThreadPoolExecutor(1) as pool:
        refs = pool.submit(repository_refs, run, urls.values())
        locks = _locks(run, fill(file.runner.images.directory), facts)
    by_name = {name: refs.result()[url] for name, url in urls.items()}
    return replace(facts, locks=locks, refs=by_name)


def with_import(file: RunnerFile, facts: ClusterFacts, fill: Fill, run: CommandRunner, *, wait: float) -> ClusterFacts:
    """Have enroot import a tiny image from a registry on loopback, where the file says that images are imported.

    Not tried where enroot is not, which is said anyway, and on a node unless one was looked at.
    """
    images = file.runner.images
    side = facts.side(images.import_on)
    if isinstance(side, Unknown) or isinstance(side.enroot, Unknown):
        return facts
    place = fill(images.temporary or "/tmp")
    own = [sys.executable, "-m", "launcher.doctor.import_proof", place, images.squash_options]
    on_node = images.import_on == "compute" and file.runner.scheduler.kind == "slurm"
    argv = [*(["srun", *_srun_options(file, facts.slurm)[0], f"--immediate={wait:.0f}"] if on_node else []), *own]
    answer = run(argv, timeout=wait + SCRIPT_TIMEOUT * 2)
    try:
        return replace(facts, imports=Imported(**json.loads(answer.stdout.splitlines()[-1])))
    except (IndexError, ValueError, TypeError):
        return replace(facts, imports=no_answer(answer))


def _srun_options(file: RunnerFile, slurm: SlurmFacts) -> tuple[list[str], ...]:
    """srun's options for one node, in the order to try them: without a GPU, then with one.

    Only nodes that exist are left out: srun refuses a job that excludes an unknown one.
    """
    scheduler, there = file.runner.scheduler, {each.name for each in listed(slurm.nodes)}
    named = (name for rule in file.runner.exclude_nodes for name in node_names(rule.node) if name in there)
    exclude = ",".join(dict.fromkeys(named))
    given = {"partition": scheduler.partition, "account": scheduler.account, "exclude": exclude}
    words = [f"--{name}={value}" for name, value in given.items() if value]
    gpus = any(node.gpus for node in listed(slurm.nodes_of(scheduler.partition)))
    forms = scheduling.gpu_requests(slurm, scheduler.partition) if gpus else []
    return (words, *([*words, form] for form in forms[:1] + forms[-1:]))


def _locks(run: CommandRunner, path: str, facts: ClusterFacts) -> Fact[LockProbe]:
    """Whether locks hold in the image directory between two processes here."""
    seen = facts.login.directory(path)
    if isinstance(seen, Unknown) or not seen.writable:
        return Unknown("the image directory cannot be written from here")
    try:
        return probe.probe_processes(Path(seen.at), run)
    except ImageError as error:
        return Unknown(error.message)


def slurm_facts(run: CommandRunner) -> SlurmFacts:
    """Everything that Slurm says of itself and of the user who asks. At most as slow as its slowest program."""
    user = pwd.getpwuid(os.getuid()).pw_name
    show, accounting = ["scontrol", "--all", "--oneliner", "show"], ["sacctmgr", "-nP", "show"]
    questions: dict[str, tuple[list[str], Callable[[str], Any]]] = {
        "version": (["sinfo", "--version"], partial(_first, r"\d+\.\d+\.\d+\S*")),
        "config": (["scontrol", "show", "config"], programs.config),
        "partitions": ([*show, "partition"], programs.partitions),
        "nodes": ([*show, "node"], programs.nodes),
        "default_account": ([*accounting, "user", user, "format=DefaultAccount"], partial(_first, r"\S+")),
    }
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = {name: pool.submit(ask, run, argv, read) for name, (argv, read) in questions.items()}
        config = asked["config"].result()
        cluster = config.get("ClusterName") if isinstance(config, Mapping) else None
        mine = [f"user={user}", *([f"cluster={cluster}"] if cluster else []), "format=Account,Partition"]
        associations = ask(run, [*accounting, "assoc", *mine], programs.associations, may_be_empty=True)
    return SlurmFacts(user=user, associations=associations, **{name: fact.result() for name, fact in asked.items()})


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[0] if found else ""


def check_submissions(run: CommandRunner, jobs: Mapping[str, Sequence[str]]) -> dict[str, SubmissionCheck]:
    """Whether Slurm would take each of these jobs (sbatch's options, by name).

    `sbatch --test-only` submits nothing. It asks the controller, so account, QOS, limits and GRES are judged as those
    of a real job; each call uses up a job id (22.05).
    """
    found: dict[str, SubmissionCheck] = {}
    for name, options in jobs.items():
        argv = ["sbatch", "--test-only", "--job-name=launcher-doctor", *options, "--wrap=true"]
        found[name] = _judged(tuple(options), run(argv, timeout=TIMEOUT))
        if found[name].accepted is None:
            break  # the controller does not answer, and each further call would cost the whole time-out
    return found


def _judged(options: tuple[str, ...], answer: Completed) -> SubmissionCheck:
    words = re.sub(r"sbatch: (error: )?|allocation failure: ", "", answer.tail(3))
    words = "; ".join(dict.fromkeys(line.strip() for line in words.splitlines() if "Try " not in line))
    if answer.ok:
        return SubmissionCheck(options, True, words)
    if answer.timed_out or answer.returncode == NOT_FOUND or _SILENT.search(answer.stderr):
        return SubmissionCheck(options, None, no_answer(answer).why)
    return SubmissionCheck(options, False, words or f"exit {answer.returncode}")


def repository_refs(run: CommandRunner, urls: Iterable[str]) -> dict[str, Fact[Mapping[str, str]]]:
    """The refs of git repositories, by URL."""
    wanted = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda url: ask(run, ["git", "ls-remote", "--", url], programs.refs), wanted)
    return dict(zip(wanted, found, strict=True))


def probe_hosts(
    run: CommandRunner,
    paths: Iterable[str],
    srun: Sequence[Sequence[str]] = (),
    *,
    wait: float = 60.0,
    meet: str = "",
    local_locks: bool = False,
    looks: Mapping[str, list[str]] = MappingProxyType({}),
) -> tuple[Host, Fact[Host]]:
    """This host and one compute node, and the directories ``paths`` as each of them sees them.

    ``srun`` are sets of srun's options: the next set is tried when Slurm refuses one, because a partition may want GPUs
    to be asked for. Without any set no job is started. ``wait`` is how many seconds to wait for a node. In ``meet``,
    one of the paths, node and host compare clock and locks; ``looks`` are what else is looked at there, by name. No
    file is left behind, unless the node's job is killed in between: then an empty hidden one on a disk of that node.
    """
    wanted = list(dict.fromkeys(paths))
    token = secrets.token_hex(4)
    script = ["sh", "-c", _SCRIPT, "sh", token]
    here = run([*script, "login", *wanted], timeout=SCRIPT_TIMEOUT)
    login = _host(here, token, wanted)
    if isinstance(login, Unknown):
        login = Host("this host", login, login, login, unseen=login.why)
    compute: Fact[Host] = Unknown("no job was started to look (--no-node)")
    returned: dict[str, str] = {}
    try:
        if srun:
            place = login.directories.get(meet)
            with attended(Path(place.at)) if place is not None and place.writable else nullcontext() as met:
                looks = {**(node_looks.of_login(met, local_locks=local_locks) if met is not None else {}), **looks}
                compute = _look_from_a_node(run, srun, [token, "compute", *wanted], looks, wait)
    finally:
        ours = {path: str(wanted.index(path)) for path, seen in login.directories.items() if seen.writable}
        if places := [word for path, index in ours.items() for word in (index, login.directories[path].at)]:
            returned = dict(_printed(run([*script, "after", *places], timeout=SCRIPT_TIMEOUT), token))
    if isinstance(compute, Unknown):
        return login, compute
    directories, looked = {}, compute.looks
    for path, seen in compute.directories.items():
        both = seen.shared and (not seen.writable or ours.get(path) in returned)
        directories[path] = replace(seen, shared=both if path in ours else None)
    if meet in directories and not directories[meet].shared:
        looked = {name: fact for name, fact in looked.items() if name not in node_looks.OF_LOGIN}
    return login, replace(compute, directories=directories, looks=looked)


def _look_from_a_node(
    run: CommandRunner,
    srun: Sequence[Sequence[str]],
    words: Sequence[str],
    looks: Mapping[str, list[str]],
    wait: float,
) -> Fact[Host]:
    """What one node sees of itself, by a short job; ``words`` are what host.sh is given."""
    one_node = ["srun", "--nodes=1", "--ntasks=1", f"--time={JOB_MINUTES}", f"--immediate={max(1, round(wait))}"]
    one_node += ["--job-name=launcher-doctor", "--chdir=/", "--input=none"]
    program = ["bash", "-c", f"{_SCRIPT}\n{node_looks.script(looks)}", "sh", *words]
    compute: Fact[Host] = Unknown("no job was started to look")
    for options in srun:
        there = run([*one_node, *options, *program], timeout=wait + SCRIPT_TIMEOUT)
        compute = _host(there, words[0], words[2:])
        if isinstance(compute, Host):
            return replace(compute, looks=node_looks.read(dict(_printed(there, words[0])), looks))
        if there.timed_out:
            break
        if _BUSY.search(there.stderr):
            return Unknown(f"no node was free within {wait:.0f} s ({compute})")
    return compute


def _printed(answer: Completed, token: str) -> Iterator[tuple[str, str]]:
    """The keys and values that a script printed."""
    for line in answer.stdout.splitlines():
        if len(parts := line.split("\t", 2)) == 3 and parts[0] == token:
            yield parts[1], parts[2].strip()


def _host(answer: Completed, token: str, wanted: Sequence[str]) -> Fact[Host]:
    """A host, read from the lines that the script printed before it ended, or hung in a directory and was killed."""
    printed = dict(_printed(answer, token))
    if "name" not in printed:
        return no_answer(answer) if not answer.ok else Unknown(f"{answer.argv[0]} printed nothing that could be read")
    name, devices = printed["name"], printed.get("devices", "")
    no_enroot = f"{name} has no enroot on its PATH" if "enroot.none" in printed else no_answer(answer).why
    mounted = programs.mounts(printed.get("mounts", ""))
    return Host(
        name=name,
        arch=printed.get("arch") or Unknown(no_answer(answer).why),
        enroot=printed.get("enroot") or Unknown(no_enroot),
        devices=int(devices) if devices.isdigit() else Unknown("not seen"),
        directories={path: _seen(printed, i) for i, path in enumerate(wanted) if f"{i}.end" in printed},
        unseen="" if "end" in printed else f"{name} did not come to it: {no_answer(answer).why}",
        disks=tuple(m for m in mounted if m.source.startswith(("/dev/nvme", "/dev/md")) and m.target not in _SYSTEM),
        shares=tuple(m for m in mounted if m.network),
    )


def _seen(printed: dict[str, str], i: int) -> DirectoryView:
    found = programs.mounts(printed.get(f"{i}.mount", ""))
    blocks, _, size = printed.get(f"{i}.space", "").partition(" ")
    return DirectoryView(
        at=printed.get(f"{i}.at", "/"),
        readable=f"{i}.readable" in printed,
        refused="" if f"{i}.written" in printed else printed.get(f"{i}.refused") or "it cannot be written",
        mount=found[-1] if found else Unknown(f"findmnt: {printed.get(f'{i}.mount') or 'no answer'}"),
        free=int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else None,
        shared={"yes": True, "no": False}.get(printed.get(f"{i}.shared", "")),
    )
