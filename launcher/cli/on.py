"""``--on NAME``: the command of a login node, as if it were typed there; asked there, shown here.

Values come back and are shown by the same functions as here; files that the command needs go there once, by their
content. What runs longer than a connection (`run`, `sweep start`, the two `resume`) is driven by a process there: this
one starts it, then follows it, and being cut off ends nothing (`on_driving`).
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import importlib
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.benchmark.contracts import SECRETS
from launcher.cli.command import Command, CommandRewriter, show_answer
from launcher.cli.remote import LoginNode, connect
from launcher.core.checkout_head import head_commit
from launcher.core.errors import Cancelled, ConfigError, LauncherError, RemoteError
from launcher.core.lines import Terminal
from launcher.core.reading import prepare_type
from launcher.core.stop import EndedBySignal, StopEvent, signal_handlers
from launcher.core.terminal import one_line, print_line
from launcher.remote import bundle
from launcher.remote.session import Session

LARGEST = 256 << 20
"""Characters of one value, or of one line that a command prints."""
LITTLE = 1 << 20
"""Characters of all that the start of a driver prints."""

_DRIVEN = {
    "running:run": "run",
    "running:resume": "resume",
    "sweeping:start": "sweep_start",
    "sweeping:resume": "sweep_resume",
}
"""Commands that a driver goes on with, each with what is done about it: a function of `on_driving`."""

HERE = ("helping", "remote", "detached", "on")
"""Modules of commands that are about this machine; LAUNCHER_ON says nothing to them."""

_NOT_THERE = {
    "ci:ci": "it is a step of a workflow, on its own runner",
    "workflow:shadow": "it is a step of a workflow, on its own runner",
    "running:adopt": "log in there, and adopt the job there; then follow it with --on",
    "report:report": "bring the runs (launcher remote get NAME RUN|SWEEP), and report them here",
    "runner_doctor:new": "log in there: it writes a file",
}

_BY_RECORDS = ("status", "results", "sweep_status")
"""Modules of commands that know runs and sweeps by their records alone: they are asked without any files."""

_PLACES = ("runners", "recipes", "srt_slurm")
_OF_WORKSPACE = ("configs", "runners", "benchmarks", "utils")
"""What of a workspace plans and jobs read: benchmark scripts call those of ``utils``."""


class RemoteCommand:
    """A session on a login node, and how commands are asked of it. ``name`` is what the user calls the node."""

    def __init__(self, node: LoginNode, session: Session, arguments: argparse.Namespace) -> None:
        self.node, self.session, self.name = node, session, node.name
        self.arguments = arguments
        self.passed = set(SECRETS) if arguments.command in (*_DRIVEN, "model:stage") else set()
        """Names of variables here that the command there gets: their values travel in the message that asks for it."""
        self.places: dict[str, Any] = dict.fromkeys((*_PLACES, "workspace"))
        """Flags that name files here, as the remote side has them: none of them, until `send_files` sets them."""
        self.left, self.hint = f"nothing was started on {node.name}", ""
        """What stays there when a command of `_DRIVEN` is interrupted now, and what to do about it."""

    def ask(self, say: Callable[[str], None] | None = None, **changes: Any) -> _RemoteAnswer:
        """Ask for the command of the arguments with these changed; ``say`` is told what it says meanwhile."""
        own = {key: value for key, value in vars(self.arguments).items() if key not in ("on", "ssh", "accept_new")}
        secrets = {key: value for key in self.passed if (value := os.environ.get(key))}
        own["typed"] = CommandRewriter(self.arguments).words
        stream = self.session.stream(
            "ask", arguments={**own, **self.places, **changes}, argv=sys.argv[1:], secrets=secrets
        )
        return _RemoteAnswer(stream, say or _complain)

    def ask_driver(self, sweep: str, verb: str) -> None:
        """Ask whoever drives a sweep there to pause, go on, drain, stop or cancel; it is seen whether they do."""
        asked = {"command": "sweep_asking:ask", "name": sweep, "verb": verb, "of_runner": None, "json": False}
        for _ in self.ask(lambda text: None, **asked).text():
            pass

    def send_files(self) -> bundle.Bundle:
        """Have the files there that plans are made of; a driver also gets what their runners pass to jobs."""
        if self.arguments.command in _DRIVEN:
            for file in self.node.project.fleet.readable():
                self.passed |= set(file.runner.pass_environment)
        files = bundle.pack(local_files(self.arguments, self.node.project.workspace))
        self.places = self.places_in(bundle.send_bundle(self.session, files))
        return files

    def places_in(self, directory: str) -> dict[str, Any]:
        """The flags that name files, for a bundle that is unpacked in ``directory``."""
        named = {name: _named(self.arguments, name) for name in _PLACES}
        flags: dict[str, Any] = {name: f"{directory}/{name}" if place else None for name, place in named.items()}
        if matrices := _matrices(self.arguments):
            flags["matrix"] = [f"{directory}/{name}" for name in matrices]
        return {**flags, "workspace": f"{directory}/workspace"}


class _RemoteAnswer:
    """What a command there gives: text, or values by lines; ``code`` once all has been read."""

    def __init__(self, stream: Iterator[Any], say: Callable[[str], None]) -> None:
        self._stream, self._say, self._said = stream, say, 0
        self.code = 1

    def text(self) -> Iterator[str]:
        """Standard output, in pieces as they come."""
        unpacked, decoder = zlib.decompressobj(), codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                event = next(self._stream)
            except StopIteration as end:
                self.code = end.value if isinstance(end.value, int) else 1
                self.code = self.code if self.code >= 0 else 128 - self.code
                return
            if isinstance(event, dict):
                self._said += len(said := str(event.get("said", "")))
                if self._said > LARGEST:
                    raise RemoteError(f"it says more than {LARGEST >> 20} MiB")
                self._say(said)
            while isinstance(event, bytes) and event:
                try:
                    yield decoder.decode(unpacked.decompress(event, 1 << 20))
                except zlib.error as error:
                    raise RemoteError("what it sends cannot be unpacked") from error
                event = unpacked.unconsumed_tail

    def whole(self) -> str:
        """Standard output of a command that says little. Raises RemoteError for much."""
        out = ""
        for piece in self.text():
            out += piece
            if len(out) > LITTLE:
                raise RemoteError(f"it says more than {LITTLE >> 10} KiB")
        return out

    def lines(self) -> Iterator[str]:
        """Standard output by lines. Raises RemoteError for one that never ends."""
        parts, size = list[str](), 0
        for piece in self.text():
            first, *rest = piece.split("\n")
            parts.append(first)
            size += len(first)
            if rest:
                yield "".join(parts)
                yield from rest[:-1]
                parts, size = [rest[-1]], len(rest[-1])
            if size > LARGEST:
                raise RemoteError(f"a line of more than {LARGEST >> 20} MiB")
        if size:
            yield "".join(parts)

    def value(self, command: Command) -> Any:
        """The value of a command, an iterator of them where several come, or None when it ended with an error."""
        import msgspec

        lines = self.lines()
        head = next(lines, None)

        def values() -> Iterator[Any]:
            for line in lines:
                try:
                    yield msgspec.json.decode(line, type=prepare_type(command.value_type))
                except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
                    raise RemoteError(f"it gives another value than ours: {one_line(error)[:500]}") from error

        if head == "values":
            return values()
        value = next(values(), None) if head == "value" else None
        for _ in lines:
            raise RemoteError("it gives more than the one value that was asked for")
        return value


def _complain(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def login_node_name(arguments: argparse.Namespace) -> str | None:
    """The login node that a command is for, if any. Raises ConfigError for what is not done there."""
    named = getattr(arguments, "on", None)
    name = os.environ.get("LAUNCHER_ON") if named is None else named
    if not name:
        return None
    if arguments.command.partition(":")[0] in HERE:
        if named is None:
            return None
        raise ConfigError("this command is about this machine", where="--on", hint="leave --on out")
    why = _NOT_THERE.get(arguments.command)
    if why is None and getattr(arguments, "from_env", False):
        why = "--from-env is about a job of GitHub on this machine"
    if why is None and arguments.command == "results:results" and arguments.names[:1] == ["aggregate"]:
        why = _NOT_THERE["report:report"]
    if why is not None:
        raise ConfigError("this is not done on a login node from here", where=f"--on {name}", hint=why)
    return str(name)


def run_on_node(arguments: argparse.Namespace, name: str) -> int:
    """Do the command on the login node ``name``; its exit code. Raises LauncherError."""
    here, remote = argparse.Namespace(**{**vars(arguments), "state": None}), None
    try:
        with connect(here, name) as node, node.session() as session:
            remote = RemoteCommand(node, session, arguments)
            with checked_answers(name):
                if arguments.command in _DRIVEN:
                    driving = importlib.import_module("launcher.cli.on_driving")
                    return int(getattr(driving, _DRIVEN[arguments.command])(remote))
                if _needs_files(arguments):
                    remote.send_files()
                return show(remote)
    except (KeyboardInterrupt, EndedBySignal) as why:
        if arguments.command not in _DRIVEN:
            raise
        number = signal.Signals(why.number if isinstance(why, EndedBySignal) else signal.SIGINT)
        left, hint = (remote.left, remote.hint) if remote is not None else (f"nothing was started on {name}", "")
        raise Cancelled(f"stopped by {number.name}: {left}", hint=hint, exit_code=128 + number) from None


@contextlib.contextmanager
def checked_answers(name: str) -> Iterator[None]:
    """Within the block an answer that we stumble over is a RemoteError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"what it answers cannot be used: {type(error).__name__}: {one_line(error)[:200]}"
        raise RemoteError(what, where=name) from error


