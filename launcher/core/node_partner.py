"""The login node's side of two checks that nodes make before an engine starts: its clock, and whether locks hold
between hosts.

Both sides use a directory that they share. ``clock`` has our time, and its offset to the file server's. Below ``locks``
this host locks ``login`` while nodes check; a node locks ``node.RANK``, requests a check by a file ``asked.RANK``, and
reads in ``answer.RANK`` whether its lock was seen here (launcher/plan/preflight.sh is the other side).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from launcher.core.publish import temporary_name, write_text

CLOCK, LOCKS = "clock", "locks"

LOOK_INTERVAL = 0.5
"""Seconds between two checks for requests of nodes; each lists one directory."""

HOLDS, NOT_SEEN = "holds", "not seen"


def write_clock(directory: Path) -> None:
    """Write our time, and its offset to the file server's, in whole seconds. Raises OSError."""
    probe = directory / f".{CLOCK}.probe"
    probe.touch()
    now = time.time()
    offset = now - probe.stat().st_mtime
    probe.unlink()
    write_text(directory / CLOCK, f"{int(now)} {round(offset)}\n")


def answer_nodes(directory: Path, nodes: int, over: Callable[[], bool]) -> threading.Thread | None:
    """Write our clock, hold a lock and answer ``nodes`` nodes, in a thread, until all have finished or it is ``over``.

    None where another launcher answers already. Raises OSError.
    """
    write_clock(directory)
    locks = directory / LOCKS
    locks.mkdir(exist_ok=True)
    for rank in range(nodes):
        (locks / f"node.{rank}").touch()
    login_lock = (locks / "login").open("ab")
    if (failure := _try_lock(login_lock)) == HOLDS:
        login_lock.close()
        return None
    if failure:
        login_lock.close()
        raise OSError(errno.ENOLCK, f"locks do not work: {failure}", str(locks))
    thread = threading.Thread(
        target=_answer_until_gone, args=(locks, nodes, login_lock, over), daemon=True, name="locks of nodes"
    )
    thread.start()
    return thread


@contextlib.contextmanager
def answering_nodes(parent: Path, nodes: int = 1) -> Iterator[Path | None]:
    """Within the block, a directory below ``parent`` in which nodes are answered; None where none can be made."""
    place, over, thread = temporary_name(parent / "launcher-look"), threading.Event(), None
    try:
        place.mkdir()
        thread = answer_nodes(place, nodes, over.is_set)
    except OSError:
        yield None
    else:
        yield place
    finally:
        over.set()
        if thread is not None:
            thread.join(10 * LOOK_INTERVAL)
        shutil.rmtree(place, ignore_errors=True)


def _answer_until_gone(locks: Path, nodes: int, login_lock: IO[bytes], over: Callable[[], bool]) -> None:
    finished: set[str] = set()
    answered: set[str] = set()
    with login_lock:
        while len(finished) < nodes and not over():
            with contextlib.suppress(OSError):  # it was removed, or its server does not answer
                asking = {path.name.partition(".")[2] for path in locks.iterdir() if path.name.startswith("asked.")}
                finished |= answered - asking
                for rank in asking - answered:
                    with (locks / f"node.{rank}").open("ab") as theirs:
                        seen = _try_lock(theirs) or NOT_SEEN
                    write_text(locks / f"answer.{rank}", f"{seen}\n")
                    answered.add(rank)
            time.sleep(LOOK_INTERVAL)


def _try_lock(file: IO[bytes]) -> str:
    """Try to lock: "" when that worked, `HOLDS` when another process has the lock, else the error's text."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return HOLDS if error.errno in (errno.EAGAIN, errno.EACCES) else str(error.strerror)
    return ""
