"""The schema of runners/*.yaml: everything that differs between clusters, as data.

The tables `models` and `lanes` are ordered lists of rules, each with a ``when:``. The first rule that matches wins, and
no match is an error that lists what is supported. Of `adjust` and `exclude-nodes` every rule that matches applies, in
order: they hold mounts, exports and recipe edits that several lanes share. `images.rules` is for images that do not lie
where the others do: the first match wins, and without one the image is as `images` says.

Editors show the sentence under a field (launcher/runner/json_schema.py), so it names keys as the files spell them.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from msgspec import Meta

from launcher.runner.cluster_schema import Checkout, Limits, Login, Node, Scheduler, Storage
from launcher.runner.container_schema import Container, Multinode, Struct, TimeLimit

Pattern = str | list[str]
"""A glob, or several of which one must match; matching is case-sensitive.

A glob behind ``!`` excludes: ``["dynamo-*", "!dynamo-trt"]`` is any dynamo but that one, ``"!dsv4"`` anything else.
"""


Sha = Annotated[str, Meta(pattern="^[0-9a-f]{40}$", description="a full commit id of 40 hexadecimal digits")]

Day = Annotated[date, Meta(extra_json_schema={"pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"})]


class When(Struct, frozen=True):
    """The benchmarks that a rule is for. Every field that is given must match; an empty ``when`` matches all."""

    prefix: Pattern | None = None
    """MODEL_PREFIX, the short family key (``minimaxm3``)."""
    precision: Pattern | None = None
    """PRECISION of the matrix row (``fp4``)."""
    framework: Pattern | None = None
    """FRAMEWORK of the matrix row (``dynamo-sglang``)."""
    model: Pattern | None = None
    """The Hugging Face id of the matrix row."""
    image: Pattern | None = None
    """The image of the matrix row, as it is spelt there."""
    scenario: Pattern | None = None
    """``fixed-seq-len`` or ``agentic-coding``."""
    spec_decoding: Pattern | None = None
    """SPEC_DECODING of the matrix row (``mtp``, ``draft_model``, ``none``)."""
    config_file: Pattern | None = None
    """The recipe as the row names it, without its selector."""
    eval_only: bool | None = None
    """Whether the benchmark only runs evaluations."""
    power: bool | None = None
    """Whether the recipe asks for DCGM power telemetry."""
    nodes: Literal["single", "multi"] | None = None
    """Whether the row is for one node or for several."""
    kv_offload_backend: Pattern | None = None
    """The name of the row's KV_OFFLOAD_BACKEND."""


class Known(Struct, frozen=True, kw_only=True):
    """Something that is known to be wrong where a rule applies. Every plan made by the rule has a finding of it."""

    message: str
    """What is wrong, in a sentence."""
    severity: Literal["error", "warning"] = "warning"
    """With ``error`` nothing is submitted unless the user allows it."""


class Rule(Struct, frozen=True):
    """Base of a table's rows."""

    when: When = When()
    """Which benchmarks the rule is for; all when it is not given."""
    known: Known | None = None
    """What is known to be wrong where the rule applies."""


class ModelRule(Rule, frozen=True, kw_only=True):
    """Where a checkpoint lies."""

    path: str | list[str] = []
    """One directory, or several candidates, of which the first that exists is used. Not given where the benchmark's
    script downloads the checkpoint into `cache`."""
    cache: str | None = None
    """The Hugging Face cache of the node, which containers see at HF_HUB_CACHE."""
    otherwise: str | None = None
    """A directory or ``hf:ORGANISATION/NAME`` that is used when no candidate exists, which is also what a machine sees
    that has none of these file systems (a dry run elsewhere). The first candidate when it is not given."""
    downloads: bool = False
    """Whether the benchmark's script downloads the checkpoint to `path` where it is missing."""
    alias: str = ""
    """The key of `model_paths` that this fleet's recipes use."""
    also: list[str] = []
    """Further spellings of the alias."""
    variable: str | None = None
    """An environment variable of the runner's host that overrides the path, or the cache, when it is set."""
    served: str | None = None
    """SERVED_MODEL_NAME for the job; ``{model}`` is the row's model. No default: it changes agentic requests."""
    holding: str | None = None
    """A glob that must match something in a candidate, else it does not exist: some clusters have stub directories."""
    source: str | None = None
    """What the checkpoint can be staged from: a directory (archive tier), or ``hf:ORGANISATION/NAME@COMMIT``."""
    fingerprint: dict[str, str | int | float] = {}
    """Which model it is: keys of config.json with their values (``hidden_size: 7168``), ``architecture``,
    ``quantisation``. A checkpoint that says otherwise is refused."""
    stage: bool = False
    """Whether a run stages the checkpoint when it is missing. Otherwise only `launcher model stage` does."""


