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


def within(work: Callable[[], Answer], bound: float, say: Callable[[float], None]) -> Answer:
    """What the work returns or raises, which runs in a thread of its own. ``say`` gets the seconds so far, every TELL.

    Raises TimeoutError after ``bound`` seconds; the work then goes on, and nobody takes its answer.
    """
    answers: SimpleQueue[tuple[Answer | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001  # handed to the caller
            answers.put((None, error))

    began = time.monotonic()
    threading.Thread(target=run, daemon=True, name="within").start()
    told = 0.0
    while True:
        waited = time.monotonic() - began
        try:
            answer, error = answers.get(timeout=max(0.0, min(told + TELL, bound) - waited))
        except Empty:
            waited = time.monotonic() - began
            if waited >= bound:
                raise TimeoutError(f"no answer within {bound:.0f} s") from None
            if waited >= told + TELL:
                told = waited
                say(waited)
            continue
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # None only where the work returned it
