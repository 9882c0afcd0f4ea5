"""Plans, runs and runners for a terminal, by rich; plain text where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from launcher.plan.plan import Plan
from launcher.run.kind import JobKind
from launcher.run.record import RunRecord


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """A table without borders, as wide as it has to be."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=column != "")
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    _console(stream).print(shown)


def _console(stream: TextIO) -> Any:
    from rich.console import Console

    terminal = stream.isatty()
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        no_color=not terminal or bool(os.environ.get("NO_COLOR")),
        width=None if terminal else 200,
        soft_wrap=not terminal,
    )


def show_plans(plans: Sequence[Plan], kinds: Callable[[str], JobKind]) -> None:
    """Each plan as a person reads it: what, where, with what, and what is wrong with it."""
    console = _console(sys.stdout)
    for i, plan in enumerate(plans):
        if i:
            console.print()
        b = plan.benchmark
        console.print(f"{b.title}   on {plan.runner}", style="bold")
        for name, value in _lines(plan, kinds(plan.kind)):
            console.print(f"  {name:10} {value}")
        for f in plan.findings:
            style = "red" if f.severity == "error" else "yellow"
            console.print(f"  {f.severity:10} {f.message} [{f.rule}]\n             {f.where}", style=style)
    if len(plans) > 1:
        errors = sum(bool(p.errors) for p in plans)
        console.print(f"\n{len(plans)} plans, {errors} with errors")


def _lines(plan: Plan, kind: JobKind) -> list[tuple[str, str]]:
    b, slurm, seen = plan.benchmark, plan.scheduler, " and ".join(plan.model.seen_by)
    return [
        ("measures", f"concurrency {' '.join(map(str, b.concurrencies)) or '-'}   {b.key or b.source}"),
        ("model", f"{plan.model.path} ({plan.model.storage}, for {seen} nodes)"),
        *(
            ("image", f"{image.reference}\n             {image.squash} (imported on the {image.import_on} node)")
            for image in plan.images
        ),
        *kind.describe(plan),
        ("job", f"{plan.job_name}, partition {slurm.partition}, account {slurm.account}, at most {slurm.time_limit}"),
        ("results", f"{plan.results.filename}_*.json"),
        ("decided by", f"{plan.rules.get('model', '-')}, {plan.rules.get('lane', '-')}"),
    ]


def show_runs(found: Sequence[RunRecord], runs: Path) -> None:
    """A table of runs, latest last."""
    if not found:
        print(f"no runs below {runs}")
        return
    rows = []
    for record in found:
        fields = record.fields
        state = fields.state
        if not record.ended and not record.owned_by_another:
            state = f"{state} (nobody drives it)"
        text = fields.job.says if fields.job is not None else ""
        if fields.error is not None:
            text = f"{fields.error.layer}: {fields.error.message.splitlines()[0]}"
        if fields.verdict is not None and fields.verdict.layer:
            text = str(fields.verdict)
        job = fields.job.id if fields.job is not None else "-"
        rows.append([record.id, fields.runner, _when(fields.created), state, job, text])
    table(["run", "runner", "began", "state", "job", ""], rows, sys.stdout)


def show_run(record: RunRecord) -> None:
    """One run: its steps, its job, its end, and where its files are."""
    console, fields = _console(sys.stdout), record.fields
    console.print(f"{record.id}   {fields.state}", style="bold")
    console.print(f"  {record.plan.benchmark.title} on {fields.runner}")
    for name, step in fields.steps.items():
        console.print(f"  {name:10} {step.state:8} {step.at - step.began:7.1f} s   {step.error or ''}")
    if fields.job is not None:
        console.print(f"  job        {fields.job.id}   {fields.job.says}")
        console.print(f"  output     {fields.job.output}")
    if fields.error is not None:
        console.print(f"  {fields.error.layer}: {fields.error.message}", style="red")
        if fields.error.hint:
            console.print(f"  hint: {fields.error.hint}")
    if fields.verdict is not None:
        console.print(f"  verdict    {fields.verdict}", style="red" if fields.verdict.layer else "green")
        console.print(f"  evidence   {record.directory / 'evidence'}")
    console.print(f"  record     {record.directory}")


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
