"""Points of many runs as a table: for a terminal, and in Markdown for a step summary.

Both are made from the documents of `launcher.result.summary`. A missing point has a row that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

REHEARSAL = "REHEARSAL: nothing was served and nothing was measured; the numbers are made up."
_COLUMNS = (
    "runner",
    "benchmark",
    "topology",
    "ISL/OSL",
    "conc",
    "tok/s",
    "tok/s/GPU",
    "TTFT ms",
    "TPOT ms",
    "ITL ms",
    "state",
)
_NUMERIC = frozenset({"conc", "tok/s", "tok/s/GPU", "TTFT ms", "TPOT ms", "ITL ms"})
_MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One point: its cells as text, whether it is a good one, and whether it is a rehearsal."""

    cells: tuple[str, ...]
    good: bool
    rehearsal: bool


def rows(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each concurrency asked for, in the order given; a run that asked for none has one row for its state.

    Latencies are medians. ``state`` is ``ok``, or what is wrong with the point or with the job.
    """
    found = []
    for summary in summaries:
        benchmark, rehearsal = summary["benchmark"], bool(summary["rehearsal"])
        lengths = f"{benchmark['isl']}/{benchmark['osl']}" if benchmark["isl"] else str(benchmark["scenario"])
        head = (summary["runner"], benchmark["exp_name"], benchmark["topology"], lengths)
        job = str(summary["job"]["state"])
        for point in summary["points"] or [{"state": "ok" if not summary["problems"] else "failed"}]:
            good = point["state"] == "ok" and job == "COMPLETED"
            state = point["state"] if job == "COMPLETED" else f"{point['state']}, job {job}"
            found.append(
                Row(
                    (
                        *map(str, head),
                        str(point.get("concurrency", _MISSING)),
                        _number(point.get("total_throughput"), 0),
                        _number(point.get("throughput_per_gpu"), 1),
                        _number(point.get("ttft_median_ms"), 1),
                        _number(point.get("tpot_median_ms"), 2),
                        _number(point.get("itl_median_ms"), 2),
                        f"REHEARSAL, {state}" if rehearsal else state,
                    ),
                    good,
                    rehearsal,
                )
            )
    return found


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The table in GitHub's Markdown, with what is wrong below it."""
    table = rows(summaries)
    lines = [f"> [!WARNING]\n> **{REHEARSAL}**\n"] if any(row.rehearsal for row in table) else []
    lines.append("| " + " | ".join(_COLUMNS) + " |")
    lines.append("|" + "|".join(" ---: " if column in _NUMERIC else " --- " for column in _COLUMNS) + "|")
    for row in table:
        cells = [_cell(cell) for cell in row.cells]
        lines.append("| " + " | ".join([*cells[:-1], cells[-1] if row.good else f"**{cells[-1]}**"]) + " |")
    for summary in summaries:
        notes = [*summary["problems"], *(f"(doubt) {doubt}" for doubt in summary["doubts"])]
        if notes:
            lines.append(f"\n**{_cell(summary['run_id'])}**, job {_cell(summary['job']['id'] or 'none')}:\n")
            lines += [f"- {_cell(note)}" for note in notes]
    return "\n".join(lines) + "\n"


def write_table(summaries: Sequence[Mapping[str, Any]], stream: TextIO, environ: Mapping[str, str]) -> None:
    """Write the table with rich: for a terminal in colours (unless NO_COLOR is set), else as plain text, one line a
    row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = rows(summaries)
    terminal = stream.isatty()
    console = Console(
        file=stream,
        force_terminal=terminal,
        no_color=not terminal or bool(environ.get("NO_COLOR")),
        highlight=False,
        width=None if terminal else 10_000,
    )
    if any(row.rehearsal for row in table):
        console.print(Text(REHEARSAL, style="bold yellow"))
    shown = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for column in _COLUMNS:
        shown.add_column(column, justify="right" if column in _NUMERIC else "left", no_wrap=not terminal)
    for row in table:
        style = "yellow" if row.rehearsal and row.good else "green" if row.good else "bold red"
        shown.add_row(*(Text(cell) for cell in row.cells[:-1]), Text(row.cells[-1], style=style))
    console.print(shown)


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else _MISSING


def _cell(text: Any) -> str:
    escaped = str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())
