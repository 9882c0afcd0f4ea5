"""A real sshd on loopback for a test: its own keys, configuration and port; and a user's side of it."""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass(frozen=True)
class Server:
    """A running sshd. ``command`` is an ssh that has ``config``, where the server is called ``name``."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def known(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def user_key(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def command(self) -> tuple[str, ...]:
        return ("ssh", "-F", str(self.config))

    @property
    def path(self) -> str:
        """PATH with an `ssh` that has ``config``: so it is read by those that know no more than ssh."""
        program = self.directory / "bin/ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.config} "$@"\n')
        program.chmod(0o755)
        return f"{program.parent}{os.pathsep}{os.environ['PATH']}"

    def know(self, line: str | None = None) -> None:
        """Make the host's key a known one, or write this line in its place."""
        kind, key, *_ = (self.directory / "host_ed25519.pub").read_text().split()
        self.known.write_text((line or f"[127.0.0.1]:{self.port} {kind} {key}") + "\n")

    def configure(self, name: str = "login", key: Path | None = None, port: int = 0) -> None:
        """Add to a user's configuration: the server is called ``name``, and ``key`` is shown to it. Behind another
        ``port`` it is known as well."""
        if port:
            self.known.write_text(f"{(known := self.known.read_text())}{known.replace(str(self.port), str(port))}")
        lines = [
            f"Host {name}",
            "  HostName 127.0.0.1",
            f"  Port {port or self.port}",
            f"  User {getpass.getuser()}",
            f"  IdentityFile {key or self.user_key}",
            "  IdentitiesOnly yes",
            "  IdentityAgent none",
            f"  UserKnownHostsFile {self.known}",
            "  GlobalKnownHostsFile none",
        ]
        with self.config.open("a") as config:
            config.write("\n".join(lines) + "\n")

    def let_in(self) -> int:
        """How often somebody was let in, as the server's log has it."""
        return (self.directory / "sshd.log").read_text().count("Accepted ")

    def children(self) -> list[int]:
        """The processes that serve a connection each."""
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, timeout=20)
        return [int(pid) for pid in listed.stdout.split()]


def make_key(path: Path, *options: str) -> Path:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path), *options]
    subprocess.run(argv, check=True, timeout=30, stdin=subprocess.DEVNULL)
    return path


@contextmanager
def sshd(directory: Path, options: Sequence[str] = (), program: str = SSHD) -> Iterator[Server]:
    """An sshd that lets this user in by the key ``id_ed25519``; the first value of an option counts, so yours do."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("host_ed25519", "id_ed25519"):
        make_key(directory / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / "authorized_keys").write_text((directory / "id_ed25519.pub").read_text())
    settings = [
        *options,
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {directory}/host_ed25519",
        f"AuthorizedKeysFile {directory}/authorized_keys",
        "PidFile none",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "Subsystem sftp internal-sftp",
    ]
    (directory / "sshd_config").write_text("\n".join(settings) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd of Debian refuses to start without its directory
    log = (directory / "sshd.log").open("wb")
    process = subprocess.Popen([program, "-D", "-e", "-f", str(directory / "sshd_config")], stderr=log, stdout=log)
    log.close()
    server = Server(directory, port, process)
    try:
        _await(server)
        server.know()
        server.configure()
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _await(server: Server) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.process.poll() is None, (server.directory / "sshd.log").read_text()
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", server.port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("sshd does not listen")


@contextmanager
def delayed(port: int, seconds: float) -> Iterator[int]:
    """A port of this machine that leads to ``port``, each direction so much later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, seconds), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, port: int, seconds: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                due: queue.Queue[tuple[float, bytes]] = queue.Queue()
                threading.Thread(target=_take, args=(one, due, seconds), daemon=True).start()
                threading.Thread(target=_give, args=(other, due), daemon=True).start()


def _take(source: socket.socket, due: queue.Queue[tuple[float, bytes]], seconds: float) -> None:
    data = b"x"
    while data:
        try:
            data = source.recv(1 << 18)
        except OSError:
            data = b""
        due.put((time.monotonic() + seconds, data))


def _give(target: socket.socket, due: queue.Queue[tuple[float, bytes]]) -> None:
    with contextlib.suppress(OSError):
        while True:
            when, data = due.get()
            time.sleep(max(0.0, when - time.monotonic()))
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(data)


@dataclass(frozen=True)
class Site:
    """A login node that a runner's file names, and a laptop: what its launcher keeps is ``far``, ours ``near``.

    ``variables`` are those of a command here that goes there.
    """

    root: Path
    server: Server

    @property
    def far(self) -> Path:
        return self.root / "far"

    @property
    def near(self) -> Path:
        return self.root / "near"

    @property
    def agent(self) -> str:
        """The command of the far side."""
        return f"{next((self.root / 'there/versions').iterdir())}/python/bin/python -I -m launcher remote-agent"

    @property
    def variables(self) -> dict[str, str]:
        ssh, runners = f"ssh -F {self.server.config}", str(self.root / "runners")
        return {"LAUNCHER_SSH": ssh, "LAUNCHER_RUNNERS": runners, "LAUNCHER_STATE": str(self.near), "NO_COLOR": "1"}


def on_host(directory: Path, name: str) -> str:
    """A program that is sshd on a host of another name: what it starts takes our processes for those of elsewhere."""
    program = directory / f"sshd-on-{name}"
    program.write_text(f'#!/bin/sh\nexec unshare --uts sh -c \'hostname {name}; exec "$0" "$@"\' {SSHD} "$@"\n')
    program.chmod(0o755)
    return str(program)


@contextmanager
def site(
    root: Path, options: Sequence[str] = (), runner: str = "local", program: str = SSHD, **variables: str
) -> Iterator[Site]:
    """A real sshd, behind it this checkout; ``variables`` are those of the far side."""
    installed(root / "there", {"LAUNCHER_STATE": str(root / "far"), "LAUNCHER_REHEARSAL_SECONDS": "0.01", **variables})
    (root / "runners").mkdir()
    login = f"login: {{host: login, directory: {root}/there, python: {sys.executable}}}\n"
    shipped = Path(__file__).resolve().parents[2] / f"runners/{runner}.yaml"
    (root / f"runners/{runner}.yaml").write_text(shipped.read_text() + login)
    with sshd(root / "server", options, program) as server:
        yield Site(root, server)


def installed(directory: Path, environment: Mapping[str, str]) -> None:
    """A stand-in for an installed version: below ``directory`` this checkout is what answers, with these variables."""
    from launcher.remote.install import content_name

    python = directory / f"versions/{content_name()}-checkout/python/bin/python"
    python.parent.mkdir(parents=True)
    lines = [f"export {name}={shlex.quote(text)}" for name, text in environment.items()]
    root = Path(__file__).resolve().parents[2]
    # Its words are `-I -m launcher …`: the first one would hide the checkout.
    script = ["#!/bin/sh", *lines, f"export PYTHONPATH={root}", "shift", f'exec {sys.executable} "$@"']
    python.write_text("\n".join(script) + "\n")
    python.chmod(0o755)
