"""A squash file: whether it is whole, and the record beside it (``<squash>.json``), the `Sidecar`.

Reading the superblock takes 0.1 ms, reading the lists of inodes and directories 0.1 s. A file can be used without a
record; the files of the bash launchers have none. A record that does not fit the file beside it means nothing, because
the file was replaced since.

A squash file begins with a superblock of 96 bytes (kernel, fs/squashfs/squashfs_fs.h). mksquashfs writes it last, so a
killed import leaves zeros there. It states the length of the file, so a cut copy is noticed. Neither check sees damage
in the data blocks of a file of the right length (seen with squashfs-tools 4.5.1).
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
from launcher.core.publish import publish_new, temporary_name, utc_timestamp, write_text
from launcher.core.reading import read_json
from launcher.core.rights import describe_os_error, os_error_hint, user_name

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_ABSENT = 0xFFFF_FFFF_FFFF_FFFF
_COMPRESSORS = range(1, 7)  # gzip, lzma, lzo, xz, lz4, zstd
_PADDING = 4096
"""mksquashfs pads files to a multiple of this (unless `-nopad`), so a file of another length was cut."""

WHOLE = "whole"
"""What `check_lists` returns when all lists were read; any other answer says why they were not."""

_USE_RESOLUTION = 600.0
"""Seconds within which a use is not recorded again, so that not every hit changes the file system."""


class MissingImage(ImageError):
    """There is no file, so an import makes sense."""


class DamagedImage(ImageError):
    """There is a file that is not a whole squash file; an import may replace it."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock and stat(2) say. Sizes in bytes, times from the epoch.

    ``created`` is the time that mksquashfs recorded (seconds), ``mtime_ns`` the file's own (nanoseconds).
    ``changed_ns`` is the file's ctime, which no program can set: it shows when another file with the same times took
    its place.
    """

    created: int
    size: int
    mtime_ns: int
    changed_ns: int = 0


def inspect(path: Path) -> Superblock:
    """Check that ``path`` is a squash file of full length, by one stat and one read of 96 bytes.

    Raises MissingImage; DamagedImage when it is no squashfs 4.0, or shorter than it states; ImageError for what must
    not be replaced: a directory, a device, a file that cannot be read, or a file system that does not answer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # asked before open, which would wait for the writer of a FIFO
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{kind}, where a squash file belongs", where=str(path), hint="move it away by hand")
        handle = _open_without_atime(path)
        try:
            head = os.read(handle, _SUPERBLOCK.size)
        finally:
            os.close(handle)
    except OSError as error:
        # ESTALE (NFS): another client removed the file between our look-up and our read.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise MissingImage(f"no squash file: {error.strerror}", where=str(path)) from None
        message = f"the squash file cannot be read: {describe_os_error(error, path)}"
        raise ImageError(message, where=str(path), hint=os_error_hint(error, path)) from None
    return _parse(head, status, path)


