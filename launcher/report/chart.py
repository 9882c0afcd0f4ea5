"""SVG charts that are complete without a script: the points and frontiers of one panel; and the time line, which shows
when runs waited, started up and measured.

Charts contain no style: classes, symbols and colours are defined by the page (page.css), also for its dark mode. Each
mark links to its row of the table, from which the script makes its tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.core.lines import count_of
from launcher.report.document import Axis, Curve, Entry, Panel, Run
from launcher.report.text import axis_number, escaped, local_time

WIDTH, HEIGHT = 480, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 52

SYMBOLS = (
    "M0-5A5 5 0 1 1 0 5 5 5 0 1 1 0-5Z",
    "M-4.5-4.5h9v9h-9Z",
    "M0-5.5 5.5 4.5h-11Z",
    "M0-6 6 0 0 6-6 0Z",
    "M0 5.5 5.5-4.5h-11Z",
    "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
)
"""Paths of marks. Curves differ by their symbol as well as by their colour."""

COLOURS, DASHES = 8, 4
"""The numbers of colours and dash patterns in page.css."""

_LOGARITHMIC_FROM = 50.0
"""An axis is logarithmic if its values differ by more than this factor."""


@dataclass(frozen=True)
class Scale:
    """Values to pixels along one axis, from ``low`` at ``begin`` to ``high`` at ``end``; ``ticks`` are values."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float) -> Scale:
        """A scale for values above 0: linear from 0, or logarithmic if the values differ much."""
        least, most = min(values), max(values)
        if most / least > _LOGARITHMIC_FROM:
            low, high = 10.0 ** math.floor(math.log10(least)), 10.0 ** math.ceil(math.log10(most))
            decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
            ticks = [m * 10.0**d for d in decades for m in ((1, 2, 5) if len(decades) < 4 else (1,))]
            return cls(low, high, begin, end, True, tuple(tick for tick in ticks if low <= tick <= high))
        step = _step(most / 5)
        count = math.ceil(most * 1.02 / step)
        return cls(0.0, step * count, begin, end, False, tuple(step * i for i in range(count + 1)))

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def _round(pixel: float) -> str:
    return f"{pixel:.1f}".removesuffix(".0")


def panel_svg(panel: Panel, entries: Mapping[str, Entry]) -> str:
    """One panel's chart. Attributes have the data of its axes, so that a test can compute values from pixels."""
    shown = [entries[key].metrics for curve in panel.curves for key in curve.points]
    x = Scale.over([metrics[panel.x.metric] for metrics in shown], _LEFT, WIDTH - _RIGHT)
    y = Scale.over([metrics[panel.y.metric] for metrics in shown], HEIGHT - _BOTTOM, _TOP)
    label = escaped(f"{panel.title}: {panel.y.title} over {panel.x.title}")
    parts = [f'<svg class=chart viewBox="0 0 {WIDTH} {HEIGHT}" role=group aria-label="{label}"{_data(x, y)}>']
    parts += _axes(panel, x, y)
    for index, curve in enumerate(panel.curves):
        parts += _curve(panel, curve, index, entries, (x, y))
    return "".join([*parts, "</svg>"])


def _data(x: Scale, y: Scale) -> str:
    shown = ((name, scale) for name, scale in (("x", x), ("y", y)))
    return "".join(
        f' data-{name}="{scale.low!r} {scale.high!r} {scale.begin} {scale.end} {int(scale.logarithmic)}"'
        for name, scale in shown
    )


