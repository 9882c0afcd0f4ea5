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
from launcher.doctor.commands import Asking, silence
from launcher.doctor.facts import Cluster, Fact, Host, Site, Tried, Unknown
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


def inquire(
    file: RunnerFile,
    fill: Fill,
    asking: Asking,
    *,
    node: bool = True,
    wait: float = 60.0,
    say: Callable[[str], None] = lambda text: None,
    stand_ins: tuple[str, ...] = (),
) -> Site:
    """Ask the cluster about all that the file claims.

    At most two short jobs of one node are started, none without ``node``; ``wait`` is how many seconds each may wait
    for its node. ``say`` is told before the first is. ``stand_ins`` are the programs that runs of this file start in
    place of the cluster's own.
    """
    scheduler, runner = file.runner.scheduler, file.runner
    slurm = scheduler.kind == "slurm"
    facts = cluster(asking) if slurm else _no_slurm()
    paths = [path for _, need in required_paths.needs(file, fill) for path in need.paths]
    urls = {name: fill(url) for name, url in runner.repositories.items()}
    options = srun_options(facts, scheduler.partition, scheduler.account, _excluded(file, facts))
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(refs, asking, urls.values())
        accepted = tried(asking, scheduling.questions(file, facts)) if slurm else {}
        job = accepted.get("job")
        start = node and job is not None and job.accepted is True
        if start:
            say(f"looking from a node of {scheduler.partition or 'the default partition'} (a job of at most 2 minutes)")
        login, compute = host_probe.look(asking, paths, options if start else (), wait=wait)
        if node and not start and job is not None:
            compute = Unknown(f"no job was started to look: sbatch --test-only: {job.said}")
        elif node and not slurm:
            compute = login  # the embedded scheduler runs its jobs on this very machine
        locks = _locks(asking, fill(runner.images.directory), login, compute, options[0], wait)
    by_name = {name: answers.result()[url] for name, url in urls.items()}
    return Site(facts, login, compute, scheduler.partition, accepted, *locks, by_name, stand_ins)


def survey(
    asking: Asking, cluster: Cluster, partition: str, account: str | None, paths: list[str], *, node: bool, wait: float
) -> Site:
    """Ask what a draft wants to know of one partition: its nodes, the forms of a GPU request, the directives."""
    small = scheduling.base(partition, account)
    questions = {"job": small}
    for form in scheduling.gpu_forms(cluster.nodes_of(partition)):
        questions[form] = [*small, form]
    for key, (_, option) in scheduling.SWITCHES.items():
        questions[key] = [*small, option]
    answers = tried(asking, questions)
    options = srun_options(cluster, partition, account) if node else ()
    login, compute = host_probe.look(asking, paths, options, wait=wait)
    return Site(cluster, login, compute, partition, answers)


def srun_options(
    cluster: Cluster, partition: str | None, account: str | None, exclude: tuple[str, ...] = ()
) -> tuple[list[str], ...]:
    """srun's options for one node: without a GPU, and with one for a partition that refuses jobs without."""
    words = [f"--{name}={value}" for name, value in (("partition", partition), ("account", account)) if value]
    words += [f"--exclude={','.join(exclude)}"] if exclude else []
    found = cluster.partition(partition)
    nodes = Unknown("") if found is None else cluster.nodes_of(found.name)
    forms = scheduling.gpu_forms(nodes) if not isinstance(nodes, Unknown) and any(n.gpus for n in nodes) else []
    return (words, *([*words, form] for form in forms[:1] + forms[-1:]))


def _excluded(file: RunnerFile, cluster: Cluster) -> tuple[str, ...]:
    """The nodes that jobs must not get, as far as they exist: srun refuses a job that excludes another."""
    if isinstance(cluster.nodes, Unknown):
        return ()
    known = {node.name for node in cluster.nodes}
    named = [name for rule in file.runner.exclude_nodes for name in node_names(rule.node)]
    return tuple(dict.fromkeys(name for name in named if name in known))


def _no_slurm() -> Cluster:
    why = Unknown("the runner's scheduler is the embedded one")
    return Cluster("", why, why, why, why, why, why)


