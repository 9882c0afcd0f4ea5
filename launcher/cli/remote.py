"""Login nodes: reaching them, having this launcher there, and the far side of a connection."""

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
"""Seconds by which a login node's clock may differ from ours before that is said."""


def agent(arguments: argparse.Namespace) -> int:
    """The far side: messages on standard input and output until the connection ends."""
    os.umask(0o077)
    out = unguarded(sys.stdout).buffer
    # Nothing else may write among the messages.
    sys.stdout = sys.stderr
    return Agent(sys.stdin.buffer, out).serve()


@dataclass(frozen=True)
class LoginLine:
    """A runner that says where its login node is, and where this launcher is kept there."""

    runner: str
    host: str
    directory: str


def listed(arguments: argparse.Namespace, log: Log) -> list[LoginLine]:
    """The runners that say where their login node is."""
    from launcher.cli.common import open_project

    runners = [file.runner for file in open_project(arguments).fleet.readable()]
    return [LoginLine(one.name, one.login.host, one.login.directory) for one in runners if one.login is not None]


def show_list(value: Sequence[LoginLine], terminal: Terminal) -> Iterator[str]:
    if value:
        rows = [(one.runner, one.host, one.directory) for one in value]
        yield from table(("runner", "login node", "directory"), rows, terminal.width)


_NONE = "no runner file names a login node: `login: {host: NAME}`; hosts of ssh_config need none"

listing = Command(list[LoginLine], listed, show_list, stderr_lines=lambda value: [] if value else [_NONE])


def installed(arguments: argparse.Namespace, log: Log) -> Message:
    """This version there, whole; at no cost if it is."""
    from launcher.core.process import run
    from launcher.remote.install import pack_wheels, version_name, wheels_for

    with connected(arguments, arguments.name) as node:
        wheels = Path(arguments.wheels) if arguments.wheels else None
        seen = node.installer.describe_node()
        files = wheels_for(seen, cache=node.project.state / "wheels", run=run, wheels=wheels)
        node.naming.join()
        name = version_name(files)
        new = name not in seen.versions and node.installer.install(name, pack_wheels(files))
        node.remember(name)
    return Message(f"{arguments.name}: launcher {name} {'is installed' if new else 'was there'}")


install = Command(Message, installed, show_message)


@dataclass(frozen=True)
class NodeView:
    """A login node: its C library, machine, Python, free bytes, where its programs are, the launcher that answers
    there ("" for none), and by how many seconds its clock is ahead of ours."""

    name: str
    libc: str
    machine: str
    python: str
    free: int
    programs: dict[str, str | None] = field(default_factory=dict)
    version: str = ""
    ahead: float = 0.0
    wrong: tuple[ErrorInfo, ...] = ()


def examined(arguments: argparse.Namespace, log: Log) -> NodeView:
    """What a login node has, and whether this launcher runs there."""
    with connected(arguments, arguments.name) as node:
        seen = node.installer.describe_node()
        python = ".".join(map(str, seen.python))
        view = NodeView(arguments.name, " ".join(seen.libc), seen.machine, python, seen.free)
        try:
            began = time.time()
            with node.session() as session:
                there = session.request("look", HostInfo)
                ahead = session.greeting.time - (began + time.time()) / 2
        except RemoteError as error:
            return replace(view, wrong=(ErrorInfo.from_error(error),))
    programs = dict(sorted(there.programs.items()))
    far = RemoteError(f"its clock is {ahead:+.0f} s from ours", where=arguments.name)
    wrong = (ErrorInfo.from_error(far),) if abs(ahead) > _SKEW else ()
    return replace(view, programs=programs, version=there.version, ahead=ahead, wrong=wrong)


def show_node(value: NodeView, terminal: Terminal) -> Iterator[str]:
    yield f"{value.name}: {value.libc} {value.machine}, Python {value.python}, {value.free >> 30} GiB free"
    for program, path in value.programs.items():
        yield f"  {program:8} {path or 'not on PATH'}"
    if value.version:
        yield f"  launcher {value.version} answers; its clock is {value.ahead:+.1f} s from ours"


doctor = Command(NodeView, examined, show_node)


def collected(arguments: argparse.Namespace, log: Log) -> Tidied:
    """Versions and files that nobody needs there; a dry run unless ``--apply``."""
    with connected(arguments, arguments.name) as node, node.session() as session:
        return session.request("tidy", Tidied, directory=node.installer.directory, apply=bool(arguments.apply))


def show_tidied(value: Tidied, terminal: Terminal) -> Iterator[str]:
    does = "removed" if value.applied else "would remove"
    yield from (f"{does} {one_line(name)}" for name in value.versions)
    yield from (f"{does} files that were sent: {one_line(name)[:12]}" for name in value.bundles)
    asked = ", ".join(map(one_line, value.states))
    yield f"{count_of(len(value.kept), 'version is', 'versions are')} kept; runs and sweeps of {asked} were asked"


