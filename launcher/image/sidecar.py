"""The record beside a squash file (``<squash>.json``): what it is, where it came from, who made it.

A squash file is of use without one; bash launchers make them so. A record that does not fit the file beside it says
nothing, because the file was replaced since.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from launcher.image.squash import Superblock
from launcher.publish import publish_new, publishing, temporary_name


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry in the user database, as in some containers
        return str(os.getuid())


@dataclass(frozen=True)
class Sidecar:
    """What is recorded of a squash file.

    ``reference`` as it was given, ``uri`` as enroot was asked; ``digest`` is the registry's manifest digest just before
    the import, when it could be had. ``size`` in bytes, ``mtime_ns`` and ``superblock_time`` (seconds) from the epoch;
    ``seconds`` is what the import took. ``how`` is ``imported``, or ``adopted`` for a file of somebody else.
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
    seconds: float | None = None
    user: str = field(default_factory=_user)
    host: str = field(default_factory=socket.gethostname)
    job: str | None = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    written: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def fits(self, block: Superblock) -> bool:
        """Whether this record is of that file. Times are compared in seconds: file servers round them differently."""
        return (self.size, self.superblock_time, self.mtime_ns // 10**9) == (
            block.size,
            block.created,
            block.mtime_ns // 10**9,
        )


def beside(squash: Path) -> Path:
    """Where the record of a squash file lies."""
    return squash.with_name(f"{squash.name}.json")


def read(squash: Path) -> Sidecar | None:
    """The record beside a squash file; None when there is none that can be read."""
    try:
        given = json.loads(beside(squash).read_bytes())
        note = Sidecar(**{name: given[name] for name in Sidecar.__dataclass_fields__ if name in given})
        numbers = (note.size, note.mtime_ns, note.superblock_time)
    except (OSError, ValueError, TypeError):
        return None
    return note if isinstance(note.uri, str) and all(isinstance(number, int) for number in numbers) else None


def write(squash: Path, note: Sidecar, *, replace: bool = True) -> OSError | None:
    """Record it, readable for everybody; without ``replace``, only where no record is. Returns what went wrong."""
    final = beside(squash)
    content = json.dumps(asdict(note), indent=2) + "\n"
    try:
        if replace:
            with publishing(final) as temporary:
                _fill(temporary, content)
        else:
            temporary = temporary_name(final)
            _fill(temporary, content)
            publish_new(temporary, final)
    except OSError as error:
        return error
    return None


def _fill(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o644)
