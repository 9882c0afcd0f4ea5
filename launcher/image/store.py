"""Getting an image into place: found whole in a fraction of a millisecond, or imported, checked and published once.

Readers of the final name (pyxis, srtctl, the bash launchers, jobs that run) take no lock. So an import writes under a
name of its own in the same directory, is checked there, and is renamed when it is whole; a whole file is never replaced
or removed. The lock in front of it only keeps two from doing the same work (launcher/core/lease.py).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ImageError
from launcher.core.lease import Lock
from launcher.core.process import CommandRunner, clean_environment, run
from launcher.core.publish import publish_new, temporary_name
from launcher.image import sidecar
from launcher.image.enroot import Enroot
from launcher.image.reference import Reference
from launcher.image.request import How, ImageRecord, ImageRequest
from launcher.image.scratch import check_directory, check_space, private_directory, storage_error
from launcher.image.sidecar import Sidecar
from launcher.image.squash import DamagedImage, Listing, MissingImage, Superblock, inspect, listing_ok
from launcher.image.tag_check import Moved, before_import, compare, enough_space

if TYPE_CHECKING:  # urllib is for those who import
    from launcher.image.registry import Manifest, Registry

__all__ = ["ImageRecord", "ImageRequest", "ImageStore", "silent"]


def silent(message: str) -> None:
    """Say nothing."""


def unmarked(squash: Path) -> None:
    """Leave no mark of use."""


GLANCE = 2.0
"""Seconds that a registry has to say what a tag names now, where that changes nothing."""

SHOWN = 60
"""Seconds after which an NFS client shows a file that another host made, at a name that was looked for before (nfs(5):
acdirmax)."""


class ImageStore:
    """Has images in place. Everything it does to the world goes through what it is given here.

    ``say`` gets one line at a time, as things happen. ``enroot`` is the command and ``asked`` as `Enroot` has it,
    ``lock`` the class of lock. Without a ``registry`` nobody is asked before an import, and of a tag that moved nothing
    is known. ``mark`` is told of each path before it is looked for.
    """

    def __init__(
        self,
        runner: CommandRunner = run,
        *,
        say: Callable[[str], None] = silent,
        enroot: Sequence[str] = ("enroot",),
        asked: bool = True,
        lock: type[Lock] = Lock,
        registry: Registry | None = None,
        mark: Callable[[Path], None] = unmarked,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run, self._say, self._lock, self._clock, self._sleep = runner, say, lock, clock, sleep
        self._registry, self._mark = registry, mark
        self._shown = 1 if asked else SHOWN // 2
        self._enroot = Enroot(runner, enroot, asked=asked, say=say, clock=clock, sleep=sleep)

    def ensure(self, request: ImageRequest) -> ImageRecord:
        """Have the image at ``request.squash``, whole.

        A whole file costs a stat, a read of 96 bytes and the record beside it: no lock and no process. What its tag
        names now is asked of the registry, at the cost of `GLANCE` seconds at most where ``request.moved_tag`` is
        ``keep``. Otherwise it is imported under the lock, or without it when that is not to be had. Raises ImageError.
        """
        found = self._ensure(request)
        if self._registry is None or found.how == "imported":
            return found
        if request.moved_tag == "keep":
            return self._glance(request, found, self._registry)
        return self._up_to_date(request, found, self._registry)

    def _ensure(self, request: ImageRequest) -> ImageRecord:
        began = self._clock()
        self._mark(request.squash)
        try:
            found = self._look(request, began)
            return found if isinstance(found, ImageRecord) else self._have(request, began)
        except OSError as error:
            raise storage_error(error, request) from error

    def _up_to_date(self, request: ImageRequest, found: ImageRecord, registry: Registry) -> ImageRecord:
        """The image that is there, or the one that the tag names now, under a name of its own."""
        after = compare(request, found.digest, found.index, registry)
        if not isinstance(after, Moved):
            return replace(found, facts=(*found.facts, *map(self._said, after)))
        self._said(after.what)
        newer = self._ensure(replace(request, squash=after.squash))
        return replace(newer, facts=(after.what, *newer.facts))

    def _glance(self, request: ImageRequest, found: ImageRecord, registry: Registry) -> ImageRecord:
        """The image that is there, and what its tag names now, if the registry says so at once."""
        said: list[Moved | tuple[str, ...]] = []
        asking = threading.Thread(
            target=lambda: said.append(compare(request, found.digest, found.index, registry.once(GLANCE))), daemon=True
        )
        asking.start()
        asking.join(GLANCE)
        after = said[0] if said else (f"the registry did not say within {GLANCE:g} s what the tag names now",)
        facts = (f"{after.what}; it is kept (images.moved-tag)",) if isinstance(after, Moved) else after
        return replace(found, facts=(*found.facts, *map(self._said, facts)))

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
            sidecar.touch(request.squash)
            return _record(request, note, "hit", self._clock() - began, facts)
        return _record(request, note, "adopted", self._clock() - began, facts)

    def _have(self, request: ImageRequest, began: float) -> ImageRecord:
        check_directory(request.squash)
        lock = self._lock(
            request.squash.with_name(f".{request.squash.name}.owner"),
            what=f"import of {request.reference}",
            wait=request.lock_wait,
            flock_path=request.flock_path,
            on_wait=lambda owner: self._say(f"waiting for {request.squash.name}: {owner}"),
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
        manifest = before_import(request, self._registry, where, lambda fact: facts.append(self._said(fact)))
        with private_directory(request.temp_directory) as (private, own):
            for directory in (request.squash.parent, private):
                check_space(directory, request.space, where)
            if manifest is not None:
                enough_space(manifest, request.squash.parent, private, where)
            environment = {**clean_environment(os.environ), **own, **request.enroot_environment}
            version = self._enroot.version(environment)
            uri, digest = self._source(request, manifest, environment)
            try:
                fetched = self._enroot.fetch(
                    uri, temporary, environment=environment, timeout=request.import_timeout, where=where
                )
                facts += [self._said(warning) for warning in fetched.warnings]
                block, listing = self._verify(temporary, where)
                content = sidecar.file_hash(temporary)
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
            enroot_version=version or fetched.version,
            digest=digest,
            index=manifest.index if manifest else None,
            architecture=manifest.architecture if manifest else None,
            hash=content,
            options=environment.get("ENROOT_SQUASH_OPTIONS"),
            seconds=round(self._clock() - started, 3),
        )
        if error := sidecar.write(request.squash, note):
            facts.append(self._said(f"no record could be written beside it: {error.strerror}"))
        return _record(request, note, "imported", self._clock() - began, facts)

    def _source(
        self, request: ImageRequest, manifest: Manifest | None, environment: dict[str, str]
    ) -> tuple[str, str | None]:
        """What to import, and its digest: by digest where the registry told it, so that a tag cannot move meanwhile."""
        reference = Reference.parse(request.uri)
        if manifest is not None:
            return replace(reference, tag=None, digest=manifest.digest).uri, manifest.digest
        return request.uri, reference.digest or self._enroot.digest(request.uri, environment)

    def _verify(self, temporary: Path, where: str) -> tuple[Superblock, Listing]:
        """What enroot left must be whole before it gets its name. Raises ImageError."""
        block = self._left(temporary, where)
        listing = listing_ok(temporary, self._run)
        if listing is Listing.DAMAGED:
            raise ImageError(
                "enroot import ended well, and the squash file's lists cannot be read",
                where=where,
                hint="look at the log of the file system, then run again",
            )
        temporary.chmod(temporary.stat().st_mode | 0o444)  # enroot works under umask 077
        return block, listing

    def _left(self, temporary: Path, where: str) -> Superblock:
        """The superblock of what enroot left, on a node perhaps: then it may take a while to be seen from here."""
        for left in reversed(range(self._shown)):
            try:
                return inspect(temporary)
            except (MissingImage, DamagedImage) as error:
                why = error.message
            if left:
                self._sleep(2.0)
        raise ImageError(
            f"enroot import ended well, and left no whole squash file: {why}",
            where=where,
            hint="look at the free space and at the log of the file system, then run again",
        )

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
        index=note.index,
        enroot_version=note.enroot_version,
        listing=note.listing,
        facts=tuple(facts),
    )
