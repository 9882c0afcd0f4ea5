"""What lies in an image directory: images and whether they are whole, who uses them, and what nobody needs any more.

An image is removed when no live run has it and nobody used it for longer than `GRACE`. What killed imports left is
removed when its process is dead, or, where that was on another host, when it did not change for `GRACE_OF_PARTS`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.core.lease import Lock, LockOwner, read_owner, remove_if_unchanged
from launcher.core.process import CommandRunner, run
from launcher.core.publish import TEMPORARY_SUFFIX, dead_temporaries, publish_new, temporary_name
from launcher.image import usage
from launcher.image.squash import Listing, Sidecar, check_lists, file_hash, inspect, sidecar_path
from launcher.image.usage import IsOver, assume_alive

GRACE = 30 * 86400.0
"""Seconds for which an unused image is kept."""

GRACE_OF_PARTS = 2 * 86400.0
"""Seconds after which the process of a temporary that does not change is taken for dead, on whatever host it ran."""

_SUFFIX = ".sqsh"
_OWNER = ".owner"


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
class Garbage:
    """What nobody needs: ``why`` is the proof."""

    path: Path
    size: int
    why: str


def images(
    directory: Path, users: Mapping[str, Sequence[str]] | None = None, is_over: IsOver = assume_alive
) -> list[Image]:
    """The images of a directory, by name. ``users``: path of a squash file → live runs that have it.

    The runs that marked an image in the directory itself are added, unless ``is_over`` says that they are over. Raises
    ImageError when the directory cannot be read.
    """
    live = {os.path.realpath(path): tuple(runs) for path, runs in (users or {}).items()}
    now = _server_time(directory)
    found = []
    for path in _entries(directory):
        if path.name.endswith(_SUFFIX) and not path.name.startswith("."):
            ours = live.get(os.path.realpath(path), ())
            found.append(_image(path, (*ours, *_marked(path, ours, now, is_over))))
    return found


def _marked(squash: Path, known: Sequence[str], now: float, is_over: IsOver) -> tuple[str, ...]:
    """Live runs that marked the image, without those that are ``known`` already."""
    try:
        return tuple(str(use) for use in usage.live(squash, now, is_over) if use.run not in known)
    except OSError as error:
        return (f"marks that cannot be read ({error.strerror})",)


def _image(squash: Path, users: tuple[str, ...]) -> Image:
    try:
        status = squash.stat()
    except OSError as error:
        return Image(squash, 0, time.time(), f"cannot be read: {error.strerror}", users=users)
    times = [status.st_mtime, status.st_atime, usage.last_use(squash)]
    with contextlib.suppress(OSError):
        times.append(sidecar_path(squash).stat().st_mtime)
    found = Image(squash, status.st_size, max(times), users=users)
    try:
        block = inspect(squash)
    except ImageError as error:
        return replace(found, problem=error.message)
    note = Sidecar.read(squash)
    return replace(found, sidecar=note) if note is not None and note.fits(block) else found


class Check(str, Enum):
    """What a check of an image found."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Verification:
    """What verifying an image found. ``said`` has a line for each level of the check, the cheapest first."""

    check: Check
    said: tuple[str, ...]


def verify(image: Image, *, deep: bool = False, runner: CommandRunner = run) -> Verification:
    """Check the superblock, the lists of inodes and directories, and with ``deep`` every byte by the recorded hash."""
    if image.problem is not None:
        return Verification(Check.DAMAGED, (image.problem,))
    listing = check_lists(image.squash, runner)
    said = [f"lists: {listing.value}"]
    if listing is Listing.DAMAGED:
        return Verification(Check.DAMAGED, tuple(said))
    check = Check.WHOLE if listing is Listing.WHOLE else Check.UNKNOWN
    if deep:
        recorded = image.sidecar.hash if image.sidecar else None
        try:
            actual = file_hash(image.squash)
        except OSError as error:
            return Verification(Check.DAMAGED, (*said, f"content: cannot be read: {error.strerror}"))
        if recorded is None:
            said.append("content: readable; no hash was recorded (`launcher image adopt` records one)")
        elif recorded != actual:
            return Verification(Check.DAMAGED, (*said, f"content: {actual}, and {recorded} was recorded"))
        else:
            check = Check.WHOLE
            said.append("content: as recorded")
    return Verification(check, tuple(said))


def adopt(squash: Path, reference: str, uri: str, *, runner: CommandRunner = run) -> Sidecar:
    """Write the record of an image that somebody else made, with its hash. Raises ImageError when it is not whole."""
    block = inspect(squash)
    listing = check_lists(squash, runner)
    if listing is Listing.DAMAGED:
        raise ImageError("its lists cannot be read", where=str(squash), hint="launcher image import makes it anew")
    before = Sidecar.read(squash)
    if before is not None and before.fits(block) and before.uri != uri:
        hint = f"remove {sidecar_path(squash)} first"
        raise ImageError(f"it is recorded as {before.reference}", where=str(squash), hint=hint)
    note = replace(Sidecar.of(block, reference, uri, "adopted"), listing=listing.value, hash=file_hash(squash))
    if before is not None and before.fits(block) and before.hash is not None:
        return before
    if error := note.write(squash):
        raise ImageError(f"no record can be written: {error.strerror}", where=str(sidecar_path(squash)))
    return note


