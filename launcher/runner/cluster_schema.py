"""The schema of what a runner file says of its cluster: scheduler, nodes, file systems, where srt-slurm trees lie."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from launcher.runner.container_schema import Positive, Struct, TimeLimit

Absolute = Annotated[str, Meta(pattern="^/", description="absolute")]

Architecture = Literal["x86_64", "aarch64"]
"""As the kernel names it (``uname -m``)."""


class Scheduler(Struct, frozen=True, kw_only=True):
    """The scheduler that runs jobs, and what jobs ask of it."""

    kind: Literal["slurm", "local"] = "slurm"
    """``slurm``, or ``local`` for the embedded one, which runs jobs on this machine."""
    backend: Literal["auto", "commands", "pyslurm"] = "auto"
    """How Slurm is queried. ``auto``: by pyslurm where it is installed for this Slurm's release, else by commands."""
    partition: str | None = None
    """Slurm's own default when it is not given."""
    partition_variable: str | None = None
    """A matrix setting or host variable that may replace the partition (``SLURM_PARTITION``)."""
    account: str | None = None
    """Slurm's own default when it is not given."""
    account_variable: str | None = None
    """A matrix setting or host variable that may replace the account."""
    time_limit: TimeLimit | None = "4:00:00"
    """A job's limit, where neither its recipe nor its lane has one. ``null`` leaves it to the partition."""
    job_name: str = "{runner}"
    """Template of the job's name; ``{runner}`` is RUNNER_NAME, by which the workflow's clean-up finds the job."""


class Node(Struct, frozen=True, kw_only=True):
    """What a compute node has."""

    gpus: Positive
    """GPUs of a node."""
    arch: Architecture | None = None
    """Architecture of the compute nodes; images must be of it. Any when it is not given."""
    login_arch: Architecture | None = None
    """Architecture of the login node, where it is another one."""
    vendor: Literal["nvidia", "amd"] = "nvidia"
    """Whose GPUs they are; images must be made for them."""
    count: Positive | None = None
    """How many nodes the partition has, where that is known. A recipe that needs more can never start."""


class Limits(Struct, frozen=True, kw_only=True):
    """What one user's launchers take of this cluster at once, and from which cost on they ask first."""

    max_jobs: Positive | None = None
    """Jobs of sweeps that live at one time, over all sweeps of a user."""
    max_nodes: Positive | None = None
    """Nodes of these jobs together."""
    max_gpu_hours: Annotated[float, Meta(gt=0)] | None = None
    """GPU-hours (GPUs × elapsed) that one sweep may use here."""
    ask_above: Annotated[float, Meta(ge=0)] | None = None
    """GPU-hours (GPUs × time limit) from which on `run` and `sweep` ask first, where somebody can answer."""


class Login(Struct, frozen=True, kw_only=True):
    """Where people log in, for `launcher remote`."""

    host: str
    """A host of ssh_config, or ``[user@]host[:port]``."""
    directory: str = ".launcher"
    """Where launchers are installed, below the home directory."""
    python: str = "python3"
    """A Python of 3.10 or newer there."""
    ssh: Literal["paramiko", "openssh"] = "paramiko"
    """What connects. ``openssh`` starts `ssh`, for ControlMaster, Kerberos, security keys, authorities of host keys."""


class Stripe(Struct, frozen=True, kw_only=True):
    """Layout on Lustre of a checkpoint's files from a size on."""

    at_least: int = 0
    """Bytes from which a file gets this layout."""
    count: int
    """How many storage targets hold a part of the file; -1 is all."""
    size: str = "4M"
    """How many bytes go to each target in turn, as `lfs setstripe` takes it."""


class Storage(Struct, frozen=True, kw_only=True):
    """A file system, and who can see what lies below ``path``."""

    path: Absolute
    """Where it is mounted; a path lies on the storage with the longest such prefix."""
    kind: Literal["lustre", "nfs", "node-local", "local"]
    """``node-local``: each node has its own. ``local``: there is one machine, and this is its disk."""
    seen_by: tuple[Literal["login", "compute"], ...] = ("login", "compute")
    """Which nodes see it."""
    locks: Literal["shared", "local"] = "shared"
    """``local``: `flock` is known not to hold between hosts. Jobs then tell it and go on; otherwise they end before an
    engine starts. The launcher's own locks do not need it."""
    striping: list[Stripe] | None = None
    """On Lustre: layouts of staged checkpoints, by size (default: launcher/model/stage.py); ``[]`` sets none."""


class Checkout(Struct, frozen=True, kw_only=True):
    """Where srt-slurm trees lie, and how one is prepared."""

    directory: str = ""
    """The directory for work trees, one per run. Compute nodes must see it."""
    cache: str = ""
    """The directory for what runs share: mirrors and prepared tools."""
    setup: list[list[str]] = []
    """Commands (argv lists) run once per commit in a prepared tree; ``{arch}`` is the compute nodes' architecture."""
    setup_timeout: int = 1800
    """Seconds that one command may take."""
