"""Installs this version of the launcher on a login node: versions are side by side, each whole or absent.

The wheels are sent from here: the launcher's own is packed from its running files, those of its dependencies are
downloaded once for the login node's Python, architecture and C library, or are in a directory that the user names.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import re
import secrets
import sys
import threading
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher import __version__
from launcher.core.errors import ConfigError, RemoteError
from launcher.core.process import CommandRunner
from launcher.core.reading import sha256_of
from launcher.core.shipped import shipped
from launcher.core.terminal import one_line
from launcher.remote.bundle import Bundle, pack
from launcher.remote.messages import LONGEST, Lines, decode, typed
from launcher.remote.opener import Opener, Pipe

_PACKAGES = ("cloudpickle", "msgspec", "PyYAML", "rich", "submitit", "tenacity", "typing_extensions", "xxhash",
           "markdown-it-py", "mdurl", "pygments")  # fmt: skip
"""What the launcher imports on a login node: its dependencies but paramiko, and theirs."""

_OLDEST_GLIBC = 17
_DOWNLOAD_SECONDS = 600.0
_ANSWER_SECONDS, _INSTALL_SECONDS = 120.0, 1000.0
"""Seconds for an answer: a lock, a slow disk and the first start of the installed launcher may take long."""
_MARKER = "launcher-install"
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/~-]+")
_WHOLE_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class Node(msgspec.Struct, frozen=True):
    """A login node as its own Python sees it. ``python`` is its version; ``free`` are bytes in the home directory."""

    python: tuple[int, int, int]
    machine: str
    libc: tuple[str, str]
    free: int
    versions: tuple[str, ...]


class Installer:
    """Runs `far_install` on a login node and sends it requests. ``directory`` is below the home directory there."""

    def __init__(self, opener: Opener, host: str, *, directory: str = ".launcher", python: str = "python3") -> None:
        for word in (directory, python):
            # The login shell there parses the command, so each of these must be one plain word.
            if not _PLAIN_PATH.fullmatch(word) or word.startswith("-"):
                raise ConfigError(f"{word!r} is no plain path", where="login", hint="letters, digits and ./-_")
        self._opener = opener
        self._host = host
        self.directory = directory
        self._python = python
        self._pipe: Pipe | None = None
        self._lines = Lines(host)

    @property
    def open(self) -> bool:
        """Whether `far_install` is running, so that `start_agent` can continue in its connection."""
        return self._pipe is not None

    def describe_node(self) -> Node:
        """The login node. Raises RemoteError, also when it has no Python."""
        node = typed(self._request({"what": "look"}), Node, self._host)
        return msgspec.structs.replace(node, versions=tuple(filter(_PLAIN_PATH.fullmatch, node.versions)))

    def install(self, name: str, wheels: Bundle) -> bool:
        """Install the version of this name unless it is there; returns whether it was installed. Raises RemoteError."""
        request = {"what": "install", "name": name, "version": __version__}
        body = {"size": len(wheels.content), "sha256": wheels.digest}
        return bool(self._request({**request, **body}, wheels.content).get("new"))

    def start_agent(self, version: str) -> Pipe:
        """Start the agent of a version in the same connection, so that no second authentication is needed."""
        self._request({"what": "begin", "name": version})
        assert self._pipe is not None
        pipe, self._pipe = self._pipe, None
        return pipe

    def command(self, bundle_name: str) -> str:
        """The agent's command on the login node."""
        return f"{self.directory}/versions/{bundle_name}/python/bin/python -I -m launcher remote-agent"

    def close(self) -> None:
        """End `far_install`. Raises nothing."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _request(self, request: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """The answer to a request. All requests of an installer go to one process there. Raises RemoteError."""
        token = secrets.token_hex(16)
        line = json.dumps({**request, "directory": self.directory, "token": token}).encode() + b"\n"
        try:
            if self._pipe is None:
                program = Path(__file__).with_name("far_install.py").read_bytes()
                # The command has no untrusted text: the program and the request are sent by standard input.
                command = f"{self._python} -ISc 'import sys;exec(sys.stdin.buffer.read({len(program)}))'"
                self._pipe, self._lines, line = self._opener.open(command), Lines(self._host), program + line
            with contextlib.suppress(RemoteError) if body else contextlib.nullcontext():
                self._pipe.send(line + body)  # a far side that refuses the wheels answers without reading them
            answer = self._receive_answer(self._pipe, token, _INSTALL_SECONDS if body else _ANSWER_SECONDS)
            if "error" in answer:
                hint = one_line(answer.get("hint", ""))
                raise RemoteError(one_line(answer["error"])[:2000], where=self._host, hint=hint)
        except BaseException:
            self.close()
            raise
        return answer

    def _receive_answer(self, pipe: Pipe, token: str, seconds: float) -> dict[str, Any]:
        timer = threading.Timer(seconds, pipe.close)
        timer.daemon = True
        timer.start()
        received = 0
        try:
            while (part := pipe.receive()) and (received := received + len(part)) < LONGEST:
                for answer in self._lines.add(part):
                    words = answer.split(b" ", 2)
                    if words[:2] == [_MARKER.encode(), token.encode()]:
                        return decode(words[2], self._host)
            if not timer.is_alive():
                raise RemoteError(f"nothing was answered within {seconds:.0f} s", where=self._host)
        finally:
            timer.cancel()
        if received >= LONGEST:
            raise RemoteError("it says much, and does not answer", where=self._host)
        stderr = one_line(pipe.stderr_tail()[-500:])
        if pipe.status() in (126, 127):
            hint = "name one that is 3.10 or newer: login.python"
            raise RemoteError(f"there is no {self._python}: {stderr}", where=self._host, hint=hint)
        raise RemoteError(f"its Python did not answer: {stderr or 'without a word'}", where=self._host)


def wheels_for(node: Node, *, cache: Path, run: CommandRunner, wheels: Path | None = None) -> list[Path]:
    """The wheels of the dependencies for a node: downloaded to ``cache`` once, or taken from the directory ``wheels``.

    A wheel for another Python, architecture or C library is never taken (PEP 425, PEP 600). Raises RemoteError.
    """
    pins = [(name, importlib.metadata.version(name)) for name in _PACKAGES]
    directory = wheels or cache / _platform_name(node)
    found = {f"{name}=={pin}": _wheel(directory, name, pin, node) for name, pin in pins}
    if None in found.values() and wheels is None:
        _download([pin for pin, file in found.items() if file is None], directory, node, run)
        found = {f"{name}=={pin}": _wheel(directory, name, pin, node) for name, pin in pins}
    if missing := [pin for pin, file in found.items() if file is None]:
        hint = f"wheels for {_platform_name(node)}; pip download --only-binary=:all:"
        raise RemoteError(f"no wheels of {', '.join(missing)}", where=str(directory), hint=hint)
    files = [file for file in found.values() if file is not None]
    for other in set(directory.glob("*.whl")).difference(files) if wheels is None else ():
        other.unlink(missing_ok=True)  # of an earlier launcher
    return files


@functools.cache
def content_name() -> str:
    """A name of this launcher from its version and a hash of its files. An installed launcher and the checkout from
    which it was packed have the same name."""
    digest = hashlib.sha256()
    for name, path in sorted((name, path) for path, name in _own_files()):
        digest.update(f"{name} {sha256_of(path)}\n".encode())
    return f"{__version__}-{digest.hexdigest()[:12]}"


def version_name(wheels: Sequence[Path]) -> str:
    """The name of this launcher with these wheels on the login node, which changes with any byte of them."""
    digest = hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in wheels).encode())
    return f"{content_name()}-{digest.hexdigest()[:8]}"


def pack_wheels(wheels: Sequence[Path]) -> Bundle:
    """The bundle of these wheels and the launcher's own, as it is sent."""
    return pack({**{file.name: file for file in wheels}, f"launcher-{__version__}-py3-none-any.whl": own_wheel()})


