"""Which process is meant, told apart from every other: a pid alone is given out again, and counts in one namespace."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_INITIAL_NAMESPACE = "pid:[4026531836]"
"""The PID namespace of a machine itself, the same number everywhere (Linux, include/linux/proc_ns.h)."""


@dataclass(frozen=True)
class ProcessIdentity:
    """A process by host, boot, pid, when the pid began, and the PID namespace in which the pid counts.

    ``started`` is in clock ticks after boot, as text that only compares; "" when it is not known. ``pid_namespace`` is
    what ``/proc/self/ns/pid`` links to; "" in records of older launchers, which are taken to be of our own namespace.
    """

    host: str
    boot: str
    pid: int
    started: str
    pid_namespace: str = ""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The process with this pid in our PID namespace, now."""
        return cls(socket.gethostname(), _boot_id(), pid, _started(pid) or "", _pid_namespace())

    @classmethod
    def mine(cls) -> ProcessIdentity:
        """The calling process."""
        return cls.of(os.getpid())

    def alive(self) -> bool | None:
        """Whether it still runs; None when that cannot be told from here.

        It cannot on another host, nor from another PID namespace, where its pid is another process or none: containers
        of one machine often share its host name. After a reboot every process of the machine itself is gone; a
        container of that host name may be on another machine.
        """
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot_id():
            return False if self.boot and self.pid_namespace in ("", _INITIAL_NAMESPACE) else None
        if self.pid_namespace not in ("", _pid_namespace()):
            return None
        if self.pid <= 0 or not pid_exists(self.pid):
            return False
        started = _started(self.pid)
        if started is None or not self.started:  # /proc hides the processes of others (hidepid)
            return None
        return started == self.started


def host_label() -> str:
    """How this host and PID namespace are called in names of files: a pid beside it means a process of these."""
    host, namespace = socket.gethostname()[:32], _pid_namespace()
    return host if namespace in ("", _INITIAL_NAMESPACE) else f"{host}-{namespace.strip('pid:[]')}"


def pid_exists(pid: int) -> bool:
    """Whether our PID namespace has the process; asked with signal 0, since /proc can hide others' (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process began, in clock ticks after boot (proc(5), stat, field 22); "" for one that has ended and is
    not reaped yet; None when it is not seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
