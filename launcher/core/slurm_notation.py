"""Slurm's own notation for time limits and host lists."""

from __future__ import annotations

import re
from functools import lru_cache

TIME_LIMIT = r"^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$"
"""The form of a time limit, also for a JSON Schema."""

_GROUP = re.compile(r"\[([^]]*)\]")


@lru_cache(maxsize=256)
def limit_seconds(text: str | None) -> float | None:
    """The seconds of a time limit as Slurm writes it (sbatch(1), --time); None for a text that is not one.

    ``90`` is minutes, ``4:00`` minutes and seconds, ``4:00:00`` hours, ``2-4`` days and hours (``D-HH[:MM[:SS]]``).
    """
    if text is None or not re.fullmatch(TIME_LIMIT, text):
        return None
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return float(int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False)))


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
