"""The report for a terminal: the numbers of points by state, the reasons of those that are not ok, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.report.document import Comparison, Document, Entry, all_notes, points_not_ok
from launcher.report.files import known_metrics
from launcher.report.points import EVALUATION, SCORES, State, metrics
from launcher.report.text import change_text, metric_text, samples_text, shorten_digests, shown

MOST = 60
"""Points up to which a table shows all. Longer tables show those on a frontier, and evaluations that are not ok."""

MOST_NOTES = 20

_STYLES: dict[State, str] = {"ok": "green", "missing": "red", "refused": "red", "rehearsal": "magenta"}
_ANSWERS = {"better": "green", "worse": "red"}

_PRIORITY = ("tput_per_gpu", "median_intvty", "p90_e2e_norm_intvty", "median_ttft", "median_tpot", "median_e2el",
          "score", "threshold", "n_eff", "em_strict", "em_flexible")  # fmt: skip
"""The metrics that a narrow terminal shows, the most important first."""


def report_lines(document: Document, terminal: Terminal) -> Iterator[str]:
    """The report as lines."""
    width = terminal.width
    yield Line(shown(document.title), "bold")
    counts = ", ".join(f"{count} {state}" for state, count in document.counts.items())
    yield f"{count_of(len(document.points), 'point')}: {counts or 'none'}"
    if document.rehearsed:
        yield Line(document.rehearsed, "yellow")
    for first, members in points_not_ok(document):
        names = ", ".join(entry.short for entry in members[:4])
        more = f" and {len(members) - 4} more" if len(members) > 4 else ""
        layer = f"{first.layer}: " if first.layer else ""
        text = f"{first.state:10}{shown(layer + first.reason)}   ({shown(names)}{more})"
        yield from _folded(text, width, 12, _STYLES.get(first.state, "yellow"))
        if first.rule:
            yield Line(f"{'':12}launcher report --explain {shown(first.rule)}", "dim")
    for problem in document.problems:
        yield from _folded(f"could not be read: {shown(problem)}", width, 4, "yellow")
    notes = list(all_notes(document))
    for name, note in notes[:MOST_NOTES]:
        yield from _folded(f"{shown(name)}: {shown(note)}", width, 4, "dim")
    if len(notes) > MOST_NOTES:
        yield Line(f"  and {count_of(len(notes) - MOST_NOTES, 'more note')}, which report.json has", "dim")
    for entries in (document.measured, document.evaluations):
        yield from _table(entries, width)
    if document.comparison is not None:
        yield from _compare(document.comparison, width)


def _folded(text: str, width: int | None, indent: int, style: str = "") -> Iterator[Line]:
    """A text indented by two spaces and folded to the width."""
    yield from (Line(line, style) for line in wrap_words(f"  {text}", width, " " * indent))


def _compare(comparison: Comparison, width: int | None) -> Iterator[str]:
    """The points that are not the same on the other side, with their differences; then the failed thresholds."""
    yield ""
    yield Line(shown(f"Compared with {comparison.against}: {comparison.summary}"), "bold")
    for point in comparison.points:
        if point.answer == "same":
            continue
        changes = (change for change in point.changes if change.answer in ("better", "worse"))
        summary = point.reason or "; ".join(f"{_short(change.metric)} {change_text(change)}" for change in changes)
        text = (
            f"{point.answer:15}{shown(point.point)}   {f'({samples_text(point)})' if point.changes else shown(summary)}"
        )
        yield from _folded(text, width, 17, _ANSWERS.get(point.answer, "yellow"))
        if point.changes:
            yield from _folded(f"{'':15}{summary}", width, 17)
        if point.differs:
            yield from _folded(f"{'':15}{shown(shorten_digests('; '.join(point.differs)))}", width, 17, "dim")
    for text in comparison.failed:
        yield from _folded(shown(text), width, 4, "red")


def _table(points: Sequence[Entry], width: int | None) -> Iterator[str]:
    """The points below the names of their configurations, with as many metrics as fit the width."""
    few = len(points) <= MOST
    scores = bool(points) and points[0].scenario == EVALUATION
    entries = [entry for entry in points if few or entry.frontier or (scores and entry.state != "ok")]
    if not entries:
        return
    names, omitted = known_metrics(points), list[str]()
    rows = _rows(entries, names, scores)
    while width is not None and len(names) > 1 and max(map(len, rows)) > width:
        name = max(names, key=lambda each: _PRIORITY.index(each) if each in _PRIORITY else len(_PRIORITY))
        names.remove(name)
        omitted.insert(0, _short(name))
        rows = _rows(entries, names, scores)
    yield ""
    yield rows[0]
    lines = iter(rows[1:])
    for name, group in groupby(entries, key=lambda one: f"{one.model} {one.lengths} {one.configuration}"):
        yield Line(shown(name), "bold")
        for _ in group:
            yield next(lines)
    notes = [] if scores else ["TTFT, TPOT and E2EL are medians where nothing else is said"]
    notes += [] if few else [f"{len(entries)} of {len(points)} points: {'not ok' if scores else 'those on a frontier'}"]
    notes += [f"no room for {', '.join(omitted)}: --format csv has all"] if omitted else []
    if notes:
        yield from _folded("; ".join(notes), width, 2, "dim")


def _rows(entries: Sequence[Entry], names: Sequence[str], scores: bool) -> list[Line]:
    """The head, and a line for each point."""
    heads = ["  topology", "conc", *(["task"] if scores else []), *(_short(name) for name in names), "state"]
    rows = []
    for entry in entries:
        state = [entry.state, *(["frontier"] if entry.frontier else [])]
        state += [f"attempt {len(entry.attempts)}"] if len(entry.attempts) > 1 else []
        about = [f"  {shown(entry.topology)}", str(entry.concurrency), *([shown(entry.task) or "-"] if scores else [])]
        rows.append([*about, *(metric_text(name, entry.metrics) or "-" for name in names), ", ".join(state)])
    return table(heads, rows, None, [_STYLES.get(entry.state, "yellow") for entry in entries])


def _short(name: str) -> str:
    """A metric's short name and unit: ``tok/s/GPU``, ``p99 TTFT s``, ``tok/s/user``."""
    if name in SCORES:
        return metrics()[name].short or name
    statistic, _, family = name.partition("_")
    unit = metrics()[name].unit
    title = f"{family.upper()} {unit}" if len(family) <= 4 else unit
    return title if statistic in ("median", "tput") else f"{statistic} {title}"
