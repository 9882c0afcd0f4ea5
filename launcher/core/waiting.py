"""Waiting for work that may hang, with a word for the person who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

TELL = 2.0
"""Seconds between two lines about what is waited for."""

Answer = TypeVar("Answer")


def begin(work: Callable[[], Answer]) -> Callable[[float | None], Answer]:
    """Begin work in a thread of its own. What it returns or raises is given by the function that comes back, which
    waits for that: so many seconds, None for as long as it takes. Raises queue.Empty when the time is over."""
    answers: SimpleQueue[tuple[Answer | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001  # handed to who asks
            answers.put((None, error))

    def answer(seconds: float | None) -> Answer:
        value, error = answers.get(timeout=seconds)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # None only where the work returned it

    threading.Thread(target=run, daemon=True, name="begun").start()
    return answer


def within(work: Callable[[], Answer], bound: float, say: Callable[[float], None]) -> Answer:
    """What the work returns or raises, which runs in a thread of its own. ``say`` gets the seconds so far, every TELL.

    Raises TimeoutError after ``bound`` seconds; the work then goes on, and nobody takes its answer.
    """
    began, told = time.monotonic(), 0.0
    answer = begin(work)
    while True:
        waited = time.monotonic() - began
        try:
            return answer(max(0.0, min(told + TELL, bound) - waited))
        except Empty:
            waited = time.monotonic() - began
            if waited >= bound:
                raise TimeoutError(f"no answer within {bound:.0f} s") from None
            if waited >= told + TELL:
                told = waited
                say(waited)
