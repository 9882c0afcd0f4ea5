"""Asking a cluster about itself, from its login node: all that a runner file, or the draft of one, wants to know.

Formats are those of Slurm 20.02 and later, tried on 22.05; never ``--json`` (see launcher/slurm/commands.py).
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.core.process import NOT_FOUND
from launcher.core.slurm_notation import node_names
from launcher.doctor import host_probe, parse, required_paths, scheduling
from launcher.doctor.commands import Commands, no_answer
from launcher.doctor.draft import DraftRequest
from launcher.doctor.facts import ClusterFacts, Fact, Host, SlurmFacts, SubmissionCheck, Unknown
from launcher.doctor.required_paths import Fill
from launcher.image import probe
from launcher.image.probe import Probed
from launcher.runner.file import RunnerFile

_SILENT = re.compile(
    r"unable to contact slurm controller|connection (refused|timed out)|socket timed out|unable to establish config"
    r"|could not establish a configuration source|protocol authentication error|munge",
    re.IGNORECASE,
)
"""What sbatch says when nobody judged the job. Everything else with a non-zero exit is a refusal."""


def collect(
    file: RunnerFile,
    fill: Fill,
    commands: Commands,
    *,
    node: bool = True,
    wait: float = 60.0,
    log: Callable[[str], None] = lambda text: None,
    stand_ins: tuple[str, ...] = (),
) -> ClusterFacts:
    """Ask the cluster about everything that the file claims.

    ``fill`` puts values for the placeholders of paths. At most two short jobs of one node are started, and none without
    ``node``; ``wait`` is how many seconds each may wait for its node. ``log`` gets a line before the first job.
    ``stand_ins`` are the programs that runs of this file start in place of the cluster's own.
    """
    scheduler, runner = file.runner.scheduler, file.runner
    on_slurm = scheduler.kind == "slurm"
    slurm = slurm_facts(commands) if on_slurm else _no_slurm()
    paths = [path for _, required in required_paths.required(file, fill) for path in required.paths]
    urls = {name: fill(url) for name, url in runner.repositories.items()}
    options = _srun_options(slurm, scheduler.partition, scheduler.account, _excluded(file, slurm))
    with ThreadPoolExecutor(1) as pool:
        refs = pool.submit(repository_refs, commands, urls.values())
        submissions = check_submissions(commands, scheduling.jobs_to_check(file, slurm)) if on_slurm else {}
        job = submissions.get("job")
        start = node and job is not None and job.accepted is True
        if start:
            log(f"looking from a node of {scheduler.partition or 'the default partition'} (a job of at most 2 minutes)")
        login, compute = host_probe.probe_hosts(commands, paths, options if start else (), wait=wait)
        if node and not start and job is not None:
            compute = Unknown(f"no job was started to look: sbatch --test-only: {job.answer}")
        elif node and not on_slurm:
            compute = login  # the embedded scheduler runs its jobs on this very machine
        locks = _locks(commands, fill(runner.images.directory), login, compute, options[0], wait)
    refs_by_name = {name: refs.result()[url] for name, url in urls.items()}
    return ClusterFacts(slurm, login, compute, scheduler.partition, submissions, *locks, refs_by_name, stand_ins)


def collect_for_draft(
    request: DraftRequest, slurm: SlurmFacts, commands: Commands, *, node: bool, wait: float
) -> ClusterFacts:
    """Ask what a draft wants to know of its partition: a node, the forms of a GPU request, the directives.

    ``node`` and ``wait`` are as for `collect`; at most one job is started.
    """
    small = scheduling.smallest_job(request.partition, request.account)
    jobs = {"job": small}
    for form in scheduling.gpu_requests(slurm.nodes_of(request.partition)):
        jobs[form] = [*small, form]
    for key, (_, option) in scheduling.DIRECTIVE_SWITCHES.items():
        jobs[key] = [*small, option]
    submissions = check_submissions(commands, jobs)
    options = _srun_options(slurm, request.partition, request.account) if node else ()
    login, compute = host_probe.probe_hosts(commands, request.paths, options, wait=wait)
    return ClusterFacts(slurm, login, compute, request.partition, submissions)


def _srun_options(
    slurm: SlurmFacts, partition: str | None, account: str | None, exclude: tuple[str, ...] = ()
) -> tuple[list[str], ...]:
    """srun's options for one node, in the order to try them: without a GPU, then with one.

    A partition may refuse jobs that ask for no GPU.
    """
    words = [f"--{name}={value}" for name, value in (("partition", partition), ("account", account)) if value]
    words += [f"--exclude={','.join(exclude)}"] if exclude else []
    found = slurm.partition(partition)
    nodes = Unknown("") if found is None else slurm.nodes_of(found.name)
    forms = scheduling.gpu_requests(nodes) if not isinstance(nodes, Unknown) and any(n.gpus for n in nodes) else []
    return (words, *([*words, form] for form in forms[:1] + forms[-1:]))


def _excluded(file: RunnerFile, slurm: SlurmFacts) -> tuple[str, ...]:
    """The nodes that jobs must not get. Only those that exist: srun refuses a job that excludes an unknown node."""
    if isinstance(slurm.nodes, Unknown):
        return ()
    known = {node.name for node in slurm.nodes}
    named = [name for rule in file.runner.exclude_nodes for name in node_names(rule.node)]
    return tuple(dict.fromkeys(name for name in named if name in known))


def _no_slurm() -> SlurmFacts:
    why = Unknown("the runner's scheduler is the embedded one")
    return SlurmFacts("", why, why, why, why, why, why)


def _locks(
    commands: Commands, path: str, login: Host, compute: Fact[Host], options: list[str], wait: float
) -> tuple[Fact[Probed], Fact[Probed] | None]:
    """Whether locks hold in the image directory: between two processes here, and between here and a node.

    The second is None where the node does not see the directory.
    """
    seen = login.directory(path)
    if isinstance(seen, Unknown) or not seen.writable:
        return Unknown("the image directory cannot be written from here"), None
    directory = Path(seen.at)
    try:
        here: Fact[Probed] = probe.between_processes(directory, commands.run)
    except ImageError as error:
        here = Unknown(error.message)
    there = compute.directory(path) if isinstance(compute, Host) else compute
    if isinstance(there, Unknown) or not there.shared:
        return here, None
    try:
        return here, probe.between_hosts(directory, options, wait, commands.run)
    except ImageError as error:
        return here, Unknown(f"between this host and a node: {error.message}")


def slurm_facts(commands: Commands) -> SlurmFacts:
    """Everything that Slurm says of itself and of the user who asks. At most as slow as its slowest program."""
    user = pwd.getpwuid(os.getuid()).pw_name
    show, accounting = ["scontrol", "--all", "--oneliner", "show"], ["sacctmgr", "-nP", "show"]
    with ThreadPoolExecutor(6) as pool:
        version = pool.submit(commands.fact, ["sinfo", "--version"], lambda text: _first(r"\d+\.\d+\.\d+\S*", text))
        config = pool.submit(commands.fact, ["scontrol", "show", "config"], lambda text: parse.config(text) or None)
        partitions = pool.submit(commands.fact, [*show, "partition"], lambda text: parse.partitions(text) or None)
        nodes = pool.submit(commands.fact, [*show, "node"], lambda text: parse.nodes(text) or None)
        default = pool.submit(
            commands.fact, [*accounting, "user", user, "format=DefaultAccount"], lambda text: _first(r"\S+", text)
        )
        settings = config.result()
        name = settings.get("ClusterName") if isinstance(settings, Mapping) else None
        mine = [f"user={user}", *([f"cluster={name}"] if name else []), "format=Account,Partition"]
        associations = pool.submit(commands.fact, [*accounting, "assoc", *mine], parse.associations)
    return SlurmFacts(
        user=user,
        version=version.result(),
        config=settings,
        partitions=partitions.result(),
        nodes=nodes.result(),
        associations=associations.result(),
        default_account=default.result(),
    )


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[0] if found else None


def check_submissions(commands: Commands, jobs: Mapping[str, Sequence[str]]) -> dict[str, SubmissionCheck]:
    """Whether Slurm would take each of these jobs (sbatch's options, by name).

    `sbatch --test-only` submits nothing. It asks the controller, so account, QOS, limits and GRES are judged as those
    of a real job; each call uses up a job id (22.05).
    """
    found: dict[str, SubmissionCheck] = {}
    for name, options in jobs.items():
        found[name] = _check_submission(commands, tuple(options))
        if found[name].accepted is None:
            break  # the controller does not answer, and each further call would cost the whole time-out
    return found


def _check_submission(commands: Commands, options: tuple[str, ...]) -> SubmissionCheck:
    answer = commands.output(["sbatch", "--test-only", "--job-name=launcher-doctor", *options, "--wrap=true"])
    words = re.sub(r"sbatch: (error: )?|allocation failure: ", "", answer.tail(3))
    words = "; ".join(dict.fromkeys(line.strip() for line in words.splitlines() if "Try " not in line))[:300]
    if answer.ok:
        return SubmissionCheck(options, True, words)
    if answer.timed_out or answer.returncode == NOT_FOUND or _SILENT.search(answer.stderr):
        return SubmissionCheck(options, None, no_answer(answer).why)
    return SubmissionCheck(options, False, words or f"exit {answer.returncode}")


def repository_refs(commands: Commands, urls: Iterable[str]) -> dict[str, Fact[Mapping[str, str]]]:
    """The refs of git repositories, by URL."""
    wanted = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda url: commands.fact(["git", "ls-remote", "--", url], lambda text: parse.refs(text) or None), wanted
        )
    return dict(zip(wanted, found, strict=True))
