"""A command whose answer is a value, which another process may show than the one that made it.

`Command.answer` does the work and returns a value, or an iterator of values while something goes on (``logs -f``); it
prints nothing. `Command.show` makes lines of a value and a terminal's width, and reads nothing else. So the value is
what ``--json`` prints, what `launcher schema` describes, and what a login node sends back (``--on``).
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from launcher.cli.parsers import texts
from launcher.core.errors import ErrorInfo, LauncherError
from launcher.core.lines import Line, Terminal, count_of, print_lines, wrap_words
from launcher.core.redact import redact
from launcher.core.terminal import print_line

if TYPE_CHECKING:
    from launcher.core.leftovers import Leftover

Value = TypeVar("Value")

Log = Callable[[str], None]
"""Takes a line for a person about what goes on while a command works."""


def log_to_stderr(text: str) -> None:
    """Print a line on standard error, without secrets."""
    print_line(redact(text, os.environ), file=sys.stderr)


@dataclass(frozen=True)
class Message:
    """A line for people about something that was done or found; the run that it is about and that run's state; or the
    errors."""

    text: str = ""
    run: str = ""
    state: str = ""
    wrong: tuple[ErrorInfo, ...] = ()


class JSONText(str):
    """A text that is JSON already."""


def _errors_of(value: Any) -> Sequence[ErrorInfo]:
    return getattr(value, "wrong", ())


def _error_lines(value: Any) -> Iterator[str]:
    for info in _errors_of(value):
        error = LauncherError(info.message, where=info.where or info.of or None, hint=info.hint)
        yield from redact(f"launcher: {info.layer}: {error}", os.environ).splitlines()


@dataclass(frozen=True)
class Command:
    """A command whose answer is a value. ``@partial(Command, TYPE, show=…)`` above a function makes one of it.

    ``value_type`` is the type of each value, for msgspec. A value with ``wrong`` has errors: ``stderr_lines`` prints
    them on standard error in every form, and ``exit_code`` is by default that of the first one. ``to_json`` gives what
    ``--json`` prints where that is not the value itself; ``json_type`` is then its type, a tuple of possible types, or
    a function that makes these. An error that is raised has its own exit code. ``show_live`` shows values that follow
    each other in a terminal, and takes keys.
    """

    value_type: Any
    answer: Callable[[argparse.Namespace, Log], Any]
    show: Callable[[Any, Terminal], Iterable[str]]
    stderr_lines: Callable[[Any], Iterable[str]] = _error_lines
    exit_code: Callable[[Any], int] = lambda value: next((info.code for info in _errors_of(value)), 0)
    to_json: Callable[[Any], Any] = lambda value: value
    show_live: Callable[[Iterator[Any], argparse.Namespace, Callable[[str, str], None] | None], object] | None = None
    json_type: Any = None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what ``--json`` prints; of each line, for a command with several values."""
        types = self.json_type() if isinstance(self.json_type, FunctionType) else self.json_type or self.value_type
        return schema_of(types if isinstance(types, tuple) else (types,))


def schema_of(types: Sequence[Any]) -> dict[str, Any]:
    """The JSON Schema of a value that has one of these types."""
    import msgspec

    schemas, known = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **({"$defs": known} if known else {})}


def wants_json(arguments: argparse.Namespace) -> bool:
    return bool(getattr(arguments, "json", False)) or getattr(arguments, "format", None) == "json"


def show_answer(
    command: Command,
    answer: Any,
    arguments: argparse.Namespace,
    ask_driver: Callable[[str, str], None] | None = None,
) -> int:
    """Print a value, or each value of an iterator as it comes (as JSON: one line each). Returns the first exit code
    other than 0. The keys of a live view call ``ask_driver`` with a sweep and a verb (default: asks here)."""
    as_json = wants_json(arguments)
    streams = isinstance(answer, Iterator)
    if streams and command.show_live and not as_json and sys.stdout.isatty() and sys.stdin.isatty():
        command.show_live(answer, arguments, ask_driver)
        return 0
    code, terminal = 0, Terminal.of(sys.stdout)
    rewrite = functools.partial(_rewrite_hint, functools.cache(lambda: CommandRewriter(arguments)))
    for value in answer if streams else (answer,):
        if as_json:
            print(json_text(command.to_json(value), indent=0 if streams else 2), flush=True)
        else:
            print_lines(map(rewrite, command.show(value, terminal)), terminal)
        print_lines(map(rewrite, command.stderr_lines(value)), Terminal(), sys.stderr)
        if not as_json:
            annotate(_errors_of(value), sys.stdout)
        code = code or command.exit_code(value)
    return code


def _rewrite_hint(rewriter: Callable[[], CommandRewriter], line: str) -> str:
    if getattr(line, "raw", False) or not line.lstrip().startswith(("Next:", "or:", "hint:")):
        return line
    return Line(rewriter()(line), getattr(line, "style", ""))


DIRECTORY_FLAGS = ("workspace", "srt_slurm", "runners", "recipes", "state")


