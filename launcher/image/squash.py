"""A squash file: whether it is whole, and the record beside it (``<squash>.json``), the `Sidecar`.

Reading the superblock takes 0.1 ms, reading the lists 0.1 s. A file can be used without a record, and those of the bash
launchers have none. A record that does not fit the file beside it says nothing, because the file was replaced since.

A squash file begins with a superblock of 96 bytes (kernel, fs/squashfs/squashfs_fs.h). mksquashfs writes it last, so a
killed import leaves zeros there; and it says how long the file must be, so a cut copy shows. What neither check sees is
damage in the data blocks of a file of the right length (seen with squashfs-tools 4.5.1).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from launcher.core.errors import ImageError
from launcher.core.process import NOT_EXECUTABLE, NOT_FOUND, CommandRunner, run
from launcher.core.publish import publish_new, stamp, temporary_name, write_text
from launcher.core.reading import read_json
from launcher.core.rights import next_step, user_name, words_of

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_ABSENT = 0xFFFF_FFFF_FFFF_FFFF
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_PADDING = 4096
"""mksquashfs fills its files up to a multiple of this (unless `-nopad`), so another length is that of a cut copy."""

WHOLE = "whole"
"""What `check_lists` says of a file whose lists were all read; other answers say why they were not."""

_USED = 600.0
"""Seconds by which a recorded use may be too old, so that not every hit has to change the file system."""


class MissingImage(ImageError):
    """There is no file, so an import makes sense."""


class DamagedImage(ImageError):
    """There is a file that is not a whole squash file; an import may replace it."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock and the file's status say. Sizes in bytes, times from the epoch.

    ``created`` is the time that mksquashfs recorded (seconds), ``mtime_ns`` the file's own (nanoseconds);
    ``bytes_used`` is the length without the padding, ``size`` the file's. ``changed_ns`` is the file's ctime, which no
    program can set: it tells a file that was put in another's place with the same times.
    """

    compressor: str
    created: int
    block_size: int
    inodes: int
    bytes_used: int
    size: int
    mtime_ns: int
    changed_ns: int = 0


def inspect(path: Path) -> Superblock:
    """Check that ``path`` is a squash file of full length, at the cost of a stat and one read of 96 bytes.

    Raises MissingImage; DamagedImage for what is no squashfs 4.0 or is shorter than it says; ImageError for what must
    not be replaced: a directory, a device, a file that may not be read or a file system that does not answer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # asked before open, which would wait for the writer of a FIFO
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{kind}, where a squash file belongs", where=str(path), hint="move it away by hand")
        handle = _open_unnoticed(path)
        try:
            head = os.read(handle, _SUPERBLOCK.size)
        finally:
            os.close(handle)
    except OSError as error:
        # ESTALE on NFS: another client removed the file between our look-up and our read.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise MissingImage(f"no squash file: {error.strerror}", where=str(path)) from None
        message = f"the squash file cannot be read: {words_of(error, path)}"
        raise ImageError(message, where=str(path), hint=next_step(error, path)) from None
    return _parse(head, status, path)


