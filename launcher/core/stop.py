"""Requests to stop long work: by a signal, or by the caller."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType

from launcher.core.errors import Cancelled


@dataclass(frozen=True)
class Stop:
    """A request to stop, which may come at any moment, for everything that takes long.

    ``wait(seconds)`` waits that long, or returns True at once when the request has come. ``reason`` makes the error.
    """

    wait: Callable[[float], bool]
    reason: Callable[[], Cancelled] = lambda: Cancelled("stopped")

    @classmethod
    def never(cls, sleep: Callable[[float], None] = time.sleep) -> Stop:
        """A request that never comes: for a library's callers, and tests that move the clock by ``sleep``."""

        def wait(seconds: float) -> bool:
            if seconds > 0:
                sleep(seconds)
            return False

        return cls(wait)

    def or_when(self, condition: Callable[[], bool], reason: Callable[[], Cancelled], interval: float = 0.5) -> Stop:
        """A request that comes with this one, or when ``condition``, called every ``interval`` seconds, returns
        true."""

        def wait(seconds: float) -> bool:
            deadline = time.monotonic() + seconds
            while not self.wait(max(0.0, min(interval, deadline - time.monotonic()))):
                if condition():
                    return True
                if time.monotonic() >= deadline:
                    return False
            return True

        return Stop(wait, lambda: self.reason() if self.requested() else reason())

    def requested(self) -> bool:
        """Whether the request has come."""
        return self.wait(0)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Cancelled as soon as the request comes."""
        if self.wait(seconds):
            raise self.reason()

    def check(self) -> None:
        """Raise Cancelled when the request has come."""
        if self.requested():
            raise self.reason()


NEVER = Stop.never()
"""The request to stop that never comes."""


class StopEvent:
    """An event that a signal handler may set; it stays set.

    threading.Event takes a lock, and a handler runs in the main thread between two bytecodes: when that thread is just
    then inside `wait`, `set` waits for a lock that its own thread holds. `SimpleQueue.put` waits for nobody.
    """

    def __init__(self) -> None:
        self._raised = False
        self._wake: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._raised

    def set(self) -> None:
        if not self._raised:
            self._raised = True
            self._wake.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds (for ever without one) until the event is set; say whether it is."""
        if not self._raised:
            with contextlib.suppress(Empty):
                self._wake.get(timeout=None if timeout is None else max(0.0, timeout))
                self._wake.put(None)  # for the next one who waits
        return self._raised


class EndedBySignal(BaseException):
    """A signal that ends the command, as KeyboardInterrupt does for SIGINT: ``finally`` blocks then end children and
    remove temporaries. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise Ended in the main thread, where `stop_on_signals` does not take them.

    Python would die of them without running a ``finally``: a child in a session of its own
    (`launcher.core.process.run`) would work on, and temporaries stay. SIGHUP stays ignored where it is ignored already.
    Elsewhere than in the main thread, which alone gets signals, this does nothing.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise EndedBySignal(number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    with signal_handlers(handle, numbers):
        yield


HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signal_handlers(
    handle: Callable[[int, FrameType | None], object], numbers: Sequence[signal.Signals]
) -> Iterator[None]:
    """Within the block these signals have this handler, and then those of before. Elsewhere than in the main thread,
    which alone gets signals, this does nothing."""
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Within the block no handler of Python runs: signals that come meanwhile are handled at its end.

    For the start of a program: an exception that a handler raises inside `subprocess.Popen` would leave a running
    program that nothing refers to. (Blocking the signals would block them in the program too.)
    """
    received: list[int] = []
    try:
        with signal_handlers(
            lambda number, frame: received.append(number), [n for n in HANDLED_SIGNALS if callable(signal.getsignal(n))]
        ):
            yield
    finally:
        for missed in received:
            signal.raise_signal(missed)


@contextlib.contextmanager
def stop_on_signals(numbers: Sequence[signal.Signals] = HANDLED_SIGNALS) -> Iterator[Stop]:
    """Within the block SIGINT, SIGTERM and SIGHUP (or ``numbers``) are requests to stop, and nothing else.

    The first one decides the exit code of a Cancelled that leaves the block, whoever raised it: 130 after SIGINT, 143
    after SIGTERM, 129 after SIGHUP. GitHub cancels a step by SIGINT, 7.5 s later SIGTERM, 2.5 s later SIGKILL, all to
    the step's own process only. SIGHUP stays ignored where it is ignored already, as under nohup.
    """
    event = StopEvent()
    received: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        event.set()

    def reason() -> Cancelled:
        if not received:
            return Cancelled("stopped by request")
        return Cancelled(f"stopped by {received[0].name}", exit_code=128 + received[0])

    kept = [n for n in numbers if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
    with signal_handlers(handle, kept):
        try:
            yield Stop(event.wait, reason)
        except Cancelled as error:
            if received:
                error.exit_code = 128 + received[0]
                if error.message.startswith("stopped while"):  # the code that ended a program did not know the signal
                    error.message = f"stopped by {received[0].name}{error.message.removeprefix('stopped')}"
            raise
