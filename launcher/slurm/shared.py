"""One poller for all launchers of a user on a machine: who needs news asks for everybody, the others read the answer.

    <directory>/<host>-<boot>-<user>-<cluster>/
        wants/<pid>-<n>.json   the jobs that one launcher wants to know about, and when it last said so
        answer.json            the last answer, and when its question began
        lease                  whoever asks just now (launcher/core/lease.py)

There is no daemon. Times are of the machine's monotonic clock, which all its processes share; the directory may lie on
a file system that other machines see, and they have their own. The files only save questions: whoever cannot read or
write them asks for itself.
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
from launcher.core.process_identity import ProcessIdentity
from launcher.core.publish import temporary_name
from launcher.slurm.client import JobKey, JobState, Scheduler
from launcher.slurm.states import Phase

MAX_AGE = 15.0
"""Seconds since its question began after which an answer is news for nobody; half of the longest pause of a watch over
running jobs. It is what sharing may add to the delay until an end is known, and bounds the questions to 4 a minute,
or to those of the launcher that asks most often."""

PATIENCE = 15.0
"""Seconds to wait for another launcher's answer before asking alone."""

LEASE = 5.0
"""Seconds without a heartbeat after which the lease of a stopped launcher is broken; that of a dead one is at once."""

ALONE = 60.0
"""Seconds after a cancel in which a launcher asks for itself: it may have seconds left to see its jobs gone."""

WANTED = 180.0
"""Seconds for which a wish holds: three of the longest pauses of a watch."""


@dataclass(frozen=True)
class _Wants:
    process: ProcessIdentity
    at: float
    jobs: list[JobKey]


@dataclass(frozen=True)
class _Answer:
    asked: float
    states: list[tuple[JobKey, JobState]]
    schema: Literal[1] = 1


class SharedPoller:
    """A Scheduler that asks ``inner`` only for what no other launcher's answer tells. For several threads.

    A shared answer counts for a job when its question named this very job (`JobKey`), began after this launcher first
    asked about it and after the question of the last answer that it was given, and at most ``max_age`` seconds ago.
    An answer that nobody knew is not taken from others. All but `poll` goes straight to ``inner``.
    ``cluster`` tells clusters apart whose job ids have nothing to do with each other (SLURM_CONF).
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
        me = ProcessIdentity.mine()
        digest = hashlib.sha256(cluster.encode()).hexdigest()[:8]
        self.inner = inner
        self.place = directory / f"{me.host}-{me.boot[:8]}-{os.getuid()}-{digest}"
        self._me = me
        self._mine = self.place / "wants" / f"{me.pid}-{secrets.token_hex(4)}.json"
        self._max_age, self._patience, self._clock = max_age, patience, clock
        self._since: dict[JobKey, float] = {}
        self._alone_until = 0.0
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        return self.inner.name

    def find(self, token: str) -> list[JobKey]:
        return self.inner.find(token)

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """As ``inner`` does; then `poll` asks without the others for a while."""
        try:
            self.inner.cancel(jobs)
        finally:
            self._alone_until = self._clock() + ALONE

    def release(self, job: JobKey) -> None:
        self.inner.release(job)

    def describe(self, job: JobKey) -> dict[str, str]:
        return self.inner.describe(job)

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """The states of all jobs: out of the others' answer, or else by one question for all launchers."""
        began = self._clock()
        with self._guard:
            for job in jobs:
                self._since.setdefault(job, began)
        if not jobs or began < self._alone_until or not self._want(jobs):
            return self._give(jobs, _Answer(began, list(self.inner.poll(jobs).items())))
        answer = self._news(jobs)
        if answer is None:
            pace = LockPace(lease=LEASE, beat=LEASE / 5, poll=0.05)
            lease = Lock(self.place / "lease", what="asks Slurm", wait=self._patience, pace=pace)
            with lease as held:
                answer = self._news(jobs) or self._ask(jobs, for_all=held.acquired)
        states = self._give(jobs, answer)
        left = [job for job in jobs if job not in states or states[job].phase is not Phase.TERMINAL]
        if len(left) < len(jobs):
            self._want(left)
        return states

    def _ask(self, jobs: Sequence[JobKey], *, for_all: bool) -> _Answer:
        """Ask ``inner``: for everybody and to everybody's knowledge, or in silence when somebody else has the lease."""
        wanted = dict.fromkeys(jobs)
        if for_all:
            wanted.update(dict.fromkeys(self._wanted_by_others()))
        asked = self._clock()
        answer = _Answer(asked, list(self.inner.poll(list(wanted)).items()))
        if for_all:
            there = _read(self.place / "answer.json", _Answer)
            if there is None or not asked < there.asked <= self._clock():
                _write(self.place / "answer.json", answer)
        return answer

    def _news(self, jobs: Sequence[JobKey]) -> _Answer | None:
        """The shared answer, when it tells something new and certain about every one of these jobs."""
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

    def _give(self, jobs: Sequence[JobKey], answer: _Answer) -> dict[JobKey, JobState]:
        """What the answer says of these jobs; who is told is not told the same again."""
        wanted = set(jobs)
        states = {job: state for job, state in answer.states if job in wanted}
        with self._guard:
            for job, state in states.items():
                if state.phase is Phase.TERMINAL:
                    self._since.pop(job, None)
                else:
                    self._since[job] = max(answer.asked, self._since.get(job, answer.asked))
        return states

    def _want(self, jobs: Sequence[JobKey]) -> bool:
        """Say which jobs this launcher wants to know about; False when that cannot be said."""
        if not jobs:
            with contextlib.suppress(OSError):
                self._mine.unlink()
            return True
        try:
            self._mine.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.place.stat().st_uid != os.getuid():
                return False
        except OSError:
            return False
        return _write(self._mine, _Wants(self._me, self._clock(), list(jobs)))

    def _wanted_by_others(self) -> Iterable[JobKey]:
        """What living launchers want; wishes that nobody renewed are removed."""
        try:
            files = sorted(self._mine.parent.glob("*.json"))
        except OSError:
            return
        now = self._clock()
        for file in files:
            wants = _read(file, _Wants)
            if file == self._mine or wants is None:
                continue
            if now - wants.at > WANTED:
                with contextlib.suppress(OSError):
                    file.unlink()
            elif wants.process.alive():
                yield from wants.jobs


_T = TypeVar("_T")


def _read(path: Path, kind: type[_T]) -> _T | None:
    """What a file says; None when it is not there, or not to be understood."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, SubmissionError):
        return None


def _write(path: Path, value: object) -> bool:
    """Replace a file; whether that went well. Not forced to storage: after a crash of the machine nobody wants it."""
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(msgspec.json.encode(value))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True
