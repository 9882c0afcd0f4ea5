"""Do locks hold in a directory? Two processes try it: one takes them, the other asks for them too.

``python -m launcher.image.probe PLACE [RANK]`` is one of the two; without RANK it takes the rank of the Slurm task.
Rank 1 prints what it found. They talk through files in the directory PLACE, so they can also run on two nodes.
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
_WAIT = 30.0
_PACE = LockPace(beat=0.3, poll=0.05)
_REFUSED = "refused"
_NAME = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
_KINDS: dict[str, Callable[[IO[bytes], int], Any]] = {"flock": fcntl.flock, "lockf": fcntl.lockf}


@dataclass(frozen=True)
class LockProbe:
    """What two processes found. Each kind of lock ``holds``, is a no-op, or failed in the words of the system.

    ``heartbeat`` is after how many seconds a heartbeat of the owner was seen, None for never; ``clocks`` is by how many
    seconds the two clocks differ.
    """

    where: str
    flock: str
    lockf: str
    owner_file: str
    heartbeat: float | None
    clocks: float

    @property
    def one_at_a_time(self) -> bool:
        """Whether two importers keep out of each other's way, by either of the locks that an import takes."""
        return HOLDS in (self.flock, self.owner_file)


def probe_processes(directory: Path, runner: CommandRunner = run) -> LockProbe:
    """Try it with two processes of this host. Raises ImageError when the directory cannot be used."""
    return _probe(directory, runner, ([], "0"), ([], "1"))


def probe_nodes(directory: Path, options: Sequence[str], runner: CommandRunner = run) -> LockProbe:
    """Try it with two nodes by srun; ``options`` are srun's. Raises ImageError when there are none, too."""
    two = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--time=5", "--job-name=launcher-doctor", *options]
    return _probe(directory, runner, (two, ""))


def _probe(directory: Path, runner: CommandRunner, *starts: tuple[list[str], str]) -> LockProbe:
    """Start the processes together, each by a command before its own and a rank, which srun gives where it is empty."""
    place = directory / f".launcher-locks-{secrets.token_hex(4)}"
    try:
        place.mkdir()
    except OSError as error:
        raise ImageError(f"cannot be used: {error.strerror}", where=str(directory)) from None

    def start(given: tuple[list[str], str]) -> Completed:
        before, rank = given
        argv = [*before, sys.executable, "-m", __name__, str(place), *([rank] if rank else [])]
        done = runner(argv, timeout=3 * _WAIT if rank else 300.0)
        if not done.ok:
            write_json(place / "asked", {})  # nobody will come, so the one that took the locks need not wait
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
    """What the directory lies on, as mounted: type, source, mount point, options; ``unknown`` when findmnt fails."""
    columns = "FSTYPE,SOURCE,TARGET,OPTIONS"
    done = run(["findmnt", "--noheadings", "--raw", f"--output={columns}", f"--target={directory}"], timeout=_WAIT)
    if not done.ok:
        return "unknown"
    kind, source, point, options = done.stdout.split()
    return f"{kind} from {source} on {point} ({options})"


def main(place: str, rank: str | None = None) -> None:
    """Be one of the two processes."""
    if (rank or os.environ.get("SLURM_PROCID", "0")) == "0":
        _take(Path(place))
    else:
        print(json.dumps(asdict(_ask(Path(place)))), flush=True)


def _take(place: Path) -> None:
    """Rank 0: take every lock and keep it until the other process has tried them."""
    with contextlib.ExitStack() as held:
        said = _attempt(place, held)
        write_json(place / "taken", {"said": said, "name": _NAME, "skew": _skew(place / "clock-0")})
        _await(place / "asked")
    write_json(place / "released", {})


def _ask(place: Path) -> LockProbe:
    """Rank 1: try every lock while the other process has it, and once more when it was released."""
    taken = _await(place / "taken")
    first = taken["said"]
    with contextlib.ExitStack() as held:
        during = _attempt(place, held)
        is_owned = not first["owner_file"] and during["owner_file"]
        heartbeat = _heartbeat(place / "owner") if is_owned else None
    write_json(place / "asked", {})
    _await(place / "released")
    with contextlib.ExitStack() as held:
        after = _attempt(place, held, wait=5.0)
    names = sorted({str(taken["name"]), _NAME})
    return LockProbe(
        where=" and ".join(names) if len(names) == 2 else f"two processes of {names[0]}",
        heartbeat=heartbeat,
        clocks=round(abs(_skew(place / "clock-1") - taken["skew"]), 2),
        **{kind: _judge(first[kind], during[kind], after[kind]) for kind in first},
    )


def _attempt(place: Path, held: contextlib.ExitStack, wait: float = 0.0) -> dict[str, str]:
    """Ask for every kind of lock, to be let go with ``held``; the owner file is waited for.

    What came of each: empty when it was granted, ``refused``, or what the system says.
    """
    said = {}
    for kind, lock in _KINDS.items():
        file = held.enter_context((place / kind).open("ab"))
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said[kind] = ""
        except OSError as error:
            said[kind] = _REFUSED if error.errno in (errno.EAGAIN, errno.EACCES) else str(error.strerror)
    owner = held.enter_context(Lock(place / "owner", what="a probe", wait=wait, pace=_PACE))
    said["owner_file"] = "" if owner.acquired else "; ".join(owner.facts) or _REFUSED
    return said


def _heartbeat(path: Path) -> float | None:
    """After how many seconds a heartbeat of a lock's owner is seen; None when it is not within ten."""
    began, first = time.monotonic(), read_owner(path)
    while (seconds := time.monotonic() - began) < 10:
        if read_owner(path) != first:
            return round(seconds, 3)
        time.sleep(0.02)
    return None


def _judge(first: str, during: str, after: str) -> str:
    """A verdict from the words of three attempts, each empty when the lock was granted."""
    if first:
        return f"does not work: {first}"
    if not during:
        return GRANTED_TO_BOTH
    if during != _REFUSED:
        return f"does not work for the second: {during}"
    return HOLDS if not after else "holds, and was not granted after its release"


def _skew(path: Path) -> float:
    """This host's clock against the file server's, in seconds."""
    path.touch()
    return time.time() - path.stat().st_mtime


def _await(path: Path) -> dict[str, Any]:
    """What the other process wrote there, as soon as it is there."""
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        if path in path.parent.iterdir():  # an NFS client looks a missing name up again when the directory was read
            value: dict[str, Any] = json.loads(path.read_text())
            return value
        time.sleep(0.02)
    raise ImageError(f"the other process did not come within {_WAIT:.0f} s", where=str(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