def load_command(arguments: argparse.Namespace) -> Any:
    """What is behind a command's name: a `Command`, or a function of the arguments."""
    module, _, function = arguments.command.partition(":")
    return getattr(importlib.import_module(f"launcher.cli.{module}"), function)


class ReceivedSignals:
    """Ctrl-C and SIGTERM of those who follow something: the numbers that came, and what has `begun` and is `over`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.came: list[int] = []
        self.asked, self.begun, self.over, self.tell = StopEvent(), StopEvent(), False, tell


@contextlib.contextmanager
def cancel_on_signal(
    remote: RemoteCommand, what: str, words: str, cancel: Mapping[str, Any]
) -> Iterator[ReceivedSignals]:
    """Within the block the first Ctrl-C or SIGTERM has the command ``cancel`` asked there, once that has begun which it
    cancels; its end is followed meanwhile. A second one leaves it to itself, as a terminal does that is closed."""
    signals = ReceivedSignals(lambda text: print_line(text, sys.stderr))

    def handle(number: int, frame: FrameType | None) -> None:
        signals.came.append(number)
        signals.asked.set()
        if len(signals.came) > 1:
            raise EndedBySignal(signals.came[0])

    def ask() -> None:
        signals.asked.wait()
        signals.begun.wait()
        if signals.over:
            return
        does = "stopping the driver of" if cancel.get("verb") == "stop" else "cancelling"
        signals.tell(f"{does} {what} on {remote.name}; once more leaves it to itself")
        asked = argparse.Namespace(**{**vars(remote.arguments), **cancel})
        try:
            with checked_answers(remote.name):
                for told in remote.ask(**cancel).value(command := load_command(asked)) or ():
                    for line in (*command.show(told, Terminal()), *command.stderr_lines(told)):
                        signals.tell(line)
        except LauncherError as error:
            if not signals.over:
                signals.tell(f"launcher: {error}")

    asking = threading.Thread(target=ask, daemon=True, name="cancelling")
    asking.start()
    with signal_handlers(handle, [signal.SIGINT, signal.SIGTERM]):
        remote.left, remote.hint = f"{what} goes on on {remote.name}", f"launcher {words}"
        try:
            yield signals
            if signals.came and signals.begun.is_set():
                asking.join()
            remote.left, remote.hint = "all was done", ""
        finally:
            signals.over = True
            signals.asked.set()
            signals.begun.set()


def show(remote: RemoteCommand, **changes: Any) -> int:
    """Have the command answered there, and show the answer; its exit code."""
    arguments = argparse.Namespace(**{**vars(remote.arguments), **changes})
    command, answer = load_command(arguments), remote.ask(**changes)
    if not isinstance(command, Command):
        for piece in answer.text():
            sys.stdout.write(piece)
            sys.stdout.flush()
        return answer.code
    found = answer.value(command)
    code = 0 if found is None else show_answer(command, found, arguments, remote.ask_driver)
    return answer.code or code


def _needs_files(arguments: argparse.Namespace) -> bool:
    if arguments.command.partition(":")[0] in _BY_RECORDS:
        return False
    named = any(_named(arguments, name) for name in (*_PLACES, "workspace", "matrix"))
    return named or hasattr(arguments, "key") or arguments.command == "sweep_asking:add"


def local_files(arguments: argparse.Namespace, workspace: Path) -> dict[str, Path | bytes]:
    """The files here that a command there needs: their names in the bundle → where they are. With a workspace goes
    the commit at which it stands, as a checkout's own file has it: records say it."""
    files: dict[str, Path | bytes] = {name: Path(place) for name in _PLACES if (place := _named(arguments, name))}
    given = arguments.workspace or os.environ.get("GITHUB_WORKSPACE")
    if given or (workspace / "configs").is_dir() or (workspace / "runners").is_dir():
        files |= {f"workspace/{name}": workspace / name for name in _OF_WORKSPACE if (workspace / name).is_dir()}
        if commit := head_commit(workspace):
            files["workspace/.git/HEAD"] = f"{commit}\n".encode()
    return {**files, **_matrices(arguments)}


def _named(arguments: argparse.Namespace, name: str) -> str | None:
    return getattr(arguments, name, None) or os.environ.get(f"LAUNCHER_{name.upper()}")


def _matrices(arguments: argparse.Namespace) -> dict[str, Path]:
    paths = [Path(path) for path in getattr(arguments, "matrix", None) or ()]
    return {f"matrix/{number}/{path.name}": path for number, path in enumerate(paths)}
