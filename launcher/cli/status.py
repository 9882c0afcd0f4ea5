"""`launcher status`: the runs, by their records alone.

It is asked often and of thousands of runs, so it imports little, and keeps of each record only the line that it shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.reading import read_file
from launcher.core.state import state_directory
from launcher.core.terminal import one_line
from launcher.run.fields import LARGEST, UNREADABLE
from launcher.run.record import RunRecord, UnreadableRecord, each_record

_WIDE = 120
"""Columns of a terminal from which on a run has one line in the table of runs."""

_COLUMNS = ("run", "runner", "began", "state", "job", "")


def status(arguments: argparse.Namespace) -> int:
    """List all runs, or show one. What cannot be read is listed too."""
    runs = state_directory(os.environ, arguments.state) / "runs"
    if arguments.run:
        record = RunRecord.load(runs, arguments.run)
        if arguments.json:
            print(json.dumps(_document(record.directory), indent=2))
        else:
            _show_run(record)
        return 0
    unreadable: list[UnreadableRecord] = []
    if arguments.json:
        _print_json(runs, unreadable)
        return 0
    rows = sorted((record.fields.created, _row(record)) for record in each_record(runs, unreadable, facts=False))
    _show_rows([row for _, row in rows] + [_row_unreadable(one) for one in unreadable], runs)
    if unreadable:
        n = len(unreadable)
        print(f"{n} {'record' if n == 1 else 'records'} cannot be read: `launcher cleanup` looks for the jobs by name")
    return 0


def _row(record: RunRecord) -> tuple[str, ...]:
    fields = record.fields
    state = fields.state
    if not record.ended and not record.owned_by_another:
        state = f"{state} (nobody drives it)"
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(fields.created)) if fields.created else "-"
    job, text = (fields.job.id, fields.job.says) if fields.job is not None else ("-", "")
    if fields.verdict is not None and fields.verdict.layer:
        text = str(fields.verdict)
    elif fields.error is not None:
        text = f"{fields.error.layer}: {(fields.error.message.splitlines() or [''])[0]}"
    return record.id, fields.runner, began, state, job, text


def _row_unreadable(one: UnreadableRecord) -> tuple[str, ...]:
    return one.id, "-", "-", UNREADABLE, "?", str(one.error)


def _show_rows(rows: Sequence[tuple[str, ...]], runs: Path) -> None:
    """A table of runs, latest last; in a narrow terminal two lines a run."""
    if not rows:
        print(f"no runs below {runs}")
        return
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if columns is not None and columns < _WIDE:
        for run_id, runner, began, state, job, text in (map(one_line, row) for row in rows):
            print(f"{run_id}   {state}")
            line = f"  {runner:10} {began}   job {job}   {text}"
            print(textwrap.fill(line, columns, subsequent_indent=" " * 13, break_long_words=False))
        return
    table = [_COLUMNS, *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        indent = " " * (sum(widths[:-1]) + 2 * (len(widths) - 1))
        narrow = columns is None or len(line) <= columns or len(indent) > columns - 20
        print(line if narrow else textwrap.fill(line, columns or 0, subsequent_indent=indent, drop_whitespace=False))


def _document(directory: Path) -> Any:
    """A record as it stands in its file."""
    try:
        return json.loads(read_file(directory / "run.json", LARGEST))
    except (OSError, ValueError) as error:  # it was readable a moment ago
        raise ConfigError(f"the run's record cannot be read: {error}", where=str(directory)) from None


def _documents(runs: Path, unreadable: list[UnreadableRecord]) -> Iterator[Any]:
    order = sorted((record.fields.created, record.id) for record in each_record(runs, unreadable, facts=False))
    for _, name in order:
        try:
            yield _document(runs / name)
        except ConfigError as error:  # the fast way looks at less of it; or it was removed meanwhile
            if (runs / name).is_dir():
                unreadable.append(UnreadableRecord(runs / name, error))
    for one in unreadable:
        yield {"id": one.id, "state": UNREADABLE, "error": {"message": one.error.message, "where": one.error.where}}


def _print_json(runs: Path, unreadable: list[UnreadableRecord]) -> None:
    """All records as one list, never all of them in memory."""
    before = "["
    for value in _documents(runs, unreadable):
        print(f"{before}\n{_indented(value)}", end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def _indented(value: Any) -> str:
    return "  " + json.dumps(value, indent=2).replace("\n", "\n  ")


def _show_run(record: RunRecord) -> None:
    """One run: its steps, its job, its end, and where its files are."""
    fields = record.fields
    lines = [f"{record.id}   {fields.state}"]
    try:
        lines.append(f"  {record.plan.benchmark.title} on {fields.runner}")
    except ConfigError as error:
        lines.append(f"  on {fields.runner}; {error.message}")
    for name, step in fields.steps.items():
        lines.append(f"  {name:10} {step.state:8} {step.at - step.began:7.1f} s   {step.error or ''}")
    if fields.job is not None:
        lines.append(f"  job        {fields.job.id}   {fields.job.says}")
        lines.append(f"  output     {fields.job.output}")
    if fields.error is not None:
        lines.append(f"  {fields.error.layer}: {fields.error.message}")
        if fields.error.hint:
            lines.append(f"  hint: {fields.error.hint}")
    if fields.verdict is not None:
        lines.append(f"  verdict    {fields.verdict}")
        lines.append(f"  evidence   {record.directory / 'evidence'}")
    lines.append(f"  record     {record.directory}")
    for line in "\n".join(lines).split("\n"):
        print(one_line(line))
    if (record.directory / "summary.json").is_file():
        from launcher.cli.results import show_table

        show_table([record.directory])
