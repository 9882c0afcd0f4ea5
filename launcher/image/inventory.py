"""What an image directory contains: images and whether they are whole, who uses them, and what can be removed.

An image is removed when no live run uses it and nobody used it for longer than `GRACE`. What killed imports left is
removed when its process is dead, or, if that ran on another host, when it did not change for `TEMPORARY_GRACE`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from launcher.core.errors import ImageError
from launcher.core.lease import Lock, LockOwner, read_owner, remove_if_unchanged
from launcher.core.leftovers import Leftover, disk_usage, try_remove
from launcher.core.publish import TEMPORARY_SUFFIX, dead_temporaries, publish_new, temporary_name
from launcher.core.rights import describe_os_error, os_error_hint
from launcher.image import usage
from launcher.image.reference import Reference
from launcher.image.squash import WHOLE, DamagedImage, Sidecar, check_lists, file_hash, inspect, sidecar_path
from launcher.image.usage import IsOver, assume_alive

GRACE = 30 * 86400.0
"""Seconds for which an unused image is kept."""

TEMPORARY_GRACE = 2 * 86400.0
"""Seconds after which the process of an unchanged temporary counts as dead, on whatever host it ran."""

_SUFFIX = ".sqsh"
_OWNER = ".owner"
_PROCESS_DEAD = "its process is dead"
_IN_USE = "in use, or its lock cannot be acquired"


@dataclass(frozen=True)
class Image:
    """A squash file. ``problem`` says why it is not whole, ``sidecar`` is its record if that fits, ``users`` live runs.

    ``size`` is in bytes; ``used`` is the time of the last recorded use in seconds from the epoch, by the file server's
    clock.
    """

    squash: Path
    size: int
    used: float
    problem: str | None = None
    sidecar: Sidecar | None = None
    users: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageDirectory:
    """A directory with images. ``users``: path of a squash file → live runs that use it.

    Runs that marked an image in the directory itself are added, unless ``is_over`` says that they are over. Unused
    images are kept for ``grace`` seconds, unchanged temporaries for ``temporary_grace``. Ages are measured by the file
    server's clock.
    """

    path: Path
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_over: IsOver = assume_alive
    grace: float = GRACE
    temporary_grace: float = TEMPORARY_GRACE

    def images(self) -> list[Image]:
        """The images by name. Raises ImageError when the directory cannot be read."""
        return [_read_image(path, users) for path, users in self._squash_files().items()]

    def _squash_files(self) -> dict[Path, tuple[str, ...]]:
        """The squash files by name, with their live runs."""
        live = {os.path.realpath(path): tuple(runs) for path, runs in self.users.items()}
        paths = [path for path in self._entries() if path.name.endswith(_SUFFIX) and not path.name.startswith(".")]
        known = {path: live.get(os.path.realpath(path), ()) for path in paths}
        return {path: (*runs, *self._live_uses(path, runs)) for path, runs in known.items()}

    def garbage(self) -> list[Leftover]:
        """What `try_remove` would remove. Raises ImageError."""
        items = []
        for path in (path for path, users in self._squash_files().items() if not users):
            # A file that has been idle for so long is not opened: opening another user's file would count as a use.
            idle = self._now - _last_use(path)
            problem = _read_image(path).problem if self.temporary_grace < idle <= self.grace else None
            if problem or idle > self.grace:
                state = f"{problem}; unchanged" if problem else "unused"
                items.append(Leftover.of(path, f"{state} for {_age(idle)}"))
        for path, is_dead in self._entries().items():
            if reason := self._leftover_reason(path, is_dead):
                items.append(Leftover.of(path, reason))
        for squash in usage.images_with_marks(self.path):
            with contextlib.suppress(OSError):
                for use in usage.read_marks(squash):
                    if reason := usage.stale_reason(use, self._now, self.is_over):
                        items.append(Leftover.of(use.path, f"a mark of {use}: {reason}"))
        return items

    def dead_temporaries(self) -> list[Leftover]:
        """What dead processes of this host left in a directory that may hold other things than images."""
        return [Leftover.of(path, _PROCESS_DEAD) for path, is_dead in self._entries().items() if is_dead]

    def remove(self, item: Leftover) -> str | None:
        """Remove an item if it is still garbage. Returns why it is still there, None when it is gone.

        An image is removed under its lock, and only if nobody used it meanwhile.
        """
        path = item.path
        if item.keep is not None:
            return item.keep
        if path.name.endswith(_OWNER):
            owner = read_owner(path)
            is_gone = owner is None or (self._leftover_reason(path, False) and remove_if_unchanged(path, owner))
            return None if is_gone else _IN_USE
        if path.name.endswith(_SUFFIX):
            try:
                return None if self._remove_image(item) else _IN_USE
            except OSError as error:
                return f"cannot be removed: {describe_os_error(error, path)}"
        problem = try_remove(path)
        if path.parent.parent.name == usage.DIRECTORY:  # a mark
            usage.remove_empty_directories(path.parents[2] / path.parent.name)
        return problem

    def _remove_image(self, item: Leftover) -> bool:
        """Remove an image that nobody uses; False when it is in use."""
        # Runs mark an image before they look for it. So we hide the file first and read the marks then: a run that
        # found the file has marked it.
        path, before = item.path, _last_use(item.path)
        with Lock(path.with_name(f".{path.name}{_OWNER}"), what="gc", wait=0.0) as lock:
            is_used = _last_use(path) > before or disk_usage(path) != item.size or self._live_uses(path)
            if not lock.acquired or is_used:
                return False
            aside = temporary_name(path)
            path.rename(aside)
            if self._live_uses(path):
                publish_new(aside, path)
                return False
            aside.unlink()
            sidecar_path(path).unlink(missing_ok=True)
            usage.remove_empty_directories(path)
        return True

    def _live_uses(self, squash: Path, known: Sequence[str] = ()) -> tuple[str, ...]:
        """Live runs that marked the image, without the ``known`` ones."""
        try:
            uses = [use for use in usage.read_marks(squash) if not usage.stale_reason(use, self._now, self.is_over)]
        except OSError as error:
            return (f"marks that cannot be read ({error.strerror})",)
        return tuple(str(use) for use in uses if use.run not in known)

    def _leftover_reason(self, path: Path, is_dead: bool) -> str | None:
        """Why an entry is known to be a leftover; None when it is not. ``is_dead`` is as `_entries` gives it."""
        limit, is_hidden = self.temporary_grace, path.name.startswith(".")
        if is_hidden and path.name.endswith(TEMPORARY_SUFFIX):
            kind = "a temporary"
        elif is_hidden and path.name.endswith(_SUFFIX + _OWNER):
            kind, owner = "a lock", read_owner(path)
            is_dead = owner is not None and LockOwner.from_json(owner[0]).is_dead
        elif path.name.endswith(f"{_SUFFIX}.json") and not path.with_suffix("").exists():
            kind, limit = "a record without its image", min(limit, 3600.0)
        else:
            return None
        if is_dead:
            return _PROCESS_DEAD
        with contextlib.suppress(OSError):
            idle = self._now - path.lstat().st_mtime
            return f"{kind}, unchanged for {_age(idle)}" if idle > limit else None
        return None

    def _entries(self) -> dict[Path, bool]:
        """All entries of the directory by name, each with whether a dead process is known to have left it."""
        try:
            dead = dead_temporaries(self.path)
            return {path: path in dead for path in sorted(self.path.iterdir())}
        except OSError as error:
            message = f"the image directory cannot be read: {error.strerror}"
            raise ImageError(message, where=str(self.path), hint=os_error_hint(error, self.path)) from None

    @cached_property
    def _now(self) -> float:
        """The time by the clock of the file server, which may differ from ours by an hour."""
        probe = temporary_name(self.path / "clock")
        try:
            probe.touch(exist_ok=False)
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:
            return time.time()
        return now


def _read_image(squash: Path, users: tuple[str, ...] = ()) -> Image:
    try:
        status = squash.stat()
    except OSError as error:
        return Image(squash, 0, time.time(), f"cannot be read: {error.strerror}", users=users)
    problem, sidecar = None, Sidecar.read(squash)
    try:
        block = inspect(squash)
        sidecar = sidecar if sidecar is not None and sidecar.fits(block) else None
    except ImageError as error:
        problem, sidecar = error.message, None
    return Image(squash, status.st_size, _last_use(squash), problem, sidecar, users)


def _last_use(squash: Path) -> float:
    """The time of the last recorded use of the image, in seconds from the epoch."""
    times = [usage.last_use(squash)]
    for stat in (squash.lstat, sidecar_path(squash).stat):
        with contextlib.suppress(OSError):
            times.append(stat().st_mtime)
    with contextlib.suppress(OSError):
        times += [(status := squash.stat()).st_mtime, status.st_atime]
    return max(times)


def verify(image: Image, *, deep: bool = False) -> tuple[Literal["whole", "damaged", "not known"], list[str]]:
    """Check the superblock, the lists of inodes and directories, and with ``deep`` every byte by the recorded hash.

    Returns the verdict, and a line for each level of the check, the cheapest first.
    """
    if image.problem is not None:
        return "damaged", [image.problem]
    lines: list[str] = []
    try:
        listing = check_lists(image.squash)
        lines.append(f"lists: {listing}")
        actual = file_hash(image.squash) if deep else None
    except DamagedImage as error:
        return "damaged", [error.message]
    except OSError as error:
        return "damaged", [*lines, f"content: cannot be read: {error.strerror}"]
    recorded = image.sidecar.hash if image.sidecar else None
    if not deep and recorded is not None and image.sidecar and not image.sidecar.is_untouched(inspect(image.squash)):
        lines.append("content: the file was touched since it was recorded; `--deep` reads it")
    if deep and recorded is None:
        lines.append("content: readable; no hash was recorded (`launcher image adopt` records one)")
    elif deep and recorded != actual:
        return "damaged", [*lines, f"content: {actual}, and {recorded} was recorded"]
    elif deep:
        return "whole", [*lines, "content: as recorded"]
    return "whole" if listing == WHOLE else "not known", lines


def adopt(squash: Path, reference: str, uri: str) -> Sidecar:
    """Write the record of an image that somebody else made, with its hash.

    Raises ImageError when it is not whole, and when a record names another image, or another content under this name: a
    declaration does not replace what was verified.
    """
    block, listing, before = inspect(squash), check_lists(squash), Sidecar.read(squash)
    digest, content_hash = Reference.parse(uri).digest, None
    if before is not None:
        hint = f"remove {sidecar_path(squash)} first, if the file is what you say"
        fits = before.fits(block)
        if before.uri != uri and (fits or before.digest):
            raise ImageError(f"it is recorded as {before.reference}", where=str(squash), hint=hint)
        if before.digest and digest and digest not in (before.digest, before.index):
            raise ImageError(f"it is recorded as {before.digest}", where=str(squash), hint=hint)
        content_hash = file_hash(squash)
        if before.hash not in (content_hash, None) or (before.digest and not fits):
            message = f"it is recorded as {before.digest or before.reference}, and is another file"
            raise ImageError(message, where=str(squash), hint=hint)
        if fits and before.hash is not None:
            return before
    sidecar = Sidecar(
        *(reference, uri, "adopted", block.size, block.mtime_ns, block.created, listing),
        hash=content_hash or file_hash(squash),
        changed_ns=block.changed_ns,
    )
    if error := sidecar.write(squash):
        raise ImageError(f"no record can be written: {error.strerror}", where=str(sidecar_path(squash)))
    return sidecar


def _age(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} h"