gc = Command(Tidied, collected, show_tidied)


def fetched(arguments: argparse.Namespace, log: Log) -> Iterator[Message]:
    """Runs and sweeps of a login node, with the runs of these, below a state directory here."""
    from launcher.remote.fetching import fetch
    from launcher.sweep.ledger import Ledger
    from launcher.sweep.state import State

    with connected(arguments, arguments.name) as node, node.session() as session:
        directory = Path(arguments.output) if arguments.output else node.kept
        for name in arguments.names:
            place = fetch(session, name, directory)
            if place.parent.name == "sweeps":
                ledger = Ledger.load(directory / "sweeps", name)
                for attempt in State(ledger.sweep, ledger.events()).by_run.values():
                    fetch(session, attempt.run, directory)
            yield Message(str(place), name)


get = Command(Message, fetched, show_message)


@dataclass(frozen=True)
class LoginNode:
    """A login node that is connected to. ``kept`` is the directory here for what is kept of it."""

    name: str
    project: Project
    opener: Opener
    installer: Installer
    kept: Path
    naming: Thread
    """Finds our own name (`content_name`) while we connect."""

    @property
    def _version(self) -> Path:
        return self.kept / "launcher"

    def remember(self, version: str) -> None:
        """Keep which version is there, so that the next command need not look."""
        from launcher.core.publish import make_private, write_text

        make_private(self.kept)
        write_text(self._version, version)

    def session(self) -> Session:
        """Speak with this launcher there, of the same files as here. Raises RemoteError."""
        from launcher.remote.install import content_name

        self.naming.join()
        ours = f"{content_name()}-"
        if (
            not self.installer.open
            and self._version.is_file()
            and (known := self._version.read_text()).startswith(ours)
        ):
            try:
                return self._spoken(self.opener.open(self.installer.command(known)))
            except RemoteError as error:
                if error.hint is None or "remote install" not in error.hint:
                    raise
        versions = self.installer.describe_node().versions
        found = [name for name in versions if name.startswith(ours)]
        if not found:
            what = f"launcher {__version__} is not installed there"
            if any(name.startswith(f"{__version__}-") for name in versions):
                what = f"launcher {__version__} there is of other files than this one"
            elif versions:
                what += f", but {', '.join(one_line(name) for name in versions[-3:])}"
            raise RemoteError(what, where=self.name, hint=f"launcher remote install {self.name}")
        session = self._spoken(self.installer.start_agent(found[-1]))
        self.remember(found[-1])
        return session

    def _spoken(self, pipe: Pipe) -> Session:
        from launcher.remote.session import Session

        session = Session(pipe, self.name)
        if (said := session.greeting.version) != __version__:
            session.close()
            what = f"launcher {one_line(said)[:80]} answers there, and this one is {__version__}"
            raise RemoteError(what, where=self.name, hint=f"launcher remote install {self.name}")
        return session


@contextlib.contextmanager
def connected(arguments: argparse.Namespace, name: str) -> Iterator[LoginNode]:
    """A connection to the login node that is called ``name``; ``arguments`` say where things are here. Raises
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
    naming = Thread(target=content_name, daemon=True)
    naming.start()
    opener = _open(arguments, login)
    try:
        installer = Installer(opener, name, directory=login.directory, python=login.python)
        kept = project.state / "remote" / re.sub(r"[^\w.@-]", "_", name)
        yield LoginNode(name, project, opener, installer, kept, naming)
    finally:
        opener.close()


def _open(arguments: argparse.Namespace, login: Login) -> Opener:
    import shlex

    from launcher.core.process import run
    from launcher.remote.destination import Destination, resolve

    chosen = arguments.ssh or os.environ.get("LAUNCHER_SSH") or ("ssh" if login.ssh == "openssh" else None)
    if chosen is not None:
        from launcher.remote.by_openssh import OpenSSHOpener

        return OpenSSHOpener(Destination(login.host, (), tuple(shlex.split(chosen))))
    from launcher.remote.by_paramiko import ParamikoOpener

    where = resolve(login.host, ssh=("ssh",), run=run, home=Path.home())
    return ParamikoOpener(
        where, _ask, accept_new=bool(arguments.accept_new), say=lambda text: print_line(text, sys.stderr)
    )


def _ask(text: str, *, echo: bool) -> str:
    """Ask at the terminal; nothing of the answer is kept."""
    if not sys.stdin.isatty():
        hint = "start it in a terminal, or have the key in an agent, or use a ControlMaster: --ssh ssh"
        raise RemoteError(f"nobody can answer {one_line(text)!r}", hint=hint)
    return input(text) if echo else getpass.getpass(text)
