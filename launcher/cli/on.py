"""``--on NAME``: runs a command on a login node, and shows its answer here.

The values that come back are shown by the same functions as local ones. Files that the command needs are sent once, by
their content. What outlives a connection (`run`, `sweep start`, both `resume`) is driven by a process there: this one
starts and follows it, and a lost connection ends nothing (`on_driving`).
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
from launcher.cli.arguments import load_command
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

MAX_VALUE = 256 << 20
"""Most characters of one value, or of one line that a command prints."""
MAX_DRIVER_OUTPUT = 1 << 20
"""Most characters that the start of a driver prints."""

_DRIVEN = {
    "running:run": "run",
    "running:resume": "resume",
    "sweeping:start": "sweep_start",
    "sweeping:resume": "sweep_resume",
}
"""Commands that start a driver on the login node, each with its function of `on_driving`."""

_LOCAL_MODULES = ("helping", "remote", "detached", "on")
"""Modules of commands about this machine; they ignore LAUNCHER_ON."""

_NOT_SUPPORTED = {
    "ci:ci": "it is a step of a workflow, on its own runner",
    "workflow:shadow": "it is a step of a workflow, on its own runner",
    "running:adopt": "log in there, and adopt the job there; then follow it with --on",
    "report:report": "bring the runs (launcher remote get NAME RUN|SWEEP), and report them here",
    "runner_doctor:new": "log in there: it writes a file",
}

_RECORDS_ONLY = ("status", "results", "sweep_status")
"""Modules of commands that read nothing but the records of runs and sweeps: no files are sent for them."""

_PATH_FLAGS = ("runners", "recipes", "srt_slurm")
_WORKSPACE_DIRECTORIES = ("configs", "runners", "benchmarks", "utils")
"""What plans and jobs read of a workspace; benchmark scripts call those of ``utils``."""


class RemoteCommand:
    """A command line, and the session on the login node that runs it. ``name`` is what the user calls the node."""

    def __init__(self, node: LoginNode, session: Session, arguments: argparse.Namespace) -> None:
        self.node, self.session, self.name = node, session, node.name
        self.arguments = arguments
        self.passed = set(SECRETS) if arguments.command in (*_DRIVEN, "model:stage") else set()
        """Names of variables here that the remote command gets. The message that starts it has their values."""
        self.paths: dict[str, Any] = dict.fromkeys((*_PATH_FLAGS, "workspace"))
        """The values of path flags on the login node; None until `send_files` has set them."""
        self.interrupted, self.hint = f"nothing was started on {node.name}", ""
        """What to tell the user when a command of `_DRIVEN` is interrupted now, and the hint for it."""

    def ask(self, log: Callable[[str], None] | None = None, **changes: Any) -> _RemoteAnswer:
        """Start the command with these arguments changed. ``log`` takes its standard error (default: print it)."""
        own = {key: value for key, value in vars(self.arguments).items() if key not in ("on", "ssh", "accept_new")}
        secrets = {key: value for key in self.passed if (value := os.environ.get(key))}
        own["typed"] = CommandRewriter(self.arguments).words
        stream = self.session.stream(
            "ask", arguments={**own, **self.paths, **changes}, argv=sys.argv[1:], secrets=secrets
        )
        return _RemoteAnswer(stream, log or _print_stderr)

    def ask_driver(self, sweep: str, verb: str) -> None:
        """Ask the driver of a sweep there to pause, go on, drain, stop or cancel; the next overview shows it."""
        changes = {"command": "sweep_asking:ask", "name": sweep, "verb": verb, "of_runner": None, "json": False}
        for _ in self.ask(lambda text: None, **changes).text():
            pass

    def send_files(self) -> bundle.Bundle:
        """Send the files from which plans are made; for a driver, also note which variables its jobs get."""
        if self.arguments.command in _DRIVEN:
            for file in self.node.project.fleet.readable():
                self.passed |= set(file.runner.pass_environment)
        files = bundle.pack(local_files(self.arguments, self.node.project.workspace))
        self.paths = self.paths_in(bundle.send_bundle(self.session, files))
        return files

    def paths_in(self, directory: str) -> dict[str, Any]:
        """The values of path flags, for a bundle that is unpacked in ``directory``."""
        local = {name: _path_argument(self.arguments, name) for name in _PATH_FLAGS}
        flags: dict[str, Any] = {name: f"{directory}/{name}" if path else None for name, path in local.items()}
        if matrices := _matrices(self.arguments):
            flags["matrix"] = [f"{directory}/{name}" for name in matrices]
        return {**flags, "workspace": f"{directory}/workspace"}


class _RemoteAnswer:
    """What a remote command answers: text, or values by lines. ``code`` is its exit code, once all has been read."""

    def __init__(self, stream: Iterator[Any], log: Callable[[str], None]) -> None:
        self._stream, self._log, self._logged = stream, log, 0
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
                self._logged += len(text := str(event.get("said", "")))
                if self._logged > MAX_VALUE:
                    raise RemoteError(f"the command printed more than {MAX_VALUE >> 20} MiB on standard error")
                self._log(text)
            while isinstance(event, bytes) and event:
                try:
                    yield decoder.decode(unpacked.decompress(event, 1 << 20))
                except zlib.error as error:
                    raise RemoteError("the output of the command cannot be unpacked") from error
                event = unpacked.unconsumed_tail

    def whole(self) -> str:
        """Standard output of a command that prints little. Raises RemoteError for more than MAX_DRIVER_OUTPUT."""
        output = ""
        for piece in self.text():
            output += piece
            if len(output) > MAX_DRIVER_OUTPUT:
                raise RemoteError(f"the start of a driver printed more than {MAX_DRIVER_OUTPUT >> 10} KiB")
        return output

    def lines(self) -> Iterator[str]:
        """Standard output by lines. Raises RemoteError for a line of more than MAX_VALUE."""
        parts, size = list[str](), 0
        for piece in self.text():
            first, *rest = piece.split("\n")
            parts.append(first)
            size += len(first)
            if rest:
                yield "".join(parts)
                yield from rest[:-1]
                parts, size = [rest[-1]], len(rest[-1])
            if size > MAX_VALUE:
                raise RemoteError(f"the command printed a line of more than {MAX_VALUE >> 20} MiB")
        if size:
            yield "".join(parts)

    def value(self, command: Command) -> Any:
        """The value of a command, or an iterator for several; None when the command ended with an error."""
        import msgspec

        lines = self.lines()
        head = next(lines, None)

        def values() -> Iterator[Any]:
            for line in lines:
                try:
                    yield msgspec.json.decode(line, type=prepare_type(command.value_type))
                except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
                    raise RemoteError(f"the answer has another type than expected: {one_line(error)[:500]}") from error

        if head == "values":
            return values()
        value = next(values(), None) if head == "value" else None
        for _ in lines:
            raise RemoteError("the answer has more than one value")
        return value


def _print_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def login_node_name(arguments: argparse.Namespace) -> str | None:
    """The login node on which a command is to run, if any. Raises ConfigError for a command that cannot."""
    flag = getattr(arguments, "on", None)
    name = os.environ.get("LAUNCHER_ON") if flag is None else flag
    if not name:
        return None
    if arguments.command.partition(":")[0] in _LOCAL_MODULES:
        if flag is None:
            return None
        raise ConfigError("this command is about this machine", where="--on", hint="leave --on out")
    hint = _NOT_SUPPORTED.get(arguments.command)
    if hint is None and getattr(arguments, "from_env", False):
        hint = "--from-env is about a job of GitHub on this machine"
    if hint is None and arguments.command == "results:results" and arguments.names[:1] == ["aggregate"]:
        hint = _NOT_SUPPORTED["report:report"]
    if hint is not None:
        raise ConfigError("this is not done on a login node from here", where=f"--on {name}", hint=hint)
    return str(name)


def run_on_node(arguments: argparse.Namespace, name: str) -> int:
    """Run the command on the login node ``name``, and return its exit code. Raises LauncherError."""
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
    except (KeyboardInterrupt, EndedBySignal) as end:
        if arguments.command not in _DRIVEN:
            raise
        number = signal.Signals(end.number if isinstance(end, EndedBySignal) else signal.SIGINT)
        text, hint = f"nothing was started on {name}", ""
        if remote is not None:
            text, hint = remote.interrupted, remote.hint
        raise Cancelled(f"stopped by {number.name}: {text}", hint=hint, exit_code=128 + number) from None


@contextlib.contextmanager
def checked_answers(name: str) -> Iterator[None]:
    """Within the block, an answer that causes an error of Python is a RemoteError, and each RemoteError has a place."""
    try:
        yield
    except RemoteError as error:
        error.where = error.where or name
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"the answer cannot be used: {type(error).__name__}: {one_line(error)[:200]}"
        raise RemoteError(message, where=name) from error


class ReceivedSignals:
    """The signals that came while a driver is followed (``numbers``); whether it was ``started``, and whether that is
    ``over``."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.numbers: list[int] = []
        self.cancel_requested, self.started, self.over, self.log = StopEvent(), StopEvent(), False, log


