"""`launcher report`: what runs, sweeps, aggregates and downloaded artifacts say, as one value in many forms."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.state import state_directory
from launcher.core.terminal import say, styled
from launcher.report import files, terminal
from launcher.report.assemble import document
from launcher.report.document import Document, as_json, schema
from launcher.report.gather import gather
from launcher.report.page import page
from launcher.report.text import clock


def report(arguments: argparse.Namespace) -> int:
    """Make a report, show it, and write its files."""
    if arguments.schema:
        sys.stdout.write(schema().decode())
        return 0
    if not arguments.sources:
        raise ConfigError("a report of what?", hint="launcher report RUN|SWEEP|DIR …")
    state = state_directory(os.environ, arguments.state)
    gathered = gather(arguments.sources, state)
    title = arguments.title or " ".join(Path(name).name or name for name in arguments.sources)
    value = document(gathered, title=title, made=clock(_now()))
    _show(value, arguments)
    return 0


def _now() -> float:
    import time

    return time.time()


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
            terminal.write(value, styled(sys.stdout), os.environ)
        else:
            sys.stdout.write(forms[arguments.format]())
        return
    terminal.write(value, styled(sys.stdout), os.environ)
    written = files.write(value, Path(arguments.output))
    say(f"Written: {written[0]}, and {', '.join(path.name for path in written[1:])} beside it")
