"""(4) Owners of a lock that are killed, that stop for longer than their lease, or whose clock is an hour off."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from launcher.core.lease import Lock, LockOwner, LockPace
from tests.faults.image import Count

LEASE, BEAT, POLL = 1.0, 0.1, 0.02


def owners(place: Path, trials: int) -> list[Count]:
    """Each case ``trials`` times."""
    place.mkdir(exist_ok=True)
    cases = {
        "owner killed: the next one has the lock at once": _killed,
        "owner stopped past its lease: taken over, and it harms nothing when it wakes": _stopped,
        "owner alive, its clock an hour behind: not broken": lambda at: _clock(at, -3600, True),
        "owner alive, its clock an hour ahead: not broken": lambda at: _clock(at, 3600, True),
        "owner gone, its clock an hour behind: broken after the lease": lambda at: _clock(at, -3600, False),
        "owner gone, its clock an hour ahead: broken after the lease": lambda at: _clock(at, 3600, False),
    }
    counts = []
    for title, case in cases.items():
        count = Count(title)
        for n in range(trials):
            path = place / f".{len(counts)}-{n}.owner"
            count.add("as it should be", case(path))
        counts.append(count)
    return counts


def _lock(path: Path, wait: float) -> Lock:
    return Lock(path, what="an import", wait=wait, pace=LockPace(LEASE, BEAT, POLL))


def _hold(path: Path, held: Any, lost: Any) -> None:
    lock = _lock(path, 5.0)
    with lock as got:
        held.put(got.acquired)
        while not lock.lost:
            time.sleep(0.01)
        lost.put(True)


def _owner(path: Path) -> tuple[Any, Any]:
    """A process that has the lock, and what it says when it finds that it lost it."""
    fork = multiprocessing.get_context("fork")
    held, lost = fork.SimpleQueue(), fork.SimpleQueue()
    child = fork.Process(target=_hold, args=(path, held, lost))
    child.start()
    assert held.get()
    return child, lost


def _killed(path: Path) -> str | None:
    child, _ = _owner(path)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    began = time.monotonic()
    with _lock(path, 10.0) as held:
        seconds = time.monotonic() - began
        if not held.acquired:
            return f"not had: {held.owner}"
        if seconds > 0.9 * LEASE:
            return f"had after {seconds:.2f} s only"
    return None if not path.exists() else "the lock file is left"


def _stopped(path: Path) -> str | None:
    child, lost = _owner(path)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        lock = _lock(path, 10.0)
        with lock as held:
            if not held.acquired:
                return f"not had: {held.owner}"
            os.kill(child.pid, signal.SIGCONT)
            lost.get()  # the one that woke knows, and lets go of what is not its own any more
            child.join(60)
            if lock.lost:
                return "the one that woke took the lock away from its new owner"
    finally:
        os.kill(child.pid, signal.SIGKILL) if child.is_alive() else None
    return None if not path.exists() else "the lock file is left"


def _clock(path: Path, offset: float, beats: bool) -> str | None:
    """An owner on another host, whose heartbeats have times of another clock."""
    value = json.loads(LockOwner.here("an import").to_json())
    path.write_text(json.dumps({**value, "host": "elsewhere", "boot_id": "another"}))
    ended = threading.Event()

    def beat() -> None:
        while True:
            then = time.time() + offset
            os.utime(path, (then, then))
            if not beats or ended.wait(BEAT):
                return

    beat_thread = threading.Thread(target=beat)
    beat_thread.start()
    time.sleep(0.05)
    try:
        began = time.monotonic()
        with _lock(path, 3 * LEASE) as held:
            seconds = time.monotonic() - began
            if beats:
                return "a live owner's lock was broken" if held.acquired else None
            if not held.acquired:
                return f"not had after {seconds:.1f} s: {held.owner}"
            return f"broken after {seconds:.2f} s, before the lease was over" if seconds < LEASE else None
    finally:
        ended.set()
        beat_thread.join()
        path.unlink(missing_ok=True)
