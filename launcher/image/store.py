"""Getting an image into place: a whole file is found in a fraction of a millisecond; else it is imported once.

Readers of the final name (pyxis, srtctl, the bash launchers, running jobs) take no lock. So an import writes to a
temporary name in the same directory. The file is checked there, and renamed when it is whole; a whole file is never
replaced or removed. The lock only keeps two processes from doing the same work (launcher/core/lease.py).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ImageError
from launcher.core.lease import Lock
from launcher.core.process import CommandRunner
from launcher.core.publish import (
    TEMPORARY_SUFFIX,
    dead_temporaries,
    fsync,
    publish_new,
    require_writable,
    temporary_name,
)
from launcher.core.rights import cannot_remove, make_directories, os_error_hint
from launcher.core.waiting import start_in_thread, wait_with_progress
from launcher.image.enroot import Enroot, ImportPolicy, directory_variables
from launcher.image.reference import PlannedImage, Reference, refreshed_name
from launcher.image.squash import (
    DamagedImage,
    MissingImage,
    PlacedImage,
    Sidecar,
    Superblock,
    check_lists,
    check_recorded_hash,
    file_hash,
    inspect,
    record_use,
)

if TYPE_CHECKING:  # urllib is loaded only for an import
    from launcher.image.registry import Manifest, Registry

TAG_TIMEOUT = 2.0
"""Seconds to wait for the registry's answer about a tag, where the answer changes nothing."""

NFS_VISIBLE_AFTER = 60
"""Seconds after which an NFS client that missed a file sees it, when another host made it meanwhile (nfs(5): acdirmax).
"""

_FINAL_RATIO, _TEMPORARY_RATIO = 0.5, 2.0
"""Bytes per downloaded byte that an import needs at least. Seen with zstd-3: the squash file is as large as the layers
or somewhat smaller; the temporaries hold the layers compressed, and also unpacked, which is two to three times more.
"""

_HINTS = {
    errno.ENOENT: "create the directory, or correct images.directory in the runner file",
    errno.ENOTDIR: "correct images.directory in the runner file: a part of it is a file",
    errno.EROFS: "import on a host that may write there (images.import-on in the runner file)",
}


def ensure_image(
    image: PlannedImage,
    policy: ImportPolicy,
    environment: Mapping[str, str],
    *,
    run: CommandRunner,
    log: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    mark: Callable[[Path], None] = lambda squash: None,
) -> PlacedImage:
    """Ensure that the image is there as a whole squash file.

    ``run`` starts programs, in ``environment``. ``log`` gets one line at a time. ``sleep`` may raise to end a wait.
    ``mark`` is called with each squash file before we look for it. Raises ImageError with the image's line.
    """
    if policy.make_directory:
        image.squash_path.parent.mkdir(parents=True, exist_ok=True)
    enroot = policy.enroot_for(image, Enroot(environment, run, log, sleep))
    registry = None
    if policy.may_query_registry(image.uri):
        from launcher.image.registry import Registry  # urllib is loaded only for an import

        reference, settings = Reference.parse(image.uri), {**environment, **image.environment}
        registry = Registry(reference, settings, image.architecture, log=log, sleep=sleep)
    record = Placement(image, enroot, registry, mark).ensure()
    digest = f", {record.sidecar.digest}" if record.sidecar.digest else ""
    size = f"{record.sidecar.size / 1e6:.1f} MB"
    log(f"image {image.reference}: {record.how} in {record.seconds:.3f} s ({size}{digest})")
    return record


