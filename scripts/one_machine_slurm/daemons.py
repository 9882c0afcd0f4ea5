"""Starting and ending daemons by pid files, with a guard against a pid that was given to somebody else since."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .settings import ClusterError, find_program


@dataclass(frozen=True)
class Daemon:
    """One process that stays in the foreground, under a session of its own.

    Its pid file holds pid, start time in clock ticks since boot, and boot id: together they name one process for ever.
    """

    name: str
    argv: tuple[str, ...]
    directory: Path

    @property
    def pid_file(self) -> Path:
        return self.directory / "pids" / self.name

    @property
    def output(self) -> Path:
        return self.directory / "log" / f"{self.name}.out"

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it unless it runs. Raises `NotInstalled`."""
        if self.pid() is not None:
            return
        program = find_program(self.argv[0])
        with self.output.open("ab") as output:
            child = subprocess.Popen(
                [program, *self.argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=dict(environment),
                start_new_session=True,
            )
        identity = _identity(child.pid)
        if identity is None:
            raise ClusterError(f"{self.name} ended at once; it said: {self.last_words()}")
        temporary = self.pid_file.with_name(f".{self.name}")
        temporary.write_text(identity, encoding="ascii")
        temporary.replace(self.pid_file)

    def pid(self) -> int | None:
        """Its pid while it runs; None when it does not."""
        try:
            recorded = self.pid_file.read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        pid = int(recorded.split()[0])
        return pid if _identity(pid) == recorded else None

    def signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def last_words(self) -> str:
        """The end of what it wrote: its log where it has one, else its output."""
        for path in (self.output.with_suffix(".log"), self.output):
            with contextlib.suppress(FileNotFoundError):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                if lines:
                    return "\n  ".join(["", *lines[-5:]])
        return "nothing"


def stop(daemons: Sequence[Daemon], number: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> None:
    """End daemons together: the signal, and KILL for those that are still there after ``seconds``."""
    for daemon in daemons:
        daemon.signal(number)
    if not wait_until(lambda: all(d.pid() is None for d in daemons), seconds):
        for daemon in daemons:
            daemon.signal(signal.SIGKILL)
        wait_until(lambda: all(d.pid() is None for d in daemons), seconds)
    for daemon in daemons:
        if daemon.pid() is not None:
            raise ClusterError(f"{daemon.name} (pid {daemon.pid()}) does not end")
        daemon.pid_file.unlink(missing_ok=True)


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Ask until the answer is yes; False when it was not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def kill_jobs(slurm_conf: Path) -> None:
    """Kill the job steps and job scripts of the cluster with this slurm.conf, known by their environment.

    No pid file names them, and a slurmstepd goes on without its slurmd.
    """
    ours = f"SLURM_CONF={slurm_conf}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            is_step = (entry / "comm").read_text().startswith("slurmstepd")
        except OSError:
            continue
        if ours in variables and (is_step or any(v.startswith(b"SLURM_JOB_ID=") for v in variables)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _identity(pid: int) -> str | None:
    """What tells this process from every other one that had or will have its pid; None when it is not running."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{pid} {fields[19]} {boot}\n"
