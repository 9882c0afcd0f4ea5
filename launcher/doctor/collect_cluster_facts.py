"""Everything that a runner file, or the draft of one, wants to know of the cluster that it is on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.core.slurm_notation import node_names
from launcher.doctor import host_probe, queries, required_paths, scheduling
from launcher.doctor.facts import Cluster, Fact, Host, Locks, Site, Unknown
from launcher.doctor.queries import Asking
from launcher.image import probe
from launcher.runner.file import RunnerFile

Say = Callable[[str], None]


def inquire(
    file: RunnerFile,
    fill: required_paths.Fill,
    asking: Asking,
    *,
    node: bool = True,
    wait: float = 60.0,
    say: Say = lambda text: None,
) -> Site:
    """Ask the cluster about all that the file claims.

    Two short jobs of one node at most (none without ``node``); ``wait`` is how many seconds each may wait for one.
    """
    scheduler = file.runner.scheduler
    cluster = queries.cluster(asking) if scheduler.kind == "slurm" else _no_slurm()
    paths = [path for need in required_paths.needs(file, fill) for path in need.paths]
    options = srun_options(cluster, scheduler.partition, scheduler.account, _excluded(file, cluster))
    with ThreadPoolExecutor(2) as pool:
        urls = [fill(url) for url in file.runner.repositories.values()]
        refs = pool.submit(queries.refs, asking, urls)
        tried = queries.tried(asking, scheduling.questions(file, cluster)) if scheduler.kind == "slurm" else {}
        job = tried.get("job")
        start = node and job is not None and job.accepted is True
        if start:
            say(f"looking from a node of {scheduler.partition or 'the default partition'} (a job of at most 2 minutes)")
        login, compute = host_probe.look(asking, paths, options if start else (), wait=wait)
        if node and not start and job is not None:
            compute = Unknown(f"no job was started to look: sbatch --test-only: {job.said}")
        elif node and scheduler.kind == "local":
            compute = login  # the embedded scheduler runs its jobs on this very machine
        locks = _locks(file, fill, asking, login, compute, options, wait)
    return Site(cluster, login, compute, tried, locks, refs.result())


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
    tried = queries.tried(asking, questions)
    options = srun_options(cluster, partition, account) if node else ()
    login, compute = host_probe.look(asking, paths, options, wait=wait)
    return Site(cluster, login, compute, tried)


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


def _locks(
    file: RunnerFile,
    fill: required_paths.Fill,
    asking: Asking,
    login: Host,
    compute: Fact[Host],
    options: tuple[list[str], ...],
    wait: float,
) -> tuple[Fact[Locks], ...]:
    """Whether locks hold in the image directory: between two processes here, and between here and a node."""
    path = fill(file.runner.images.directory)
    seen = login.directory(path)
    if isinstance(seen, Unknown) or not seen.writable:
        return (Unknown("the image directory cannot be written from here"),)
    directory = Path(seen.at)

    def told(probed: probe.Probed) -> Locks:
        said = f"flock {probed.flock}, owner file {probed.owner_file}"
        late = "" if probed.clocks < 5 else f"; the clocks differ by {probed.clocks:g} s"
        return Locks(probed.where, probed.one_at_a_time, said + late)

    found: list[Fact[Locks]] = []
    try:
        found.append(told(probe.between_processes(directory, asking.run)))
    except ImageError as error:
        found.append(Unknown(error.message))
    there = compute.directory(path) if isinstance(compute, Host) else None
    if file.runner.scheduler.kind == "slurm" and not isinstance(there, Unknown) and there is not None and there.shared:
        try:
            found.append(told(probe.between_hosts(directory, options[0], wait, asking.run)))
        except ImageError as error:
            found.append(Unknown(f"between this host and a node: {error.message}"))
    return tuple(found)


def _no_slurm() -> Cluster:
    why = Unknown("the runner's scheduler is the embedded one")
    return Cluster("", why, why, why, why, why, why)
