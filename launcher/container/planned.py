"""The part of a plan that only jobs in containers have: allocation, container, script, copy of the checkout; of several
nodes (`MultinodeJob`) also what is submitted, and what the job does on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from launcher.plan.derive import Resolved
from launcher.plan.plan import Plan, PlanPart

SCRIPT, COPY = "job.sh", "workspace"
"""In a run's own directory: the job's script, and the copy of the checkout that a job by hand works on."""

LOG, FACTS = "benchmark_job.log", "facts.txt"
"""Of a job: its output, by whose beginning what fails in it is put down to the benchmark; and what it writes down, a
name and a value a line."""

Engine = Literal["pyxis", "enroot", "docker", "podman"]


class PlannedAllocation(msgspec.Struct, frozen=True):
    """What Slurm is asked for: nodes, ``gpus`` of each. ``minutes`` is the limit; None leaves it to the partition."""

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
        """sbatch's options for a job that is submitted held, with ``own`` ones of its size. The names and numbers are
        the plan's; no value of a variable is among them."""
        return (
            "--parsable",
            "--hold",
            "--no-requeue",  # a second start, after a node died, would take the first one's files for its own
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
    """``home`` to ``name`` are pyxis's; ``flags`` are options of ``docker run``, one a string (``--ipc=host``)."""

    home: bool = False
    remap_root: bool = False
    writable: bool = False
    entrypoint: bool = False
    mpi: str | None = None
    name: str | None = None
    flags: tuple[str, ...] = ()


class PlannedContainer(msgspec.Struct, frozen=True):
    """The container that the script runs in.

    ``image`` is what the engine is given: a squash file, or a reference that it pulls. ``mounts`` are target → source,
    with ``:ro`` behind a source that is read-only. ``environment`` is set for the container beyond what it is
    ``passes``, names of variables. In values ``$JOB`` is the job's id, and PORT may be a sum (``40000+$JOB%10000``).
    Without ``workdir`` the image's own is taken, which only a job of several nodes leaves to it.
    """

    engine: Engine
    image: str
    workdir: str | None
    mounts: Mapping[str, str]
    options: ContainerOptions
    environment: Mapping[str, str]
    passes: tuple[str, ...]

    def volumes(self, workspace: str) -> list[str]:
        """The mounts as engines take them, ``SOURCE:TARGET[:ro]``; ``workspace`` is what ``{workspace}`` stands for."""
        mounts = [(target, source.replace("{workspace}", workspace)) for target, source in self.mounts.items()]
        return [f"{s.removesuffix(':ro')}:{target}{':ro' if s.endswith(':ro') else ''}" for target, s in mounts]


class PlannedScript(msgspec.Struct, frozen=True):
    """The script, below the workspace. ``tried`` are the paths that were looked at, in order; ``asks`` the variables
    that the script asks for (``check_env_vars``), ``lacks`` those of them that it would not get. ``names_workspace``
    says that it writes to ``/workspace`` by that name."""

    path: str
    tried: tuple[str, ...]
    exists: bool
    asks: tuple[str, ...]
    lacks: tuple[str, ...]
    names_workspace: bool = False


class PlannedStaging(msgspec.Struct, frozen=True):
    """The copy of the checkout on the node: where, what is left out of it, what is brought back (globs).

    ``through`` is a directory that the login node and compute nodes see: the job's script, log and archives lie there.
    """

    to: str
    exclude: tuple[str, ...]
    back: tuple[str, ...]
    through: str = "$HOME/.launcher-jobs"


class OwnWorkspace(msgspec.Struct, frozen=True):
    """A workspace that is made for the job: where, and a directory that is copied there, as ``benchmarks``."""

    path: str
    benchmarks: str


class ScriptJob(PlanPart, frozen=True, kw_only=True):
    """The part of a plan whose job is one script of ours. ``own_workspace`` is None where the job works in the plan's
    workspace."""

    own_workspace: OwnWorkspace | None = None

    def workspace_of(self, plan: Plan) -> str:
        """The workspace that the job works in: one of its own, the copy that compute nodes see, or the plan's."""
        own = self.own_workspace
        return own.path if own is not None else plan.workspace.shared or plan.workspace.path


class ContainerJob(ScriptJob, frozen=True):
    """The part of a plan that only a job in a container needs. ``allocation`` is None on the runner's own host.

    ``environment`` are the variables of the workflow's contract with their values. Names that the container is passed
    and that are not there are secrets, or variables of the host that the runner file names (`pass-environment`): who
    submits the job reads them from its own environment.
    """

    allocation: PlannedAllocation | None
    container: PlannedContainer
    script: PlannedScript
    environment: Mapping[str, str]
    staging: PlannedStaging | None = None


class ContainerResolved(Resolved, frozen=True):
    """The plan of a job in a container without findings, and its own part: what the rules of `check` look at."""

    job: ContainerJob


LABEL = "launcher.job"
"""Of docker's containers: the run and its job, so that exactly our own are ended."""


class NodeContainer(PlannedContainer, frozen=True, kw_only=True):
    """The container of a node; ``role`` says which nodes have it, None all. Without ``image`` in a squash file docker
    pulls it."""

    role: str | None


class NodeJob(msgspec.Struct, frozen=True):
    """What the job does. ``coordinator`` is the rank whose container decides when the benchmark is over: then the
    others have ``drain`` seconds. ``pulls`` are images that each node has pulled before, ``beside`` names of containers
    that the benchmark itself starts. ``at_run_time`` are variables by what stands for their values
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
    """``argv`` are sbatch's options, with ``{workspace}`` for the directory that the job works in; ``directives`` the
    script's ``#SBATCH`` lines; ``environment`` is the workflow's contract without secrets."""

    argv: tuple[str, ...]
    directives: tuple[str, ...]
    environment: Mapping[str, str]


class PlannedLogs(msgspec.Struct, frozen=True):
    """``directory`` of the workspace; ``on_nodes`` is each node's own, whose files are brought there at the end.
    ``settings`` is a file that the job writes there."""

    directory: str
    on_nodes: str | None = None
    settings_name: str | None = None
    settings: Mapping[str, str] = {}


class MultinodeJob(ScriptJob, frozen=True):
    """The part of a plan that only jobs of one container a node need."""

    allocation: PlannedAllocation
    submit: PlannedSubmit
    job: NodeJob
    script: PlannedScript
    files: PlannedLogs
    container: None = None
    staging: None = None


class MultinodeResolved(Resolved, frozen=True):
    """The plan of such a job without findings, and its own part."""

    job: MultinodeJob
