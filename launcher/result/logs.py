"""A job's logs, kept in the workspace twice: as one tarball within seconds, and as a plain copy in ``LOGS/``.

Neither holds the secrets of our environment, nor what looks like anybody's token (`launcher.core.redact`): a workflow
uploads them. Both can be made while the job still writes: a file that grows is cut at the size it had, one that shrinks
is filled with zeros, one that vanishes is left out. Sockets, pipes and links that lead out of the directory are never
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
from typing import IO

from launcher.core.publish import publishing, temporary_name
from launcher.core.redact import Redacting

TARBALL = "multinode_server_logs.tar.gz"
LOGS = "LOGS"
EXPORTER_STAMP, PRODUCER_STAMP = STAMPS = ("exporter-image.sha256", "power-producer-sha.txt")
"""Left in the workspace by the power lane; they travel with the logs, for the audit of power measurements."""

LEFT_OUT = "launcher-left-out.txt"
"""The member that lists what is not, or only in part, in a tarball."""

_MADE_BY_LAUNCHER = ".launcher-job"
"""A file in ``LOGS/`` that names the job: only a directory that has it may be replaced."""

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 16
_FIRST_GUESS = 20e6
"""Bytes a second that are assumed until the first measurement."""


@dataclass(frozen=True)
class Bundle:
    """A tarball of logs: how many files and bytes of theirs it holds, and what is left out of it, and why."""

    path: Path
    files: int
    bytes: int
    left_out: tuple[str, ...] = ()


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
    try:
        bundle = bundle_logs(logs_dir, workspace / TARBALL, extra=[*fresh, *evidence], environ=environ)
        if bundle is None:
            return None, []
        doubts = [f"{TARBALL}: {line}" for line in bundle.left_out]
        if logs_dir.is_dir():
            doubts += _replace_copy(logs_dir, workspace / LOGS, job_id, fresh, environ or {})
    except OSError as error:
        return None, [f"the logs could not be kept: {error.strerror}"]
    return bundle, doubts


def log_files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below a directory, with their status; and links to files that lie below it too."""
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

    ``seconds`` limits the time: small files come first, of a file that would take too long only the end is packed, and
    the member `launcher-left-out.txt` lists what is left out. ``extra`` (name in the tarball, file) comes before the
    logs. Secrets of ``environ`` are overwritten by asterisks. A file that cannot be read is left out. Raises OSError
    when the tarball cannot be written.
    """
    pace = _Pace(seconds, clock)
    logs, left_out = _smallest_first(logs_dir, pace)
    members = [*((name, path) for name, path in extra if path.is_file()), *logs]
    if not members:
        return None
    files = 0
    with publishing(tarball) as temporary, tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
        for name, path in members:
            try:
                file = path.open("rb")
            except OSError as error:
                left_out.append(f"{name}: {error.strerror}")
                continue
            with file:
                status = os.fstat(file.fileno())
                take = pace.bytes_to_take(file, status.st_size)
                if take < status.st_size:
                    left_out.append(f"{name}: {status.st_size - take} of {status.st_size} bytes, for want of time")
                    if take == 0:
                        continue
                file.seek(status.st_size - take)
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.mode = take, int(status.st_mtime), status.st_mode & 0o777
                tar.addfile(member, _Exactly(Redacting(file, environ or {}), take))
            pace.packed += take
            files += 1
        if left_out:
            note = "".join(f"{line}\n" for line in left_out).encode(errors="surrogateescape")
            member = tarfile.TarInfo(LEFT_OUT)
            member.size = len(note)
            tar.addfile(member, BytesIO(note))
    return Bundle(tarball, files, pace.packed, tuple(left_out))


class _Pace:
    """How many bytes can still be packed within ``seconds``; without a limit, all."""

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self.packed = 0
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    def is_half_over(self) -> bool:
        return self._seconds is not None and self._clock() - self._began > self._seconds / 2

    def bytes_to_take(self, file: IO[bytes], size: int) -> int:
        """How much of the end of a file of ``size`` there is time for, by the speed so far.

        A cut falls on the beginning of a line: half a line could be half a secret, which is not recognised.
        """
        if self._seconds is None:
            return size
        spent = self._clock() - self._began
        # The speed of the first few files says little: what they cost is opening and compressing the first block.
        rate = self.packed / spent if self.packed > _CHUNK and spent > 0.05 else _FIRST_GUESS
        take = min(size, max(0, int((self._seconds - spent) * rate)))
        if take == size:
            return take
        file.seek(size - take - 1)
        return take - (len(file.readline(min(take, _LONGEST_LINE) + 1)) - 1)


def _smallest_first(logs_dir: Path, pace: _Pace) -> tuple[list[tuple[str, Path]], list[str]]:
    """The files to pack by their names below ``logs_dir``; and a line that says so when reading it took too long."""
    found: list[tuple[int, Path]] = []
    left_out: list[str] = []
    for path, status in log_files(logs_dir):
        found.append((status.st_size, path))
        if pace.is_half_over():
            left_out.append("and what lies behind that: for want of time the directory was not read to its end")
            break
    found.sort(key=lambda entry: entry[0])
    return [(str(path.relative_to(logs_dir)), path) for _, path in found], left_out


def copy_logs(logs_dir: Path, destination: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    """Copy the files of ``logs_dir`` below ``destination`` (made when missing); return what could not be read.

    Secrets of ``environ`` are overwritten by asterisks. Raises OSError when the copy cannot be written.
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


def _replace_copy(
    logs_dir: Path, final: Path, job_id: str, extra: Sequence[tuple[str, Path]], environ: Mapping[str, str]
) -> list[str]:
    """Put a copy of the logs at ``final``, in place of nothing or of a launcher's earlier copy; what was not copied."""
    if final.exists() and not (final / _MADE_BY_LAUNCHER).is_file():
        return [f"{final.name}/ exists and was not made by a launcher, so it was not replaced"]
    temporary, old = temporary_name(final), temporary_name(final)
    try:
        failed = copy_logs(logs_dir, temporary, environ)
        for name, path in extra:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        (temporary / _MADE_BY_LAUNCHER).write_text(f"{job_id}\n", encoding="utf-8")
        if final.exists():
            final.rename(old)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return [f"{final.name}/{line}" for line in failed]


class _Exactly:
    """Reads exactly ``size`` bytes of a file, zeros where it has become shorter: the tar header is written already."""

    def __init__(self, file: Redacting, size: int) -> None:
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
