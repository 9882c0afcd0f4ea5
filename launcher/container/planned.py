"""The part of a plan that only jobs in a container have: allocation, container, script, copy of the checkout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from launcher.plan.derive import Resolved
from launcher.plan.plan import Plan, json_values

SCRIPT, COPY = "job.sh", "workspace"
"""In a run's own directory: the job's script, and the copy of the checkout that a job by hand works on."""

LOG, FACTS = "benchmark_job.log", "facts.txt"
"""Of a job: its output, by whose beginning what fails in it is put down to the benchmark; and what it writes down, a
name and a value a line."""

Engine = Literal["pyxis", "enroot", "docker", "podman"]


class PlannedAllocation(msgspec.Struct, frozen=True):
    """What Slurm is asked for: one node, ``gpus`` of it. ``minutes`` is the limit; None leaves it to the partition."""

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
    """

    engine: Engine
    image: str
    workdir: str
    mounts: Mapping[str, str]
    options: ContainerOptions
    environment: Mapping[str, str]
    passes: tuple[str, ...]


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


def works_where(plan: Plan, own: OwnWorkspace | None) -> str:
    """The workspace that a job works in: one of its own, the copy that compute nodes see, or the plan's."""
    return own.path if own is not None else plan.workspace.shared or plan.workspace.path


class ContainerJob(msgspec.Struct, frozen=True):
    """The part of a plan that only a job in a container needs. ``allocation`` is None on the runner's own host.
    ``own_workspace`` is None where the job works in the plan's workspace.

    ``environment`` are the variables of the workflow's contract with their values. Names that the container is passed
    and that are not there are secrets, or variables of the host that the runner file names (`pass-environment`): who
    submits the job reads them from its own environment.
    """

    allocation: PlannedAllocation | None
    container: PlannedContainer
    script: PlannedScript
    environment: Mapping[str, str]
    staging: PlannedStaging | None = None
    own_workspace: OwnWorkspace | None = None

    @classmethod
    def of(cls, plan: Plan) -> ContainerJob:
        """The part of this plan. Raises ConfigError when it is not there, or not whole."""
        return plan.part(cls)

    def workspace_of(self, plan: Plan) -> str:
        """The workspace that the job works in."""
        return works_where(plan, self.own_workspace)

    def as_details(self) -> dict[str, Any]:
        """In JSON values, as a plan holds it."""
        details: dict[str, Any] = json_values(self)
        return details


@dataclass(frozen=True)
class ContainerResolved(Resolved):
    """The plan of a job in a container without findings, and its own part: what the rules of `check` look at."""

    job: ContainerJob
