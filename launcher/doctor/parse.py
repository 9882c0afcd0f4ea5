"""What Slurm's and the system's programs print, read into facts. Other lines, such as banners, are ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from launcher.core.slurm_notation import limit_seconds
from launcher.doctor.facts import Association, Gres, Mount, Node, Partition
from launcher.slurm.commands import scontrol_pairs

_CONFIG = re.compile(r"^(\w+)\s*= (.*?)\s*$", re.MULTILINE)
_GRES = re.compile(r"(?P<name>[^:]+)(?::(?P<type>[^:]+))?:(?P<count>\d+)(?P<unit>[KMGT]?)")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def config(text: str) -> dict[str, str]:
    """`scontrol show config`: one ``Name = value`` a line (plugins' own sections follow in the same form)."""
    return dict(_CONFIG.findall(text))


def partitions(text: str) -> tuple[Partition, ...]:
    """`scontrol --all show partition -o`."""
    return tuple(
        Partition(
            name=pairs["PartitionName"],
            default=pairs["Default"] == "YES",
            hidden=pairs["Hidden"] == "YES",
            state=pairs["State"],
            max_time=limit_seconds(pairs["MaxTime"]),
            nodes=int(pairs["TotalNodes"]) if pairs["TotalNodes"].isdigit() else 0,
        )
        for pairs in map(scontrol_pairs, text.splitlines())
        if pairs["PartitionName"]
    )


def nodes(text: str) -> tuple[Node, ...]:
    """`scontrol --all show node -o`: ``Arch`` stands only where the node's slurmd has registered."""
    return tuple(
        Node(
            name=pairs["NodeName"],
            arch=pairs["Arch"] or None,
            gres=gres(pairs["Gres"]),
            state=pairs["State"],
            partitions=tuple(partition for partition in pairs["Partitions"].split(",") if partition),
        )
        for pairs in map(scontrol_pairs, text.splitlines())
        if pairs["NodeName"]
    )


def associations(text: str) -> tuple[Association, ...]:
    """`sacctmgr -nP show assoc format=Account,Partition`."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 1]
    return tuple(Association(account, partition) for account, partition in rows if account)


def gres(text: str) -> tuple[Gres, ...]:
    """Slurm's list of resources: ``gpu:gb200:4(S:0-1),nvme:1``, ``gpu:4``, ``(null)``."""
    found = []
    for part in re.split(r",(?![^(]*\))", text):
        if match := _GRES.fullmatch(part.partition("(")[0]):
            count = int(match["count"]) * _UNITS[match["unit"]]
            found.append(Gres(match["name"], match["type"], count))
    return tuple(found)


def mounts(text: str) -> tuple[Mount, ...]:
    """`findmnt -J` with the columns TARGET,SOURCE,FSTYPE, nested or not; none for what is not JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return ()
    return tuple(_mounts(value.get("filesystems") if isinstance(value, dict) else None))


def _mounts(entries: object) -> Iterator[Mount]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            yield Mount(*(str(entry.get(key) or "") for key in ("target", "source", "fstype")))
            yield from _mounts(entry.get("children"))


def refs(text: str) -> dict[str, str]:
    """`git ls-remote`: ref → commit; an annotated tag is what it points at (the line with ``^{}``, after its own)."""
    found = {}
    for line in text.splitlines():
        commit, tab, name = line.partition("\t")
        if tab and re.fullmatch(r"[0-9a-f]{40}", commit):
            found[name.removesuffix("^{}")] = commit
    return found
