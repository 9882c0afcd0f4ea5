"""The part of a plan that only jobs in containers have: allocation, container, script, copy of the checkout; for a job
of several nodes (`MultinodeJob`) also the submission and its actions on the nodes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.plan.derive import Resolved
from launcher.plan.plan import Plan, PlanPart
from launcher.runner.container_schema import Engine

SCRIPT, COPY = "job.sh", "workspace"
"""In a run's own directory: the job's script, and the copy of the checkout on which a manual job works."""

LOG, FACTS = "benchmark_job.log", "facts.txt"
"""A job's output, whose prefix ``benchmark`` marks failures in it as the benchmark's; and its facts, ``NAME=VALUE`` per
line."""


class PlannedAllocation(msgspec.Struct, frozen=True):
    """The resources requested from Slurm; ``gpus`` is per node. ``minutes`` None leaves the limit to the partition."""

    partition: str | None
    account: str | None
    nodes: int
    gpus: int
    gpu_type: str | None
    cpus_per_task: int | None
    memory: str | None
    exclusive: bool
    minutes: int | None
    job_name: str
    exclude: tuple[str, ...] = ()

    def options(self, token: str, *own: str) -> tuple[str, ...]:
        """sbatch's options for a job that is submitted held; ``own`` are options for GPUs and processors. They contain
        names and numbers of the plan, and no value of a variable."""
        return (
            "--parsable",
            "--hold",
            "--no-requeue",  # a second start, after a node failure, would take the first one's files for its own
            f"--comment={token}",
            f"--job-name={self.job_name}",
            *([f"--partition={self.partition}"] if self.partition else []),
            *([f"--account={self.account}"] if self.account else []),
            f"--nodes={self.nodes}",
            f"--ntasks={self.nodes}",
            *own,
            *([f"--mem={self.memory}"] if self.memory is not None else []),
            *(["--exclusive"] if self.exclusive else []),
            *([f"--time={self.minutes}"] if self.minutes else []),
            *([f"--exclude={','.join(self.exclude)}"] if self.exclude else []),
            "--export=ALL",
        )


class ContainerOptions(msgspec.Struct, frozen=True):
    """``home`` to ``name`` are for pyxis; ``flags`` are options of ``docker run``, each a string (``--ipc=host``)."""

    home: bool = False
    remap_root: bool = False
    writable: bool = False
    entrypoint: bool = False
    mpi: str | None = None
    name: str | None = None
    flags: tuple[str, ...] = ()


class PlannedContainer(msgspec.Struct, frozen=True):
    """The container that the script runs in.

    ``image`` is a squash file, or a reference that the engine pulls. ``mounts`` are target → source, with ``:ro`` after
    a source that is read-only. ``environment`` are variables set for the container, ``passes`` names of variables that
    it gets from the job. In values ``$JOB`` is the job's id, and PORT may be a sum (``40000+$JOB%10000``). Without
    ``workdir`` the image's own is used, which only a job of several nodes does.
    """

    engine: Engine
    image: str
    workdir: str | None
    mounts: Mapping[str, str]
    options: ContainerOptions
    environment: Mapping[str, str]
    passes: tuple[str, ...]

    def volumes(self, workspace: str) -> list[str]:
        """The mounts in the engines' form ``SOURCE:TARGET[:ro]``; ``workspace`` replaces ``{workspace}``."""
        mounts = [(target, source.replace("{workspace}", workspace)) for target, source in self.mounts.items()]
        return [f"{s.removesuffix(':ro')}:{target}{':ro' if s.endswith(':ro') else ''}" for target, s in mounts]


class PlannedScript(msgspec.Struct, frozen=True):
    """The script, below the workspace. ``tried`` are the candidate paths, in order; ``asks`` the variables that the
    script requires (``check_env_vars``), ``lacks`` those of them that it would not get. ``names_workspace``: it writes
    to the path ``/workspace``."""

    path: str
    tried: tuple[str, ...]
    exists: bool
    asks: tuple[str, ...]
    lacks: tuple[str, ...]
    names_workspace: bool = False


