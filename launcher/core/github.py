"""What a GitHub Actions runner reads: outputs, the step summary, annotations, groups and masks.

GitHub drops a step summary above 1 MiB, so it is cut here. It shows ten annotations of a kind for a step, so all others
go into the tenth. Outside of Actions nothing is written, except that log lines still reach the stream.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO

from launcher.core.errors import ConfigError, LauncherError
from launcher.core.redact import redact, secret_values

SUMMARY_LIMIT = 1024 * 1024
"""Bytes of a step summary; one byte more and GitHub shows none of it."""

OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a job's outputs."""

ANNOTATIONS_SHOWN = 10
"""Annotations of one kind that GitHub shows for a step."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


def escape_data(text: str) -> str:
    """Text as the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Text as a property of a workflow command (``file=``, ``title=``)."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


@dataclass(frozen=True)
class Annotation:
    """A message that GitHub shows beside a line of a file, or for the whole run."""

    message: str
    file: str | None = None
    line: int | None = None
    title: str | None = None

    def command(self, kind: Literal["error", "warning", "notice"]) -> str:
        """The workflow command that makes the runner show it."""
        given = {"file": self.file, "line": None if self.line is None else str(self.line), "title": self.title}
        properties = ",".join(f"{key}={escape_property(value)}" for key, value in given.items() if value is not None)
        return f"::{kind}{' ' if properties else ''}{properties}::{escape_data(self.message)}"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file and self.line is not None else self.file
        return ": ".join(part for part in (where, self.title, self.message) if part)


