"""Who uses an image: marks in the image directory itself, where every launcher of every user and host sees them.

A run makes ``<directory>/.uses/<squash file>/<run>@<host>~<hash of the record's path>`` before it looks for the image,
and removes it when the run is settled. The name alone is the mark, so one whose content is torn or cannot be read
counts, too. A run that may not write to the directory leaves no mark, and its record says so.
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
from launcher.core.rights import make_directories, share, user_name
from launcher.image.squash import record_use

LONGEST_RUN = 21 * 86400.0
"""Seconds after which the run of a mark is taken for over. No partition that we know of lets a job run for more than 14
days."""

DIRECTORY = ".uses"


@dataclass(frozen=True)
class ImageUse:
    """A mark: ``run`` on ``host`` uses the image; ``record`` is the run's directory there, empty if it cannot be read.

    ``path`` is the mark's own, ``since`` when it was made or renewed, by the file server's clock.
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
    """Mark that a run uses an image, which need not be there yet. Returns the error when no mark can be made."""
    host = socket.gethostname()
    path = _marks(squash) / f"{run}@{host}~{_of(record)}"
    content = json.dumps({"run": run, "host": host, "user": user_name(), "record": str(record.absolute())}) + "\n"
    try:
        make_directories(path.parent)  # others leave marks there, too
        path.write_text(content)
        share(path)
    except OSError as error:
        return error
    return None


def remove_marks(directory: Path, run: str, record: Path) -> None:
    """Remove the marks of a run that is settled, whichever host made them. This counts as a use of the image."""
    for squash in images_with_marks(directory):
        with contextlib.suppress(OSError):
            for path in _marks(squash).glob(f"{glob.escape(run)}@*~{_of(record)}"):
                path.unlink()
                record_use(squash)
        remove_empty_directories(squash)


def _of(record: Path) -> str:
    """What tells runs of the same name apart, of two users or two state directories."""
    return hashlib.sha256(str(record.absolute()).encode()).hexdigest()[:8]


def read_marks(squash: Path) -> list[ImageUse]:
    """All marks of an image, oldest first. Raises OSError when there are marks that cannot be listed."""
    try:
        paths = list(_marks(squash).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for path in paths:
        run, _, host = path.name.rpartition("~")[0].rpartition("@")
        record = ""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            record = str(json.loads(read_file(path, 1 << 16))["record"])
        with contextlib.suppress(FileNotFoundError):
            found.append(ImageUse(run, host, record, path, path.stat().st_mtime))
    return sorted(found, key=lambda use: use.since)


def stale_reason(use: ImageUse, now: float, is_over: IsOver) -> str | None:
    """Why a mark does not count; None when its run is neither proven to be over, nor older than any run can be."""
    if is_over(use):
        return "its run is over"
    return f"its run is older than {LONGEST_RUN / 86400:.0f} days" if now - use.since > LONGEST_RUN else None


def last_use(squash: Path) -> float:
    """When a mark was last made or removed, by the file server's clock; 0 when there was none."""
    try:
        return _marks(squash).stat().st_mtime
    except OSError:
        return 0.0


def images_with_marks(directory: Path) -> list[Path]:
    """The squash files of a directory that have marks, or had some; they may be gone."""
    try:
        return sorted(directory / path.name for path in (directory / DIRECTORY).iterdir())
    except OSError:
        return []


def remove_empty_directories(squash: Path) -> None:
    """Remove the place of an image's marks, if both it and the image are gone."""
    for directory in () if squash.exists() else (_marks(squash), _marks(squash).parent):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _marks(squash: Path) -> Path:
    return squash.parent / DIRECTORY / squash.name
