"""A job's logs, kept: as one tarball within seconds, and as a plain copy.

Neither holds the secrets of our environment, nor what looks like anybody's token (`launcher.core.redact`): a workflow
uploads them. Both survive logs that are still being written: a file that grows is cut at the size it had, one that
shrinks is padded, one that vanishes is left out. Sockets, pipes and links that lead out of the directory are never
followed.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

from launcher.core.publish import publishing
from launcher.core.redact import Redacting

_CHUNK = 1 << 20
_LINE = 1 << 16
_FIRST_GUESS = 20e6
"""Bytes a second that are assumed until the first measurement."""

LEFT_OUT = "launcher-left-out.txt"
"""The member that lists what is not, or only in part, in a tarball."""


@dataclass(frozen=True)
class Bundle:
    """A tarball of logs: how many files and bytes of theirs it holds, and what is left out of it, and why."""

    path: Path
    files: int
    bytes: int
    left_out: tuple[str, ...] = ()


def log_files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below a directory, with their status. A link counts when what it names lies below it too."""
    root = directory.resolve()
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            path = Path(folder, name)
            try:
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    continue
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status


def bundle_logs(
    logs_dir: Path,
    tarball: Path,
    *,
    seconds: float | None = None,
    extra: Sequence[tuple[str, Path]] = (),
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Bundle | None:
    """Pack ``logs_dir`` into ``tarball`` (gzip), published whole; None when there is nothing to pack.

    ``seconds`` bounds it: small files come first, a file that would take too long is there with its end only, and what
    is left out is listed in the member `launcher-left-out.txt`. ``extra`` adds files, first, under names of their own.
    Secrets of ``environ`` are overwritten by asterisks. Raises OSError when the tarball cannot be written; what cannot
    be read is left out.
    """
    began = clock()
    left_out: list[str] = []
    found: list[tuple[Path, os.stat_result]] = []
    for entry in log_files(logs_dir):
        found.append(entry)
        if seconds is not None and clock() - began > seconds / 2:
            left_out.append("and what lies behind that: for want of time the directory was not read to its end")
            break
    found.sort(key=lambda entry: entry[1].st_size)
    members = [
        *(each for each in extra if each[1].is_file()),
        *((str(path.relative_to(logs_dir)), path) for path, _ in found),
    ]
    if not members:
        return None
    packed = files = 0
    with publishing(tarball) as temporary, tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
        for name, path in members:
            try:
                file = path.open("rb")
            except OSError as error:
                left_out.append(f"{name}: {error.strerror}")
                continue
            with file:
                status = os.fstat(file.fileno())
                take = status.st_size
                if seconds is not None:
                    take = min(take, _room(seconds, clock() - began, packed))
                if take < status.st_size:
                    take -= _half_a_line(file, status.st_size - take, take)
                    left_out.append(f"{name}: {status.st_size - take} of {status.st_size} bytes, for want of time")
                    if take == 0:
                        continue
                file.seek(status.st_size - take)
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.mode = take, int(status.st_mtime), status.st_mode & 0o777
                tar.addfile(member, _Exactly(Redacting(file, environ or {}), take))
            packed += take
            files += 1
        if left_out:
            note = "".join(f"{line}\n" for line in left_out).encode(errors="surrogateescape")
            member = tarfile.TarInfo(LEFT_OUT)
            member.size = len(note)
            tar.addfile(member, BytesIO(note))
    return Bundle(tarball, files, packed, tuple(left_out))


def _half_a_line(file: IO[bytes], offset: int, size: int) -> int:
    """Bytes from ``offset`` to where a line begins: half a line could be half a secret."""
    file.seek(offset - 1)
    return len(file.readline(min(size, _LINE) + 1)) - 1


def _room(seconds: float, spent: float, packed: int) -> int:
    """Bytes that can still be packed, by the speed so far."""
    rate = packed / spent if packed > _CHUNK and spent > 0.05 else _FIRST_GUESS
    return max(0, int((seconds - spent) * rate))


def copy_logs(logs_dir: Path, destination: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    """Copy the files of ``logs_dir`` below ``destination`` (made when missing), secrets of ``environ`` overwritten by
    asterisks; say what could not be read.

    Raises OSError when the copy cannot be written.
    """
    failed: list[str] = []
    destination.mkdir(parents=True, exist_ok=True)
    for path, _ in log_files(logs_dir):
        target = destination / path.relative_to(logs_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = path.open("rb")
        except OSError as error:
            failed.append(f"{path.relative_to(logs_dir)}: {error.strerror}")
            continue
        with source, target.open("wb") as copy:
            shutil.copyfileobj(Redacting(source, environ or {}), copy, _CHUNK)
    return failed


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Exactly:
    """Reads exactly ``size`` bytes of a file, zeros where it has become shorter: the tar header is written already."""

    def __init__(self, file: _Reader, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        try:
            data = self._file.read(wanted)
        except OSError:
            data = b""
        self._left -= wanted
        return data.ljust(wanted, b"\0")
