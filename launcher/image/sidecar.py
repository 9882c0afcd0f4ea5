"""The record beside a squash file (``<squash>.json``): what it is, where it came from, who made it.

A squash file can be used without one, and those of the bash launchers have none. A record that does not fit the file
beside it says nothing, because the file was replaced since.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from launcher.core.publish import publish_new, publishing, temporary_name
from launcher.image.squash import Superblock, open_unnoticed


def user_name() -> str:
    """The name of the user who runs this, else the uid."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry in the user database, as in some containers
        return str(os.getuid())


@dataclass(frozen=True)
class Sidecar:
    """What is recorded of a squash file.

    ``reference`` as it was given, ``uri`` its canonical form. ``digest`` is that of the manifest that was imported,
    when it could be had, ``index`` that of the index that named it; ``architecture`` is Debian's name. ``size`` in
    bytes, ``mtime_ns`` and ``superblock_time`` (seconds) from the epoch; ``seconds`` is what the import took.
    ``how`` is ``imported``, or ``adopted`` for a file that somebody else made. ``hash`` is of all content (see
    `file_hash`), ``options`` are those of mksquashfs. The record's own mtime is when the image was last used (see
    `touch`).
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
    user: str = field(default_factory=user_name)
    host: str = field(default_factory=socket.gethostname)
    job: str | None = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    written: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, block: Superblock, reference: str, uri: str, how: Literal["imported", "adopted"]) -> Sidecar:
        """The record of a file with this superblock, by this user on this host, now."""
        return cls(reference, uri, how, block.size, block.mtime_ns, block.created)

    def fits(self, block: Superblock) -> bool:
        """Whether this record is of that file. Times are compared in seconds: file servers round them differently."""
        return (self.size, self.superblock_time, self.mtime_ns // 10**9) == (
            block.size,
            block.created,
            block.mtime_ns // 10**9,
        )


def sidecar_path(squash: Path) -> Path:
    """The path of a squash file's record."""
    return squash.with_name(f"{squash.name}.json")


def read(squash: Path) -> Sidecar | None:
    """The record beside a squash file; None when there is none that can be read."""
    import msgspec

    try:
        return msgspec.json.decode(sidecar_path(squash).read_bytes(), type=Sidecar)
    except (OSError, msgspec.MsgspecError):
        return None


def write(squash: Path, note: Sidecar, *, replace: bool = True) -> OSError | None:
    """Write the record, readable for everybody; without ``replace`` only where there is none. Returns the error."""
    final = sidecar_path(squash)
    content = json.dumps(asdict(note), indent=2) + "\n"
    try:
        if replace:
            with publishing(final) as temporary:
                _fill(temporary, content)
        else:
            temporary = temporary_name(final)
            try:
                _fill(temporary, content)
                publish_new(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


_USED = 600.0
"""Seconds by which a recorded use may be too old, so that not every hit has to change the file system."""


def touch(squash: Path) -> None:
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
    with open(open_unnoticed(path), "rb", buffering=0) as file:  # noqa: PTH123
        while size := file.readinto(buffer):
            value.update(buffer[:size])
    return f"xxh3-128:{value.hexdigest()}"


def _fill(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o644)
