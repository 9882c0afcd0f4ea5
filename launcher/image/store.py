"""Getting an image into place: found whole in a fraction of a millisecond, or imported, checked and published once.

Readers of the final name (pyxis, srtctl, the bash launchers, jobs that run) take no lock. So an import writes under a
name of its own in the same directory, is checked there, and is renamed when it is whole; a whole file is never replaced
or removed. The lock in front of it only keeps two from doing the same work (launcher/image/lock.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from launcher.errors import ImageError
from launcher.image import sidecar
from launcher.image.enroot import Enroot
from launcher.image.lock import Lock
from launcher.image.reference import Reference
from launcher.image.scratch import check_space, private_directory, stale_parts
from launcher.image.sidecar import Sidecar
from launcher.image.squash import DamagedImage, Listing, MissingImage, Superblock, inspect, listing_ok
from launcher.process import CommandRunner, run
from launcher.publish import TEMPORARY_SUFFIX, publish_new, temporary_name

__all__ = ["ImageRecord", "ImageRequest", "ImageStore", "silent", "stale_parts"]


How = Literal["hit", "adopted", "imported"]


@dataclass(frozen=True)
class ImageRequest:
    """One image to have as a squash file. Can be pickled, to be carried out on a compute node.

    ``uri`` is the canonical one (`Reference.uri`). ``flock_path`` is what the bash launchers flock. ``lock_wait`` and
    ``import_timeout`` are in seconds. ``enroot_environment`` is added to the environment of enroot and wins over
    everything. ``temp_directory`` (node-local: aufs whiteouts cannot be removed over NFS) gets enroot's temporaries;
    the system's temporary directory when None. ``space`` is how many bytes must be free in both directories before an
    import begins. ``where`` is the place that errors point to (``file:line`` of the image), else the squash file.
    """

    reference: str
    uri: str
    squash: Path
    flock_path: Path | None = None
    lock_wait: float = 1800.0
    enroot_environment: Mapping[str, str] = field(default_factory=dict)
    import_timeout: float = 3600.0
    temp_directory: Path | None = None
    space: int = 0
    where: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "enroot_environment", dict(self.enroot_environment))  # a mappingproxy has no pickle


@dataclass(frozen=True)
class ImageRecord:
    """What was done for an image, and what it is.

    ``how``: ``hit`` (a record of ours fits the file), ``adopted`` (whole, and made by somebody else), ``imported``.
    ``size`` in bytes, ``created`` (by mksquashfs) and ``seconds`` (all of it, waiting included) in seconds. ``facts``
    are one-line statements of what was not as it should be.
    """

    reference: str
    uri: str
    squash: Path
    how: How
    size: int
    created: int
    seconds: float
    digest: str | None = None
    enroot_version: str | None = None
    listing: str | None = None
    facts: tuple[str, ...] = ()


def silent(message: str) -> None:
    """Say nothing."""


class ImageStore:
    """Has images in place. Everything it does to the world goes through what it is given here.

    ``say`` gets one line at a time, as things happen. ``enroot`` is the command, ``lock`` the class of lock.
    """

    def __init__(
        self,
        runner: CommandRunner = run,
        *,
        say: Callable[[str], None] = silent,
        enroot: Sequence[str] = ("enroot",),
        lock: type[Lock] = Lock,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run, self._say, self._lock, self._clock, self._sleep = runner, say, lock, clock, sleep
        self._enroot = Enroot(runner, enroot, say=say, clock=clock, sleep=sleep)

    def ensure(self, request: ImageRequest) -> ImageRecord:
        """Have the image at ``request.squash``, whole.

        A whole file costs a stat, a read of 96 bytes and the record beside it: no lock and no process. Otherwise it is
        imported under the lock, or without it when that is not to be had. Raises ImageError.
        """
        began = self._clock()
        try:
            found = self._look(request, began)
            return found if isinstance(found, ImageRecord) else self._have(request, began)
        except OSError as error:
            raise _storage_error(error, request) from error

    def _look(self, request: ImageRequest, began: float, facts: Sequence[str] = ()) -> ImageRecord | str:
        """The image if it is there and whole, else why an import is needed.

        A file that changed since it was recorded has its lists read, too. Raises ImageError for another image's file.
        """
        try:
            block = inspect(request.squash)
        except (MissingImage, DamagedImage) as error:
            return error.message
        note = sidecar.read(request.squash)
        if note is None:
            note = _note(request, block, "adopted")
            sidecar.write(request.squash, note, replace=False)
        elif not note.fits(block):
            listing = listing_ok(request.squash, self._run)
            if listing is Listing.DAMAGED:
                return "not a whole squash file: its lists cannot be read"
            note = replace(_note(request, block, "adopted"), listing=listing.value)
            sidecar.write(request.squash, note)
        elif note.uri != request.uri:
            raise ImageError(
                f"this squash file is of {note.reference}, and {request.reference} would have the same name",
                where=str(request.squash),
                hint="spell one of the two images another way (registry#…, digest), or move the file away",
            )
        else:
            return _record(request, note, "hit", self._clock() - began, facts)
        return _record(request, note, "adopted", self._clock() - began, facts)

    def _have(self, request: ImageRequest, began: float) -> ImageRecord:
        _check_directory(request)
        lock = self._lock(
            request.squash.with_name(f".{request.squash.name}.owner"),
            what=f"import of {request.reference}",
            wait=request.lock_wait,
            flock_path=request.flock_path,
            on_wait=lambda owner: self._say(f"waiting for {request.squash.name}: {owner}"),
            clock=self._clock,
            sleep=self._sleep,
        )
        with lock as held:
            facts = [self._said(fact) for fact in held.facts]
            if held.owner:
                facts.append(self._said(f"no lock in {request.lock_wait:g} s, going on without it: {held.owner}"))
            elif not held.acquired:
                facts.append(self._said("no lock can be had, going on without it"))
            found = self._look(request, began, facts)
            if isinstance(found, ImageRecord):
                return found
            self._say(f"importing {request.reference} to {request.squash}: {found}")
            return self._import(request, began, facts, lock)

    def _said(self, fact: str) -> str:
        self._say(fact)
        return fact

    def _import(self, request: ImageRequest, began: float, facts: list[str], lock: Lock) -> ImageRecord:
        where = request.where or str(request.squash)
        started = self._clock()
        temporary = temporary_name(request.squash)
        with private_directory(request.temp_directory) as (private, own):
            for directory in (request.squash.parent, private):
                check_space(directory, request.space, where)
            environment = {**os.environ, **own, **request.enroot_environment}
            version = self._enroot.version(environment)
            digest = Reference.parse(request.uri).digest or self._enroot.digest(request.uri, environment)
            try:
                warnings = self._enroot.fetch(
                    request.uri, temporary, environment=environment, timeout=request.import_timeout, where=where
                )
                facts += [self._said(warning) for warning in warnings]
                block, listing = self._verify(temporary, where)
                if lock.lost:
                    facts.append(self._said("the lock was taken over during the import; publishing all the same"))
                ours = publish_new(temporary, request.squash, whole=self._whole)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        if not ours:
            facts.append(self._said("another process published it first; ours was dropped"))
            found = self._look(request, began, facts)
            if isinstance(found, str):
                raise ImageError(f"another process replaced it: {found}", where=where, hint="run again")
            return found
        note = replace(
            _note(request, block, "imported"),
            listing=listing.value,
            enroot_version=version,
            digest=digest,
            seconds=round(self._clock() - started, 3),
        )
        if error := sidecar.write(request.squash, note):
            facts.append(self._said(f"no record could be written beside it: {error.strerror}"))
        return _record(request, note, "imported", self._clock() - began, facts)

    def _verify(self, temporary: Path, where: str) -> tuple[Superblock, Listing]:
        """What enroot left must be whole before it gets its name. Raises ImageError."""
        try:
            block = inspect(temporary)
        except (MissingImage, DamagedImage) as error:
            raise ImageError(
                f"enroot import ended well, and left no whole squash file: {error.message}",
                where=where,
                hint="look at the free space and at the log of the file system, then run again",
            ) from None
        listing = listing_ok(temporary, self._run)
        if listing is Listing.DAMAGED:
            raise ImageError(
                "enroot import ended well, and the squash file's lists cannot be read",
                where=where,
                hint="look at the log of the file system, then run again",
            )
        temporary.chmod(temporary.stat().st_mode | 0o444)  # enroot works under umask 077
        return block, listing

    def _whole(self, path: Path) -> bool:
        try:
            inspect(path)
        except (MissingImage, DamagedImage):
            return False
        return listing_ok(path, self._run) is not Listing.DAMAGED


def _note(request: ImageRequest, block: Superblock, how: str) -> Sidecar:
    return Sidecar(
        reference=request.reference,
        uri=request.uri,
        how=how,
        size=block.size,
        mtime_ns=block.mtime_ns,
        superblock_time=block.created,
    )


def _record(request: ImageRequest, note: Sidecar, how: How, seconds: float, facts: Sequence[str]) -> ImageRecord:
    return ImageRecord(
        reference=request.reference,
        uri=request.uri,
        squash=request.squash,
        how=how,
        size=note.size,
        created=note.superblock_time,
        seconds=seconds,
        digest=note.digest,
        enroot_version=note.enroot_version,
        listing=note.listing,
        facts=tuple(facts),
    )


def _check_directory(request: ImageRequest) -> None:
    """Make a file in the image directory, since access(2) knows nothing of root-squash. Raises OSError."""
    probe = temporary_name(request.squash)
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    probe.unlink()


def _storage_error(error: OSError, request: ImageRequest) -> ImageError:
    """What the file system refused, and what to do."""
    place = Path(error.filename or request.squash.parent)
    if place.name.endswith(TEMPORARY_SUFFIX):
        place = place.parent
    hints = {
        errno.ENOENT: "create the directory, or correct images.directory in the runner file",
        errno.ENOTDIR: "correct images.directory in the runner file: a part of it is a file",
        errno.EACCES: "make the directory writable for the user who imports",
        errno.EPERM: "make the directory writable for the user who imports",
        errno.EROFS: "import on a host that may write there (images.import_on in the runner file)",
        errno.ENOSPC: "free space there",
        errno.EDQUOT: "free space there, or have the quota raised",
    }
    return ImageError(
        f"cannot import {request.reference}: {place}: {error.strerror}",
        where=request.where or str(request.squash),
        hint=hints.get(error.errno or 0, "try again; look at the log of the file system"),
    )
