"""The command line, built from commands.txt beside this file, which explains its own format. Only argparse is imported,
so that ``launcher --help`` is quick."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from launcher import __version__
from launcher.cli.parsers import LazyParser, Verbs, name_of, texts

STATES = ("new", "preparing", "submitted", "running", "collecting", "succeeded", "failed", "cancelled", "unreadable")


def parser() -> LazyParser:
    """The whole command line. Each command sets ``command`` to ``module:function`` below launcher.cli."""
    top = LazyParser(prog="launcher")
    _add(top, top, ["@everywhere"], default=None)
    top.add_argument("--version", action="version", version=f"launcher {__version__}", help="print it, and leave")
    top.set_defaults(command="helping:first_steps")
    _add_commands(top)
    top.fill()
    return top


def _add_commands(above: LazyParser) -> None:
    """Add the commands or verbs of a parser, without their arguments."""
    name = name_of(above)
    below = {full: text for full, text in texts().items() if full.rpartition(" ")[0] == name and full[0] != "@"}
    if not below:
        return
    # Flags before a verb would be lost where the command above it runs by itself.
    more: dict[str, Any] = {"action": Verbs} if above.text.function else {"required": bool(name)}
    commands = above.add_subparsers(metavar="VERB" if name else "COMMAND", parser_class=LazyParser, **more)
    for full, text in below.items():
        options: dict[str, Any] = {"help": text.listed} if text.listed else {}
        command = commands.add_parser(full.rpartition(" ")[2], **options)
        command.text, command.later = text, _fill
        if text.function:
            command.set_defaults(command=text.function, **dict(text.given))


def _fill(command: LazyParser) -> None:
    _add(command, command, command.text.arguments)
    if command.text.listed:  # people do not type the others
        known = {name for action in command.all_flags for name in action.option_strings}
        # Help of `launcher` describes these flags once. A command keeps its own flag of such a name.
        _add(command, command, ["@everywhere"], known, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    _add_commands(command)


def _add(command: LazyParser, group: Any, lines: Iterable[str], known: Iterable[str] = (), **changes: Any) -> None:
    """Add the arguments of ``lines`` of commands.txt to a group, except flags that are ``known``. ``changes`` replace
    options of argparse."""
    exclusive_groups: dict[str, Any] = {}
    for line in lines:
        if line.startswith("@"):
            _add(command, group, texts()[line].arguments, known, **changes)
        elif line.startswith("="):
            title = re.split("  +", line[2:], maxsplit=1)
            group = command.add_argument_group(*title) if line[2:] else command
        else:
            names, options = _argument(line)
            target = group
            if options.get("action") == "store_const":  # flags that set the same value exclude each other
                target = exclusive_groups.get(options["dest"]) or group.add_mutually_exclusive_group()
                exclusive_groups[options["dest"]] = target
            if not set(known) & set(names):
                target.add_argument(*names, **{**options, **changes})


def _argument(line: str) -> tuple[list[str], dict[str, Any]]:
    """The names and options of argparse for the argument of a line."""
    form, _, help_text = line.partition("  ")
    words, names = form.split(" "), []
    options: dict[str, Any] = {"help": help_text.strip().replace("{states}", ", ".join(STATES))} if help_text else {}
    while re.match(r"\w+=", words[-1]):
        key, _, text = words.pop().partition("=")
        options[key] = text
    if words[0].endswith(":"):
        options["dest"] = words.pop(0)[:-1]
    while words and words[0].startswith("-"):
        names.append(words.pop(0).rstrip(","))
    value = " ".join(words)
    if names[:1] and names[0].startswith("--[no-]"):
        names = [names[0].replace("[no-]", "")]
        options |= {"action": argparse.BooleanOptionalAction, "default": options["default"] == "yes"}
    elif not value:
        options.setdefault("action", "store_const" if "const" in options else "store_true")
    else:
        options |= _value(value, flag=bool(names))
    options |= _ACTIONS.get(options.get("action", ""), {})
    if "type" in options or options.get("metavar") in TYPES:
        options["type"] = TYPES[options.get("type", options["metavar"])]
    return names, options


def _value(text: str, *, flag: bool) -> dict[str, Any]:
    """argparse's options for an argument's values: nargs, metavar, choices, and [] as the default of several."""
    optional = text.startswith("[") and text.endswith("]")
    text = text[1:-1] if optional else text
    several = text.endswith(" …")
    metavar, _, choices = text.removesuffix(" …").partition("{")
    options: dict[str, Any] = {"metavar": metavar} if metavar else {}
    if choices:
        options["choices"] = choices.rstrip("}").split("|")
    if optional or several:
        options["nargs"] = ("*" if optional else "+") if several else "?"
    if several and flag:
        options["default"] = []
    return options


class _StateOrDirectory(argparse.Action):
    """``--state`` of `status`: the name of a state selects runs; anything else is the state directory as everywhere."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        if values in STATES:
            namespace.states = [*getattr(namespace, "states", ()), values]
        else:
            namespace.state = values


class _Workflow(argparse.Action):
    """Run another command instead, for the workflow of this name."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        namespace.command, namespace.print_workflow = "workflow:print_workflow", values


_ACTIONS: dict[Any, dict[str, Any]] = {
    "append": {"default": []},
    "state": {"action": _StateOrDirectory, "default": argparse.SUPPRESS},
    "workflow": {"action": _Workflow},
}
"""Further options of an action, by its name in commands.txt."""


def _number(text: str, least: float, most: float, unit: str) -> float:
    with contextlib.suppress(ValueError):
        if least <= float(text) <= most:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit}")


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'positive number' if least else 'number, or negative'}")
    return int(text)


def _ago(text: str) -> float:
    """The seconds of ``30d``, ``12h`` or ``2w``."""
    unit = {"h": 3600, "d": 86400, "w": 7 * 86400}.get(text[-1:])
    if unit is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 30d, 12h, 2w")
    return unit * _number(text[:-1], 0, 1e5, f"{text[-1]} in {text!r}")


TYPES: dict[str, Callable[[str], float]] = {
    "N": partial(_count, least=1),
    "count": _count,
    "30d": _ago,
    "SECONDS": partial(_number, least=1, most=86400, unit="seconds from 1 to 86400"),
    "lease": partial(_number, least=5, most=3600, unit="seconds from 5 to 3600"),
    "H": partial(_number, least=1e-6, most=1e9, unit="GPU-hours, more than 0"),
    "FACTOR": partial(_number, least=1, most=10, unit="times, from 1 to 10"),
    "DAYS": partial(_number, least=0, most=1e6, unit="days"),
}
"""The function that parses a value, by its metavar, or by its type in commands.txt."""


def load_command(name: str) -> Any:
    """The object that ``MODULE:FUNCTION`` of commands.txt names: a `Command`, or a function of the arguments."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"launcher.cli.{module}"), function)
