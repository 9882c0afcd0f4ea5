"""Login nodes: reaching them, having this launcher there, and the far side of a connection."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.core.errors import ConfigError, RemoteError
from launcher.core.terminal import one_line, say, trusted

if TYPE_CHECKING:
    from launcher.cli.command import Command
    from launcher.project import Project
    from launcher.remote.install import Installer
    from launcher.remote.opener import Opener
    from launcher.runner.cluster_schema import Login

_ENDING = 10.0
"""Seconds that a command has to end, once whoever asked for it has gone."""
_SKEW = 60.0
"""Seconds by which a login node's clock may differ from ours before that is said."""


def agent(arguments: argparse.Namespace) -> int:
    """The far side: messages on standard input and output until the connection ends."""
    from launcher.remote.agent import Agent
    from launcher.remote.methods import METHODS

    os.umask(0o077)
    out = trusted(sys.stdout).buffer
    # Nothing else may write among the messages.
    sys.stdout = sys.stderr
    return Agent(METHODS, sys.stdin.buffer, out).serve()


def command(arguments: argparse.Namespace) -> int:
    """A command that somebody asked for from elsewhere, as `launcher.remote.commands` starts it; it ends with them."""
    from launcher.cli import run_command

    request = json.loads(sys.stdin.buffer.readline())
    os.environ.update(request["secrets"])
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
    from launcher.cli.command import as_text
    from launcher.cli.common import tell

    out = trusted(sys.stdout)
    found = command.answer(arguments, tell)
    streams = isinstance(found, Iterator)
    print("values" if streams else "value", file=out)
    for value in found if streams else (found,):
        print(as_text(value, indent=0), file=out, flush=True)
    return 0


def listing(arguments: argparse.Namespace) -> int:
    """The runners that say where their login node is."""
    from launcher.cli.common import open_project

    runners = [file.runner for file in open_project(arguments).fleet.readable()]
    known = [(runner.name, runner.login) for runner in runners if runner.login is not None]
    for name, login in known:
        say(f"{name:24} {login.host}  {login.directory}")
    if not known:
        print(
            "no runner file names a login node: `login: {host: NAME}`; hosts of ssh_config need none", file=sys.stderr
        )
    return 0


def install(arguments: argparse.Namespace) -> int:
    """This version there, whole; at no cost if it is."""
    from launcher.core.process import run
    from launcher.remote.install import bundle

    project, login = _login(arguments)
    opener = _open(arguments, login)
    try:
        installer = _installer(arguments, login, opener)
        wheels = Path(arguments.wheels) if arguments.wheels else None
        made = bundle(installer.look(), cache=project.state / "wheels", run=run, wheels=wheels)
        new = installer.install(made)
        say(f"{arguments.name}: launcher {made.name} {'is installed' if new else 'was there'}")
        return 0
    finally:
        opener.close()


def doctor(arguments: argparse.Namespace) -> int:
    """What a login node has, and whether this launcher runs there."""
    from launcher.remote.session import Session

    _, login = _login(arguments)
    opener = _open(arguments, login)
    try:
        node = (installer := _installer(arguments, login, opener)).look()
        python = ".".join(map(str, node.python))
        say(f"{arguments.name}: {' '.join(node.libc)} {node.machine}, Python {python}, {node.free >> 30} GiB free")
        ours = [name for name in node.versions if name.startswith(f"{__version__}-")]
        if not ours:
            hint = f"launcher remote install {arguments.name}"
            raise RemoteError(f"launcher {__version__} is not installed there", where=arguments.name, hint=hint)
        began = time.time()
        with Session(opener.open(installer.command(ours[-1])), arguments.name) as session:
            there = session.request("look")
            ahead = float(session.greeting["time"]) - (began + time.time()) / 2
        for program, path in sorted(dict(there["programs"]).items()):
            say(f"  {program:8} {path or 'not on PATH'}")
        say(f"  launcher {ours[-1]} answers; its clock is {ahead:+.1f} s from ours")
        if abs(ahead) > _SKEW:
            raise RemoteError(f"its clock is {ahead:+.0f} s from ours", where=arguments.name)
        return 0
    finally:
        opener.close()


def gc(arguments: argparse.Namespace) -> int:
    """Versions that nobody needs there; a dry run unless ``--apply``."""
    _, login = _login(arguments)
    opener = _open(arguments, login)
    try:
        gone, kept = _installer(arguments, login, opener).collect(keep=2, named=(), apply=arguments.apply)
        for name in gone:
            say(f"{'removed' if arguments.apply else 'would remove'} {name}")
        say(f"{len(kept)} versions are kept")
        return 0
    finally:
        opener.close()


def _login(arguments: argparse.Namespace) -> tuple[Project, Login]:
    """Where NAME is: a runner's ``login``, else a host as ssh knows it."""
    from launcher.cli.common import open_project
    from launcher.runner.cluster_schema import Login

    project = open_project(arguments)
    if arguments.name not in project.fleet.paths:
        return project, Login(host=arguments.name)
    login = project.fleet.get(arguments.name).runner.login
    if login is None:
        hint = "add `login: {host: NAME}` to it, or name a host of ssh_config"
        raise ConfigError("its runner file names no login node", where=arguments.name, hint=hint)
    return project, login


def _open(arguments: argparse.Namespace, login: Login) -> Opener:
    import shlex

    from launcher.core.process import run
    from launcher.remote.destination import Destination, resolve

    chosen = arguments.ssh or ("ssh" if login.ssh == "openssh" else None)
    if chosen is not None:
        from launcher.remote.by_openssh import OpenSSHOpener

        return OpenSSHOpener(Destination(login.host, (), tuple(shlex.split(chosen))))
    from launcher.remote.by_paramiko import ParamikoOpener

    where = resolve(login.host, ssh=("ssh",), run=run, home=Path.home())
    return ParamikoOpener(where, _ask, accept_new=arguments.accept_new, say=lambda text: say(text, sys.stderr))


def _installer(arguments: argparse.Namespace, login: Login, opener: Opener) -> Installer:
    from launcher.remote.install import Installer

    return Installer(opener, arguments.name, directory=login.directory, python=login.python)


def _ask(text: str, *, echo: bool) -> str:
    """Ask at the terminal; nothing of the answer is kept."""
    if not sys.stdin.isatty():
        hint = "start it in a terminal, or have the key in an agent, or use a ControlMaster: --ssh ssh"
        raise RemoteError(f"nobody can answer {one_line(text)!r}", hint=hint)
    return input(text) if echo else getpass.getpass(text)
