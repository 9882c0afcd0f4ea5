"""The command line: arguments in, text out. Decisions and effects are in other rooms.

Open commands.txt first: it has every command with its flags and the ``module:function`` that runs it. `arguments` makes
parsers of it, `parsers` lays out help, and `helping` has the manual page and completion for shells. A command is a
function of the arguments, or a `Command` (`command`): its ``answer`` returns a typed value and prints nothing, its
``show`` makes lines of that value and a terminal's width, and the exit code follows from the value. ``--json``,
`launcher schema` and ``--on NAME`` (`on`: answered on a login node, shown here) need nothing else of a command;
`on_driving` has runs and sweeps on login nodes, `remote` these nodes, `detached` processes without a terminal.

There is a module for each group of commands (`running` drives runs, `ci` is a workflow's step, `ending` cancels runs
and cleans up, `status` shows records and logs); `common` has what they share. While runs go on
`console` shows it, with `run_status` for its texts; `output` is standard output then, `streaming` has the
forms of its lines of JSON, and `progress` shows copies. `results` and `importing` (of images) are one command each,
`checking` and `planning` show decisions. Only argparse is imported here, in `arguments` and `parsers`, so that
``launcher --help`` answers at once; a command's own module is imported when that command runs.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO, cast

from launcher.cli.arguments import load_command, parser

if TYPE_CHECKING:
    from launcher.cli.command import Command
    from launcher.core.errors import LauncherError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code (docs/design.md, "Errors")."""
    # Workflows set PYTHONPYCACHEPREFIX for the benchmark's Python. Our own bytecode is not there, and would be compiled
    # again at every start, which takes 0.4 s.
    sys.pycache_prefix = None
    # Nothing that a start creates is garbage; collecting it again and again took some hundredths of `plan`.
    gc.set_threshold(50_000, 20, 50)
    with _guarded(), warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            try:
                return _main(argv)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:  # before the command, or after it
            return 130
        except BrokenPipeError:  # `launcher plan | head`, a terminal that was closed: no error of ours
            _leave_output()
            return 141
        except OSError as error:  # the output has not been written: a full disk
            _leave_output()
            print(f"launcher: standard output: {error.strerror}", file=sys.stderr)
            return 1


def _main(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.color in ("always", "never"):  # for the programs that we start, too
        os.environ.update({"NO_COLOR": ""} if arguments.color == "always" else {"NO_COLOR": "1"})
        os.environ["FORCE_COLOR"] = "1" if arguments.color == "always" else ""
    from launcher.core.stop import EndedBySignal, ended_by_signals

    try:
        with ended_by_signals():
            return run_command(arguments)
    except (KeyboardInterrupt, EndedBySignal) as error:
        ended = error if isinstance(error, EndedBySignal) else EndedBySignal(signal.SIGINT)
        if ended is error or hasattr(arguments, "detach"):  # a command that only reads ends by Ctrl-C without a message
            print(f"launcher: cancelled: {ended}", file=sys.stderr)
        return 128 + ended.number


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Within the block, both streams exist, and printed text can neither give commands to a terminal or to GitHub's
    runner nor fail for a character that the terminal does not have."""
    from launcher.core.terminal import Guarded, encoding_substitute

    if sys.stdout is None or sys.stderr is None:  # `launcher >&-`: no file that we open may get their numbers
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
        sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    before = sys.stdout, sys.stderr
    github = os.environ.get("GITHUB_ACTIONS") == "true"
    codecs.register_error("launcher", encoding_substitute)
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="launcher")
    sys.stdout, sys.stderr = (cast(TextIO, Guarded(stream, github=github)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours or of a library in a line."""
    kind = "deprecated" if category.__name__ == "DeprecatedName" else category.__name__
    print(f"launcher: {kind}: {message}", file=sys.stderr)


def _leave_output() -> None:
    """Keep Python from printing an error at its exit about output that cannot be written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def run_command(
    arguments: argparse.Namespace, carry_out: Callable[[Command, argparse.Namespace], int] | None = None
) -> int:
    """Run the command that the arguments name, and return its exit code. ``carry_out`` runs a `Command` (default: it is
    answered and shown)."""
    from launcher.core.errors import LauncherError, as_error

    try:
        if carry_out is None and (arguments.on or os.environ.get("LAUNCHER_ON")):
            from launcher.cli import on

            if (name := on.login_node_name(arguments)) is not None:
                arguments.on = name  # for the commands that are printed
                return on.run_on_node(arguments, name)
        command = load_command(arguments.command)
        if callable(command):
            return int(command(arguments) or 0)
        if carry_out is not None:
            return carry_out(command, arguments)
        from launcher.cli.command import log_to_stderr, show_answer

        return show_answer(command, command.answer(arguments, log_to_stderr), arguments)
    except LauncherError as error:
        return _print_error(error, arguments)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a directory that is not ours
        return _print_error(as_error(error), arguments)


def _print_error(error: LauncherError, arguments: argparse.Namespace) -> int:
    """Print an error (what, where, what next), in GitHub as an annotation too, and return its exit code."""
    from launcher.cli.command import CommandRewriter, annotate
    from launcher.core.errors import ErrorInfo
    from launcher.core.redact import redact

    print(f"launcher: {error.layer}: {CommandRewriter(arguments)(redact(str(error), os.environ))}", file=sys.stderr)
    if not getattr(arguments, "annotated", False):  # GitHub reads both streams
        annotate([ErrorInfo.from_error(error)], sys.stderr if getattr(arguments, "json", False) else sys.stdout)
    return error.exit_code
