"""Publishing: a reader sees nothing, or the whole file.

Write under a unique name in the same directory, verify, fsync the file, rename, fsync the directory. This is what makes
an artifact correct; a lock only saves work (docs/design.md, "Publish").
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.process import host_label, pid_exists, run
from launcher.core.rights import inherit_rights

TEMPORARY_SUFFIX = ".part"

NAME_MAX = 255
"""Bytes of a file's name (of one path component, not of a path) on every file system that the fleets use."""


_ATTEMPTS, _PAUSE = 50, 0.1
"""How often a name is tried for, and seconds between two looks at somebody's claim."""

_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h


def temporary_name(final: Path) -> Path:
    """A name beside ``final`` that no other process, host or retry uses: hidden, with host, pid and a random part.

    The pid alone is not enough: two hosts of a shared file system can have the same one. A name that would be longer
    than `NAME_MAX` is cut in the part that repeats the final name.
    """
    tail = f".{host_label()}.{os.getpid()}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
    stem = final.name.encode()[: NAME_MAX - len(f".{tail}")].decode(errors="ignore")
    return final.with_name(f".{stem}{tail}")


def utc_timestamp() -> str:
    """The time, as files of ours have it (ISO 8601, UTC)."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def temporary_pattern(final: str, host: str = ".+") -> re.Pattern[str]:
    """The names that `temporary_name` gives to files whose own names match ``final``, with groups ``host`` and ``pid``.

    Both arguments are regular expressions. Host names may have dots in them, so one of the two has to be definite.
    """
    tail = rf"(?P<pid>\d+)\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}"
    return re.compile(rf"\.{final}\.(?P<host>{host})\.{tail}", re.DOTALL)


def require_writable(directory: Path) -> None:
    """Make a file in a directory, and remove it: access(2) knows nothing of root-squash. Raises OSError."""
    probe = temporary_name(directory / "probe")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    probe.unlink()


def dead_temporaries(directory: Path) -> tuple[Path, ...]:
    """Files and directories that dead processes of this host left in ``directory`` under names of `temporary_name`.

    Whether a process of another host still runs cannot be seen from here, so its temporaries are not among them.
    Raises OSError when the directory cannot be read.
    """
    ours = temporary_pattern(".*", re.escape(host_label()))
    found = ((path, ours.fullmatch(path.name)) for path in directory.iterdir())
    return tuple(sorted(path for path, match in found if match and not pid_exists(int(match["pid"]))))


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone, whatever the umask; the directory
    itself is made so when it is there already and ours. Raises OSError."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(0o700)
    status = directory.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        directory.chmod(0o700)


def private_opener(path: str, flags: int) -> int:
    """For `open`: a file that is made is for this user alone."""
    return os.open(path, flags, 0o600)


def append_line(path: Path, line: bytes, *, durable: bool = False) -> None:
    """Append a line to a file of this user's; what a full disk or a kill has cut before it stays on a line of its own.

    A ``durable`` one is for the only writer of the file: it is synced, or nothing of it stays. Raises OSError.
    """
    handle = private_opener(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        cut = bool(size) and os.pread(handle, 1, size - 1) != b"\n"
        content = (b"\n" if cut else b"") + line + b"\n"
        try:
            if os.write(handle, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if durable:
                os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                if durable:
                    os.ftruncate(handle, size)  # what was not written for sure is written again
            raise
    finally:
        os.close(handle)
    if durable and not size:
        with contextlib.suppress(OSError):
            fsync(path.parent)


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that is in it, as far as that can be, however deep it is. Raises nothing."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    except RecursionError:  # a job may leave thousands of levels
        run(["rm", "-rf", "--", str(directory)], timeout=600)


def fsync(path: Path) -> None:
    """Force a file's content to storage, or a directory's entries, so that a rename survives a power loss.

    Raises OSError (ENOSPC and EDQUOT can show only here, on NFS).
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some FUSE file systems do not know fsync of a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def sync_meanwhile(path: Path, every: float = 0.5) -> Iterator[None]:
    """Bring to storage what others write to a file while the block runs, so that its end has little to wait for.

    Raises OSError for what could not be stored: the kernel says that once, and not to a later fsync (fsync(2)).
    """
    from launcher.core.waiting import start_in_thread  # every command publishes something, and few import images

    over = threading.Event()

    def store() -> None:
        while not over.wait(every):
            with contextlib.suppress(FileNotFoundError):
                fsync(path)

    stored = start_in_thread(store)
    try:
        yield
    finally:
        over.set()
    stored.result()