class Overlay(Struct, frozen=True, kw_only=True):
    """Recipes of the workspace that are laid over the checkout: a directory, or one file."""

    source: str
    """Below ``benchmarks/multi_node/srt-slurm-recipes``."""
    destination: str | None = None
    """Below the checkout; ``recipes/<source>`` when it is not given."""


class Patch(Struct, frozen=True, kw_only=True):
    """A later commit's change of one file, applied to the checkout: ``git show commit -- path | git apply``."""

    commit: Sha
    """The full id of the commit that has the change."""
    path: str
    """The file, as the commit names it."""


class LaneRule(Rule, frozen=True, kw_only=True):
    """Which kind of job runs a benchmark, and how: for srtctl which srt-slurm, and how it is called."""

    kind: str = "srtctl"
    """Which kind of job serves the lane: ``srtctl``, ``container`` (a container on one node, as a job of Slurm),
    ``docker`` (one on the runner's own host), or ``amd-multinode``, ``llm-d``, ``tilert`` (one on each of several)."""
    container: Container | None = None
    """How the benchmark's script runs. Only for the kinds ``container`` and ``docker``, which need it."""
    multinode: Multinode | None = None
    """How the benchmark's containers run. Only for the kinds of several nodes, which need it."""
    repository: str = ""
    """A key of `repositories`. The kind ``srtctl`` needs it."""
    ref: str = ""
    """The tag or branch that people know the commit by. When it has moved, a finding says so; `sha` is used. The kind
    ``srtctl`` needs it."""
    sha: Sha | None = None
    """The full id of the commit that is checked out. Without it the ref is followed, and a finding says so; this is
    for a branch of a repository that nobody here can read."""
    overlays: list[Overlay] = []
    """Recipes of the workspace that are laid over the checkout, in order."""
    patches: list[Patch] = []
    """Changes of later commits that this one needs."""
    preflight: bool | Literal["node"] = True
    """Whether srtctl looks for model and image before it submits; ``false`` passes ``--no-preflight``, and so does
    ``node``, with which a short job without GPUs looks from a node instead."""
    setup_script: str | None = None
    """The script that srtctl runs in each container first (``--setup-script``)."""
    time_limit: TimeLimit | None = None
    """The job's limit where the recipe has none. That of `scheduler` when it is not given."""


class Edit(Struct, frozen=True):
    """A change of the recipe as parsed YAML: `value` is set at `path`, unless another field says otherwise."""

    path: tuple[str, ...]
    """Keys from the top of the recipe; a step with ``*`` stands for every key that it matches."""
    value: Any = None
    """What the key is set to."""
    remove: bool = False
    """Whether the key is taken away instead."""
    only_if_present: bool = False
    """Whether the change is made only where the recipe has the key already."""
    beside: str | None = None
    """Only in mappings that have this key as well."""
    into_json: bool = False
    """The key holds a JSON object as text, and the mapping `value` is merged into it."""
    base_form: bool = True
    """Whether recipes of the ``base:`` form are changed too."""
    required: bool = False
    """Whether changing nothing is an error."""