def program_argv() -> list[str]:
    """The words that start this launcher from any directory: ``launcher`` where the shell's PATH leads to this one."""
    own = Path(sys.argv[0])
    if own.name != "launcher" or not own.is_file():
        return [sys.executable, "-m", "launcher"]
    in_path = shutil.which("launcher")
    return ["launcher"] if in_path is not None and Path(in_path).absolute() == own.absolute() else [str(own.absolute())]


class CommandRewriter:
    """Gives the commands in a text (``launcher status RUN``) the program and flags of this command line, so that they
    work when they are pasted into a shell."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        words, on = program_argv(), getattr(arguments, "on", None)
        state = getattr(arguments, "state", None)
        for name in DIRECTORY_FLAGS:
            directory = getattr(arguments, name, None)
            if name == "state":  # with --on it is a directory of the login node
                directory = None if on else directory or os.environ.get("LAUNCHER_STATE")
            if directory:
                words += [f"--{name.replace('_', '-')}", str(Path(directory).absolute())]
        remote_flags = [*(["--state", state] if state else []), "--on", on] if on else []
        # On the login node ``typed`` has the words that the user types on the own machine.
        self.words: list[str] = getattr(arguments, "typed", None) or [*words, *remote_flags]
        # `launcher remote …` is always typed without --on.
        self._remote, self._local = shlex.join(self.words), shlex.join(words)
        names = "|".join(re.escape(name) for name, text in texts().items() if text.listed and " " not in name)
        self._command = re.compile(rf"\blauncher(?= (?:{names})\b)(?P<local>(?= remote\b))?")

    def __call__(self, text: str) -> str:
        def rewritten(match: re.Match[str]) -> str:
            return self._remote if match["local"] is None else self._local

        return text if self._remote == "launcher" else self._command.sub(rewritten, text)


def annotate(errors: Sequence[ErrorInfo], stream: TextIO) -> None:
    """In a job of GitHub Actions, print errors as annotations, which GitHub shows with the job."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from launcher.core.github import GitHub

    with GitHub(os.environ, stream) as github:
        for info in errors:
            github.error(redact(info.message, os.environ), title=f"launcher: {info.layer}")


def json_text(value: Any, *, indent: int = 2) -> str:
    """A value as JSON; in one line with ``indent=0``."""
    if isinstance(value, JSONText):
        return value
    import msgspec

    content = msgspec.json.encode(value, enc_hook=str)  # paths
    return (msgspec.json.format(content, indent=indent) if indent else content).decode()


def for_each_name(names: Sequence[str], do: Callable[[str], Value]) -> tuple[list[Value], list[ErrorInfo]]:
    """Call ``do`` with each name once. Returns its results, and the errors of other names. With one name the error is
    raised."""
    results, errors = [], []
    for name in dict.fromkeys(names):
        try:
            results.append(do(name))
        except LauncherError as error:
            if len(names) == 1:
                raise
            errors.append(ErrorInfo.from_error(error, name))
    return results, errors


def refusal_lines(errors: Sequence[ErrorInfo], others: int, what: str, done: str = "done") -> Iterator[str]:
    """Lines that list what cannot be done, with its count and that of ``others`` that can. A hint that several errors
    share is printed once."""
    if errors:
        yield f"launcher: {len(errors)} of {len(errors) + others} {what} cannot be {done}:"
    for hint, group in groupby(sorted(errors, key=lambda info: info.hint or ""), key=lambda info: info.hint):
        for info in group:
            yield f"  {info.where or info.of}: {redact(info.message, os.environ)}"
        if hint:
            yield f"    hint: {hint}"


def show_message(value: Message, terminal: Terminal) -> Iterator[str]:
    if value.text:
        yield from wrap_words(value.text, terminal.width, "  ")


@dataclass(frozen=True)
class Removal:
    """A file or directory that is no longer needed, its size in bytes, and the reason; ``keep`` is why it stays."""

    path: str
    bytes: int
    why: str
    keep: str | None = None


@dataclass(frozen=True)
class Removals:
    """All of them. With ``applied`` they are removed; otherwise this was a dry run."""

    applied: bool
    items: tuple[Removal, ...] = ()
    notes: tuple[str, ...] = ()


def removals(leftovers: Sequence[Leftover], *, applied: bool, notes: tuple[str, ...] = ()) -> Removals:
    return Removals(
        applied, tuple(Removal(str(left.path), left.size, left.why, left.keep) for left in leftovers), notes
    )


def show_removals(value: Removals, terminal: Terminal) -> Iterator[str]:
    """A line for each file or directory that was removed, would be, or stays; and their size together."""
    for item in value.items:
        verb = f"kept, {item.keep}" if item.keep else "removed" if value.applied else "would remove"
        yield from wrap_words(f"{verb}: {item.path} ({item.bytes / 1e6:.1f} MB): {item.why}", terminal.width, "  ")
    sizes = [item.bytes for item in value.items if not item.keep]
    if sizes:
        done = "freed" if value.applied else "this was a dry run, --apply removes them: it would free"
        yield f"{done} {sum(sizes) / 1e9:.3f} GB in {len(sizes)} of {len(value.items)} entries"
    else:
        kept = count_of(len(value.items), "entry stays", "entries stay")
        yield "nothing to remove" + (f"; {kept}" if value.items else "")
    yield from value.notes
