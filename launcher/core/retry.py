"""Trying again: what tenacity does, with the one form that programs' answers need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
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
    from tenacity import RetryCallState, Retrying, retry_if_result

    def last_answer(state: RetryCallState) -> T:
        assert state.outcome is not None  # tenacity calls this after an attempt
        answer: T = state.outcome.result()
        return answer

    attempts = Retrying(
        stop=stop,
        wait=wait,
        retry=retry_if_result(lambda answer: not good(answer)),
        retry_error_callback=last_answer,
        sleep=sleep,
    )
    return attempts(call)
