"""What the launcher says of itself: the manual page, made of the parsers, pages of the documentation, `version`, what
`launcher` alone says, and `launcher schema`, the form of what commands print with ``--json``.

Completion for bash, zsh and fish too: the shells' scripts ask `launcher complete-words` at each tab, which answers out
of the parsers, the records and the runner files; where a file is wanted it answers nothing, and the shell does.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
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
    """Every command that gives a value, or JSON lines, by its words."""
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
"""Words that a shell is given at most."""


def script(arguments: argparse.Namespace) -> int:
    """Print a shell's script."""
    print(SCRIPTS[arguments.shell], end="")
    return 0


def complete(arguments: argparse.Namespace) -> int:
    """Print what the last of the words may be: a line each, a word and after a tab what it is."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    for word, what in sorted(candidates(parser(), words or [""]))[:MOST]:
        print(f"{word}\t{what}")
    return 0


def candidates(top: LazyParser, words: list[str]) -> list[tuple[str, str]]:
    """What the last of the words (those behind ``launcher``) may be, each with what it is."""
    parser, flag, left, places = top, None, 0, 0
    state = runners = None
    parser.fill()
    for word in words[:-1]:
        flags = {name: action for action in parser.all_flags for name in action.option_strings}
        if word in flags:
            flag = flags[word]
            left = {0: 0, "+": -1, "*": -1}.get(flag.nargs if flag.nargs is not None else 1, 1)
        elif left:
            left -= 1
            state = word if flag is not None and flag.dest == "state" else state
            runners = word if flag is not None and flag.dest == "runners" else runners
        elif word in parser.commands:
            parser, places = parser.commands[word], 0
            parser.fill()
        else:
            places += 1
    last = words[-1]
    if last.startswith("-"):
        found = [(name, a.help or "") for a in parser.all_flags for name in a.option_strings if name.startswith("--")]
    elif left and flag is not None:
        found = _values(flag, state, runners)
    else:
        found = list(parser.listed.items())
        rest = [a for a in parser.positionals if not isinstance(a, argparse._SubParsersAction)][places:]
        everyone = [a for a in parser.positionals if a.nargs in ("*", "+")]
        for action in (rest or everyone)[:1]:
            found += _values(action, state, runners, parser.prog)
    shown = {word: "" if what == argparse.SUPPRESS else what for word, what in found}
    return [(word, what.replace("%%", "%")) for word, what in shown.items() if word.startswith(last)]


def _values(
    action: argparse.Action, state: str | None, runners: str | None, program: str = ""
) -> list[tuple[str, str]]:
    """What a flag or a positional argument may be: by its choices, else by what stands for its value in help."""
    if action.choices:
        return [(str(choice), "") for choice in action.choices]
    names = set(re.split(r"[^A-Z]+", str(action.metavar)))
    found: list[tuple[str, str]] = []
    if "RUN" in names:
        found += [(name, "run") for name in _newest(_state(state) / "runs")]
    if "SWEEP" in names:
        found += [(name, "sweep") for name in _newest(_state(state) / "sweeps")]
    if action.dest in ("runner", "of_runner") or program.startswith(("launcher runner", "launcher remote")):
        found += [(name, "runner") for name in _runner_names(runners)]
    if "RULE" in names:
        from launcher.core.shipped import shipped

        found += [(path.stem, "rule") for path in shipped("docs/rules").glob("*.md")]
    return found


def _state(given: str | None) -> Path:
    from launcher.core.state import state_directory

    return state_directory(os.environ, given)


def _newest(directory: Path) -> list[str]:
    """The names in a directory, the latest first."""
    try:
        entries = [(entry.stat().st_mtime, entry.name) for entry in os.scandir(directory) if entry.is_dir()]
    except OSError:
        return []
    return [name for _, name in sorted(entries, reverse=True)[:MOST] if name.isprintable() and " " not in name]


def _runner_names(given: str | None) -> Iterable[str]:
    from launcher.core.shipped import shipped

    places = [shipped("runners"), *([Path(given)] if given else [])]
    return {path.stem for place in places for path in place.glob("*.yaml")}
