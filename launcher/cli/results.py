"""`launcher results`: the table of results again, whole; and what InferenceX publishes of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.command import Command, Log
from launcher.cli.status import read_summary
from launcher.core.errors import ConfigError, ResultError
from launcher.core.lines import Line, Terminal, count_of
from launcher.core.state import state_directory
from launcher.result.summary_file import Summary, table_lines
from launcher.run.naming import run_named, source_named


@dataclass(frozen=True)
class Aggregates:
    """Aggregates that were written: ``count`` of them, for a run or directory (``of``), to the path ``where``."""

    of: str
    count: int
    where: str


class SummaryDocument(Summary, frozen=True, kw_only=True):
    """A run's ``summary.json``, which `launcher.result.summary` describes."""

    run_id: str
    benchmark: dict[str, Any]
    runner: str | None = None
    job: dict[str, str | None] = msgspec.field(default_factory=dict)
    times: dict[str, float | None] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """The summaries of the requested runs, or (``csv``) their points as lines of CSV, or the aggregates that were
    written. ``problems`` says what could not be read."""

    summaries: tuple[dict[str, Any], ...] = ()
    csv: str | None = None
    aggregates: tuple[Aggregates, ...] = ()
    problems: tuple[str, ...] = ()


def show(value: Results, terminal: Terminal) -> Iterator[str]:
    for written in value.aggregates:
        yield f"{written.of}: {count_of(written.count, 'aggregate')} in {written.where}"
    if value.csv is not None:
        yield from (Line(line, raw=True) for line in value.csv.splitlines())
    elif value.summaries:
        yield from table_lines(value.summaries, terminal.width)
    elif not value.aggregates:
        yield "no run of these has ended: `launcher status` shows how they stand"


@partial(
    Command,
    Results,
    show=show,
    stderr_lines=lambda value: value.problems,
    exit_code=lambda value: ResultError.exit_code if value.problems and not value.aggregates else 0,
    to_json=lambda value: value.aggregates or value.summaries,
    json_type=(list[SummaryDocument], list[Aggregates]),
)
def results(arguments: argparse.Namespace, log: Log) -> Results:
    """Show what runs and sweeps measured, or write aggregates of it."""
    names: list[str] = arguments.names
    state = state_directory(os.environ, arguments.state)
    if names[:1] == ["aggregate"]:
        return _aggregate(names[1:], state, arguments)
    if not names:
        raise ConfigError("results of what?", hint="launcher results RUN|SWEEP …; `launcher status` lists the runs")
    from launcher.report.gather import gather

    gathered = gather([source_named(state, name) for name in names], state)
    outcomes = [read_summary(Path(run.source)) for run in gathered.runs.values() if run.source]
    csv = None
    if arguments.csv:
        from launcher.report.assemble import build_report
        from launcher.report.files import points_csv

        csv = points_csv(build_report(gathered, title=" ".join(names), made=""))
    problems = (*gathered.problems, *(problem for _, problem in outcomes if problem is not None))
    return Results(tuple(summary for summary, _ in outcomes if summary is not None), csv, problems=problems)


def _aggregate(names: Sequence[str], state: Path, arguments: argparse.Namespace) -> Results:
    """Write aggregates: of a job's workspace, of runs again, or of a directory of collected artifacts."""
    if arguments.from_env:
        return Results(aggregates=(_aggregate_job(Path(os.environ.get("GITHUB_WORKSPACE") or ".")),))
    if not names:
        hint = "launcher results aggregate RUN|DIR …, or --from-env in a job's workspace"
        raise ConfigError("aggregates of what?", hint=hint)
    written: list[Aggregates] = []
    problems: list[str] = []
    for name in names:
        run = run_named(state / "runs", name)
        if (state / "runs" / run / "run.json").is_file():
            written.append(_aggregate_run(state / "runs", run))
        elif Path(name).is_dir():
            written += _aggregate_artifacts(Path(name), Path(arguments.output), problems)
        else:
            raise ConfigError(f"there is no run or directory {name}", where=str(state), hint="launcher status")
    return Results(aggregates=tuple(written), problems=tuple(problems))


def _aggregate_job(workspace: Path) -> Aggregates:
    """Do what the workflow's step "Process result" does, by the variables of the job."""
    from launcher.benchmark.benchmark import AGENTIC
    from launcher.result import aggregates

    if not (stem := os.environ.get("RESULT_FILENAME")):
        raise ConfigError("RESULT_FILENAME is not set", where="environment")
    if os.environ.get("SCENARIO_TYPE") == AGENTIC:
        rows = [aggregates.aggregate_agentic(workspace, stem, os.environ)]
        aggregates.aggregate_agentic_power(workspace, stem, os.environ)
    elif os.environ.get("IS_MULTINODE", "").lower() == "true":
        rows = aggregates.aggregate_several_nodes(workspace, stem, os.environ)
    else:
        rows = [aggregates.aggregate_fixed(workspace, stem, os.environ)]
    return Aggregates(stem, len(rows), str(workspace))


def _aggregate_run(runs: Path, name: str) -> Aggregates:
    """Write the aggregates of a run again, from its collected results."""
    from launcher.result import aggregates
    from launcher.run.record import RunRecord

    record = RunRecord.load(runs, name)
    in_workspace = record.fields.results == "workspace"
    directory = Path(record.plan.workspace.path) if in_workspace else record.directory / "results"
    published = record.step("collect").facts.get("published", {})
    logs = Path(record.job.output, "logs") if record.job is not None else None
    problems = aggregates.aggregate_run(directory, record.plan.benchmark, published, logs)
    if problems:
        raise ResultError("\n".join(problems), where=f"run {name}")
    return Aggregates(f"run {name}", len(list(directory.glob("agg_*.json"))), str(directory))


def _aggregate_artifacts(directory: Path, output: Path, problems: list[str]) -> list[Aggregates]:
    """Write the rows of a directory of artifacts as the workflow's two files: benchmarks and evaluations."""
    from launcher.result import aggregates
    from launcher.result.evaluation_rows import evaluation_rows
    from launcher.result.row_fields import is_row

    rows = []
    for path in sorted(directory.rglob("*.json")):
        try:
            row = aggregates.read_document(path)
        except ResultError as error:
            problems.append(f"passed over: {error}")
            continue
        if is_row(row):
            rows.append(row)
    files = {"agg_bmk.json": rows, "agg_eval_all.json": evaluation_rows(directory)}
    written = []
    for name, content in files.items():
        if content:
            aggregates.write_document(output / name, content)
            written.append(Aggregates(str(directory), len(content), str(output / name)))
    if not written:
        raise ResultError("no aggregate and no evaluation is below it", where=str(directory))
    return written
