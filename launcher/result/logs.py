"""A job's logs, kept in the workspace twice: as one tarball within seconds, and as a plain copy in ``LOGS/``.

Neither holds the secrets of our environment, nor what looks like anybody's token (`launcher.core.redact`): a workflow
uploads them. Both can be made while the job still writes: a file that grows is cut at the size it had, one that shrinks
is filled with zeros, one that vanishes is left out. Sockets, pipes and links that lead out of the directory are never
followed. How much is kept is bounded; what is left out is listed, and stays where the job wrote it.
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
"""Left in the workspace by the power lane; they travel with the logs, for the audit of power measurements."""

LEFT_OUT = "launcher-left-out.txt"
"""The member that lists what is not, or only in part, in a tarball."""

MAX_BYTES_OF_FILE = 64 << 20
"""Bytes of a longer file that are kept, its end. Taking secrets out of a gigabyte takes twenty seconds of a core."""

MAX_BYTES_OF_ALL = 256 << 20
"""Bytes that are kept of all files together, the small ones first."""

MAX_DEPTH = 32
"""Levels of directories below that of the logs that are looked into."""

MAX_FILES = 20_000
"""Files that are looked at: 72 nodes leave some hundreds."""

MAX_REPORTED_LINES = 20
"""Lines on what was left out that are told; the tarball lists more of them."""

_MADE_BY_LAUNCHER = ".launcher-job"
"""A file in ``LOGS/`` that names the job: only a directory that has it may be replaced."""

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 16
_FIRST_GUESS = 20e6
"""Bytes a second that are assumed until the first measurement."""


@dataclass(frozen=True)
class Bundle:
    """A tarball of logs: how many files and bytes of theirs it holds, and what is left out of it, and why.

    ``cut`` says that something was left out for its size: it is only where the job wrote it.
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
    """Put the tarball of a job's logs and a copy of them (``LOGS/``) into the workspace; return what went wrong too.

    ``evidence`` (name in the tarball, file) goes into the tarball alone. The power lane's stamps go into both, unless
    they are older than ``started`` (Unix seconds), when this run began. Secrets of ``environ`` are in neither. Logs are
    evidence, not results: nothing that goes wrong here is raised.
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
    if final.exists() and not (final / _MADE_BY_LAUNCHER).is_file():
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
    """What a tarball of ours holds, but for some: its secrets are out, and what is too much is cut already."""
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
    """Put the copy at ``final``, in place of nothing or of a launcher's earlier copy."""
    (copy / _MADE_BY_LAUNCHER).write_text(f"{job_id}\n", encoding="utf-8")
    old = temporary_name(final)
    try:
        if final.exists():
            final.rename(old)
        copy.rename(final)
    finally:
        remove_tree(old)


class _LeftOut:
    """What is left out, a line each, as many as a person may read; and whether anything was for its size."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0
        self.cut = False

    def add(self, name: object, why: str, *, cut: bool = False) -> None:
        self.cut = self.cut or cut
        if len(self._lines) < 1000:
            self._lines.append(f"{one_line(name)}: {why}")
        else:
            self._more += 1

    @property
    def lines(self) -> tuple[str, ...]:
        return (*self._lines, f"and {self._more} more") if self._more else tuple(self._lines)


def log_files(directory: Path, left_out: _LeftOut | None = None) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below a directory, with their status; and links to files that lie below it too.

    What is too deep, or too much, is not looked at: a job may leave what it likes. ``left_out`` learns of it.
    """
    root = directory.resolve()
    left_out = left_out or _LeftOut()
    folders = [(directory, 0)]
    found = 0
    while folders:
        folder, depth = folders.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
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
            found += 1
            if found > MAX_FILES:
                left_out.add(Path(entry).relative_to(directory), f"more than {MAX_FILES} files", cut=True)
                return
            yield Path(entry), status


