"""Copying a checkpoint's files: parallel across and within files, hashed in the same pass, resumable by parts.

A part is read once, hashed and written. Then it is read back from the destination and hashed again. That read comes
from the page cache: it finds short writes and broken copies, not a failing disk (`launcher model verify --deep` reads
again later). Finished parts are noted in a journal, so that the next copy resumes after a kill. Each worker needs two
buffers of memory. On file systems that can share blocks, parts are cloned and not written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Protocol

import xxhash

from launcher.core.errors import Cancelled, ModelError
from launcher.core.rights import inherit_rights, make_directories
from launcher.core.stop import Stop
from launcher.model.manifest import (
    BUFFER,
    PART_SIZE,
    WORK_DIRECTORY,
    FileEntry,
    drop_from_cache,
    hash_of_parts,
    hash_part,
    parts_of,
    read_range,
)
from launcher.model.source import Source, SourceFile

WORKERS = 8
WINDOW = 8 << 20
"""Bytes after which the kernel is asked to write, so that a file's fsync has little left to do."""

FICLONERANGE = 0x4020940D
"""From linux/fs.h, for the architectures of machines with GPUs."""

SetLayout = Callable[[Path, int], None]
"""Sets the layout of the directory (size 0), and then of each file of so many bytes, which it may have to create."""

_NO_CLONE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


class Progress(Protocol):
    """Shows how far a copy is. Called from many threads."""

    def begin(self, files: int, size: int) -> None:
        """The copy begins: so many files, of ``size`` bytes together."""

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        """``count`` more bytes of the file ``path`` (of ``size``) are there; ``resumed``: an earlier copy made them."""


