"""What carries messages to a login node: bytes there and back, and how it ended. The protocol knows no more of SSH."""

from __future__ import annotations

from typing import Protocol


class Pipe(Protocol):
    """A program on the far side, with its standard input and output."""

    def send(self, data: bytes) -> None:
        """Send all of it. Raises RemoteError when the connection has gone."""

    def receive(self) -> bytes:
        """What came, at least one byte; b"" at the end. Waits for it. Raises RemoteError."""

    def finish(self) -> None:
        """Tell the program that nothing more comes."""

    def status(self) -> int | None:
        """The program's exit code once its output has ended; None when that is unknown, which says nothing of it."""

    def stderr_tail(self) -> str:
        """The end of what the program wrote to standard error."""

    def close(self) -> None:
        """End the connection's part in it. Raises nothing."""


class Opener(Protocol):
    """A connection to a login node, authenticated once."""

    def open(self, command: str) -> Pipe:
        """Start a command of plain words (the login shell there reads it). Raises RemoteError."""

    def close(self) -> None:
        """End all pipes. Raises nothing."""


class Prompt(Protocol):
    """Asks the person at the terminal. Raises RemoteError where nobody can answer."""

    def __call__(self, text: str, *, echo: bool) -> str: ...
