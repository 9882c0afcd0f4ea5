"""A command that shows something, as a value: who answers and who shows need not be the same process.

`Command.answer` does what is asked and gives a value, or an iterator of values for what goes on (``logs -f``); it
prints nothing. `Command.show` makes lines of a value and of the terminal's width, and looks at nothing else. So the
value is what ``--json`` prints, what `launcher schema` describes, and what travels when the command runs elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from launcher.core.errors import LauncherError, Wrong
from launcher.core.lines import Terminal, print_lines
from launcher.core.redact import redact

Value = TypeVar("Value")

Tell = Callable[[str], None]
"""Tells a person what goes on meanwhile, without secrets: standard error here."""


@dataclass(frozen=True)
class Command:
    """``kind`` is the type of each value, for msgspec. ``aside`` are lines for standard error, in every form: what
    could not be done. ``code`` gives the exit code that a value means; an error that is raised has its own.
    ``document`` is what ``--json`` prints of a value where that is not the value itself, and ``form`` its type."""

    kind: Any
    answer: Callable[[argparse.Namespace, Tell], Any]
    show: Callable[[Any, Terminal], Iterable[str]]
    aside: Callable[[Any], Iterable[str]] = lambda value: ()
    code: Callable[[Any], int] = lambda value: 0
    document: Callable[[Any], Any] = lambda value: value
    form: Any = None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what ``--json`` prints, of each line where that is several."""
        import msgspec

        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **msgspec.json.schema(self.form or self.kind),
        }


def run_command(command: Command, arguments: argparse.Namespace) -> int:
    """Have the command answered, show each value as it comes; the exit code."""
    from launcher.cli.common import tell

    found = command.answer(arguments, tell)  # `--on NAME` asks there instead, for values of `command.kind`
    return shown(command, found, as_json=bool(getattr(arguments, "json", False)))


def shown(command: Command, found: Any, *, as_json: bool) -> int:
    """Show a value, or values as they come (as JSON: a line each); the exit code of the last that has one."""
    streams = isinstance(found, Iterator)
    code, terminal = 0, Terminal.of(sys.stdout)
    for value in found if streams else (found,):
        if as_json:
            print(as_text(command.document(value), indent=0 if streams else 2), flush=True)
        else:
            print_lines(command.show(value, terminal), terminal)
        print_lines(command.aside(value), Terminal(), sys.stderr)
        code = command.code(value) or code
    return code


def as_text(value: Any, *, indent: int = 2) -> str:
    """A value as JSON; in one line without ``indent``."""
    import msgspec

    content = msgspec.json.encode(value, enc_hook=str)  # paths
    return (msgspec.json.format(content, indent=indent) if indent else content).decode()


def of_each(names: Sequence[str], do: Callable[[str], Value]) -> tuple[list[Value], list[Wrong]]:
    """Do it for each name: what that gave, and what went wrong with others. The error of a single name is raised."""
    done, wrong = [], []
    for name in dict.fromkeys(names):
        try:
            done.append(do(name))
        except LauncherError as error:
            if len(names) == 1:
                raise
            wrong.append(Wrong.by(error, name))
    return done, wrong


def first_code(wrong: Sequence[Wrong]) -> int:
    return wrong[0].code if wrong else 0


def wrong_lines(wrong: Sequence[Wrong], others: int, what: str, done: str = "done") -> list[str]:
    """List what cannot be done, beside ``others`` that can. A hint that several share is given once."""
    if not wrong:
        return []
    lines = [f"launcher: {len(wrong)} of {len(wrong) + others} {what} cannot be {done}:"]
    for hint, several in groupby(sorted(wrong, key=lambda one: one.hint or ""), key=lambda one: one.hint):
        lines += [f"  {one.where or one.of}: {redact(one.message, os.environ)}" for one in several]
        lines += [f"    hint: {hint}"] if hint else []
    return lines
