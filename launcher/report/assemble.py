"""From points to the report: attempts at one point belong together, curves get their frontiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from launcher.benchmark.benchmark import AGENTIC
from launcher.report.document import STATES, Attempt, Axis, Curve, Document, Entry, Panel, ReportInput
from launcher.report.points import EVALUATION, Identity, Point, frontier, metric, metrics
from launcher.result.contradictions import rule_of

_DRAWN = ("ok", "reused", "rehearsal")
"""States of points that are in a picture; on a frontier are those that are ok."""

_LEAST, _MOST = 1e-9, 1e15
"""Coordinates that a picture can have: others are nobody's throughput."""

_SAME = [name for name in Entry.__struct_fields__ if name in {*Identity.__dataclass_fields__, *vars(Identity)}]
"""What an entry has of its identity."""

Group = tuple[Identity, list[Point]]


def build_report(gathered: ReportInput, *, title: str, made: str) -> Document:
    """The report of what was gathered; ``made`` is the time, ISO 8601."""
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
        best |= {one for curve in panel.curves for one in curve.frontier}
    drawn = {one for panel in panels for curve in panel.curves for one in curve.points}
    entries = tuple(_entry(ids[identity], tries, best, drawn) for identity, tries in ordered)
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


def counted(tries: Sequence[Point]) -> Point:
    """The attempt that counts: the last one that is ok, else the last that is reused, else the last."""
    for state in ("ok", "reused"):
        if good := [point for point in tries if point.state == state]:
            return good[-1]
    return tries[-1]


def _order(group: Group) -> tuple[object, ...]:
    one = group[0]
    drawn = (one.model, one.scenario, one.isl or 0, one.osl or 0, one.curve)
    return (*drawn, one.topology, one.concurrency, one.kv_offload, one.task, str(one))


def axes(scenario: str) -> tuple[Axis, Axis]:
    """Across and up, as InferenceX's site has them: interactivity, agentic over the whole request; throughput."""
    across = metric("p90_e2e_norm_intvty" if scenario == AGENTIC else "median_intvty")
    up = metric("tput_per_gpu")
    x, y = (Axis(metric=m.name, title=m.title, unit=m.unit, better=m.better or "more") for m in (across, up))
    return x, y


def _panel(members: Sequence[Group], ids: dict[Identity, str]) -> Panel:
    first = members[0][0]
    x, y = axes(first.scenario)
    curves = []
    for name, group in groupby(members, key=lambda member: member[0].configuration):
        tries = [(ids[identity], counted(points)) for identity, points in group]
        known = [
            (key, at, height, point.state)
            for key, point in tries
            if point.state in _DRAWN
            and _LEAST <= (at := point.value(x.metric) or 0.0) <= _MOST
            and _LEAST <= (height := point.value(y.metric) or 0.0) <= _MOST
        ]
        good = [one for one in known if one[3] == "ok"]
        best = frontier(good, "upper_left", x=lambda one: one[1], y=lambda one: one[2])
        if known:
            shown = sorted(known, key=lambda one: one[1])
            curve = Curve(name=name, points=tuple(one[0] for one in shown), frontier=tuple(one[0] for one in best))
            curves.append(curve)
    title = f"{first.model} {first.lengths}"
    return Panel(title=title, x=x, y=y, curves=tuple(curves))


def _entry(key: str, tries: Sequence[Point], best: set[str], drawn: set[str]) -> Entry:
    one, point = tries[0].identity, counted(tries)
    attempts = tuple(
        Attempt(
            state=each.state,
            run=each.run,
            reason=each.reason,
            layer=each.layer,
            metrics=_values(each) if each.state == "ok" and each is not point else {},
        )
        for each in tries
    )
    notes = point.notes
    if point.state in _DRAWN and key not in drawn and one.scenario != EVALUATION:
        notes += (f"in no picture: {' or '.join(axis.metric for axis in axes(one.scenario))} is unknown or none",)
    return Entry(
        id=key,
        state=point.state,
        **{name: getattr(one, name) for name in _SAME},
        run=point.run,
        reason=point.reason,
        layer=point.layer,
        rule=rule_of(point.reason) if point.state in ("refused", "stale") else "",
        metrics=_values(point) if point.state in (*_DRAWN, "stale") or one.scenario == EVALUATION else {},
        frontier=key in best,
        attempts=attempts,
        notes=notes,
    )


def _values(point: Point) -> dict[str, float]:
    """Every metric that is known. Of a fixed row only its own keys are looked at: there may be thousands of points."""
    names = metrics() if point.identity.scenario == AGENTIC else [name for name in point.row if name in metrics()]
    return {name: value for name in names if (value := point.value(name)) is not None}
