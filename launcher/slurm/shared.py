"""One query to Slurm for all launchers of a user on a machine: one of them queries for all, the others read its answer.

    <directory>/<host>-<boot>-<user>-<cluster>/
        wants/<pid>-<n>.json   the request of one launcher: the jobs that it follows, and when it last renewed the
        request answer.json            the last answer, and when its query began
        lease                  the lock of the launcher that is querying (launcher/core/lease.py)

There is no daemon. Times are of the machine's monotonic clock, which all its processes share. Each machine has a
directory of its own, because other machines may see the same file system. The files only save queries: a launcher that
cannot read or write them queries for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from launcher.core.errors import SubmissionError
from launcher.core.lease import Lock, LockPace
from launcher.core.process import ProcessIdentity
from launcher.core.publish import make_private, write_bytes
from launcher.core.reading import read_json
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler

_T = TypeVar("_T")

MAX_AGE = 15.0
"""Answers whose query began more seconds ago are ignored. This is half of the longest pause between queries about
running jobs: sharing delays the news of an end by at most this, and Slurm is queried 4 times a minute, or as often as
the launcher that queries most."""

PATIENCE = 15.0
"""Seconds to wait for the answer of a launcher that is querying, before querying oneself."""

LEASE = 5.0
"""Seconds without a heartbeat after which the lease of a stopped launcher is broken. That of a dead one is broken at
once."""

ALONE_AFTER_CANCEL = 60.0
"""Seconds after a cancel in which a launcher queries only for itself: it may have only seconds left to see its jobs
end."""

REQUEST_LIFETIME = 180.0
"""Seconds for which a request is valid: three of the longest pauses between queries."""


@dataclass(frozen=True)
class _Request:
    process: ProcessIdentity
    at: float
    jobs: list[JobKey]


@dataclass(frozen=True)
class _Answer:
    asked: float
    states: list[tuple[JobKey, JobState]]
    schema: Literal[1] = 1


class SharedPoller:
    """A Scheduler that queries ``inner`` only where no other launcher's answer is enough. Several threads may use it.

    A shared answer is used for a job when its query named this very job (`JobKey`) and began after this launcher first
    asked about the job, later than the query of the last answer that it used, and at most ``max_age`` seconds ago.
    UNKNOWN is never taken from another launcher. Everything but `poll` and `cancel` is that of ``inner``. ``cluster``
    (SLURM_CONF) separates clusters, whose job ids are unrelated.
    """

    def __init__(
        self,
        inner: Scheduler,
        directory: Path,
        *,
        cluster: str = "",
        max_age: float = MAX_AGE,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        process = ProcessIdentity.current()
        digest = hashlib.sha256(cluster.encode()).hexdigest()[:8]
        self.inner = inner
        self.name, self.find, self.release, self.describe = inner.name, inner.find, inner.release, inner.describe
        self.directory = directory / f"{process.host}-{process.boot[:8]}-{os.getuid()}-{digest}"
        self._process = process
        self._request_file = self.directory / "wants" / f"{process.pid}-{secrets.token_hex(4)}.json"
        self._max_age, self._patience, self._clock = max_age, patience, clock
        self._since: dict[JobKey, float] = {}
        self._queries_alone_until = 0.0
        self._lock = threading.Lock()

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Cancel by ``inner``. For `ALONE_AFTER_CANCEL` seconds after that `poll` queries only for this launcher."""
        try:
            self.inner.cancel(jobs)
        finally:
            self._queries_alone_until = self._clock() + ALONE_AFTER_CANCEL

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """The states of all jobs: from another launcher's answer, or else by one query for all launchers."""
        began = self._clock()
        with self._lock:
            for job in jobs:
                self._since.setdefault(job, began)
        if not jobs or began < self._queries_alone_until or not self._publish_request(jobs):
            return self._use_answer(jobs, _Answer(began, list(self.inner.poll(jobs).items())))
        answer = self._published_answer(jobs)
        if answer is None:
            pace = LockPace(lease=LEASE, beat=LEASE / 5, poll=0.05)
            with Lock(self.directory / "lease", what="asks Slurm", wait=self._patience, pace=pace) as lease:
                answer = self._published_answer(jobs) or self._query(jobs, for_all=lease.acquired)
        states = self._use_answer(jobs, answer)
        unfinished = [job for job in jobs if job not in states or states[job].phase is not Phase.TERMINAL]
        if len(unfinished) < len(jobs):
            self._publish_request(unfinished)
        return states

    def _query(self, jobs: Sequence[JobKey], *, for_all: bool) -> _Answer:
        """Query ``inner``: for all launchers, and publish the answer; or only for this one when another has the
        lease."""
        requested = dict.fromkeys([*jobs, *(self._requested_by_others() if for_all else ())])
        began = self._clock()
        answer = _Answer(began, list(self.inner.poll(list(requested)).items()))
        if for_all:
            published = _read(self.directory / "answer.json", _Answer)
            if published is None or not began < published.asked <= self._clock():  # else the published one is newer
                _write(self.directory / "answer.json", answer)
        return answer

    def _published_answer(self, jobs: Sequence[JobKey]) -> _Answer | None:
        """The published answer, when it has a new and certain state of each of these jobs; else None."""
        answer = _read(self.directory / "answer.json", _Answer)
        now = self._clock()
        if answer is None or not now - self._max_age <= answer.asked <= now:
            return None
        states = dict(answer.states)
        with self._lock:
            for job in jobs:
                state = states.get(job)
                if state is None or state.phase is Phase.UNKNOWN or answer.asked <= self._since.get(job, now):
                    return None
        return answer

    def _use_answer(self, jobs: Sequence[JobKey], answer: _Answer) -> dict[JobKey, JobState]:
        """The states of these jobs in the answer. Its time is recorded, so that no answer is used twice."""
        requested = set(jobs)
        states = {job: state for job, state in answer.states if job in requested}
        with self._lock:
            for job, state in states.items():
                if state.phase is Phase.TERMINAL:
                    self._since.pop(job, None)
                else:
                    self._since[job] = max(answer.asked, self._since.get(job, answer.asked))
        return states

    def _publish_request(self, jobs: Sequence[JobKey]) -> bool:
        """Publish which jobs this launcher follows; False when that cannot be written."""
        if not jobs:
            with contextlib.suppress(OSError):
                self._request_file.unlink()
            return True
        try:
            make_private(self._request_file.parent)
            if self.directory.stat().st_uid != os.getuid():
                return False
        except OSError:
            return False
        return _write(self._request_file, _Request(self._process, self._clock(), list(jobs)))

    def _requested_by_others(self) -> Iterable[JobKey]:
        """The jobs that other living launchers follow. Requests that were not renewed are removed."""
        try:
            files = sorted(self._request_file.parent.glob("*.json"))
        except OSError:
            return
        now = self._clock()
        for file in files:
            request = _read(file, _Request)
            if file == self._request_file or request is None:
                continue
            if now - request.at > REQUEST_LIFETIME:
                with contextlib.suppress(OSError):
                    file.unlink()
            elif request.process.alive() is not False:  # None: in another PID namespace, where WANTED is the bound
                yield from request.jobs


def _read(path: Path, kind: type[_T]) -> _T | None:
    """The content of a file; None when it is missing or is not a ``kind``."""
    with contextlib.suppress(SubmissionError):  # a job id that is no number
        return read_json(path, kind, 1 << 24)
    return None


def _write(path: Path, value: object) -> bool:
    """Replace a file; False when that failed. It is not synced: it is not needed after a crash."""
    try:
        write_bytes(path, msgspec.json.encode(value), durable=False)
    except OSError:
        return False
    return True
