"""This report beside another one: what became of each point, and what passes a threshold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from launcher.core.errors import ConfigError, ResultError
from launcher.report import deltas
from launcher.report.assemble import name_of
from launcher.report.deltas import Delta, Threshold
from launcher.report.document import Change, Compared, Comparison, Document
from launcher.report.gathered import Gathered
from launcher.report.points import Point

_TOLD = ("image", "digest", "recipe", "fingerprint", "srt_slurm", "commit", "model", "nodes")
"""What is said of two measurements where it is not the same: by the names of a point's provenance."""


def comparison(document: Document, now: Gathered, base: Gathered, thresholds: Sequence[str]) -> Comparison:
    """Each point of both sides. ``thresholds`` are like ``tput_per_gpu:-5%``; one that is passed makes the exit code 7,
    and so does a point that is missing on a side. Where nothing can be compared at all it is 2. Raises ConfigError."""
    held = [Threshold.parse(text) for text in thresholds]
    compared = deltas.compare(_told(now.attempts()), _told(base.attempts()), held)
    failed = deltas.failures(compared, held)
    code = ResultError.exit_code if failed else 0
    if not any(one.deltas for one in compared):
        code = ConfigError.exit_code
    ids = {entry.name: entry.id for entry in document.points}
    points = tuple(_compared(one, ids.get(name_of(one.identity), "")) for one in compared)
    return Comparison(against=", ".join(base.sources), points=points, failed=tuple(failed), exit_code=code)


def _told(points: Iterable[Point]) -> list[Point]:
    return [
        dataclasses.replace(
            point, provenance={key: point.provenance[key] for key in _TOLD if point.provenance.get(key)}
        )
        for point in points
    ]


def _compared(one: deltas.Comparison, key: str) -> Compared:
    samples = max((delta.n for delta in one.deltas), default=(0, 0), key=sum)
    return Compared(
        point=name_of(one.identity),
        id=key,
        answer=one.answer,
        reason=one.reason,
        changes=tuple(_change(delta) for delta in one.deltas),
        differs=tuple(f"{what}: {before} → {after}" for what, before, after in one.changed),
        samples=samples,
    )


def _change(delta: Delta) -> Change:
    return Change(
        metric=delta.metric.name,
        answer=delta.answer,
        base=delta.before,
        now=delta.after,
        change=delta.change,
        threshold=delta.threshold,
        spread=delta.spread,
    )
