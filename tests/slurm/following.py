"""A loop around `JobPoller`, as tests and measurements need it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from launcher.slurm.client import JobKey, JobState, Scheduler
from launcher.slurm.poller import JobPoller, Pace, PollRound


def rounds(
    poller: JobPoller,
    *,
    wait: Callable[[float], object] = time.sleep,
    tick: float = 0.02,
    markers: Callable[[], Mapping[JobKey, JobState]] = dict,
    held: Collection[JobKey] = (),
    seconds: float = math.inf,
) -> Iterator[PollRound]:
    """Every answer, until no job is watched any more, or ``seconds`` of real time are over. ``wait`` passes the time
    between two looks, by ``tick`` seconds; it is not called while the scheduler is being asked, which happens in real
    time."""
    deadline = time.monotonic() + seconds
    while poller.watched and time.monotonic() < deadline:
        if (answer := poller.poll(markers=markers(), held=held)) is not None:
            yield answer
        elif poller._query is not None:
            time.sleep(0.0005)
        else:
            wait(tick)


def follow(scheduler: Scheduler, jobs: Sequence[JobKey], *, pace: Pace = Pace()) -> dict[JobKey, JobState]:
    """The last states of jobs that are followed to their ends. Raises JobError for one that is given up."""
    poller = JobPoller(scheduler, pace=pace)
    for job in jobs:
        poller.watch(job)
    states: dict[JobKey, JobState] = {}
    for answer in rounds(poller):
        states.update(answer.states)
        for change in answer.changes:
            if change.given_up is not None:
                raise change.given_up
    return states
