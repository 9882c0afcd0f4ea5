"""Text from outside, made fit for a terminal and for the log of a GitHub job.

A file's name, a line of a log, a neighbour's sidecar may hold anything: what moves a terminal's cursor, what changes a
title, what hides a line, and ``::set-output``. So control characters are escaped, and no line that is not ours begins
like a command of GitHub's runner. `Guarded` does that for a stream, whoever writes to it; `one_line` for a piece of
text that is shown within a line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

# Controls of ASCII and Latin-1, separators of lines, what turns the direction of writing or is not seen, and halves of
# surrogate pairs, which stand for bytes of a name that are not UTF-8.
_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
_IN_A_LINE = re.compile(f"[\t\n{_UNSAFE}]")
_IN_A_TEXT = re.compile(f"[{_UNSAFE}]")

_COLOUR = re.compile("\x1b\\[[0-9;:]*m")

# The runner trims a line, then looks for ``::command``; its older form ``##[command]`` may stand anywhere.
_COMMAND = re.compile(r"^(\s*)(?=::)|(?<=#)(?=#\[)", re.MULTILINE)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def one_line(text: object) -> str:
    """A text from outside as a piece of one line: what is no ordinary character is escaped as Python writes it."""
    line = str(text)
    return line if line.isprintable() else _IN_A_LINE.sub(_escaped, line)


def print_line(text: object, file: TextIO | None = None) -> None:
    """Print a line whose parts may come from outside, and flush it: a reader behind a pipe gets it at once."""
    print(f"{one_line(text)}\n", end="", file=file or sys.stdout, flush=True)  # one write: threads say lines too


def printable(text: str) -> str:
    """A text of several lines, its control characters escaped but for line ends and tabs."""
    return _IN_A_TEXT.sub(_escaped, text)


def log_line(text: str) -> str:
    """A line, or several, of a job's log: without the colours that programs give it, the rest as `printable`."""
    return printable(_COLOUR.sub("", text)) if "\x1b" in text else printable(text)


_ASCII_SIGNS = {"→": "->", "×": "x", "…": "...", "–": "-", "↑": "^", "↓": "v", "·": "."}


def encoding_substitute(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that a terminal's encoding lacks: our own signs in plain letters, others
    as Python escapes them. An error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = (_ASCII_SIGNS.get(char) or char.encode("ascii", "backslashreplace").decode() for char in missing)
    return "".join(plain), error.end


@contextlib.contextmanager
def _closed_terminal_is_broken_pipe() -> Iterator[None]:
    """Within the block a closed terminal raises BrokenPipeError, as a pipe without a reader does."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENXIO):
            raise BrokenPipeError(errno.EPIPE, "the terminal was closed") from None
        raise


class Guarded:
    """A stream that escapes what is written to it, and gives GitHub's runner no command.

    ``inner`` is the stream itself, for text that is escaped already: `launcher.core.github`, and `styled`.
    """

    def __init__(self, inner: TextIO, *, github: bool, styled: bool = False) -> None:
        self.inner = inner
        self._github = github
        self._styled = styled
        self._blank = True
        """Whether the line so far has white space only."""

    def write(self, text: str) -> int:
        shown = text if self._styled else printable(text)
        if self._github:
            # What follows in a line that has begun is no beginning of one.
            begun = "" if self._blank else "x"
            shown = _COMMAND.sub(r"\1\\", begun + shown)[len(begun) :]
            last = text.rpartition("\n")
            self._blank = (self._blank or bool(last[1])) and not last[2].strip()
        with _closed_terminal_is_broken_pipe():
            self.inner.write(shown)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with _closed_terminal_is_broken_pipe():
            self.inner.flush()

    def styled(self) -> Guarded:
        """The same stream for text whose colours are ours, and whose parts from outside went through `one_line`."""
        return Guarded(self.inner, github=self._github, styled=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def styled(stream: Any) -> Any:
    """The stream that may be written to in colours."""
    return stream.styled() if isinstance(stream, Guarded) else stream


def uses_colours(stream: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is written to in colours: a terminal that knows them, unless NO_COLOR is set; FORCE_COLOR
    (`--color always`) asks for them anywhere."""
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (stream.isatty() and environ.get("TERM") != "dumb")


def console(stream: Any, environ: Mapping[str, str] = os.environ, *, width: int | None = None) -> Any:
    """rich's console on a stream: with colours in a terminal, unless NO_COLOR is set; elsewhere plain text, whose lines
    are wrapped at ``width`` if at all."""
    from rich.console import Console

    terminal, colours = stream.isatty(), uses_colours(stream, environ)
    return Console(
        file=styled(stream),
        force_terminal=terminal or colours,
        no_color=not colours,
        color_system="auto" if terminal or not colours else "standard",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not terminal and width is None,
        width=None if terminal else width or 200,
    )


def unguarded(stream: Any) -> Any:
    """The stream that escapes nothing."""
    return stream.inner if isinstance(stream, Guarded) else stream


class StandardOutput:
    """Whatever standard output is at the moment, unguarded: for a writer that lives longer than one stream."""

    def write(self, text: str) -> int:
        return int(unguarded(sys.stdout).write(text) or len(text))

    def flush(self) -> None:
        unguarded(sys.stdout).flush()
