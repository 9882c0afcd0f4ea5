"""The part of a plan that only jobs of one container a node have: allocation, submission, containers, script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.container.planned import ContainerOptions, OwnWorkspace, PlannedAllocation, PlannedScript, works_where
from launcher.plan.derive import Resolved
from launcher.plan.plan import Plan, json_values

LABEL = "launcher.job"
"""Of docker's containers: the run and its job, so that exactly our own are ended."""


@dataclass(frozen=True)
class NodeContainer:
    """The container of a node; ``role`` says which nodes have it, None all. See `PlannedContainer`, whose keys these
    are: without ``workdir`` the image's own is taken, and without ``image`` in a squash file docker pulls it."""

    role: str | None
    engine: Literal["docker", "pyxis"]
    image: str
    workdir: str | None
    mounts: Mapping[str, str]
    options: ContainerOptions
    environment: Mapping[str, str]
    passes: tuple[str, ...]


@dataclass(frozen=True)
class NodeJob:
    """What the job does. ``coordinator`` is the rank whose container decides when the benchmark is over: then the
    others have ``drain`` seconds. ``pulls`` are images that each node has pulled before, ``beside`` names of containers
    that the benchmark itself starts. ``at_run_time`` are variables by what stands for their values
    (`runner.multinode_schema.Multinode.at_run_time`)."""

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


@dataclass(frozen=True)
class PlannedSubmit:
    """``argv`` are sbatch's options, with ``{workspace}`` for the directory that the job works in; ``directives`` the
    script's ``#SBATCH`` lines; ``environment`` is the workflow's contract without secrets."""

    argv: tuple[str, ...]
    directives: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class PlannedLogs:
    """``directory`` of the workspace; ``on_nodes`` is each node's own, whose files are brought there at the end.
    ``settings`` is a file that the job writes there."""

    directory: str
    on_nodes: str | None = None
    settings_name: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MultinodeJob:
    """The part of a plan that only these kinds need."""

    allocation: PlannedAllocation
    submit: PlannedSubmit
    job: NodeJob
    script: PlannedScript
    files: PlannedLogs
    own_workspace: OwnWorkspace | None = None
    container: None = None
    staging: None = None

    @classmethod
    def of(cls, plan: Plan) -> MultinodeJob:
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
class MultinodeResolved(Resolved):
    """The plan of such a job without findings, and its own part."""

    job: MultinodeJob
