"""What the launcher says of itself: the manual page, made of the parsers, pages of the documentation, `version`, what
`launcher` alone says, and `launcher schema`, the form of what commands print with ``--json``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.cli.arguments import parser
from launcher.cli.parsers import EXITS, SUMMARY, LazyParser, invocation, name_of

if TYPE_CHECKING:  # the wheel is made with this module, where no other package is
    from launcher.cli.command import Command
    from launcher.cli.streaming import Streams


def first_steps(arguments: argparse.Namespace) -> int:
    """`launcher` alone."""
    print(Path(__file__).with_name("first-steps.txt").read_text(encoding="utf-8"), end="")
    return 2


def version(arguments: argparse.Namespace) -> int:
    """Which launcher this is."""
    import json
    import platform

    facts = {
        "launcher": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "package": str(Path(__file__).parents[1]),
        "platform": platform.platform(),
    }
    if arguments.json:
        print(json.dumps(facts))
    else:
        print(f"launcher {__version__}, Python {facts['python']} ({sys.executable}), {facts['package']}")
    return 0


def topic(arguments: argparse.Namespace) -> int:
    """Show a page of docs/, or list those that there are: the text of the site, of this version."""
    from launcher.core.errors import ConfigError, suggest
    from launcher.core.shipped import shipped

    docs = shipped("docs")
    pages = {str(path.relative_to(docs).with_suffix("")): path for path in sorted(docs.rglob("*.md"))}
    asked = arguments.topic
    if not asked:
        for name, path in pages.items():
            if not name.startswith("rules/"):
                print(f"{name:28} {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}")
        print("\nA rule of `launcher check` is a topic too.")
        return 0
    found = [path for name, path in pages.items() if asked in (name, path.stem)]
    if not found:
        raise ConfigError(
            f"there is no page {asked!r}",
            where="TOPIC",
            hint=suggest(asked, {p.stem for p in pages.values()}, "launcher help lists them"),
        )
    text = found[0].read_text(encoding="utf-8")
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text, end="")
    return 0


def man(arguments: argparse.Namespace) -> int:
    """Print the manual page."""
    print(manual(parser()), end="")
    return 0


def every_command(top: LazyParser) -> Iterator[LazyParser]:
    """All parsers that help lists, each before those below it."""
    top.fill()
    yield top
    for name in top.listed:
        yield from every_command(top.commands[name])


def manual(top: LazyParser) -> str:
    """The manual page, in the macros of man(7)."""
    lines = [
        f'.TH LAUNCHER 1 "" "launcher {__version__}" "User Commands"',
        ".SH NAME",
        f"launcher \\- {_roff(SUMMARY)}",
    ]
    lines += [".SH SYNOPSIS", ".B launcher", "[FLAG …] COMMAND [FLAG …]", ".SH DESCRIPTION", _roff(SUMMARY), ".PP"]
    lines += ["Flags of launcher itself stand before the command or after it. There are no abbreviations."]
    for command in every_command(top):
        name = name_of(command)
        lines += [f".SH {_roff(name.upper())}" if name else ".SH FLAGS", f".B {_roff(str(command.usage))}", ".PP"]
        lines += [_roff(command.text.sentence)] if name else []
        for action in (*command.positionals, *command.flags):
            if action.help and action.dest != "help":
                shown = f"{action.help % vars(action)}" if "%" in action.help else action.help
                lines += [".TP", f".B {_roff(invocation(action))}", _roff(shown)]
        if command.text.examples:
            lines += [".PP", "Examples:", ".nf", *(f"    {_roff(example)}" for example in command.text.examples), ".fi"]
    lines += [".SH EXIT STATUS", ".nf", *map(_roff, EXITS.splitlines()[1:]), ".fi"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """A text as roff takes it: nothing in it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of one command's value, or which commands have one."""
    from launcher.cli.command import as_text
    from launcher.core.errors import ConfigError, suggest

    known = dict(commands_with_schemas(parser()))
    if not arguments.names:
        print("\n".join(known))
        return 0
    name = " ".join(arguments.names)
    if name not in known:
        hint = suggest(name, known, "`launcher schema` lists those that have one")
        raise ConfigError(f"no command {name!r} that shows something", where="COMMAND", hint=hint)
    print(as_text(known[name].schema))
    return 0


def commands_with_schemas(top: LazyParser) -> Iterator[tuple[str, Command | Streams]]:
    """Every command that gives a value, or JSON lines, by its words."""
    from launcher.cli.command import Command
    from launcher.cli.streaming import Streams

    for command in every_command(top):
        module, _, function = (command.get_default("command") or "").partition(":")
        found = getattr(importlib.import_module(f"launcher.cli.{module}"), function) if module else None
        if isinstance(found, Command | Streams):
            yield name_of(command), found