class Adjustment(Rule, frozen=True, kw_only=True):
    """Settings for every benchmark that matches; all matching rules apply, later ones win."""

    reason: str | None = None
    """Why it is needed."""
    mounts: dict[str, str] = {}
    """Host path → path in the container."""
    exports: dict[str, str] = {}
    """Environment variables for the job. In those of a container ``$JOB`` is the job's id, ``$UID`` the user's and
    ``$HOME`` the user's home directory."""
    workdir: str | None = None
    """In place of that of the lane's `container`."""
    edits: list[Edit] = []
    """Changes of the recipe."""
    srtslurm: dict[str, Any] = {}
    """More keys of srtslurm.yaml."""
    time_limit: TimeLimit | None = None
    """In place of the lane's."""
    preflight: bool | Literal["node"] | None = None
    """In place of the lane's."""
    setup_script: str | None = None
    """In place of the lane's."""
    tags: str | None = None
    """In place of the runner's."""


class ExcludedNode(Rule, frozen=True, kw_only=True):
    """A node that jobs must not get: why, and until when one has to look again."""

    node: str
    """Its name in Slurm."""
    reason: str
    """Why jobs must not get it."""
    expires: Day | None = None
    """The day by which somebody looks at the node again. After it `launcher check` reports the rule, which stays."""
    variable: str | None = None
    """An environment variable of the host that replaces the node list; empty disables the rule."""


class ImageRule(Rule, frozen=True, kw_only=True):
    """Where the benchmark's own image lies when it does not lie where the others do. Helper images always lie there.

    What is not given is as `images` says.
    """

    directory: str | None = None
    """In place of the directory of `images`."""
    name: Literal["underscore", "plus", "plus-nv"] | None = None
    """In place of the naming of `images`."""
    image: str | None = None
    """An image to run in place of the row's. A finding says so, because results are published under the row's."""
    import_on: Literal["login", "compute"] | None = None
    """In place of that of `images`."""
    environment: dict[str, str] = {}
    """Beside that of `images`."""


class Images(Struct, frozen=True, kw_only=True):
    """Where squash files lie, how they are named, and who imports them.

    Paths of a runner file may hold ``{workspace}``, ``{state}`` (the launcher's own state directory on this machine)
    and ``{model}`` (the last part of the model's Hugging Face id).
    """

    directory: str = ""
    """Where squash files lie. Not given where no lane has any."""
    shared: bool = True
    """Whether login and compute nodes see one and the same directory. Otherwise each node has its own, and a job
    imports its image there."""
    name: Literal["underscore", "plus", "plus-nv"] = "underscore"
    """How the file of an image is named (docs/guides/images.md)."""
    lock: str = "{squash}.lock"
    """The path that the bash launchers flock; ``{squash}``, ``{directory}`` and ``{name}`` (of the squash file, without
    ``.sqsh``) are filled in."""
    lock_wait: int = 1800
    """Seconds to wait for another's import of the same image."""
    import_on: Literal["login", "compute"] = "login"
    """Where enroot runs: on this machine, or by srun on a compute node."""
    import_timeout: int = 3600
    """Seconds for one import."""
    temporary: str | None = None
    """Node-local directory for enroot's own temporaries; the system's temporary directory when not given."""
    moved_tag: Literal["keep", "refresh", "fail"] = "keep"
    """What to do when a tag names another image than the one that is there. Both digests are reported; then ``keep``
    uses the file, ``refresh`` imports the new image under a name with its digest, and ``fail`` is an error."""
    squash_options: str = "-comp zstd -Xcompression-level 3 -b 1M -exit-on-error"
    """For mksquashfs. The default gives smaller files than enroot's own, and costs less (docs/guides/images.md)."""
    processors: int | None = None
    """Processors for one import; all that the host has when not given. On a compute node Slurm is asked for them."""
    transfer_retries: int = 3
    """How often enroot tries a transfer again."""
    import_partition: str | None = None
    """Partition for imports on compute nodes: one without GPUs, where there is one. No GPU is asked for anyway."""
    import_options: list[str] = []
    """More options for the srun of an import."""
    environment: dict[str, str] = {}
    """Variables for enroot; ``{home}`` is the user's home directory (``ENROOT_CACHE_PATH: "{home}/.cache/enroot"``)."""
    rules: list[ImageRule] = []
    """Images that do not lie where the others do; the first match wins."""
    aliases: list[str] = []
    """Container names in recipes that mean the benchmark's own image on this cluster."""
    helpers: dict[str, str] = {}
    """Alias → image reference, for nginx and exporters."""


