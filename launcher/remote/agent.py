"""The far side of a connection: ``launcher remote-agent``, which sshd starts and which ends with its input.

The agent keeps no state. A driver, which lives longer than the connection, is a process in a session of its own with a
record on disk; a command whose output is followed ends with the connection. The agent's files are private.
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
"""Method of a request → function of this room. It is imported when it is called, with the state directory and the
request's parameters by name; its value is the result, and a generator yields events before."""

_MOST_REQUESTS = 32
_PROGRAMS = ("sbatch", "squeue", "sacct", "enroot", "git", "uv")
_LONGEST_VALUE = 4096


class HostInfo(msgspec.Struct, frozen=True):
    """A machine: its programs on PATH, its state directory, and the variables that a plan may depend on, without
    secrets."""

    version: str
    programs: dict[str, str | None]
    state: str
    environment: dict[str, str]


class Tidied(msgspec.Struct, frozen=True):
    """What a login node no longer needs, removed if ``applied``: versions of the launcher and bundles of files that
    were sent there; and the versions that are ``kept``. ``states`` are the state directories whose runs were read."""

    applied: bool
    versions: tuple[str, ...]
    bundles: tuple[str, ...]
    kept: tuple[str, ...]
    states: tuple[str, ...] = ()


def describe_host(state: Path) -> HostInfo:
    """This machine."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not names_a_secret(name) and len(value) < _LONGEST_VALUE and redact(value, os.environ) == value
    }
    return HostInfo(__version__, {name: shutil.which(name) for name in _PROGRAMS}, str(state), variables)


class Agent:
    """Answers requests until its input ends, or nothing is received for `SILENCE` seconds."""

    def __init__(self, input_stream: IO[bytes], output_stream: IO[bytes]) -> None:
        self._input = input_stream
        self._output = output_stream
        self._write_lock = threading.Lock()
        self._credits: dict[int, int] = {}
        self._credit_changed = threading.Condition()
        self._last_received = time.monotonic()
        self._ended = threading.Event()

    def serve(self) -> int:
        """Send the greeting, then answer requests; returns the process's exit code."""
        lines = Lines("the near side")
        greeted = False
        threading.Thread(target=self._watch_silence, daemon=True).start()
        try:
            while data := os.read(self._input.fileno(), 1 << 16):
                self._last_received = time.monotonic()
                for line in lines.add(data):
                    message = decode(line, "the near side")
                    if not greeted:
                        self._greet(message)
                        greeted = True
                    else:
                        self._handle(message)
        except (LauncherError, OSError) as error:
            with contextlib.suppress(OSError):
                print(f"launcher: {error}", file=sys.stderr)
            return 1
        finally:
            self._ended.set()
            with self._credit_changed:
                self._credit_changed.notify_all()
        return 0

    def _greet(self, message: dict[str, Any]) -> None:
        token = message.get("token")
        if not isinstance(token, str) or not token.isalnum() or len(token) > 64:
            raise RemoteError("the first line has no token")
        greeting = Greeting(PROTOCOL, __version__, socket.gethostname(), platform.python_version(), time.time())
        self._write(f"{MARKER} {token} ".encode() + msgspec.json.encode(greeting) + b"\n")

    def _handle(self, message: dict[str, Any]) -> None:
        number, method = message.get("id"), message.get("method")
        if not isinstance(number, int):
            self._send({"beat": 1})  # the message was a beat too
            return
        if isinstance(credit := message.get("credit"), int):
            with self._credit_changed:
                if number in self._credits:
                    self._credits[number] += credit
                    self._credit_changed.notify_all()
        elif len(self._credits) >= _MOST_REQUESTS or not isinstance(method, str) or method not in METHODS:
            problem = "too many requests at once" if method in METHODS else f"no method {method!r}"
            self._send({"id": number, "error": error_fields(RemoteError(problem))})
        else:
            self._credits[number] = WINDOW
            params = message.get("params")
            arguments = (number, METHODS[method], dict(params) if isinstance(params, dict) else {})
            threading.Thread(target=self._answer, args=arguments, daemon=True).start()

    def _answer(self, number: int, method: str, params: dict[str, Any]) -> None:
        module, _, function = method.partition(":")
        try:
            call = getattr(importlib.import_module(f"launcher.remote.{module}"), function)
            result = call(state_directory(os.environ, params.pop("state", None)), **params)
            if isinstance(result, Generator):
                with contextlib.closing(result) as events:
                    result = yield_all(events, lambda event: self._send_event(number, event))
            self._send({"id": number, "result": result})
        except Exception as error:  # noqa: BLE001 - a failed request must not end others; its sender gets the error
            self._send({"id": number, "error": error_fields(error)})
        finally:
            self._credits.pop(number, None)

    def _send_event(self, number: int, event: Any) -> None:
        """Send an event, or bytes of a file, once the receiver has taken earlier ones."""
        if isinstance(event, bytes):
            line = encode({"id": number, "body": len(event)}) + event
        else:
            line = encode({"id": number, "event": event})
        with self._credit_changed:
            self._credit_changed.wait_for(lambda: self._credits[number] > 0 or self._ended.is_set())
            if self._ended.is_set():
                raise RemoteError("the connection has gone")
            self._credits[number] -= len(line)
        self._write(line)

    def _send(self, message: dict[str, Any]) -> None:
        self._write(encode(message))

    def _write(self, line: bytes) -> None:
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            self._output.write(line)
            self._output.flush()

    def _watch_silence(self) -> None:
        while not self._ended.wait(BEAT):
            if time.monotonic() - self._last_received > SILENCE:
                # The main thread waits in read(2); closing its descriptor would not wake it.
                os._exit(1)