class PlannedStaging(msgspec.Struct, frozen=True):
    """The copy of the checkout on the node: its directory, the excluded names, the globs of returned files.

    ``through`` is a directory on both login node and compute nodes, for the job's script, log and archives.
    """

    to: str
    exclude: tuple[str, ...]
    back: tuple[str, ...]
    through: str = "$HOME/.launcher-jobs"


class OwnWorkspace(msgspec.Struct, frozen=True):
    """A workspace that is made for the job, and the directory that is copied into it as ``benchmarks``."""

    path: str
    benchmarks: str


class ScriptJob(PlanPart, frozen=True, kw_only=True):
    """The part of a plan whose job is one script of ours. ``own_workspace`` is None if the job works in the plan's
    workspace."""

    own_workspace: OwnWorkspace | None = None

    def workspace_of(self, plan: Plan) -> str:
        """The workspace that the job works in: one of its own, the copy that compute nodes see, or the plan's."""
        own = self.own_workspace
        return own.path if own is not None else plan.workspace.shared or plan.workspace.path


class ContainerJob(ScriptJob, frozen=True):
    """The part of a plan that only a job in a container needs. ``allocation`` is None on the runner's own host.

    ``environment`` are the variables of the workflow's contract with their values. The container's other ``passes`` are
    secrets, or variables of the host that the runner file names (`pass-environment`): the submitting process takes
    their values from its own environment.
    """

    allocation: PlannedAllocation | None
    container: PlannedContainer
    script: PlannedScript
    environment: Mapping[str, str]
    staging: PlannedStaging | None = None


class ContainerResolved(Resolved, frozen=True):
    """The plan of a job in a container without findings, and its own part, for the rules of `check`."""

    job: ContainerJob


LABEL = "launcher.job"
"""The label of docker's containers with run and job, so that exactly our own are ended."""


class NodeContainer(PlannedContainer, frozen=True, kw_only=True):
    """The container of a node; ``role`` names the nodes that have it, None means all. docker pulls an ``image`` that is
    not a squash file."""

    role: str | None


class NodeJob(msgspec.Struct, frozen=True):
    """The job's actions. ``coordinator`` is the rank whose container decides when the benchmark is over; the others
    then have ``drain`` seconds. ``pulls`` are images that each node pulls first, ``beside`` names of containers that
    the benchmark itself starts. ``at_run_time`` are variables whose values depend on the job's nodes
    (`runner.container_schema.Multinode.at_run_time`)."""

    nodes: int
    containers: tuple[NodeContainer, ...]
    checks: tuple[str, ...]
    coordinator: int
    drain: int
    at_run_time: Mapping[str, str]
    login_shell: bool
    pulls: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    rdma_check: str | None = None
    gpu_patience: int = 0
    host_libraries: bool = False


class PlannedSubmit(msgspec.Struct, frozen=True):
    """``argv`` are sbatch's options, with ``{workspace}`` for the job's workspace; ``directives`` the script's
    ``#SBATCH`` lines; ``environment`` is the workflow's contract without secrets."""

    argv: tuple[str, ...]
    directives: tuple[str, ...]
    environment: Mapping[str, str]


class PlannedLogs(msgspec.Struct, frozen=True):
    """``directory`` is below the workspace; ``on_nodes`` is each node's own, whose files are copied there at the end.
    The job writes ``settings`` to the file ``settings_name`` there."""

    directory: str
    on_nodes: str | None = None
    settings_name: str | None = None
    settings: Mapping[str, str] = {}


class MultinodeJob(ScriptJob, frozen=True):
    """The part of a plan that only jobs with one container per node need."""

    allocation: PlannedAllocation
    submit: PlannedSubmit
    job: NodeJob
    script: PlannedScript
    files: PlannedLogs
    container: None = None
    staging: None = None


class MultinodeResolved(Resolved, frozen=True):
    """The plan of a job with one container per node without findings, and its own part, for the rules of `check`."""

    job: MultinodeJob
