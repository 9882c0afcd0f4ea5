"""Launchers that no terminal has started: a driver, in a session of its own, with its output in a file, and how such a
one starts; and a command that somebody asked for from elsewhere, which ends with them.

A driver's command line and its secrets come to it by a pipe: neither a list of processes nor its first environment has
them.
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

_ENDING = 10.0
"""Seconds that a command has to end, once whoever asked for it has gone."""
BEGINS = 20.0
"""Seconds in which a driver is expected to begin."""
_PLACES = ("workspace", "srt_slurm", "runners", "recipes", "slurm_backend")


def print_started(of: str, pid: int, log: Path, words: str, arguments: argparse.Namespace) -> None:
    """Say who drives a run or sweep, where its output is, and which command shows it."""
    from launcher.cli.command import CommandRewriter, json_text
    from launcher.cli.streaming import DriverStarted

    if arguments.json:
        print(json_text(DriverStarted(name=of.partition(" ")[2], pid=pid, log=str(log)), indent=0))
        return
    print_line(f"{of}: driven by pid {pid}, whose output is {log}")
    print_line(CommandRewriter(arguments)(f"Next: launcher {words}"))


@dataclass(frozen=True)
class Driver:
    """A driver that was started, and how long its log was then."""

    child: subprocess.Popen[bytes]
    log: Path
    before: int

    def wait_until_started(self, of: str, begun: Callable[[int], bool], patience: float = BEGINS) -> None:
        """Wait until ``begun`` of its pid: what is asked of it from then on, it hears. Raises LauncherError for one
        that ends at once; of one that takes longer, that is said. Ctrl-C comes after: the driver goes on."""
        until, ended = time.monotonic() + patience, False
        with defer_signals():
            while not begun(self.child.pid):
                if ended and (code := self.child.returncode):
                    said = self.log.read_bytes()[self.before :].decode(errors="replace").strip()
                    error = LauncherError(f"its driver ended at once: {said or code}", where=str(self.log))
                    error.exit_code = code if code > 0 else error.exit_code
                    raise error
                if ended or time.monotonic() > until:
                    if not ended:
                        log_to_stderr(f"{of}: it has not begun within {patience:.0f} s")
                    return
                ended = self.child.poll() is not None
                time.sleep(0.0 if ended else 0.1)


def start_driver(name: str, words: Sequence[str], log: Path, state: Path, arguments: argparse.Namespace) -> Driver:
    """Start ``launcher WORDS`` for the run or sweep ``name``, with its output in ``log``, beside which is written how
    it was started. Raises OSError.

    Where things are is the same for it as for the command with these ``arguments``.
    """
    from launcher.remote.tidying import register_state

    given = {f"--{key.replace('_', '-')}": getattr(arguments, key, None) for key in _PLACES}
    places = [word for flag, value in given.items() if value for word in (flag, str(value))]
    argv = [*words, "--state", str(state), *places]
    before = log.stat().st_size if log.exists() else 0
    # What this driver needs stays as long as its run or sweep has not ended.
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
    return Driver(child, log, before)


def driver(arguments: argparse.Namespace) -> int:
    """Such a launcher: do what its standard input says."""
    from launcher.cli import main

    request = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.update(request["secrets"])
    sys.argv[1:] = request["argv"]
    return main(request["argv"])


def command(arguments: argparse.Namespace) -> int:
    """A command that somebody asked for from elsewhere, as `launcher.remote.commands` starts it; it ends with them."""
    from launcher.cli import run_command

    request = json.loads(sys.stdin.buffer.readline())
    os.environ.update(request["secrets"])
    os.environ.pop("LAUNCHER_ON", None)
    sys.argv[1:] = request["argv"]

    def until_nobody_listens() -> None:
        while os.read(0, 1024):  # by its number: a thread in a buffer's lock would keep Python from ending
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ENDING)
        os._exit(1)

    threading.Thread(target=until_nobody_listens, daemon=True, name="the other side").start()
    return run_command(argparse.Namespace(**request["arguments"]), _send)


def _send(command: Command, arguments: argparse.Namespace) -> int:
    """Give a command's value to the other side, or its values as they come, each in a line of JSON; see `on`."""
    from launcher.cli.command import json_text, log_to_stderr

    out = unguarded(sys.stdout)
    found = command.answer(arguments, log_to_stderr)
    streams = isinstance(found, Iterator)
    print("values" if streams else "value", file=out)
    for value in found if streams else (found,):
        print(json_text(value, indent=0), file=out, flush=True)
    return 0
