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
from functools import partial
from pathlib import Path
from typing import Literal, TextIO

from launcher.core.errors import ConfigError, LauncherError
from launcher.core.redact import redact, secret_values
from launcher.core.terminal import one_line, printable, unguarded

SUMMARY_LIMIT = 1024 * 1024
"""Bytes of a step summary; one byte more and GitHub shows none of it."""

OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a job's outputs."""

ANNOTATIONS_SHOWN = 10
"""Annotations of one kind that GitHub shows for a step."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")

_Kind = Literal["error", "warning", "notice"]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def annotation(
    kind: _Kind, message: str, *, file: str | None = None, line: int | None = None, title: str | None = None
) -> str:
    """The workflow command by which GitHub shows a message beside a line of a file, or for the whole run."""
    values = {"file": file, "line": line, "title": title}
    properties = ",".join(
        f"{key}={_escaped(str(value)).replace(':', '%3A').replace(',', '%2C')}"
        for key, value in values.items()
        if value is not None
    )
    return f"::{kind}{' ' if properties else ''}{properties}::{_escaped(message)}"


class GitHub:
    """The runner's side of the step that this process runs in; it does nothing where GITHUB_ACTIONS is not ``true``.

    Use as a context manager: leaving it writes the annotations that were held back. Writes from several threads do not
    mix within a line. Secrets of ``environ`` are taken out of annotations and the summary, because the runner masks
    only values that it was told.
    """

    def __init__(self, environ: Mapping[str, str], stream: TextIO) -> None:
        # The single-node workflow sets GITHUB_STEP_SUMMARY to the empty string; then there is no summary.
        self.active = environ.get("GITHUB_ACTIONS") == "true"
        output, summary = (environ.get(name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"))
        self._output = Path(output) if self.active and output else None
        self._summary = Path(summary) if self.active and summary else None
        variables = environ.get("GITHUB_ENV")
        self._variables = Path(variables) if self.active and variables else None
        self._stream = unguarded(stream)
        self._hide = partial(redact, environ=environ)
        self._lock = threading.RLock()
        self._stopped: str | None = None
        self._written: dict[str, int] = {}
        self._postponed: dict[_Kind, list[tuple[str, str]]] = {}  # each as its own command, and as text of a common one

    def __enter__(self) -> GitHub:
        return self

    def __exit__(self, *exception: object) -> None:
        """Write the annotations that were held back: one alone as it is, several together as one."""
        with self._lock:
            for kind, group in self._postponed.items():
                texts = "\n".join(text for _, text in group)
                self._command(group[0][0] if len(group) == 1 else annotation(kind, texts, title=f"{len(group)} more"))
            self._postponed.clear()

    def output(self, name: str, value: str) -> None:
        """Set an output of the step. Raises ConfigError for an impossible name or more than 1 MiB, and LauncherError
        when the runner's file cannot be written."""
        if not _NAME.match(name):
            raise ConfigError(f"{name!r} cannot be the name of a step's output")
        self._append_entry(self._output, "output", name, value)

    def variable(self, name: str, value: str) -> None:
        """Set a variable of the job's later steps. A runner's file that cannot be written is a warning."""
        try:
            self._append_entry(self._variables, "variable", name, value)
        except LauncherError as error:
            self.warning(str(error))

    def _append_entry(self, path: Path | None, noun: str, name: str, value: str) -> None:
        if path is None:
            return
        delimiter = f"launcher_{secrets.token_hex(16)}"
        entry = f"{name}<<{delimiter}\n{value}\n{delimiter}\n"
        if len(entry.encode(errors="backslashreplace")) > OUTPUT_LIMIT:
            raise ConfigError(f"the {noun} {name} is larger than GitHub's {OUTPUT_LIMIT} bytes")
        try:
            with path.open("ab") as file:
                file.write(entry.encode(errors="backslashreplace"))
        except OSError as error:
            raise LauncherError(f"the {noun} {name} cannot be written: {error.strerror}", where=str(path)) from None

    def summary(self, markdown: str) -> None:
        """Append to the step summary. It is cut at a line where it would pass 1 MiB, and a note says so there.

        A summary that cannot be written is a warning: it must not fail a run whose results are good.
        """
        if self._summary is None:
            return
        text = self._hide(markdown if markdown.endswith("\n") else markdown + "\n")
        try:
            with self._summary.open("ab") as file:
                file.write(_fit(text.encode(errors="backslashreplace"), SUMMARY_LIMIT - file.tell()))
        except OSError as error:
            self.warning(f"the step summary cannot be written: {error.strerror}")

    def error(
        self, message: str, *, file: str | None = None, line: int | None = None, title: str | None = None
    ) -> None:
        """Annotate a line of a file, or the whole run, with an error."""
        self._annotate("error", message, file, line, title)

    def warning(
        self, message: str, *, file: str | None = None, line: int | None = None, title: str | None = None
    ) -> None:
        """Annotate a line of a file, or the whole run, with a warning."""
        self._annotate("warning", message, file, line, title)

    def mask_secrets(self, environ: Mapping[str, str]) -> None:
        """Have the runner replace the secrets of an environment by ``***`` in everything the job prints from now on."""
        for value in secret_values(environ):
            # The runner compares line by line. The lines of a value that are secrets are among the values; of those
            # that are not, a brace or a bracket, the mask would eat the log.
            if len(value.splitlines()) == 1:
                self._command(f"::add-mask::{_escaped(value)}")

    @contextlib.contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Fold everything that is printed within the block under ``title``."""
        self._command(f"::group::{_escaped(printable(title))}")
        try:
            yield
        finally:
            self._command("::endgroup::")

    @contextlib.contextmanager
    def job_log(self) -> Iterator[Callable[[str], None]]:
        """Give a function that writes lines of a job's log, one or a block, which the runner shows and never obeys.

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

    def _annotate(self, kind: _Kind, message: str, file: str | None, line: int | None, title: str | None) -> None:
        message = "\r".join(map(printable, self._hide(message).split("\r")))
        title = one_line(title) if title is not None else None
        command = annotation(kind, message, file=file, line=line, title=title)
        with self._lock:
            if self._written.get(kind, 0) < ANNOTATIONS_SHOWN - 1:
                self._written[kind] = self._written.get(kind, 0) + 1
                self._command(command)
            else:
                where = f"{file}:{line}" if file and line is not None else file
                text = ": ".join(part for part in (where, title, message) if part)
                self._postponed.setdefault(kind, []).append((command, text))

    def _command(self, command: str) -> None:
        if not self.active:
            return
        with self._lock:
            if self._stopped:
                command = f"::{self._stopped}::\n{command}\n::stop-commands::{self._stopped}"
            self._line(command)

    def _line(self, line: str) -> None:
        with self._lock:
            self._stream.write(line.rstrip("\n") + "\n")
            self._stream.flush()


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
