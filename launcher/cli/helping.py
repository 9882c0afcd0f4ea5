"""Help beside ``--help``: the manual page, pages of the documentation, `version`, the text of `launcher` alone, and
`launcher schema`, the JSON Schema of what commands print with ``--json``.

Also completion for bash, zsh and fish. The shells' scripts call `launcher complete-words` at each tab, which prints
words of the parsers, the records and the runner files; for a file it prints nothing, and the shell completes its name.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.cli.arguments import load_command, parser
from launcher.cli.parsers import EXITS, SUMMARY, LazyParser, invocation, name_of

if TYPE_CHECKING:  # the wheel is made with this module, where no other package is
    from launcher.cli.command import Command
    from launcher.cli.streaming import StreamingCommand


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
    """Show a page of docs/ as of this version, or list all pages."""
    from launcher.core.errors import ConfigError, suggest
    from launcher.core.shipped import shipped

    docs = shipped("docs")
    pages = {str(path.relative_to(docs).with_suffix("")): path for path in sorted(docs.rglob("*.md"))}
    topic_name = arguments.topic
    if not topic_name:
        for name, path in pages.items():
            if not name.startswith("rules/"):
                print(f"{name:28} {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}")
        print("\nA rule of `launcher check` is a topic too.")
        return 0
    matches = [path for name, path in pages.items() if topic_name in (name, path.stem)]
    if not matches:
        raise ConfigError(
            f"there is no page {topic_name!r}",
            where="TOPIC",
            hint=suggest(topic_name, {p.stem for p in pages.values()}, "launcher help lists them"),
        )
    text = matches[0].read_text(encoding="utf-8")
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
    """A text escaped for roff, without requests and escapes."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of one command's value, or a list of the commands that have one."""
    from launcher.cli.command import json_text
    from launcher.core.errors import ConfigError, suggest

    known = dict(commands_with_schemas(parser()))
    if not arguments.names:
        print("\n".join(known))
        return 0
    name = " ".join(arguments.names)
    if name not in known:
        hint = suggest(name, known, "`launcher schema` lists those that have one")
        raise ConfigError(f"no command {name!r} that shows something", where="COMMAND", hint=hint)
    print(json_text(known[name].schema))
    return 0


def commands_with_schemas(top: LazyParser) -> Iterator[tuple[str, Command | StreamingCommand]]:
    """Every command that answers with a value or with JSON lines, with its name."""
    from launcher.cli.command import Command
    from launcher.cli.streaming import StreamingCommand

    for command in every_command(top):
        name = command.get_default("command")
        loaded = load_command(name) if name else None
        if isinstance(loaded, Command | StreamingCommand):
            yield name_of(command), loaded


SCRIPTS = {
    shell: Path(__file__).with_name(f"completion.{shell}").read_text(encoding="utf-8")
    for shell in ("bash", "zsh", "fish")
}

MOST = 500
"""The largest number of words for a shell."""


def script(arguments: argparse.Namespace) -> int:
    """Print a shell's script."""
    print(SCRIPTS[arguments.shell], end="")
    return 0


def complete(arguments: argparse.Namespace) -> int:
    """Print the candidates for the last word: one a line, with a tab and a description behind it."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    for word, description in sorted(candidates(parser(), words or [""]))[:MOST]:
        print(f"{word}\t{description}")
    return 0


def candidates(top: LazyParser, words: list[str]) -> list[tuple[str, str]]:
    """The candidates for the last of the words behind ``launcher``, each with a description."""
    parser, flag, values_left, positionals_given = top, None, 0, 0
    state = runners = None
    parser.fill()
    for word in words[:-1]:
        flags = {name: action for action in parser.all_flags for name in action.option_strings}
        if word in flags:
            flag = flags[word]
            values_left = {0: 0, "+": -1, "*": -1}.get(flag.nargs if flag.nargs is not None else 1, 1)
        elif values_left:
            values_left -= 1
            state = word if flag is not None and flag.dest == "state" else state
            runners = word if flag is not None and flag.dest == "runners" else runners
        elif word in parser.commands:
            parser, positionals_given = parser.commands[word], 0
            parser.fill()
        else:
            positionals_given += 1
    last = words[-1]
    if last.startswith("-"):
        pairs = [(name, a.help or "") for a in parser.all_flags for name in a.option_strings if name.startswith("--")]
    elif values_left and flag is not None:
        pairs = _values(flag, state, runners)
    else:
        pairs = list(parser.listed.items())
        rest = [a for a in parser.positionals if not isinstance(a, argparse._SubParsersAction)][positionals_given:]
        repeated = [a for a in parser.positionals if a.nargs in ("*", "+")]
        for action in (rest or repeated)[:1]:
            pairs += _values(action, state, runners, parser.prog)
    descriptions = {word: "" if description == argparse.SUPPRESS else description for word, description in pairs}
    return [
        (word, description.replace("%%", "%")) for word, description in descriptions.items() if word.startswith(last)
    ]


def _values(
    action: argparse.Action, state: str | None, runners: str | None, program: str = ""
) -> list[tuple[str, str]]:
    """The values that a flag or a positional argument may have: its choices, else by its metavar."""
    if action.choices:
        return [(str(choice), "") for choice in action.choices]
    from launcher.core.shipped import shipped
    from launcher.core.state import state_directory

    names = set(re.split(r"[^A-Z]+", str(action.metavar)))
    pairs: list[tuple[str, str]] = []
    for noun in ("run", "sweep"):
        if noun.upper() in names:
            pairs += [(name, noun) for name in _newest(state_directory(os.environ, state) / f"{noun}s")]
    if action.dest in ("runner", "of_runner") or program.startswith(("launcher runner", "launcher remote")):
        directories = [shipped("runners"), *([Path(runners)] if runners else [])]
        pairs += {(path.stem, "runner") for directory in directories for path in directory.glob("*.yaml")}
    if "RULE" in names:
        pairs += [(path.stem, "rule") for path in shipped("docs/rules").glob("*.md")]
    return pairs


def _newest(directory: Path) -> list[str]:
    """The names in a directory, the latest first."""
    try:
        entries = [(entry.stat().st_mtime, entry.name) for entry in os.scandir(directory) if entry.is_dir()]
    except OSError:
        return []
    return [name for _, name in sorted(entries, reverse=True)[:MOST] if name.isprintable() and " " not in name]
