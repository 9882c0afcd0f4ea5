"""Directories that several people use: who owns a file, and which permissions our files there get.

The directory decides, whatever the umask: its group may do with our files what it may do with the directory, and others
may read them where they may read the directory. So a private directory has private files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from pathlib import Path

_HINTS = {
    errno.ENOENT: "create the directory, or correct its name",
    errno.ENOTDIR: "correct the name: a part of it is a file",
    errno.EROFS: "the file system is mounted read-only here: use a host that may write there",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "the quota is used up: free space there, or have it raised",
    errno.ESTALE: "the file system lost a file handle: try again",
    errno.EIO: "the storage failed: look at its log, then try again",
}


def user_name(uid: int | None = None) -> str:
    """The name of a user (default: the current one), else the uid."""
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # without an entry in the user database, as in some containers
        return str(uid)


def owner_and_mode(path: Path | str) -> str:
    """The owner and mode of a path in words: of the first directory on it that this user may not enter, else of it."""
    path = Path(os.fsdecode(path)).absolute()
    closed = (part for part in reversed(path.parents) if part.is_dir() and not os.access(part, os.X_OK))
    part = next(closed, path)
    while not os.path.lexists(part) and part != part.parent:
        part = part.parent
    try:
        status = part.lstat()
    except OSError as error:
        return f"{part}: {error.strerror}"
    kind = "a link of" if stat.S_ISLNK(status.st_mode) else "owned by"
    return f"{part} is {kind} {user_name(status.st_uid)}, mode {status.st_mode & 0o7777:04o}"


def describe_os_error(error: OSError, path: Path | str) -> str:
    """An error of the file system at a path, within a sentence; with the path's owner where permission is missing."""
    text = error.strerror or str(error)
    return f"{text} ({owner_and_mode(path)})" if error.errno in (errno.EACCES, errno.EPERM) else text


def os_error_hint(error: OSError, path: Path | str) -> str:
    """What a person can do after an error of the file system at a path; who can help where permission is missing."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{owner_and_mode(path)}: its owner, or root, lets {user_name()} in (chmod, chgrp); or name another place"
        )
    return _HINTS.get(error.errno or 0, "try again; look at the log of the file system")


def cannot_remove(path: Path) -> str | None:
    """Why this user may not remove the file or directory, and who may; None when no reason is known."""
    try:
        status, above = path.lstat(), path.parent.stat()
    except OSError:
        return None
    me = os.geteuid()
    if me != 0 and above.st_mode & stat.S_ISVTX and me not in (status.st_uid, above.st_uid):
        return f"owned by {user_name(status.st_uid)}, who may remove it, or root"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"{owner_and_mode(path.parent)}: its owner may remove it, or root"
    if me not in (0, status.st_uid) and stat.S_ISDIR(status.st_mode) and not os.access(path, os.W_OK | os.X_OK):
        return f"owned by {user_name(status.st_uid)}, who may remove it, or root"
    return None


def inherit_rights(path: Path) -> None:
    """Give a file or directory that we made the permissions of its directory, as far as the file system allows."""
    with contextlib.suppress(OSError):
        above, status = path.parent.stat(), path.stat()
        if above.st_gid != status.st_gid:
            with contextlib.suppress(OSError):  # only a member of the group may
                os.chown(path, -1, above.st_gid)
        own, taken = status.st_mode & 0o700, 0o2075 if stat.S_ISDIR(status.st_mode) else 0o064
        wanted = own | above.st_mode & (taken | 0o011 if own & 0o100 else taken)
        if status.st_mode & 0o7777 != wanted:
            path.chmod(wanted)


def path_for_own_use(path: Path) -> Path:
    """The path; or a name beside it for this user alone where another user owns what is there: files that can start
    programs (settings of a git repository, a Python environment) are used by their owner only."""
    with contextlib.suppress(OSError):
        if path.lstat().st_uid != os.geteuid():
            return path.with_name(f"{path.stem}.{user_name()}{path.suffix}")
    return path


def make_directories(path: Path) -> None:
    """Make a directory and its missing parents, each with the mode of its own parent: whoever may create files there
    may create files in it. Raises OSError."""
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    for part in reversed(missing):
        with contextlib.suppress(FileExistsError):
            part.mkdir()
            inherit_rights(part)
            with contextlib.suppress(OSError):
                part.chmod(part.parent.stat().st_mode & 0o7777)
    path.mkdir(exist_ok=True)
