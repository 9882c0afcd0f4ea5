"""The report as CSV, JUnit and Markdown; and all its forms as files in one directory."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Hashable, Sequence
from pathlib import Path

from launcher.core.lines import count_of
from launcher.core.publish import write_bytes
from launcher.report.document import (
    Attempt,
    Comparison,
    Document,
    Entry,
    Run,
    all_notes,
    as_json,
    point_name,
    points_not_ok,
)
from launcher.report.page import render_page
from launcher.report.points import SCORES, metrics
from launcher.report.text import change_text, escaped, metric_text, samples_text, shorten_digests, shown

LONGEST_MARKDOWN = 1 << 20
"""Bytes of a step's summary that GitHub accepts."""

_ENTRY_FIELDS = ("id", "state", "reason", "layer", "rule", "model", "hardware", "framework", "precision",
                 "spec_decoding", "disagg", "scenario", "isl", "osl", "topology", "kv_offload", "concurrency", "task",
                 "frontier")  # fmt: skip
_RUN_FIELDS = ("id", "job", "nodes", "srt_slurm", "commit", "model", "recipe", "fingerprint")


def write_report(document: Document, directory: Path) -> list[Path]:
    """Write every form of the report, each file atomically. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "report.html": render_page(document).encode(errors="backslashreplace"),
        "report.json": as_json(document),
        "points.csv": points_csv(document).encode(errors="backslashreplace"),
        "junit.xml": junit(document),
        "report.md": markdown(document).encode(errors="backslashreplace"),
    }
    for name, text in content.items():
        write_bytes(directory / name, text)
    return [directory / name for name in content]


def points_csv(document: Document) -> str:
    """A line for each point: its identity, every metric that any point has, and the run's inputs."""
    present = {name for entry in document.points for name in entry.metrics}
    names = [name for name in metrics() if name in present]
    runs = {run.id: run for run in document.runs}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_ENTRY_FIELDS, *names, *(f"run_{name}" for name in _RUN_FIELDS), "images", "attempts"])
    for entry in document.points:
        run = runs.get(entry.run, Run(id=entry.run))
        images = " ".join(f"{image.reference} {image.digest}".strip() for image in run.images)
        writer.writerow(
            [
                *(_csv_cell(getattr(entry, name)) for name in _ENTRY_FIELDS),
                *(entry.metrics.get(name, "") for name in names),
                *(_csv_cell(getattr(run, name)) for name in _RUN_FIELDS),
                _csv_cell(images),
                len(entry.attempts),
            ]
        )
    return out.getvalue()


def _csv_cell(value: object) -> object:
    """The value; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = shown(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def junit(document: Document) -> bytes:
    """A suite for the first attempts, and one for each round of retries; a case for each point."""
    title, suites = _xml(document.title), []
    rounds = max((len(entry.attempts) for entry in document.points), default=0)
    for number in range(rounds):
        cases = [_case(entry, entry.attempts[number]) for entry in document.points if len(entry.attempts) > number]
        kinds = [kind for kind, _ in cases]
        counts = f'tests="{len(cases)}" failures="{kinds.count("failure")}" skipped="{kinds.count("skipped")}"'
        name = f"{title}, retry {number}" if number else title
        suites.append(f'<testsuite name="{name}" {counts}>\n{"".join(text for _, text in cases)}</testsuite>\n')
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="{title}">\n{"".join(suites)}</testsuites>\n'
    return text.encode(errors="backslashreplace")


def _case(entry: Entry, attempt: Attempt) -> tuple[str, str]:
    """The kind of a case (``failure``, ``skipped`` or "") and its element."""
    group = f"{entry.model} {entry.lengths} {entry.configuration}"
    head = f'<testcase classname="{_xml(group)}" name="{_xml(entry.short)}">'
    measured = attempt.metrics or (entry.metrics if attempt.state == entry.state else {})
    values = {"state": attempt.state, "run": attempt.run, "rule": entry.rule, **measured}
    properties = "".join(f'<property name="{key}" value="{_xml(value)}"/>' for key, value in values.items() if value)
    kind = ""
    if attempt.state not in ("ok", "reused"):
        unmeasured = attempt.state == "rehearsal" or (attempt.state == "missing" and not attempt.layer)
        kind = "skipped" if unmeasured else "failure"
    layer = "" if kind != "failure" else f' type="{_xml(attempt.layer or attempt.state)}"'
    child = f'<{kind} message="{_xml(attempt.reason or attempt.state)}"{layer}/>' if kind else ""
    return kind, f"{head}<properties>{properties}</properties>{child}</testcase>\n"


def _xml(text: Hashable) -> str:
    return re.sub("[\ufffe\uffff]", "?", escaped(text))


COLUMNS = (
    "tput_per_gpu",
    "output_tput_per_gpu",
    "median_intvty",
    "median_ttft",
    "p99_ttft",
    "median_tpot",
    "median_e2el",
)
"""Metrics of the tables in Markdown and in a terminal."""


def known_metrics(entries: Sequence[Entry]) -> list[str]:
    """The metrics of `COLUMNS`, of agentic points and of scores that any of these points has."""
    names = (*COLUMNS[:2], "p90_e2e_norm_intvty", *COLUMNS[2:], *SCORES)
    return [name for name in names if any(name in entry.metrics for entry in entries)]


def markdown(document: Document) -> str:
    """The report in GitHub's Markdown, at most 1 MiB; its last line says how many lines are left out."""
    counts = ", ".join(f"**{count}** {state}" for state, count in document.counts.items())
    points = count_of(len(document.points), "point")
    lines = [f"## {_markdown(document.title)}", "", f"{points}: {counts or 'none'}.", ""]
    if warning := document.rehearsed:
        lines += ["> [!WARNING]", f"> **{warning}**", ""]
    for first, members in points_not_ok(document):
        points = ", ".join(entry.short for entry in members[:20])
        more = f" and {len(members) - 20} more" if len(members) > 20 else ""
        layer = f", {first.layer}" if first.layer else ""
        lines.append(f"- **{first.state}**{layer}: {_markdown(first.reason)} ({_markdown(points)}{more})")
    lines += [f"- could not be read: {_markdown(problem)}" for problem in document.problems]
    lines += [f"- {_markdown(name)}: {_markdown(note)}" for name, note in all_notes(document)]
    for entry in document.points:
        if len(entry.attempts) > 1:
            attempts = "; ".join(f"{one.state} {one.reason}".rstrip() for one in entry.attempts)
            lines.append(f"- {_markdown(point_name(entry))}, {len(entry.attempts)} attempts: {_markdown(attempts)}")
    lines += _comparison(document.comparison) if document.comparison is not None else []
    return _bounded([*lines, *_table(document.measured, "frontier"), *_table(document.evaluations, "task")])


