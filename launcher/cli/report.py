"""`launcher report`: the results of runs, sweeps, aggregates and downloaded artifacts, as one value in many forms."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from launcher.cli.command import Command, JSONText, Log
from launcher.core.errors import ConfigError, suggest
from launcher.core.lines import Line, Terminal
from launcher.core.state import state_directory
from launcher.report import files
from launcher.report.assemble import build_report
from launcher.report.comparison import compare_reports
from launcher.report.document import Document, as_json, schema
from launcher.report.gather import gather
from launcher.report.page import render_page
from launcher.report.terminal import report_lines
from launcher.report.text import local_time
from launcher.result.contradictions import refusals
from launcher.run.naming import source_named


@dataclass(frozen=True)
class ReportAnswer:
    """A report with the files that were ``written``, or as ``text`` in another form; or a text about checks."""

    document: Document | None = None
    text: str | None = None
    written: tuple[str, ...] = ()


def show(value: ReportAnswer, terminal: Terminal) -> Iterator[str]:
    if value.text is not None:
        yield Line(value.text.removesuffix("\n"), raw=True)
    elif value.document is not None:
        yield from report_lines(value.document, terminal)
    if value.written:
        yield f"Written: {value.written[0]}, and {', '.join(Path(path).name for path in value.written[1:])} beside it"


def _exit_code(value: ReportAnswer) -> int:
    compared = value.document.comparison if value.document is not None else None
    return compared.exit_code if compared is not None else 0


def _as_json(value: ReportAnswer) -> JSONText:
    return JSONText((as_json(value.document).decode() if value.document is not None else value.text or "").rstrip("\n"))


@partial(Command, ReportAnswer, show=show, exit_code=_exit_code, to_json=_as_json, json_type=Document)
def report(arguments: argparse.Namespace, log: Log) -> ReportAnswer:
    """Make a report, and its files or the one form that was requested."""
    if arguments.schema:
        return ReportAnswer(text=schema().decode())
    if arguments.explain is not None:
        return ReportAnswer(text=_explain(arguments.explain))
    state = state_directory(os.environ, arguments.state)
    of_history = arguments.since is not None or bool(arguments.key)
    if of_history == bool(arguments.sources):
        hint = "launcher report RUN|SWEEP|DIR …, or --since 30d and -k KEY for all runs of this state directory"
        problem = "a report either of what is named or of the past" if of_history else "a report of what?"
        raise ConfigError(problem, hint=hint)
    if of_history:
        from launcher.report.history import gather_history

        since = 0.0 if arguments.since is None else time.time() - arguments.since
        gathered = gather_history(state, since, arguments.key)
    else:
        gathered = gather([source_named(state, name) for name in arguments.sources], state)
    title = arguments.title or " ".join(Path(name).name or name for name in arguments.sources) or "history"
    value = build_report(gathered, title=title, made=local_time(time.time()))
    if arguments.against:
        base = gather([source_named(state, name) for name in arguments.against], state)
        value = msgspec.structs.replace(value, comparison=compare_reports(value, gathered, base, arguments.fail_on))
    elif arguments.fail_on:
        raise ConfigError("a threshold of what?", where="--fail-on", hint="--against RUN|SWEEP|DIR")
    if arguments.json or arguments.format in ("json", "text"):
        return ReportAnswer(value)
    forms = {
        "csv": lambda: files.points_csv(value),
        "junit": lambda: files.junit(value).decode() + "\n",
        "markdown": lambda: files.markdown(value),
        "html": lambda: render_page(value),
    }
    if arguments.format is not None:
        return ReportAnswer(value, forms[arguments.format]())
    return ReportAnswer(value, written=tuple(map(str, files.write_report(value, Path(arguments.output)))))


def _explain(rule: str) -> str:
    """The meaning of a check of results; without a name a list of all checks."""
    if not rule:
        return "\n".join(f"{name:20}  {check.title}" for name, check in refusals().items())
    if (check := refusals().get(rule)) is None:
        hint = suggest(rule, refusals(), "launcher report --explain lists them; of plans: launcher check --explain")
        raise ConfigError(f"there is no check {rule!r} of results", where="--explain", hint=hint)
    return f"{rule}: {check.title}\n\n{check.text}"
