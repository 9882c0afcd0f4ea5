"""The schema of runners/*.yaml: everything that differs between clusters, as data.

A table (`models`, `lanes`) is an ordered list of rules, each with a ``when:``; the first match wins, and no match is an
error that lists what is supported. `adjust` and `exclude-nodes` are the lists of which every matching rule applies, in
order: mounts, exports and recipe edits that cut across lanes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Pattern = str | list[str]
"""A glob, or several of which one must match; matching is case-sensitive."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Base of the schema: immutable, and an unknown key is an error."""


class When(_Struct, frozen=True):
    """What a rule asks of a benchmark. Every field that is given must match; an empty ``when`` matches all."""

    prefix: Pattern | None = None
    """MODEL_PREFIX, the short family key (``minimaxm3``)."""
    precision: Pattern | None = None
    framework: Pattern | None = None
    model: Pattern | None = None
    """The Hugging Face id of the matrix row."""
    image: Pattern | None = None
    """The image of the matrix row, as it is spelt there."""
    scenario: Pattern | None = None
    spec_decoding: Pattern | None = None
    config_file: Pattern | None = None
    """The recipe as the row names it, without its selector."""
    eval_only: bool | None = None
    power: bool | None = None
    """Whether the recipe asks for DCGM power telemetry."""


class Rule(_Struct, frozen=True):
    """Base of a table's rows."""

    when: When = When()


class ModelRule(Rule, frozen=True, kw_only=True):
    """Where a checkpoint lies.

    ``path`` is one directory, or candidates of which the first that exists counts (the first one where this machine
    cannot see them). ``alias`` is the key of `model_paths` that this fleet's recipes use, ``also`` further spellings.
    ``variable`` names an environment variable of the runner's host that overrides the path when it is set.
    """

    path: str | list[str]
    alias: str
    also: list[str] = []
    variable: str | None = None
    served: str | None = None
    """SERVED_MODEL_NAME for the job; ``{model}`` is the row's model. It changes agentic requests: only where said."""
    holding: str | None = None
    """A glob that a candidate must hold to count as existing (stub directories have been met)."""


class Overlay(_Struct, frozen=True, kw_only=True):
    """Recipes of the workspace that are laid over the checkout.

    ``source`` is below ``benchmarks/multi_node/srt-slurm-recipes``; ``destination`` below the checkout, and is
    ``recipes/<source>`` unless said.
    """

    source: str
    destination: str | None = None


class Patch(_Struct, frozen=True, kw_only=True):
    """A later commit's change of one file, applied to the checkout: ``git show commit -- path | git apply``."""

    commit: str
    path: str


class LaneRule(Rule, frozen=True, kw_only=True):
    """Which srt-slurm runs a benchmark, and how it is called.

    ``sha`` is what is checked out, always the full 40 digits; ``ref`` is the name that people know it by, and a moved
    ref is said, not followed.
    """

    repository: str
    ref: str
    sha: str | None = None
    overlays: list[Overlay] = []
    patches: list[Patch] = []
    preflight: bool = True
    setup_script: str | None = None
    time_limit: str | None = None


class Edit(_Struct, frozen=True, kw_only=True):
    """A change of the recipe as parsed YAML; the fields are those of `launcher.srtctl.edit.Edit`."""

    path: tuple[str, ...]
    value: Any = None
    remove: bool = False
    only_if_present: bool = False
    beside: str | None = None
    into_json: bool = False
    base_form: bool = True
    required: bool = False


class Adjustment(Rule, frozen=True, kw_only=True):
    """Settings for every benchmark that matches; all matching rules apply, later ones win."""

    reason: str | None = None
    mounts: dict[str, str] = {}
    exports: dict[str, str] = {}
    edits: list[Edit] = []
    srtslurm: dict[str, Any] = {}
    time_limit: str | None = None
    preflight: bool | None = None
    setup_script: str | None = None
    tags: str | None = None