def own_wheel() -> bytes:
    """The running launcher as a wheel: its package, and what is shipped beside it. Equal files give equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, name in _own_files():
            entry = zipfile.ZipInfo(name, _WHOLE_ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return content.getvalue()


def _own_files() -> Iterable[tuple[Path, str]]:
    package = Path(__file__).resolve().parents[1]
    yield from _below(package, "launcher")
    for name in ("runners", "recipes", "docs"):
        directory = shipped(name)
        if package not in directory.parents:  # a checkout: in a wheel they are inside the package
            yield from _below(directory, f"launcher/shipped_data/{name}")


def _below(directory: Path, name: str) -> Iterable[tuple[Path, str]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, f"{name}/{path.relative_to(directory).as_posix()}"


def _platform_name(node: Node) -> str:
    return f"cp{node.python[0]}{node.python[1]}-{node.machine}-{node.libc[0] or 'libc'}{node.libc[1]}"


def _platforms(node: Node) -> list[str]:
    """Tags of wheels that a node takes: those of its glibc and all older ones (PEP 600)."""
    libc, version = node.libc
    words = version.split(".")
    if libc != "glibc" or len(words) < 2 or words[0] != "2" or not words[1].isdecimal():
        return []
    return [f"manylinux_2_{minor}_{node.machine}" for minor in range(int(words[1]), _OLDEST_GLIBC - 1, -1)] + [
        f"manylinux2014_{node.machine}"
    ]


def _wheel(directory: Path, name: str, version: str, node: Node) -> Path | None:
    """The wheel of a distribution that this node can use, or None (NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl)."""
    python_tag = f"cp{node.python[0]}{node.python[1]}"
    normalised = re.sub(r"[-_.]+", "_", name).lower()
    for file in sorted(directory.glob("*.whl")) if directory.is_dir() else ():
        words = file.name.removesuffix(".whl").split("-")
        if len(words) < 5 or (re.sub(r"[-_.]+", "_", words[0]).lower(), words[1]) != (normalised, version):
            continue
        pythons, abis, platforms = (set(word.split(".")) for word in words[-3:])
        if not platforms & {"any", *_platforms(node)}:
            continue
        stable = "abi3" in abis and any(
            re.fullmatch(r"cp3\d+", tag) and int(tag[3:]) <= node.python[1] for tag in pythons
        )
        if "py3" in pythons or (python_tag in pythons and abis & {python_tag, "none"}) or stable:
            return file
    return None


def _download(pins: Sequence[str], directory: Path, node: Node, run: CommandRunner) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform={tag}" for tag in _platforms(node)]
    if not platforms:
        hint = "a directory with wheels for it: --wheels DIR"
        raise RemoteError(f"no wheels are published for {_platform_name(node)}", hint=hint)
    python = [f"--python-version={node.python[0]}.{node.python[1]}", "--implementation=cp"]
    argv = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    argv += ["--only-binary=:all:", f"--dest={directory}", *python, *platforms, *sorted(pins)]
    answer = run(argv, timeout=_DOWNLOAD_SECONDS)
    if not answer.ok:
        hint = "a directory that has them: --wheels DIR"
        raise RemoteError(f"wheels for {_platform_name(node)} cannot be downloaded: {answer.tail()}", hint=hint)
