"""The near side of a connection: requests, their events and results; and detection of a far side that is silent."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

from launcher.core.errors import LauncherError, RemoteError
from launcher.core.terminal import one_line
from launcher.remote.messages import (
    BEAT,
    LONGEST,
    MARKER,
    MOST_BEFORE,
    PROTOCOL,
    SILENCE,
    WINDOW,
    Greeting,
    Lines,
    T,
    decode,
    encode,
    received_error,
    typed,
    yield_all,
)
from launcher.remote.opener import Pipe

_GREETING = 60.0
"""Seconds for a login shell to start, and for a Python on a shared file system that is not cached."""
_NOT_INSTALLED = (126, 127)

Message = dict[str, Any]


def _boot_clock() -> float:
    """Seconds, also counted while a laptop sleeps: after more than `SILENCE` of sleep the far side has ended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Session:
    """A session with the agent at the end of a pipe, for use as a context manager; ``greeting`` is its first message.

    Raises RemoteError when there is no agent, and whenever the connection is lost; a pending request may then have
    been carried out or not.
    """

    def __init__(self, pipe: Pipe, host: str, *, clock: Callable[[], float] = _boot_clock) -> None:
        self._pipe = pipe
        self._host = host
        self._clock = clock
        self._send_lock = threading.Lock()
        self._answers: dict[int, queue.Queue[Message | LauncherError]] = {}
        self._unacknowledged: dict[int, int] = {}
        """Request → bytes that were received for it and not yet taken."""
        self._error: LauncherError | None = None
        self._shell_output = b""
        self._number = 0
        self._last_received = clock()
        self._closed = threading.Event()
        self._greeted: queue.Queue[Greeting | LauncherError] = queue.Queue()
        self._token = secrets.token_hex(16)
        threading.Thread(target=self._read, daemon=True, name="remote messages").start()
        pipe.send(encode({"protocol": PROTOCOL, "token": self._token}))
        answer: Greeting | LauncherError
        try:
            answer = self._greeted.get(timeout=_GREETING)
        except queue.Empty:
            answer = RemoteError(f"no launcher answered within {_GREETING:.0f} s", where=host)
        if isinstance(answer, LauncherError):
            self.close()
            raise answer
        self.greeting = answer
        threading.Thread(target=self._send_beats, daemon=True, name="remote heartbeat").start()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, method: str, kind: type[T], **params: Any) -> T:
        """The result of a method without events, of this type. Raises LauncherError as the far side raised it."""
        return typed(yield_all(self.stream(method, **params)), kind, self._host)

    def stream(self, method: str, **params: Any) -> Generator[Any, None, Any]:
        """Yields the events of a method as they come; the generator's value is the method's result."""
        with self._send_lock:
            self._number += 1
            number = self._number
            answers = self._answers[number] = queue.Queue()
        try:
            self._send({"id": number, "method": method, "params": params})
            while True:
                message = answers.get()  # when the connection is lost, `_fail` puts the error behind earlier answers
                if isinstance(message, LauncherError):
                    raise message
                if "error" in message:
                    raise received_error(message["error"], self._host)
                if "result" in message:
                    return message["result"]
                yield message.get("event")
                self._unacknowledged[number] -= message["size"]
                self._send({"id": number, "credit": message["size"]})
        finally:
            del self._answers[number]
            self._unacknowledged.pop(number, None)

    def close(self) -> None:
        """Close the connection: the agent ends, drivers go on."""
        self._closed.set()
        self._pipe.finish()
        self._pipe.close()

    def _send(self, message: Message) -> None:
        if self._error is not None:
            raise self._error
        line = encode(message)
        with self._send_lock:
            self._pipe.send(line)

    def _read(self) -> None:
        try:
            lines = Lines(self._host)
            shell_bytes = 0
            greeted = False
            header: Message | None = None
            while data := self._pipe.receive():
                self._last_received = self._clock()
                for line in lines.add(data):
                    if header is not None:
                        self._handle({"id": header.get("id"), "event": line}, len(line) + header["size"])
                        header = None
                    elif greeted:
                        message = decode(line, self._host)
                        if "body" in message:
                            lines.expect(message["body"])
                            header = {**message, "size": len(line) + 1}
                        else:
                            self._handle(message, len(line) + 1)
                    elif (greeting := self._greeting(line)) is not None:
                        greeted = True
                        self._greeted.put(greeting)
                    else:
                        shell_bytes += len(line) + 1
                        self._shell_output = line if line.strip() else self._shell_output
                if not greeted and (shell_bytes > MOST_BEFORE or len(data) > MOST_BEFORE):
                    raise RemoteError(f"its shell says more than {MOST_BEFORE >> 10} KiB before us", where=self._host)
            raise self._end_error(greeted)
        except LauncherError as error:
            self._fail(error)

    def _greeting(self, line: bytes) -> Greeting | None:
        words = line.decode(errors="replace").split(" ", 2)
        if words[0] != MARKER or len(words) != 3:
            return None
        if words[1] != self._token:
            raise RemoteError("the far side answers with another token than ours", where=self._host)
        greeting = typed(decode(words[2].encode(), self._host), Greeting, self._host)
        if greeting.protocol != PROTOCOL:
            other = one_line(greeting.version)[:80]
            hint = f"launcher remote install {self._host}"
            raise RemoteError(f"launcher {other} there speaks another protocol", where=self._host, hint=hint)
        return greeting

    def _handle(self, message: Message, size: int) -> None:
        number = message.get("id")
        answers = self._answers.get(number) if isinstance(number, int) else None
        if answers is None or not isinstance(number, int):
            return  # a beat, which has no id, or an answer to a request that was given up
        self._unacknowledged[number] = self._unacknowledged.get(number, 0) + size
        if self._unacknowledged[number] > WINDOW + 2 * LONGEST:
            raise RemoteError(f"it sends more than the {WINDOW >> 20} MiB that it may send unasked", where=self._host)
        answers.put({**message, "size": size})

    def _end_error(self, greeted: bool) -> RemoteError:
        code = self._pipe.status()
        output = one_line(self._pipe.stderr_tail()[-1000:] or self._shell_output[-1000:].decode(errors="replace"))
        if greeted:
            return RemoteError("the connection has gone", where=self._host, hint="what was started there goes on")
        if code in _NOT_INSTALLED:
            hint = f"launcher remote install {self._host}"
            return RemoteError("launcher is not installed there, or not in this version", where=self._host, hint=hint)
        end = "the connection went away" if code is None else f"it ended with {code}"
        return RemoteError(f"no launcher answered: {end}{f': {output}' if output else ''}", where=self._host)

    def _send_beats(self) -> None:
        while not self._closed.wait(BEAT):
            if self._clock() - self._last_received > SILENCE:
                hint = "what was started there goes on; connect again to see it"
                self._fail(RemoteError(f"nothing was heard for {SILENCE:.0f} s", where=self._host, hint=hint))
                self._pipe.close()
                return
            with contextlib.suppress(LauncherError):
                self._send({"beat": 1})

    def _fail(self, error: LauncherError) -> None:
        self._error = self._error or error
        self._greeted.put(error)
        for answers in list(self._answers.values()):
            answers.put(error)
