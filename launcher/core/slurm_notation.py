"""Slurm's own notation for time limits and host lists."""

from __future__ import annotations

import re

_GROUP = re.compile(r"\[([^]]*)\]")


def seconds(text: str) -> float | None:
    """The seconds of a time limit as Slurm writes it (sbatch(1), --time); None for a text that is not one.

    ``90`` is minutes, ``4:00`` minutes and seconds, ``4:00:00`` hours, ``2-4`` days and hours (``D-HH[:MM[:SS]]``).
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, secs = parts
    else:
        hours, (minutes, secs) = 0, (*parts, 0)[:2]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + secs)


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
