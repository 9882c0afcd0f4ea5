"""The two sides that are compared: the facts of a live cluster, and the settings of a runner file.

Every fact is a value, or `Unknown` with the reason; nothing is guessed. A comparison returns what the cluster has where
both agree. It raises `Mismatch` where they differ, and `Unknown` where the cluster gives no answer.
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
    """Why a fact is not known: the message of the program that failed, or that no program was run.

    It takes the place of the fact's value. ``hint`` says how to make the fact known, where there is a way.
    """

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why, self.hint = why, hint


class Mismatch(Exception):
    """The cluster differs from the runner file: ``found`` is what the cluster has, ``hint`` how to fix either."""

    def __init__(self, found: str, hint: str) -> None:
        super().__init__(found)
        self.found, self.hint = found, hint


_NOT_YET = Unknown("not looked at yet")

T = TypeVar("T")
Fact: TypeAlias = T | Unknown


def require(fact: Fact[T]) -> T:
    """The value of a fact. Raises the Unknown that stands in its place."""
    if isinstance(fact, Unknown):
        raise fact
    return fact


def or_empty(fact: Fact[tuple[T, ...]]) -> tuple[T, ...]:
    """The value of a list; an empty one where it is unknown."""
    return () if isinstance(fact, Unknown) else fact


@dataclass(frozen=True)
class Setting:
    """A value of a runner file, the ``keys`` that lead to it, and the ``table`` that holds it."""

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


def settings(file: RunnerFile, pattern: str, default: object = None) -> Iterator[Setting]:
    """The settings whose keys match ``pattern``, without those that are not given.

    In a pattern ``[]`` stands for every item of a list and ``*`` for every key of a table: ``lanes.[].ref``. The value
    is ``default`` where the key is not in its table.
    """
    matches = [Setting((), file.runner)]
    for step in pattern.split("."):
        matches = [
            Setting((*table.keys, key), value, table.value)
            for table in matches
            for key, value in _items(table.value, step, default)
        ]
    return (setting for setting in matches if setting.value is not None)


def _items(table: Any, step: str, default: object) -> Iterable[tuple[Key, Any]]:
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
    """What `sbatch --test-only` answered to some options. ``accepted`` is None where Slurm did not judge them."""

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

    ``existing`` is the directory itself, or the nearest parent that exists; all other fields describe ``existing``.
    ``write_error`` says why no file could be written there, "" when one could. ``free`` is in bytes, for users who are
    not root. ``shared`` says whether this host and the login host each saw the file that the other wrote there; it is
    None on the login host, and when that could not write one.
    """

    existing: str
    readable: bool
    write_error: str
    mount: Fact[Mount]
    free: int | None = None
    shared: bool | None = None

    def is_at(self, path: str) -> bool:
        """Whether the directory itself exists."""
        return self.existing == path


@dataclass(frozen=True)
class NodeCheck:
    """The outcome of a check on a node: the message of its ``failure``, "" where it passed, and its last ``result``."""

    failure: str
    result: str = ""


@dataclass(frozen=True)
class Host:
    """A host, as it describes itself. ``enroot`` is enroot's version, ``devices`` counts /dev/nvidia<n>."""

    name: str
    arch: Fact[str] = _NOT_YET
    enroot: Fact[str] = _NOT_YET
    devices: Fact[int] = _NOT_YET
    directories: Mapping[str, DirectoryView] = field(default_factory=dict)
    unseen: str = ""
    """Why requested directories are missing from ``directories``."""
    disks: tuple[Mount, ...] = ()
    """Mounted local disks (NVMe, RAID) beside the system's own."""
    shares: tuple[Mount, ...] = ()
    """Mounted network file systems."""
    checks: Mapping[str, Fact[NodeCheck]] = field(default_factory=dict)
    """The checks that a job makes on its node (`launcher.doctor.node_checks`), by name."""

    def directory(self, path: str) -> Fact[DirectoryView]:
        return self.directories.get(path) or Unknown(self.unseen or f"{self.name} was not asked about {path}")