@contextlib.contextmanager
def publishing(final: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; publish it under ``final`` when the block ends well, remove it when not.

    What need not outlive a power loss is not ``durable``, and waits for no disk.

    A file of that name is replaced, which is right for records and summaries. Artifacts that running jobs have mapped
    (squash files, checkpoints) are published with `publish_new`.
    """
    temporary = temporary_name(final)
    try:
        yield temporary
        inherit_rights(temporary)
        if durable:
            fsync(temporary)
        temporary.replace(final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        fsync(final.parent)


def publish_new(temporary: Path, final: Path, *, whole: Callable[[Path], bool] = os.path.lexists) -> bool:
    """Publish ``temporary`` under ``final`` unless something ``whole`` has that name; return whether it was published.

    What is not whole is set aside first: a rename onto it that comes late would hit what another process has published
    meanwhile. It gets the rights of its directory. Raises OSError, also where somebody's claim of the name is not given
    up (see `take_name`).
    """
    inherit_rights(temporary)
    fsync(temporary)
    for _ in range(_ATTEMPTS):
        if take_name(temporary, final):
            fsync(final.parent)
            return True
        with contextlib.suppress(FileNotFoundError):
            seen = final.lstat()
            if whole(final):
                temporary.unlink()
                return False
            _set_aside(final, seen)
    raise OSError(errno.EBUSY, "what is not whole there comes again and again", str(final))


def _set_aside(final: Path, judged: os.stat_result) -> None:
    """Remove the file that was ``judged``. Another one, which came meanwhile, gets its name back."""
    aside = temporary_name(final)
    final.rename(aside)
    now = aside.lstat()
    if os.path.samestat(now, judged) and (now.st_size, now.st_mtime_ns) == (judged.st_size, judged.st_mtime_ns):
        aside.unlink()
    else:
        take_name(aside, final)
        aside.unlink(missing_ok=True)


def take_name(temporary: Path, final: Path) -> bool:
    """Give a file its final name; False when something has that name, which then stays. Raises OSError.

    By link(2), else by renameat2(2), which both say EEXIST where rename(2) would silently replace. A file system that
    has neither has the name claimed by a file beside it, for the time of one rename. A claim is never broken, since its
    owner may only be slow.
    """
    try:
        os.link(temporary, final)
    except OSError as error:
        if temporary.stat().st_nlink == 2:  # NFS lost the reply to a link that was made (open(2), under O_EXCL)
            pass
        elif isinstance(error, FileExistsError):
            return False
        else:
            return _rename_new(temporary, final)
    temporary.unlink()
    return True


def _rename_new(temporary: Path, final: Path) -> bool:
    import ctypes  # few file systems come here

    with contextlib.suppress(AttributeError):  # a libc without it
        library = ctypes.CDLL(None, use_errno=True)
        names = (_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(final))
        if library.renameat2(*names, _RENAME_NOREPLACE) == 0:
            return True
        code = ctypes.get_errno()
        if code == errno.EEXIST:
            return False
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(final))
    claim = final.with_name(f".{final.name[:200]}.claim{TEMPORARY_SUFFIX}")
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
            try:
                if os.path.lexists(final):
                    return False
                temporary.rename(final)
                return True
            finally:
                claim.unlink()
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, f"somebody publishes it; if nobody does any more, remove {claim}", str(final))


@contextlib.contextmanager
def publishing_directory(final: Path, *, whole: Callable[[Path], bool] = os.path.isdir) -> Iterator[Path]:
    """Give a temporary path where a directory is to be made; publish it under ``final`` when the block ends well.

    When another process has published a ``whole`` one meanwhile, that one stays. Raises OSError when anything else is
    in the way, and leaves nothing behind when the block fails.
    """
    temporary = temporary_name(final)
    try:
        yield temporary
        inherit_rights(temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not whole(final):
                raise
        fsync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file atomically, and as a rule durably."""
    with publishing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str, *, durable: bool = True) -> None:
    """Write a text file (UTF-8) atomically, and as a rule durably. Bytes of a name that are no UTF-8 are escaped, as
    JSON has it too."""
    write_bytes(path, content.encode(errors="backslashreplace"), durable=durable)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically and durably, readable by a person."""
    write_bytes(path, json_bytes(value, indent=2) + b"\n")


def json_line(value: Any) -> bytes:
    """A JSON document on one line; what JSON has no form for is written as text."""
    return json_bytes(value, default=str)


def json_bytes(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> bytes:
    """A JSON document in UTF-8. What stands for bytes that were none (in names of files) keeps JSON's escapes."""
    text = json.dumps(value, ensure_ascii=False, default=default).encode(errors="backslashreplace")
    if indent is None:
        return text
    try:  # with an indent json.dumps takes ten times as long
        return msgspec.json.format(text, indent=indent)
    except msgspec.DecodeError:  # Infinity and NaN, which are no JSON
        return json.dumps(value, indent=indent, ensure_ascii=False, default=default).encode(errors="backslashreplace")
