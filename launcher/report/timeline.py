"""When the runs of a report waited, started up and measured, one line for each job, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.report.document import Run
from launcher.report.text import clock, escaped

WIDTH, ROW, _LEFT, _RIGHT, _TOP = 1000, 15, 150, 8, 24

PHASES = {
    "prepare": "prepared",
    "queue": "in the queue",
    "start": "starting up",
    "measure": "measuring",
    "rest": "ending, or no result",
}
"""Classes of the page, and what each is called."""

_STEPS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

Phase = tuple[str, float, float]


def phases(run: Run) -> Iterator[Phase]:
    """What a run did, from when until when. What is not known is left out; nothing overlaps."""
    marks = (run.created, run.submitted, run.started)
    for name, begin, end in (("prepare", marks[0], marks[1]), ("queue", marks[1], marks[2] or run.ended)):
        if begin is not None and end is not None and end > begin:
            yield name, begin, end
    if run.started is None or run.ended is None:
        return
    at, name = run.started, "start"
    for _, begin, end in sorted(run.measured, key=lambda one: one[1]):
        begin, end = min(max(begin, at), run.ended), min(end, run.ended)
        if end <= begin:
            continue
        if begin > at:
            yield name, at, begin
        yield "measure", begin, end
        at, name = end, "start"
    if run.ended > at:
        yield "rest", at, run.ended


def timeline_svg(runs: Sequence[Run], numbers: dict[str, int]) -> str:
    """The time line of the runs whose times are known, "" when there are none. ``numbers`` are those of their rows."""
    lines = [(run, list(phases(run))) for run in sorted(runs, key=lambda run: run.submitted or run.created or 0.0)]
    lines = [(run, parts) for run, parts in lines if parts]
    if not lines:
        return ""
    begin = min(parts[0][1] for _, parts in lines)
    span = max(max(parts[-1][2] for _, parts in lines) - begin, 1.0)
    scale = (WIDTH - _LEFT - _RIGHT) / span
    height = _TOP + ROW * len(lines) + 6
    paths: dict[str, list[str]] = {}
    labels = []
    for row, (run, parts) in enumerate(lines):
        y = _TOP + ROW * row + ROW // 2
        for name, since, until in parts:
            left, right = (round((at - begin) * scale) for at in (since, until))
            if right > left or name == "measure":
                paths.setdefault(name, []).append(f"M{left} {y}h{max(right - left, 1)}")
        label = escaped(f"{run.job or run.id[:18]} {run.nodes}".strip()[:22])
        labels.append(f"<a href=#r{numbers[run.id]}><text y={y + 4}>{label}</text></a>")
    drawn = "".join(f'<path class={name} d="{"".join(paths[name])}"/>' for name in PHASES if name in paths)
    about = escaped(f"time line of {len(lines)} jobs from {clock(begin)}")
    head = f'<svg class=time viewBox="0 0 {WIDTH} {height}" role=group aria-label="{about}">'
    shifted = (
        f'<g transform="translate({_LEFT})">{drawn}</g><g transform="translate({_LEFT - 6})">{"".join(labels)}</g>'
    )
    return f"{head}{_axis(span, scale, height)}{shifted}</svg>"


def _axis(span: float, scale: float, height: int) -> str:
    step = next((step for step in _STEPS if span / step <= 8), -(-span // (8 * 86400)) * 86400)
    size, unit = next((size, unit) for size, unit in _UNITS if step >= size)
    ticks = [step * i for i in range(int(span // step) + 1)]
    lines = "".join(f"M{_LEFT + tick * scale:.1f} {_TOP - 4}V{height}" for tick in ticks)
    places = [(tick, _LEFT + tick * scale) for tick in ticks]
    kinds = [(tick, f" class=tick x={x:.1f}" if x < WIDTH - 40 else f" x={WIDTH}") for tick, x in places]
    texts = "".join(f"<text{kind} y=14>{tick / size:g} {unit}</text>" for tick, kind in kinds)
    return f'<path class=grid d="{lines}"/>{texts}'