def _axes(panel: Panel, x: Scale, y: Scale) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    grid = "".join(f"M{_round(x.at(tick))} {_TOP}V{bottom}" for tick in x.ticks)
    grid += "".join(f"M{_LEFT} {_round(y.at(tick))}H{right}" for tick in y.ticks)
    parts = [f'<path class=grid d="{grid}"/>', f'<path class=axis d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    parts += [f"<text x={_round(x.at(tick))} y={bottom + 16} class=tx>{axis_number(tick)}</text>" for tick in x.ticks]
    parts += [f"<text x={_LEFT - 6} y={_round(y.at(tick) + 4)} class=ty>{axis_number(tick)}</text>" for tick in y.ticks]
    parts.append(f"<text x={_LEFT - 50} y=16 class=title>{_title(panel.y, '↑', '↓')}</text>")
    parts.append(f"<text x={right} y={HEIGHT - 12} class=tx2>{_title(panel.x, '→', '←')}</text>")
    return parts


def _title(axis: Axis, more: str, less: str) -> str:
    arrow = more if axis.better == "more" else less
    return escaped(f"{axis.title}, {axis.unit} ({axis.better} is better {arrow})")


def _curve(
    panel: Panel, curve: Curve, index: int, entries: Mapping[str, Entry], scales: tuple[Scale, Scale]
) -> list[str]:
    x, y = scales

    def place(key: str) -> tuple[str, str]:
        metrics = entries[key].metrics
        return _round(x.at(metrics[panel.x.metric])), _round(y.at(metrics[panel.y.metric]))

    parts = [f'<g class="{classes(index)}">']
    if len(curve.frontier) > 1:
        parts.append(f'<path class=front d="M{"L".join(" ".join(place(key)) for key in curve.frontier)}"/>')
    for key in curve.points:
        entry, (left, top) = entries[key], place(key)
        kind = "" if entry.frontier else " class=b" if entry.state == "ok" else " class=o"
        title = escaped(f"c{entry.concurrency} {entry.topology}")
        use = f"<use href=#s{symbol(index)} x={left} y={top} />"
        parts.append(f"<a href=#{key}{kind}><title>{title}</title>{use}</a>")
    return [*parts, "</g>"]


def symbol(index: int) -> int:
    """The number of a curve's symbol."""
    return index % len(SYMBOLS)


def classes(index: int) -> str:
    """The classes of a curve's colour and dashes. Together with the symbol they repeat after 24 curves."""
    return f"c{index % COLOURS} d{index % DASHES}"


LINE_WIDTH, ROW, _NAMES, _ABOVE = 1000, 15, 150, 24
"""Pixels of the time line: its width, a row, the space for the names of jobs, the space for the times."""

PHASES = {
    "prepare": "prepared",
    "queue": "in the queue",
    "start": "starting up",
    "measure": "measuring",
    "rest": "ending, or no result",
}
"""Classes of page.css, and their titles."""

_STEPS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

Phase = tuple[str, float, float]


def phases(run: Run) -> Iterator[Phase]:
    """A run's phases with begin and end. Unknown phases are left out; phases do not overlap."""
    waits = (("prepare", run.created, run.submitted), ("queue", run.submitted, run.started or run.ended))
    for name, begin, end in waits:
        if begin is not None and end is not None and end > begin:
            yield name, begin, end
    if run.started is None or run.ended is None:
        return
    now = run.started
    for _, begin, end in sorted(run.measured, key=lambda measurement: measurement[1]):
        begin, end = min(max(begin, now), run.ended), min(end, run.ended)
        if end <= begin:
            continue
        if begin > now:
            yield "start", now, begin
        yield "measure", begin, end
        now = end
    if run.ended > now:
        yield "rest", now, run.ended


def timeline_svg(runs: Sequence[Run], numbers: dict[str, int]) -> str:
    """The time line of runs with known times, "" if there are none. ``numbers`` are their row numbers in the page."""
    lines = [(run, list(phases(run))) for run in sorted(runs, key=lambda run: run.submitted or run.created or 0.0)]
    lines = [(run, parts) for run, parts in lines if parts]
    if not lines:
        return ""
    begin = min(parts[0][1] for _, parts in lines)
    span = max(max(parts[-1][2] for _, parts in lines) - begin, 1.0)
    scale = (LINE_WIDTH - _NAMES - 8) / span
    height = _ABOVE + ROW * len(lines) + 6
    paths: dict[str, list[str]] = {}
    labels = []
    for row, (run, parts) in enumerate(lines):
        y = _ABOVE + ROW * row + ROW // 2
        for name, since, until in parts:
            left, right = (round((time - begin) * scale) for time in (since, until))
            if right > left or name == "measure":
                paths.setdefault(name, []).append(f"M{left} {y}h{max(right - left, 1)}")
        label = escaped(f"{run.job or run.id[:18]} {run.nodes}".strip()[:22])
        labels.append(f"<a href=#r{numbers[run.id]}><text y={y + 4}>{label}</text></a>")
    drawn = "".join(f'<path class={name} d="{"".join(paths[name])}"/>' for name in PHASES if name in paths)
    label = escaped(f"time line of {count_of(len(lines), 'job')} from {local_time(begin)}")
    head = f'<svg class=time viewBox="0 0 {LINE_WIDTH} {height}" role=group aria-label="{label}">'
    shifted = (
        f'<g transform="translate({_NAMES})">{drawn}</g><g transform="translate({_NAMES - 6})">{"".join(labels)}</g>'
    )
    return f"{head}{_time_axis(span, scale, height)}{shifted}</svg>"


def _time_axis(span: float, scale: float, height: int) -> str:
    step = next((step for step in _STEPS if span / step <= 8), -(-span // (8 * 86400)) * 86400)
    size, unit = next((size, unit) for size, unit in _UNITS if step >= size)
    ticks = [step * i for i in range(int(span // step) + 1)]
    lines = "".join(f"M{_NAMES + tick * scale:.1f} {_ABOVE - 4}V{height}" for tick in ticks)
    places = [(tick, _NAMES + tick * scale) for tick in ticks]
    kinds = [(tick, f" class=tick x={x:.1f}" if x < LINE_WIDTH - 40 else f" x={LINE_WIDTH}") for tick, x in places]
    texts = "".join(f"<text{kind} y=14>{tick / size:g} {unit}</text>" for tick, kind in kinds)
    return f'<path class=grid d="{lines}"/>{texts}'