@contextlib.contextmanager
def cancel_on_signal(
    remote: RemoteCommand, label: str, next_command: str, cancel: Mapping[str, Any]
) -> Iterator[ReceivedSignals]:
    """Within the block, the first Ctrl-C or SIGTERM sends the command ``cancel``, as soon as there is something to
    cancel; its end is still followed. A second signal ends this process only, as closing the terminal does."""
    signals = ReceivedSignals(lambda text: print_line(text, sys.stderr))

    def handle(number: int, frame: FrameType | None) -> None:
        signals.numbers.append(number)
        signals.cancel_requested.set()
        if len(signals.numbers) > 1:
            raise EndedBySignal(signals.numbers[0])

    def send_cancel() -> None:
        signals.cancel_requested.wait()
        signals.started.wait()
        if signals.over:
            return
        action = "stopping the driver of" if cancel.get("verb") == "stop" else "cancelling"
        signals.log(f"{action} {label} on {remote.name}; once more leaves it to itself")
        command = load_command(cancel["command"])
        try:
            with checked_answers(remote.name):
                for message in remote.ask(**cancel).value(command) or ():
                    for line in (*command.show(message, Terminal()), *command.stderr_lines(message)):
                        signals.log(line)
        except LauncherError as error:
            if not signals.over:
                signals.log(f"launcher: {error}")

    thread = threading.Thread(target=send_cancel, daemon=True, name="cancelling")
    thread.start()
    with signal_handlers(handle, [signal.SIGINT, signal.SIGTERM]):
        remote.interrupted, remote.hint = f"{label} goes on on {remote.name}", f"launcher {next_command}"
        try:
            yield signals
            if signals.numbers and signals.started.is_set():
                thread.join()
            remote.interrupted, remote.hint = "all was done", ""
        finally:
            signals.over = True
            signals.cancel_requested.set()
            signals.started.set()


