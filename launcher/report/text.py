"""Formats texts and numbers for pages, tables and files. Texts from outside are escaped."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Hashable
from functools import lru_cache

from launcher.core.terminal import one_line
from launcher.report.document import Change, Compared
from launcher.report.points import metrics

LONGEST = 600
"""Characters of one text from outside that a report shows."""


@lru_cache(1 << 14, typed=True)  # a report of thousands of points has few different texts
def shown(text: Hashable) -> str:
    """A text from outside as one line of bounded length."""
    line = one_line(" ".join(str(text).split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


@lru_cache(1 << 14, typed=True)
def escaped(text: Hashable) -> str:
    """`shown`, escaped for HTML or XML, in an element or between double quotes."""
    return html.escape(shown(text))


def metric_text(name: str, metrics_of: dict[str, float]) -> str:
    """A metric's value with its decimals; "" if it is not known."""
    return "" if (value := metrics_of.get(name)) is None else f"{value:.{metrics()[name].digits}f}"


def change_text(change: Change | None) -> str:
    """A metric's value on this side with its change, ``1234.5 (-3.2 %)``; "" if no side has it. If a side has several
    measurements, the spreads of the base and of this side follow: ``1234.5 (-3.2 %, spread 10.0 → 0.0)``."""
    if change is None or (change.now is None and change.base is None):
        return ""
    digits = metrics()[change.metric].digits
    if change.now is None or change.change is None:
        return f"{'-' if change.now is None else f'{change.now:.{digits}f}'} (was {change.base or 0:.{digits}f})"
    before, now = change.spread
    spread = f", spread {before:.{digits}f} → {now:.{digits}f}" if before or now else ""
    return f"{change.now:.{digits}f} ({change.change * 100:+.1f} %{spread})"


def shorten_digests(text: str) -> str:
    """The text with digests and commits shortened to twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", text)


def samples_text(point: Compared) -> str:
    """The numbers of measurements: ``n = 1``, or ``n = 3, of the base 2`` if the sides differ."""
    base, now = point.samples
    return f"n = {now}" if now == base else f"n = {now}, of the base {base}"


def axis_number(value: float) -> str:
    """A number of an axis: ``0``, ``0.25``, ``1500``, ``20k``."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.6g}"


def local_time(seconds: float | None) -> str:
    """``2026-11-26 12:00:00`` in local time; "" for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration_text(seconds: float | None) -> str:
    """``45 s``, ``12.5 min``, ``3.2 h``; "" for none."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
