"""`launcher report`: what runs, sweeps, aggregates and downloaded artifacts say, as one value in many forms."""

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
class Reported:
    """A report, and its files that were written; or (``text``) it in one other form, or what a check means."""

    document: Document | None = None
    text: str | None = None
    written: tuple[str, ...] = ()


def show(value: Reported, terminal: Terminal) -> Iterator[str]:
    if value.text is not None:
        yield Line(value.text.removesuffix("\n"), raw=True)
    elif value.document is not None:
        yield from report_lines(value.document, terminal)
    if value.written:
        yield f"Written: {value.written[0]}, and {', '.join(Path(path).name for path in value.written[1:])} beside it"


def _code(value: Reported) -> int:
    found = value.document.comparison if value.document is not None else None
    return found.exit_code if found is not None else 0


def _as_json(value: Reported) -> JSONText:
    return JSONText((as_json(value.document).decode() if value.document is not None else value.text or "").rstrip("\n"))


@partial(Command, Reported, show=show, exit_code=_code, to_json=_as_json, json_type=Document)
def report(arguments: argparse.Namespace, log: Log) -> Reported:
    """Make a report, and its files or the one form that was asked for."""
    if arguments.schema:
        return Reported(text=schema().decode())
    if arguments.explain is not None:
        return Reported(text=_explain(arguments.explain))
    state = state_directory(os.environ, arguments.state)
    past = arguments.since is not None or bool(arguments.key)
    if past == bool(arguments.sources):
        hint = "launcher report RUN|SWEEP|DIR …, or --since 30d and -k KEY for all runs of this state directory"
        raise ConfigError("a report either of what is named or of the past" if past else "a report of what?", hint=hint)
    if past:
        from launcher.report.history import gather_history

        gathered = gather_history(
            state, 0.0 if arguments.since is None else time.time() - arguments.since, arguments.key
        )
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
        return Reported(value)
    forms = {
        "csv": lambda: files.points_csv(value),
        "junit": lambda: files.junit(value).decode() + "\n",
        "markdown": lambda: files.markdown(value),
        "html": lambda: render_page(value),
    }
    if arguments.format is not None:
        return Reported(value, forms[arguments.format]())
    return Reported(value, written=tuple(map(str, files.write_report(value, Path(arguments.output)))))


def _explain(rule: str) -> str:
    """What a check of results means; all of them without one."""
    if not rule:
        return "\n".join(f"{name:20}  {one.title}" for name, one in refusals().items())
    if (found := refusals().get(rule)) is None:
        hint = suggest(rule, refusals(), "launcher report --explain lists them; of plans: launcher check --explain")
        raise ConfigError(f"there is no check {rule!r} of results", where="--explain", hint=hint)
    return f"{rule}: {found.title}\n\n{found.text}"