def garbage(
    directory: Path,
    found: Iterable[Image],
    *,
    grace: float = GRACE,
    parts: float = GRACE_OF_PARTS,
    is_over: IsOver = assume_alive,
) -> list[Garbage]:
    """What `remove_garbage` would remove. Ages are by the file server's clock. Raises ImageError."""
    now = _server_time(directory)
    gone = []
    for image in found:
        idle = now - image.used
        limit = grace if image.problem is None else parts
        if not image.users and idle > limit:
            what = "unused" if image.problem is None else f"{image.problem}; unchanged"
            gone.append(Garbage(image.squash, image.size, f"{what} for {_days(idle)}"))
    entries = _entries(directory)
    try:
        dead = dead_temporaries(directory)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", where=str(directory)) from None
    for path in entries:
        if why := _why_leftover(path, path in dead, now, parts):
            gone.append(Garbage(path, _size(path), why))
    for squash in usage.marked(directory):
        with contextlib.suppress(OSError):
            stale = ((use, usage.stale(use, now, is_over)) for use in usage.marks(squash))
            gone += [Garbage(use.path, use.path.stat().st_size, f"a mark of {use}: {why}") for use, why in stale if why]
    return gone


def leftover(path: Path) -> Garbage:
    """What `dead_temporaries` found, as something to remove."""
    return Garbage(path, _size(path), "its process is dead")


def _why_leftover(path: Path, dead: bool, now: float, parts: float) -> str | None:
    """Why an entry is known to be a leftover; None when it is not."""
    name = path.name
    try:
        status = path.lstat()
    except OSError:
        return None
    idle = now - status.st_mtime
    if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
        if dead:
            return "its process is dead"
        return f"unchanged for {_days(idle)}" if idle > parts else None
    if name.startswith(".") and name.endswith(_SUFFIX + _OWNER):
        with contextlib.suppress(OSError):
            if LockOwner.from_json(path.read_bytes()).is_dead:
                return "a lock whose process is dead"
        return f"a lock without a heartbeat for {_days(idle)}" if idle > parts else None
    if name.endswith(f"{_SUFFIX}.json") and not path.with_name(name.removesuffix(".json")).exists():
        return "a record without its image" if idle > min(parts, 3600.0) else None
    return None


def remove_garbage(item: Garbage, is_over: IsOver = assume_alive) -> bool:
    """Remove one thing, if it is still garbage; say whether it is gone.

    An image is removed under its lock, and only if nobody used it meanwhile. Raises ImageError when it cannot be
    removed.
    """
    path = item.path
    try:
        if path.name.endswith(_OWNER):
            seen = read_owner(path)
            if seen is None:
                return True
            return _why_leftover(path, False, time.time(), 0.0) is not None and remove_if_unchanged(path, seen)
        if path.name.endswith(_SUFFIX):
            return _collect_image(item, is_over)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"cannot be removed: {error.strerror}", where=str(path)) from None
    if path.parent.parent.name == usage.DIRECTORY:  # a mark
        squash = path.parents[2] / path.parent.name
        if not squash.exists():
            usage.tidy(squash)
    return True


def _collect_image(item: Garbage, is_over: IsOver) -> bool:
    """Remove an image that nobody uses."""
    # Runs mark an image before they look for it. So we hide the file first and read the marks then: a run that found
    # the file has marked it.
    before = _image(item.path, ())
    now = _server_time(item.path.parent)
    with Lock(item.path.with_name(f".{item.path.name}{_OWNER}"), what="gc", wait=0.0) as held:
        after = _image(item.path, ())
        used = after.used > before.used or after.size != item.size or _marked(item.path, (), now, is_over)
        if not held.acquired or used:
            return False
        aside = temporary_name(item.path)
        item.path.rename(aside)
        if _marked(item.path, (), now, is_over):
            publish_new(aside, item.path)
            return False
        aside.unlink()
        sidecar_path(item.path).unlink(missing_ok=True)
        usage.tidy(item.path)
    return True


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise ImageError(
            f"the image directory cannot be read: {error.strerror}", where=str(directory), hint="correct the directory"
        ) from None


def _server_time(directory: Path) -> float:
    """Now, by the clock that gives the files their times: it may be an hour off ours."""
    probe = temporary_name(directory / "clock")
    try:
        probe.touch(exist_ok=False)
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return time.time()
    return now


def _size(path: Path) -> int:
    """Bytes on disk, of a file or of all below a directory."""
    total = 0
    with contextlib.suppress(OSError):
        total = path.lstat().st_size
    for where, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(where, name).lstat().st_size
    return total


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} h"
