"""This side of a connection: requests, their events and results; and noticing that nobody answers any more."""

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
"""Seconds for a login shell, and for a Python from a cold shared file system, to start."""
_NOT_THERE = (126, 127)

Message = dict[str, Any]


def _awake_or_not() -> float:
    """Seconds that go on while a laptop sleeps: after a nap of more than `SILENCE` the far side has gone."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Session:
    """Speaks with the agent at the end of a pipe; ``greeting`` is what it said of itself.

    Use it as a context manager. Raises RemoteError when there is no agent, and whenever the connection goes away: what
    was asked then may have been done or not.
    """

    def __init__(self, pipe: Pipe, host: str, *, clock: Callable[[], float] = _awake_or_not) -> None:
        self._pipe = pipe
        self._host = host
        self._clock = clock
        self._sending = threading.Lock()
        self._waiting: dict[int, queue.Queue[Message | LauncherError]] = {}
        self._ahead: dict[int, int] = {}
        """Bytes that each request was sent, and that nobody has taken."""
        self._lost: LauncherError | None = None
        self._said_before = b""
        self._number = 0
        self._heard = clock()
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
        threading.Thread(target=self._beat, daemon=True, name="remote heartbeat").start()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, method: str, kind: type[T], **params: Any) -> T:
        """The result of a method that has no events, of this type. Raises LauncherError as the far side raised it."""
        return typed(yield_all(self.stream(method, **params)), kind, self._host)

    def stream(self, method: str, **params: Any) -> Generator[Any, None, Any]:
        """The events of a method as they come; the generator's value is its result."""
        with self._sending:
            self._number += 1
            number = self._number
            answers = self._waiting[number] = queue.Queue()
        try:
            self._send({"id": number, "method": method, "params": params})
            while True:
                message = answers.get() if self._lost is None else self._next(answers)
                if isinstance(message, LauncherError):
                    raise message
                if "error" in message:
                    raise received_error(message["error"], self._host)
                if "result" in message:
                    return message["result"]
                yield message.get("event")
                self._ahead[number] -= message["size"]
                self._send({"id": number, "credit": message["size"]})
        finally:
            del self._waiting[number]
            self._ahead.pop(number, None)

    def _next(self, answers: queue.Queue[Message | LauncherError]) -> Message | LauncherError:
        """What was answered before the connection went away, then that it has."""
        with contextlib.suppress(queue.Empty):
            return answers.get_nowait()
        assert self._lost is not None
        return self._lost

    def close(self) -> None:
        """End the connection: the agent ends, drivers go on."""
        self._closed.set()
        self._pipe.finish()
        self._pipe.close()

    def _send(self, message: Message) -> None:
        if self._lost is not None:
            raise self._lost
        line = encode(message)
        with self._sending:
            self._pipe.send(line)

    def _read(self) -> None:
        try:
            lines = Lines(self._host, LONGEST)
            before = 0
            greeted = False
            header: Message | None = None
            while data := self._pipe.receive():
                self._heard = self._clock()
                for line in lines.add(data):
                    if header is not None:
                        self._take({"id": header.get("id"), "event": line}, len(line) + header["size"])
                        header = None
                    elif greeted:
                        message = decode(line, self._host)
                        if "body" in message:
                            lines.expect(message["body"])
                            header = {**message, "size": len(line) + 1}
                        else:
                            self._take(message, len(line) + 1)
                    elif (greeting := self._greeting(line)) is not None:
                        greeted = True
                        self._greeted.put(greeting)
                    else:
                        before += len(line) + 1
                        self._said_before = line if line.strip() else self._said_before
                if not greeted and (before > MOST_BEFORE or len(data) > MOST_BEFORE):
                    raise RemoteError(f"its shell says more than {MOST_BEFORE >> 10} KiB before us", where=self._host)
            raise self._ended(greeted)
        except LauncherError as error:
            self._lose(error)

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

    def _take(self, message: Message, size: int) -> None:
        number = message.get("id")
        waiting = self._waiting.get(number) if isinstance(number, int) else None
        if waiting is None or not isinstance(number, int):
            return  # a beat has no id, and somebody may have stopped listening
        self._ahead[number] = self._ahead.get(number, 0) + size
        if self._ahead[number] > WINDOW + 2 * LONGEST:
            raise RemoteError(f"it sends more than the {WINDOW >> 20} MiB that it may send unasked", where=self._host)
        waiting.put({**message, "size": size})

    def _ended(self, greeted: bool) -> RemoteError:
        code = self._pipe.status()
        said = one_line(self._pipe.stderr_tail()[-1000:] or self._said_before[-1000:].decode(errors="replace"))
        if greeted:
            return RemoteError("the connection has gone", where=self._host, hint="what was started there goes on")
        if code in _NOT_THERE:
            hint = f"launcher remote install {self._host}"
            return RemoteError("launcher is not installed there, or not in this version", where=self._host, hint=hint)
        how = "the connection went away" if code is None else f"it ended with {code}"
        return RemoteError(f"no launcher answered: {how}{f': {said}' if said else ''}", where=self._host)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            if self._clock() - self._heard > SILENCE:
                hint = "what was started there goes on; connect again to see it"
                self._lose(RemoteError(f"nothing was heard for {SILENCE:.0f} s", where=self._host, hint=hint))
                self._pipe.close()
                return
            with contextlib.suppress(LauncherError):
                self._send({"beat": 1})

    def _lose(self, error: LauncherError) -> None:
        self._lost = self._lost or error
        self._greeted.put(error)
        for waiting in list(self._waiting.values()):
            waiting.put(error)
