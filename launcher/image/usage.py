"""Which runs use an image: marks in the image directory, where the launchers of all users and hosts see them.

A run makes ``<directory>/.uses/<squash file>/<run>@<host>~<hash of the record's path>`` before it looks for the image,
and removes it when the run is over. The name alone is the mark, so a mark counts even if its content is torn or cannot
be read. A run that may not write to the directory makes no mark, and its record says so.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.core.reading import read_file
from launcher.core.rights import inherit_rights, make_directories, user_name
from launcher.image.squash import record_use

LONGEST_RUN = 21 * 86400.0
"""Seconds after which the run of a mark counts as over. No partition that we know lets a job run for more than 14 days.
"""

DIRECTORY = ".uses"


@dataclass(frozen=True)
class ImageUse:
    """A mark: ``run`` on ``host`` uses the image; ``record`` is the run's directory there, empty if it cannot be read.

    ``path`` is the path of the mark, ``since`` when it was made or renewed, by the file server's clock.
    """

    run: str
    host: str
    record: str
    path: Path
    since: float

    def __str__(self) -> str:
        return f"{self.run}@{self.host}"


IsOver = Callable[[ImageUse], bool]
"""Whether the run of a mark is proven to be over."""


def assume_alive(use: ImageUse) -> bool:
    """The default: treat every run as possibly alive."""
    return False


def add_mark(squash: Path, run: str, record: Path) -> OSError | None:
    """Mark that a run uses an image, which need not exist yet. Returns the error when no mark can be made."""
    host = socket.gethostname()
    path = _mark_directory(squash) / f"{run}@{host}~{_record_hash(record)}"
    content = json.dumps({"run": run, "host": host, "user": user_name(), "record": str(record.absolute())}) + "\n"
    try:
        make_directories(path.parent)  # other users make marks there, too
        path.write_text(content)
        inherit_rights(path)
    except OSError as error:
        return error
    return None


def remove_marks(directory: Path, run: str, record: Path) -> None:
    """Remove the marks of a run that is over, also those from other hosts. This counts as a use of the image."""
    for squash in images_with_marks(directory):
        with contextlib.suppress(OSError):
            for path in _mark_directory(squash).glob(f"{glob.escape(run)}@*~{_record_hash(record)}"):
                path.unlink()
                record_use(squash)
        remove_empty_directories(squash)


def _record_hash(record: Path) -> str:
    """Distinguishes runs of the same name, of two users or two state directories."""
    return hashlib.sha256(str(record.absolute()).encode()).hexdigest()[:8]


def read_marks(squash: Path) -> list[ImageUse]:
    """All marks of an image, oldest first. Raises OSError when marks exist that cannot be listed."""
    try:
        paths = list(_mark_directory(squash).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    uses = []
    for path in paths:
        run, _, host = path.name.rpartition("~")[0].rpartition("@")
        record = ""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            record = str(json.loads(read_file(path, 1 << 16))["record"])
        with contextlib.suppress(FileNotFoundError):
            uses.append(ImageUse(run, host, record, path, path.stat().st_mtime))
    return sorted(uses, key=lambda use: use.since)


def stale_reason(use: ImageUse, now: float, is_over: IsOver) -> str | None:
    """Why a mark no longer counts; None while its run may still go on."""
    if is_over(use):
        return "its run is over"
    return f"its run is older than {LONGEST_RUN / 86400:.0f} days" if now - use.since > LONGEST_RUN else None


def last_use(squash: Path) -> float:
    """When a mark was last made or removed, by the file server's clock; 0 if there was never one."""
    try:
        return _mark_directory(squash).stat().st_mtime
    except OSError:
        return 0.0


def images_with_marks(directory: Path) -> list[Path]:
    """The squash files of a directory that have or had marks; the files may be gone."""
    try:
        return sorted(directory / path.name for path in (directory / DIRECTORY).iterdir())
    except OSError:
        return []


def remove_empty_directories(squash: Path) -> None:
    """Remove the directory of an image's marks, if marks and image are gone."""
    for directory in () if squash.exists() else (_mark_directory(squash), _mark_directory(squash).parent):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _mark_directory(squash: Path) -> Path:
    return squash.parent / DIRECTORY / squash.name
