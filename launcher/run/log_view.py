"""Showing the logs of jobs while they grow, in a thread of its own.

A job may write faster than anybody can read, and a reader may stand still. Neither delays a question to Slurm, a
release, the end of a job or a stop: in each round a bounded part of each log is read, and what nobody could keep up
with is left out, and said to be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.run.kind import Run
from launcher.slurm.logs import LogFollower

ShowLog = Callable[[str, Sequence[str]], None]
"""Takes (run id, lines): new lines of a run's job log. It may wait for a reader."""

READS = 8
"""Reads of a round, of a mebibyte each at most (`launcher.slurm.logs.READ_AT_ONCE`), shared by all logs."""

LAST = 16 << 20
"""Bytes that are still shown of a log that has ended; of more, only the end."""


class LogView:
    """Follows the logs of runs and shows them every ``tick`` seconds. Without ``show`` it does nothing."""

    def __init__(self, show: ShowLog | None, tick: float) -> None:
        self._show = show
        self._tick = tick
        self._followed: dict[str, tuple[Run, LogFollower]] = {}
        self._ended: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_on, daemon=True, name="logs")

    def follow(self, run: Run) -> None:
        """Show the log of this run's job from here on."""
        if self._show is not None and run.record.job is not None:
            self._followed[run.id] = run, LogFollower(Path(run.record.job.log))
            if not self._thread.is_alive():
                self._thread.start()

    def end(self, run: Run) -> None:
        """The log of this run has ended: show the rest, and follow it no more."""
        self._ended.add(run.id)

    def close(self, seconds: float) -> None:
        """Show what is left of logs that have ended, for so many ``seconds`` at most."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _show_on(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._tick)
            for run, follower in list(self._followed.values()):
                ended = run.id in self._ended
                try:
                    if ended:
                        self._show_last(run, follower)
                    elif not over:
                        self._show_new(run, follower, max(1, READS // len(self._followed)))
                except Exception as fault:  # noqa: BLE001  # whatever is wrong with the viewer, the job goes on
                    run.record.event("warning", f"the log is shown no more: {type(fault).__name__}: {fault}")
                    ended = True
                if ended:
                    follower.close()
                    del self._followed[run.id]

    def _show_new(self, run: Run, follower: LogFollower, reads: int, most: int | None = None) -> None:
        assert self._show is not None
        if left_out := follower.catch_up(most):
            self._show(run.id, left_out)
        for _ in range(reads):
            lines = follower.read_new()
            if not lines and not follower.behind:
                return
            self._show(run.id, lines)

    def _show_last(self, run: Run, follower: LogFollower) -> None:
        assert self._show is not None
        self._show_new(run, follower, LAST >> 20, LAST)
        self._show(run.id, follower.flush())
