"""The schema of lanes that run a benchmark's script in a container: what `lanes[].container` of a runner file says."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from launcher.core import slurm_notation

CONTAINER, DOCKER = "container", "docker"
"""The kinds of job that run a script in a container: on a node of Slurm, and on the runner's own host."""

Positive = Annotated[int, Meta(ge=1)]

TimeLimit = Annotated[
    str,
    Meta(
        pattern=slurm_notation.TIME_LIMIT,
        description="a time limit as Slurm writes it (90, 4:00:00, 2-00:00:00)",
    ),
]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Base of the schema of runner files: immutable, and an unknown key is an error."""


class Allocation(Struct, frozen=True, kw_only=True):
    """What a job of one node asks of Slurm. It asks for as many GPUs as the benchmark's row uses."""

    gpu_type: str | None = None
    """The type in ``--gres=gpu:TYPE:N``, where the cluster wants one."""
    cpus_per_task: Positive | None = None
    """``--cpus-per-task``."""
    memory: str | None = None
    """``--mem``; ``"0"`` is all of the node's. Slurm's default when it is not given."""
    exclusive: bool = True
    """Whether the job has the node for itself."""
    time_limit: TimeLimit | None = None
    """The job's limit. That of `scheduler` when it is not given."""
    time_limit_variable: str | None = None
    """An environment variable of the runner's host that replaces the limit (``SALLOC_TIME_LIMIT``)."""


class ScriptChoice(Struct, frozen=True, kw_only=True):
    """Which script of the workspace runs the benchmark: the first of `names` that is there."""

    directory: str = "benchmarks/single_node"
    """Below the workspace. The scenario's directory (``fixed_seq_len``, ``agentic``) follows."""
    names: list[str]
    """File names, in the order in which they are tried. ``{model}`` (EXP_NAME up to its first underscore),
    ``{precision}``, ``{framework}``, ``{suffix}`` (see `suffixes`) and ``{spec}`` (``_mtp`` for such rows, else
    nothing) are filled in."""
    suffixes: dict[str, str] = {}
    """Framework → what ``{suffix}`` stands for; nothing for the others."""
    variable: str | None = None
    """An environment variable that names another script (``BENCH_SCRIPT_OVERRIDE``), below the workspace."""


class Port(Struct, frozen=True, kw_only=True):
    """PORT in the container. Nodes that several jobs share need a port of each job's own."""

    base: int = 8888
    """The port, or the smallest one."""
    add: Literal["nothing", "runner-digit", "job-id"] = "nothing"
    """What is added: the last character of RUNNER_NAME, or the job's id modulo 10,000."""
    variable: str | None = None
    """An environment variable of the runner's host that replaces the port."""


class Staging(Struct, frozen=True, kw_only=True):
    """The copy of the checkout on the node, where compute nodes cannot see the checkout itself."""

    directory: str = "/tmp/inferencex-$JOB"
    """Where the copy lies on the node; ``$JOB`` is the job's id."""
    exclude: list[str] = []
    """Names beside ``.git`` that are not copied, at any depth."""
    back: list[str]
    """What is brought back into the checkout, as globs below the copy."""


class Container(Struct, frozen=True, kw_only=True):
    """How a benchmark's script runs in a container on one node."""

    engine: Literal["pyxis", "enroot", "docker", "podman"] = "pyxis"
    """Who runs containers. ``pyxis`` and ``enroot`` run squash files, ``docker`` and ``podman`` images of their own."""
    pull: bool = False
    """Whether the engine is given the image's reference, and pulls it. docker and podman always do."""
    script: ScriptChoice
    """Which script runs."""
    allocation: Allocation = Allocation()
    """What the job asks of Slurm."""
    workdir: str = "/workspace"
    """Where the checkout is in the container, which is also where the script runs."""
    home: bool = False
    """pyxis: whether the user's home directory is mounted."""
    remap_root: bool = False
    """pyxis: whether the user is root in the container."""
    writable: bool = False
    """pyxis: whether the container's file system can be written."""
    mpi: str | None = None
    """``--mpi`` of the container's srun."""
    flags: list[str] = []
    """docker and podman: options of ``run``, one a string. ``{gpus}`` is the number of GPUs of the row."""
    port: Port = Port()
    """PORT in the container."""
    model_variables: list[str] = []
    """Variables of the container that hold the checkpoint's directory (``MODEL_PATH``)."""
    staging: Staging | None = None
    """The copy of the checkout on the node. None where compute nodes see the checkout."""
