"""Who holds a lock: a process, named so that another one can tell whether it still lives."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process on a host. A host name alone proves nothing: containers and clones share them.

    ``boot_id`` and ``pid_namespace`` tell whether a pid means the same process here; ``pid_started`` (clock ticks after
    boot) tells it from a later process with the same pid. ``started`` is ISO 8601, by the owner's clock, for people.
    """

    host: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    pid_started: int | None = None
    job: str | None = None
    started: str = ""
    what: str = ""
    token: str = ""

    @classmethod
    def from_json(cls, content: bytes) -> Owner:
        """Read an owner file; what cannot be read is an owner of whom nothing is known."""
        try:
            given = json.loads(content)
            return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})
        except (ValueError, TypeError):
            return cls()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def __str__(self) -> str:
        if not self.host:
            return "an unknown process"
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"pid {self.pid} on {self.host}{job}, since {self.started}: {self.what}"

    def is_dead(self) -> bool:
        """Whether it is proven that the process does not run any more. From another host nothing is ever proven."""
        here = this_process("", "")
        same = (self.host, self.boot_id, self.pid_namespace) == (here.host, here.boot_id, here.pid_namespace)
        if not (same and self.boot_id and isinstance(self.pid, int) and self.pid > 0):
            return False
        if not pid_exists(self.pid):
            return True
        started = _pid_started(self.pid)
        return started == _ENDED or (None not in (started, self.pid_started) and started != self.pid_started)


def this_process(what: str, token: str) -> Owner:
    """The calling process as an owner, now. ``token`` tells two locks of one process apart."""
    return Owner(
        host=socket.gethostname(),
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
        pid_namespace=_link("/proc/self/ns/pid"),
        pid=os.getpid(),
        pid_started=_pid_started(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID"),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        what=what,
        token=token,
    )


def pid_exists(pid: int) -> bool:
    """Whether this host has the process; asked with signal 0, since /proc can hide others' processes (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


_ENDED = -1


def _pid_started(pid: int) -> int | None:
    """Clock ticks after boot at which the process began (proc(5), stat, field 22); `_ENDED` for one not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _ENDED if fields[0] in "ZX" else int(fields[19])


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
