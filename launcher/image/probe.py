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
from launcher.core.lease import Lock, LockPace
from launcher.core.process import CommandRunner, Completed, run
from launcher.core.publish import write_json

HOLDS, NO_OP = "holds", "is granted to both: a no-op"
_WAIT = 30.0
_BEAT = 0.3
_NAME = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
_KINDS: dict[str, Callable[[IO[bytes], int], Any]] = {"flock": fcntl.flock, "lockf": fcntl.lockf}


@dataclass(frozen=True)
class Probed:
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


def between_processes(directory: Path, runner: CommandRunner = run) -> Probed:
    """Try it with two processes of this host. Raises ImageError when the directory cannot be used."""
    return _probe(directory, runner, ([], "0"), ([], "1"))


def between_nodes(directory: Path, options: Sequence[str], runner: CommandRunner = run) -> Probed:
    """Try it with two nodes by srun; ``options`` are srun's. Raises ImageError when there are none, too."""
    two = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--time=5", "--job-name=launcher-doctor", *options]
    return _probe(directory, runner, (two, ""))


def between_hosts(directory: Path, options: Sequence[str], wait: float = 60.0, runner: CommandRunner = run) -> Probed:
    """Try it with this host and one node by srun; ``wait`` is how many seconds a node is waited for.

    Raises ImageError when there is no node, or when it has not this Python. This host waits as long as it would for
    another process: a job that starts later finds nobody, which is an error too.
    """
    immediate = f"--immediate={max(1, round(min(wait, _WAIT)))}"
    one = ["srun", "--nodes=1", "--ntasks=1", "--time=2", immediate, "--job-name=launcher-doctor", *options]
    return _probe(directory, runner, ([], "0"), (one, "1"))


def _probe(directory: Path, runner: CommandRunner, *starts: tuple[list[str], str]) -> Probed:
    """Start the processes together, each by a command before its own and a rank, which srun gives where it is empty."""
    place = directory / f".launcher-locks-{secrets.token_hex(4)}"
    try:
        place.mkdir()
    except OSError as error:
        raise ImageError(f"cannot be used: {error.strerror}", where=str(directory)) from None
    failed: list[Completed] = []

    def start(given: tuple[list[str], str]) -> Completed:
        before, rank = given
        argv = [*before, sys.executable, "-m", __name__, str(place), *([rank] if rank else [])]
        done = runner(argv, timeout=3 * _WAIT if rank else 300.0)
        if not done.ok:
            failed.append(done)
            for step in ("asked", "done"):  # nobody will come, so the one that took the locks need not wait
                write_json(place / step, {})
        return done

    try:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(start, starts))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for answer in done:
        for line in answer.stdout.splitlines():
            if line.startswith("{"):
                return Probed(**json.loads(line))
    raise ImageError(f"the locks could not be tried: {[*failed, *done][0]}", where=str(directory))


def file_system(directory: Path) -> str:
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
    with contextlib.ExitStack() as files:
        said = {kind: _attempt(kind, files.enter_context((place / kind).open("wb"))) for kind in _KINDS}
        with Lock(place / "owner", what="a probe", wait=0.0, pace=LockPace(beat=_BEAT)) as held:
            said["owner"] = "" if held.acquired else "; ".join(held.facts) or str(held.owner)
            write_json(place / "taken", {**said, "name": _NAME, "skew": _skew(place / "clock-0")})
            _await(place / "asked")
    write_json(place / "released", {})
    _await(place / "done")


def _ask(place: Path) -> Probed:
    """Rank 1: try every lock while the other process has it, and once more when it was released."""
    taken = _await(place / "taken")
    during = _attempt_again(place)
    with Lock(place / "owner", what="a second probe", wait=0.0) as held:
        owned = held.acquired
    began, first, heartbeat = time.monotonic(), None, None
    while not taken["owner"] and not owned and time.monotonic() - began < 10 and heartbeat is None:
        with (place / "owner").open("rb") as file:  # opened anew: close-to-open, as nfs(5) has it
            beat = os.fstat(file.fileno()).st_mtime_ns
        first = first or beat
        heartbeat = round(time.monotonic() - began, 3) if beat != first else None
        time.sleep(0.02)
    write_json(place / "asked", {})
    _await(place / "released")
    after = _attempt_again(place)
    with Lock(place / "owner", what="a second probe", wait=5.0, pace=LockPace(poll=0.05)) as held:
        again = held.acquired
    write_json(place / "done", {})
    names = sorted({str(taken["name"]), _NAME})
    skew = _skew(place / "clock-1") - float(taken["skew"])
    return Probed(
        where=" and ".join(names) if len(names) == 2 else f"two processes of {names[0]}",
        flock=_judge(str(taken["flock"]), during["flock"], after["flock"]),
        lockf=_judge(str(taken["lockf"]), during["lockf"], after["lockf"]),
        owner_file=_judge(str(taken["owner"]), "" if owned else "refused", "" if again else "refused"),
        heartbeat=heartbeat,
        clocks=round(abs(skew), 2),
    )


def _judge(first: str, during: str, after: str) -> str:
    """A verdict from the words of three attempts, each empty when the lock was granted."""
    if first:
        return f"does not work: {first}"
    if not during:
        return NO_OP
    if during != "refused":
        return f"does not work for the second: {during}"
    return HOLDS if not after else "holds, and was not granted after its release"


def _attempt_again(place: Path) -> dict[str, str]:
    """Ask for each kind of lock, on a handle of our own that is closed at once."""
    said = {}
    for kind in _KINDS:
        with (place / kind).open("r+b") as file:
            said[kind] = _attempt(kind, file)
    return said


def _attempt(kind: str, file: IO[bytes]) -> str:
    """Empty when granted, ``refused``, or what the system says."""
    try:
        _KINDS[kind](file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "refused" if error.errno in (errno.EAGAIN, errno.EACCES) else str(error.strerror)
    return ""


def _skew(path: Path) -> float:
    """This host's clock against the file server's, in seconds."""
    path.touch()
    return time.time() - path.stat().st_mtime


def _await(path: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        sorted(path.parent.iterdir())  # an NFS client looks a missing name up again when the directory was read
        if path.exists():
            value: dict[str, Any] = json.loads(path.read_text())
            return value
        time.sleep(0.02)
    raise ImageError(f"the other process did not come within {_WAIT:.0f} s", where=str(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
