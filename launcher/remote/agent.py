"""The far side of a connection: ``launcher remote-agent``, started by sshd, ended by the end of its input.

It holds nothing. What lives longer than the connection (a driver) is a process of its own session, with a record on
disk; what does not (a command whose output is followed) is ended with it. Its directories and files are for this user
alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import msgspec

from launcher import __version__
from launcher.core.errors import LauncherError, RemoteError
from launcher.core.redact import names_a_secret, redact
from launcher.core.state import state_directory
from launcher.remote.messages import (
    BEAT,
    LONGEST,
    MARKER,
    PROTOCOL,
    SILENCE,
    WINDOW,
    Greeting,
    Lines,
    decode,
    encode,
    error_fields,
    yield_all,
)

METHODS = {
    "look": "agent:describe_host",
    "put": "bundle:receive_part",
    "tidy": "tidying:tidy",
    "ask": "commands:run_command",
    "follow": "following:follow",
    "list": "fetching:list_files",
    "send": "fetching:send_files",
}
"""What can be asked: functions of this room, of the state directory and of what the request says by name. Their value
is the result; a generator gives events before it. Each is imported when it is asked for."""

_MOST_REQUESTS = 32
_PROGRAMS = ("sbatch", "squeue", "sacct", "enroot", "git", "uv")
_LONGEST_VALUE = 4096


class HostInfo(msgspec.Struct, frozen=True):
    """What a machine is: which programs are on PATH, where its state is, and the variables that a plan may depend on:
    none that is a secret."""

    version: str
    programs: dict[str, str | None]
    state: str
    environment: dict[str, str]


class Tidied(msgspec.Struct, frozen=True):
    """What nobody needs on a login node, removed if ``applied``: versions of the launcher, and bundles of files that
    were sent there; and the versions that are ``kept``. ``states`` are the state directories whose runs were asked."""

    applied: bool
    versions: tuple[str, ...]
    bundles: tuple[str, ...]
    kept: tuple[str, ...]
    states: tuple[str, ...] = ()


def describe_host(state: Path) -> HostInfo:
    """What this machine is."""
    told = {
        name: value
        for name, value in os.environ.items()
        if not names_a_secret(name) and len(value) < _LONGEST_VALUE and redact(value, os.environ) == value
    }
    return HostInfo(__version__, {name: shutil.which(name) for name in _PROGRAMS}, str(state), told)


class Agent:
    """Answers requests until its input ends, or nothing is heard for `SILENCE` seconds."""

    def __init__(self, inp: IO[bytes], out: IO[bytes]) -> None:
        self._in = inp
        self._out = out
        self._writing = threading.Lock()
        self._credits: dict[int, int] = {}
        self._credited = threading.Condition()
        self._heard = time.monotonic()
        self._ended = threading.Event()

    def serve(self) -> int:
        """Greet, then answer; the process's exit code."""
        lines = Lines("the near side", LONGEST)
        greeted = False
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            while data := self._read():
                self._heard = time.monotonic()
                for line in lines.add(data):
                    message = decode(line, "the near side")
                    if not greeted:
                        self._greet(message)
                        greeted = True
                    else:
                        self._take(message)
        except (LauncherError, OSError) as error:
            with contextlib.suppress(OSError):
                print(f"launcher: {error}", file=sys.stderr)
            return 1
        finally:
            self._ended.set()
            with self._credited:
                self._credited.notify_all()
        return 0

    def _read(self) -> bytes:
        return os.read(self._in.fileno(), 1 << 16)

    def _greet(self, message: dict[str, Any]) -> None:
        token = message.get("token")
        if not isinstance(token, str) or not token.isalnum() or len(token) > 64:
            raise RemoteError("the first line has no token")
        greeting = Greeting(PROTOCOL, __version__, socket.gethostname(), platform.python_version(), time.time())
        line = f"{MARKER} {token} ".encode() + msgspec.json.encode(greeting) + b"\n"
        with self._writing:
            self._out.write(line)
            self._out.flush()

    def _take(self, message: dict[str, Any]) -> None:
        number, method = message.get("id"), message.get("method")
        if not isinstance(number, int):
            self._send({"beat": 1})  # and the other side's was one
            return
        if isinstance(credit := message.get("credit"), int):
            with self._credited:
                if number in self._credits:
                    self._credits[number] += credit
                    self._credited.notify_all()
        elif len(self._credits) >= _MOST_REQUESTS or not isinstance(method, str) or method not in METHODS:
            why = "too many requests at once" if method in METHODS else f"no method {method!r}"
            self._send({"id": number, "error": error_fields(RemoteError(why))})
        else:
            self._credits[number] = WINDOW
            params = message.get("params")
            asked = (number, METHODS[method], dict(params) if isinstance(params, dict) else {})
            threading.Thread(target=self._answer, args=asked, daemon=True).start()

    def _answer(self, number: int, method: str, params: dict[str, Any]) -> None:
        module, _, function = method.partition(":")
        try:
            call = getattr(importlib.import_module(f"launcher.remote.{module}"), function)
            result = call(state_directory(os.environ, params.pop("state", None)), **params)
            if isinstance(result, Generator):
                with contextlib.closing(result) as events:
                    result = yield_all(events, lambda event: self._event(number, event))
            self._send({"id": number, "result": result})
        except Exception as error:  # noqa: BLE001 - one request's trouble ends no other, and is told to its asker
            self._send({"id": number, "error": error_fields(error)})
        finally:
            self._credits.pop(number, None)

    def _event(self, number: int, event: Any) -> None:
        """Send an event, or bytes of a file, once what was sent before has been taken."""
        if isinstance(event, bytes):
            line = encode({"id": number, "body": len(event)}) + event
        else:
            line = encode({"id": number, "event": event})
        with self._credited:
            self._credited.wait_for(lambda: self._credits[number] > 0 or self._ended.is_set())
            if self._ended.is_set():
                raise RemoteError("the connection has gone")
            self._credits[number] -= len(line)
        self._write(line)

    def _send(self, message: dict[str, Any]) -> None:
        self._write(encode(message))

    def _write(self, line: bytes) -> None:
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._out.write(line)
            self._out.flush()

    def _listen(self) -> None:
        while not self._ended.wait(BEAT):
            if time.monotonic() - self._heard > SILENCE:
                # The reader waits in read(2): closing its descriptor there would not wake it.
                os._exit(1)
