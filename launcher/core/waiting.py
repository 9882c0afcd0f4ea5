"""Work that may take long, hang or fail: begun in a thread of its own, waited for with a word to the person who waits,
and tried again, by tenacity, with the forms that programs' answers and their errors need."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

from launcher.core.errors import LauncherError

if TYPE_CHECKING:
    from tenacity import RetryCallState


PROGRESS_INTERVAL = 2.0
"""Seconds between two lines about what is waited for."""

Answer = TypeVar("Answer")


def start_in_thread(work: Callable[[], Answer], name: str = "begun") -> Future[Answer]:
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


def wait_with_progress(work: Callable[[], Answer], bound: float, say: Callable[[float], None]) -> Answer:
    """What the work returns or raises, which runs in a thread of its own. ``say`` gets the seconds so far, every TELL.

    Raises TimeoutError after ``bound`` seconds; the work then goes on, and nobody takes its answer.
    """
    began, told, answer = time.monotonic(), 0.0, start_in_thread(work)
    while not wait([answer], max(0.0, min(told + PROGRESS_INTERVAL, bound) - (time.monotonic() - began))).done:
        waited = time.monotonic() - began
        if waited >= bound:
            raise TimeoutError(f"no answer within {bound:.0f} s")
        if waited >= told + PROGRESS_INTERVAL:
            told = waited
            say(waited)
    return answer.result()


def retry_until(
    good: Callable[[Answer], bool],
    call: Callable[[], Answer],
    pauses: Sequence[float],
    *,
    within: float = math.inf,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Call until the answer is good, again after each of the ``pauses``; the last answer, good or not.

    After ``within`` seconds no further attempt is made. Raises what ``call`` and ``sleep`` raise.
    """
    import tenacity

    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(len(pauses) + 1) | tenacity.stop_after_delay(within),
        wait=tenacity.wait_chain(*map(tenacity.wait_fixed, [*pauses, 0.0])),
        sleep=sleep,
        retry=tenacity.retry_if_result(lambda answer: not good(answer)),
    )
    try:
        return attempts(call)
    except tenacity.RetryError as error:
        last: Answer = error.last_attempt.result()
        return last


def retry_after_seconds(text: str | None) -> float | None:
    """How many seconds a ``Retry-After`` asks for, by a number or a date (RFC 9110, 10.2.3); None when it says none."""
    from email.utils import parsedate_to_datetime  # what starts with each submission would pay for it

    with contextlib.suppress(ValueError, TypeError, AttributeError):
        said = (text or "").strip()
        return float(said) if said.isdecimal() else max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None


def last_error(state: RetryCallState) -> BaseException | None:
    """With what the last attempt failed; None when it did not."""
    return state.outcome.exception() if state.outcome else None


def log_retries(log: Callable[[str], None], of: str = "") -> Callable[[RetryCallState], None]:
    """For tenacity's ``before_sleep``: log which attempt failed, with what, and when the next one comes.

    ``of`` follows the number of the attempt (`` of 4``). Of an error the first line is logged, and the second, which
    is the line of a program's output that tells most.
    """

    def tell(state: RetryCallState) -> None:
        error = last_error(state)
        said = (error.message if isinstance(error, LauncherError) else str(error)).splitlines()
        message = ": ".join(line.strip() for line in said[:2])
        log(f"attempt {state.attempt_number}{of}: {message}; next one in {state.upcoming_sleep:.0f} s")

    return tell
