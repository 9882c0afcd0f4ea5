"""A squashfs 4.0 image of a few small files, written without mksquashfs, so that a rehearsal needs nothing installed.

The format is that of the kernel (fs/squashfs/squashfs_fs.h); everything is left uncompressed, and there are no
fragments, no export table and no extended attributes. `unsquashfs` 4.5.1 and Linux's own mount read what is written.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_BLOCK = 128 * 1024
_BLOCK_LOG = 17
_PADDING = 4096
_ABSENT = 0xFFFF_FFFF_FFFF_FFFF
_SUPERBLOCK_SIZE = 96
_METADATA_LIMIT = 8192
_DIRECTORY, _FILE = 1, 2
_STORED_BLOCK = 1 << 24
_STORED_METADATA = 1 << 15
_FLAGS = 0x001 | 0x002 | 0x008 | 0x010 | 0x200 | 0x800
"""Inodes, data, fragments and ids uncompressed; no fragments, no extended attributes."""


def squashfs(directory: str, files: Mapping[str, bytes], *, created: int) -> bytes:
    """The image of a root with one ``directory`` that holds ``files`` (name → content), all owned by root.

    ``created`` is the time of the file system and of everything in it, in seconds from the epoch. Raises ValueError
    when names and sizes do not fit one metadata block (8 KiB: some hundred files, or one of 200 MB).
    """
    data, inodes, listing = bytearray(), bytearray(), []
    for number, (name, content) in enumerate(sorted(files.items()), start=1):
        listing.append((name, len(inodes), number, _FILE))
        sizes = [len(content[at : at + _BLOCK]) | _STORED_BLOCK for at in range(0, len(content), _BLOCK)]
        inodes += _inode(_FILE, 0o644, created, number)
        inodes += struct.pack("<IIII", _SUPERBLOCK_SIZE + len(data), 0xFFFF_FFFF, 0, len(content))
        inodes += struct.pack(f"<{len(sizes)}I", *sizes)
        data += content

    inner, root = len(files) + 1, len(files) + 2
    entries = _entries(listing)
    root_entries = _entries([(directory, len(inodes), inner, _DIRECTORY)])
    inodes += _directory(created, inner, parent=root, links=2, size=len(entries), offset=0)
    root_at = len(inodes)
    inodes += _directory(created, root, parent=root + 1, links=3, size=len(root_entries), offset=len(entries))

    inode_table = _SUPERBLOCK_SIZE + len(data)
    tables = _metadata(bytes(inodes))
    directory_table = inode_table + len(tables)
    tables += _metadata(entries + root_entries)
    ids = inode_table + len(tables)
    tables += _metadata(struct.pack("<I", 0))
    id_table = inode_table + len(tables)
    tables += struct.pack("<Q", ids)
    used = inode_table + len(tables)

    head = struct.pack("<4sIIII", b"hsqs", root, created, _BLOCK, 0)
    head += struct.pack("<HHHHHH", 1, _BLOCK_LOG, _FLAGS, 1, 4, 0)
    head += struct.pack("<QQQQ", root_at, used, id_table, _ABSENT)
    head += struct.pack("<QQQQ", inode_table, directory_table, _ABSENT, _ABSENT)
    return head + bytes(data) + tables + bytes(-used % _PADDING)


def _inode(kind: int, mode: int, created: int, number: int) -> bytes:
    return struct.pack("<HHHHII", kind, mode, 0, 0, created, number)


def _directory(created: int, number: int, *, parent: int, links: int, size: int, offset: int) -> bytes:
    # The size of a listing counts "." and "..", which are not in it, as three bytes.
    return _inode(_DIRECTORY, 0o755, created, number) + struct.pack("<IIHHI", 0, links, size + 3, offset, parent)


def _entries(listing: list[tuple[str, int, int, int]]) -> bytes:
    """A directory's listing: (name, offset of the inode, its number, its kind), sorted by name."""
    if not listing:
        return b""
    first = listing[0][2]
    out = struct.pack("<III", len(listing) - 1, 0, first)
    for name, offset, number, kind in listing:
        out += struct.pack("<HhHH", offset, number - first, kind, len(name.encode()) - 1) + name.encode()
    return out


def _metadata(content: bytes) -> bytes:
    if len(content) > _METADATA_LIMIT:
        raise ValueError(f"{len(content)} bytes of metadata; one block holds {_METADATA_LIMIT}")
    return struct.pack("<H", len(content) | _STORED_METADATA) + content
