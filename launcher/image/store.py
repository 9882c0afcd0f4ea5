"""Getting an image into place: found whole in a fraction of a millisecond, or imported, checked and published once.

Readers of the final name (pyxis, srtctl, the bash launchers, jobs that run) take no lock. So an import writes under a
name of its own in the same directory, is checked there, and is renamed when it is whole; a whole file is never replaced
or removed. The lock in front of it only keeps two from doing the same work (launcher/core/lease.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.core.errors import ImageError
from launcher.core.lease import Lock
from launcher.core.process import CommandRunner, run
from launcher.core.publish import TEMPORARY_SUFFIX, dead_temporaries, publish_new, temporary_name
from launcher.image.enroot import Enroot
from launcher.image.reference import PlannedImage, Reference, refreshed_name
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

if TYPE_CHECKING:  # urllib is for those who import
    from launcher.image.registry import Manifest, Registry, TagAnswer

TAG_PATIENCE = 2.0
"""Seconds that a registry has to say what a tag names now, where that changes nothing."""

NFS_VISIBLE_AFTER = 60
"""Seconds after which an NFS client shows a file that another host made, at a name that was looked for before (nfs(5):
acdirmax)."""

_LEAST_FINAL, _LEAST_TEMPORARY = 0.5, 2.0
"""Bytes per downloaded byte that an import is sure to need. Seen with zstd-3: the squash file is as large as the layers
or somewhat smaller; the temporaries hold the layers again compressed, and unpacked, which is twice to three times more.
"""

_HINTS = {
    errno.ENOENT: "create the directory, or correct images.directory in the runner file",
    errno.ENOTDIR: "correct images.directory in the runner file: a part of it is a file",
    errno.EACCES: "make the directory writable for the user who imports",
    errno.EPERM: "make the directory writable for the user who imports",
    errno.EROFS: "import on a host that may write there (images.import-on in the runner file)",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
}


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
    """Say nothing. It is a function with a name because a store can be given to another process."""


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
        tag = self._ask_tag(image, found, self._registry)
        if tag is None:
            facts = [f"the registry did not say within {TAG_PATIENCE:g} s what the tag names now"]
        elif tag.moved_to is None:
            facts = [tag.fact] if tag.fact else []
        elif image.moved_tag == "keep":
            facts = [f"{tag.fact}; it is kept (images.moved-tag)"]
        elif image.moved_tag == "fail":
            hint = f"name the digest in place of the tag, or set images.moved-tag to keep or refresh; {image.uri}"
            raise ImageError(tag.fact, where=image.error_location, hint=hint)
        else:
            self._log(tag.fact)
            newer = self._ensure_file(replace(image, squash=str(refreshed_name(found.squash, tag.moved_to))))
            return replace(newer, facts=(tag.fact, *newer.facts))
        return replace(found, facts=(*found.facts, *map(self._logged, facts)))

    def _ask_tag(self, image: PlannedImage, found: ImageRecord, registry: Registry) -> TagAnswer | None:
        """What the image's tag names now; None when it is kept anyway and the registry does not say so at once."""
        asked = found.squash, found.sidecar, image.architecture
        if image.moved_tag != "keep":
            return registry.check_tag(*asked, where=image.error_location)
        said: list[TagAnswer] = []

        def ask() -> None:
            said.append(registry.once(TAG_PATIENCE).check_tag(*asked, where=image.error_location))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(TAG_PATIENCE)
        return said[0] if said else None

    def _ensure_file(self, image: PlannedImage) -> ImageRecord:
        """Have a whole file at ``image.squash``, whatever its tag names now."""
        began = time.monotonic()
        squash = image.squash_path
        self._mark(squash)
        facts: list[str] = []
        try:
            found = self._find(image)
            if isinstance(found, str):
                # access(2) knows nothing of root-squash, so a file is made where the image will be.
                probe = temporary_name(squash)
                os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
                probe.unlink()
                lock = self._lock(
                    squash.with_name(f".{squash.name}.owner"),
                    what=f"import of {image.reference}",
                    wait=image.lock_wait,
                    flock_path=Path(image.lock),
                    on_wait=lambda owner: self._log(f"waiting for {squash.name}: {owner}"),
                    sleep=self._sleep,
                )
                with lock as held:
                    facts += map(self._logged, held.facts)
                    if held.owner:
                        facts.append(
                            self._logged(f"no lock in {image.lock_wait:g} s, going on without it: {held.owner}")
                        )
                    elif not held.acquired:
                        facts.append(self._logged("no lock can be had, going on without it"))
                    found = self._find(image)
                    if isinstance(found, str):
                        self._log(f"importing {image.reference} to {squash}: {found}")
                        found = self._import(image, lock)
        except OSError as error:
            place = Path(error.filename or squash.parent)
            if place.name.endswith(TEMPORARY_SUFFIX):
                place = place.parent
            raise ImageError(
                f"cannot import {image.reference}: {place}: {error.strerror}",
                where=image.error_location,
                hint=_HINTS.get(error.errno or 0, "try again; look at the log of the file system"),
            ) from error
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
        if known is not None:
            listing = check_lists(squash, self._run)
            if listing is Listing.DAMAGED:
                return "not a whole squash file: its lists cannot be read"
            adopted = replace(adopted, listing=listing.value)
        adopted.write(squash, replace=known is not None)
        return ImageRecord(squash, "adopted", adopted)

    def _logged(self, fact: str) -> str:
        self._log(fact)
        return fact

    def _import(self, image: PlannedImage, lock: Lock) -> ImageRecord:
        """Import the image under a name of our own, check it, publish it unless somebody else did, and record it."""
        squash, where, started = image.squash_path, image.error_location, time.monotonic()
        facts: list[str] = []
        manifest = self._manifest(image, facts)
        with _private_directory(image.temporary, self._enroot.is_on_node) as (private, own):
            _check_space(squash.parent, private, manifest.size if manifest else None, where)
            environment = {**self._enroot.environment, **own, **image.environment}
            version = self._enroot.version(environment)
            uri, reference = image.uri, Reference.parse(image.uri)
            if manifest is not None:  # by digest, so that a tag cannot move meanwhile
                digest: str | None = manifest.digest
                uri = replace(reference, tag=None, digest=digest).uri
            else:
                digest = reference.digest or self._enroot.digest(uri, environment)
            temporary, warnings, said_version = self._enroot.fetch(
                uri, squash, environment=environment, timeout=image.import_timeout, where=where
            )
            try:
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

    def _verify(self, temporary: Path, where: str) -> tuple[Superblock, Listing]:
        """What enroot left must be whole before it gets its name. Raises ImageError."""
        # What enroot left on a node may take a while to be seen from here.
        for left in reversed(range(NFS_VISIBLE_AFTER // 2 if self._enroot.is_on_node else 1)):
            try:
                block = inspect(temporary)
                break
            except (MissingImage, DamagedImage) as error:
                if not left:
                    raise ImageError(
                        f"enroot import ended well, and left no whole squash file: {error.message}",
                        where=where,
                        hint="look at the free space and at the log of the file system, then run again",
                    ) from None
            self._sleep(2.0)
        listing = check_lists(temporary, self._run)
        if listing is Listing.DAMAGED:
            raise ImageError(
                "enroot import ended well, and the squash file's lists cannot be read",
                where=where,
                hint="look at the log of the file system, then run again",
            )
        temporary.chmod(temporary.stat().st_mode | 0o444)  # enroot works under umask 077
        return block, listing

    def _is_whole(self, path: Path) -> bool:
        try:
            inspect(path)
        except (MissingImage, DamagedImage):
            return False
        return check_lists(path, self._run) is not Listing.DAMAGED


@contextlib.contextmanager
def _private_directory(parent: str | None, on_node: bool) -> Iterator[tuple[Path | None, dict[str, str]]]:
    """A directory for enroot's temporaries that no other import shares, below ``parent``; gone afterwards.

    Gives it and the environment that makes enroot use it; neither on a node, which has its own. Raises OSError.
    """
    if on_node:
        yield None, {}
        return
    # Without it imports meet in one cache, and what a killed one leaves (1.9 GB each time, enroot 4.1.2) cannot be told
    # from what a live one needs. The name bears host and pid, by which `dead_temporaries` knows it.
    place = Path(parent or tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    private = temporary_name(place / "enroot")
    private.mkdir(mode=0o700)
    try:
        own = {f"ENROOT_{name}_PATH": private / name.lower() for name in ("TEMP", "RUNTIME", "CACHE", "DATA")}
        for path in own.values():
            path.mkdir(mode=0o700)
        # GNU parallel, which enroot runs, buffers in TMPDIR; its and enroot's messages are read, so in English.
        environment = {**own, "TMPDIR": own["ENROOT_TEMP_PATH"], "LC_ALL": "C"}
        yield private, {name: str(value) for name, value in environment.items()}
    finally:
        for directory, names, _ in os.walk(private):  # in layers are directories that even their owner may not write
            for path in (Path(directory, name) for name in names):
                with contextlib.suppress(OSError):
                    if not path.is_symlink():
                        path.chmod(0o700)
        shutil.rmtree(private, ignore_errors=True)


def _check_space(final: Path, temporary: Path | None, size: int | None, where: str) -> None:
    """Refuse an import that is sure to run out of space in the directories ``final`` and ``temporary``.

    ``size`` is how many bytes are downloaded, None when that is not known; ``temporary`` is None when it is on another
    host. Raises ImageError, or OSError from statvfs.
    """
    wanted = {final: _LEAST_FINAL}
    if temporary is not None:
        shared = final.stat().st_dev == temporary.stat().st_dev
        wanted |= {final: _LEAST_FINAL + _LEAST_TEMPORARY} if shared else {temporary: _LEAST_TEMPORARY}
    for directory, times in wanted.items():
        status = os.statvfs(directory)
        if not status.f_blocks:  # some FUSE file systems do not tell
            continue
        free, least = status.f_bavail * status.f_frsize, times * (size or 0)
        inodes = status.f_favail > 0 or not status.f_files  # btrfs counts none
        if inodes and free >= max(least, 1):
            continue
        what = f"{free / 2**30:.1f} GiB free" if inodes else "no inode free"
        what += f" in {directory}"
        if size:
            need = f"{least / 2**30:.1f} GiB there at the least"
            what += f", and an image of {size / 2**30:.1f} GiB compressed needs {need}"
        left = ", ".join(path.name for path in dead_temporaries(directory))
        raise ImageError(
            f"not enough space for an import: {what}",
            where=where,
            hint="free space there, or name another directory (images.directory, images.temporary)"
            + (f"; killed imports left {left}" if left else ""),
        )
