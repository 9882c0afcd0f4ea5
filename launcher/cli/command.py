"""A command that shows something, as a value: who answers and who shows need not be the same process.

`Command.answer` does what is asked and gives a value, or an iterator of values for what goes on (``logs -f``); it
prints nothing. `Command.show` makes lines of a value and of the terminal's width, and looks at nothing else. So the
value is what ``--json`` prints, what `launcher schema` describes, and what travels when the command runs elsewhere.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from types import FunctionType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from launcher.cli.parsers import texts
from launcher.core.errors import LauncherError, Wrong
from launcher.core.lines import Line, Terminal, count_of, folded, print_lines
from launcher.core.redact import redact
from launcher.core.terminal import say

if TYPE_CHECKING:
    from launcher.core.leftovers import Leftover

Value = TypeVar("Value")

Tell = Callable[[str], None]
"""Tells a person what goes on meanwhile, without secrets: standard error here."""


def tell(text: str) -> None:
    """Tell it on standard error."""
    say(redact(text, os.environ), file=sys.stderr)


@dataclass(frozen=True)
class Told:
    """Something that was done or found: a line for people, about which run, how that stands then; or what went wrong
    with it."""

    text: str = ""
    run: str = ""
    state: str = ""
    wrong: tuple[Wrong, ...] = ()


class JSONText(str):
    """What is JSON already."""


def _wrong_of(value: Any) -> Sequence[Wrong]:
    return getattr(value, "wrong", ())


@dataclass(frozen=True)
class Command:
    """Made of a function that answers, behind ``@partial(Command, KIND, show=…)``: that is the name of the command.

    ``kind`` is the type of each value, for msgspec. A value with ``wrong`` says what could not be done: that is told
    on standard error in every form (``aside`` makes the lines), and its first error is the exit code, where ``code``
    tells no other. ``document`` is what ``--json`` prints of a value where that is not the value itself, and ``form``
    its type, or several of which it is one, or a function that makes them. An error that is raised has its own exit
    code. ``live`` shows values that follow each other in a terminal whose keys are heard."""

    kind: Any
    answer: Callable[[argparse.Namespace, Tell], Any]
    show: Callable[[Any, Terminal], Iterable[str]]
    aside: Callable[[Any], Iterable[str]] = lambda value: wrong_lines(_wrong_of(value))
    code: Callable[[Any], int] = lambda value: first_code(_wrong_of(value))
    document: Callable[[Any], Any] = lambda value: value
    live: Callable[[Iterator[Any], argparse.Namespace, Callable[[str, str], None] | None], object] | None = None
    form: Any = None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what ``--json`` prints, of each line where that is several."""
        form = self.form() if isinstance(self.form, FunctionType) else self.form or self.kind
        return schema_of(form if isinstance(form, tuple) else (form,))


def schema_of(types: Sequence[Any]) -> dict[str, Any]:
    """The JSON Schema of what is of one of these types."""
    import msgspec

    schemas, known = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    one = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **one, **({"$defs": known} if known else {})}


def run_command(command: Command, arguments: argparse.Namespace) -> int:
    """Have the command answered, show each value as it comes; the exit code."""
    found = command.answer(arguments, tell)  # `--on NAME` asks there instead, for values of `command.kind` (`on`)
    return shown(command, found, arguments)


def wants_json(arguments: argparse.Namespace | None) -> bool:
    return bool(getattr(arguments, "json", False)) or getattr(arguments, "format", None) == "json"


def shown(
    command: Command,
    found: Any,
    arguments: argparse.Namespace | None = None,
    ask: Callable[[str, str], None] | None = None,
) -> int:
    """Show a value, or values as they come (as JSON: a line each); the exit code of the first that has one. ``ask`` is
    for a live view's keys, where that is of another machine."""
    as_json = wants_json(arguments)
    streams = isinstance(found, Iterator)
    if streams and command.live and arguments and not as_json and sys.stdout.isatty() and sys.stdin.isatty():
        command.live(found, arguments, ask)
        return 0
    code, terminal = 0, Terminal.of(sys.stdout)
    pasted = _pasted(arguments)
    for value in found if streams else (found,):
        if as_json:
            print(as_text(command.document(value), indent=0 if streams else 2), flush=True)
        else:
            print_lines(map(pasted, command.show(value, terminal)), terminal)
        print_lines(map(pasted, command.aside(value)), Terminal(), sys.stderr)
        if not as_json:
            annotate(_wrong_of(value), sys.stdout)
        code = code or command.code(value)
    return code


def _pasted(arguments: argparse.Namespace | None) -> Callable[[str], str]:
    """Has the commands of a line that says what to do next work when they are pasted."""
    paste = functools.cache(lambda: Pasting(arguments or argparse.Namespace()))

    def pasted(line: str) -> str:
        if getattr(line, "raw", False) or not line.lstrip().startswith(("Next:", "or:", "hint:")):
            return line
        return Line(paste()(line), getattr(line, "style", ""))

    return pasted


_DIRECTORIES = ("workspace", "srt_slurm", "runners", "recipes", "state")


