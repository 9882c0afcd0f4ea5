"""`launcher remote`: connections to login nodes, the launchers installed there, and the agent at the far end."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.cli.command import Command, Log, Message, show_message
from launcher.core.errors import ConfigError, ErrorInfo, RemoteError
from launcher.core.lines import Terminal, count_of, table
from launcher.core.terminal import one_line, print_line, unguarded
from launcher.remote.agent import Agent, HostInfo, Tidied

if TYPE_CHECKING:
    from launcher.project import Project
    from launcher.remote.install import Installer
    from launcher.remote.opener import Opener, Pipe
    from launcher.remote.session import Session
    from launcher.runner.cluster_schema import Login

_SKEW = 60.0
"""Seconds by which a login node's clock may differ from ours without a warning."""


def agent(arguments: argparse.Namespace) -> int:
    """Serve the far end: messages on standard input and output until the connection ends."""
    os.umask(0o077)
    out = unguarded(sys.stdout).buffer
    # Nothing else may write among the messages.
    sys.stdout = sys.stderr
    return Agent(sys.stdin.buffer, out).serve()


@dataclass(frozen=True)
class LoginLine:
    """A runner whose file names a login node, and the directory of launchers there."""

    runner: str
    host: str
    directory: str


def show_list(value: Sequence[LoginLine], terminal: Terminal) -> Iterator[str]:
    if value:
        rows = [(line.runner, line.host, line.directory) for line in value]
        yield from table(("runner", "login node", "directory"), rows, terminal.width)


_NONE = "no runner file names a login node: `login: {host: NAME}`; hosts of ssh_config need none"


@partial(Command, list[LoginLine], show=show_list, stderr_lines=lambda value: [] if value else [_NONE])
def listing(arguments: argparse.Namespace, log: Log) -> list[LoginLine]:
    """List the runners whose files name a login node."""
    from launcher.cli.common import open_project

    runners = [file.runner for file in open_project(arguments).fleet.readable()]
    return [LoginLine(r.name, r.login.host, r.login.directory) for r in runners if r.login is not None]


@partial(Command, Message, show=show_message)
def install(arguments: argparse.Namespace, log: Log) -> Message:
    """Install this version on a login node, unless it is there."""
    from launcher.core.process import run
    from launcher.remote.install import pack_wheels, version_name, wheels_for

    with connect(arguments, arguments.name) as node:
        wheels = Path(arguments.wheels) if arguments.wheels else None
        description = node.installer.describe_node()
        files = wheels_for(description, cache=node.project.state / "wheels", run=run, wheels=wheels)
        node.content_name_finder.join()
        name = version_name(files)
        new = name not in description.versions and node.installer.install(name, pack_wheels(files))
        node.remember(name)
    return Message(f"{arguments.name}: launcher {name} {'is installed' if new else 'was there'}")


@dataclass(frozen=True)
class NodeView:
    """A login node: its C library, machine, Python, free bytes, the paths of its programs, the version of the launcher
    that answers there ("" for none), and by how many seconds its clock is ahead of ours."""

    name: str
    libc: str
    machine: str
    python: str
    free: int
    programs: dict[str, str | None] = field(default_factory=dict)
    version: str = ""
    ahead: float = 0.0
    wrong: tuple[ErrorInfo, ...] = ()


def show_node(value: NodeView, terminal: Terminal) -> Iterator[str]:
    yield f"{value.name}: {value.libc} {value.machine}, Python {value.python}, {value.free >> 30} GiB free"
    for program, path in value.programs.items():
        yield f"  {program:8} {path or 'not on PATH'}"
    if value.version:
        yield f"  launcher {value.version} answers; its clock is {value.ahead:+.1f} s from ours"


@partial(Command, NodeView, show=show_node)
def doctor(arguments: argparse.Namespace, log: Log) -> NodeView:
    """Describe a login node, and check that this launcher runs there."""
    with connect(arguments, arguments.name) as node:
        description = node.installer.describe_node()
        python, libc = ".".join(map(str, description.python)), " ".join(description.libc)
        view = NodeView(arguments.name, libc, description.machine, python, description.free)
        try:
            began = time.time()
            with node.session() as session:
                info = session.request("look", HostInfo)
                ahead = session.greeting.time - (began + time.time()) / 2
        except RemoteError as error:
            return replace(view, wrong=(ErrorInfo.from_error(error),))
    programs = dict(sorted(info.programs.items()))
    skewed = RemoteError(f"its clock is {ahead:+.0f} s from ours", where=arguments.name)
    wrong = (ErrorInfo.from_error(skewed),) if abs(ahead) > _SKEW else ()
    return replace(view, programs=programs, version=info.version, ahead=ahead, wrong=wrong)


def show_tidied(value: Tidied, terminal: Terminal) -> Iterator[str]:
    verb = "removed" if value.applied else "would remove"
    yield from (f"{verb} {one_line(name)}" for name in value.versions)
    yield from (f"{verb} files that were sent: {one_line(name)[:12]}" for name in value.bundles)
    states = ", ".join(map(one_line, value.states))
    yield f"{count_of(len(value.kept), 'version is', 'versions are')} kept; runs and sweeps of {states} were asked"