class NoProgress:
    """A Progress that shows nothing."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None: ...


class Copier:
    """Copies all files of a source into a directory. For one use.

    The directory and the `journal_directory` below it must exist. ``set_layout`` is for file systems where the layout
    of a file is fixed at its creation, as by `lfs setstripe`. Afterwards ``copied`` and ``resumed`` are the numbers of
    bytes that were copied, and that were there before.
    """

    def __init__(
        self, source: Source, into: Path, *, workers: int, progress: Progress, stop: Stop, set_layout: SetLayout | None
    ) -> None:
        self.source, self.into, self.set_layout = source, into, set_layout
        self.part_size = source.part_size or PART_SIZE
        self._workers, self._progress, self._stop = workers, progress, stop
        self.copied = self.resumed = 0
        self.can_clone = True
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def copy(self) -> tuple[FileEntry, ...]:
        """Copy what is missing, and sync every file to storage. Returns the files as a manifest lists them.

        Raises OSError, ModelError, Cancelled.
        """
        files = sorted(self.source.files, key=lambda file: -file.size)
        self._progress.begin(len(files), sum(file.size for file in files))
        if self.set_layout:
            self.set_layout(self.into, 0)
        with ThreadPoolExecutor(self._workers, "part") as parts, ThreadPoolExecutor(self._workers, "file") as pool:
            try:
                copies = as_completed([pool.submit(self._copy_file, file, parts) for file in files])
                return tuple(sorted((copy.result() for copy in copies), key=lambda entry: entry.path))
            finally:
                self._ended.set()

    def _copy_file(self, file: SourceFile, pool: ThreadPoolExecutor) -> FileEntry:
        self.check()
        with contextlib.ExitStack() as opened:
            return _FileCopy(self, file, opened).copy(pool)

    def check(self) -> None:
        """Raise Cancelled when a stop is requested, or another file has failed."""
        self._stop.check()
        if self._ended.is_set():
            raise Cancelled("stopped while the checkpoint was copied")

    def advance(self, file: SourceFile, count: int, *, resumed: bool = False) -> None:
        """Count bytes that are at the destination now, and show the progress."""
        with self._lock:
            if resumed:
                self.resumed += count
            else:
                self.copied += count
        self._progress.advance(file.path, file.size, count, resumed=resumed)


class _FileCopy:
    """The copy of one file. Its descriptors are closed with ``opened``."""

    def __init__(self, copier: Copier, file: SourceFile, opened: contextlib.ExitStack) -> None:
        self._copier, self._file = copier, file
        self._path = copier.into / file.path
        make_directories(self._path.parent)
        self._journal = _Journal(journal_directory(copier.into), file, copier.part_size)
        opened.callback(self._journal.close)
        if not self._path.exists():
            self._journal.restart()
            if copier.set_layout:
                copier.set_layout(self._path, file.size)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, self._descriptor)
        inherit_rights(self._path)
        os.ftruncate(self._descriptor, file.size)
        self._reader = copier.source.open(file)
        opened.callback(self._reader.close)

    def copy(self, pool: ThreadPoolExecutor) -> FileEntry:
        """Copy all parts in the threads of the pool, and sync the file."""
        ranges = parts_of(self._file.size, self._copier.part_size)
        parts = [pool.submit(self._copy_part, index, *part) for index, part in enumerate(ranges)]
        try:
            return self._finish([part.result() for part in parts])
        finally:
            for part in parts:
                part.cancel()
            wait(parts)

    def _copy_part(self, index: int, offset: int, length: int) -> bytes:
        self._copier.check()
        digest = self._journal.parts.get(index)
        if digest is not None and hash_part(self._descriptor, offset, length) == digest:
            self._copier.advance(self._file, length, resumed=True)
            return digest
        digest = self._clone(offset, length) or self._copy_through_buffer(offset, length)
        self._journal.note(index, digest)
        drop_from_cache(self._descriptor, offset, length)
        if self._reader.descriptor is not None:
            drop_from_cache(self._reader.descriptor, offset, length)
        return digest

    def _copy_through_buffer(self, offset: int, length: int) -> bytes:
        """Copy a part through a buffer; hash what was read, and what is read back from the destination.

        Each buffer is read back soon after it was written: it is still in the processor's caches, so this costs little.
        Only complete buffers are read back, so no half-written page is.
        """
        read, back = xxhash.xxh3_128(), xxhash.xxh3_128()
        buffer, second = (memoryview(bytearray(min(BUFFER, length))) for _ in range(2))
        at = seen = begun = offset
        for chunk in self._reader.chunks(offset, length, buffer):
            self._copier.check()
            read.update(chunk)
            _write(self._descriptor, chunk, at)
            at += len(chunk)
            if at - seen >= BUFFER:
                seen = self._read_back(back, seen, seen + BUFFER, second)
            if at - begun >= WINDOW:
                drop_from_cache(self._descriptor, begun, at - begun)
                self._copier.advance(self._file, at - begun)
                begun = at
        if at != offset + length:
            message = f"{self._file.path} ends after {at} of {self._file.size} bytes"
            raise ModelError(message, where=self._copier.source.name)
        self._read_back(back, seen, at, second)
        if at > begun or not length:
            self._copier.advance(self._file, at - begun)
        if back.digest() != read.digest():
            message = f"bytes {offset} to {at} read back as others than were written"
            raise ModelError(message, where=str(self._path))
        return read.digest()

    def _read_back(self, state: xxhash.xxh3_128, start: int, end: int, buffer: memoryview) -> int:
        for piece in read_range(self._descriptor, start, end - start, buffer):
            state.update(piece)
        return end

    def _clone(self, offset: int, length: int) -> bytes | None:
        """Share a part's blocks with the source (ioctl_ficlonerange(2): XFS, btrfs, NFS 4.2 on these) and hash them.

        None when that is not possible here. Source and destination share the blocks, so they are read only once.
        """
        if not self._copier.can_clone or self._reader.descriptor is None or not length:
            return None
        request = struct.pack("qQQQ", self._reader.descriptor, offset, length, offset)  # struct file_clone_range
        try:
            fcntl.ioctl(self._descriptor, FICLONERANGE, request)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._copier.can_clone = False
            return None
        digest = hash_part(self._descriptor, offset, length)
        self._copier.advance(self._file, length)
        return digest

    def _finish(self, digests: list[bytes]) -> FileEntry:
        file, content_hash = self._file, hash_of_parts(digests)
        try:
            self._reader.check_unchanged()
            self._check_stated_hashes(content_hash)
            os.fsync(self._descriptor)
        except BaseException:
            # After a failed fsync the kernel marks pages as clean that never reached storage (fsync(2)), and a file
            # with a wrong hash is worthless. In both cases no copy may resume from these parts.
            self._journal.restart()
            raise
        drop_from_cache(self._descriptor, 0, file.size)
        return FileEntry(file.path, file.size, content_hash, file.sha256)

    def _check_stated_hashes(self, content_hash: str) -> None:
        """Compare with the hashes that the source states. Raises ModelError."""
        file, source = self._file, self._copier.source
        where = f"{source.name}: {file.path}"
        if file.hash and source.part_size == self._copier.part_size and content_hash != file.hash:
            raise ModelError("the source's content is not what its manifest says", where=where)
        for stated, state in (
            (file.sha256 if not file.hash else None, hashlib.sha256()),
            (file.git_sha1, hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)),
        ):
            if stated is None:
                continue
            for piece in read_range(self._descriptor, 0, file.size, memoryview(bytearray(BUFFER))):
                state.update(piece)
            if state.hexdigest() != stated:
                raise ModelError(f"{state.name} is {state.hexdigest()}, and {stated} was stated", where=where)


class _Journal:
    """Which parts of a file are at the destination: one line each, with the digest (16 bytes). One journal a file.

    A line is no proof: it can survive a crash that its data did not survive, so resuming reads the part again and
    compares. A journal of another size, stamp or part size is begun anew. Raises OSError.
    """

    def __init__(self, directory: Path, file: SourceFile, part_size: int) -> None:
        path = directory / xxhash.xxh3_128(file.path.encode()).hexdigest()
        self._head = f"{file.size} {file.stamp} {part_size}\n".encode()
        content = path.read_bytes() if path.exists() else b""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if content.startswith(self._head):
            os.write(self._descriptor, b"\n")  # the last line may be cut off
            claims = re.findall(rb"^(\d{1,18}) ([0-9a-f]{32})$", content[len(self._head) :], re.MULTILINE)
            self.parts = {int(index): bytes.fromhex(digest.decode()) for index, digest in claims}
        else:
            self.restart()

    def note(self, index: int, digest: bytes) -> None:
        """Note a finished part in one write, so that lines of several threads do not mix (open(2), O_APPEND)."""
        os.write(self._descriptor, f"{index} {digest.hex()}\n".encode())

    def restart(self) -> None:
        """Forget all parts, and begin the file anew."""
        self.parts = {}
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, self._head)

    def close(self) -> None:
        os.close(self._descriptor)


def journal_directory(staging: Path) -> Path:
    """Where the journals of a staging directory lie."""
    return staging / WORK_DIRECTORY / "parts"


def _write(descriptor: int, chunk: memoryview, offset: int) -> None:
    while chunk:
        count = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[count:], offset + count
