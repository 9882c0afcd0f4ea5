"""What a cluster is: where it lives, how many nodes it pretends to have, and the address that it listens on."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import pwd
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

CLUSTER = "fake"
PARTITION = "batch"
ACCOUNT = "benchmark"
CPUS_PER_NODE = 144
MEMORY_PER_NODE_MIB = 512_000
FIRST_NODE_PORT = 2
"""Ports of a cluster, counted from its base: 0 slurmctld, 1 slurmdbd, 2 and up one for each slurmd."""

_SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (sockaddr_un, unix(7))."""


class ClusterError(Exception):
    """The cluster cannot be had as asked; the message says why and what to do."""


class NotInstalled(ClusterError):
    """A daemon or client program of Slurm, munge or MariaDB is missing."""


class NodesCannotRun(ClusterError):
    """slurmd ends at once on this machine, as in a container without a cgroup file system; its words are given."""


@dataclass(frozen=True)
class Settings:
    """One cluster. ``port`` is the first of the block that it uses, ``nodes`` counts from 1."""

    directory: Path
    nodes: int = 18
    port: int = 16800
    gpus: int = 4
    accounting: bool = True
    enforce_part_limits: str = "NO"
    extra: tuple[str, ...] = ()
    """More lines of slurm.conf, each ``Name=value``."""

    def __post_init__(self) -> None:
        for line in self.extra:
            if not re.fullmatch(r"[A-Za-z]+=\S+", line):
                raise ClusterError(f"--set {line}: Name=value, as slurm.conf has it")
        if not 1 <= self.nodes <= 999:
            raise ClusterError(f"--nodes {self.nodes}: from 1 to 999")
        if not 0 <= self.gpus <= 64:
            raise ClusterError(f"--gpus {self.gpus}: from 0 to 64")
        if not 1024 <= self.port <= self.last_port <= 65535:
            raise ClusterError(f"--port {self.port}: {self.port}-{self.last_port} must lie within 1024-65535")
        if not re.fullmatch(r"/[A-Za-z0-9._/+@=-]*", str(self.directory)):
            raise ClusterError(f"--dir {self.directory}: slurm.conf can only name paths of letters, digits and ._/+@=-")
        if len(str(self.database_socket)) > _SOCKET_PATH_LIMIT:
            raise ClusterError(f"--dir {self.directory}: too long for the sockets in it; take a shorter path")

    @property
    def last_port(self) -> int:
        return self.port + FIRST_NODE_PORT + self.nodes - 1

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.directory / "run" / "munge.socket"

    @property
    def database(self) -> Path:
        return self.directory / "database"

    @property
    def database_socket(self) -> Path:
        return self.directory / "run" / "database.socket"

    @property
    def node_names(self) -> list[str]:
        return [f"node{i:0{self._digits}d}" for i in range(1, self.nodes + 1)]

    @property
    def node_range(self) -> str:
        """All the nodes as Slurm's host list, such as ``node[01-18]``."""
        return f"node[{1:0{self._digits}d}-{self.nodes:0{self._digits}d}]"

    @property
    def _digits(self) -> int:
        return max(2, len(str(self.nodes)))

    def save(self) -> None:
        values = {k: v for k, v in dataclasses.asdict(self).items() if k != "directory"}
        (self.directory / "cluster.json").write_text(json.dumps(values) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Settings | None:
        """The settings that a cluster in ``directory`` was started with; None when none ever was."""
        try:
            text = (directory / "cluster.json").read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        values = json.loads(text)
        return cls(directory=directory, **{**values, "extra": tuple(values.get("extra", ()))})


def own_address() -> tuple[str, str]:
    """This machine's short name and the loopback address that its name means.

    Slurm can be told not to listen on every address, and then listens on what `hostname` resolves to
    (CommunicationParameters in slurm.conf(5)); no option names another address. So the name must mean loopback.
    """
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = ""
    if not address or not ipaddress.ip_address(address).is_loopback:
        raise ClusterError(
            f"this machine's name, {name}, means {address or 'no address'} and not loopback, so that the daemons would "
            f"be reachable from outside; put a line '127.0.0.1 {name}' at the top of /etc/hosts"
        )
    return name.split(".")[0], address


def user_name() -> str:
    """The name of the user that we run as; Slurm and its accounting know users by name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ClusterError(f"user id {os.getuid()} has no name in /etc/passwd; Slurm needs one") from None


def find_program(name: str) -> str:
    """The path of a program; Debian keeps daemons in /usr/sbin, which an ordinary user's PATH lacks."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise NotInstalled(f"Slurm is not installed: {name} was not found")
    return found


def require_programs(accounting: bool) -> None:
    """Raise `NotInstalled` with every program that is missing."""
    names = ["munged", "slurmctld", "slurmd", "scontrol", "sinfo", "squeue", "sbatch", "scancel"]
    if accounting:
        names += ["slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb-install-db"]
    missing = []
    for name in names:
        try:
            find_program(name)
        except NotInstalled:
            missing.append(name)
    if missing:
        packages = "slurm-wlm munge" + (" slurmdbd mariadb-server" if accounting else "")
        raise NotInstalled(f"Slurm is not installed: no {', '.join(missing)} (Debian packages: {packages})")
