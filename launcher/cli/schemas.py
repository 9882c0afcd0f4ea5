"""`launcher schema`: the form of what commands print with ``--json``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from launcher.cli.arguments import parser
from launcher.cli.command import Command, as_text
from launcher.cli.parsers import LazyParser
from launcher.cli.streaming import Streams
from launcher.core.errors import ConfigError, suggest


def schema(arguments: argparse.Namespace) -> int:
    """The JSON Schema of one command's value, or which commands have one."""
    known = dict(commands(parser()))
    if not arguments.names:
        print("\n".join(known))
        return 0
    name = " ".join(arguments.names)
    if name not in known:
        hint = suggest(name, known, "`launcher schema` lists those that have one")
        raise ConfigError(f"no command {name!r} that shows something", where="COMMAND", hint=hint)
    print(as_text(known[name].schema))
    return 0


def commands(top: LazyParser, name: str = "") -> Iterator[tuple[str, Command | Streams]]:
    """Every command that gives a value, or JSON lines, by its words."""
    target = top.get_default("command")
    if target is not None:
        module, _, function = target.partition(":")
        found = getattr(importlib.import_module(f"launcher.cli.{module}"), function)
        if isinstance(found, Command | Streams):
            yield name, found
    top.fill()
    for word, below in top.commands.items():
        yield from commands(below, f"{name} {word}".strip())
