"""(3) Several importers of one image at once, with a reader that looks all the time."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from launcher.core.lease import Lock, LockResult
from launcher.image.squash import DamagedImage, check_lists
from launcher.rehearsal.enroot_stand_in import FAULTS
from tests.faults.image import Count
from tests.image.support import NAME, EagerLock, Store, leftovers, look_while, request


class NoOpLock(Lock):
    """As some file systems give it: had by everybody at once."""

    def __enter__(self) -> LockResult:
        return LockResult(acquired=True)


class NeverLock(Lock):
    """As it is where an owner hangs for ever: nobody gets it."""

    def __enter__(self) -> LockResult:
        return LockResult(acquired=False, owner="a process that hangs")


LOCKS: dict[str, type[Lock]] = {"working": EagerLock, "a no-op": NoOpLock, "never granted": NeverLock}


def races(place: Path, trials: int) -> list[Count]:
    """4 and 16 importers, ``trials`` times for each kind of lock."""
    return [_race(place, importers, kind, trials) for importers in (4, 16) for kind in LOCKS]


def _import(place: Path, kind: str, said: Any) -> None:
    try:
        said.put(Store(lock=LOCKS[kind]).ensure(request(place, lock_wait=60)).how)
    except BaseException as error:
        said.put(f"failed: {error}")
        raise


def _is_any_alive(children: list[Any]) -> bool:
    return any(child.is_alive() for child in children)


def _race(place: Path, importers: int, kind: str, trials: int) -> Count:
    count = Count(f"{importers} importers, lock {kind}")
    fork = multiprocessing.get_context("fork")
    for _ in range(trials):
        own = place / "race"
        shutil.rmtree(own, ignore_errors=True)
        (own / "images").mkdir(parents=True)
        final = own / "images" / NAME
        os.environ[FAULTS] = "slow=0.1,size=200000"
        said = fork.SimpleQueue()
        children = [fork.Process(target=_import, args=(own, kind, said)) for _ in range(importers)]
        for child in children:
            child.start()
        looks = look_while(partial(_is_any_alive, children), final)
        how = [said.get() for child in children]
        del os.environ[FAULTS]
        count.seen["looks of the reader"] += looks.number
        wrong = []
        if looks.torn:
            wrong.append(f"torn in {looks.torn} of {looks.number} looks")
        if failed := [text for text in how if text.startswith("failed")]:
            wrong.append(f"{len(failed)} importers failed: {failed[0]}")
        if kind == "working" and sorted(how) != ["hit"] * (importers - 1) + ["imported"]:
            wrong.append(f"one import and hits were expected, not {sorted(how)}")
        if how.count("imported") != 1:
            wrong.append(f"{how.count('imported')} were published")
        try:
            check_lists(final)
        except DamagedImage:
            wrong.append("what was published is damaged")
        if left := leftovers(own):
            wrong.append(f"left {left}")
        count.add("whole and published once", "; ".join(wrong) or None)
    return count