def _status_of_file(entry: os.DirEntry[str], root: Path) -> os.stat_result | None:
    """The status of a regular file, or of one below ``root`` that is linked to; None for anything else."""
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
    """Pack ``logs_dir`` into ``tarball`` (gzip), published whole; None when there is nothing to pack.

    Small files come first. At most the last MAX_BYTES_OF_FILE bytes of a file are packed, and at most MAX_BYTES_OF_ALL
    bytes of all files; fewer when packing would take longer than ``seconds``. The member `launcher-left-out.txt` lists
    what is left out. ``extra`` (name in the tarball, file) comes before the logs. Secrets of ``environ`` are
    overwritten by asterisks. A file that cannot be read is left out. Raises OSError when the tarball cannot be written.
    """
    pace, left_out = _Pace(seconds, clock), _LeftOut()
    logs = _smallest_first(logs_dir, pace, left_out)
    given = [(name, path) for name, path in extra if path.is_file()]
    if not given and not logs:
        return None
    files = 0
    with publishing(tarball) as temporary, tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
        for name, file, status, take in _opened([*given, *logs], pace, left_out):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = take, int(status.st_mtime), status.st_mode & 0o777
            tar.addfile(member, _Exactly(RedactingReader(file, environ or {}), take))
            files += 1
        if left_out.lines:
            note = "".join(f"{line}\n" for line in left_out.lines).encode()
            member = tarfile.TarInfo(LEFT_OUT)
            member.size = len(note)
            tar.addfile(member, BytesIO(note))
    return Bundle(tarball, files, pace.taken, left_out.lines, left_out.cut)


class _Pace:
    """Computes how many bytes may still be packed, given the two size limits and the time limit ``seconds``, if any."""

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self.taken = 0
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    def is_half_over(self) -> bool:
        return self._seconds is not None and self._clock() - self._began > self._seconds / 2

    def bytes_to_take(self, file: IO[bytes], name: str, size: int, left_out: _LeftOut) -> int:
        """How much of the end of a file of ``size`` is to be taken; the file is left at the beginning of that.

        A cut falls on the beginning of a line: half a line could be half a secret, which is not recognised.
        """
        most = max(0, min(size, MAX_BYTES_OF_FILE, MAX_BYTES_OF_ALL - self.taken))
        in_time = self._bytes_in_time()
        take = min(most, in_time)
        if take < size:
            file.seek(max(0, size - take - 1))
            take -= max(0, len(file.readline(min(take, _LONGEST_LINE) + 1)) - 1)
            why = "for want of time" if in_time < most else "for its size"
            left_out.add(name, f"{size - take} of {size} bytes, {why}", cut=True)
        file.seek(size - take)
        self.taken += take
        return take

    def _bytes_in_time(self) -> int:
        """What there is time for, by the speed so far."""
        if self._seconds is None:
            return sys.maxsize
        spent = self._clock() - self._began
        # The speed of the first few files says little: what they cost is opening and compressing the first block.
        rate = self.taken / spent if self.taken > _CHUNK and spent > 0.05 else _FIRST_GUESS
        return max(0, int((self._seconds - spent) * rate))


def _smallest_first(logs_dir: Path, pace: _Pace, left_out: _LeftOut) -> list[tuple[str, Path]]:
    """The files to take by their names below ``logs_dir``; a line says so when reading it took too long."""
    found: list[tuple[int, Path]] = []
    for path, status in log_files(logs_dir, left_out):
        found.append((status.st_size, path))
        if pace.is_half_over():
            left_out.add(
                "and what lies behind that", "for want of time the directory was not read to its end", cut=True
            )
            break
    found.sort(key=lambda entry: entry[0])
    return [(str(path.relative_to(logs_dir)), path) for _, path in found]


def _opened(
    files: Sequence[tuple[str, Path]], pace: _Pace, left_out: _LeftOut
) -> Iterator[tuple[str, IO[bytes], os.stat_result, int]]:
    """The files that can be read and of which something is taken: name, file at where that begins, status, bytes."""
    for name, path in files:
        try:
            file = open_regular(path)
        except OSError as error:
            left_out.add(name, str(error.strerror))
            continue
        with file:
            status = os.fstat(file.fileno())
            take = pace.bytes_to_take(file, name, status.st_size, left_out)
            if take or not status.st_size:
                yield name, file, status, take


class _Exactly:
    """Reads exactly ``size`` bytes of a file, zeros where it has become shorter: the tar header is written already."""

    def __init__(self, file: RedactingReader, size: int) -> None:
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
