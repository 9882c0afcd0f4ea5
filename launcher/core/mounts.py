"""Which file system a path is on, by the kernel's mount table; several hosts can mount some of them at once."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.core.reading import read_file

_NETWORK_TYPES = frozenset(
    {"lustre", "nfs", "nfs4", "gpfs", "beegfs", "ceph", "wekafs", "cifs", "9p", "panfs", "pvfs2", "afs"}
)

_LOCAL_FUSE_TYPES = frozenset({"fuse.lxcfs", "fuse.snapfuse", "fuse.squashfuse", "fuse.gvfsd-fuse", "fuse.portal"})
"""FUSE file systems of one host; others are clients of servers."""

MOUNT_TABLE = Path("/proc/self/mountinfo")


def is_network(kind: str) -> bool:
    """Whether a type of file system, as the kernel and `findmnt` name it, is one that several hosts can mount."""
    return kind not in _LOCAL_FUSE_TYPES if kind.startswith("fuse.") else kind in _NETWORK_TYPES


def file_system_type(path: Path, table: Path = MOUNT_TABLE) -> str:
    """The type of the file system that a path is on, "" when it is not known."""
    try:
        lines = read_file(table, 8 << 20).decode(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    kind, mount_point = "", ""
    for line in lines:
        mount, _, file_system = line.partition(" - ")
        if len(parts := mount.split()) < 5 or not file_system:
            continue
        target = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), parts[4])
        inside = str(path) == target or str(path).startswith(target.rstrip("/") + "/")
        if inside and len(target) >= len(mount_point):  # a later mount on the same place hides the earlier one
            kind, mount_point = file_system.split()[0], target
    return kind
