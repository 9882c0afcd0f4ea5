"""Work that may take long, hang or fail: in a thread of its own, with messages while it is waited for, and with retries
by tenacity."""

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
"""Seconds between two messages about what is waited for."""

Answer = TypeVar("Answer")


def start_in_thread(work: Callable[[], Answer], name: str = "begun") -> Future[Answer]:
    """Start work in a thread of this name. The future has what it returns or raises."""
    # No executor: at the interpreter's end that would wait for work that hangs.
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001  # the future raises it
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return answer


def wait_with_progress(work: Callable[[], Answer], bound: float, report: Callable[[float], None]) -> Answer:
    """Run work in a thread of its own. Returns or raises what it does. ``report`` gets the seconds so far, every
    `PROGRESS_INTERVAL`.

    Raises TimeoutError after ``bound`` seconds; the work then goes on, and its answer is not used.
    """
    began, reported, answer = time.monotonic(), 0.0, start_in_thread(work)
    while not wait([answer], max(0.0, min(reported + PROGRESS_INTERVAL, bound) - (time.monotonic() - began))).done:
        waited = time.monotonic() - began
        if waited >= bound:
            raise TimeoutError(f"no answer within {bound:.0f} s")
        if waited >= reported + PROGRESS_INTERVAL:
            reported = waited
            report(waited)
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
    """The seconds of a ``Retry-After`` header, a number or a date (RFC 9110, 10.2.3); None when it has neither."""
    from email.utils import parsedate_to_datetime  # what starts with each submission would pay for it

    with contextlib.suppress(ValueError, TypeError, AttributeError):
        value = (text or "").strip()
        return float(value) if value.isdecimal() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def last_error(state: RetryCallState) -> BaseException | None:
    """The exception of the last attempt; None when it did not fail."""
    return state.outcome.exception() if state.outcome else None


def log_retries(log: Callable[[str], None], of: str = "") -> Callable[[RetryCallState], None]:
    """For tenacity's ``before_sleep``: log which attempt failed, its error, and when the next one starts.

    ``of`` follows the number of the attempt (`` of 4``). The first two lines of an error are logged: the second one is
    the most useful line of a program's output.
    """

    def log_attempt(state: RetryCallState) -> None:
        error = last_error(state)
        lines = (error.message if isinstance(error, LauncherError) else str(error)).splitlines()
        message = ": ".join(line.strip() for line in lines[:2])
        log(f"attempt {state.attempt_number}{of}: {message}; next one in {state.upcoming_sleep:.0f} s")

    return log_attempt
