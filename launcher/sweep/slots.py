"""Slots for jobs on a runner whose file has `limits:`, shared by all drivers of one user: each job that may live has a
file, and the files are counted. On a runner without limits only jobs that a driver took over have a file.

    <state>/sweeps/.slots/<runner>/<run id>.json   the nodes of one job

A file is made before the job is submitted and removed when the scheduler has said that the job is over, so that files
of a killed driver count until another one takes its jobs over. When two drivers see too many files, both withdraw.
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
"""Seconds before a full runner is checked again, unless a job of this driver has ended there."""


class Slots:
    """The slots of one driver, as files in ``directory``, which all drivers of this user share; ``limits`` are those of
    the runners' files. ``over`` says whether a run is over, so that its file is stale. ``say`` reports once that a
    disk refuses a file."""

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
        """Take a slot for a job; False when none is free, or when its file cannot be written. With ``always`` take it
        in any case, for a job that may live already."""
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
        used = [
            _nodes_of(other)
            for other in path.parent.glob("*.json")
            if other != path and not self._remove_if_stale(other)
        ]
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

    def _remove_if_stale(self, path: Path) -> bool:
        if self._over(path.stem):
            with contextlib.suppress(OSError):
                path.unlink()
            return True
        return False


def _nodes_of(path: Path) -> int:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(read_file(path, 100), type=int)
    return 1
