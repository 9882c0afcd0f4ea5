"""The two sides that are compared: what is known of a live cluster, and what a runner file says key by key.

Every fact is a value, or `Unknown` with the reason; nothing is guessed. A comparison returns what the cluster says
where both agree; it raises `Differ` where they do not, and `Unknown` where nobody can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from launcher.core.errors import suggest
from launcher.core.mounts import is_network
from launcher.core.yaml_source import Key
from launcher.image.probe import LockProbe
from launcher.runner.file import RunnerFile

Side = Literal["login", "compute"]


class Unknown(Exception):
    """Why something is not known: the words of the program that was asked, or that nothing was asked.

    It stands in the place of a fact. ``hint`` is how to make the fact known, where that can be said.
    """

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why, self.hint = why, hint


class Differ(Exception):
    """The cluster is not as the runner file says: ``found`` is what it says, ``hint`` how to fix the file or it."""

    def __init__(self, found: str, hint: str) -> None:
        super().__init__(found)
        self.found, self.hint = found, hint


_NOT_YET = Unknown("not looked at yet")

T = TypeVar("T")
Fact: TypeAlias = T | Unknown


def known(fact: Fact[T]) -> T:
    """The value of a fact. Raises the Unknown that stands in its place."""
    if isinstance(fact, Unknown):
        raise fact
    return fact


def listed(fact: Fact[tuple[T, ...]]) -> tuple[T, ...]:
    """A list that was asked for; empty where it is unknown."""
    return () if isinstance(fact, Unknown) else fact


@dataclass(frozen=True)
class Statement:
    """One value of a runner file. ``keys`` lead to it, ``table`` is the table that it stands in."""

    keys: tuple[Key, ...]
    value: Any
    table: Any = None

    @property
    def dotted(self) -> str:
        """Its keys as a person writes them: ``models[2].path``."""
        return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys).removeprefix(".")

    def __str__(self) -> str:
        """Its value as YAML has it."""
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


def statements(file: RunnerFile, pattern: str, default: object = None) -> Iterator[Statement]:
    """What the file says at each key that matches ``pattern``; nothing where it says nothing.

    In a pattern ``[]`` stands for every item of a list and ``*`` for every key of a table: ``lanes.[].ref``. The value
    is ``default`` where the key is not in its table.
    """
    found = [Statement((), file.runner)]
    for step in pattern.split("."):
        found = [
            Statement((*one.keys, key), value, one.value)
            for one in found
            for key, value in _below(one.value, step, default)
        ]
    return (one for one in found if one.value is not None)


def _below(table: Any, step: str, default: object) -> Iterable[tuple[Key, Any]]:
    if step == "[]":
        return enumerate(table)
    if step == "*":
        return [(str(key), value) for key, value in table.items()] if isinstance(table, Mapping) else ()
    if isinstance(table, Mapping):
        return [(step, table.get(step, default))]
    return [] if table is None else [(step, getattr(table, step.replace("-", "_")))]


@dataclass(frozen=True)
class Node:
    """A node as the controller describes it.

    ``arch`` is None until its slurmd has registered once. ``gres`` are its GPUs: type ("" for none) and count.
    """

    name: str
    arch: str | None
    gres: tuple[tuple[str, int], ...]
    state: str
    partitions: tuple[str, ...]

    @property
    def gpus(self) -> int:
        return sum(count for _, count in self.gres)

    @property
    def usable(self) -> bool:
        """Whether jobs can be started on it, now or when it is free.

        Slurm appends ``*`` to the state of a node that does not respond, and flags such as ``+DRAIN``.
        """
        return not re.search(r"DOWN|DRAIN|FAIL|MAINT|UNKNOWN|FUTURE|NOT_RESPONDING|\*", self.state)


def gpu_types(nodes: Iterable[Node]) -> list[str]:
    """The types of GPUs on these nodes, as their GRES names them."""
    return list(dict.fromkeys(kind for node in nodes for kind, _ in node.gres if kind))


@dataclass(frozen=True)
class Partition:
    """A partition. ``max_time`` is in seconds, None for no limit; ``nodes`` counts them."""

    name: str
    default: bool
    hidden: bool
    state: str
    max_time: float | None
    nodes: int


@dataclass(frozen=True)
class SubmissionCheck:
    """What `sbatch --test-only` answered to some options. ``accepted`` is None when nobody judged them."""

    options: tuple[str, ...]
    accepted: bool | None
    answer: str


@dataclass(frozen=True)
class Mount:
    """A mounted file system, as `findmnt` shows it."""

    target: str
    source: str
    type: str

    @property
    def network(self) -> bool:
        return is_network(self.type)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a runner file may call it as the ``kind`` of a storage."""
        return ("lustre",) if self.type == "lustre" else ("nfs",) if self.network else ("local", "node-local")

    def __str__(self) -> str:
        return f"{self.type} from {self.source} on {self.target}"


@dataclass(frozen=True)
class DirectoryView:
    """A directory as one host sees it.

    ``at`` is the directory itself, or the nearest directory above it that exists; everything else is about ``at``.
    ``refused`` is why no file could be written there, "" when one could. ``free`` is in bytes, for users who are not
    root. ``shared`` says whether this host and the login host each saw the file that the other wrote there; it is None
    on the login host, and when that could not write one.
    """

    at: str
    readable: bool
    refused: str
    mount: Fact[Mount]
    free: int | None = None
    shared: bool | None = None

    def is_at(self, path: str) -> bool:
        """Whether the directory itself is there."""
        return self.at == path

    @property
    def writable(self) -> bool:
        return not self.refused


@dataclass(frozen=True)
class Looked:
    """What came of a look at a node: why it is ``red``, "" where all is well, and what it wrote down last."""

    red: str
    fact: str = ""


