"""What nodes compare with this host before an engine starts: its clock, and whether locks hold between the two.

Both look in a directory that they share. ``clock`` has our time, and how far it is from the file server's. Below
``locks`` this host holds ``login`` as long as nodes look; a node holds ``node.RANK``, asks by a file ``asked.RANK``,
and reads in ``answer.RANK`` whether its lock was seen here (launcher/plan/preflight.sh is the other side).
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
"""Seconds between two looks for nodes that ask; each is one list of a directory."""

HOLDS, NOT_SEEN = "holds", "not seen"


def write_clock(directory: Path) -> None:
    """Leave our time, and how far it is from the file server's, in whole seconds. Raises OSError."""
    probe = directory / f".{CLOCK}.probe"
    probe.touch()
    now = time.time()
    offset = now - probe.stat().st_mtime
    probe.unlink()
    write_text(directory / CLOCK, f"{int(now)} {round(offset)}\n")


def answer_nodes(directory: Path, nodes: int, over: Callable[[], bool]) -> threading.Thread | None:
    """Leave our clock, hold a lock and answer ``nodes`` nodes, in a thread, until all have gone or it is ``over``.

    None where a launcher of ours answers already. Raises OSError.
    """
    write_clock(directory)
    locks = directory / LOCKS
    locks.mkdir(exist_ok=True)
    for rank in range(nodes):
        (locks / f"node.{rank}").touch()
    held = (locks / "login").open("ab")
    if (refused := _try_lock(held)) == HOLDS:
        held.close()
        return None
    if refused:
        held.close()
        raise OSError(errno.ENOLCK, f"locks do not work: {refused}", str(locks))
    thread = threading.Thread(
        target=_answer_until_gone, args=(locks, nodes, held, over), daemon=True, name="locks of nodes"
    )
    thread.start()
    return thread


@contextlib.contextmanager
def answering_nodes(parent: Path, nodes: int = 1) -> Iterator[Path | None]:
    """A directory below ``parent`` for nodes to compare with this host, as long as it is open; None where none can be
    made."""
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


def _answer_until_gone(locks: Path, nodes: int, held: IO[bytes], over: Callable[[], bool]) -> None:
    gone: set[str] = set()
    answered: set[str] = set()
    with held:
        while len(gone) < nodes and not over():
            with contextlib.suppress(OSError):  # it was removed, or its server stands still
                asking = {path.name.partition(".")[2] for path in locks.iterdir() if path.name.startswith("asked.")}
                gone |= answered - asking
                for rank in asking - answered:
                    with (locks / f"node.{rank}").open("ab") as theirs:
                        seen = _try_lock(theirs) or NOT_SEEN
                    write_text(locks / f"answer.{rank}", f"{seen}\n")
                    answered.add(rank)
            time.sleep(LOOK_INTERVAL)


def _try_lock(file: IO[bytes]) -> str:
    """Ask for a lock: "" when it was granted, `HOLDS` when somebody has it, else what the system says."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return HOLDS if error.errno in (errno.EAGAIN, errno.EACCES) else str(error.strerror)
    return ""
