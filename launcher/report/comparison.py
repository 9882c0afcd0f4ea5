"""This report beside another one: which points became better, same or worse, and what passes a threshold. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.core.errors import ConfigError, ResultError
from launcher.report.document import Answer, Change, Compared, Comparison, Document, ReportInput, point_name
from launcher.report.points import Identity, Metric, Point, compared, metric

SAME = 0.03
"""The relative change up to which a metric is the same, where no threshold says otherwise."""

_TOLD = ("image", "digest", "recipe", "fingerprint", "srt_slurm", "commit", "model", "nodes")
"""What is said of two measurements where it is not the same: by the names of `Run.known`."""


@dataclass(frozen=True)
class Threshold:
    """How much worse a metric may become: a share of what it was before."""

    metric: Metric
    share: float = SAME

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


Thresholds = Mapping[str, Threshold]
"""By the names of their metrics."""


def compare_reports(document: Document, now: ReportInput, base: ReportInput, thresholds: Sequence[str]) -> Comparison:
    """Each point of both sides. ``thresholds`` are like ``tput_per_gpu:-5%``; one that is passed makes the exit code 7,
    and so does a point that is missing on a side. Where nothing can be compared at all it is 2. Raises ConfigError."""
    held = {one.metric.name: one for one in map(Threshold.parse, thresholds)}
    ids = {point_name(entry): entry.id for entry in document.points}
    points, failed = [], list[str]()
    for identity, one in compare_points(now, base, held, ids):
        points.append(one)
        failed += threshold_failures(identity, one, held)
    code = ResultError.exit_code if failed else 0
    if not any(one.changes for one in points):
        code = ConfigError.exit_code
    return Comparison(against=", ".join(base.sources), points=tuple(points), failed=tuple(failed), exit_code=code)


def compare_points(
    now: ReportInput, base: ReportInput, held: Thresholds, ids: Mapping[str, str]
) -> Iterator[tuple[Identity, Compared]]:
    """Every point of either side, by identity, in the order of ``now``. Only points that are ok are compared. ``ids``
    are those of the report's entries, by their names."""
    sides: tuple[dict[Identity, list[Point]], ...] = ({}, {})
    for side, gathered in zip(sides, (now, base), strict=True):
        for point in gathered.attempts():
            side.setdefault(point.identity, []).append(point)
    for identity in {**sides[0], **sides[1]}:
        points, key = [side.get(identity, []) for side in sides], ids.get(point_name(identity), "")
        yield identity, _compared(identity, key, points, (now, base), held)


def _compared(
    identity: Identity, key: str, sides: Sequence[list[Point]], gathered: Sequence[ReportInput], held: Thresholds
) -> Compared:
    good = [[point for point in points if point.state == "ok"] for points in sides]
    for which, points, ok in zip(("this", "the other"), sides, good, strict=True):
        if not ok:
            last = points[-1] if points else None
            told = f"not ok in {which} run: {last.reason or last.state}" if last else f"not in {which} run"
            return Compared(point=point_name(identity), id=key, answer="not comparable", reason=told)
    asked = (one.metric for one in held.values() if one.metric.fits(identity.scenario))
    changes, samples = [], (0, 0)
    for one in {one.name: one for one in (*compared(identity.scenario), *asked)}.values():
        new, old = ([value for p in points if (value := p.value(one.name)) is not None] for points in good)
        if new or old or one.name in held:
            changes.append(metric_change(held.get(one.name, Threshold(one)), old, new))
            samples = max(samples, (len(old), len(new)), key=sum)
    answers = {one.answer for one in changes}
    order: tuple[Answer, ...] = ("worse", "better", "same")
    runs = (of.runs.get(points[0].run) for of, points in zip(gathered, good, strict=True))
    now, base = (run.known if run is not None else {} for run in runs)
    pairs = ((key, str(base.get(key) or "-"), str(now.get(key) or "-")) for key in _TOLD)
    return Compared(
        point=point_name(identity),
        id=key,
        answer=next((answer for answer in order if answer in answers), "not comparable"),
        changes=tuple(changes),
        differs=tuple(f"{what}: {before} → {after}" for what, before, after in pairs if before != after),
        samples=samples,
    )


def metric_change(held: Threshold, before: Sequence[float], after: Sequence[float]) -> Change:
    """What became of one metric. Without a value on either side, or from 0, it is not comparable."""
    old, new = (statistics.median(values) if values else None for values in (before, after))
    spreads = tuple(max(values) - min(values) if values else 0.0 for values in (before, after))
    change = (new - old) / abs(old) if old and new is not None else None
    answer: Answer = "not comparable"
    if change is not None and held.metric.better is not None:
        gain = change if held.metric.better == "more" else -change
        # A change of exactly the threshold is the same, however the floats fall.
        answer = "same" if abs(gain) <= held.share + 1e-12 else "better" if gain > 0 else "worse"
    return Change(
        metric=held.metric.name,
        answer=answer,
        base=old,
        now=new,
        change=change,
        threshold=held.share,
        spread=(spreads[0], spreads[1]),
    )


def threshold_failures(point: Identity, found: Compared, held: Thresholds) -> Iterator[str]:
    """What passes a threshold, in sentences: a metric that became worse by more, one that is missing, and a point that
    is not in both runs."""
    what = f"{point.model} {point.lengths} {' '.join(point.curve[:4])} {point.topology}"
    at = f"{what} concurrency {point.concurrency}"
    if held and not found.changes:
        yield f"{at}: {found.reason}"
    for one in found.changes if held else ():
        if one.metric in held and one.answer == "worse" and one.change is not None:
            yield f"{at}: {one.metric} changed by {one.change:+.1%}, {one.threshold:.4g} is the most"
        elif one.metric in held and one.answer == "not comparable":
            yield f"{at}: {one.metric} is not in both runs"