class GitHub:
    """The runner's side of a step. Use as a context manager: leaving it writes the annotations that were held back.

    Writes from several threads do not mix within a line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        active: bool = True,
        output: Path | None = None,
        summary: Path | None = None,
        hide: Callable[[str], str] = str,
    ) -> None:
        """``hide`` takes secrets out of annotations and the summary: the runner masks only values that it was told."""
        self.active = active
        self._stream = stream
        self._output = output
        self._summary = summary
        self._hide = hide
        self._lock = threading.RLock()
        self._stopped: str | None = None
        self._written: dict[str, int] = {}
        self._held: dict[Literal["error", "warning"], list[Annotation]] = {}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], stream: TextIO) -> GitHub:
        """The step that this process runs in; one that does nothing when GITHUB_ACTIONS is not ``true``.

        The single-node workflow sets GITHUB_STEP_SUMMARY to the empty string; then there is no summary.
        """
        active = environ.get("GITHUB_ACTIONS") == "true"
        output, summary = environ.get("GITHUB_OUTPUT"), environ.get("GITHUB_STEP_SUMMARY")
        return cls(
            stream,
            active=active,
            output=Path(output) if active and output else None,
            summary=Path(summary) if active and summary else None,
            hide=partial(redact, environ=environ),
        )

    def __enter__(self) -> GitHub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def output(self, name: str, value: str) -> None:
        """Set an output of the step. Raises ConfigError for an impossible name or more than 1 MiB, and LauncherError
        when the runner's file cannot be written."""
        if not _NAME.match(name):
            raise ConfigError(f"{name!r} cannot be the name of a step's output")
        if self._output is None:
            return
        if "\n" in value or "\r" in value:
            delimiter = _delimiter(value)
            entry = f"{name}<<{delimiter}\n{value}\n{delimiter}\n"
        else:
            entry = f"{name}={value}\n"
        if len(entry.encode()) > OUTPUT_LIMIT:
            raise ConfigError(f"the output {name} is larger than GitHub's {OUTPUT_LIMIT} bytes")
        try:
            _append(self._output, entry.encode())
        except OSError as error:
            raise LauncherError(
                f"the output {name} cannot be written: {error.strerror}", where=str(self._output)
            ) from None

    def summary(self, markdown: str) -> None:
        """Append to the step summary. It is cut at a line where it would pass 1 MiB, and a note says so there.

        A summary that cannot be written is a warning: it must not fail a run whose results are good.
        """
        if self._summary is None:
            return
        text = self._hide(markdown if markdown.endswith("\n") else markdown + "\n")
        try:
            there = self._summary.stat().st_size if self._summary.exists() else 0
            _append(self._summary, _fit(text.encode(), SUMMARY_LIMIT - there))
        except OSError as error:
            self.warning(f"the step summary cannot be written: {error.strerror}")

    def error(
        self, message: str, *, file: str | None = None, line: int | None = None, title: str | None = None
    ) -> None:
        """Annotate the run with an error."""
        self._annotate("error", Annotation(message, file, line, title))

    def warning(
        self, message: str, *, file: str | None = None, line: int | None = None, title: str | None = None
    ) -> None:
        """Annotate the run with a warning."""
        self._annotate("warning", Annotation(message, file, line, title))

    def mask(self, value: str) -> None:
        """Have the runner replace ``value`` by ``***`` in everything the job prints from now on, line by line."""
        for part in value.splitlines():
            if part.strip():
                self._command(f"::add-mask::{escape_data(part.strip())}")

    def mask_secrets(self, environ: Mapping[str, str]) -> None:
        """Mask the secrets that `launcher.core.redact` finds in an environment."""
        for value in secret_values(environ):
            self.mask(value)

    @contextlib.contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Fold everything that is printed within the block under ``title``."""
        self._command(f"::group::{escape_data(title)}")
        try:
            yield
        finally:
            self._command("::endgroup::")

    @contextlib.contextmanager
    def job_log(self) -> Iterator[Callable[[str], None]]:
        """Give a function that writes lines of a job's log, which the runner shows and never obeys.

        Without this a line of a benchmark's log could set outputs or hide text. Our own commands (annotations, masks)
        still take effect within the block. After the block the runner obeys commands again, also when it fails.
        """
        token = f"launcher-{secrets.token_hex(16)}"
        with self._lock:
            self._command(f"::stop-commands::{token}")
            self._stopped = token if self.active else None
        try:
            yield self._line
        finally:
            with self._lock:
                self._stopped = None
                self._command(f"::{token}::")

    def flush(self) -> None:
        """Write the annotations that were held back: one alone as it is, several together as one."""
        with self._lock:
            for kind, held in self._held.items():
                if len(held) == 1:
                    self._command(held[0].command(kind))
                else:
                    self._command(Annotation("\n".join(map(str, held)), title=f"{len(held)} more").command(kind))
            self._held.clear()

    def _annotate(self, kind: Literal["error", "warning"], annotation: Annotation) -> None:
        annotation = replace(annotation, message=self._hide(annotation.message))
        with self._lock:
            if self._written.get(kind, 0) < ANNOTATIONS_SHOWN - 1:
                self._written[kind] = self._written.get(kind, 0) + 1
                self._command(annotation.command(kind))
            else:
                self._held.setdefault(kind, []).append(annotation)

    def _command(self, command: str) -> None:
        if not self.active:
            return
        with self._lock:
            if self._stopped:
                command = f"::{self._stopped}::\n{command}\n::stop-commands::{self._stopped}"
            self._stream.write(command + "\n")
            self._stream.flush()

    def _line(self, line: str) -> None:
        with self._lock:
            self._stream.write(line.rstrip("\n") + "\n")
            self._stream.flush()


def _delimiter(value: str) -> str:
    while True:
        delimiter = f"launcher_{secrets.token_hex(16)}"
        if delimiter not in value:
            return delimiter


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def _fit(text: bytes, room: int) -> bytes:
    """``text``, or as many of its lines as fit into ``room`` bytes together with a note on what was cut."""
    if len(text) <= room:
        return text
    note = "\n*Cut here: GitHub shows no summary above 1 MiB; {} bytes are left out.*\n"
    budget = room - len(note) - len(str(len(text)))
    if budget < 0:
        return b""
    kept = text[: text.rfind(b"\n", 0, budget + 1) + 1]
    return kept + note.format(len(text) - len(kept)).encode()
