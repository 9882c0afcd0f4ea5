"""Keeps a job's logs in the workspace: as a tarball within seconds, and as a plain copy in ``LOGS/``.

A workflow uploads both, so neither contains secrets of our environment or texts that look like a token
(`launcher.core.redact`). Both can be written while the job runs: a file that grows is cut at its earlier size, one that
shrinks is filled with zeros, one that vanishes is left out. Sockets and pipes are not read, links out of the directory
are not followed. The total size is bounded; files that are left out are listed and stay where the job wrote them.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from launcher.core.publish import publishing, remove_tree, temporary_name
from launcher.core.reading import open_regular
from launcher.core.redact import RedactingReader
from launcher.core.terminal import one_line

TARBALL = "multinode_server_logs.tar.gz"
LOGS = "LOGS"
EXPORTER_STAMP, PRODUCER_STAMP = STAMPS = ("exporter-image.sha256", "power-producer-sha.txt")
"""Files that the power lane writes into the workspace. They are kept with the logs for the audit of power."""

LEFT_OUT = "launcher-left-out.txt"
"""The member of a tarball that lists the files that it contains only in part or not at all."""

MAX_BYTES_OF_FILE = 64 << 20
"""Bytes from the end of a longer file that are kept. Removing secrets from a gigabyte takes 20 s of CPU time."""

MAX_BYTES_OF_ALL = 256 << 20
"""Bytes of all files together that are kept, the smallest files first."""

MAX_DEPTH = 32
"""Levels of directories below the logs that are searched."""

MAX_FILES = 20_000
"""Files that are considered: a job of 72 nodes writes some hundreds."""

MAX_REPORTED_LINES = 20
"""Lines about files that were left out in a run's doubts; the tarball lists more of them."""

_OWNER_FILE = ".launcher-job"
"""A file in ``LOGS/`` that contains the job id: only a directory with this file may be replaced."""

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 16
_ASSUMED_RATE = 20e6
"""Bytes a second that packing is assumed to take until it is measured."""


@dataclass(frozen=True)
class Bundle:
    """A tarball of logs: the numbers of its files and of their bytes, and a line for each file that is left out.

    ``cut``: something was left out because of its size, so that only the job's own directory has it.
    """

    path: Path
    files: int
    bytes: int
    left_out: tuple[str, ...] = ()
    cut: bool = False