class ExcludedNode(Rule, frozen=True, kw_only=True):
    """A node that jobs must not get: why, and until when one has to look again (ISO date)."""

    node: str
    reason: str
    expires: str | None = None
    variable: str | None = None
    """An environment variable of the host that replaces the node list; empty disables the rule."""


class Scheduler(_Struct, frozen=True, kw_only=True):
    """``kind`` is ``slurm``, or ``local`` for the embedded one."""

    kind: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    partition_variable: str | None = None
    """A matrix setting or host variable that may replace the partition (``SLURM_PARTITION``)."""
    account: str | None = None
    account_variable: str | None = None
    time_limit: str = "4:00:00"
    job_name: str = "{runner}"
    """Template of the job's name; ``{runner}`` is RUNNER_NAME, by which the workflow's clean-up finds the job."""


class Node(_Struct, frozen=True, kw_only=True):
    """What a compute node has. ``login_arch`` differs where the login node is of another make."""

    gpus: int
    arch: Literal["x86_64", "aarch64"] | None = None
    login_arch: Literal["x86_64", "aarch64"] | None = None
    count: int | None = None
    """Nodes of the partition, where it is known: a recipe that needs more can never start."""


class Storage(_Struct, frozen=True, kw_only=True):
    """A file system, and who can see what lies below ``path``."""

    path: str
    kind: Literal["lustre", "nfs", "node-local", "local"]
    seen_by: tuple[Literal["login", "compute"], ...] = ("login", "compute")


class Images(_Struct, frozen=True, kw_only=True):
    """Where squash files lie, how they are named, and who imports them.

    Paths of a runner file may hold ``{workspace}``, ``{state}`` (the launcher's own state directory on this machine)
    and ``{model}`` (the last part of the model's Hugging Face id).
    """

    directory: str
    name: Literal["underscore", "plus", "plus-nv"] = "underscore"
    lock: str = "{squash}.lock"
    """The path that the bash launchers flock; ``{squash}``, ``{directory}`` and ``{name}`` are filled in."""
    lock_wait: int = 1800
    import_on: Literal["login", "compute"] = "login"
    import_timeout: int = 3600
    temporary: str | None = None
    """Node-local directory for enroot's own temporaries; the system's temporary directory when not given."""
    aliases: list[str] = []
    """Container names in recipes that mean the benchmark's own image on this cluster."""
    helpers: dict[str, str] = {}
    """Alias → image reference, for nginx and exporters."""


class Checkout(_Struct, frozen=True, kw_only=True):
    """Where srt-slurm trees live and how one is made ready.

    ``directory`` holds one work tree per run, ``cache`` what runs share. ``setup`` are argv lists run once per commit
    in a prepared tree; ``{arch}`` is the compute nodes' architecture.
    """

    directory: str
    cache: str
    setup: list[list[str]] = []
    setup_timeout: int = 1800


class Workspace(_Struct, frozen=True, kw_only=True):
    """How the job sees the workspace: below ``shared`` a copy is made when compute nodes cannot see the original."""

    shared: str | None = None
    variable: str = "INFMAX_WORKSPACE"


class Runner(_Struct, frozen=True, kw_only=True):
    """One runner file."""

    name: str
    description: str = ""
    sku: str
    runners: list[str] = []
    """Prefixes of RUNNER_NAME (up to its first underscore) that are this cluster."""
    labels: list[str] = []
    """`runner:` values of matrix rows that this cluster serves."""
    tools: Literal["system", "rehearsal"] = "system"
    """``rehearsal``: enroot, srtctl and srt-slurm are the stand-ins of launcher/rehearsal, and results say so."""
    scheduler: Scheduler
    node: Node
    storage: list[Storage] = []
    images: Images
    checkout: Checkout
    workspace: Workspace = Workspace()
    repositories: dict[str, str]
    models: list[ModelRule]
    lanes: list[LaneRule]
    srtslurm: dict[str, Any] = {}
    tags: str = "{sku},{prefix},{precision},{isl}x{osl},infmax-{date}"
    adjust: list[Adjustment] = []
    exclude_nodes: list[ExcludedNode] = []
