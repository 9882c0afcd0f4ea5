"""Launcher processes without a terminal: a driver, which runs in its own session and writes to a file; and a command
that another machine asked for, which ends with the connection.

A driver reads its command line and its secrets from a pipe, so that neither a process list nor its initial environment
shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.command import log_to_stderr
from launcher.core.errors import LauncherError
from launcher.core.publish import private_opener, write_json
from launcher.core.redact import names_a_secret
from launcher.core.state import state_directory
from launcher.core.stop import defer_signals
from launcher.core.terminal import print_line, unguarded
from launcher.remote.commands import STARTED, own_argv

if TYPE_CHECKING:
    from launcher.cli.command import Command

_TERM_TIMEOUT = 10.0
"""Seconds that a command has to end after its connection was closed."""
START_TIMEOUT = 20.0
"""Seconds in which a driver is expected to begin."""
_DIRECTORY_FLAGS = ("workspace", "srt_slurm", "runners", "recipes", "slurm_backend")


@dataclass(frozen=True)
class Driver:
    """A driver process that was started, its log, and the size of that log before."""

    child: subprocess.Popen[bytes]
    log: Path
    log_start: int

    def wait_until_started(self, label: str, has_begun: Callable[[int], bool], timeout: float = START_TIMEOUT) -> None:
        """Wait until ``has_begun(pid)``, from when on the driver takes requests. A timeout is logged.

        Raises LauncherError when the driver ends at once. Ctrl-C is handled afterwards, because the driver goes on.
        """
        deadline, ended = time.monotonic() + timeout, False
        with defer_signals():
            while not has_begun(self.child.pid):
                if ended and (code := self.child.returncode):
                    output = self.log.read_bytes()[self.log_start :].decode(errors="replace").strip()
                    error = LauncherError(f"its driver ended at once: {output or code}", where=str(self.log))
                    error.exit_code = code if code > 0 else error.exit_code
                    raise error
                if ended:
                    return
                if time.monotonic() > deadline:
                    log_to_stderr(f"{label}: it has not begun within {timeout:.0f} s")
                    return
                ended = self.child.poll() is not None
                time.sleep(0.0 if ended else 0.1)

    def print_started(self, label: str, next_command: str, arguments: argparse.Namespace) -> None:
        """Print which process drives the run or sweep, where its output is, and which command shows it."""
        from launcher.cli.command import CommandRewriter, json_text
        from launcher.cli.streaming import DriverStarted

        pid, log = self.child.pid, self.log
        if arguments.json:
            print(json_text(DriverStarted(name=label.partition(" ")[2], pid=pid, log=str(log)), indent=0))
            return
        print_line(f"{label}: driven by pid {pid}, whose output is {log}")
        print_line(CommandRewriter(arguments)(f"Next: launcher {next_command}"))


def start_driver(name: str, words: Sequence[str], log: Path, state: Path, arguments: argparse.Namespace) -> Driver:
    """Start ``launcher WORDS`` as the driver of the run or sweep ``name``, with the directories of these ``arguments``.

    Its output goes to ``log``, and its command line to a file beside that. Raises OSError.
    """
    from launcher.remote.tidying import register_state

    flags = {f"--{key.replace('_', '-')}": getattr(arguments, key, None) for key in _DIRECTORY_FLAGS}
    argv = [
        *words,
        "--state",
        str(state),
        *(word for flag, path in flags.items() if path for word in (flag, str(path))),
    ]
    log_start = log.stat().st_size if log.exists() else 0
    # Garbage collection keeps the files that this command line names until the run or sweep has ended.
    write_json(log.parent / STARTED, {"argv": (whole := own_argv(*argv))})
    register_state(state_directory(os.environ), state, whole)
    secrets = {key: value for key, value in os.environ.items() if names_a_secret(key)}
    environment = {key: value for key, value in os.environ.items() if key not in secrets and key != "LAUNCHER_ON"}
    with open(log, "ab", opener=private_opener) as output:
        child = subprocess.Popen(
            own_argv("driver", name),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    assert child.stdin is not None
    with child.stdin:
        child.stdin.write(json.dumps({"argv": argv, "secrets": secrets}).encode())
    return Driver(child, log, log_start)


def driver(arguments: argparse.Namespace) -> int:
    """The driver process: run the command line that it reads from standard input."""
    from launcher.cli import main

    request = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.update(request["secrets"])
    sys.argv[1:] = request["argv"]
    return main(request["argv"])


def command(arguments: argparse.Namespace) -> int:
    """Run a command for another machine, as `launcher.remote.commands` starts it; it ends with the connection."""
    from launcher.cli import run_command

    request = json.loads(sys.stdin.buffer.readline())
    os.environ.update(request["secrets"])
    os.environ.pop("LAUNCHER_ON", None)
    sys.argv[1:] = request["argv"]

    def end_with_connection() -> None:
        while os.read(0, 1024):  # not by sys.stdin: a thread that holds its lock would keep Python from ending
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_TERM_TIMEOUT)
        os._exit(1)

    threading.Thread(target=end_with_connection, daemon=True, name="connection").start()
    return run_command(argparse.Namespace(**request["arguments"]), _send_answer)


def _send_answer(command: Command, arguments: argparse.Namespace) -> int:
    """Print a command's value, or each value as it comes, as a line of JSON for `launcher.cli.on`."""
    from launcher.cli.command import json_text, log_to_stderr

    out = unguarded(sys.stdout)
    answer = command.answer(arguments, log_to_stderr)
    streams = isinstance(answer, Iterator)
    print("values" if streams else "value", file=out)
    for value in answer if streams else (answer,):
        print(json_text(value, indent=0), file=out, flush=True)
    return 0
