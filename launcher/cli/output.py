"""Standard output that holds up nobody: what is written is kept, and a thread of its own writes it; lines of logs.

A terminal that was stopped, a reader that is slow, a pipe that nobody reads: a job must be followed, released and
cancelled all the same.
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
"""Characters that may wait to be written before a log has to wait. What else is said never waits: it is little."""

WRITE_TIMEOUT = 10.0
"""Seconds without progress after which the rest is left, at the end."""

WRITE_TIMEOUT_WHEN_STOPPED = 0.5
"""The same when we were asked to stop."""


class BackgroundOutput:
    """Takes text at once and writes it in order. Raises nothing for a reader that has gone."""

    encoding = "utf-8"

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closed = self._gone = False
        stream.flush()
        try:
            # By its number: a thread that hangs in a write must not hold the stream's lock when the process ends.
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._descriptor = None
        threading.Thread(target=self._write_on, daemon=True, name="standard output").start()

    def write(self, text: str) -> int:
        with self._changed:
            if not self._closed and not self._gone and text:
                self._waiting.append(text)
                self._size += len(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: the thread writes as soon as it can."""

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def wait_for_room(self) -> None:
        """Wait until little waits to be written, or nobody reads any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._size < BUFFER_LIMIT or self._closed or self._gone)

    def close(self, patience: float = WRITE_TIMEOUT) -> bool:
        """Take no more; wait until everything is written, or nothing was for ``patience`` seconds. Whether it was."""
        with self._changed:
            left, since = self._size, time.monotonic()
            while self._size and not self._gone and time.monotonic() < since + patience:
                self._changed.wait(min(0.1, patience))
                if self._size != left:
                    left, since = self._size, time.monotonic()
            self._closed = True
            self._changed.notify_all()
            return not self._size

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting or self._closed:
                    return
                text = self._waiting.popleft()
            try:
                self._write_out(text)
            except OSError:  # the reader has gone; a full disk behind standard output is the same to us
                self._gone = True
            with self._changed:
                self._size = 0 if self._gone else self._size - len(text)
                self._changed.notify_all()
            if self._gone:
                return

    def _write_out(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        left = memoryview(text.encode(errors="backslashreplace"))
        while left:
            left = left[os.write(self._descriptor, left[: 1 << 16]) :]


class LogFormatter:
    """The lines of a job's log as they are shown: without secrets and control characters, behind a label."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._redactor = LineRedactor(os.environ)

    def format(self, lines: Sequence[str]) -> list[str]:
        text = log_line("\n".join(self._redactor.redact([f"{self._prefix}{line}" for line in lines])))
        return text.split("\n") if lines else []


@contextlib.contextmanager
def background_stdout(stop: Stop) -> Iterator[BackgroundOutput]:
    """Within the block standard output is an `Output`; what is not written at the end is waited for, within bounds."""
    before = sys.stdout
    output = BackgroundOutput(unguarded(before))
    guarded: Any = Guarded(output, github=os.environ.get("GITHUB_ACTIONS") == "true")  # type: ignore[arg-type]
    sys.stdout = guarded
    try:
        yield output
    finally:
        sys.stdout = before
        output.close(WRITE_TIMEOUT_WHEN_STOPPED if stop.requested() else WRITE_TIMEOUT)