def _locks(
    asking: Asking, path: str, login: Host, compute: Fact[Host], options: list[str], wait: float
) -> tuple[Fact[Probed], Fact[Probed] | None]:
    """Whether locks hold in the image directory: between two processes here, and between here and a node.

    The second is None where the node does not see the directory.
    """
    seen = login.directory(path)
    if isinstance(seen, Unknown) or not seen.writable:
        return Unknown("the image directory cannot be written from here"), None
    directory = Path(seen.at)
    try:
        here: Fact[Probed] = probe.between_processes(directory, asking.run)
    except ImageError as error:
        here = Unknown(error.message)
    there = compute.directory(path) if isinstance(compute, Host) else compute
    if isinstance(there, Unknown) or not there.shared:
        return here, None
    try:
        return here, probe.between_hosts(directory, options, wait, asking.run)
    except ImageError as error:
        return here, Unknown(f"between this host and a node: {error.message}")


def cluster(asking: Asking) -> Cluster:
    """Everything that Slurm says of itself and of the user who asks. At most as slow as its slowest program."""
    user = pwd.getpwuid(os.getuid()).pw_name
    show, accounting = ["scontrol", "--all", "--oneliner", "show"], ["sacctmgr", "-nP", "show"]
    with ThreadPoolExecutor(6) as pool:
        version = pool.submit(asking.fact, ["sinfo", "--version"], _version)
        config = pool.submit(asking.fact, ["scontrol", "show", "config"], lambda text: parse.config(text) or None)
        partitions = pool.submit(asking.fact, [*show, "partition"], lambda text: parse.partitions(text) or None)
        nodes = pool.submit(asking.fact, [*show, "node"], lambda text: parse.nodes(text) or None)
        default = pool.submit(asking.fact, [*accounting, "user", user, "format=DefaultAccount"], _first_line)
        settings = config.result()
        name = settings.get("ClusterName") if isinstance(settings, Mapping) else None
        mine = [f"user={user}", *([f"cluster={name}"] if name else []), "format=Account,Partition"]
        associations = pool.submit(asking.fact, [*accounting, "assoc", *mine], parse.associations)
    return Cluster(
        user=user,
        version=version.result(),
        config=settings,
        partitions=partitions.result(),
        nodes=nodes.result(),
        associations=associations.result(),
        default_account=default.result(),
    )


def _version(text: str) -> str | None:
    found = re.search(r"\d+\.\d+\.\d+\S*", text)
    return found[0] if found else None


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def tried(asking: Asking, questions: Mapping[str, Sequence[str]]) -> dict[str, Tried]:
    """Whether Slurm would take a job with these options: `sbatch --test-only` judges one and submits none.

    It asks the controller, so account, QOS, limits and GRES are judged as of a real job; a job id is used up (22.05).
    No more is asked after the first silence: each one costs the whole time-out while the controller hangs.
    """
    found: dict[str, Tried] = {}
    for name, options in questions.items():
        found[name] = _tried(asking, tuple(options))
        if found[name].accepted is None:
            break
    return found


def _tried(asking: Asking, options: tuple[str, ...]) -> Tried:
    said = asking.say(["sbatch", "--test-only", "--job-name=launcher-doctor", *options, "--wrap=true"])
    words = re.sub(r"sbatch: (error: )?|allocation failure: ", "", said.tail(3))
    words = "; ".join(dict.fromkeys(line.strip() for line in words.splitlines() if "Try " not in line))[:300]
    if said.ok:
        return Tried(options, True, words)
    if said.timed_out or said.returncode == NOT_FOUND or _SILENT.search(said.stderr):
        return Tried(options, None, silence(said).why)
    return Tried(options, False, words or f"exit {said.returncode}")


def refs(asking: Asking, urls: Iterable[str]) -> dict[str, Fact[Mapping[str, str]]]:
    """The refs of git repositories, by URL."""
    wanted = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda url: asking.fact(["git", "ls-remote", "--", url], lambda text: parse.refs(text) or None), wanted
        )
    return dict(zip(wanted, found, strict=True))