class Workspace(Struct, frozen=True, kw_only=True):
    """How the job sees the workspace."""

    shared: str | None = None
    """A directory below which a copy is made, because compute nodes cannot see the original."""
    only: list[When] = []
    """The benchmarks that need the copy: those that one of these matches. All, when it is not given."""
    variable: str = "INFMAX_WORKSPACE"
    """The environment variable that tells the job where the workspace is."""
    own: str | None = None
    """A directory below which each job in a container gets a workspace of its own, by its run's id. It holds the
    scripts that come with the launcher (`recipes/benchmarks`), and nothing of the user's workspace. Without it the job
    works in the user's workspace."""


Share = Annotated[float, Meta(ge=0, le=1)]


class Results(Struct, frozen=True, kw_only=True):
    """How far a result may be off and still be believed. A row's settings come before it: RESULT_FAILED,
    RESULT_CLOCK_SKEW, RESULT_TOLERANCE, RESULT_SHORTEST and RESULT_LONGEST."""

    failed: Share = 0.05
    """The largest share of the requests that may fail: above it InferenceX's own client ends in an error."""
    failed_agentic: Share = 0.10
    """The same for agentic runs, as InferenceX's gate has it (AIPERF_FAILED_REQUEST_THRESHOLD, which comes before)."""
    clock_skew: Annotated[float, Meta(ge=0)] = 60.0
    """By how many seconds the clocks of nodes and of this host may differ."""
    tolerance: Share = 0.05
    """By which share counts, durations and rates of one result may contradict each other."""
    lengths: tuple[float, float] = (0.5, 1.5)
    """Between which shares of ISL and OSL the mean lengths of requests lie, where lengths are fixed."""
    tasks: list[str] = []
    """What evaluations may evaluate beside the tasks that InferenceX has thresholds for."""


class Runner(Struct, frozen=True, kw_only=True):
    """One runner file."""

    name: str
    """The file's own name, without ``.yaml``."""
    description: str = ""
    """One line for people."""
    sku: str
    """The GPU as results name it (``gb300``)."""
    runners: list[str] = []
    """Prefixes of RUNNER_NAME (up to its first underscore) that are this cluster."""
    labels: list[str] = []
    """`runner:` values of matrix rows that this cluster serves."""
    tools: Literal["system", "rehearsal"] = "system"
    """``rehearsal``: enroot, srtctl and srt-slurm are the stand-ins of launcher/rehearsal, and results say so."""
    scheduler: Scheduler
    limits: Limits = Limits()
    """What sweeps take at once."""
    node: Node
    login: Login | None = None
    """Where people log in to this cluster, if `launcher remote` is to reach it by this name."""
    storage: list[Storage] = []
    """File systems, and which nodes see them. A path on none of these is taken to be seen by all nodes."""
    images: Images = Images()
    checkout: Checkout = Checkout()
    workspace: Workspace = Workspace()
    results: Results = Results()
    """When a result is believed."""
    repositories: dict[str, str] = {}
    """Name → URL of the srt-slurm repositories that lanes use."""
    models: list[ModelRule]
    """Where checkpoints lie: the first rule that matches wins."""
    lanes: list[LaneRule]
    """What runs a benchmark: the first rule that matches wins."""
    srtslurm: dict[str, Any] = {}
    """More keys of every srtslurm.yaml."""
    tags: str = "{sku},{prefix},{precision},{isl}x{osl},infmax-{date}"
    """The tags that `srtctl apply --tags` gets."""
    adjust: list[Adjustment] = []
    """Settings that several lanes share: every rule that matches applies, in order."""
    exclude_nodes: list[ExcludedNode] = []
    """Nodes that jobs must not get."""
    pass_environment: list[str] = []
    """Further variables of the runner's host that jobs get, where they are set."""