def program() -> list[str]:
    """What starts this launcher from any directory: its name, where the shell finds this very one by it."""
    own = Path(sys.argv[0])
    if own.name != "launcher" or not own.is_file():
        return [sys.executable, "-m", "launcher"]
    found = shutil.which("launcher")
    return ["launcher"] if found is not None and Path(found).absolute() == own.absolute() else [str(own.absolute())]


class Pasting:
    """Makes commands in a text (``launcher status RUN``) such as this command line would have them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        words, on = program(), getattr(arguments, "on", None)
        state = getattr(arguments, "state", None)
        for name in _DIRECTORIES:
            given = getattr(arguments, name, None)
            if name == "state":  # on a login node that is a directory there
                given = None if on else given or os.environ.get("LAUNCHER_STATE")
            if given:
                words += [f"--{name.replace('_', '-')}", str(Path(given).absolute())]
        # As whoever asks from elsewhere types it; what is about login nodes is typed without the name of one.
        elsewhere = [*(["--state", state] if state else []), "--on", on] if on else []
        self.words: list[str] = getattr(arguments, "typed", None) or [*words, *elsewhere]
        self._there, self._here = shlex.join(self.words), shlex.join(words)
        names = "|".join(re.escape(name) for name, text in texts().items() if text.listed and " " not in name)
        self._command = re.compile(rf"\blauncher(?= (?:{names})\b)(?P<here>(?= remote\b))?")

    def __call__(self, text: str) -> str:
        def typed(found: re.Match[str]) -> str:
            return self._there if found["here"] is None else self._here

        return text if self._there == "launcher" else self._command.sub(typed, text)


def annotate(wrong: Sequence[Wrong], stream: TextIO) -> None:
    """Where GitHub reads along, have each shown with the job."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from launcher.core.github import GitHub

    with GitHub(os.environ, stream) as github:
        for one in wrong:
            github.error(redact(one.message, os.environ), title=f"launcher: {one.layer}")


def as_text(value: Any, *, indent: int = 2) -> str:
    """A value as JSON; in one line without ``indent``."""
    if isinstance(value, JSONText):
        return value
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


def wrong_lines(wrong: Sequence[Wrong]) -> Iterator[str]:
    """What went wrong with one thing each: what, where, what next."""
    for one in wrong:
        error = LauncherError(one.message, where=one.where or one.of or None, hint=one.hint)
        yield from redact(f"launcher: {one.layer}: {error}", os.environ).splitlines()


def refused_lines(wrong: Sequence[Wrong], others: int, what: str, done: str = "done") -> Iterator[str]:
    """What cannot be done, beside ``others`` that can, with a count. A hint that several share is given once."""
    if wrong:
        yield f"launcher: {len(wrong)} of {len(wrong) + others} {what} cannot be {done}:"
    for hint, several in groupby(sorted(wrong, key=lambda one: one.hint or ""), key=lambda one: one.hint):
        for one in several:
            yield f"  {one.where or one.of}: {redact(one.message, os.environ)}"
        if hint:
            yield f"    hint: {hint}"


def as_it_comes(work: Callable[[Callable[[Value], None]], object]) -> Iterator[Value]:
    """The values that ``work``, in a thread of its own, hands over, at once; what it raises is raised at the end."""
    came: SimpleQueue[Value | None] = SimpleQueue()
    fault: list[BaseException] = []

    def run() -> None:
        try:
            work(came.put)
        except BaseException as error:  # noqa: BLE001 - raised where the values are taken
            fault.append(error)
        finally:
            came.put(None)

    threading.Thread(target=run, daemon=True, name="answer").start()
    while (value := came.get()) is not None:
        yield value
    if fault:
        raise fault[0]


def show_told(value: Told, terminal: Terminal) -> Iterator[str]:
    if value.text:
        yield from folded(value.text, terminal.width, "  ")


@dataclass(frozen=True)
class Removal:
    """A thing that nobody needs, of so many bytes, and by what that is known; ``keep`` is why it stays."""

    path: str
    bytes: int
    why: str
    keep: str | None = None


@dataclass(frozen=True)
class Removals:
    """All of them; ``applied``: they are removed, otherwise they would be."""

    applied: bool
    items: tuple[Removal, ...] = ()
    notes: tuple[str, ...] = ()


def removals(found: Sequence[Leftover], *, applied: bool, notes: tuple[str, ...] = ()) -> Removals:
    return Removals(applied, tuple(Removal(str(one.path), one.size, one.why, one.keep) for one in found), notes)


def show_removals(value: Removals, terminal: Terminal) -> Iterator[str]:
    """A line for each thing that was removed, would be, or stays; and how much that is together."""
    for item in value.items:
        how = f"kept, {item.keep}" if item.keep else "removed" if value.applied else "would remove"
        yield from folded(f"{how}: {item.path} ({item.bytes / 1e6:.1f} MB): {item.why}", terminal.width, "  ")
    gone = [item.bytes for item in value.items if not item.keep]
    if not gone:
        stay = count_of(len(value.items), "entry stays", "entries stay")
        yield "nothing to remove" + (f"; {stay}" if value.items else "")
        yield from value.notes
        return
    done = "freed" if value.applied else "this was a dry run, --apply removes them: it would free"
    yield f"{done} {sum(gone) / 1e9:.3f} GB in {len(gone)} of {len(value.items)} entries"
    yield from value.notes