def keep_logs(
    logs_dir: Path,
    workspace: Path,
    job_id: str,
    started: float,
    *,
    evidence: Sequence[tuple[str, Path]] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[Bundle | None, list[str]]:
    """Write the tarball of a job's logs and a copy of them (``LOGS/``) into the workspace; returns the problems too.

    ``evidence`` (name in the tarball, file) goes into the tarball only. The power lane's stamps go into both, unless
    they are older than ``started`` (Unix seconds), when this run began. Neither contains secrets of ``environ``. Logs
    are evidence, not results: failures here are not raised.
    """
    stamps = [(f"power/{name}", workspace / name) for name in STAMPS]
    fresh = [(name, path) for name, path in stamps if path.is_file() and path.stat().st_mtime >= started]
    final, copy = workspace / LOGS, temporary_name(workspace / LOGS)
    try:
        bundle = bundle_logs(logs_dir, workspace / TARBALL, extra=[*fresh, *evidence], environ=environ)
    except OSError as error:
        return None, [f"the logs could not be kept: {error.strerror}"]
    doubts = [f"{TARBALL}: {line}" for line in bundle.left_out[:MAX_REPORTED_LINES]] if bundle is not None else []
    if bundle is None or not logs_dir.is_dir():
        return bundle, doubts
    if final.exists() and not (final / _OWNER_FILE).is_file():
        return bundle, [*doubts, f"{LOGS}/ exists and was not made by a launcher, so it was not replaced"]
    try:
        _unpack(bundle.path, copy, {LEFT_OUT, *(name for name, _ in evidence)})
        _replace(copy, final, job_id)
    except (OSError, tarfile.TarError) as error:
        doubts.append(f"{LOGS}/ could not be written: {error}")
    finally:
        remove_tree(copy)
    return bundle, doubts


def _unpack(tarball: Path, directory: Path, without: Collection[str]) -> None:
    """Unpack a tarball of ours, in which secrets are removed and sizes limited already."""
    directory.mkdir()
    with tarfile.open(tarball) as tar:
        for member in tar:
            if member.name not in without and (packed := tar.extractfile(member)) is not None:
                target = directory / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    shutil.copyfileobj(packed, copy, _CHUNK)
                os.utime(target, (member.mtime, member.mtime))


def _replace(copy: Path, final: Path, job_id: str) -> None:
    """Rename ``copy`` to ``final``, which is a launcher's earlier copy or does not exist."""
    (copy / _OWNER_FILE).write_text(f"{job_id}\n", encoding="utf-8")
    old = temporary_name(final)
    try:
        if final.exists():
            final.rename(old)
        copy.rename(final)
    finally:
        remove_tree(old)


class _LeftOut:
    """A line for each file that is left out, at most 1000; and whether any was left out because of its size."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0
        self.cut = False

    def add(self, name: object, reason: str, *, cut: bool = False) -> None:
        self.cut = self.cut or cut
        if len(self._lines) < 1000:
            self._lines.append(f"{one_line(name)}: {reason}")
        else:
            self._more += 1

    @property
    def lines(self) -> tuple[str, ...]:
        return (*self._lines, f"and {self._more} more") if self._more else tuple(self._lines)


def log_files(directory: Path, left_out: _LeftOut | None = None) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below a directory, and links to such files, with their status.

    A job may write anything, so MAX_DEPTH and MAX_FILES limit the search; ``left_out`` gets a line about each limit.
    """
    root = directory.resolve()
    left_out = left_out or _LeftOut()
    folders = [(directory, 0)]
    count = 0
    while folders:
        folder, depth = folders.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError:
            continue
        below = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
        if depth == MAX_DEPTH and below:
            left_out.add(below[0].relative_to(directory), f"more than {MAX_DEPTH} levels of directories", cut=True)
        elif below:
            folders += [(path, depth + 1) for path in reversed(below)]
        for entry in entries:
            status = _status_of_file(entry, root)
            if status is None:
                continue
            count += 1
            if count > MAX_FILES:
                left_out.add(Path(entry).relative_to(directory), f"more than {MAX_FILES} files", cut=True)
                return
            yield Path(entry), status


def _status_of_file(entry: os.DirEntry[str], root: Path) -> os.stat_result | None:
    """The status of a regular file, or of a link to one below ``root``; None for anything else."""
    try:
        if entry.is_symlink() and not Path(entry).resolve().is_relative_to(root):
            return None
        status = entry.stat()
    except (OSError, RuntimeError):  # RuntimeError: a link to itself (Python before 3.13)
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def bundle_logs(
    logs_dir: Path,
    tarball: Path,
    *,
    seconds: float | None = None,
    extra: Sequence[tuple[str, Path]] = (),
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Bundle | None:
    """Pack ``logs_dir`` into ``tarball`` (gzip) atomically; None if there is nothing to pack.

    Small files come first. At most the last MAX_BYTES_OF_FILE bytes of a file are packed, and at most MAX_BYTES_OF_ALL
    bytes of all files; fewer when packing would take longer than ``seconds``. The member `launcher-left-out.txt` lists
    what is left out. ``extra`` (name in the tarball, file) comes before the logs. Secrets of ``environ`` are
    overwritten by asterisks. A file that cannot be read is left out. Raises OSError when the tarball cannot be written.
    """
    limits, left_out = _Limits(seconds, clock), _LeftOut()
    files = [(name, path) for name, path in extra if path.is_file()]
    files += _smallest_first(logs_dir, limits, left_out)
    if not files:
        return None
    count = 0
    with publishing(tarball) as temporary, tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
        for name, file, status, size in _opened(files, limits, left_out):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = size, int(status.st_mtime), status.st_mode & 0o777
            tar.addfile(member, _FixedSizeReader(RedactingReader(file, environ or {}), size))
            count += 1
        if left_out.lines:
            note = "".join(f"{line}\n" for line in left_out.lines).encode()
            member = tarfile.TarInfo(LEFT_OUT)
            member.size = len(note)
            tar.addfile(member, BytesIO(note))
    return Bundle(tarball, count, limits.used, left_out.lines, left_out.cut)


class _Limits:
    """Computes how many bytes may still be packed, given the two size limits and the time limit ``seconds``, if any."""

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self.used = 0
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    def half_time_over(self) -> bool:
        return self._seconds is not None and self._clock() - self._began > self._seconds / 2

    def seek_to_kept_end(self, file: IO[bytes], name: str, size: int, left_out: _LeftOut) -> int:
        """Seek to where the kept end of a file of ``size`` begins; returns the length of that end.

        It begins with a whole line: redaction would not recognise half a secret in half a line.
        """
        allowed = max(0, min(size, MAX_BYTES_OF_FILE, MAX_BYTES_OF_ALL - self.used))
        in_time = self._bytes_in_time()
        kept = min(allowed, in_time)
        if kept < size:
            file.seek(max(0, size - kept - 1))
            kept -= max(0, len(file.readline(min(kept, _LONGEST_LINE) + 1)) - 1)
            reason = "for want of time" if in_time < allowed else "for its size"
            left_out.add(name, f"{size - kept} of {size} bytes, {reason}", cut=True)
        file.seek(size - kept)
        self.used += kept
        return kept

    def _bytes_in_time(self) -> int:
        """The bytes that can be packed in the remaining time, at the speed so far."""
        if self._seconds is None:
            return sys.maxsize
        spent = self._clock() - self._began
        # The first few files take longer: they are opened and the first block is compressed.
        rate = self.used / spent if self.used > _CHUNK and spent > 0.05 else _ASSUMED_RATE
        return max(0, int((self._seconds - spent) * rate))


def _smallest_first(logs_dir: Path, limits: _Limits, left_out: _LeftOut) -> list[tuple[str, Path]]:
    """The files and their names below ``logs_dir``. The search ends when half of the time is over."""
    files: list[tuple[int, Path]] = []
    for path, status in log_files(logs_dir, left_out):
        files.append((status.st_size, path))
        if limits.half_time_over():
            left_out.add(
                "and what lies behind that", "for want of time the directory was not read to its end", cut=True
            )
            break
    files.sort(key=lambda entry: entry[0])
    return [(str(path.relative_to(logs_dir)), path) for _, path in files]


def _opened(
    files: Sequence[tuple[str, Path]], limits: _Limits, left_out: _LeftOut
) -> Iterator[tuple[str, IO[bytes], os.stat_result, int]]:
    """The name, open file, status and kept size of each file to pack. The file is positioned at its kept end."""
    for name, path in files:
        try:
            file = open_regular(path)
        except OSError as error:
            left_out.add(name, str(error.strerror))
            continue
        with file:
            status = os.fstat(file.fileno())
            size = limits.seek_to_kept_end(file, name, status.st_size, left_out)
            if size or not status.st_size:
                yield name, file, status, size


class _FixedSizeReader:
    """Reads exactly ``size`` bytes of a file, and zeros if it has shrunk: the tar header is written already."""

    def __init__(self, file: RedactingReader, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        length = self._left if size < 0 else min(size, self._left)
        try:
            data = self._file.read(length)
        except OSError:
            data = b""
        self._left -= length
        return data.ljust(length, b"\0")
