"""What lies in an image directory: images and whether they are whole, who uses them, and what nobody needs any more.

An image is removed when no live run has it and nobody used it for longer than `GRACE`. What killed imports left is
removed when its process is dead, or, where that was on another host, when it did not change for `TEMPORARY_GRACE`.
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
from launcher.core.leftovers import Leftover, remove, size_of
from launcher.core.publish import TEMPORARY_SUFFIX, dead_temporaries, publish_new, temporary_name
from launcher.core.rights import next_step, words_of
from launcher.image import usage
from launcher.image.reference import Reference
from launcher.image.squash import WHOLE, DamagedImage, Sidecar, check_lists, file_hash, inspect, sidecar_path
from launcher.image.usage import IsOver, assume_alive

GRACE = 30 * 86400.0
"""Seconds for which an unused image is kept."""

TEMPORARY_GRACE = 2 * 86400.0
"""Seconds after which the process of a temporary that does not change is taken for dead, on whatever host it ran."""

_SUFFIX = ".sqsh"
_OWNER = ".owner"
_DEAD = "its process is dead"
_IN_USE = "in use, or its lock is not to be had"


@dataclass(frozen=True)
class Image:
    """A squash file. ``problem`` says why it is not whole, ``sidecar`` is the record that fits it, ``users`` live runs.

    ``size`` in bytes, ``used`` (the last use that left a trace) in seconds from the epoch, by the file server's clock.
    """

    squash: Path
    size: int
    used: float
    problem: str | None = None
    sidecar: Sidecar | None = None
    users: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageDirectory:
    """A directory with images. ``users``: path of a squash file → live runs that have it.

    The runs that marked an image in the directory itself are added, unless ``is_over`` says that they are over.
    ``grace`` and ``parts`` are how many seconds unused images, and temporaries that do not change, are kept. Ages are
    by the file server's clock.
    """

    path: Path
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_over: IsOver = assume_alive
    grace: float = GRACE
    parts: float = TEMPORARY_GRACE

    def images(self) -> list[Image]:
        """The images by name. Raises ImageError when the directory cannot be read."""
        return [_image(path, users) for path, users in self._squash_files().items()]

    def _squash_files(self) -> dict[Path, tuple[str, ...]]:
        """The squash files by name, with their live runs."""
        live = {os.path.realpath(path): tuple(runs) for path, runs in self.users.items()}
        names = (path for path in self._entries() if path.name.endswith(_SUFFIX) and not path.name.startswith("."))
        ours = {path: live.get(os.path.realpath(path), ()) for path in names}
        return {path: (*runs, *self._marked(path, runs)) for path, runs in ours.items()}

    def garbage(self) -> list[Leftover]:
        """What `remove` would remove. Raises ImageError."""
        gone = []
        for path in (path for path, users in self._squash_files().items() if not users):
            # What has been idle for so long is not opened, which of another user's file would count as a use.
            idle = self._now - _last_use(path)
            problem = _image(path).problem if self.parts < idle <= self.grace else None
            if problem or idle > self.grace:
                what = f"{problem}; unchanged" if problem else "unused"
                gone.append(Leftover.of(path, f"{what} for {_days(idle)}"))
        for path, is_dead in self._entries().items():
            if why := self._why_leftover(path, is_dead):
                gone.append(Leftover.of(path, why))
        for squash in usage.images_with_marks(self.path):
            with contextlib.suppress(OSError):
                for use in usage.read_marks(squash):
                    if why := usage.stale_reason(use, self._now, self.is_over):
                        gone.append(Leftover.of(use.path, f"a mark of {use}: {why}"))
        return gone

    def dead_temporaries(self) -> list[Leftover]:
        """What dead processes of this host left here, where it may be that other things than images lie."""
        return [Leftover.of(path, _DEAD) for path, is_dead in self._entries().items() if is_dead]

    def remove(self, item: Leftover) -> str | None:
        """Remove one thing, if it is still garbage; why it is still there, or None when it is gone.

        An image is removed under its lock, and only if nobody used it meanwhile.
        """
        path = item.path
        if item.keep is not None:
            return item.keep
        if path.name.endswith(_OWNER):
            seen = read_owner(path)
            is_gone = seen is None or (self._why_leftover(path, False) and remove_if_unchanged(path, seen))
            return None if is_gone else _IN_USE
        if path.name.endswith(_SUFFIX):
            try:
                return None if self._remove_image(item) else _IN_USE
            except OSError as error:
                return f"cannot be removed: {words_of(error, path)}"
        kept = remove(path)
        if path.parent.parent.name == usage.DIRECTORY:  # a mark
            usage.remove_empty_directories(path.parents[2] / path.parent.name)
        return kept

    def _remove_image(self, item: Leftover) -> bool:
        """Remove an image that nobody uses."""
        # Runs mark an image before they look for it. So we hide the file first and read the marks then: a run that
        # found the file has marked it.
        path, before = item.path, _last_use(item.path)
        with Lock(path.with_name(f".{path.name}{_OWNER}"), what="gc", wait=0.0) as held:
            is_used = _last_use(path) > before or size_of(path) != item.size or self._marked(path)
            if not held.acquired or is_used:
                return False
            aside = temporary_name(path)
            path.rename(aside)
            if self._marked(path):
                publish_new(aside, path)
                return False
            aside.unlink()
            sidecar_path(path).unlink(missing_ok=True)
            usage.remove_empty_directories(path)
        return True

    def _marked(self, squash: Path, known: Sequence[str] = ()) -> tuple[str, ...]:
        """Live runs that marked the image, without those that are ``known`` already."""
        try:
            uses = [use for use in usage.read_marks(squash) if not usage.stale_reason(use, self._now, self.is_over)]
        except OSError as error:
            return (f"marks that cannot be read ({error.strerror})",)
        return tuple(str(use) for use in uses if use.run not in known)

    def _why_leftover(self, path: Path, is_dead: bool) -> str | None:
        """Why an entry is known to be a leftover; None when it is not. ``is_dead`` is as `_entries` gives it."""
        limit, is_hidden = self.parts, path.name.startswith(".")
        if is_hidden and path.name.endswith(TEMPORARY_SUFFIX):
            what = "a temporary"
        elif is_hidden and path.name.endswith(_SUFFIX + _OWNER):
            what, owner = "a lock", read_owner(path)
            is_dead = owner is not None and LockOwner.from_json(owner[0]).is_dead
        elif path.name.endswith(f"{_SUFFIX}.json") and not path.with_suffix("").exists():
            what, limit = "a record without its image", min(limit, 3600.0)
        else:
            return None
        if is_dead:
            return _DEAD
        with contextlib.suppress(OSError):
            idle = self._now - path.lstat().st_mtime
            return f"{what}, unchanged for {_days(idle)}" if idle > limit else None
        return None

    def _entries(self) -> dict[Path, bool]:
        """All that lies in the directory, by name, and whether it is known that a dead process left it."""
        try:
            dead = dead_temporaries(self.path)
            return {path: path in dead for path in sorted(self.path.iterdir())}
        except OSError as error:
            message = f"the image directory cannot be read: {error.strerror}"
            raise ImageError(message, where=str(self.path), hint=next_step(error, self.path)) from None

    @cached_property
    def _now(self) -> float:
        """The time by the clock that gives the files their times: it may be an hour off ours."""
        probe = temporary_name(self.path / "clock")
        try:
            probe.touch(exist_ok=False)
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:
            return time.time()
        return now


def _image(squash: Path, users: tuple[str, ...] = ()) -> Image:
    try:
        status = squash.stat()
    except OSError as error:
        return Image(squash, 0, time.time(), f"cannot be read: {error.strerror}", users=users)
    used = _last_use(squash)
    problem, note = None, Sidecar.read(squash)
    try:
        block = inspect(squash)
        note = note if note is not None and note.fits(block) else None
    except ImageError as error:
        problem, note = error.message, None
    return Image(squash, status.st_size, used, problem, note, users)


def _last_use(squash: Path) -> float:
    """When the image was last used, as far as that left a trace, in seconds from the epoch."""
    times = [usage.last_use(squash)]
    for look in (squash.lstat, sidecar_path(squash).stat):
        with contextlib.suppress(OSError):
            times.append(look().st_mtime)
    with contextlib.suppress(OSError):
        times += [(status := squash.stat()).st_mtime, status.st_atime]
    return max(times)


def verify(image: Image, *, deep: bool = False) -> tuple[Literal["whole", "damaged", "not known"], list[str]]:
    """Check the superblock, the lists of inodes and directories, and with ``deep`` every byte by the recorded hash.

    Gives what the image is, and a line for each level of the check, the cheapest first.
    """
    if image.problem is not None:
        return "damaged", [image.problem]
    said: list[str] = []
    try:
        listing = check_lists(image.squash)
        said.append(f"lists: {listing}")
        actual = file_hash(image.squash) if deep else None
    except DamagedImage as error:
        return "damaged", [error.message]
    except OSError as error:
        return "damaged", [*said, f"content: cannot be read: {error.strerror}"]
    recorded = image.sidecar.hash if image.sidecar else None
    if not deep and recorded is not None and image.sidecar and not image.sidecar.is_untouched(inspect(image.squash)):
        said.append("content: the file was touched since it was recorded; `--deep` reads it")
    if deep and recorded is None:
        said.append("content: readable; no hash was recorded (`launcher image adopt` records one)")
    elif deep and recorded != actual:
        return "damaged", [*said, f"content: {actual}, and {recorded} was recorded"]
    elif deep:
        return "whole", [*said, "content: as recorded"]
    return "whole" if listing == WHOLE else "not known", said


def adopt(squash: Path, reference: str, uri: str) -> Sidecar:
    """Write the record of an image that somebody else made, with its hash.

    Raises ImageError when it is not whole, and when a record names another image, or another content under this name:
    what was verified is not written over by what is declared.
    """
    block, listing, before = inspect(squash), check_lists(squash), Sidecar.read(squash)
    wanted, content = Reference.parse(uri).digest, None
    if before is not None:
        hint = f"remove {sidecar_path(squash)} first, if the file is what you say"
        fits = before.fits(block)
        if before.uri != uri and (fits or before.digest):
            raise ImageError(f"it is recorded as {before.reference}", where=str(squash), hint=hint)
        if before.digest and wanted and wanted not in (before.digest, before.index):
            raise ImageError(f"it is recorded as {before.digest}", where=str(squash), hint=hint)
        content = file_hash(squash)
        if before.hash not in (content, None) or (before.digest and not fits):
            message = f"it is recorded as {before.digest or before.reference}, and is another file"
            raise ImageError(message, where=str(squash), hint=hint)
        if fits and before.hash is not None:
            return before
    of_file = (block.size, block.mtime_ns, block.created, listing)
    note = Sidecar(reference, uri, "adopted", *of_file, hash=content or file_hash(squash), changed_ns=block.changed_ns)
    if error := note.write(squash):
        raise ImageError(f"no record can be written: {error.strerror}", where=str(sidecar_path(squash)))
    return note


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} h"