def _open_without_atime(path: Path) -> int:
    """Open for reading without updating the access time, which tells `image gc` when somebody else used the file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is refused for files of other users (open(2))
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
    if problem := next((reason for is_so, reason in reasons if is_so), None):
        raise DamagedImage(f"not a whole squash file: {problem}", where=str(path))
    return Superblock(created, size, status.st_mtime_ns, status.st_ctime_ns)


def check_lists(path: Path, runner: CommandRunner = run) -> str:
    """Let `unsquashfs -l` read every inode and directory (0.1 s for 64,000): `WHOLE`, or why they were not checked.

    Raises DamagedImage.
    """
    # Only a verdict of unsquashfs itself counts as damage: on clusters with a default memory limit the cgroup killed it
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
    """The record of a squash file.

    ``reference`` is written as it was given, ``uri`` is its canonical form. ``digest`` is the digest of the imported
    manifest, if it is known, ``index`` the digest of the index that names it; ``architecture`` is Debian's name.
    ``size`` is in bytes, ``mtime_ns`` and ``superblock_time`` (seconds) from the epoch; ``seconds`` is the duration of
    the import. ``how`` is ``imported``, or ``adopted`` for a file that somebody else made. ``hash`` is the hash of all
    content (see `file_hash`), ``options`` are those of mksquashfs. ``changed_ns`` is the file's ctime when the hash was
    known to be right. The record's own mtime is the time of the last use (see `record_use`).
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
    written: str = field(default_factory=utc_timestamp)

    def fits(self, block: Superblock) -> bool:
        """Whether this record describes that file. File servers round times differently, so seconds are compared."""
        same_second = self.mtime_ns // 10**9 == block.mtime_ns // 10**9
        return same_second and (self.size, self.superblock_time) == (block.size, block.created)

    def is_untouched(self, block: Superblock) -> bool:
        """Whether nothing touched the file since its hash was known to be right, not even chmod or rename."""
        if self.changed_ns is None:
            return False
        # A file server may round a time that this host's cache still has at full precision.
        units = (1, 100, 1000, 10**6, 10**9)
        pairs = ((self.changed_ns, block.changed_ns), (block.changed_ns, self.changed_ns))
        return any(rounded == full // unit * unit for rounded, full in pairs for unit in units)

    @classmethod
    def read(cls, squash: Path) -> Sidecar | None:
        """The record beside a squash file; None when there is none that can be read."""
        return read_json(sidecar_path(squash), cls)

    def write(self, squash: Path, *, replace: bool = True) -> OSError | None:
        """Write the record; without ``replace`` only if there is none. Returns the error, if any."""
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
class PlacedImage:
    """How an image came to ``squash``, and the record of the file (``sidecar``).

    ``how``: ``hit`` (our record fits the file), ``adopted`` (whole, and made by somebody else), ``imported``.
    ``seconds`` is the whole duration, with waiting. ``notes`` are one-line statements about what was not as expected.
    """

    squash: Path
    how: Literal["hit", "adopted", "imported"]
    sidecar: Sidecar
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def temporary_beside(final: Path) -> Iterator[Path]:
    """A temporary name for a file to be published as ``final``. A file that still has it after the block is removed."""
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
    """Set the mtime of the image's record: it is used now. Records of other users cannot be changed and stay."""
    path = sidecar_path(squash)
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _USE_RESOLUTION:
            os.utime(path)


def file_hash(path: Path) -> str:
    """``xxh3-128:…`` of the content, at several GiB/s. It detects damage, not manipulation. Raises OSError."""
    import xxhash

    value = xxhash.xxh3_128()
    buffer = memoryview(bytearray(4 << 20))
    with open(_open_without_atime(path), "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            value.update(buffer[:size])
    return f"xxh3-128:{value.hexdigest()}"


def check_recorded_hash(squash: Path, sidecar: Sidecar, block: Superblock) -> tuple[Sidecar, str]:
    """Read all content of a file that was touched since its hash was recorded, and compare.

    ``sidecar`` fits the file. Returns it, updated after a successful comparison, and a fact, which may be empty. Raises
    ImageError when the content is not what was recorded, OSError.
    """
    if sidecar.hash is None:
        unverified = f"{squash.name} is {sidecar.digest} by a record without a hash: nobody can verify that"
        return sidecar, unverified if sidecar.digest is not None else ""
    if sidecar.is_untouched(block):
        return sidecar, ""
    if (actual := file_hash(squash)) != sidecar.hash:
        raise ImageError(
            f"the file was swapped or damaged since it was recorded as {sidecar.digest or sidecar.reference}: "
            f"its content is {actual}, and {sidecar.hash} was recorded",
            where=str(squash),
            hint="move it away: it is imported again then, and running jobs keep what they have",
        )
    sidecar, error = replace(sidecar, changed_ns=block.changed_ns), None
    if inspect(squash) == block:  # the file did not change while it was read
        error = sidecar.write(squash)
    return sidecar, f"{squash.name} was read whole; that cannot be recorded: {error.strerror}" if error else ""
