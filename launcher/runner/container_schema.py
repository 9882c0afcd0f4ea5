"""The schema of lanes that run scripts in containers: `lanes[].container` and `lanes[].multinode` of a runner file.

In texts of lanes of several nodes ``{workspace}`` is the checkout, ``{logs}`` the directory of `logs`, ``$JOB`` the
job's id, ``$HOME`` the user's home directory; further names are listed in launcher/container/multinode_placeholders.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from launcher.core import slurm_notation

CONTAINER, DOCKER = "container", "docker"
"""The kinds of job that run a script in a container: on a node of Slurm, and on the runner's own host."""

Engine = Literal["pyxis", "enroot", "docker", "podman"]
"""The programs that run containers on one node."""

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

    engine: Engine = "pyxis"
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


AMD, LLM_D, TILERT = KINDS = ("amd-multinode", "llm-d", "tilert")
"""The kinds of job that run a container on each of several nodes."""


class NodeAllocation(Struct, frozen=True, kw_only=True):
    """What a job of several nodes asks of Slurm; the row says how many nodes (PREFILL_NODES, DECODE_NODES)."""

    account: str | None = None
    """In place of that of `scheduler`; ``{user}`` is USER where the launcher runs."""
    job_name: str | None = None
    """In place of that of `scheduler`."""
    gpus: Positive | None = None
    """GPUs of each node: else GPUS_PER_NODE of the row, else those of `node`."""
    memory: str | None = None
    """``--mem``; ``"0"`` is all of the node's."""
    time_limit: TimeLimit | None = None
    """The job's limit. That of `scheduler` when it is not given."""
    time_limit_variable: str | None = None
    """An environment variable of the runner's host that replaces the limit."""
    recipe: str | None = None
    """A file below the workspace whose ``slurm.time_limit`` replaces the limit, where it is there."""
    exclude_variable: str | None = "SLURM_EXCLUDE_NODES"
    """A setting of the row, or a variable of the host, with nodes that the job must not get."""
    directives: list[str] = []
    """Further ``#SBATCH`` options, one a string."""


class Role(Struct, frozen=True, kw_only=True):
    """The containers of one role, where roles differ; each role has one node."""

    name: str
    """The role (``prefill``)."""
    image_setting: str | None = None
    """The row's setting that names its image; the row's own image without it."""
    image_required: bool = False
    """Whether a row without that setting is refused."""
    exports: dict[str, str] = {}
    """Variables of this role alone."""


class SettingsFile(Struct, frozen=True, kw_only=True):
    """A file of ``NAME=value`` lines that the job writes and the containers see read-only: `exports` of these names
    stand there, and are no variables of the containers."""

    name: str
    """Its name below `logs`."""
    target: str
    """Where containers see it."""
    names: list[str]
    """What stands in it; nothing behind a name that no rule gives a value."""


class Extra(Struct, frozen=True, kw_only=True):
    """What containers have beyond the rest where the row has a setting."""

    setting: str
    """The row's setting."""
    mounts: dict[str, str] = {}
    """Host path → path in the container."""
    exports: dict[str, str] = {}
    """Variables."""
    image: bool = False
    """Whether the setting names an image that each node pulls before the containers start."""
    container: str | None = None
    """The name of a container that the benchmark starts beside its own, and that is ended with it."""


class Multinode(Struct, frozen=True, kw_only=True):
    """How a benchmark runs in one container on each of several nodes."""

    engine: Literal["docker", "pyxis"]
    """Who runs containers."""
    wrapper: str
    """Upstream's script for the row, which the launcher does in its place: where there is none, the row cannot run, and
    what it asks for has to be passed."""
    script: str
    """What runs in each container, below the workspace."""
    workdir: str | None = None
    """The container's working directory; the image's own without it."""
    allocation: NodeAllocation = NodeAllocation()
    """What the job asks of Slurm."""
    logs: str = "benchmark_logs"
    """The directory of the workspace that the job's output and the containers' logs lie in."""
    run_logs: str | None = None
    """A directory on each node that containers write to, and whose files are brought to `logs` at the end."""
    results: str = "{result}_c{concurrency}_*.json"
    """Names of the results in the workspace."""
    checks: tuple[Literal["model", "rdma", "gpu-clean"], ...] = ("model",)
    """What is looked at on every node before a container starts."""
    rdma_check: str | None = None
    """A script below the workspace that ends with another code than 0 where a node's network is set up wrongly."""
    gpu_patience: int = 900
    """Seconds in which the memory of the GPUs has to become free."""
    models: str | None = None
    """A file below the workspace that lists the models that the scripts know."""
    host_libraries: bool = False
    """Whether the RDMA libraries of the host take the place of the image's."""
    at_run_time: dict[str, str] = {}
    """Variables that the job's nodes decide: ``rank`` (of the container's node, from 0), ``name N`` and ``address N``
    of the node of rank N, ``names`` and ``addresses`` of all, with commas between them."""
    login_shell: bool = True
    """Whether the script runs in a login shell of the container."""
    coordinator: str | None = None
    """The rank (``{prefill-nodes}``), or the role, whose container says by its end that the benchmark is over; the
    first node's without it."""
    drain: int = 60
    """Seconds that the others then have to end by themselves."""
    flags: list[str] = []
    """docker: options of ``run``, one a string."""
    remap_root: bool = False
    """pyxis: whether the user is root in the container."""
    writable: bool = False
    """pyxis: whether the container's file system can be written."""
    entrypoint: bool = False
    """pyxis: whether the image's own entrypoint is left to pyxis's settings."""
    mounts: dict[str, str] = {}
    """Host path, with ``:ro`` behind one that is read-only → path in the container."""
    exports: dict[str, str] = {}
    """Variables of the containers. Everything of the workflow's contract is passed as well, by name."""
    settings_file: SettingsFile | None = None
    """A file of settings that containers read."""
    extras: list[Extra] = []
    """What containers have beyond the rest where the row has a setting."""
    roles: list[Role] = []
    """Where containers differ by role. None: all nodes have the same container."""
