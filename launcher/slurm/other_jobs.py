"""Jobs that were found without a record, and jobs of other clusters."""

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
"""By it every client of Slurm asks and ends jobs of another cluster, as by ``--clusters``."""

TIMEOUT = 30.0

_GITHUB_RUN_ID = re.compile(r"(?<!\S)[A-Za-z0-9][A-Za-z0-9._-]*-[A-Za-z0-9._-]+-[0-9a-f]{12}(?!\S)")
"""The id of a run that a GitHub job began (`launcher.plan.derive.run_key`), among the words of a comment."""

_NO_SLURM = re.compile(r"Could not establish a configuration source")
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)


def find_named_jobs(name: str, environ: Mapping[str, str], runner: CommandRunner = run) -> list[JobKey]:
    """This user's jobs of a name that wait or run and carry the id of a GitHub job's run, which is their token.

    None on a host that belongs to no cluster: nothing was submitted from it. Raises SchedulerUnreachable.
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


def refuse_other_clusters(environ: Mapping[str, str], asked: Mapping[str, object], runner: CommandRunner = run) -> None:
    """Raise ConfigError when the environment or options of sbatch (``asked``) send the job to another cluster."""
    said = [(name, environ.get(name), "environment") for name in (CLUSTERS_VARIABLE, "SBATCH_CLUSTERS")]
    said += [(name, str(asked.get(name) or ""), "sbatch_directives") for name in ("clusters", "cluster", "M")]
    for name, cluster, where in said:
        if cluster and foreign_cluster(cluster, environ, runner):
            raise ConfigError(
                f"{name} is {cluster}, and jobs are submitted to the cluster of this host, and followed there",
                where=where,
                hint="leave it out, or run the launcher on a login node of that cluster (or with its SLURM_CONF)",
            )


def foreign_cluster(cluster: str, environ: Mapping[str, str], runner: CommandRunner = run) -> str:
    """The cluster of that name, "" when it is this host's own: sites of one cluster name it too."""
    if not cluster:
        return ""
    return "" if _own_cluster(environ, runner) == cluster.lower() else cluster


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
    said = runner(["scontrol", "show", "config"], timeout=TIMEOUT, env=_client_environment(environ))
    own = _CLUSTER_NAME.search(said.stdout)
    return own[1].lower() if own is not None else ""


def _client_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in clean_environment(environ).items() if not k.startswith("SQUEUE_")}


def _open_by_commands(cluster: str) -> Scheduler:
    from launcher.slurm.commands import SlurmCommands  # who submits without Slurm has no use for it

    return SlurmCommands(cluster=cluster)


class MultiClusterScheduler:
    """A Scheduler that looks for a job on every cluster, and asks about it and ends it on its own: another one has
    other jobs under its id. What names no cluster is ``here``'s."""

    def __init__(
        self,
        here: Scheduler,
        there: Callable[[str], Scheduler] = _open_by_commands,
        others: Callable[[], Sequence[str] | None] = lambda: other_clusters(os.environ),
    ) -> None:
        self.name, self.here = here.name, here
        self._there, self._others = lru_cache(there), others
        self._names: Sequence[str] | None = None

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        return {job: state for of, some in self._by_cluster(jobs) for job, state in of.poll(some).items()}

    def find(self, token: str) -> list[JobKey]:
        """Here, and where there is none, on the others: a submission may have gone there, and its answer been lost."""
        found: list[JobKey] = []
        silent: list[SchedulerUnreachable] = []
        for cluster in self._places():
            try:
                found += [replace(job, cluster=cluster) for job in self._of(cluster).find(token)]
            except SchedulerUnreachable as error:
                silent.append(error)
            if found and not cluster:
                break
        if silent and not found:
            raise silent[0]
        return found

    def _places(self) -> Iterator[str]:
        yield ""
        if self._names is None:
            self._names = self._others()
        yield from self._names or ()

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """As `Scheduler.cancel`; one cluster that does not answer does not keep the jobs of another."""
        failed: list[LauncherError] = []
        for of, some in self._by_cluster(jobs):
            try:
                of.cancel(some)
            except LauncherError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def release(self, job: JobKey) -> None:
        self._of(job.cluster).release(job)

    def describe(self, job: JobKey) -> dict[str, str]:
        return self._of(job.cluster).describe(job)

    def _by_cluster(self, jobs: Sequence[JobKey]) -> list[tuple[Scheduler, list[JobKey]]]:
        groups = defaultdict(list)
        for job in jobs:
            groups[job.cluster].append(job)
        return [(self._of(cluster), some) for cluster, some in groups.items()]

    def _of(self, cluster: str) -> Scheduler:
        return self._there(cluster) if cluster else self.here
