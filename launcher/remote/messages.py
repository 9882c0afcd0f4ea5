"""Messages between two launchers: lines of JSON of bounded length.

Requests: ``{"id", "method", "params"}`` and ``{"credit", "id"}``. Answers: any number of ``{"id", "event"}``, or
``{"id", "body": N}`` followed by N bytes of a file, then ``{"id", "result"}`` or ``{"id", "error": {type, message,
where, hint, exit}}``. Every `BEAT` seconds the near side sends ``{"beat"}``, which the far side answers with another.
The far side's first line is `MARKER`, the token of the first request, and a greeting; whatever a login shell prints
before it is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import msgspec

from launcher.core.errors import LauncherError, RemoteError, as_error
from launcher.core.reading import prepare_type
from launcher.core.terminal import one_line

T = TypeVar("T")

PROTOCOL = 1
MARKER = "launcher-agent"
LONGEST = 1 << 20
"""Bytes of a line."""
MOST_BEFORE = 64 << 10
"""Bytes that a login shell may print before the marker."""
BEAT = 10.0
SILENCE = 30.0
"""Seconds without a line after which a connection counts as lost."""
WINDOW = 4 << 20
"""Bytes of one request's events that may be sent unacknowledged: with a round trip of 50 ms that allows 80 MB/s."""


def encode(message: dict[str, Any]) -> bytes:
    """The line of a message. Raises RemoteError for one that is too long, as files are sent in parts."""
    line = json.dumps(message, ensure_ascii=True, separators=(",", ":"), default=_plain).encode() + b"\n"
    if len(line) > LONGEST:
        raise RemoteError(f"a message of {len(line)} bytes is longer than {LONGEST}")
    return line


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else str(value)


def decode(line: bytes, where: str) -> dict[str, Any]:
    """The message of a line. Raises RemoteError for a line that is no JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise RemoteError("the far side said something that is no message", where=where)
    return message


class Lines:
    """Splits received bytes into lines and announced bodies. A line longer than `LONGEST` raises RemoteError."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._rest = bytearray()
        self._searched = 0
        self._body = 0

    def expect(self, size: object) -> None:
        """Take the next ``size`` bytes as a body, not as a line."""
        if not isinstance(size, int) or not 0 < size <= LONGEST:
            raise RemoteError(f"a part of {str(size)[:40]} bytes is announced", where=self._where)
        self._body = size

    def add(self, data: bytes) -> Iterator[bytes]:
        """Add bytes; yields the lines (without their ends) and bodies that are now complete."""
        self._rest += data
        while True:
            if self._body:
                end, skipped = self._body, 0
                if len(self._rest) < end:
                    return
                self._body = 0
            elif (end := self._rest.find(b"\n", self._searched)) >= 0:
                skipped = 1
            else:
                break
            piece = bytes(self._rest[:end])
            del self._rest[: end + skipped]
            self._searched = 0
            yield piece
        self._searched = len(self._rest)
        if len(self._rest) > LONGEST:
            raise RemoteError(f"a line of more than {LONGEST} bytes", where=self._where)


def yield_all(events: Generator[Any, None, T], each: Callable[[Any], object] = lambda event: None) -> T:
    """Call a function with each event of a generator; returns the generator's value."""
    while True:
        try:
            each(next(events))
        except StopIteration as end:
            value: T = end.value
            return value


class Greeting(msgspec.Struct, frozen=True):
    """The far side's first message. ``time`` is in seconds since the epoch, by its clock."""

    protocol: int
    version: str = ""
    host: str = ""
    python: str = ""
    time: float = 0.0


def typed(value: Any, kind: type[T], where: str) -> T:
    """A received value, converted to its type. Raises RemoteError for any other."""
    try:
        return msgspec.convert(value, prepare_type(kind))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RemoteError(f"it answers in another way than ours: {one_line(error)[:500]}", where=where) from error


def error_fields(error: BaseException) -> dict[str, Any]:
    """An error as the fields of a message."""
    known = as_error(error)
    fields = {"layer": known.layer, "message": known.message, "where": known.where, "hint": known.hint}
    return {"type": type(error).__name__, **fields, "exit": known.exit_code}


def received_error(error: Any, host: str) -> LauncherError:
    """The error of a message, to be raised here. Its fields are untrusted, so they are bounded."""
    fields = error if isinstance(error, dict) else {"message": "an error without words"}

    def text(name: str) -> str | None:
        return str(fields[name])[:4000] if fields.get(name) else None

    where = text("where")
    result = LauncherError(
        text("message") or "an error", where=f"{host}: {where}" if where else host, hint=text("hint")
    )
    code = fields.get("exit")
    result.exit_code = code if isinstance(code, int) and 0 < code < 256 else 1
    result.layer = text("layer") or "remote"
    return result
