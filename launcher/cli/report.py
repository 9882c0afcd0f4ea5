"""`launcher report`: what runs, sweeps, aggregates and downloaded artifacts say, as one value in many forms."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec

from launcher.core.errors import ConfigError, suggest
from launcher.core.lines import Terminal, print_lines
from launcher.core.state import state_directory
from launcher.core.terminal import say
from launcher.report import files
from launcher.report.assemble import document
from launcher.report.comparison import comparison
from launcher.report.document import Document, as_json, schema
from launcher.report.gather import gather
from launcher.report.page import page
from launcher.report.terminal import show
from launcher.report.text import clock
from launcher.result.refusals import refusals


def report(arguments: argparse.Namespace) -> int:
    """Make a report, show it, and write its files."""
    if arguments.schema:
        sys.stdout.write(schema().decode())
        return 0
    if arguments.explain is not None:
        return _explain(arguments.explain)
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
        gathered = gather(arguments.sources, state)
    title = arguments.title or " ".join(Path(name).name or name for name in arguments.sources) or "history"
    value = document(gathered, title=title, made=clock(time.time()))
    if arguments.against:
        base = gather(arguments.against, state)
        value = msgspec.structs.replace(value, comparison=comparison(value, gathered, base, arguments.fail_on))
    elif arguments.fail_on:
        raise ConfigError("a threshold of what?", where="--fail-on", hint="--against RUN|SWEEP|DIR")
    _show(value, arguments)
    return value.comparison.exit_code if value.comparison is not None else 0


def _explain(rule: str) -> int:
    """What a check of results means; all of them without one."""
    if not rule:
        for name, one in refusals().items():
            say(f"{name:20}  {one.title}")
        return 0
    if (found := refusals().get(rule)) is None:
        hint = suggest(rule, refusals(), "launcher report --explain lists them; of plans: launcher check --explain")
        raise ConfigError(f"there is no check {rule!r} of results", where="--explain", hint=hint)
    print(f"{rule}: {found.title}\n\n{found.text}", end="")
    return 0


def _print(value: Document) -> None:
    terminal = Terminal.of(sys.stdout)
    print_lines(show(value, terminal), terminal)


def _show(value: Document, arguments: argparse.Namespace) -> None:
    if arguments.format is not None:
        forms = {
            "json": lambda: as_json(value).decode(),
            "csv": lambda: files.points_csv(value),
            "junit": lambda: files.junit(value).decode() + "\n",
            "markdown": lambda: files.markdown(value),
            "html": lambda: page(value),
        }
        if arguments.format == "text":
            _print(value)
        else:
            sys.stdout.write(forms[arguments.format]())
        return
    _print(value)
    written = files.write(value, Path(arguments.output))
    say(f"Written: {written[0]}, and {', '.join(path.name for path in written[1:])} beside it")
