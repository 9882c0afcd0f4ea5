"""The report for a terminal: how many points stand how, why those that are not ok are not, and tables of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.report.document import Comparison, Document, Entry, all_notes, points_not_ok
from launcher.report.files import known_metrics
from launcher.report.points import EVALUATION, SCORES, State, metrics
from launcher.report.text import change_text, metric_text, samples_text, shorten_digests, shown

MOST = 60
"""Points that a table shows; of more, only those on a frontier, and of evaluations those that are not ok."""

MOST_NOTES = 20

_STYLES: dict[State, str] = {"ok": "green", "missing": "red", "refused": "red", "rehearsal": "magenta"}
_ANSWERS = {"better": "green", "worse": "red"}

_FIRST = ("tput_per_gpu", "median_intvty", "p90_e2e_norm_intvty", "median_ttft", "median_tpot", "median_e2el",
          "score", "threshold", "n_eff", "em_strict", "em_flexible")  # fmt: skip
"""Which metrics stay where a terminal has no room for all, in this order."""


def report_lines(document: Document, terminal: Terminal) -> Iterator[str]:
    """The report as lines."""
    width = terminal.width
    yield Line(shown(document.title), "bold")
    counts = ", ".join(f"{count} {state}" for state, count in document.counts.items())
    yield f"{count_of(len(document.points), 'point')}: {counts or 'none'}"
    if document.rehearsed:
        yield Line(document.rehearsed, "yellow")
    for first, members in points_not_ok(document):
        named = ", ".join(one.short for one in members[:4])
        more = f" and {len(members) - 4} more" if len(members) > 4 else ""
        layer = f"{first.layer}: " if first.layer else ""
        text = f"{first.state:10}{shown(layer + first.reason)}   ({shown(named)}{more})"
        yield from _folded(text, width, 12, _STYLES.get(first.state, "yellow"))
        if first.rule:
            yield Line(f"{'':12}launcher report --explain {shown(first.rule)}", "dim")
    for problem in document.problems:
        yield from _folded(f"could not be read: {shown(problem)}", width, 4, "yellow")
    notes = list(all_notes(document))
    for whose, note in notes[:MOST_NOTES]:
        yield from _folded(f"{shown(whose)}: {shown(note)}", width, 4, "dim")
    if len(notes) > MOST_NOTES:
        yield Line(f"  and {count_of(len(notes) - MOST_NOTES, 'more note')}, which report.json has", "dim")
    for entries in (document.measured, document.evaluations):
        yield from _table(entries, width)
    if document.comparison is not None:
        yield from _compare(document.comparison, width)


def _folded(text: str, width: int | None, indent: int, style: str = "") -> Iterator[Line]:
    """A text behind two spaces, in as many lines as it takes."""
    yield from (Line(line, style) for line in wrap_words(f"  {text}", width, " " * indent))


def _compare(found: Comparison, width: int | None) -> Iterator[str]:
    """What is not the same as on the other side, and what else differs there; then what fails."""
    yield ""
    yield Line(shown(f"Compared with {found.against}: {found.summary}"), "bold")
    for one in found.points:
        if one.answer == "same":
            continue
        told = (change for change in one.changes if change.answer in ("better", "worse"))
        said = one.reason or "; ".join(f"{_short(change.metric)} {change_text(change)}" for change in told)
        text = f"{one.answer:15}{shown(one.point)}   {f'({samples_text(one)})' if one.changes else shown(said)}"
        yield from _folded(text, width, 17, _ANSWERS.get(one.answer, "yellow"))
        if one.changes:
            yield from _folded(f"{'':15}{said}", width, 17)
        if one.differs:
            yield from _folded(f"{'':15}{shown(shorten_digests('; '.join(one.differs)))}", width, 17, "dim")
    for text in found.failed:
        yield from _folded(shown(text), width, 4, "red")


def _table(points: Sequence[Entry], width: int | None) -> Iterator[str]:
    """The points below the names of their configurations; of the metrics as many as there is room for."""
    few = len(points) <= MOST
    scores = bool(points) and points[0].scenario == EVALUATION
    entries = [entry for entry in points if few or entry.frontier or (scores and entry.state != "ok")]
    if not entries:
        return
    names, left = known_metrics(points), list[str]()
    rows = _rows(entries, names, scores)
    while width is not None and len(names) > 1 and max(map(len, rows)) > width:
        gone = max(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
        names.remove(gone)
        left.insert(0, _short(gone))
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
    notes += [f"no room for {', '.join(left)}: --format csv has all"] if left else []
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
    """A metric's name and unit where room is short: ``tok/s/GPU``, ``p99 TTFT s``, ``tok/s/user``."""
    if name in SCORES:
        return metrics()[name].short or name
    statistic, _, family = name.partition("_")
    unit = metrics()[name].unit
    said = f"{family.upper()} {unit}" if len(family) <= 4 else unit
    return said if statistic in ("median", "tput") else f"{statistic} {said}"