def _open_unnoticed(path: Path) -> int:
    """Open for reading without a new time of access, by which `image gc` knows that somebody else used the file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:  # open(2): of others' files not
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _parse(head: bytes, status: os.stat_result, path: Path) -> Superblock:
    """The superblock in the first bytes of a file. Raises DamagedImage with the first reason not to believe it."""
    size = status.st_size
    magic, inodes, created, block_size, _, compressor, block_log, _, ids, major, minor, _, used, *tables = (
        _SUPERBLOCK.unpack(head.ljust(_SUPERBLOCK.size, b"\0"))
    )
    id_table, xattr_table, inode_table, directory_table, fragment_table, export_table = tables
    present = [id_table, inode_table, directory_table]
    present += [table for table in (xattr_table, fragment_table, export_table) if table != _ABSENT]
    reasons = (
        (not head, "empty"),
        (not any(head), "begins with zeros: its import was killed, or is still writing"),
        (len(head) < _SUPERBLOCK.size, f"only {len(head)} bytes long"),
        (magic != _MAGIC, f"it begins with {head[:4]!r}"),
        ((major, minor) != (4, 0), f"squashfs {major}.{minor}, and containers are squashfs 4.0"),
        (compressor not in _COMPRESSORS, f"unknown compressor {compressor}"),
        (not 12 <= block_log <= 20 or block_size != 1 << block_log, f"impossible block size {block_size}"),
        (not (inodes and ids), "no inodes"),
        (used > size, f"{size} bytes long, and {used} are needed: cut short"),
        (size != used and size % _PADDING, f"{size} bytes long: cut short in the padding after {used} bytes"),
        (not all(_SUPERBLOCK.size <= table < used for table in present), "a table lies outside of the file"),
        (not inode_table < directory_table < id_table, "its tables are out of order"),
    )
    if wrong := next((reason for is_so, reason in reasons if is_so), None):
        raise DamagedImage(f"not a whole squash file: {wrong}", where=str(path))
    return Superblock(
        _COMPRESSORS[compressor], created, block_size, inodes, used, size, status.st_mtime_ns, status.st_ctime_ns
    )


def check_lists(path: Path, runner: CommandRunner = run) -> str:
    """Let `unsquashfs -l` read every inode and directory (0.1 s for 64,000 of them): `WHOLE`, or why nobody can tell.

    Raises DamagedImage.
    """
    # Only its own verdict counts as damage: on clusters with a default memory limit unsquashfs was killed by the cgroup
    # (exit 137), and builds without lzo or zstd refuse whole files.
    done = runner(["unsquashfs", "-l", str(path)], timeout=300.0)
    if done.ok:
        return WHOLE
    if done.returncode in (NOT_EXECUTABLE, NOT_FOUND):
        return "not checked: unsquashfs is not installed"
    if done.returncode is None or done.returncode < 0 or done.returncode > 128:
        return "not checked: unsquashfs did not end by itself"
    if "unsupported by this version" in done.stderr + done.stdout:
        return "not checked: unsquashfs does not know the compressor"
    raise DamagedImage("not a whole squash file: its lists cannot be read", where=str(path))


@dataclass(frozen=True)
class Sidecar:
    """What is recorded of a squash file.

    ``reference`` as it was given, ``uri`` its canonical form. ``digest`` is that of the manifest that was imported,
    when it could be had, ``index`` that of the index that named it; ``architecture`` is Debian's name. ``size`` in
    bytes, ``mtime_ns`` and ``superblock_time`` (seconds) from the epoch; ``seconds`` is what the import took.
    ``how`` is ``imported``, or ``adopted`` for a file that somebody else made. ``hash`` is of all content (see
    `file_hash`), ``options`` are those of mksquashfs. ``changed_ns`` is the file's ctime when the hash was known to be
    right. The record's own mtime is when the image was last used (see `record_use`).
    """

    reference: str
    uri: str
    how: str
    size: int
    mtime_ns: int
    superblock_time: int
    listing: str | None = None
    enroot_version: str | None = None
    digest: str | None = None
    index: str | None = None
    architecture: str | None = None
    hash: str | None = None
    options: str | None = None
    seconds: float | None = None
    changed_ns: int | None = None
    user: str = field(default_factory=user_name)
    host: str = field(default_factory=socket.gethostname)
    job: str | None = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    written: str = field(default_factory=stamp)

    def fits(self, block: Superblock) -> bool:
        """Whether this record is of that file. Times are compared in seconds: file servers round them differently."""
        same_second = self.mtime_ns // 10**9 == block.mtime_ns // 10**9
        return same_second and (self.size, self.superblock_time) == (block.size, block.created)

    def is_untouched(self, block: Superblock) -> bool:
        """Whether nothing was done to the file since its hash was known to be right, chmod and rename among it."""
        if self.changed_ns is None:
            return False
        # A file server may round a time that this host's cache still has in full.
        units = (1, 100, 1000, 10**6, 10**9)
        pairs = ((self.changed_ns, block.changed_ns), (block.changed_ns, self.changed_ns))
        return any(rounded == full // unit * unit for rounded, full in pairs for unit in units)

    @classmethod
    def read(cls, squash: Path) -> Sidecar | None:
        """The record beside a squash file; None when there is none that can be read."""
        return read_json(sidecar_path(squash), cls)

    def write(self, squash: Path, *, replace: bool = True) -> OSError | None:
        """Write the record; without ``replace`` only where there is none. Returns the error."""
        final, text = sidecar_path(squash), json.dumps(asdict(self), indent=2) + "\n"
        try:
            if replace:
                write_text(final, text)
                return None
            with temporary_beside(final) as temporary:
                temporary.write_text(text)
                publish_new(temporary, final)
        except OSError as error:
            return error
        return None


@dataclass(frozen=True)
class ImageRecord:
    """What was done for an image at ``squash``, and what is known of the file (``sidecar``).

    ``how``: ``hit`` (our record fits the file), ``adopted`` (whole, and made by somebody else), ``imported``.
    ``seconds`` are for all of it, waiting included. ``facts`` are one-line statements of what was not as it should be.
    """

    squash: Path
    how: Literal["hit", "adopted", "imported"]
    sidecar: Sidecar
    seconds: float = 0.0
    facts: tuple[str, ...] = ()


@contextlib.contextmanager
def temporary_beside(final: Path) -> Iterator[Path]:
    """A name for a file to be published as ``final``; what is still there under it afterwards is removed."""
    temporary = temporary_name(final)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sidecar_path(squash: Path) -> Path:
    """The path of a squash file's record."""
    return squash.with_name(f"{squash.name}.json")


def record_use(squash: Path) -> None:
    """Note that the image is used now, as the mtime of its record. Records of other users cannot be touched."""
    path = sidecar_path(squash)
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _USED:
            os.utime(path)


def file_hash(path: Path) -> str:
    """``xxh3-128:…`` of the content, at several GiB/s: it shows decay, not malice. Raises OSError."""
    import xxhash

    value = xxhash.xxh3_128()
    buffer = memoryview(bytearray(4 << 20))
    with open(_open_unnoticed(path), "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            value.update(buffer[:size])
    return f"xxh3-128:{value.hexdigest()}"


def check_recorded_hash(squash: Path, known: Sidecar, block: Superblock) -> tuple[Sidecar, str]:
    """The record of a file that fits it, after a look at all content where the file was touched since; and a fact.

    The fact is empty when nothing is to be said. Raises ImageError for another content than the recorded one, OSError.
    """
    if known.hash is None:
        unsaid = f"{squash.name} is {known.digest} by a record without a hash: nobody can verify that"
        return known, unsaid if known.digest is not None else ""
    if known.is_untouched(block):
        return known, ""
    if (found := file_hash(squash)) != known.hash:
        raise ImageError(
            f"the file was swapped or damaged since it was recorded as {known.digest or known.reference}: "
            f"its content is {found}, and {known.hash} was recorded",
            where=str(squash),
            hint="move it away: it is imported again then, and running jobs keep what they have",
        )
    known, error = replace(known, changed_ns=block.changed_ns), None
    if inspect(squash) == block:  # it did not change while it was read
        error = known.write(squash)
    return known, f"{squash.name} was read whole; that cannot be recorded: {error.strerror}" if error else ""
