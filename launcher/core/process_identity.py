"""Which process is meant, told apart from every other: a pid alone is given out again."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from launcher.core.process import run


@dataclass(frozen=True)
class ProcessId:
    """A process by host, boot, pid and when the pid began (in words that only compare; "" when it is gone)."""

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process with this pid on this machine, now."""
        return cls(socket.gethostname(), _boot_id(), pid, _start_of(pid))

    @classmethod
    def mine(cls) -> ProcessId:
        """The calling process."""
        return cls.of(os.getpid())

    def alive(self) -> bool | None:
        """Whether it still runs; None when it is on another machine, of which nothing can be seen from here."""
        if self.host != socket.gethostname():
            return None
        return self.boot == _boot_id() and self.started != "" and _start_of(self.pid) == self.started


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return ""


def _start_of(pid: int) -> str:
    """When the process began; "" when it is gone, or a zombie."""
    if not Path("/proc/self/stat").exists():
        return _start_by_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # field 22 of the file: clock ticks since boot (proc(5))


def _start_by_ps(pid: int) -> str:
    """The same on a laptop without /proc."""
    state, _, started = run(["ps", "-o", "state=,lstart=", "-p", str(pid)], timeout=10).stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()