@dataclass
class Placement:
    """Puts one image in place, by ``enroot``. For one use.

    Without a ``registry`` no image is looked up, and no moved tag is noticed. ``mark`` is called with each path before
    we look for it. ``lock`` is the class of lock. ``notes`` becomes `PlacedImage.notes`.
    """

    image: PlannedImage
    enroot: Enroot
    registry: Registry | None
    mark: Callable[[Path], None]
    lock: type[Lock] = Lock
    notes: list[str] = field(default_factory=list)

    def ensure(self) -> PlacedImage:
        """Ensure that the image is at ``image.squash``, whole; with ``moved_tag: refresh`` perhaps beside it.

        A whole file costs a stat, a read of 96 bytes and the record beside it: no lock and no process. The registry is
        asked what its tag names now, which takes at most `TAG_TIMEOUT` seconds where ``image.moved_tag`` is ``keep``.
        Any other file is imported under the lock, or without a lock if none can be had. Raises ImageError.
        """
        began = time.monotonic()
        try:
            record = self._ensure_file()
            if self.registry is not None and record.how != "imported":
                record = self._follow_tag(record, self.registry)
        except ImageError as error:
            error.where = error.where or self.image.location()
            raise
        return replace(record, seconds=time.monotonic() - began, notes=tuple(self.notes))

    def _note(self, note: str) -> None:
        self.notes.append(note)
        self.enroot.log(note)

    def _follow_tag(self, record: PlacedImage, registry: Registry) -> PlacedImage:
        """Ask which image the tag names now; if it is another one, do what ``image.moved_tag`` says."""
        rule, timeout = self.image.moved_tag, math.inf
        if rule == "keep":  # the answer changes nothing, so we do not wait for it long
            timeout = TAG_TIMEOUT
            registry = replace(registry, log=lambda message: None, timeout=timeout, attempts=1)
        try:
            query = partial(registry.check_tag, record.squash, record.sidecar)
            fact, moved_to = wait_with_progress(query, timeout, lambda seconds: None)
        except TimeoutError:
            fact, moved_to = f"the registry did not say within {TAG_TIMEOUT:g} s what the tag names now", None
        if moved_to and rule == "fail":
            hint = f"name the digest in place of the tag, or set images.moved-tag to keep or refresh; {self.image.uri}"
            raise ImageError(fact, hint=hint)
        if fact:
            self._note(f"{fact}; it is kept (images.moved-tag)" if moved_to and rule == "keep" else fact)
        if moved_to and rule == "refresh":
            self.image = replace(self.image, squash=str(refreshed_name(record.squash, moved_to)))
            return self._ensure_file()
        return record

    def _ensure_file(self) -> PlacedImage:
        """Ensure that a whole file is at ``image.squash``, whatever its tag names now."""
        image, squash = self.image, self.image.squash_path
        self.mark(squash)
        try:
            record, problem = self._find_or_adopt()
            if record is None:
                if os.path.lexists(squash) and (owned_by := cannot_remove(squash)):
                    raise ImageError(f"it cannot be replaced: {problem}", where=str(squash), hint=f"it is {owned_by}")
                require_writable(squash.parent)
                with self._locked() as lock:
                    record, problem = self._find_or_adopt(is_locked=True)
                    if record is None:
                        self.enroot.log(f"importing {image.reference} to {squash}: {problem}")
                        record = self._import(lock)
        except OSError as error:
            path = Path(error.filename or squash.parent)
            if path.name.endswith(TEMPORARY_SUFFIX):
                path = path.parent
            raise ImageError(
                f"cannot import {image.reference}: {path}: {error.strerror}",
                hint=_HINTS.get(error.errno or 0) or os_error_hint(error, path),
            ) from error
        return record

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Lock]:
        image, squash = self.image, self.image.squash_path
        lock = self.lock(
            self._owner,
            what=f"import of {image.reference}",
            wait=image.lock_wait,
            flock_path=Path(image.lock),
            on_wait=lambda owner: self.enroot.log(f"waiting for {squash.name}: {owner}"),
            sleep=self.enroot.sleep,
        )
        with lock as result:
            for fact in result.facts:
                self._note(fact)
            if result.owner:
                self._note(f"no lock in {image.lock_wait:g} s, going on without it: {result.owner}")
            elif not result.acquired:
                self._note("no lock can be acquired, going on without it")
            yield lock

    @property
    def _owner(self) -> Path:
        return self.image.squash_path.with_name(f".{self.image.squash_path.name}.owner")

    def _find_or_adopt(self, is_locked: bool = False) -> tuple[PlacedImage | None, str]:
        """The image if its file is there and whole; else None, and why an import is needed.

        Records a whole file that has no record. If the file changed since it was recorded, its lists are read too.
        Raises ImageError for another image's file.
        """
        image, squash = self.image, self.image.squash_path
        try:
            block = inspect(squash)
            recorded = Sidecar.read(squash)
            if recorded is None and not is_locked and self._owner.exists() and os.access(squash.parent, os.W_OK):
                with self._locked():  # the importer writes the record next; if we adopted now, its digest would be lost
                    return self._find_or_adopt(is_locked=True)
            recorded = recorded or Sidecar.read(squash)  # perhaps it was written and unlocked after the first look
            if recorded is not None and recorded.fits(block):
                self._check_same_image(recorded)
                recorded, fact = check_recorded_hash(squash, recorded, block)
                if fact:
                    self._note(fact)
                record_use(squash)
                return PlacedImage(squash, "hit", recorded), ""
            listing = check_lists(squash, self.enroot.run) if recorded is not None else None
        except (MissingImage, DamagedImage) as error:
            return None, error.message
        adopted = Sidecar(image.reference, image.uri, "adopted", block.size, block.mtime_ns, block.created, listing)
        if recorded is not None:
            before = f"{recorded.digest or recorded.reference}, recorded by {recorded.user} at {recorded.written}"
            self._note(f"{squash.name} is another file than {before}: which image it holds is not known")
        adopted.write(squash, replace=recorded is not None)
        return PlacedImage(squash, "adopted", adopted), ""

    def _check_same_image(self, recorded: Sidecar) -> None:
        """Raise ImageError when the record of the file names another image than the requested one."""
        image, squash = self.image, self.image.squash_path
        digest = Reference.parse(image.uri).digest
        if recorded.uri != image.uri:
            raise ImageError(
                f"this squash file is of {recorded.reference}, and {image.reference} would have the same name",
                where=str(squash),
                hint="spell one of the two images another way (registry#…, digest), or move the file away",
            )
        if digest and recorded.digest and digest not in (recorded.digest, recorded.index):
            raise ImageError(
                f"this squash file is of {recorded.digest} by its record, and {digest} is requested",
                where=str(squash),
                hint="move the file away: it is imported again then, and running jobs keep what they have",
            )

    def _import(self, lock: Lock) -> PlacedImage:
        """Import the image to a temporary name, check it, publish it unless another process did, and record it."""
        image, squash, began = self.image, self.image.squash_path, time.monotonic()
        manifest, reference = self._look_up(), Reference.parse(image.uri)
        private = _private_directory(image.temporary, self.enroot.is_on_node)
        with contextlib.ExitStack() as files, private as (directory, variables):
            _check_space(squash.parent, directory, manifest.size if manifest else 0)
            enroot = replace(self.enroot, environment={**self.enroot.environment, **variables, **image.environment})
            if manifest is not None:  # import by digest, because a tag could move meanwhile
                digest: str | None = manifest.digest
                uri = replace(reference, digest=digest).uri
            else:
                digest, uri = reference.digest or enroot.digest(image.uri), image.uri
            temporary, version = enroot.import_image(uri, squash, image.import_timeout, files, self._note)
            block, listing, content_hash = self._verify(temporary)
            if lock.lost:
                self._note("the lock was taken over during the import; publishing all the same")
            is_ours = publish_new(temporary, squash, whole=self._is_whole)
        if not is_ours:
            self._note("another process published it first; ours was dropped")
            record, problem = self._find_or_adopt(is_locked=True)
            if record is None:
                raise ImageError(f"another process replaced it: {problem}", hint="run again")
            return record
        sidecar = Sidecar(
            *(image.reference, image.uri, "imported", block.size, block.mtime_ns, block.created, listing, version),
            digest=digest,
            index=manifest.index if manifest else None,
            architecture=manifest.architecture if manifest else None,
            hash=content_hash,
            options=enroot.environment.get("ENROOT_SQUASH_OPTIONS"),
            seconds=round(time.monotonic() - began, 3),
            changed_ns=squash.stat().st_ctime_ns,  # publishing changed it
        )
        if error := sidecar.write(squash):
            self._note(f"no record could be written beside it: {error.strerror}")
        return PlacedImage(squash, "imported", sidecar)

    def _look_up(self) -> Manifest | None:
        """The image's manifest; None, and a note, when the registry does not answer: enroot may still reach it.

        Raises ImageError when the registry refuses the image.
        """
        if self.registry is None:
            return None
        from launcher.image.registry import Unreachable

        try:
            return self.registry.manifest()
        except Unreachable as error:
            self._note(f"not looked up before the import: {error.message}")
            return None

    def _verify(self, temporary: Path) -> tuple[Superblock, str, str]:
        """Check that the imported file is whole, and sync it to storage. Returns superblock, listing and hash.

        Raises ImageError, OSError.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

        attempts = Retrying(  # a file that was written on a node may become visible here only later
            retry=retry_if_exception_type((MissingImage, DamagedImage)),
            stop=stop_after_attempt(NFS_VISIBLE_AFTER // 2 if self.enroot.is_on_node else 1),
            wait=wait_fixed(2.0),
            sleep=self.enroot.sleep,
            reraise=True,
        )
        try:
            block = attempts(inspect, temporary)
            hashed, stored = start_in_thread(lambda: file_hash(temporary)), start_in_thread(lambda: fsync(temporary))
            listing = check_lists(temporary, self.enroot.run)
        except (MissingImage, DamagedImage) as error:
            raise ImageError(
                f"enroot import ended well, and left no whole squash file: {error.message}",
                hint="look at the free space and at the log of the file system, then run again",
            ) from None
        stored.result()
        return block, listing, hashed.result()

    def _is_whole(self, path: Path) -> bool:
        try:
            inspect(path)
            check_lists(path, self.enroot.run)
        except (MissingImage, DamagedImage):
            return False
        return True


@contextlib.contextmanager
def _private_directory(parent: str | None, is_on_node: bool) -> Iterator[tuple[Path | None, dict[str, str]]]:
    """Within the block: a directory for enroot's temporaries below ``parent`` that no other import shares.

    Gives it and the variables that make enroot use it; on a node, which makes its own, None and {}. Raises OSError.
    """
    if is_on_node:
        yield None, {}
        return
    # Otherwise imports share one cache, where the leftovers of a killed import (1.9 GB each, enroot 4.1.2) cannot be
    # distinguished from what a live one needs. `dead_temporaries` reads host and pid from the name.
    private = temporary_name(Path(parent or tempfile.gettempdir(), "enroot"))
    make_directories(private.parent)
    private.mkdir(mode=0o700)
    try:
        variables = directory_variables(private)
        Path(variables["TMPDIR"]).mkdir()
        yield private, variables
    finally:
        for directory, names, _ in os.walk(private):  # layers contain directories that even their owner cannot write
            for path in (Path(directory, name) for name in names):
                with contextlib.suppress(OSError):
                    if not path.is_symlink():
                        path.chmod(0o700)
        shutil.rmtree(private, ignore_errors=True)


def _check_space(final: Path, temporary: Path | None, size: int) -> None:
    """Refuse an import that would certainly run out of space in the directories ``final`` and ``temporary``.

    ``size`` is the number of bytes to download, 0 when it is not known; ``temporary`` is None when it is on another
    host. Raises ImageError, or OSError from statvfs.
    """
    ratios = {final: _FINAL_RATIO}
    if temporary is not None:
        shared = final.stat().st_dev == temporary.stat().st_dev
        ratios |= {final: _FINAL_RATIO + _TEMPORARY_RATIO} if shared else {temporary: _TEMPORARY_RATIO}
    for directory, ratio in ratios.items():
        status = os.statvfs(directory)
        free, needed = status.f_bavail * status.f_frsize, ratio * size
        is_out_of_inodes = status.f_files and not status.f_favail  # btrfs counts none
        is_unknown = not status.f_blocks  # some FUSE file systems do not tell
        if is_unknown or (free >= max(needed, 1) and not is_out_of_inodes):
            continue
        what = f"{'no inode' if is_out_of_inodes else _gib(free)} free in {directory}"
        if size:
            what += f", and an image of {_gib(size)} compressed needs {_gib(needed)} there at the least"
        remains = ", ".join(path.name for path in dead_temporaries(directory))
        hint = "free space there, or name another directory (images.directory, images.temporary)"
        hint += f"; killed imports left {remains}" if remains else ""
        raise ImageError(f"not enough space for an import: {what}", hint=hint)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
