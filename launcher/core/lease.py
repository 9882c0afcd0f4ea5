"""A lock that saves work: a file names its owner, and the lock is broken only on proof that the owner is gone.

`flock` is a silent no-op on some shared file systems (an NFS mount of a real cluster let every rank in), so the lock is
an *owner file*, whose name is taken atomically (`take_name`). Its owner touches it every few seconds. Another process
removes it when the owner is provably dead, or when it was not touched for `lease` seconds of that process's own clock.
We also take the `flock` that the bash launchers take, so that they and this program do not work at the same time.

The lock does not make an artifact correct; publishing does (launcher/core/publish.py). When the lock cannot be
acquired, the caller logs that and goes on: at worst the work is done twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import msgspec

from launcher.core.process import ProcessIdentity
from launcher.core.publish import take_name, temporary_name, utc_timestamp
from launcher.core.reading import open_regular, prepare_type
from launcher.core.rights import cannot_remove, describe_os_error, inherit_rights, owner_and_mode

LEASE = 120.0
"""Seconds without a heartbeat that prove an owner gone. An NFS client may see a touch 60 s late (nfs(5), acregmax)."""


@dataclass(frozen=True)
class LockPace:
    """How often a lock is touched and checked, in seconds.

    The owner touches its file every ``beat``; after ``lease`` without a touch it counts as gone. A process that waits
    checks the file every ``poll``. With ``for_proof`` it waits only until it is known whether the owner is alive, and
    gives up on a living one.
    """

    lease: float = LEASE
    beat: float = 10.0
    poll: float = 1.0
    for_proof: bool = False


class LockOwner(msgspec.Struct, frozen=True, rename={"boot": "boot_id"}):
    """The owner of a lock: the content of its owner file, for other processes and for people. Older launchers lack some
    keys.

    ``job`` is the Slurm job in which it runs, if any; ``started`` is when the lock was requested (ISO 8601, by the
    owner's clock); ``token`` distinguishes two locks of one process. ``host`` is "" when the owner file cannot be read.
    """

    host: str = ""
    boot: str = ""
    pid_namespace: str = ""
    pid: int = 0
    pid_started: int | None = None
    job: str | None = None
    started: str = ""
    what: str = ""
    token: str = ""

    @classmethod
    def here(cls, what: str) -> LockOwner:
        """The calling process as an owner, now."""
        process = ProcessIdentity.current()
        return cls(
            process.host,
            process.boot,
            process.pid_namespace,
            process.pid,
            int(process.started) if process.started else None,
            os.environ.get("SLURM_JOB_ID"),
            utc_timestamp(),
            what,
            os.urandom(8).hex(),
        )

    @classmethod
    def from_json(cls, content: bytes) -> LockOwner:
        """Read an owner file."""
        try:
            return msgspec.json.decode(content, type=prepare_type(cls), strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return cls()

    def to_json(self) -> bytes:
        """The owner file's content: one flat object, as launchers of every version read it."""
        return msgspec.json.encode(self) + b"\n"

    def __str__(self) -> str:
        if not self.host:
            return "an unknown process"
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"pid {self.pid} on {self.host}{job}, since {self.started}: {self.what}"

    @property
    def is_dead(self) -> bool:
        """Whether it is proven that the process does not run any more.

        A lock requires more proof than a record does: machines that share a host name have different boots, and a
        damaged owner file may lack its pid. The lease ends the other cases soon enough.
        """
        ours, started = ProcessIdentity.current(), "" if self.pid_started is None else str(self.pid_started)
        process = ProcessIdentity(self.host, self.boot, self.pid, started, self.pid_namespace)
        same_machine = self.boot != "" and (self.boot, self.pid_namespace) == (ours.boot, ours.pid_namespace)
        return self.pid > 0 and same_machine and process.alive() is False


@dataclass(frozen=True)
class LockResult:
    """The result of acquiring a lock.

    ``owner`` describes the process that holds the lock (pid, host, since when, for what) when it is another one.
    ``facts`` are lines for the log: what could not be locked, which lock was broken and why.
    """

    acquired: bool
    owner: str | None = None
    facts: tuple[str, ...] = ()


class Lock:
    """``with Lock(path, what=…, wait=…) as result:`` the lock is held in the block if ``result.acquired``. For one use.

    ``path`` is the owner file; ``flock_path`` the file that others flock, if any. ``wait`` (seconds) bounds the waiting
    for both together. ``on_wait`` is called with the owner's description, at first and when that changes. Raises no
    OSError: what a file system refuses is in ``result.facts``; one of the two locks is enough to have acquired it.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        wait: float,
        flock_path: Path | None = None,
        pace: LockPace = LockPace(),
        on_wait: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self.flock_path = flock_path
        self._what, self._wait, self._pace, self._on_wait, self._sleep = what, wait, pace, on_wait, sleep
        self._facts: list[str] = []
        self._reported_owner: str | None = None
        self._content = b""
        self._handle: int | None = None
        self._flocked = False
        self._releases = contextlib.ExitStack()
        self._broke_silent_owner = False  # the owner whose lock we broke may be stopped, and hold its flock still

    def __enter__(self) -> LockResult:
        deadline = monotonic() + self._wait
        with contextlib.ExitStack() as releases:
            owner = self._take_owner_file(releases, deadline) or self._take_flock(releases, deadline)
            acquired = owner is None and (self._handle is not None or self._flocked)
            if acquired:
                self._releases = releases.pop_all()
        return LockResult(acquired, owner, tuple(self._facts))

    def __exit__(self, *exception: object) -> None:
        self._releases.close()

    @property
    def lost(self) -> bool:
        """Whether another process broke our lock, because we were stopped for longer than the lease."""
        if self._handle is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._handle), self.path.stat())
        except OSError:
            return True

    def _take_owner_file(self, releases: contextlib.ExitStack, deadline: float) -> str | None:
        """Take the owner file, or return the owner that still has it at the deadline. That no file can be made is a
        fact.

        ``releases`` undoes what was taken, here and in `_take_flock`.
        """
        self._content = LockOwner.here(self._what).to_json()
        temporary = temporary_name(self.path)
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            releases.callback(os.close, handle)
            inherit_rights(temporary)  # others must be able to read who holds it
            os.write(handle, self._content)
            if owner := self._take_name(temporary, deadline):
                return owner
        except OSError as error:
            self._facts.append(f"no lock file can be made at {self.path}: {describe_os_error(error, self.path.parent)}")
            return None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._handle = handle
        releases.callback(self._remove_own_file)
        ended = threading.Event()
        thread = threading.Thread(
            target=self._heartbeat, args=(handle, ended), daemon=True, name=f"lock {self.path.name}"
        )
        thread.start()
        releases.callback(thread.join)
        releases.callback(ended.set)
        return None

    def _take_name(self, temporary: Path, deadline: float) -> str | None:
        """Link our file to the lock's name: wait for its owner, and break the lock if it is stale.

        Returns None, or the owner that still has the lock at the deadline.
        """
        previous: tuple[bytes, int] | None = None
        unchanged, checked_at = 0.0, monotonic()
        while not take_name(temporary, self.path):
            current = read_owner(self.path)
            now = monotonic()
            # A check counts for two polls at most: while this process was stopped, it saw nothing.
            is_alive = previous is not None and current is not None and current[1] != previous[1]
            unchanged = unchanged + min(now - checked_at, 2 * self._pace.poll) if current == previous else 0.0
            previous, checked_at = current, now
            if current is not None:
                owner = LockOwner.from_json(current[0])
                holder = str(owner) if owner.host else f"an unknown process; {owner_and_mode(self.path)}"
                why = "its process is dead" if owner.is_dead else None
                if self.path.is_symlink():
                    why = "it is a link, which no lock is"
                if why is None and unchanged >= self._pace.lease:
                    why, self._broke_silent_owner = f"no heartbeat for {unchanged:.0f} s", True
                if why and remove_if_unchanged(self.path, current):
                    self._facts.append(f"broke the lock of {holder}: {why}")
                    continue
                if why and (kept := cannot_remove(self.path)):
                    raise FileExistsError(errno.EEXIST, f"a stale lock is in the way, of {holder}: {why}; it is {kept}")
            else:
                holder = f"whoever comes and goes at {self.path}"
            if now >= deadline or (self._pace.for_proof and is_alive):
                return holder
            self._wait_for(holder if current is not None else None, deadline - now)
        return None

    def _take_flock(self, releases: contextlib.ExitStack, deadline: float) -> str | None:
        """Take flock on the bash launchers' path, or return that another process has it. That flock fails is a fact."""
        if self.flock_path is None:
            return None
        somebody = f"an unnamed process with flock on {self.flock_path}"
        try:
            handle = _open_lock(self.flock_path)
            releases.callback(os.close, handle)
            while not self._flocked:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._flocked = True
                except BlockingIOError:
                    now = monotonic()
                    if self._broke_silent_owner:
                        self._facts.append(f"{somebody} is not waited for: it may be the owner whose lock was broken")
                        return None
                    if now >= deadline:
                        return somebody
                    self._wait_for(somebody, deadline - now)
        except OSError as error:
            self._facts.append(f"flock does not work on {self.flock_path}: {describe_os_error(error, self.flock_path)}")
        return None

    def _wait_for(self, owner: str | None, left: float) -> None:
        """Report the lock's owner when it is another one, and wait until the next check, ``left`` seconds at most."""
        if self._on_wait and owner not in (None, self._reported_owner):
            self._reported_owner = owner
            self._on_wait(str(owner))
        self._sleep(min(self._pace.poll, left))

    def _heartbeat(self, handle: int, ended: threading.Event) -> None:
        # A signal that the kernel delivers to this thread would not wake the main one, where its handler has to run.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not ended.wait(self._pace.beat):
            with contextlib.suppress(OSError):
                os.utime(handle)  # by handle: the name may be another owner's by now

    def _remove_own_file(self) -> None:
        with contextlib.suppress(OSError):
            if not self.lost and (current := read_owner(self.path)) and current[0] == self._content:
                remove_if_unchanged(self.path, current)
        self._handle = None


def _open_lock(path: Path) -> int:
    """The file that bash launchers flock, made if it is missing. Raises OSError.

    It is neither truncated nor removed. NFS wants it open for writing for exclusive locks; a file that may only be read
    does elsewhere. What is there is opened without O_CREAT, which the kernel refuses in sticky directories for files of
    others (fs.protected_regular), and nothing is made through a link.
    """
    if not path.parent.exists():
        path.parent.mkdir(exist_ok=True)  # some of them keep their locks in DIRECTORY/.locks
        path.parent.chmod(path.parent.parent.stat().st_mode & 0o7777)
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        try:
            return os.open(path, flags | os.O_RDWR)
        except PermissionError:
            return os.open(path, flags | os.O_RDONLY)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(handle, 0o600 | path.parent.stat().st_mode & 0o066)
        return handle
    return os.open(path, flags | os.O_RDWR)


def read_owner(path: Path) -> tuple[bytes, int] | None:
    """The content and heartbeat (mtime in ns) of an owner file; None when it is gone.

    It is opened anew each time: NFS clients get a file's times from the server when they open it (nfs(5),
    close-to-open), and may answer a stat alone from their cache. A file that may not be read still has its times. Links
    are not followed: owner files are no links.
    """
    with contextlib.suppress(OSError):
        try:
            with open_regular(path, follow=False) as file:
                return file.read(65536), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError:
            return b"", path.lstat().st_mtime_ns
    return None


def remove_if_unchanged(path: Path, expected: tuple[bytes, int]) -> bool:
    """Remove the owner file if it is still as `read_owner` read it (``expected``). False when a file stays."""
    # Another process may have broken the lock and taken it meanwhile. So the file gets a name of our own and is read
    # again; it is put back when it is another one, or was touched.
    aside = temporary_name(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if read_owner(aside) == expected:
        with contextlib.suppress(OSError):
            aside.unlink()
        return True
    with contextlib.suppress(OSError):
        take_name(aside, path)  # never over a newer file
    with contextlib.suppress(OSError):
        aside.unlink()
    return False