def _table(entries: Sequence[Entry], last: str) -> list[str]:
    """A row for each point, with every metric's unit; ``last`` is the name of the last column."""
    names = known_metrics(entries)
    units = (f"{metrics()[name].title}, {metrics()[name].unit}" for name in names)
    heads = ["state", "model", "ISL/OSL", "configuration", "topology", "conc", *units, last]
    lines = ["", "| " + " | ".join(heads) + " |", "|" + " --- |" * 5 + " ---: |" * (len(heads) - 6) + " --- |"]
    for entry in entries:
        identity = (entry.state, entry.model, entry.lengths, entry.configuration, entry.topology)
        cells = [
            *map(_markdown, identity),
            str(entry.concurrency),
            *(metric_text(name, entry.metrics) for name in names),
        ]
        end = _markdown(entry.task) if last == "task" else "yes" if entry.frontier else ""
        lines.append("| " + " | ".join([*cells, end]) + " |")
    return lines if entries else []


def _comparison(comparison: Comparison) -> list[str]:
    """The failed thresholds, and a row for each point that is not the same on the other side."""
    lines = ["", f"### Compared with {_markdown(comparison.against)}", "", f"{comparison.summary}.", ""]
    lines += [f"- **{_markdown(text)}**" for text in comparison.failed]
    heads = [
        "answer",
        "point",
        *(f"{metrics()[name].title}, {metrics()[name].unit}" for name in comparison.shown_metrics),
    ]
    heads += ["measurements", "what else differs"]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for point in comparison.points:
        if point.answer != "same":
            by_metric = {change.metric: change for change in point.changes}
            cells = [
                point.answer,
                _markdown(point.point),
                *(change_text(by_metric.get(name)) for name in comparison.shown_metrics),
            ]
            reason = _markdown(point.reason or shorten_digests("; ".join(point.differs)))
            lines.append("| " + " | ".join([*cells, samples_text(point) if point.changes else "", reason]) + " |")
    return lines


def _markdown(text: Hashable) -> str:
    """A text from outside, escaped so that Markdown shows it unchanged, without links, images, mentions or markup."""
    escaped = re.sub(r"([\\`*_{}\[\]()#!|~@])", r"\\\1", shown(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _bounded(lines: list[str]) -> str:
    size = 0
    for number, line in enumerate(lines):
        size += len(line.encode(errors="backslashreplace")) + 1
        if size > LONGEST_MARKDOWN - 200:
            more = count_of(len(lines) - number, "more line is", "more lines are")
            return "\n".join([*lines[:number], "", f"{more} left out here.", ""])
    return "\n".join([*lines, ""])
