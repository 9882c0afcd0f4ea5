"""Do locks hold in a directory? Two processes try it: one takes the locks, the other requests them too.

``python -m launcher.image.probe PLACE [RANK]`` is one of the two; without RANK it takes the rank of the Slurm task.
Rank 1 prints the result. They communicate by files in the directory PLACE, so they can also run on two nodes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from launcher.core.errors import ImageError
from launcher.core.lease import Lock, LockPace, read_owner
from launcher.core.process import CommandRunner, Completed, run
from launcher.core.publish import write_json

HOLDS, GRANTED_TO_BOTH = "holds", "is granted to both: a no-op"
_PARTNER_TIMEOUT = 30.0
_PROBE_PACE = LockPace(beat=0.3, poll=0.05)
_REFUSED = "refused"
_HOST = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
_LOCK_CALLS: dict[str, Callable[[IO[bytes], int], Any]] = {"flock": fcntl.flock, "lockf": fcntl.lockf}


@dataclass(frozen=True)
class LockProbe:
    """What two processes found. Each kind of lock ``holds``, is a no-op, or failed with a message of the system.

    ``heartbeat`` is the number of seconds until a heartbeat of the owner was seen, None for never; ``clocks`` is the
    difference of the two clocks in seconds.
    """

    where: str
    flock: str
    lockf: str
    owner_file: str
    heartbeat: float | None
    clocks: float

    @property
    def one_at_a_time(self) -> bool:
        """Whether at least one of the locks that an import takes excludes a second importer."""
        return HOLDS in (self.flock, self.owner_file)


def probe_processes(directory: Path, runner: CommandRunner = run) -> LockProbe:
    """Try the locks with two processes of this host. Raises ImageError when the directory cannot be used."""
    return _probe(directory, runner, ([], "0"), ([], "1"))


def probe_nodes(directory: Path, options: Sequence[str], runner: CommandRunner = run) -> LockProbe:
    """Try the locks on two nodes by srun with ``options``. Raises ImageError, also when no nodes can be had."""
    srun = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--time=5",
        "--job-name=launcher-doctor",
        *options,
    ]
    return _probe(directory, runner, (srun, ""))


def _probe(directory: Path, runner: CommandRunner, *starts: tuple[list[str], str]) -> LockProbe:
    """Start the processes together, each by a command prefix and a rank; srun gives the rank where it is empty."""
    place = directory / f".launcher-locks-{secrets.token_hex(4)}"
    try:
        place.mkdir()
    except OSError as error:
        raise ImageError(f"cannot be used: {error.strerror}", where=str(directory)) from None

    def start(command: tuple[list[str], str]) -> Completed:
        prefix, rank = command
        argv = [*prefix, sys.executable, "-m", __name__, str(place), *([rank] if rank else [])]
        done = runner(argv, timeout=3 * _PARTNER_TIMEOUT if rank else 300.0)
        if not done.ok:
            write_json(place / "tried", {})  # the process that holds the locks need not wait for this one
        return done

    try:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(start, starts))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for answer in done:
        for line in answer.stdout.splitlines():
            if line.startswith("{"):
                return LockProbe(**json.loads(line))
    raise ImageError(f"the locks could not be tried: {min(done, key=lambda answer: answer.ok)}", where=str(directory))


def describe_file_system(directory: Path) -> str:
    """The file system of a directory: type, source, mount point, options; ``unknown`` when findmnt fails."""
    columns = "FSTYPE,SOURCE,TARGET,OPTIONS"
    done = run(["findmnt", "--noheadings", "--raw", f"--output={columns}", f"--target={directory}"], timeout=30.0)
    if not done.ok:
        return "unknown"
    kind, source, point, options = done.stdout.split()
    return f"{kind} from {source} on {point} ({options})"


def main(place: str, rank: str | None = None) -> None:
    """Run as one of the two processes."""
    if (rank or os.environ.get("SLURM_PROCID", "0")) == "0":
        _hold_locks(Path(place))
    else:
        print(json.dumps(asdict(_try_locks(Path(place)))), flush=True)


def _hold_locks(place: Path) -> None:
    """Rank 0: take every lock and hold it until the other process has tried them."""
    with contextlib.ExitStack() as locks:
        answers = _request_locks(place, locks)
        write_json(place / "taken", {"answers": answers, "host": _HOST, "skew": _clock_skew(place / "clock-0")})
        _wait_for_file(place / "tried")
    write_json(place / "released", {})


def _try_locks(place: Path) -> LockProbe:
    """Rank 1: try every lock while the other process holds it, and again after its release."""
    taken = _wait_for_file(place / "taken")
    holder = taken["answers"]
    with contextlib.ExitStack() as locks:
        during = _request_locks(place, locks)
        is_owned = not holder["owner_file"] and during["owner_file"]
        heartbeat = _seconds_to_heartbeat(place / "owner") if is_owned else None
    write_json(place / "tried", {})
    _wait_for_file(place / "released")
    with contextlib.ExitStack() as locks:
        after = _request_locks(place, locks, wait=5.0)
    hosts = sorted({str(taken["host"]), _HOST})
    return LockProbe(
        where=" and ".join(hosts) if len(hosts) == 2 else f"two processes of {hosts[0]}",
        heartbeat=heartbeat,
        clocks=round(abs(_clock_skew(place / "clock-1") - taken["skew"]), 2),
        **{kind: _verdict(holder[kind], during[kind], after[kind]) for kind in holder},
    )


def _request_locks(place: Path, locks: contextlib.ExitStack, wait: float = 0.0) -> dict[str, str]:
    """Request every kind of lock, to be released with ``locks``; ``wait`` is for the owner file, in seconds.

    The answer to each: empty when it was granted, ``refused``, or the system's message.
    """
    answers = {}
    for kind, lock in _LOCK_CALLS.items():
        file = locks.enter_context((place / kind).open("ab"))
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            answers[kind] = ""
        except OSError as error:
            answers[kind] = _REFUSED if error.errno in (errno.EAGAIN, errno.EACCES) else str(error.strerror)
    owner = locks.enter_context(Lock(place / "owner", what="a probe", wait=wait, pace=_PROBE_PACE))
    answers["owner_file"] = "" if owner.acquired else "; ".join(owner.facts) or _REFUSED
    return answers


def _seconds_to_heartbeat(path: Path) -> float | None:
    """Seconds until a heartbeat of a lock's owner is seen; None when there is none within ten."""
    began, first = time.monotonic(), read_owner(path)
    while (seconds := time.monotonic() - began) < 10:
        if read_owner(path) != first:
            return round(seconds, 3)
        time.sleep(0.02)
    return None


def _verdict(first: str, during: str, after: str) -> str:
    """The verdict by the answers to three requests, each empty when the lock was granted."""
    if first:
        return f"does not work: {first}"
    if not during:
        return GRANTED_TO_BOTH
    if during != _REFUSED:
        return f"does not work for the second: {during}"
    return HOLDS if not after else "holds, and was not granted after its release"


def _clock_skew(path: Path) -> float:
    """How far this host's clock is ahead of the file server's, in seconds."""
    path.touch()
    return time.time() - path.stat().st_mtime


def _wait_for_file(path: Path) -> dict[str, Any]:
    """The content of a file of the other process, as soon as it exists."""
    deadline = time.monotonic() + _PARTNER_TIMEOUT
    while time.monotonic() < deadline:
        if path in path.parent.iterdir():  # an NFS client looks a missing name up again when the directory was read
            value: dict[str, Any] = json.loads(path.read_text())
            return value
        time.sleep(0.02)
    raise ImageError(f"the other process did not come within {_PARTNER_TIMEOUT:.0f} s", where=str(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
