"""Trying again: what tenacity does, with the forms that programs' answers and their errors need."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from launcher.core.errors import LauncherError

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


def until(
    good: Callable[[T], bool],
    call: Callable[[], T],
    pauses: Sequence[float],
    *,
    within: float = math.inf,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
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
        last: T = error.last_attempt.result()
        return last


def asked_pause(text: str | None) -> float | None:
    """How many seconds a ``Retry-After`` asks for, by a number or a date (RFC 9110, 10.2.3); None when it says none."""
    from email.utils import parsedate_to_datetime  # what starts with each submission would pay for it

    with contextlib.suppress(ValueError, TypeError, AttributeError):
        said = (text or "").strip()
        return float(said) if said.isdecimal() else max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None


def error_of(state: RetryCallState) -> BaseException | None:
    """With what the last attempt failed; None when it did not."""
    return state.outcome.exception() if state.outcome else None


def telling(log: Callable[[str], None], of: str = "") -> Callable[[RetryCallState], None]:
    """For tenacity's ``before_sleep``: log which attempt failed, with what, and when the next one comes.

    ``of`` follows the number of the attempt (`` of 4``). Of an error the first line is logged, and the second, which
    is the line of a program's output that tells most.
    """

    def tell(state: RetryCallState) -> None:
        error = error_of(state)
        said = (error.message if isinstance(error, LauncherError) else str(error)).splitlines()
        message = ": ".join(line.strip() for line in said[:2])
        log(f"attempt {state.attempt_number}{of}: {message}; next one in {state.upcoming_sleep:.0f} s")

    return tell
