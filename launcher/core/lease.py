"""A lock that saves work: who holds it is written down, and it is broken only on proof.

`flock` is a silent no-op on some shared file systems (an NFS mount of a real cluster let every rank in), so the lock is
an *owner file*, whose name is taken atomically (`take_name`). Its owner touches it every few seconds. Whoever finds it
takes it away when its owner is provably dead, or when it was not touched for `lease` seconds of the finder's own clock.
We also take the `flock` that the bash launchers take, so that they and this program do not work at the same time.

The lock does not make an artifact correct; publishing does (launcher/core/publish.py). When a lock cannot be had, the
caller says so and goes on: at worst the work is done twice.
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
    """How often a lock is touched and looked at, in seconds.

    An owner that did not touch its file for ``lease`` is taken for gone; it touches it every ``beat``. Whoever waits
    looks at the file every ``poll``. With ``for_proof`` only the proof that an owner is gone is waited for: one that is
    seen to live is not.
    """

    lease: float = LEASE
    beat: float = 10.0
    poll: float = 1.0
    for_proof: bool = False


class LockOwner(msgspec.Struct, frozen=True, rename={"boot": "boot_id"}):
    """Who holds a lock: what its owner file says, for other processes and for people. Older launchers lack some keys.

    ``job`` is the Slurm job in which it runs, if any; ``started`` is when the lock was asked for (ISO 8601, by the
    owner's clock); ``token`` tells two locks of one process apart. ``host`` is "" when the owner file cannot be read.
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
        me = ProcessIdentity.current()
        return cls(
            me.host,
            me.boot,
            me.pid_namespace,
            me.pid,
            int(me.started) if me.started else None,
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

        A lock asks for more proof than a record does: machines that share a host name have different boots, a damaged
        owner file may lack its pid, and the lease breaks what is left soon enough.
        """
        mine, began = ProcessIdentity.current(), "" if self.pid_started is None else str(self.pid_started)
        process = ProcessIdentity(self.host, self.boot, self.pid, began, self.pid_namespace)
        same_machine = self.boot != "" and (self.boot, self.pid_namespace) == (mine.boot, mine.pid_namespace)
        return self.pid > 0 and same_machine and process.alive() is False


@dataclass(frozen=True)
class LockResult:
    """What came of asking for a lock.

    ``owner`` says in words who holds the lock (who, where, since when, what) when somebody else does. ``facts`` are
    one-line statements for the log: what could not be locked, which lock was broken and why.
    """

    acquired: bool
    owner: str | None = None
    facts: tuple[str, ...] = ()


class Lock:
    """``with Lock(path, what=…, wait=…) as held:`` the lock is held in the block if ``held.acquired``. For one use.

    ``path`` is the owner file; ``flock_path`` the file that others flock, if any. ``wait`` (seconds) bounds the waiting
    for both together. ``on_wait`` is told who holds the lock, at first and when that changes. Raises no OSError: what a
    file system refuses is in ``held.facts``; one of the two locks is enough to have acquired it.
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
        self._told: str | None = None
        self._mine = b""
        self._handle: int | None = None
        self._flocked = False
        self._taken = contextlib.ExitStack()
        self._outlived = False  # we broke the lock of an owner that may be stopped, and have its flock still

    def __enter__(self) -> LockResult:
        deadline = monotonic() + self._wait
        with contextlib.ExitStack() as taken:
            owner = self._take_owner_file(taken, deadline) or self._take_flock(taken, deadline)
            acquired = owner is None and (self._handle is not None or self._flocked)
            if acquired:
                self._taken = taken.pop_all()
        return LockResult(acquired, owner, tuple(self._facts))

    def __exit__(self, *exception: object) -> None:
        self._taken.close()

    @property
    def lost(self) -> bool:
        """Whether somebody took our lock away in good faith, because we were stopped for longer than the lease."""
        if self._handle is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._handle), self.path.stat())
        except OSError:
            return True

    def _take_owner_file(self, taken: contextlib.ExitStack, deadline: float) -> str | None:
        """Take the owner file, or return who still has it at the deadline. That no file can be made is a fact.

        ``taken`` gives back what was taken, here and in `_take_flock`.
        """
        self._mine = LockOwner.here(self._what).to_json()
        temporary = temporary_name(self.path)
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            taken.callback(os.close, handle)
            inherit_rights(temporary)  # others must be able to read who holds it
            os.write(handle, self._mine)
            if owner := self._compete(temporary, deadline):
                return owner
        except OSError as error:
            self._facts.append(f"no lock file can be made at {self.path}: {describe_os_error(error, self.path.parent)}")
            return None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._handle = handle
        taken.callback(self._remove_own_file)
        ended = threading.Event()
        heart = threading.Thread(target=self._beat_on, args=(handle, ended), daemon=True, name=f"lock {self.path.name}")
        heart.start()
        taken.callback(heart.join)
        taken.callback(ended.set)
        return None

    def _compete(self, temporary: Path, deadline: float) -> str | None:
        """Link our file to the lock's name: wait for its owner, and break the lock if it is stale.

        Returns None, or who still has the lock at the deadline.
        """
        seen: tuple[bytes, int] | None = None
        unmoved, looked = 0.0, monotonic()
        while not take_name(temporary, self.path):
            found = read_owner(self.path)
            now = monotonic()
            # A look counts for two polls at most: while this process was stopped itself, it has not seen anything.
            beats = seen is not None and found is not None and found[1] != seen[1]
            unmoved = unmoved + min(now - looked, 2 * self._pace.poll) if found == seen else 0.0
            seen, looked = found, now
            if found is not None:
                owner = LockOwner.from_json(found[0])
                holder = str(owner) if owner.host else f"an unknown process; {owner_and_mode(self.path)}"
                why = "its process is dead" if owner.is_dead else None
                if self.path.is_symlink():
                    why = "it is a link, which no lock is"
                if why is None and unmoved >= self._pace.lease:
                    why, self._outlived = f"no heartbeat for {unmoved:.0f} s", True
                if why and remove_if_unchanged(self.path, found):
                    self._facts.append(f"broke the lock of {holder}: {why}")
                    continue
                if why and (kept := cannot_remove(self.path)):
                    raise FileExistsError(errno.EEXIST, f"a stale lock is in the way, of {holder}: {why}; it is {kept}")
            else:
                holder = f"whoever comes and goes at {self.path}"
            if now >= deadline or (self._pace.for_proof and beats):
                return holder
            self._wait_for(holder if found is not None else None, deadline - now)
        return None

    def _take_flock(self, taken: contextlib.ExitStack, deadline: float) -> str | None:
        """Take flock on the bash launchers' path, or return that somebody has it. That flock fails is a fact."""
        if self.flock_path is None:
            return None
        somebody = f"an unnamed process with flock on {self.flock_path}"
        try:
            handle = _open_lock(self.flock_path)
            taken.callback(os.close, handle)
            while not self._flocked:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._flocked = True
                except BlockingIOError:
                    now = monotonic()
                    if self._outlived:
                        self._facts.append(f"{somebody} is not waited for: it may be the owner whose lock was broken")
                        return None
                    if now >= deadline:
                        return somebody
                    self._wait_for(somebody, deadline - now)
        except OSError as error:
            self._facts.append(f"flock does not work on {self.flock_path}: {describe_os_error(error, self.flock_path)}")
        return None

    def _wait_for(self, owner: str | None, left: float) -> None:
        """Say who has the lock, if that is news, and wait until the next look, or as long as is ``left``."""
        if self._on_wait and owner not in (None, self._told):
            self._told = owner
            self._on_wait(str(owner))
        self._sleep(min(self._pace.poll, left))

    def _beat_on(self, handle: int, ended: threading.Event) -> None:
        # A signal that the kernel gives to this thread would not wake the main one, where its handler has to run.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not ended.wait(self._pace.beat):
            with contextlib.suppress(OSError):
                os.utime(handle)  # by handle: the name may be somebody else's by now

    def _remove_own_file(self) -> None:
        with contextlib.suppress(OSError):
            if not self.lost and (found := read_owner(self.path)) and found[0] == self._mine:
                remove_if_unchanged(self.path, found)
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
    """Content and heartbeat of an owner file; None when it is gone.

    It is opened anew each time: NFS clients ask the server for a file's times when they open it (nfs(5),
    close-to-open), and may answer a mere stat from their cache. A file that may not be read still has its times. A link
    is not followed: owner files are none.
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


def remove_if_unchanged(path: Path, judged: tuple[bytes, int]) -> bool:
    """Remove the owner file that was ``judged`` (see `read_owner`). False when it stays, perhaps as another one."""
    # Another process may have broken the lock and taken it since the file was judged. So the file gets a name of our
    # own and is read again; it is put back when it is another one, or was touched after all.
    aside = temporary_name(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if read_owner(aside) == judged:
        with contextlib.suppress(OSError):
            aside.unlink()
        return True
    with contextlib.suppress(OSError):
        take_name(aside, path)  # never over a file that came meanwhile
    with contextlib.suppress(OSError):
        aside.unlink()
    return False
