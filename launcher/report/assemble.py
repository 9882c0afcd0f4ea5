"""Builds the report from points: groups the attempts at each point, and computes the curves and their frontiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from launcher.benchmark.benchmark import AGENTIC
from launcher.report.document import STATES, Attempt, Axis, Curve, Document, Entry, Panel, ReportInput
from launcher.report.points import EVALUATION, Identity, Point, frontier, metric, metrics
from launcher.result.contradictions import rule_of

_DRAWN = ("ok", "reused", "rehearsal")
"""States of points that are drawn in a chart. Only points that are ok can be on a frontier."""

_LEAST, _MOST = 1e-9, 1e15
"""The range of drawn coordinates; no throughput or latency is outside it."""

_IDENTITY_FIELDS = [
    name for name in Entry.__struct_fields__ if name in {*Identity.__dataclass_fields__, *vars(Identity)}
]
"""The fields that an entry copies from its identity."""

Group = tuple[Identity, list[Point]]


def build_report(gathered: ReportInput, *, title: str, made: str) -> Document:
    """The report of the points and runs that were read; ``made`` is the time, ISO 8601."""
    groups: dict[Identity, list[Point]] = {}
    for point in gathered.attempts():
        groups.setdefault(point.identity, []).append(point)
    ordered = sorted(groups.items(), key=_order)
    ids = {identity: f"p{number}" for number, (identity, _) in enumerate(ordered, 1)}
    panels, best = [], set[str]()
    drawable = [group for group in ordered if group[0].scenario != EVALUATION]
    for _, members in groupby(drawable, key=lambda group: group[0].panel):
        panel = _panel(list(members), ids)
        panels += [panel] if panel.curves else []
        best |= {key for curve in panel.curves for key in curve.frontier}
    drawn = {key for panel in panels for curve in panel.curves for key in curve.points}
    entries = tuple(_entry(ids[identity], attempts, best, drawn) for identity, attempts in ordered)
    counts = Counter(entry.state for entry in entries)
    return Document(
        title=title,
        made=made,
        sources=tuple(gathered.sources),
        counts={state: counts[state] for state in STATES if counts[state]},
        panels=tuple(panels),
        points=entries,
        runs=tuple(gathered.runs.values()),
        problems=tuple(gathered.problems),
    )


def _decisive_attempt(attempts: Sequence[Point]) -> Point:
    """The last attempt that is ok, otherwise the last one that is reused, otherwise the last one."""
    for state in ("ok", "reused"):
        if good := [point for point in attempts if point.state == state]:
            return good[-1]
    return attempts[-1]


def _order(group: Group) -> tuple[object, ...]:
    point = group[0]
    drawn = (point.model, point.scenario, point.isl or 0, point.osl or 0, point.curve)
    return (*drawn, point.topology, point.concurrency, point.kv_offload, point.task, str(point))


def _axes(scenario: str) -> tuple[Axis, Axis]:
    """The axes of InferenceX's site. x is interactivity, for agentic runs over the whole request; y is throughput."""
    horizontal = metric("p90_e2e_norm_intvty" if scenario == AGENTIC else "median_intvty")
    vertical = metric("tput_per_gpu")
    x, y = (Axis(metric=m.name, title=m.title, unit=m.unit, better=m.better or "more") for m in (horizontal, vertical))
    return x, y


def _panel(members: Sequence[Group], ids: dict[Identity, str]) -> Panel:
    first = members[0][0]
    x, y = _axes(first.scenario)
    curves = []
    for name, group in groupby(members, key=lambda member: member[0].configuration):
        attempts = [(ids[identity], _decisive_attempt(points)) for identity, points in group]
        drawn = [
            (key, across, height, point.state)
            for key, point in attempts
            if point.state in _DRAWN
            and _LEAST <= (across := point.value(x.metric) or 0.0) <= _MOST
            and _LEAST <= (height := point.value(y.metric) or 0.0) <= _MOST
        ]
        good = [mark for mark in drawn if mark[3] == "ok"]
        best = frontier(good, "upper_left", x=lambda mark: mark[1], y=lambda mark: mark[2])
        if drawn:
            points = tuple(mark[0] for mark in sorted(drawn, key=lambda mark: mark[1]))
            curves.append(Curve(name=name, points=points, frontier=tuple(mark[0] for mark in best)))
    title = f"{first.model} {first.lengths}"
    return Panel(title=title, x=x, y=y, curves=tuple(curves))


def _entry(key: str, points: Sequence[Point], best: set[str], drawn: set[str]) -> Entry:
    identity, decisive = points[0].identity, _decisive_attempt(points)
    attempts = tuple(
        Attempt(
            state=point.state,
            run=point.run,
            reason=point.reason,
            layer=point.layer,
            metrics=_values(point) if point.state == "ok" and point is not decisive else {},
        )
        for point in points
    )
    notes = decisive.notes
    if decisive.state in _DRAWN and key not in drawn and identity.scenario != EVALUATION:
        names = " or ".join(axis.metric for axis in _axes(identity.scenario))
        notes += (f"in no picture: {names} is unknown or none",)
    return Entry(
        id=key,
        state=decisive.state,
        **{name: getattr(identity, name) for name in _IDENTITY_FIELDS},
        run=decisive.run,
        reason=decisive.reason,
        layer=decisive.layer,
        rule=rule_of(decisive.reason) if decisive.state in ("refused", "stale") else "",
        metrics=_values(decisive) if decisive.state in (*_DRAWN, "stale") or identity.scenario == EVALUATION else {},
        frontier=key in best,
        attempts=attempts,
        notes=notes,
    )


def _values(point: Point) -> dict[str, float]:
    """All known metrics. A fixed row's own keys suffice, which is faster: there may be thousands of points."""
    names = metrics() if point.identity.scenario == AGENTIC else [name for name in point.row if name in metrics()]
    return {name: value for name in names if (value := point.value(name)) is not None}