@dataclass(frozen=True)
class Host:
    """A host, as it describes itself. ``enroot`` is enroot's version, ``devices`` counts /dev/nvidia<n>."""

    name: str
    arch: Fact[str] = _NOT_YET
    enroot: Fact[str] = _NOT_YET
    devices: Fact[int] = _NOT_YET
    directories: Mapping[str, DirectoryView] = field(default_factory=dict)
    unseen: str = ""
    """Why directories are missing that were asked about."""
    disks: tuple[Mount, ...] = ()
    """Mounted local disks (NVMe, RAID) beside the system's own."""
    shares: tuple[Mount, ...] = ()
    """Mounted network file systems."""
    looks: Mapping[str, Fact[Looked]] = field(default_factory=dict)
    """What jobs would look at on it (`launcher.doctor.node_looks`), by name."""

    def directory(self, path: str) -> Fact[DirectoryView]:
        return self.directories.get(path) or Unknown(self.unseen or f"{self.name} was not asked about {path}")


@dataclass(frozen=True)
class SlurmFacts:
    """What Slurm says. ``config`` is slurm.conf as the controller has it, ``user`` who asked.

    ``associations`` are what accounting lets that user do: jobs of an account, in a partition ("" for any).
    """

    user: str
    version: Fact[str]
    config: Fact[Mapping[str, str]]
    partitions: Fact[tuple[Partition, ...]]
    nodes: Fact[tuple[Node, ...]]
    associations: Fact[tuple[tuple[str, str], ...]]
    default_account: Fact[str]

    def partition(self, name: str | None) -> Fact[Partition]:
        """The partition of this name, the default one without a name."""
        if isinstance(self.partitions, Unknown):
            return self.partitions
        names = [partition.name for partition in self.partitions]
        wrong = "Slurm has no default partition" if name is None else f"Slurm shows no partition {name!r}"
        found = (p for p in self.partitions if (p.default if name is None else p.name == name))
        return next(found, Unknown(wrong, suggest(name or "", names, f"there are {', '.join(names)}")))

    def nodes_of(self, partition: str | None) -> Fact[tuple[Node, ...]]:
        """The nodes of the partition of this name, of the default one without a name."""
        found, nodes = self.partition(partition), self.nodes
        if isinstance(found, Unknown):
            return found
        return nodes if isinstance(nodes, Unknown) else tuple(node for node in nodes if found.name in node.partitions)

    def setting(self, name: str) -> Fact[str]:
        if isinstance(self.config, Unknown):
            return self.config
        return self.config.get(name) or Unknown(f"`scontrol show config` shows no {name}")

    @property
    def accounts(self) -> list[str]:
        """The accounts that accounting lets the user name; empty when they are not known."""
        return list(dict.fromkeys(account for account, _ in listed(self.associations)))

    @property
    def no_accounting(self) -> bool:
        """Whether Slurm says that it keeps no accounting, so that an account means nothing."""
        kind = self.setting("AccountingStorageType")
        return isinstance(kind, str) and (kind.endswith("/none") or kind == "(null)")


NO_SLURM = SlurmFacts("", *[Unknown("the runner's scheduler is the embedded one")] * 6)


@dataclass(frozen=True)
class Imported:
    """Whether enroot imported the tiny image; what there is to say, and how to ``fix`` it."""

    imported: bool
    say: str
    fix: str = ""


@dataclass(frozen=True)
class ClusterFacts:
    """Everything that was asked of a cluster.

    ``submissions`` are the jobs that Slurm was asked about, by name (see `launcher.doctor.scheduling.jobs_to_check`).
    ``locks`` says whether locks hold in the image directory between two processes of this host.
    ``refs`` are the refs (name → commit) of each repository, by its name in the runner file. ``imports`` is what came
    of an import of a tiny image where images are imported, None where that was not tried.
    """

    slurm: SlurmFacts
    login: Host = Host("this host")
    compute: Fact[Host] = _NOT_YET
    partition_name: str | None = None
    """The partition that was asked about; None for the default one."""
    submissions: Mapping[str, SubmissionCheck] = field(default_factory=dict)
    locks: Fact[LockProbe] | None = None
    refs: Mapping[str, Fact[Mapping[str, str]]] = field(default_factory=dict)
    imports: Fact[Imported] | None = None
    stand_ins: tuple[str, ...] = ()
    """The programs that runs start in place of the cluster's own, which then do not matter."""

    def side(self, side: Side) -> Fact[Host]:
        return self.login if side == "login" else self.compute

    @property
    def node(self) -> Host | None:
        """The compute node that was looked at, if one was."""
        return None if isinstance(self.compute, Unknown) else self.compute

    def looked(self, name: str) -> Fact[Looked] | None:
        """What came of a look on the node; None where it was not tried."""
        return None if self.node is None else self.node.looks.get(name)

    def on_node(self, path: str) -> Fact[DirectoryView]:
        return self.compute if isinstance(self.compute, Unknown) else self.compute.directory(path)

    @property
    def partition(self) -> Fact[Partition]:
        return self.slurm.partition(self.partition_name)

    @property
    def nodes(self) -> Fact[tuple[Node, ...]]:
        """The nodes of the partition."""
        return self.slurm.nodes_of(self.partition_name)

    @property
    def job(self) -> SubmissionCheck:
        """The smallest job, as it was tried."""
        return self.submissions.get("job", SubmissionCheck((), None, "sbatch was not asked"))

    @property
    def no_enroot(self) -> bool:
        """Whether enroot was looked for here and on a node, and is on neither."""
        return self.node is not None and all(isinstance(h.enroot, Unknown) for h in (self.login, self.node))
