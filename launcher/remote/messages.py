"""Messages between two launchers: JSON, one in a line, bounded; the same on both sides.

From here: ``{"id", "method", "params"}``, ``{"credit", "id"}``. From there: ``{"id", "event"}`` any number of times,
then ``{"id", "result"}`` or ``{"id", "error": {type, message, where, hint, exit}}``. Both ways: ``{"beat"}`` every
`BEAT` seconds. The far side's first line is `MARKER`, the token that it was asked with, and a greeting; whatever a
login shell prints before it is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from launcher.core.errors import LauncherError, RemoteError

PROTOCOL = 1
MARKER = "launcher-agent"
LONGEST = 1 << 20
"""Bytes of a line."""
MOST_BEFORE = 64 << 10
"""Bytes of what a login shell may print before the marker."""
BEAT = 10.0
SILENCE = 30.0
"""Seconds without a line after which a connection is given up."""
WINDOW = 512 << 10
"""Bytes of one request's events that may be under way."""


def encode(message: dict[str, Any]) -> bytes:
    """A message as its line. Raises RemoteError for one that is too long: bodies go in parts, or by `transfer`."""
    line = json.dumps(message, ensure_ascii=True, separators=(",", ":"), default=str).encode() + b"\n"
    if len(line) > LONGEST:
        raise RemoteError(f"a message of {len(line)} bytes is longer than {LONGEST}")
    return line


def decode(line: bytes, where: str) -> dict[str, Any]:
    """The message of a line. Raises RemoteError for what is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RemoteError("the far side said something that is no message", where=where) from error
    if not isinstance(message, dict):
        raise RemoteError("the far side said something that is no message", where=where)
    return message


class Lines:
    """Lines out of pieces of bytes. A line over the bound raises RemoteError."""

    def __init__(self, where: str, longest: int = LONGEST) -> None:
        self._where = where
        self._longest = longest
        self._rest = bytearray()
        self._searched = 0

    def add(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete now, without their ends."""
        self._rest += data
        while (end := self._rest.find(b"\n", self._searched)) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            self._searched = 0
            yield line
        self._searched = len(self._rest)
        if len(self._rest) > self._longest:
            raise RemoteError(f"a line of more than {self._longest} bytes", where=self._where)

    def rest(self) -> bytes:
        """What came after the last whole line; it is not a line any more."""
        taken, self._rest, self._searched = bytes(self._rest), bytearray(), 0
        return taken


def error_of(error: BaseException) -> dict[str, Any]:
    """An error as a message carries it."""
    if isinstance(error, LauncherError):
        return {
            "type": type(error).__name__,
            "layer": error.layer,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
            "exit": error.exit_code,
        }
    return {"type": type(error).__name__, "message": str(error), "exit": 1}


def raised(error: Any, host: str) -> LauncherError:
    """The error of a message, to be raised here: whatever it holds is data."""
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
