"""The report for a terminal: how many points stand how, why those that are not ok are not, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from launcher.report.document import Comparison, Document, Entry, not_ok, noted
from launcher.report.files import known
from launcher.report.points import EVALUATION, metrics
from launcher.report.scores import SCORES
from launcher.report.text import brief, changed, samples, shown, value

MOST = 60
"""Points that a table shows; of more, only those on a frontier, and of evaluations those that are not ok."""

MOST_NOTES = 20

_STYLES = {"ok": "green", "missing": "bold red", "refused": "bold red", "rehearsal": "magenta"}


def write(document: Document, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Write it with rich: in colours on a terminal (unless NO_COLOR is set), else as plain lines."""
    from rich.console import Console
    from rich.text import Text

    terminal = stream.isatty()
    plain = not terminal or bool(environ.get("NO_COLOR"))
    width = None if terminal else 10_000
    console = Console(file=stream, force_terminal=terminal, no_color=plain, highlight=False, width=width)
    console.print(Text(shown(document.title), style="bold"))
    counts = ", ".join(f"{count} {state}" for state, count in document.counts.items())
    console.print(Text(f"{len(document.points)} points: {counts or 'none'}"))
    if document.rehearsed:
        console.print(Text(document.rehearsed, style="bold yellow"))
    for first, members in not_ok(document):
        line = Text("  ")
        line.append(f"{first.state:10}", style=_STYLES.get(first.state, "yellow"))
        named = ", ".join(one.short for one in members[:4])
        more = f" and {len(members) - 4} more" if len(members) > 4 else ""
        line.append(shown(f"{first.layer + ': ' if first.layer else ''}{first.reason}"))
        line.append(f"   ({shown(named)}{more})", style="dim")
        console.print(line)
        if first.rule:
            console.print(Text(f"             launcher report --explain {shown(first.rule)}", style="dim"))
    for problem in document.problems:
        console.print(Text(f"  could not be read: {shown(problem)}", style="yellow"))
    notes = list(noted(document))
    for whose, note in notes[:MOST_NOTES]:
        console.print(Text(f"  {shown(whose)}: {shown(note)}", style="dim"))
    if len(notes) > MOST_NOTES:
        console.print(Text(f"  and {len(notes) - MOST_NOTES} more notes, which report.json has", style="dim"))
    for entries in (document.measured, document.evaluations):
        if entries:
            console.print(_table(entries, terminal))
    if document.comparison is not None:
        _compare(document.comparison, console)


def _compare(found: Comparison, console: Any) -> None:
    """What is not the same as on the other side, a line each, and what else differs there; then what fails."""
    from rich.text import Text

    console.print(Text(shown(f"Compared with {found.against}: {found.summary}"), style="bold"))
    for one in found.points:
        if one.answer == "same":
            continue
        said = [
            f"{_short(change.metric)} {changed(change)}"
            for change in one.changes
            if change.answer in ("better", "worse")
        ]
        line = Text("  ").append(
            f"{one.answer:15}", style={"better": "green", "worse": "bold red"}.get(one.answer, "yellow")
        )
        line.append(f"{shown(one.point)}   {shown(one.reason or '; '.join(said))}")
        line.append(f"   {samples(one)}" if one.changes else "", style="dim")
        console.print(line)
        if one.differs:
            console.print(Text(f"{'':17}{shown(brief('; '.join(one.differs)))}", style="dim"))
    for text in found.failed:
        console.print(Text(f"  {shown(text)}", style="bold red"))


def _table(points: Sequence[Entry], terminal: bool) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    few = len(points) <= MOST
    scores = points[0].scenario == EVALUATION
    entries = [entry for entry in points if few or entry.frontier or (scores and entry.state != "ok")]
    names = known(points)
    caption = None
    if not few:
        which = "those that are not ok" if scores else "those on a frontier"
        caption = f"{len(entries)} of {len(points)} points: {which}"
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, caption=caption, caption_justify="left")
    for column in ("point", "topology", *(("task",) if scores else ())):
        table.add_column(column, no_wrap=not terminal)
    for column in ("conc", *(_short(name) for name in names)):
        table.add_column(column, justify="right")
    table.add_column("state", no_wrap=not terminal)
    for entry in entries:
        state = Text(entry.state, style=_STYLES.get(entry.state, "yellow"))
        state.append(", frontier" if entry.frontier else "", style="green")
        state.append(f", attempt {len(entry.attempts)}" if len(entry.attempts) > 1 else "", style="yellow")
        about = [shown(f"{entry.model} {entry.lengths} {entry.configuration}"), shown(entry.topology)]
        about += [shown(entry.task)] if scores else []
        cells = [str(entry.concurrency), *(value(name, entry.metrics) for name in names)]
        table.add_row(*map(Text, about), *map(Text, cells), state)
    return table


def _short(name: str) -> str:
    """A metric's name and unit where room is short: ``tok/s/GPU``, ``p99 TTFT s``, ``tok/s/user``."""
    if name in SCORES:
        return metrics()[name].title
    statistic, _, family = name.partition("_")
    unit = metrics()[name].unit
    if len(family) <= 4:
        return f"{statistic} {family.upper()} {unit}"
    return f"output {unit}" if statistic == "output" else unit
