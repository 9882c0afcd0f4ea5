"""The schema of runners/*.yaml: everything that differs between clusters, as data.

A table (`models`, `lanes`) is an ordered list of rules, each with a ``when:``; the first match wins, and no match is an
error that lists what is supported. `adjust` and `exclude-nodes` are the lists of which every matching rule applies, in
order: mounts, exports and recipe edits that cut across lanes. `images.rules` is for images that do not lie where the
others do: the first match wins, and without one the image is as `images` says.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Pattern = str | list[str]
"""A glob, or several of which one must match; matching is case-sensitive.

A glob behind ``!`` excludes: ``["dynamo-*", "!dynamo-trt"]`` is any dynamo but that one, ``"!dsv4"`` anything else.
"""


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


class Known(_Struct, frozen=True, kw_only=True):
    """Something that is known to be wrong where a rule applies: every plan of it says so, as a finding there."""

    message: str
    severity: Literal["error", "warning"] = "warning"


class Rule(_Struct, frozen=True):
    """Base of a table's rows."""

    when: When = When()
    known: Known | None = None


class ModelRule(Rule, frozen=True, kw_only=True):
    """Where a checkpoint lies.

    ``path`` is one directory, or candidates of which the first that exists counts. ``otherwise`` (a directory, or
    ``hf:ORGANISATION/NAME``; the first candidate when it is not given) is taken when none does, hence also by a machine
    that sees none of them, as in a dry run elsewhere. ``alias`` is the key of `model_paths` that this fleet's recipes
    use, ``also`` further spellings. ``variable`` names an environment variable of the runner's host that overrides the
    path when it is set.
    """

    path: str | list[str]
    otherwise: str | None = None
    alias: str
    also: list[str] = []
    variable: str | None = None
    served: str | None = None
    """SERVED_MODEL_NAME for the job; ``{model}`` is the row's model. It changes agentic requests: only where said."""
    holding: str | None = None
    """A glob that a candidate must hold to count as existing (stub directories have been met)."""
    source: str | None = None
    """Where the checkpoint can be staged from: a directory (archive tier), or ``hf:ORGANISATION/NAME@COMMIT``."""
    stage: bool = False
    """Whether a run stages it when it is not there; otherwise that is for `launcher model stage`."""


class Overlay(_Struct, frozen=True, kw_only=True):
    """Recipes of the workspace that are laid over the checkout: a directory, or one file.

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
    ref is said, not followed. Without a sha (a branch of a repository that nobody here can read) the ref is followed,
    which is said too.
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
    backend: Literal["auto", "commands", "pyslurm"] = "auto"
    """How Slurm is asked; ``auto`` is pyslurm where it is installed and of this Slurm's release, else its commands."""
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


class Stripe(_Struct, frozen=True, kw_only=True):
    """Layout of a checkpoint's files of at least ``at_least`` bytes: on ``count`` targets (-1: all), ``size`` on each
    in turn, as `lfs setstripe` takes it."""

    at_least: int = 0
    count: int
    size: str = "4M"


class Storage(_Struct, frozen=True, kw_only=True):
    """A file system, and who can see what lies below ``path``."""

    path: str
    kind: Literal["lustre", "nfs", "node-local", "local"]
    seen_by: tuple[Literal["login", "compute"], ...] = ("login", "compute")
    striping: list[Stripe] | None = None
    """On Lustre: layouts of staged checkpoints, by size (default: launcher/model/striping.py); ``[]`` sets none."""


class ImageRule(Rule, frozen=True, kw_only=True):
    """Where the benchmark's own image lies when it does not lie where the others do; helpers always do.

    What is not given is as `images` says. ``image`` is run in the place of the row's: a finding says so, because
    results are published under the row's.
    """

    directory: str | None = None
    name: Literal["underscore", "plus", "plus-nv"] | None = None
    image: str | None = None


class Images(_Struct, frozen=True, kw_only=True):
    """Where squash files lie, how they are named, and who imports them.

    Paths of a runner file may hold ``{workspace}``, ``{state}`` (the launcher's own state directory on this machine)
    and ``{model}`` (the last part of the model's Hugging Face id).
    """

    directory: str
    name: Literal["underscore", "plus", "plus-nv"] = "underscore"
    lock: str = "{squash}.lock"
    """The path that the bash launchers flock; ``{squash}``, ``{directory}`` and ``{name}`` (of the squash file, without
    ``.sqsh``) are filled in."""
    lock_wait: int = 1800
    import_on: Literal["login", "compute"] = "login"
    import_timeout: int = 3600
    temporary: str | None = None
    """Node-local directory for enroot's own temporaries; the system's temporary directory when not given."""
    moved_tag: Literal["keep", "refresh", "fail"] = "keep"
    """What is done when a tag names another image than the one that is there: nothing (and no registry is asked), an
    import under a name with the new digest, or an error."""
    squash_options: str = "-comp zstd -Xcompression-level 3 -b 1M -exit-on-error"
    """For mksquashfs. The default gives smaller files than enroot's own, and costs less (docs/images.md)."""
    processors: int | None = None
    """For an import; all that the host gives when not said. On a compute node they are asked of Slurm."""
    transfer_retries: int = 3
    import_partition: str | None = None
    """For imports on compute nodes: one without GPUs, where there is one. No GPU is asked for anyway."""
    import_options: list[str] = []
    """More words for that srun."""
    environment: dict[str, str] = {}
    """For enroot: ``{home}`` is the home directory of who imports (``ENROOT_CACHE_PATH: "{home}/.cache/enroot"``)."""
    rules: list[ImageRule] = []
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
    """How the job sees the workspace: below ``shared`` a copy is made when compute nodes cannot see the original.

    ``only`` names the benchmarks that need that (one of its conditions must hold); without it all do.
    """

    shared: str | None = None
    only: list[When] = []
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
