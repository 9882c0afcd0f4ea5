"""Two runs beside each other: of each point that both have, whether each metric is better, same or worse. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.core.errors import ConfigError
from launcher.report.points import Identity, Metric, Point, compared, metric

Answer = Literal["better", "same", "worse", "not comparable"]

SAME = 0.03
"""The relative change up to which a metric is the same, where no threshold says otherwise."""


@dataclass(frozen=True)
class Threshold:
    """How much worse a metric may become: a share of what it was before."""

    metric: Metric
    share: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """``tput_per_gpu:-5%``, ``median_ttft:+10%``. Raises ConfigError, also for a change that would be better."""
        found = re.fullmatch(r"([\w.]+):([+-]?)(\d{1,3}(?:\.\d{1,3})?)%", text)
        if found is None:
            raise ConfigError(f"{text!r} is no threshold", where="--fail-on", hint="METRIC:-N%, like tput_per_gpu:-5%")
        held = metric(found[1])
        if held.better is None:
            raise ConfigError(f"neither more nor less {held.title} is better", where="--fail-on")
        if found[2] and (found[2] == "+") == (held.better == "more"):
            hint = f"{found[1]}:{'-' if held.better == 'more' else '+'}{found[3]}%"
            raise ConfigError(f"{text!r}: such a change would be better", where="--fail-on", hint=hint)
        return cls(held, float(found[3]) / 100)


@dataclass(frozen=True)
class Delta:
    """One metric of one point in both runs: medians where a side has several measurements, with their number and spread
    (largest less smallest). ``change`` is relative, None where it is not defined."""

    metric: Metric
    before: float | None
    after: float | None
    change: float | None
    answer: Answer
    threshold: float = SAME
    n: tuple[int, int] = (0, 0)
    spread: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Comparison:
    """One point in both runs. ``reason`` says why it cannot be compared; ``changed`` what else differs: (what, before,
    after)."""

    identity: Identity
    deltas: tuple[Delta, ...] = ()
    reason: str = ""
    changed: tuple[tuple[str, str, str], ...] = ()

    @property
    def answer(self) -> Answer:
        """Worse where one metric is, else better where one is; a point of one side only is not comparable."""
        answers = {delta.answer for delta in self.deltas}
        order: tuple[Answer, ...] = ("worse", "better", "same")
        return next((answer for answer in order if answer in answers), "not comparable")


def delta(held: Metric, before: Sequence[float], after: Sequence[float], threshold: float = SAME) -> Delta:
    """What became of one metric. Without a value on either side, or from 0, it is not comparable."""
    old, new = (statistics.median(values) if values else None for values in (before, after))
    spreads = tuple(max(values) - min(values) if values else 0.0 for values in (before, after))
    change = (new - old) / abs(old) if old and new is not None else None
    answer: Answer = "not comparable"
    if change is not None and held.better is not None:
        gain = change if held.better == "more" else -change
        # A change of exactly the threshold is the same, however the floats fall.
        answer = "same" if abs(gain) <= threshold + 1e-12 else "better" if gain > 0 else "worse"
    return Delta(held, old, new, change, answer, threshold, (len(before), len(after)), (spreads[0], spreads[1]))


def compare(after: Iterable[Point], before: Iterable[Point], thresholds: Sequence[Threshold] = ()) -> list[Comparison]:
    """Every point of either run, by identity, in the order of ``after``. Only points that are ok are compared."""
    sides = _by_identity(after), _by_identity(before)
    held = {threshold.metric.name: threshold for threshold in thresholds}
    return [
        _compared(identity, sides[0].get(identity, []), sides[1].get(identity, []), held)
        for identity in {**sides[0], **sides[1]}
    ]


def _by_identity(points: Iterable[Point]) -> dict[Identity, list[Point]]:
    found: dict[Identity, list[Point]] = {}
    for point in points:
        found.setdefault(point.identity, []).append(point)
    return found


def _compared(identity: Identity, after: list[Point], before: list[Point], held: Mapping[str, Threshold]) -> Comparison:
    good = [[point for point in points if point.state == "ok"] for points in (after, before)]
    for which, points, ok in (("this", after, good[0]), ("the other", before, good[1])):
        if not ok:
            last = points[-1] if points else None
            told = f"not ok in {which} run: {last.reason or last.state}" if last else f"not in {which} run"
            return Comparison(identity, reason=told)
    asked = (one.metric for one in held.values() if one.metric.fits(identity.scenario))
    names = {one.name: one for one in (*compared(identity.scenario), *asked)}
    deltas = []
    for name, one in names.items():
        new, old = ([value for p in points if (value := p.value(name)) is not None] for points in good)
        if new or old or name in held:
            deltas.append(delta(one, old, new, held[name].share if name in held else SAME))
    return Comparison(identity, tuple(deltas), changed=_changed(good[1][0], good[0][0]))


def _changed(before: Point, after: Point) -> tuple[tuple[str, str, str], ...]:
    keys = dict.fromkeys((*before.provenance, *after.provenance))
    pairs = ((key, str(before.provenance.get(key, "-")), str(after.provenance.get(key, "-"))) for key in keys)
    return tuple(pair for pair in pairs if pair[1] != pair[2] and pair[0] not in ("run", "job"))


def failures(comparisons: Iterable[Comparison], thresholds: Sequence[Threshold]) -> list[str]:
    """What passes a threshold, in sentences: a metric that became worse by more, one that is missing, and a point that
    is not in both runs."""
    found = []
    for one in comparisons if thresholds else ():
        point = one.identity
        what = f"{point.model} {point.lengths} {' '.join(point.curve[:4])} {point.topology}"
        at = f"{what} concurrency {point.concurrency}"
        if not one.deltas:
            found.append(f"{at}: {one.reason}")
        for held in thresholds:
            for delta in (d for d in one.deltas if d.metric.name == held.metric.name):
                if delta.answer == "worse" and delta.change is not None:
                    found.append(
                        f"{at}: {held.metric.name} changed by {delta.change:+.1%}, {held.share:.4g} is the most"
                    )
                elif delta.answer == "not comparable":
                    found.append(f"{at}: {held.metric.name} is not in both runs")
    return found
