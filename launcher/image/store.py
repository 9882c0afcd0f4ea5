"""Getting an image into place: found whole in a fraction of a millisecond, or imported, checked and published once.

Readers of the final name (pyxis, srtctl, the bash launchers, jobs that run) take no lock. So an import writes under a
name of its own in the same directory, is checked there, and is renamed when it is whole; a whole file is never replaced
or removed. The lock in front of it only keeps two from doing the same work (launcher/core/lease.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.core.errors import ImageError
from launcher.core.lease import Lock, LockResult
from launcher.core.process import CommandRunner, run
from launcher.core.publish import publish_new, temporary_name
from launcher.image.enroot import Enroot
from launcher.image.reference import PlannedImage, Reference
from launcher.image.scratch import check_directory, check_space, private_directory, storage_error
from launcher.image.squash import (
    DamagedImage,
    Listing,
    MissingImage,
    Sidecar,
    Superblock,
    check_lists,
    file_hash,
    inspect,
    note_use,
)
from launcher.image.tag_check import TagMoved, check_tag

if TYPE_CHECKING:  # urllib is for those who import
    from launcher.image.registry import Manifest, Registry

TAG_PATIENCE = 2.0
"""Seconds that a registry has to say what a tag names now, where that changes nothing."""

NFS_VISIBLE_AFTER = 60
"""Seconds after which an NFS client shows a file that another host made, at a name that was looked for before (nfs(5):
acdirmax)."""


@dataclass(frozen=True)
class ImageRecord:
    """What was done for an image at ``squash``, and what is known of the file (``sidecar``).

    ``how``: ``hit`` (our record fits the file), ``adopted`` (whole, and made by somebody else), ``imported``.
    ``seconds`` are for all of it, waiting included. ``facts`` are one-line statements of what was not as it should be.
    """

    squash: Path
    how: Literal["hit", "adopted", "imported"]
    sidecar: Sidecar
    seconds: float = 0.0
    facts: tuple[str, ...] = ()


def no_log(message: str) -> None:
    """Say nothing."""


def no_mark(squash: Path) -> None:
    """Leave no mark of use."""


class ImageStore:
    """Has images in place, by an ``enroot``.

    ``run`` starts unsquashfs. ``log`` gets one line at a time, as things happen. Without a ``registry`` nobody is asked
    before an import, and of a tag that moved nothing is known. ``mark`` is told of each path before it is looked for.
    ``lock`` is the class of lock.
    """

    def __init__(
        self,
        enroot: Enroot,
        run: CommandRunner = run,
        *,
        registry: Registry | None = None,
        log: Callable[[str], None] = no_log,
        mark: Callable[[Path], None] = no_mark,
        lock: type[Lock] = Lock,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._enroot, self._run, self._registry = enroot, run, registry
        self._log, self._mark, self._lock, self._sleep = log, mark, lock, sleep

    def ensure(self, image: PlannedImage) -> ImageRecord:
        """Have the image at ``image.squash``, whole; with ``moved_tag: refresh`` perhaps beside it.

        A whole file costs a stat, a read of 96 bytes and the record beside it: no lock and no process. What its tag
        names now is asked of the registry, at the cost of `TAG_PATIENCE` seconds at most where ``image.moved_tag`` is
        ``keep``. Otherwise it is imported under the lock, or without it when that is not to be had. Raises ImageError.
        """
        found = self._ensure_file(image)
        if self._registry is None or found.how == "imported":
            return found
        if image.moved_tag == "keep":
            facts = self._check_tag_quickly(image, found, self._registry)
            return replace(found, facts=(*found.facts, *map(self._logged, facts)))
        where = image.error_location
        after = check_tag(found.squash, found.sidecar, self._registry, image.architecture, where=where)
        if not isinstance(after, TagMoved):
            return replace(found, facts=(*found.facts, *map(self._logged, after)))
        if image.moved_tag == "fail":
            hint = f"name the digest in place of the tag, or set images.moved-tag to keep or refresh; {image.uri}"
            raise ImageError(after.what, where=where, hint=hint)
        self._log(after.what)
        newer = self._ensure_file(replace(image, squash=str(after.squash)))
        return replace(newer, facts=(after.what, *newer.facts))

    def _check_tag_quickly(self, image: PlannedImage, found: ImageRecord, registry: Registry) -> tuple[str, ...]:
        """What the tag of an image that is kept names now, if the registry says so at once."""
        said: list[TagMoved | tuple[str, ...]] = []

        def ask() -> None:
            once = registry.once(TAG_PATIENCE)
            said.append(check_tag(found.squash, found.sidecar, once, image.architecture, where=image.error_location))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(TAG_PATIENCE)
        if not said:
            return (f"the registry did not say within {TAG_PATIENCE:g} s what the tag names now",)
        after = said[0]
        return (f"{after.what}; it is kept (images.moved-tag)",) if isinstance(after, TagMoved) else after

    def _ensure_file(self, image: PlannedImage) -> ImageRecord:
        """Have a whole file at ``image.squash``, whatever its tag names now."""
        began = time.monotonic()
        squash = image.squash_path
        self._mark(squash)
        facts: list[str] = []
        try:
            found = self._find(image)
            if isinstance(found, str):
                check_directory(squash)
                lock = self._lock(
                    squash.with_name(f".{squash.name}.owner"),
                    what=f"import of {image.reference}",
                    wait=image.lock_wait,
                    flock_path=Path(image.lock),
                    on_wait=lambda owner: self._log(f"waiting for {squash.name}: {owner}"),
                    sleep=self._sleep,
                )
                with lock as held:
                    facts += map(self._logged, _facts_of(held, image.lock_wait))
                    found = self._find(image)
                    if isinstance(found, str):
                        self._log(f"importing {image.reference} to {squash}: {found}")
                        found = self._import(image, lock)
        except OSError as error:
            raise storage_error(error, image) from error
        return replace(found, seconds=time.monotonic() - began, facts=(*facts, *found.facts))

    def _find(self, image: PlannedImage) -> ImageRecord | str:
        """The image if it is there and whole, else why an import is needed.

        A file that changed since it was recorded has its lists read, too. Raises ImageError for another image's file.
        """
        squash = image.squash_path
        try:
            block = inspect(squash)
        except (MissingImage, DamagedImage) as error:
            return error.message
        known = Sidecar.read(squash)
        if known is not None and known.fits(block):
            if known.uri != image.uri:
                raise ImageError(
                    f"this squash file is of {known.reference}, and {image.reference} would have the same name",
                    where=str(squash),
                    hint="spell one of the two images another way (registry#…, digest), or move the file away",
                )
            note_use(squash)
            return ImageRecord(squash, "hit", known)
        adopted = Sidecar.of(block, image.reference, image.uri, "adopted")
        if known is None:
            adopted.write(squash, replace=False)
        else:
            listing = check_lists(squash, self._run)
            if listing is Listing.DAMAGED:
                return "not a whole squash file: its lists cannot be read"
            adopted = replace(adopted, listing=listing.value)
            adopted.write(squash)
        return ImageRecord(squash, "adopted", adopted)

    def _logged(self, fact: str) -> str:
        self._log(fact)
        return fact

    def _import(self, image: PlannedImage, lock: Lock) -> ImageRecord:
        """Import the image under a name of our own, check it, publish it unless somebody else did, and record it."""
        squash, where, started = image.squash_path, image.error_location, time.monotonic()
        facts: list[str] = []
        manifest = self._manifest(image, facts)
        temporary = temporary_name(squash)
        with self._temporaries(image) as (private, own):
            check_space(squash.parent, private, manifest.size if manifest else None, where)
            environment = {**self._enroot.environment, **own, **image.environment}
            version = self._enroot.version(environment)
            uri, digest = self._source(image, manifest, environment)
            try:
                warnings, said_version = self._enroot.fetch(
                    uri, temporary, environment=environment, timeout=image.import_timeout, where=where
                )
                facts += map(self._logged, warnings)
                block, listing = self._verify(temporary, where)
                content = file_hash(temporary)
                if lock.lost:
                    facts.append(self._logged("the lock was taken over during the import; publishing all the same"))
                ours = publish_new(temporary, squash, whole=self._is_whole)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        if not ours:
            facts.append(self._logged("another process published it first; ours was dropped"))
            found = self._find(image)
            if isinstance(found, str):
                raise ImageError(f"another process replaced it: {found}", where=where, hint="run again")
            return replace(found, facts=(*facts, *found.facts))
        note = replace(
            Sidecar.of(block, image.reference, image.uri, "imported"),
            listing=listing.value,
            enroot_version=version or said_version,
            digest=digest,
            index=manifest.index if manifest else None,
            architecture=manifest.architecture if manifest else None,
            hash=content,
            options=environment.get("ENROOT_SQUASH_OPTIONS"),
            seconds=round(time.monotonic() - started, 3),
        )
        if error := note.write(squash):
            facts.append(self._logged(f"no record could be written beside it: {error.strerror}"))
        return ImageRecord(squash, "imported", note, facts=tuple(facts))

    def _manifest(self, image: PlannedImage, facts: list[str]) -> Manifest | None:
        """Look the image up. None, and a fact, when the registry says nothing: enroot may still reach it.

        Raises ImageError for what will not pass.
        """
        if self._registry is None:
            return None
        from launcher.image.registry import Unreachable

        try:
            return self._registry.manifest(Reference.parse(image.uri), image.architecture, where=image.error_location)
        except Unreachable as error:
            facts.append(self._logged(f"not looked up before the import: {error.message}"))
            return None

    def _temporaries(self, image: PlannedImage) -> AbstractContextManager[tuple[Path | None, Mapping[str, str]]]:
        """A directory for enroot's temporaries on this host, and what makes enroot use it; on a node it has its own."""
        return nullcontext((None, {})) if self._enroot.is_on_node else private_directory(image.temporary)

    def _source(
        self, image: PlannedImage, manifest: Manifest | None, environment: dict[str, str]
    ) -> tuple[str, str | None]:
        """What to import, and its digest: by digest where the registry told it, so that a tag cannot move meanwhile."""
        reference = Reference.parse(image.uri)
        if manifest is not None:
            return replace(reference, tag=None, digest=manifest.digest).uri, manifest.digest
        return image.uri, reference.digest or self._enroot.digest(image.uri, environment)

    def _verify(self, temporary: Path, where: str) -> tuple[Superblock, Listing]:
        """What enroot left must be whole before it gets its name. Raises ImageError."""
        block = self._superblock_of_import(temporary, where)
        listing = check_lists(temporary, self._run)
        if listing is Listing.DAMAGED:
            raise ImageError(
                "enroot import ended well, and the squash file's lists cannot be read",
                where=where,
                hint="look at the log of the file system, then run again",
            )
        temporary.chmod(temporary.stat().st_mode | 0o444)  # enroot works under umask 077
        return block, listing

    def _superblock_of_import(self, temporary: Path, where: str) -> Superblock:
        """The superblock of what enroot left, on a node perhaps: then it may take a while to be seen from here."""
        for left in reversed(range(NFS_VISIBLE_AFTER // 2 if self._enroot.is_on_node else 1)):
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

    def _is_whole(self, path: Path) -> bool:
        try:
            inspect(path)
        except (MissingImage, DamagedImage):
            return False
        return check_lists(path, self._run) is not Listing.DAMAGED


def _facts_of(held: LockResult, wait: float) -> list[str]:
    """What is to be said of how a lock was had, or was not."""
    if held.owner:
        return [*held.facts, f"no lock in {wait:g} s, going on without it: {held.owner}"]
    return [*held.facts] if held.acquired else [*held.facts, "no lock can be had, going on without it"]
