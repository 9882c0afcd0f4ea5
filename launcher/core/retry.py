"""Trying again: what tenacity does, with the forms that programs' answers and their errors need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from launcher.core.errors import LauncherError

if TYPE_CHECKING:
    from tenacity import RetryCallState
    from tenacity.stop import StopBaseT
    from tenacity.wait import WaitBaseT

T = TypeVar("T")


def until(
    good: Callable[[T], bool],
    call: Callable[[], T],
    *,
    stop: StopBaseT,
    wait: WaitBaseT,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call until the answer is good or ``stop`` says that it is enough; the last answer, good or not.

    ``stop`` and ``wait`` are tenacity's. Raises what ``call`` and ``sleep`` raise.
    """
    from tenacity import RetryError, Retrying, retry_if_result

    attempts = Retrying(stop=stop, wait=wait, sleep=sleep, retry=retry_if_result(lambda answer: not good(answer)))
    try:
        return attempts(call)
    except RetryError as error:
        last: T = error.last_attempt.result()
        return last


def error_of(state: RetryCallState) -> BaseException | None:
    """With what the last attempt failed; None when it did not."""
    return state.outcome.exception() if state.outcome else None


def telling(log: Callable[[str], None], of: str = "") -> Callable[[RetryCallState], None]:
    """For tenacity's ``before_sleep``: log which attempt failed, with what, and when the next one comes.

    ``of`` follows the number of the attempt (`` of 4``). Only the first line of an error is logged.
    """

    def tell(state: RetryCallState) -> None:
        error = error_of(state)
        message, _, _ = (error.message if isinstance(error, LauncherError) else str(error)).partition("\n")
        log(f"attempt {state.attempt_number}{of}: {message}; next one in {state.upcoming_sleep:.0f} s")

    return tell
