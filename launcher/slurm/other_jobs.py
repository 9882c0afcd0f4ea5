"""Jobs found without a run's record, and jobs of other clusters."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from launcher.core.errors import ConfigError, LauncherError
from launcher.core.process import NOT_FOUND, CommandRunner, clean_environment, run
from launcher.slurm.client import JobKey, JobState, Scheduler, SchedulerUnreachable

CLUSTERS_VARIABLE = "SLURM_CLUSTERS"
"""With it every client of Slurm works on the jobs of another cluster, as with ``--clusters``."""

TIMEOUT = 30.0

_GITHUB_RUN_ID = re.compile(r"(?<!\S)[A-Za-z0-9][A-Za-z0-9._-]*-[A-Za-z0-9._-]+-[0-9a-f]{12}(?!\S)")
"""The id of a run that a GitHub job started (`launcher.plan.derive.run_key`), among the words of a comment."""

_NO_SLURM = re.compile(r"Could not establish a configuration source")
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)


def find_named_jobs(name: str, environ: Mapping[str, str], runner: CommandRunner = run) -> list[JobKey]:
    """This user's pending and running jobs of a name whose comment has the id of a GitHub job's run: it is their token.

    An empty list on a host that belongs to no cluster: nothing was submitted from it. Raises SchedulerUnreachable.
    """
    argv = ["squeue", "-h", "-u", str(os.getuid()), "-n", name, "-o", "%A|%k"]
    done = runner(argv, timeout=TIMEOUT, env=_client_environment(environ))
    if done.returncode == NOT_FOUND or _NO_SLURM.search(done.stderr):
        return []
    if not done.ok:
        message = f"nobody could say whether a job called {name} lives: {done}"
        raise SchedulerUnreachable(message, hint=f"look with `squeue --me -n {name}`")
    rows = [line.strip().partition("|") for line in done.stdout.splitlines()]
    tokens = [(job, _GITHUB_RUN_ID.search(comment)) for job, _, comment in rows if job.isdigit()]
    return [JobKey(job, None, token[0]) for job, token in tokens if token is not None]


def refuse_other_clusters(
    environ: Mapping[str, str], options: Mapping[str, object], runner: CommandRunner = run
) -> None:
    """Raise ConfigError when the environment or the ``options`` of sbatch send the job to another cluster."""
    values = [(name, environ.get(name), "environment") for name in (CLUSTERS_VARIABLE, "SBATCH_CLUSTERS")]
    values += [(name, str(options.get(name) or ""), "sbatch_directives") for name in ("clusters", "cluster", "M")]
    for name, cluster, where in values:
        if cluster and foreign_cluster(cluster, environ, runner):
            raise ConfigError(
                f"{name} is {cluster}, and jobs are submitted to the cluster of this host, and followed there",
                where=where,
                hint="leave it out, or run the launcher on a login node of that cluster (or with its SLURM_CONF)",
            )


def foreign_cluster(cluster: str, environ: Mapping[str, str], runner: CommandRunner = run) -> str:
    """The cluster of that name, "" when it is this host's own: sites with one cluster may name it too."""
    return "" if not cluster or _own_cluster(environ, runner) == cluster.lower() else cluster


def other_clusters(environ: Mapping[str, str], runner: CommandRunner = run) -> tuple[str, ...] | None:
    """The clusters beside this host's own that accounting knows; None when it does not answer."""
    known = runner(
        ["sacctmgr", "-n", "-P", "show", "clusters", "format=Cluster"], timeout=10.0, env=_client_environment(environ)
    )
    names = known.stdout.split()
    if not known.ok or len(names) < 2:
        return () if known.ok else None
    own = _own_cluster(environ, runner)
    return tuple(name for name in names if name.lower() != own)


def _own_cluster(environ: Mapping[str, str], runner: CommandRunner) -> str:
    config = runner(["scontrol", "show", "config"], timeout=TIMEOUT, env=_client_environment(environ))
    name = _CLUSTER_NAME.search(config.stdout)
    return name[1].lower() if name is not None else ""


def _client_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in clean_environment(environ).items() if not k.startswith("SQUEUE_")}


def _open_by_commands(cluster: str) -> Scheduler:
    from launcher.slurm.commands import SlurmCommands  # who submits without Slurm has no use for it

    return SlurmCommands(cluster=cluster)


class MultiClusterScheduler:
    """A Scheduler that searches all clusters for a job, and queries and ends each job on its own cluster: others have
    other jobs under its id. A job without a cluster is ``own_cluster``'s."""

    def __init__(
        self,
        own_cluster: Scheduler,
        open_cluster: Callable[[str], Scheduler] = _open_by_commands,
        list_others: Callable[[], Sequence[str] | None] = lambda: other_clusters(os.environ),
    ) -> None:
        self.name, self.own_cluster = own_cluster.name, own_cluster
        self._open_cluster, self._list_others = lru_cache(open_cluster), list_others
        self._others: Sequence[str] | None = None

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        groups = self._by_cluster(jobs)
        return {job: state for scheduler, group in groups for job, state in scheduler.poll(group).items()}

    def find(self, token: str) -> list[JobKey]:
        """Search this host's cluster, and the others when it has no such job: a submission whose answer was lost may
        have gone there."""
        jobs: list[JobKey] = []
        errors: list[SchedulerUnreachable] = []
        for cluster in self._clusters():
            try:
                jobs += [replace(job, cluster=cluster) for job in self._scheduler_of(cluster).find(token)]
            except SchedulerUnreachable as error:
                errors.append(error)
            if jobs and not cluster:
                break
        if errors and not jobs:
            raise errors[0]
        return jobs

    def _clusters(self) -> Iterator[str]:
        yield ""
        if self._others is None:
            self._others = self._list_others()
        yield from self._others or ()

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """As `Scheduler.cancel`; a cluster that does not answer does not prevent the cancel on another."""
        errors: list[LauncherError] = []
        for scheduler, group in self._by_cluster(jobs):
            try:
                scheduler.cancel(group)
            except LauncherError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def release(self, job: JobKey) -> None:
        self._scheduler_of(job.cluster).release(job)

    def describe(self, job: JobKey) -> dict[str, str]:
        return self._scheduler_of(job.cluster).describe(job)

    def _by_cluster(self, jobs: Sequence[JobKey]) -> list[tuple[Scheduler, list[JobKey]]]:
        groups = defaultdict(list)
        for job in jobs:
            groups[job.cluster].append(job)
        return [(self._scheduler_of(cluster), group) for cluster, group in groups.items()]

    def _scheduler_of(self, cluster: str) -> Scheduler:
        return self._open_cluster(cluster) if cluster else self.own_cluster
