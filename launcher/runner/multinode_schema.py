"""The schema of lanes that run one container on each of several nodes: what `lanes[].multinode` of a runner file says.

In its texts ``{workspace}`` is the checkout, ``{logs}`` the directory of `logs`, ``$JOB`` the job's id, ``$HOME`` the
user's home directory; further names are listed in launcher/container/multinode_words.py.
"""

from __future__ import annotations

from typing import Literal

from launcher.runner.container_schema import Positive, Struct, TimeLimit

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
