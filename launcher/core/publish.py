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
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.core.process import host_label, pid_exists, run

TEMPORARY_SUFFIX = ".part"

NAME_MAX = 255
"""Bytes of a file's name (of one path component, not of a path) on every file system that the fleets use."""


def temporary_name(final: Path) -> Path:
    """A name beside ``final`` that no other process, host or retry uses: hidden, with host, pid and a random part.

    The pid alone is not enough: two hosts of a shared file system can have the same one. A name that would be longer
    than `NAME_MAX` is cut in the part that repeats the final name.
    """
    tail = f".{host_label()}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    stem = final.name.encode()[: NAME_MAX - len(f".{tail}")].decode(errors="ignore")
    return final.with_name(f".{stem}{tail}")


def temporary_pattern(final: str, host: str = ".+") -> re.Pattern[str]:
    """The names that `temporary_name` gives to files whose own names match ``final``, with groups ``host`` and ``pid``.

    Both arguments are regular expressions. Host names may have dots in them, so one of the two has to be definite.
    """
    tail = rf"(?P<pid>\d+)\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}"
    return re.compile(rf"\.{final}\.(?P<host>{host})\.{tail}", re.DOTALL)


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
def publishing(final: Path) -> Iterator[Path]:
    """Give a temporary path to write to; publish it under ``final`` when the block ends well, remove it when not.

    A file of that name is replaced, which is right for records and summaries. Artifacts that running jobs have mapped
    (squash files, checkpoints) are published with `publish_new`.
    """
    temporary = temporary_name(final)
    try:
        yield temporary
        if final.parent.stat().st_mode & 0o077 == 0:  # as private as its directory, whatever the umask
            temporary.chmod(0o600)
        fsync(temporary)
        temporary.replace(final)
        fsync(final.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def publish_new(temporary: Path, final: Path, *, whole: Callable[[Path], bool] = os.path.lexists) -> bool:
    """Publish ``temporary`` under ``final`` unless something ``whole`` has that name; return whether it was published.

    link(2) fails with EEXIST where rename(2) would silently replace. Something that is not whole is replaced by rename,
    never removed first. On file systems without hard links ``whole`` is asked and the file renamed: that can at worst
    replace a whole artifact by another whole one.
    """
    fsync(temporary)
    try:
        os.link(temporary, final)
    except OSError:
        if whole(final):
            temporary.unlink()
            return False
        temporary.replace(final)
    else:
        temporary.unlink()
    fsync(final.parent)
    return True


@contextlib.contextmanager
def publishing_directory(final: Path, *, whole: Callable[[Path], bool] = os.path.isdir) -> Iterator[Path]:
    """Give a temporary path where a directory is to be made; publish it under ``final`` when the block ends well.

    When another process has published a ``whole`` one meanwhile, that one stays. Raises OSError when anything else is
    in the way, and leaves nothing behind when the block fails.
    """
    temporary = temporary_name(final)
    try:
        yield temporary
        try:
            temporary.rename(final)
        except OSError:
            if not whole(final):
                raise
        fsync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with publishing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a text file (UTF-8) atomically and durably. Bytes of a name that are no UTF-8 are escaped, as JSON has it
    too."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically and durably, readable by a person."""
    write_bytes(path, json_bytes(value, indent=2) + b"\n")


def json_line(value: Any) -> bytes:
    """A JSON document on one line; what JSON has no form for is written as text."""
    return json_bytes(value, default=str)


def json_bytes(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> bytes:
    """A JSON document in UTF-8. What stands for bytes that were none (in names of files) keeps JSON's escapes."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=default).encode(errors="backslashreplace")
