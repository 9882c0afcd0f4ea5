"""Slurm's notation of a time limit (sbatch(1), ``--time``)."""

from __future__ import annotations

import re

PATTERN = r"^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$"
"""``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M`` and ``D-H:M:S``, as a JSON Schema may have it too."""


def limit_seconds(text: str | None) -> float | None:
    """A time limit in seconds; None for ``UNLIMITED`` and whatever else is no such notation.

    ``90`` is minutes, ``4:00`` minutes and seconds, ``2-4`` days and hours.
    """
    if text is None or not re.fullmatch(PATTERN, text):
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)
