"""Jobs that were found without a record, and jobs of other clusters."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from launcher.core.errors import ConfigError
from launcher.core.process import NOT_FOUND, CommandRunner, clean_environment, run
from launcher.slurm.client import JobKey, JobState, Scheduler, SchedulerUnreachable
from launcher.slurm.commands import SlurmCommands

VARIABLE = "SLURM_CLUSTERS"
"""By it every client of Slurm asks and ends jobs of another cluster, as by ``--clusters``."""

TIMEOUT = 30.0

_OF_GITHUB = re.compile(r"(?<!\S)[A-Za-z0-9][A-Za-z0-9._-]*-[A-Za-z0-9._-]+-[0-9a-f]{12}(?!\S)")
"""The id of a run that a GitHub job began (`launcher.plan.derive.run_key`), among the words of a comment."""

_NO_SLURM = re.compile(r"Could not establish a configuration source")
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)


def jobs_named(name: str, environ: Mapping[str, str], runner: CommandRunner = run) -> list[JobKey]:
    """This user's jobs of a name that wait or run and carry the id of a GitHub job's run, which is their token.

    None on a host that belongs to no cluster: nothing was submitted from it. Raises SchedulerUnreachable.
    """
    argv = ["squeue", "-h", "-u", str(os.getuid()), "-n", name, "-o", "%A|%k"]
    done = runner(argv, timeout=TIMEOUT, env=_clean(environ))
    if done.returncode == NOT_FOUND or _NO_SLURM.search(done.stderr):
        return []
    if not done.ok:
        message = f"nobody could say whether a job called {name} lives: {done}"
        raise SchedulerUnreachable(message, hint=f"look with `squeue --me -n {name}`")
    rows = [line.strip().partition("|") for line in done.stdout.splitlines()]
    tokens = [(job, _OF_GITHUB.search(comment)) for job, _, comment in rows if job.isdigit()]
    return [JobKey(job, None, token[0]) for job, token in tokens if token is not None]


def refuse_other_clusters(environ: Mapping[str, str], asked: Mapping[str, object], runner: CommandRunner = run) -> None:
    """Raise ConfigError when the environment or options of sbatch (``asked``) send the job to another cluster."""
    said = [(name, environ.get(name), "environment") for name in (VARIABLE, "SBATCH_CLUSTERS")]
    said += [(name, str(asked.get(name) or ""), "sbatch_directives") for name in ("clusters", "cluster", "M")]
    for name, cluster, where in said:
        if cluster and elsewhere(cluster, environ, runner):
            raise ConfigError(
                f"{name} is {cluster}, and jobs are submitted to the cluster of this host, and followed there",
                where=where,
                hint="leave it out, or run the launcher on a login node of that cluster (or with its SLURM_CONF)",
            )


def elsewhere(cluster: str, environ: Mapping[str, str], runner: CommandRunner = run) -> str:
    """The cluster of that name, "" when it is this host's own: sites of one cluster name it too."""
    if not cluster:
        return ""
    said = runner(["scontrol", "show", "config"], timeout=TIMEOUT, env=_clean(environ))
    own = _CLUSTER_NAME.search(said.stdout)
    return "" if own is not None and own[1].lower() == cluster.lower() else cluster


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in clean_environment(environ).items() if not k.startswith("SQUEUE_")}


class ByCluster:
    """A Scheduler that asks about a job, and ends it, on the job's own cluster: another one has other jobs under its
    id. What names no cluster is ``here``'s."""

    def __init__(
        self, here: Scheduler, there: Callable[[str], Scheduler] = lambda cluster: _commands(cluster, os.environ)
    ) -> None:
        self.name, self.find = here.name, here.find
        self.here = here
        self._there = there
        self._opened: dict[str, Scheduler] = {}

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        return {job: state for of, some in self._by_cluster(jobs) for job, state in of.poll(some).items()}

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        for of, some in self._by_cluster(jobs):
            of.cancel(some)

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
        if not cluster:
            return self.here
        return self._opened.setdefault(cluster, self._there(cluster))


def _commands(cluster: str, environ: Mapping[str, str]) -> Scheduler:
    """The commands of Slurm, which speak to that cluster."""
    return SlurmCommands(environ=environ, cluster=cluster)
