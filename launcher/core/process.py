"""Running other programs, by an argv list and with a time-out, without a shell.

And identifying processes: a pid alone is reused, and is valid in one namespace.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from launcher.core.errors import Cancelled
from launcher.core.stop import defer_signals

NOT_FOUND = 127
"""Return code when the program is not on PATH, as a shell gives it."""

NOT_EXECUTABLE = 126
"""Return code when the program exists and may not be executed."""

_STOP_CHECK_INTERVAL = 0.2

_SHOWN = 300
"""Characters of a command that are shown when it was stopped."""

_ERROR_WORDS = re.compile(
    r"error|fatal|fail|denied|refused|cannot|could not|can't|unable|not found|no such|not permitted|invalid|unknown"
    r"|exception|killed|no space|quota|timed? ?out|unsupported|does not",
    re.IGNORECASE,
)
"""Words of a line that says why a program failed; the lines after it are often advice, or other ends."""

_INITIAL_NAMESPACE = "pid:[4026531836]"
"""The PID namespace of a machine itself, the same number everywhere (Linux, include/linux/proc_ns.h)."""


@dataclass(frozen=True)
class Completed:
    """The result of a program. ``returncode`` is None after a time-out, negative when a signal ended it."""

    argv: tuple[str, ...]
    returncode: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    @property
    def timed_out(self) -> bool:
        return self.returncode is None

    def tail(self, lines: int = 5, output: Sequence[str] | None = None) -> str:
        """The last lines of stderr, or of stdout when stderr is empty: what a person wants to see of a failure.

        Where none of them says what is wrong, and an earlier one does, the last such line comes first. ``output`` are
        other lines to choose from.
        """
        output = output if output is not None else (self.stderr.strip() or self.stdout.strip()).splitlines()
        last = list(output[-lines:])
        earlier = [line for line in output[:-lines] if _ERROR_WORDS.search(line)]
        if earlier and not any(map(_ERROR_WORDS.search, last)):
            last[:1] = earlier[-1:]
        return "\n".join(last)

    def __str__(self) -> str:
        end = "timed out" if self.timed_out else f"exit {self.returncode}"
        return f"{self.argv[0]}: {end} after {self.seconds:.1f} s" + (f": {self.tail()}" if self.tail() else "")


class CommandRunner(Protocol):
    """Runs a program to its end: `run`, or in tests one that fails on purpose."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed: ...


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run ``argv`` in its own session; after ``timeout`` seconds end the whole process group (TERM, then KILL).

    When ``should_stop`` answers true meanwhile, end the group and raise Cancelled. ``pass_fds`` stay open in the
    program: a lock on one of them is held for as long as the program lives, even if this process is killed.
    A program that does not exist gives return code 127, never an exception.
    """
    # Its own session, because `enroot import` killed by its top pid alone leaves mksquashfs writing as an orphan (seen
    # with enroot 4.1.2), and because Ctrl-C in a terminal must reach the launcher, which decides what to stop.
    began = time.monotonic()
    words = tuple(os.fspath(a) for a in argv)
    with contextlib.ExitStack() as resources:
        resources.enter_context(defer_signals())
        try:
            child = subprocess.Popen(
                words,
                cwd=cwd,
                env=dict(env) if env is not None else None,
                stdin=resources.enter_context(_standard_input(input)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=pass_fds,
                text=True,
                errors="replace",
            )
        except (FileNotFoundError, PermissionError) as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            no_directory = code == NOT_FOUND and cwd is not None and not Path(cwd).is_dir()
            why = f"no such directory: {cwd}" if no_directory else f"{words[0]}: {error.strerror}"
            return Completed(words, code, "", why, 0.0)
        _RUNNING[child.pid] = RunningProgram(words, began, timeout)
        try:
            resources.close()  # a signal that came during the start is handled here, where the child is known
            out, err = _communicate(child, began + timeout, should_stop)
        except subprocess.TimeoutExpired:
            out, err = _end_group(child)
            return Completed(words, None, out, err, time.monotonic() - began)
        except BaseException:
            _end_group(child)
            raise
        finally:
            del _RUNNING[child.pid]
    return Completed(words, child.returncode, out, err, time.monotonic() - began)


@dataclass(frozen=True)
class RunningProgram:
    """A program that this process waits for: its start (by the monotonic clock), and the seconds of its time-out."""

    argv: tuple[str, ...]
    since: float
    at_most: float

    @property
    def name(self) -> str:
        """``enroot import``: the program and its first word."""
        word = next((word for word in self.argv[1:2] if word.isalpha()), "")
        return f"{Path(self.argv[0]).name} {word}".rstrip()


_RUNNING: dict[int, RunningProgram] = {}


def running_programs() -> list[RunningProgram]:
    """The programs that `run` waits for in this process, the oldest first."""
    return sorted(_RUNNING.copy().values(), key=lambda program: program.since)


@contextlib.contextmanager
def _standard_input(text: str | None) -> Iterator[IO[bytes] | int]:
    """A file with the text, not a pipe: a second communicate() after a time-out does not continue writing."""
    if text is None:
        yield subprocess.DEVNULL
        return
    import tempfile  # few programs are given any

    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _communicate(child: subprocess.Popen[str], deadline: float, should_stop: Callable[[], bool]) -> tuple[str, str]:
    """Wait for the child, asking ``should_stop`` now and then. Raises TimeoutExpired at the deadline, or Cancelled."""
    while not should_stop():
        try:
            return child.communicate(timeout=min(_STOP_CHECK_INTERVAL, max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
    words = " ".join(map(str, child.args)) if isinstance(child.args, (list, tuple)) else str(child.args)
    raise Cancelled(f"stopped while this ran: {words if len(words) <= _SHOWN else words[:_SHOWN] + '…'}")


def stoppable(should_stop: Callable[[], bool]) -> CommandRunner:
    """A `run` that ends its program and raises Cancelled as soon as ``should_stop`` answers true."""
    return functools.partial(run, should_stop=should_stop)


def _end_group(child: subprocess.Popen[str], grace: float = 2.0) -> tuple[str, str]:
    """End the child's process group and return the rest of its stdout and stderr."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, sig)
        try:
            return child.communicate(timeout=grace)
        except subprocess.TimeoutExpired:
            continue
    return "", ""


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that would change a submission.

    ``SBATCH_*`` and ``SLURM_*`` override the directives of a script (sbatch(1), INPUT ENVIRONMENT VARIABLES); an
    inherited ``VIRTUAL_ENV`` breaks `uv run` on compute nodes. ``SLURM_CONF`` stays: it says which cluster is meant.
    """
    kept = {k: v for k, v in environ.items() if not k.startswith(("SBATCH_", "SLURM_")) and k != "VIRTUAL_ENV"}
    if "SLURM_CONF" in environ:
        kept["SLURM_CONF"] = environ["SLURM_CONF"]
    return kept


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
        return cls(os.uname().nodename, _boot_id(), pid, _started(pid) or "", _pid_namespace())

    @classmethod
    def current(cls) -> ProcessIdentity:
        """The calling process."""
        return cls.of(os.getpid())

    def alive(self) -> bool | None:
        """Whether it still runs; None when that is not known here.

        It is not known of a process of another host or PID namespace, where its pid means another process or none:
        containers of one machine often share its host name. After a reboot every process of the machine itself is gone;
        a container with that host name may be on another machine.
        """
        if self.host != os.uname().nodename:
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

    def stopped(self) -> bool:
        """Whether it is of this host and was stopped (SIGSTOP, Ctrl-Z): it is alive, keeps its locks, and does
        nothing."""
        return self.alive() is True and (_stat(self.pid) or [""])[0] in ("T", "t")


def host_label() -> str:
    """The name of this host and PID namespace in names of files: a pid beside it means a process of these."""
    host, namespace = os.uname().nodename[:32], _pid_namespace()
    return host if namespace in ("", _INITIAL_NAMESPACE) else f"{host}-{namespace.strip('pid:[]')}"


def pid_exists(pid: int) -> bool:
    """Whether our PID namespace has the process; by signal 0, since /proc can hide other users' (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    return _namespace_of(os.getpid())


@functools.lru_cache(maxsize=2)
def _namespace_of(mine: int) -> str:
    """The PID namespace of this process, which never changes; cached, since each published file needs it."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process began, in clock ticks after boot (proc(5), stat, field 22); "" for one that has ended and is
    not reaped yet; None when it is not seen."""
    fields = _stat(pid)
    return None if fields is None else "" if fields[0] in "ZX" else fields[19]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (field 3, proc(5)); None where they cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
