"""One question to Slurm for all launchers of a user on a machine: one of them asks for all, the others read the answer.

    <directory>/<host>-<boot>-<user>-<cluster>/
        wants/<pid>-<n>.json   the request of one launcher: the jobs it wants to know about, and when it last said so
        answer.json            the last answer, and when its question began
        lease                  the lock of the launcher that is asking (launcher/core/lease.py)

There is no daemon. Times are of the machine's monotonic clock, which all its processes share. Each machine has a
directory of its own, because other machines may see the same file system. The files only save questions: a launcher
that cannot read or write them asks for itself.
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
"""Answers whose question began more seconds ago are ignored. This is half of the longest pause between questions about
running jobs: sharing adds no more than this to the delay until an end is known, and Slurm is asked 4 times a minute,
or as often as the launcher that asks most."""

PATIENCE = 15.0
"""Seconds to wait for the answer of a launcher that is asking, before asking without it."""

LEASE = 5.0
"""Seconds without a heartbeat after which the lease of a stopped launcher is broken. That of a dead one is broken at
once."""

ALONE_AFTER_CANCEL = 60.0
"""Seconds after a cancel in which a launcher asks only for itself: it may have seconds left to see its jobs gone."""

REQUEST_LIFETIME = 180.0
"""Seconds for which a request holds: three of the longest pauses between questions."""


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
    """A Scheduler that asks ``inner`` only what no other launcher's answer tells. Several threads may use it.

    A shared answer counts for a job when its question named this very job (`JobKey`), and began after this launcher
    first asked about the job, later than the question of the last answer that it took, and at most ``max_age`` seconds
    ago. UNKNOWN is never taken from another launcher. Everything but `poll` and `cancel` is that of ``inner``.
    ``cluster`` (SLURM_CONF) keeps clusters apart, whose job ids have nothing to do with each other.
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
        me = ProcessIdentity.current()
        digest = hashlib.sha256(cluster.encode()).hexdigest()[:8]
        self.inner = inner
        self.name, self.find, self.release, self.describe = inner.name, inner.find, inner.release, inner.describe
        self.place = directory / f"{me.host}-{me.boot[:8]}-{os.getuid()}-{digest}"
        self._me = me
        self._request_file = self.place / "wants" / f"{me.pid}-{secrets.token_hex(4)}.json"
        self._max_age, self._patience, self._clock = max_age, patience, clock
        self._since: dict[JobKey, float] = {}
        self._alone_until = 0.0
        self._guard = threading.Lock()

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Cancel by ``inner``. For `ALONE_AFTER_CANCEL` seconds after that `poll` asks without the others."""
        try:
            self.inner.cancel(jobs)
        finally:
            self._alone_until = self._clock() + ALONE_AFTER_CANCEL

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """The states of all jobs: from another launcher's answer, or else by one question for all launchers."""
        began = self._clock()
        with self._guard:
            for job in jobs:
                self._since.setdefault(job, began)
        if not jobs or began < self._alone_until or not self._publish_request(jobs):
            return self._take_answers(jobs, _Answer(began, list(self.inner.poll(jobs).items())))
        answer = self._published_answer(jobs)
        if answer is None:
            pace = LockPace(lease=LEASE, beat=LEASE / 5, poll=0.05)
            lease = Lock(self.place / "lease", what="asks Slurm", wait=self._patience, pace=pace)
            with lease as held:
                answer = self._published_answer(jobs) or self._ask(jobs, for_all=held.acquired)
        states = self._take_answers(jobs, answer)
        left = [job for job in jobs if job not in states or states[job].phase is not Phase.TERMINAL]
        if len(left) < len(jobs):
            self._publish_request(left)
        return states

    def _ask(self, jobs: Sequence[JobKey], *, for_all: bool) -> _Answer:
        """Ask ``inner``: for all launchers and publish the answer, or only for this one when another has the lease."""
        wanted = dict.fromkeys(jobs)
        if for_all:
            wanted.update(dict.fromkeys(self._requested_by_others()))
        asked = self._clock()
        answer = _Answer(asked, list(self.inner.poll(list(wanted)).items()))
        if for_all:
            published = _read(self.place / "answer.json", _Answer)
            if published is None or not asked < published.asked <= self._clock():  # else that is the newer one
                _write(self.place / "answer.json", answer)
        return answer

    def _published_answer(self, jobs: Sequence[JobKey]) -> _Answer | None:
        """The published answer, when it tells something new and certain about every one of these jobs; else None."""
        answer = _read(self.place / "answer.json", _Answer)
        now = self._clock()
        if answer is None or not now - self._max_age <= answer.asked <= now:
            return None
        states = dict(answer.states)
        with self._guard:
            for job in jobs:
                state = states.get(job)
                if state is None or state.phase is Phase.UNKNOWN or answer.asked <= self._since.get(job, now):
                    return None
        return answer

    def _take_answers(self, jobs: Sequence[JobKey], answer: _Answer) -> dict[JobKey, JobState]:
        """What the answer says of these jobs. It is noted, so that the same answer is not taken a second time."""
        wanted = set(jobs)
        states = {job: state for job, state in answer.states if job in wanted}
        with self._guard:
            for job, state in states.items():
                if state.phase is Phase.TERMINAL:
                    self._since.pop(job, None)
                else:
                    self._since[job] = max(answer.asked, self._since.get(job, answer.asked))
        return states

    def _publish_request(self, jobs: Sequence[JobKey]) -> bool:
        """Publish which jobs this launcher wants to know about; False when that cannot be written."""
        if not jobs:
            with contextlib.suppress(OSError):
                self._request_file.unlink()
            return True
        try:
            make_private(self._request_file.parent)
            if self.place.stat().st_uid != os.getuid():
                return False
        except OSError:
            return False
        return _write(self._request_file, _Request(self._me, self._clock(), list(jobs)))

    def _requested_by_others(self) -> Iterable[JobKey]:
        """The jobs that other living launchers want to know about; requests that nobody renewed are removed."""
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
    """What a file says; None when it is missing or cannot be understood."""
    with contextlib.suppress(SubmissionError):  # an id that is none
        return read_json(path, kind, 1 << 24)
    return None


def _write(path: Path, value: object) -> bool:
    """Replace a file; False when that failed. It is not forced to storage: nobody needs it after a crash."""
    try:
        write_bytes(path, msgspec.json.encode(value), durable=False)
    except OSError:
        return False
    return True
