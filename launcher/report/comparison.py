"""Compares this report with another one: which points are better, same or worse, and which thresholds fail. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.core.errors import ConfigError, ResultError
from launcher.report.document import Answer, Change, Compared, Comparison, Document, ReportInput, point_name
from launcher.report.points import Identity, Metric, Point, compared, metric

SAME = 0.03
"""The relative change up to which a metric counts as the same, unless a threshold states another."""

_COMPARED_FACTS = ("image", "digest", "recipe", "fingerprint", "srt_slurm", "commit", "model", "nodes")
"""The names of `Run.facts` whose differences a comparison lists."""


@dataclass(frozen=True)
class Threshold:
    """How much worse a metric may become: a share of what it was before."""

    metric: Metric
    share: float = SAME

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """``tput_per_gpu:-5%``, ``median_ttft:+10%``. Raises ConfigError, also for a change that would be better."""
        match = re.fullmatch(r"([\w.]+):([+-]?)(\d{1,3}(?:\.\d{1,3})?)%", text)
        if match is None:
            raise ConfigError(f"{text!r} is no threshold", where="--fail-on", hint="METRIC:-N%, like tput_per_gpu:-5%")
        limited = metric(match[1])
        if limited.better is None:
            raise ConfigError(f"neither more nor less {limited.title} is better", where="--fail-on")
        if match[2] and (match[2] == "+") == (limited.better == "more"):
            hint = f"{match[1]}:{'-' if limited.better == 'more' else '+'}{match[3]}%"
            raise ConfigError(f"{text!r}: such a change would be better", where="--fail-on", hint=hint)
        return cls(limited, float(match[3]) / 100)


Thresholds = Mapping[str, Threshold]
"""Thresholds by the names of their metrics."""


def compare_reports(document: Document, now: ReportInput, base: ReportInput, thresholds: Sequence[str]) -> Comparison:
    """Compare each point of both sides. ``thresholds`` are like ``tput_per_gpu:-5%``.

    The exit code is 7 if a threshold fails or a point is missing on a side, and 2 if no point can be compared. Raises
    ConfigError for a threshold.
    """
    by_metric = {threshold.metric.name: threshold for threshold in map(Threshold.parse, thresholds)}
    ids = {point_name(entry): entry.id for entry in document.points}
    points, failed = [], list[str]()
    for identity, result in compare_points(now, base, by_metric, ids):
        points.append(result)
        failed += threshold_failures(identity, result, by_metric)
    code = ResultError.exit_code if failed else 0
    if not any(result.changes for result in points):
        code = ConfigError.exit_code
    return Comparison(against=", ".join(base.sources), points=tuple(points), failed=tuple(failed), exit_code=code)


def compare_points(
    now: ReportInput, base: ReportInput, thresholds: Thresholds, ids: Mapping[str, str]
) -> Iterator[tuple[Identity, Compared]]:
    """Compare the points of both sides by identity, in the order of ``now``. Only points that are ok are compared.

    ``ids`` maps the names of the report's entries to their ids.
    """
    sides: tuple[dict[Identity, list[Point]], ...] = ({}, {})
    for side, report in zip(sides, (now, base), strict=True):
        for point in report.attempts():
            side.setdefault(point.identity, []).append(point)
    for identity in {**sides[0], **sides[1]}:
        points, key = [side.get(identity, []) for side in sides], ids.get(point_name(identity), "")
        yield identity, _compare(identity, key, points, (now, base), thresholds)


def _compare(
    identity: Identity, key: str, sides: Sequence[list[Point]], reports: Sequence[ReportInput], thresholds: Thresholds
) -> Compared:
    good = [[point for point in points if point.state == "ok"] for points in sides]
    for which, points, ok in zip(("this", "the other"), sides, good, strict=True):
        if not ok:
            last = points[-1] if points else None
            reason = f"not ok in {which} run: {last.reason or last.state}" if last else f"not in {which} run"
            return Compared(point=point_name(identity), id=key, answer="not comparable", reason=reason)
    requested = (threshold.metric for threshold in thresholds.values() if threshold.metric.fits(identity.scenario))
    changes, samples = [], (0, 0)
    for name, each in {one.name: one for one in (*compared(identity.scenario), *requested)}.items():
        after, before = ([value for p in points if (value := p.value(name)) is not None] for points in good)
        if after or before or name in thresholds:
            changes.append(metric_change(thresholds.get(name, Threshold(each)), before, after))
            samples = max(samples, (len(before), len(after)), key=sum)
    answers = {change.answer for change in changes}
    order: tuple[Answer, ...] = ("worse", "better", "same")
    runs = (report.runs.get(points[0].run) for report, points in zip(reports, good, strict=True))
    now, base = (run.facts if run is not None else {} for run in runs)
    pairs = ((fact, str(base.get(fact) or "-"), str(now.get(fact) or "-")) for fact in _COMPARED_FACTS)
    return Compared(
        point=point_name(identity),
        id=key,
        answer=next((answer for answer in order if answer in answers), "not comparable"),
        changes=tuple(changes),
        differs=tuple(f"{fact}: {before} → {after}" for fact, before, after in pairs if before != after),
        samples=samples,
    )


def metric_change(threshold: Threshold, before: Sequence[float], after: Sequence[float]) -> Change:
    """The change of one metric. It is not comparable if a side has no value or ``before`` is 0."""
    old, new = (statistics.median(values) if values else None for values in (before, after))
    spreads = tuple(max(values) - min(values) if values else 0.0 for values in (before, after))
    change = (new - old) / abs(old) if old and new is not None else None
    answer: Answer = "not comparable"
    if change is not None and threshold.metric.better is not None:
        gain = change if threshold.metric.better == "more" else -change
        # 1e-12: rounding must not make a change of exactly the threshold better or worse.
        answer = "same" if abs(gain) <= threshold.share + 1e-12 else "better" if gain > 0 else "worse"
    return Change(
        metric=threshold.metric.name,
        answer=answer,
        base=old,
        now=new,
        change=change,
        threshold=threshold.share,
        spread=(spreads[0], spreads[1]),
    )


def threshold_failures(point: Identity, result: Compared, thresholds: Thresholds) -> Iterator[str]:
    """A sentence for each metric that became worse than its threshold allows or is missing, and for a point that is not
    in both runs."""
    name = f"{point.model} {point.lengths} {' '.join(point.curve[:4])} {point.topology} concurrency {point.concurrency}"
    if thresholds and not result.changes:
        yield f"{name}: {result.reason}"
    for change in result.changes:
        if change.metric in thresholds and change.answer == "worse" and change.change is not None:
            yield f"{name}: {change.metric} changed by {change.change:+.1%}, {change.threshold:.4g} is the most"
        elif change.metric in thresholds and change.answer == "not comparable":
            yield f"{name}: {change.metric} is not in both runs"
