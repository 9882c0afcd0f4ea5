"""Directories that several people use: whose something is, and which rights what we make there gets.

The directory decides, whatever the umask: what its group may do with it, the group may do with what lies in it; others
may read where they may read the directory. So a private directory has private files.
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
    """The name of a user (default: who runs this), else the uid."""
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # without an entry in the user database, as in some containers
        return str(uid)


def owner_and_mode(path: Path | str) -> str:
    """Whose a path is, and its mode, in words: of the first part of it that keeps this user out, else of the path."""
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
    """What an error of the file system at a path says, within a sentence; of a refusal also whose the path is."""
    said = error.strerror or str(error)
    return f"{said} ({owner_and_mode(path)})" if error.errno in (errno.EACCES, errno.EPERM) else said


def os_error_hint(error: OSError, path: Path | str) -> str:
    """What a person can do after an error of the file system at a path; for a refusal, whose permission is missing."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{owner_and_mode(path)}: its owner, or root, lets {user_name()} in (chmod, chgrp); or name another place"
        )
    return _HINTS.get(error.errno or 0, "try again; look at the log of the file system")


def cannot_remove(path: Path) -> str | None:
    """Why this user may not remove what lies there, and who may; None when nothing speaks against it."""
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
    """Give a file or directory that we made the rights of its directory, as far as the file system has it."""
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
    """The path, or a name beside it for this user alone where another one has made what is there: what can start
    programs (settings of a git repository, a Python environment) is used by its owner only."""
    with contextlib.suppress(OSError):
        if path.lstat().st_uid != os.geteuid():
            return path.with_name(f"{path.stem}.{user_name()}{path.suffix}")
    return path


def make_directories(path: Path) -> None:
    """Make a directory and those above it that are missing, each with the mode of the one it is in: who may make files
    there may make some in it. Raises OSError."""
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    for part in reversed(missing):
        with contextlib.suppress(FileExistsError):
            part.mkdir()
            inherit_rights(part)
            with contextlib.suppress(OSError):
                part.chmod(part.parent.stat().st_mode & 0o7777)
    path.mkdir(exist_ok=True)
