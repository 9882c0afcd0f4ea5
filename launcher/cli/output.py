"""Standard output that blocks no caller: text is buffered, and a thread writes it. And lines of logs for people.

A job must be followed, released and cancelled also while the terminal is stopped, or the reader of the pipe is slow.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.core.redact import LineRedactor
from launcher.core.stop import Stop
from launcher.core.terminal import Guarded, log_line, unguarded

BUFFER_LIMIT = 4 << 20
"""Characters in the buffer above which logs have to wait. Other output never waits, because it is little."""

WRITE_TIMEOUT = 10.0
"""Seconds without progress after which the rest of the buffer is dropped at the end."""

WRITE_TIMEOUT_WHEN_STOPPED = 0.5
"""The same after a signal."""


class BackgroundOutput:
    """Takes text without waiting, and writes it in order from a thread. It raises no error for a closed reader."""

    encoding = "utf-8"

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closed = self._reader_gone = False
        stream.flush()
        try:
            # Writes use the descriptor: a thread that hangs in a write must not hold the stream's lock at exit.
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._descriptor = None
        threading.Thread(target=self._write_loop, daemon=True, name="standard output").start()

    def write(self, text: str) -> int:
        with self._changed:
            if not self._closed and not self._reader_gone and text:
                self._waiting.append(text)
                self._size += len(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing, because the thread writes as soon as it can."""

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def wait_for_room(self) -> None:
        """Wait until the buffer has room, or the output is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._size < BUFFER_LIMIT or self._closed or self._reader_gone)

    def close(self, timeout: float = WRITE_TIMEOUT) -> bool:
        """Wait until everything is written, or nothing was written for ``timeout`` seconds; then take no more text.
        Returns whether everything was written."""
        with self._changed:
            size, since = self._size, time.monotonic()
            while self._size and not self._reader_gone and time.monotonic() < since + timeout:
                self._changed.wait(min(0.1, timeout))
                if self._size != size:
                    size, since = self._size, time.monotonic()
            self._closed = True
            self._changed.notify_all()
            return not self._size

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting or self._closed:
                    return
                text = self._waiting.popleft()
            try:
                self._write_out(text)
            except OSError:  # the reader has closed the pipe, or the disk is full
                self._reader_gone = True
            with self._changed:
                self._size = 0 if self._reader_gone else self._size - len(text)
                self._changed.notify_all()
            if self._reader_gone:
                return

    def _write_out(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        rest = memoryview(text.encode(errors="backslashreplace"))
        while rest:
            rest = rest[os.write(self._descriptor, rest[: 1 << 16]) :]


class LogFormatter:
    """Formats the lines of a job's log: without secrets and control characters, each behind a label."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._redactor = LineRedactor(os.environ)

    def format(self, lines: Sequence[str]) -> list[str]:
        text = log_line("\n".join(self._redactor.redact([f"{self._prefix}{line}" for line in lines])))
        return text.split("\n") if lines else []


@contextlib.contextmanager
def background_stdout(stop: Stop) -> Iterator[BackgroundOutput]:
    """Within the block, standard output is a `BackgroundOutput`. The end of the block waits until it is written."""
    before = sys.stdout
    output = BackgroundOutput(unguarded(before))
    guarded: Any = Guarded(output, github=os.environ.get("GITHUB_ACTIONS") == "true")  # type: ignore[arg-type]
    sys.stdout = guarded
    try:
        yield output
    finally:
        sys.stdout = before
        output.close(WRITE_TIMEOUT_WHEN_STOPPED if stop.requested() else WRITE_TIMEOUT)