@partial(Command, Tidied, show=show_tidied)
def gc(arguments: argparse.Namespace, log: Log) -> Tidied:
    """Remove unused versions and files of a login node; a dry run unless ``--apply``."""
    with connect(arguments, arguments.name) as node, node.session() as session:
        return session.request("tidy", Tidied, directory=node.installer.directory, apply=bool(arguments.apply))


@partial(Command, Message, show=show_message)
def get(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Fetch runs and sweeps of a login node, with the runs of these, into a state directory here."""
    from launcher.remote.fetching import fetch
    from launcher.sweep.ledger import Ledger
    from launcher.sweep.state import State

    with connect(arguments, arguments.name) as node, node.session() as session:
        directory = Path(arguments.output) if arguments.output else node.directory
        for name in arguments.names:
            path = fetch(session, name, directory)
            if path.parent.name == "sweeps":
                ledger = Ledger.load(directory / "sweeps", name)
                for attempt in State(ledger.sweep, ledger.events()).by_run.values():
                    fetch(session, attempt.run, directory)
            yield Message(str(path), name)


@dataclass(frozen=True)
class LoginNode:
    """A login node with a connection. ``directory`` has our files about it on this machine."""

    name: str
    project: Project
    opener: Opener
    installer: Installer
    directory: Path
    content_name_finder: Thread
    """Computes the name of our own version (`content_name`, which is cached) while the connection is made."""

    @property
    def _version_file(self) -> Path:
        return self.directory / "launcher"

    def remember(self, version: str) -> None:
        """Note the version that is installed there, so that the next command need not ask."""
        from launcher.core.publish import make_private, write_text

        make_private(self.directory)
        write_text(self._version_file, version)

    def session(self) -> Session:
        """A session with a launcher there that has the same files as this one. Raises RemoteError."""
        from launcher.remote.install import content_name

        self.content_name_finder.join()
        prefix = f"{content_name()}-"
        if not self.installer.open and self._version_file.is_file():
            version = self._version_file.read_text()
            try:
                if version.startswith(prefix):
                    return self._open_session(self.opener.open(self.installer.command(version)))
            except RemoteError as error:
                if error.hint is None or "remote install" not in error.hint:
                    raise
        versions = self.installer.describe_node().versions
        matches = [name for name in versions if name.startswith(prefix)]
        if not matches:
            problem = f"launcher {__version__} is not installed there"
            if any(name.startswith(f"{__version__}-") for name in versions):
                problem = f"launcher {__version__} there is of other files than this one"
            elif versions:
                problem += f", but {', '.join(one_line(name) for name in versions[-3:])}"
            raise RemoteError(problem, where=self.name, hint=f"launcher remote install {self.name}")
        session = self._open_session(self.installer.start_agent(matches[-1]))
        self.remember(matches[-1])
        return session

    def _open_session(self, pipe: Pipe) -> Session:
        from launcher.remote.session import Session

        session = Session(pipe, self.name)
        if (version := session.greeting.version) != __version__:
            session.close()
            problem = f"launcher {one_line(version)[:80]} answers there, and this one is {__version__}"
            raise RemoteError(problem, where=self.name, hint=f"launcher remote install {self.name}")
        return session


@contextlib.contextmanager
def connect(arguments: argparse.Namespace, name: str) -> Iterator[LoginNode]:
    """A connection to the login node that ``name`` means: a runner with a login node, or a host of ssh_config. Raises
    ConfigError, RemoteError."""
    from launcher.cli.common import open_project
    from launcher.remote.install import Installer, content_name
    from launcher.runner.cluster_schema import Login

    project = open_project(arguments)
    login: Login | None = Login(host=name)
    if name in project.fleet.paths:
        login = project.fleet.get(name).runner.login
    if login is None:
        hint = "add `login: {host: NAME}` to it, or name a host of ssh_config"
        raise ConfigError("its runner file names no login node", where=name, hint=hint)
    content_name_finder = Thread(target=content_name, daemon=True)
    content_name_finder.start()
    opener = _make_opener(arguments, login)
    try:
        installer = Installer(opener, name, directory=login.directory, python=login.python)
        directory = project.state / "remote" / re.sub(r"[^\w.@-]", "_", name)
        yield LoginNode(name, project, opener, installer, directory, content_name_finder)
    finally:
        opener.close()


def _make_opener(arguments: argparse.Namespace, login: Login) -> Opener:
    import shlex

    from launcher.core.process import run
    from launcher.remote.destination import Destination, resolve

    command = arguments.ssh or os.environ.get("LAUNCHER_SSH") or ("ssh" if login.ssh == "openssh" else None)
    if command is not None:
        from launcher.remote.by_openssh import OpenSSHOpener

        return OpenSSHOpener(Destination(login.host, (), tuple(shlex.split(command))))
    from launcher.remote.by_paramiko import ParamikoOpener

    destination = resolve(login.host, ssh=("ssh",), run=run, home=Path.home())
    report = partial(print_line, file=sys.stderr)
    return ParamikoOpener(destination, _ask, accept_new=bool(arguments.accept_new), report=report)


def _ask(text: str, *, echo: bool) -> str:
    """Ask the user at the terminal; the answer is not kept."""
    if not sys.stdin.isatty():
        hint = "start it in a terminal, or have the key in an agent, or use a ControlMaster: --ssh ssh"
        raise RemoteError(f"nobody can answer {one_line(text)!r}", hint=hint)
    return input(text) if echo else getpass.getpass(text)
