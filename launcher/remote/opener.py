"""The interface of a connection to a login node: bytes in both directions, and an exit status. Only its
implementations know SSH."""

from __future__ import annotations

from typing import Protocol


class Pipe(Protocol):
    """A program on the far side, with its standard input and output."""

    def send(self, data: bytes) -> None:
        """Send all of it. Raises RemoteError when the connection is lost."""

    def receive(self) -> bytes:
        """Wait for output and return it, at least one byte; b"" at the end. Raises RemoteError."""

    def finish(self) -> None:
        """Close the program's standard input."""

    def status(self) -> int | None:
        """The program's exit code, once its output has ended; None when it is unknown."""

    def stderr_tail(self) -> str:
        """The end of what the program wrote to standard error."""

    def close(self) -> None:
        """Close this pipe. Raises nothing."""


class Opener(Protocol):
    """A connection to a login node, authenticated once."""

    def open(self, command: str) -> Pipe:
        """Start a command of plain words (the login shell there reads it). Raises RemoteError."""

    def close(self) -> None:
        """Close all pipes. Raises nothing."""


class Prompt(Protocol):
    """Prompts the user at the terminal. Raises RemoteError when there is no terminal."""

    def __call__(self, text: str, *, echo: bool) -> str: ...
