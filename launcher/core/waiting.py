"""Work that may take long or hang: begun in a thread of its own, and waited for with a word to the person who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

TELL = 2.0
"""Seconds between two lines about what is waited for."""

Answer = TypeVar("Answer")


def begin(work: Callable[[], Answer], name: str = "begun") -> Future[Answer]:
    """Begin work in a thread of its own of this name; the future gives what it returns or raises.

    No executor: that would wait for work that hangs when the interpreter ends.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001  # handed to who asks
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return answer


def within(work: Callable[[], Answer], bound: float, say: Callable[[float], None]) -> Answer:
    """What the work returns or raises, which runs in a thread of its own. ``say`` gets the seconds so far, every TELL.

    Raises TimeoutError after ``bound`` seconds; the work then goes on, and nobody takes its answer.
    """
    began, told, answer = time.monotonic(), 0.0, begin(work)
    while not wait([answer], max(0.0, min(told + TELL, bound) - (time.monotonic() - began))).done:
        waited = time.monotonic() - began
        if waited >= bound:
            raise TimeoutError(f"no answer within {bound:.0f} s")
        if waited >= told + TELL:
            told = waited
            say(waited)
    return answer.result()