@dataclass(frozen=True)
class SlurmFacts:
    """Slurm's answers to ``user``. ``config`` is slurm.conf as the controller has it.

    ``associations`` are the accounts that accounting lets that user charge, each with a partition ("" for any).
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
        problem = "Slurm has no default partition" if name is None else f"Slurm shows no partition {name!r}"
        matches = (p for p in self.partitions if (p.default if name is None else p.name == name))
        return next(matches, Unknown(problem, suggest(name or "", names, f"there are {', '.join(names)}")))

    def nodes_of(self, partition: str | None) -> Fact[tuple[Node, ...]]:
        """The nodes of the partition of this name, of the default one without a name."""
        try:
            name, nodes = require(self.partition(partition)).name, require(self.nodes)
        except Unknown as unknown:
            return unknown
        return tuple(node for node in nodes if name in node.partitions)

    def config_value(self, name: str) -> Fact[str]:
        if isinstance(self.config, Unknown):
            return self.config
        return self.config.get(name) or Unknown(f"`scontrol show config` shows no {name}")

    @property
    def accounts(self) -> list[str]:
        """The accounts that accounting lets the user name; empty when they are not known."""
        return list(dict.fromkeys(account for account, _ in or_empty(self.associations)))

    @property
    def no_accounting(self) -> bool:
        """Whether Slurm says that it keeps no accounting, so that an account means nothing."""
        kind = self.config_value("AccountingStorageType")
        return isinstance(kind, str) and (kind.endswith("/none") or kind == "(null)")


NO_SLURM = SlurmFacts("", *[Unknown("the runner's scheduler is the embedded one")] * 6)


@dataclass(frozen=True)
class ImportTrial:
    """Whether enroot imported the tiny image, what to ``say`` about that, and how to ``fix`` a failure."""

    imported: bool
    say: str
    fix: str = ""


@dataclass(frozen=True)
class ClusterFacts:
    """Everything that a cluster was asked for.

    ``submissions`` are the answers for jobs, by name (see `launcher.doctor.scheduling.jobs_to_check`). ``locks`` says
    whether locks hold in the image directory between two processes of this host. ``refs`` are the refs (name → commit)
    of each repository, by its name in the runner file. ``imports`` is the trial import of a tiny image where images are
    imported, None where it was not tried.
    """

    slurm: SlurmFacts
    login: Host = Host("this host")
    compute: Fact[Host] = _NOT_YET
    partition_name: str | None = None
    """The partition that was asked about; None for the default one."""
    submissions: Mapping[str, SubmissionCheck] = field(default_factory=dict)
    locks: Fact[LockProbe] | None = None
    refs: Mapping[str, Fact[Mapping[str, str]]] = field(default_factory=dict)
    imports: Fact[ImportTrial] | None = None
    stand_ins: tuple[str, ...] = ()
    """The programs that runs replace by stand-ins; the cluster's own then do not matter."""

    def side(self, side: Side) -> Fact[Host]:
        return self.login if side == "login" else self.compute

    @property
    def node(self) -> Host | None:
        """The compute node that was probed, None without one."""
        return None if isinstance(self.compute, Unknown) else self.compute

    def node_check(self, name: str) -> Fact[NodeCheck] | None:
        """The outcome of a check on the node; None where it was not tried."""
        return None if self.node is None else self.node.checks.get(name)

    @property
    def partition(self) -> Fact[Partition]:
        return self.slurm.partition(self.partition_name)

    @property
    def nodes(self) -> Fact[tuple[Node, ...]]:
        """The nodes of the partition."""
        return self.slurm.nodes_of(self.partition_name)

    @property
    def job(self) -> SubmissionCheck:
        """The answer for the smallest job."""
        return self.submissions.get("job", SubmissionCheck((), None, "sbatch was not asked"))

    @property
    def no_enroot(self) -> bool:
        """Whether a node was probed, and neither it nor this host has enroot."""
        return self.node is not None and all(isinstance(h.enroot, Unknown) for h in (self.login, self.node))
