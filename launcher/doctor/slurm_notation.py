"""Slurm's notation of host lists."""

from __future__ import annotations

import re

_GROUP = re.compile(r"\[([^]]*)\]")


def node_names(expression: str) -> list[str]:
    """The names in a host list as Slurm writes it: ``gb200-[001-003,007],login1``."""
    names = []
    for part in re.split(r",(?![^\[]*\])", expression):
        names += _expanded(part.strip()) if part.strip() else []
    return names


def _expanded(part: str) -> list[str]:
    group = _GROUP.search(part)
    if group is None:
        return [part]
    names = []
    for item in group[1].split(","):
        first, dash, last = item.partition("-")
        if dash and first.isdigit() and last.isdigit():
            items = [f"{i:0{len(first)}d}" for i in range(int(first), min(int(last), int(first) + 65535) + 1)]
        else:
            items = [item]
        for each in items:
            names += _expanded(part[: group.start()] + each + part[group.end() :])
    return names
