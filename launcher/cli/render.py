"""Plans, runs and runners for a terminal, by rich; plain text where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from launcher.plan.plan import Plan
from launcher.run.record import RunRecord
from launcher.srtctl.planned import SrtctlJob


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


def show_plans(plans: Sequence[Plan]) -> None:
    """Each plan as a person reads it: what, where, with what, and what is wrong with it."""
    console = _console(sys.stdout)
    for i, plan in enumerate(plans):
        if i:
            console.print()
        b = plan.benchmark
        console.print(f"{b.title}   on {plan.runner}", style="bold")
        for name, value in _lines(plan):
            console.print(f"  {name:10} {value}")
        for f in plan.findings:
            style = "red" if f.severity == "error" else "yellow"
            console.print(f"  {f.severity:10} {f.message} [{f.rule}]\n             {f.where}", style=style)
    if len(plans) > 1:
        errors = sum(bool(p.errors) for p in plans)
        console.print(f"\n{len(plans)} plans, {errors} with errors")


def _lines(plan: Plan) -> list[tuple[str, str]]:
    b, slurm, job = plan.benchmark, plan.scheduler, SrtctlJob.of(plan)
    srt = job.srt_slurm
    seen = " and ".join(plan.model.seen_by)
    return [
        ("measures", f"concurrency {' '.join(map(str, b.concurrencies)) or '-'}   {b.key or b.source}"),
        ("recipe", f"{job.recipe.path}{':' + job.recipe.selector if job.recipe.selector else ''}"),
        ("", f"from {job.recipe.origin}"),
        ("model", f"{plan.model.path} ({plan.model.storage}, for {seen} nodes)"),
        *((("alias", f"{alias} → {path}") for alias, path in job.models.items())),
        *(
            ("image", f"{image.reference}\n             {image.squash} (imported on the {image.import_on} node)")
            for image in plan.images
        ),
        ("srt-slurm", f"{srt.repository} {srt.ref} ({srt.sha or 'not pinned'})"),
        *(("overlay", f"{o.source} → {o.destination}") for o in srt.overlays),
        ("tree", srt.root),
        ("job", f"{plan.job_name}, partition {slurm.partition}, account {slurm.account}, at most {slurm.time_limit}"),
        ("submit", " ".join(job.submit.argv)),
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
        job = record.get("job") or {}
        error = record.get("error") or {}
        state = record.get("state")
        if not record.ended and not record.owned_by_another:
            state = f"{state} (nobody drives it)"
        verdict = record.get("verdict") or {}
        said = f"{error['layer']}: {str(error['message']).splitlines()[0]}" if error else job.get("says", "")
        if verdict.get("layer"):
            said = f"{verdict['layer']}: {verdict['text']}"
        rows.append([record.id, record.get("runner"), _when(record.get("created")), state, job.get("id", "-"), said])
    table(["run", "runner", "began", "state", "job", ""], rows, sys.stdout)


def show_run(record: RunRecord) -> None:
    """One run: its stages, its job, its end, and where its files are."""
    console = _console(sys.stdout)
    plan = record.plan
    console.print(f"{record.id}   {record.get('state')}", style="bold")
    console.print(f"  {plan.benchmark.title} on {record.get('runner')}")
    stages = record.get("stages", {})
    for name, stage in stages.items():
        seconds = stage.get("at", 0) - stage.get("began", 0)
        console.print(f"  {name:10} {stage['state']:8} {seconds:7.1f} s   {stage.get('error', '')}")
    if job := record.get("job"):
        console.print(f"  job        {job['id']}   {job.get('says', '')}")
        console.print(f"  output     {job['output']}")
    if error := record.get("error"):
        console.print(f"  {error['layer']}: {error['message']}", style="red")
        if error.get("hint"):
            console.print(f"  hint: {error['hint']}")
    if verdict := record.get("verdict"):
        said = f"{verdict['layer']}: {verdict['text']}" if verdict["layer"] else verdict["text"]
        console.print(f"  verdict    {said}", style="red" if verdict["layer"] else "green")
        console.print(f"  evidence   {record.directory / 'evidence'}")
    console.print(f"  record     {record.directory}")


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
