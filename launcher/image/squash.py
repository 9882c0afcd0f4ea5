"""Is this file a whole squash file? Reading its superblock takes 0.1 ms, reading its lists 0.1 s.

A squash file begins with a superblock of 96 bytes (kernel, fs/squashfs/squashfs_fs.h). mksquashfs writes it last, so a
killed import leaves zeros there; and it says how long the file must be, so a cut copy shows. What neither check sees is
damage in the data blocks of a file of the right length (seen with squashfs-tools 4.5.1).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.core.process import CommandRunner, run

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_ABSENT = 0xFFFF_FFFF_FFFF_FFFF
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_PADDING = 4096
"""mksquashfs fills its files up to a multiple of this (unless `-nopad`), so another length is that of a cut copy."""


class MissingImage(ImageError):
    """There is no file, so an import makes sense."""


class DamagedImage(ImageError):
    """There is a file that is not a whole squash file; an import may replace it."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock and the file's status say. Sizes in bytes, times from the epoch.

    ``created`` is the time that mksquashfs recorded (seconds), ``mtime_ns`` the file's own (nanoseconds);
    ``bytes_used`` is the length without the padding, ``size`` the file's.
    """

    compressor: str
    created: int
    block_size: int
    inodes: int
    bytes_used: int
    size: int
    mtime_ns: int


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
        head = _head(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImage(f"no squash file: {error.strerror}", where=str(path)) from None
    except OSError as error:
        if error.errno == errno.ESTALE:  # NFS: another client removed the file between our look-up and our read
            raise MissingImage("the squash file was removed while it was read", where=str(path)) from None
        hint = (
            "chmod a+r, by its owner" if isinstance(error, PermissionError) else "try again; see the file system's log"
        )
        raise ImageError(f"the squash file cannot be read: {error.strerror}", where=str(path), hint=hint) from None
    return _parse(head, status, path)


def open_unnoticed(path: Path) -> int:
    """Open for reading without a new time of access, by which `image gc` knows that somebody else used the file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:  # open(2): of others' files not
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _head(path: Path) -> bytes:
    handle = open_unnoticed(path)
    try:
        return os.read(handle, _SUPERBLOCK.size)
    finally:
        os.close(handle)


def _parse(head: bytes, status: os.stat_result, path: Path) -> Superblock:
    size = status.st_size
    if not any(head):
        what = "empty" if size == 0 else "begins with zeros: its import was killed, or is still writing"
        raise DamagedImage(f"not a whole squash file: {what}", where=str(path))
    if len(head) < _SUPERBLOCK.size:
        raise DamagedImage(f"not a whole squash file: only {len(head)} bytes long", where=str(path))
    magic, inodes, created, block_size, _, compressor, block_log, _, ids, major, minor, _, used, *tables = (
        _SUPERBLOCK.unpack(head)
    )
    id_table, xattr_table, inode_table, directory_table, fragment_table, export_table = tables
    optional = [table for table in (xattr_table, fragment_table, export_table) if table != _ABSENT]
    needed = (inode_table, directory_table, id_table)
    wrong = None
    if magic != _MAGIC:
        wrong = f"it begins with {head[:4]!r}"
    elif (major, minor) != (4, 0):
        wrong = f"squashfs {major}.{minor}, and containers are squashfs 4.0"
    elif compressor not in _COMPRESSORS:
        wrong = f"unknown compressor {compressor}"
    elif not (12 <= block_log <= 20 and block_size == 1 << block_log):
        wrong = f"impossible block size {block_size}"
    elif not (inodes and ids):
        wrong = "no inodes"
    elif used > size:
        wrong = f"{size} bytes long, and {used} are needed: cut short"
    elif size != used and size % _PADDING:
        wrong = f"{size} bytes long: cut short in the padding after {used} bytes"
    elif not all(_SUPERBLOCK.size <= table < used for table in (*needed, *optional)):
        wrong = "a table lies outside of the file"
    elif not inode_table < directory_table < id_table:
        wrong = "its tables are out of order"
    if wrong:
        raise DamagedImage(f"not a whole squash file: {wrong}", where=str(path))
    return Superblock(_COMPRESSORS[compressor], created, block_size, inodes, used, size, status.st_mtime_ns)


class Listing(str, Enum):
    """What `unsquashfs -l` said of a file."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    NO_PROGRAM = "not checked: unsquashfs is not installed"
    UNSUPPORTED = "not checked: unsquashfs does not know the compressor"
    NO_ANSWER = "not checked: unsquashfs did not end by itself"


def check_lists(path: Path, runner: CommandRunner = run, timeout: float = 300.0) -> Listing:
    """Let `unsquashfs -l` read every inode and directory (0.1 s for 64,000 of them); ``timeout`` is in seconds."""
    # Only its own verdict counts as damage: on clusters with a default memory limit unsquashfs was killed by the cgroup
    # (exit 137), and builds without lzo or zstd refuse whole files.
    done = runner(["unsquashfs", "-l", str(path)], timeout=timeout)
    if done.ok:
        return Listing.WHOLE
    if done.returncode in (126, 127):
        return Listing.NO_PROGRAM
    if done.returncode is None or done.returncode < 0 or done.returncode > 128:
        return Listing.NO_ANSWER
    if "unsupported by this version" in done.stderr + done.stdout:
        return Listing.UNSUPPORTED
    return Listing.DAMAGED
