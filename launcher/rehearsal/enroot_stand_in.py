"""A stand-in for enroot, for rehearsals and tests. It downloads nothing: its images hold a note that says so.

``python -m launcher.rehearsal.enroot_stand_in import -o FILE URI`` (and ``digest URI``, ``version``) behaves as enroot
4.1.2 was recorded: the order of its checks, its messages on stderr and its exit codes. It writes directly to the given
name, the superblock last; SIGTERM leaves nothing, SIGKILL a partial file and a directory in ENROOT_TEMP_PATH.

``LAUNCHER_REHEARSAL_ENROOT`` requests failures, as ``key=value`` joined by commas:

    fail=401|403|404|429|503   the registry answers so
    fail=refused               nothing listens there
    fail=nospace               the file system gets full while the squash file is written
    fail=truncate | empty      exit 0, and the file is cut in half, or empty
    fail_times=N,counter=FILE  only the first N imports fail; FILE counts them
    slow=SECONDS               the time that writing takes
    size=BYTES                 this much more in the image
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import re
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

VERSION = "4.1.2-rehearsal"
FAULTS = "LAUNCHER_REHEARSAL_ENROOT"

_URI = re.compile(
    r"docker://(?:[^@]+@)?(?:(?P<registry>[^/#@]+)[#/])?(?P<repository>[a-z0-9/._-]+)"
    r"(?::(?P<tag>[A-Za-z0-9._:-]+))?(?:@(?P<digest>sha256:[A-Za-z0-9]+))?"
)
_STATUS = {"401": "Unauthorized", "403": "Forbidden", "404": "Not Found", "429": "", "503": "Service Unavailable"}
_KNOWN_KEYS = {"fail", "fail_times", "counter", "slow", "size"}
_KNOWN_FAILURES = {*_STATUS, "refused", "nospace", "truncate", "empty"}


class _CommandFailed(Exception):
    """The program prints the message to stderr and exits with ``code``."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _CommandFailed(self.format_usage())


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command; the exit code of the program. Writes to stdout and stderr, as enroot does."""
    parser = _Parser(prog="enroot", description="A stand-in for enroot: nothing is downloaded.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version")
    for name in ("import", "digest"):
        command = commands.add_parser(name)
        command.add_argument("-a", "--arch")
        command.add_argument("uri")
        if name == "import":
            command.add_argument("-o", "--output", required=True)
    try:
        arguments = parser.parse_args(argv)
        if arguments.command == "version":
            sys.stdout.write(f"{VERSION}\n")
        elif arguments.command == "digest":
            _parse_uri(arguments.uri)
            sys.stdout.write(f"sha256:{hashlib.sha256(arguments.uri.encode()).hexdigest()}\n")
        else:
            _import(arguments.uri, arguments.output, environ)
    except _CommandFailed as failed:
        sys.stderr.write(f"{failed}\n")
        return failed.code
    return 0


def _parse_uri(uri: str) -> re.Match[str]:
    if not uri.startswith("docker://"):
        raise _CommandFailed(f"[ERROR] Invalid argument: {uri}")
    match = _URI.fullmatch(uri)
    if not match:
        raise _CommandFailed(f"[ERROR] Invalid image reference: {uri}")
    return match


def _import(uri: str, output: str, environ: Mapping[str, str]) -> None:
    for name in ("CACHE", "DATA", "RUNTIME"):
        if path := environ.get(f"ENROOT_{name}_PATH"):
            try:
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise _CommandFailed(f"mkdir: cannot create directory '{path}': {error.strerror}") from None
    reference = _parse_uri(uri)
    target = Path(os.path.realpath(output))
    if not target.parent.is_dir():
        raise _CommandFailed(f"[ERROR] No such file or directory: {output}")
    if target.exists():
        raise _CommandFailed(f"[ERROR] File already exists: {target}")
    faults = _faults(environ)
    parent = environ.get("ENROOT_TEMP_PATH")
    try:
        temporary = tempfile.TemporaryDirectory(prefix="enroot.", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise _CommandFailed(f"mktemp: failed to create directory in '{parent}': {error.strerror}") from None
    with temporary:
        sys.stderr.write("[INFO] Querying registry for permission grant\n")
        registry, fail = reference["registry"] or "registry-1.docker.io", faults.get("fail", "")
        version = reference["digest"] or reference["tag"] or "latest"
        url = f"https://{registry}/v2/{reference['repository']}/manifests/{version}"
        if fail in _STATUS:
            raise _CommandFailed(f"[ERROR] URL {url} returned error code: {fail} {_STATUS[fail]}")
        if fail == "refused":
            text = f"Failed to connect to {registry} port 443 after 0 ms: Couldn't connect to server"
            raise _CommandFailed(f"curl: (7) {text}", 7)
        image = squashfs(
            "etc", _files(uri, int(faults.get("size", 0))), created=int(environ.get("SOURCE_DATE_EPOCH") or time.time())
        )
        sys.stderr.write("[INFO] Creating squashfs filesystem...\n")
        _write(target, image, fail, float(faults.get("slow", 0)))


def _write(target: Path, image: bytes, fail: str, slow: float) -> None:
    """Body first and superblock last, as mksquashfs does: until the end the file begins with zeros."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise _CommandFailed("[ERROR] terminated", 128 + number)

    head, body = image[:96], image[96:]
    signal.signal(signal.SIGTERM, terminate)
    try:
        with target.open("wb") as file:  # no O_EXCL: two imports into one name both "succeed", as recorded
            for part in (bytes(96), body[: len(body) // 2]):
                file.write(part)
            file.flush()
            if fail == "nospace":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            time.sleep(slow)
            file.write(body[len(body) // 2 :])
            file.seek(0)
            file.write(head)
    except (OSError, _CommandFailed) as error:
        target.unlink(missing_ok=True)
        if isinstance(error, _CommandFailed):
            raise
        message = f"Write failed because {error.strerror}\nFATAL ERROR: Failed to write to output filesystem"
        raise _CommandFailed(message) from None
    if fail in ("truncate", "empty"):
        os.truncate(target, len(image.rstrip(b"\0")) // 2 if fail == "truncate" else 0)


def _files(uri: str, size: int) -> dict[str, bytes]:
    note = {"rehearsal": True, "uri": uri, "made_by": f"launcher.rehearsal.enroot_stand_in {VERSION}"}
    rc = f"# enroot-provenance: {uri}\necho 'this image is a rehearsal and holds no program' >&2\nexit 1\n"
    files = {"rc": rc.encode(), "rehearsal.json": json.dumps(note, indent=2).encode() + b"\n"}
    return {**files, "filler": bytes(size)} if size else files


def _faults(environ: Mapping[str, str]) -> dict[str, str]:
    """The requested failures of this import, which is counted for ``fail_times``."""
    parts = (part.partition("=") for part in environ.get(FAULTS, "").split(",") if part)
    faults = {key: value for key, _, value in parts}
    if not (set(faults) <= _KNOWN_KEYS and faults.get("fail", "empty") in _KNOWN_FAILURES):
        raise _CommandFailed(f"[ERROR] {FAULTS}: {environ[FAULTS]!r} has something that this stand-in does not know")
    if "fail_times" in faults and "counter" not in faults:
        raise _CommandFailed(f"[ERROR] {FAULTS}: fail_times needs a counter=FILE")
    if "fail_times" in faults:
        with Path(faults["counter"]).open("ab") as counter:
            counter.write(b".")
            counter.flush()
            if counter.tell() > int(faults["fail_times"]):
                faults.pop("fail", None)
    return faults


# Squashfs 4.0, as the kernel defines it (fs/squashfs/squashfs_fs.h). Images are written without mksquashfs, so that a
# rehearsal needs no installed program. `unsquashfs` 4.5.1 and Linux's mount read them.

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
    """An image whose root has one ``directory`` with ``files`` (name → content), all owned by root.

    ``created`` is the time of the file system and of all its files, in seconds from the epoch. Raises ValueError when
    names and sizes do not fit one metadata block (8 KiB: some hundred files, or one of 200 MB).
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
