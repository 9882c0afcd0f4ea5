"""Room for jobs on a runner whose file has `limits:`, among all drivers of one user: each job that may live has a
file, and these are counted. Of a runner without limits only jobs that a driver took over have one.

    <state>/sweeps/.slots/<runner>/<run id>.json   the nodes of one job

A file is made before the job is submitted and removed when the scheduler has said that the job is over, so that what a
killed driver left counts until somebody looks after it. Of two drivers that see too many, both step back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from launcher.core.publish import make_private, private_opener
from launcher.core.reading import read_file
from launcher.runner.cluster_schema import Limits

ROOM_AGAIN = 2.0
"""Seconds before room on a runner that was full is looked for again, unless a job of this driver has ended there."""


class Slots:
    """Room on the runners of one sweep, as its driver takes it among all drivers of this user, by files in
    ``directory``; ``limits`` are those of the runners' files. ``over`` says whether a run is over for good: its file is
    then a left one. ``say`` is told once what a disk refuses."""

    def __init__(
        self,
        directory: Path,
        limits: Mapping[str, Limits],
        over: Callable[[str], bool],
        say: Callable[[str, str], None] = lambda kind, text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._limits, self._over, self._say, self._clock = directory, limits, over, say, clock
        self._full: dict[str, float] = {}
        self._reported = ""

    def take(self, runner: str, run: str, nodes: int, *, always: bool = False) -> bool:
        """Take room for a job; False when there is none. With ``always`` it is taken, as the job may live already. A
        disk that takes no file of it keeps a job from beginning."""
        if not always and self._full.get(runner, -1e9) > self._clock() - ROOM_AGAIN:
            return False
        try:
            taken = self._take(runner, run, nodes, always)
        except OSError as error:
            if self._reported != str(error):
                self._reported = str(error)
                text = f"room on {runner} cannot be taken: {error}; no job is submitted there until it can"
                self._say("error", text)
            taken = False
        else:
            self._reported = ""
        if not taken:
            self._full[runner] = self._clock()
        return taken

    def _take(self, runner: str, run: str, nodes: int, always: bool) -> bool:
        limits, path = self._limits.get(runner, Limits()), self._file(runner, run)
        if limits.max_jobs is None and limits.max_nodes is None and not always:
            return True
        make_private(path.parent)
        with contextlib.suppress(FileExistsError):
            handle = private_opener(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                os.write(handle, msgspec.json.encode(nodes))
            except OSError:
                path.unlink()
                raise
            finally:
                os.close(handle)
        if always:
            return True
        used = [_nodes_of(other) for other in path.parent.glob("*.json") if other != path and not self._left(other)]
        jobs_fit = limits.max_jobs is None or len(used) + 1 <= limits.max_jobs
        if jobs_fit and (limits.max_nodes is None or sum(used) + nodes <= limits.max_nodes):
            return True
        self.give_back(runner, run)
        return False

    def give_back(self, runner: str, run: str) -> None:
        """The job is over, or was never submitted."""
        self._full.pop(runner, None)
        with contextlib.suppress(OSError):
            self._file(runner, run).unlink()

    def _file(self, runner: str, run: str) -> Path:
        return self._directory / runner / f"{run}.json"

    def _left(self, path: Path) -> bool:
        if self._over(path.stem):
            with contextlib.suppress(OSError):
                path.unlink()
            return True
        return False


def _nodes_of(path: Path) -> int:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(read_file(path, 100), type=int)
    return 1