def show(remote: RemoteCommand, **changes: Any) -> int:
    """Run the command with these arguments changed, and show its answer. Returns its exit code."""
    arguments = argparse.Namespace(**{**vars(remote.arguments), **changes})
    command, answer = load_command(arguments.command), remote.ask(**changes)
    if not isinstance(command, Command):
        for piece in answer.text():
            sys.stdout.write(piece)
            sys.stdout.flush()
        return answer.code
    value = answer.value(command)
    code = 0 if value is None else show_answer(command, value, arguments, remote.ask_driver)
    return answer.code or code


def _needs_files(arguments: argparse.Namespace) -> bool:
    if arguments.command.partition(":")[0] in _RECORDS_ONLY:
        return False
    has_paths = any(_path_argument(arguments, name) for name in (*_PATH_FLAGS, "workspace", "matrix"))
    return has_paths or hasattr(arguments, "key") or arguments.command == "sweep_asking:add"


def local_files(arguments: argparse.Namespace, workspace: Path) -> dict[str, Path | bytes]:
    """The local files that a remote command needs: their names in the bundle → their paths. With a workspace goes its
    commit, in the file that a checkout has for it, since records name the commit."""
    files: dict[str, Path | bytes] = {}
    for name in _PATH_FLAGS:
        if path := _path_argument(arguments, name):
            files[name] = Path(path)
    given = arguments.workspace or os.environ.get("GITHUB_WORKSPACE")
    if given or (workspace / "configs").is_dir() or (workspace / "runners").is_dir():
        files |= {
            f"workspace/{name}": workspace / name for name in _WORKSPACE_DIRECTORIES if (workspace / name).is_dir()
        }
        if commit := head_commit(workspace):
            files["workspace/.git/HEAD"] = f"{commit}\n".encode()
    return {**files, **_matrices(arguments)}


def _path_argument(arguments: argparse.Namespace, name: str) -> str | None:
    return getattr(arguments, name, None) or os.environ.get(f"LAUNCHER_{name.upper()}")


def _matrices(arguments: argparse.Namespace) -> dict[str, Path]:
    paths = [Path(path) for path in getattr(arguments, "matrix", None) or ()]
    return {f"matrix/{number}/{path.name}": path for number, path in enumerate(paths)}
