"""The parsers of commands. They get their arguments when they are used, and suggest the nearest word for an unknown
one. Help has the sentences and examples of commands.txt; nothing but argparse is imported until it is printed."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from launcher.core import deprecated

# argparse looks for translations of its messages in four directories at each use, which takes half of the time of
# `launcher --help`; it has no translations.
vars(argparse)["_"] = str

SUMMARY = "Puts LLM-inference benchmarks onto Slurm clusters, and says truthfully how they ended."

EXITS = """\
exit codes
  0 done   2 configuration   3 image   4 model   5 checkout or submission
  6 job   7 results   8 remote   130, 143 cancelled
"""


class LazyParser(argparse.ArgumentParser):
    """A parser whose arguments are added when it is used, since a command line uses few of all commands.

    An unknown word is an error that suggests the nearest known one. Flags have no abbreviations.
    """

    later: Callable[[LazyParser], None] | None = None
    """Adds the arguments; `launcher.cli.arguments` sets it."""
    text: Text

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self.text = Text(sentence=SUMMARY)

    def fill(self) -> None:
        """Add the arguments, unless that was done."""
        if self.usage is None:
            if self.later is not None:
                self.later(self)
            self.usage = " ".join([self.prog, "[FLAG …]", *map(_usage_name, self.positionals)])

    @property
    def flags(self) -> list[argparse.Action]:
        """The flags that this command's help describes."""
        return [a for a in self._actions if a.option_strings and a.help != argparse.SUPPRESS]

    @property
    def all_flags(self) -> list[argparse.Action]:
        """All flags that this command takes."""
        return [a for a in self._actions if a.option_strings]

    @property
    def positionals(self) -> list[argparse.Action]:
        return [a for a in self._actions if not a.option_strings]

    @property
    def commands(self) -> dict[str, LazyParser]:
        """The commands or verbs below this one."""
        choices = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return dict(choices[0]) if choices else {}

    @property
    def listed(self) -> dict[str, str]:
        """The commands that help lists, each with its description."""
        choices = [a._choices_actions for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return {choice.dest: choice.help or "" for choice in choices[0]} if choices else {}

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        self.fill()
        args = [self._current_flag(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            flag = word.partition("=")[0]
            known = [name for action in self.all_flags for name in action.option_strings]
            if flag.startswith("-"):
                self._refuse(f"{self.prog} has no flag {flag}", flag, known)
            self._refuse(f"{self.prog} has no use for {word!r} here", word, self.commands)
        return parsed, unknown

    def _current_flag(self, word: str) -> str:
        """The current name of a renamed flag, with a warning; any other word as it is."""
        flag, equals, value = word.partition("=")
        for renamed in deprecated.FLAGS:
            if renamed.old in (flag, f"{name_of(self)} {flag}"):
                deprecated.warn_renamed(self.prog, renamed)
                return f"{renamed.new}{equals}{value}"
        return word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            self._refuse(f"{self.prog} has no command {value!r}", value, self.listed)
        name = "/".join(action.option_strings) or action.metavar
        self._refuse(f"{name} is one of {', '.join(map(str, action.choices))}, not {value!r}", value, action.choices)

    def _refuse(self, message: str, word: str, known: Iterable[Any]) -> NoReturn:
        from launcher.core.errors import closest

        near = closest(word, map(str, known))
        self.error(message, f"did you mean {near}?" if near else "")

    def error(self, message: str, hint: str = "") -> NoReturn:
        """Print the error of the command line, and exit with 2."""
        hint = hint or f"{self.prog} --help tells what there is"
        self.exit(2, f"launcher: configuration: {message}\n  hint: {hint}\n")

    def format_help(self) -> str:
        self.fill()
        _describe(self)
        return super().format_help()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's format of help, in 60 to 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=max(60, min(100, _columns())) - 2)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return invocation(action)


def _columns() -> int:
    """The terminal's width, without shutil, whose import takes as long as the rest of help."""
    with contextlib.suppress(OSError, ValueError):
        return int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
    return 80


def invocation(action: argparse.Action) -> str:
    """A flag with its value, or a positional argument, as help shows it: ``-k, --key KEY …``."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = str(action.metavar or "|".join(map(str, action.choices or ())))
    shown = {0: "", "?": f" [{value}]", "+": f" {value} …", "*": f" {value} …"}.get(action.nargs or 1, f" {value}")
    return ", ".join(action.option_strings) + shown


class Verbs(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Verbs of a command that has flags of its own. argparse would lose flags before the verb, so they are refused."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        given = vars(namespace)
        for action in parser.flags:
            if given.get(action.dest, action.default) != action.default:
                parser.error(f"{action.option_strings[0]} stands before {values[0]!r}, and belongs behind it")
        super().__call__(parser, namespace, values, option_string)


def _usage_name(action: argparse.Action) -> str:
    """A positional argument in the usage line."""
    name = str(action.metavar or action.dest)
    if isinstance(action, argparse._SubParsersAction):
        return name if action.required else f"[{name}]"
    return {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} …"}.get(str(action.nargs), name)


class Text(NamedTuple):
    """The text of a command in commands.txt: its group, the function that runs it (with the attributes ``given``), its
    description in lists (``listed``), its sentence and examples, and the lines of its arguments."""

    group: str = ""
    function: str = ""
    given: tuple[tuple[str, str], ...] = ()
    listed: str = ""
    sentence: str = ""
    examples: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def texts() -> dict[str, Text]:
    """The texts of commands.txt by command (``sweep plan``), and of shared arguments by their name (``@json``)."""
    by_command: dict[str, Text] = {}
    group = name = ""
    for line in Path(__file__).with_name("commands.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            group = line[2:]
        elif line.startswith("    "):
            by_command[name] = _add_line(by_command[name], line.strip())
        elif line and not line.startswith(";"):
            name, function, listed = (*re.split("  +", line), "", "")[:3]
            function, *given = function.split(" ")
            pairs = (word.partition("=")[::2] for word in given)
            by_command[name] = Text(group, function.removeprefix("-"), tuple(pairs), listed)
    return by_command


def _add_line(text: Text, line: str) -> Text:
    """The text of a command with one more line of commands.txt."""
    if line.startswith("$ "):
        return text._replace(examples=(*text.examples, line[2:]))
    if re.match(r"[-=@]|\w+: ", line):
        return text._replace(arguments=(*text.arguments, line))
    return text._replace(sentence=line)


def _describe(parser: LazyParser) -> None:
    """Give a parser its description and epilog: sentence, commands below it, examples."""
    from textwrap import fill

    parts = [fill(parser.text.sentence, 78)]
    for title, commands in _grouped(parser):
        parts.append("\n".join([f"{title.lower()}:", *(_listed(name, text) for name, text in commands)]))
    for action in parser.positionals:
        if isinstance(action, argparse._SubParsersAction):
            action.help = argparse.SUPPRESS
    parser.description = "\n\n".join(parts)
    examples = "\n".join(["examples:", *map(_example, parser.text.examples)])
    more = "Flags that every command has (--state DIR, -q, …): launcher --help"
    parser.epilog = f"{examples}\n\n{more}" if parser.text.examples else EXITS


def _listed(name: str, text: str) -> str:
    from textwrap import fill

    return fill(text, 78, initial_indent=f"  {name:<11} ", subsequent_indent=" " * 14)


def _example(text: str) -> str:
    """An example that can be pasted: a long one continues in a second line."""
    end = text.rfind(" -", 0, 74) if len(text) > 76 else -1
    return f"  {text}" if end < 0 else f"  {text[:end]} \\\n      {text[end + 1 :]}"


def name_of(parser: LazyParser) -> str:
    """The name of a command: ``sweep plan`` for the parser of ``launcher sweep plan``."""
    return parser.prog.partition(" ")[2]


def _grouped(parser: LazyParser) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The commands below a parser that help lists, by group: pairs of name and description."""
    listed = [(name, command.text) for name, command in parser.commands.items() if command.text.listed]
    for group, commands in groupby(listed, key=lambda command: command[1].group):
        yield "verbs" if name_of(parser) else group, [(name, text.listed) for name, text in commands]
