"""Getting an image into place: found whole in a fraction of a millisecond, or imported, checked and published once.

Readers of the final name (pyxis, srtctl, the bash launchers, jobs that run) take no lock. So an import writes under a
name of its own in the same directory, is checked there, and is renamed when it is whole; a whole file is never replaced
or removed. The lock in front of it only keeps two from doing the same work (launcher/core/lease.py).
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
from launcher.core.rights import cannot_remove, make_directories, next_step
from launcher.core.waiting import begin, within
from launcher.image.enroot import Enroot, ImportPolicy, directory_variables
from launcher.image.reference import PlannedImage, Reference, refreshed_name
from launcher.image.squash import (
    DamagedImage,
    ImageRecord,
    MissingImage,
    Sidecar,
    Superblock,
    check_lists,
    check_recorded_hash,
    file_hash,
    inspect,
    record_use,
)

if TYPE_CHECKING:  # urllib is for those who import
    from launcher.image.registry import Manifest, Registry

TAG_TIMEOUT = 2.0
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
) -> ImageRecord:
    """Have the image as a whole squash file.

    ``run`` starts programs, in ``environment``. ``log`` gets one line at a time. ``sleep`` may raise to end a wait.
    ``mark`` is told of each squash file before it is looked for. Raises ImageError, with the line that names the image.
    """
    if policy.make_directory:
        image.squash_path.parent.mkdir(parents=True, exist_ok=True)
    enroot = policy.place(Enroot(environment, run, log, sleep), image)
    registry = None
    if policy.may_ask(image.uri):
        from launcher.image.registry import Registry  # urllib is for those who import

        reference, asked_in = Reference.parse(image.uri), {**environment, **image.environment}
        registry = Registry(reference, asked_in, image.architecture, log=log, sleep=sleep)
    record = Placement(image, enroot, registry, mark).ensure()
    known = record.sidecar
    digest = f", {known.digest}" if known.digest else ""
    log(f"image {image.reference}: {record.how} in {record.seconds:.3f} s ({known.size / 1e6:.1f} MB{digest})")
    return record


@dataclass
class Placement:
    """Has one image in place, once, by an ``enroot``, whose log gets one line at a time, as things happen.

    Without a ``registry`` nobody is asked before an import, and of a tag that moved nothing is known. ``mark`` is told
    of each path before it is looked for. ``lock`` is the class of lock. ``facts`` are those of the record.
    """

    image: PlannedImage
    enroot: Enroot
    registry: Registry | None
    mark: Callable[[Path], None]
    lock: type[Lock] = Lock
    facts: list[str] = field(default_factory=list)

    def ensure(self) -> ImageRecord:
        """Have the image at ``image.squash``, whole; with ``moved_tag: refresh`` perhaps beside it.

        A whole file costs a stat, a read of 96 bytes and the record beside it: no lock and no process. What its tag
        names now is asked of the registry, at the cost of `TAG_TIMEOUT` seconds at most where ``image.moved_tag`` is
        ``keep``. Otherwise it is imported under the lock, or without it when that is not to be had. Raises ImageError.
        """
        began = time.monotonic()
        try:
            found = self._ensure_file()
            if self.registry is not None and found.how != "imported":
                found = self._follow_tag(found, self.registry)
        except ImageError as error:
            error.where = error.where or self.image.place()
            raise
        return replace(found, seconds=time.monotonic() - began, facts=tuple(self.facts))

    def _note(self, fact: str) -> None:
        self.facts.append(fact)
        self.enroot.log(fact)

    def _follow_tag(self, found: ImageRecord, registry: Registry) -> ImageRecord:
        """Ask what the image's tag names now, and do what ``image.moved_tag`` says if that is another image."""
        rule, bound = self.image.moved_tag, math.inf
        if rule == "keep":  # the answer changes nothing, so that it is not waited for long
            bound = TAG_TIMEOUT
            registry = replace(registry, log=lambda message: None, timeout=bound, attempts=1)
        try:
            asked = partial(registry.check_tag, found.squash, found.sidecar)
            fact, moved_to = within(asked, bound, lambda seconds: None)
        except TimeoutError:
            fact, moved_to = f"the registry did not say within {TAG_TIMEOUT:g} s what the tag names now", None
        if moved_to and rule == "fail":
            hint = f"name the digest in place of the tag, or set images.moved-tag to keep or refresh; {self.image.uri}"
            raise ImageError(fact, hint=hint)
        if fact:
            self._note(f"{fact}; it is kept (images.moved-tag)" if moved_to and rule == "keep" else fact)
        if moved_to and rule == "refresh":
            self.image = replace(self.image, squash=str(refreshed_name(found.squash, moved_to)))
            return self._ensure_file()
        return found

    def _ensure_file(self) -> ImageRecord:
        """Have a whole file at ``image.squash``, whatever its tag names now."""
        image, squash = self.image, self.image.squash_path
        self.mark(squash)
        try:
            found = self._find()
            if isinstance(found, str):
                if os.path.lexists(squash) and (kept := cannot_remove(squash)):
                    raise ImageError(f"it cannot be replaced: {found}", where=str(squash), hint=f"it is {kept}")
                require_writable(squash.parent)
                with self._locked() as lock:
                    found = self._find(is_locked=True)
                    if isinstance(found, str):
                        self.enroot.log(f"importing {image.reference} to {squash}: {found}")
                        found = self._import(lock)
        except OSError as error:
            place = Path(error.filename or squash.parent)
            if place.name.endswith(TEMPORARY_SUFFIX):
                place = place.parent
            raise ImageError(
                f"cannot import {image.reference}: {place}: {error.strerror}",
                hint=_HINTS.get(error.errno or 0) or next_step(error, place),
            ) from error
        return found

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
        with lock as held:
            for fact in held.facts:
                self._note(fact)
            if held.owner:
                self._note(f"no lock in {image.lock_wait:g} s, going on without it: {held.owner}")
            elif not held.acquired:
                self._note("no lock can be had, going on without it")
            yield lock

    @property
    def _owner(self) -> Path:
        return self.image.squash_path.with_name(f".{self.image.squash_path.name}.owner")

    def _find(self, is_locked: bool = False) -> ImageRecord | str:
        """The image if it is there and whole, else why an import is needed.

        A file that changed since it was recorded has its lists read, too. Raises ImageError for another image's file.
        """
        image, squash = self.image, self.image.squash_path
        try:
            block = inspect(squash)
            known = Sidecar.read(squash)
            if known is None and not is_locked and self._owner.exists() and os.access(squash.parent, os.W_OK):
                with self._locked():  # who imported it writes the record next: adopted now, its digest would be lost
                    return self._find(is_locked=True)
            known = known or Sidecar.read(squash)  # it was written, and the lock given back, after the first look
            if known is not None and known.fits(block):
                self._contradict(known)
                known, fact = check_recorded_hash(squash, known, block)
                if fact:
                    self._note(fact)
                record_use(squash)
                return ImageRecord(squash, "hit", known)
            listing = check_lists(squash, self.enroot.run) if known is not None else None
        except (MissingImage, DamagedImage) as error:
            return error.message
        adopted = Sidecar(image.reference, image.uri, "adopted", block.size, block.mtime_ns, block.created, listing)
        if known is not None:
            before = f"{known.digest or known.reference}, recorded by {known.user} at {known.written}"
            self._note(f"{squash.name} is another file than {before}: which image it holds is not known")
        adopted.write(squash, replace=known is not None)
        return ImageRecord(squash, "adopted", adopted)

    def _contradict(self, known: Sidecar) -> None:
        """Raise ImageError when the record of the file names another image than the one that is asked for."""
        image, squash = self.image, self.image.squash_path
        wanted = Reference.parse(image.uri).digest
        if known.uri != image.uri:
            raise ImageError(
                f"this squash file is of {known.reference}, and {image.reference} would have the same name",
                where=str(squash),
                hint="spell one of the two images another way (registry#…, digest), or move the file away",
            )
        if wanted and known.digest and wanted not in (known.digest, known.index):
            raise ImageError(
                f"this squash file is of {known.digest} by its record, and {wanted} is asked for",
                where=str(squash),
                hint="move the file away: it is imported again then, and running jobs keep what they have",
            )

    def _import(self, lock: Lock) -> ImageRecord:
        """Import the image under a name of our own, check it, publish it unless somebody else did, and record it."""
        image, squash, began = self.image, self.image.squash_path, time.monotonic()
        manifest, reference = self._manifest(), Reference.parse(image.uri)
        on_node = self.enroot.is_on_node
        with contextlib.ExitStack() as files, _private_directory(image.temporary, on_node) as (private, own):
            _check_space(squash.parent, private, manifest.size if manifest else 0)
            enroot = replace(self.enroot, environment={**self.enroot.environment, **own, **image.environment})
            if manifest is not None:  # by digest, so that a tag cannot move meanwhile
                digest: str | None = manifest.digest
                uri = replace(reference, digest=digest).uri
            else:
                digest, uri = reference.digest or enroot.digest(image.uri), image.uri
            temporary, version = enroot.fetch(uri, squash, image.import_timeout, files, self._note)
            block, listing, content = self._verify(temporary)
            if lock.lost:
                self._note("the lock was taken over during the import; publishing all the same")
            is_ours = publish_new(temporary, squash, whole=self._is_whole)
        if not is_ours:
            self._note("another process published it first; ours was dropped")
            found = self._find(is_locked=True)
            if isinstance(found, str):
                raise ImageError(f"another process replaced it: {found}", hint="run again")
            return found
        sidecar = Sidecar(
            *(image.reference, image.uri, "imported", block.size, block.mtime_ns, block.created, listing, version),
            digest=digest,
            index=manifest.index if manifest else None,
            architecture=manifest.architecture if manifest else None,
            hash=content,
            options=enroot.environment.get("ENROOT_SQUASH_OPTIONS"),
            seconds=round(time.monotonic() - began, 3),
            changed_ns=squash.stat().st_ctime_ns,  # publishing changed it
        )
        if error := sidecar.write(squash):
            self._note(f"no record could be written beside it: {error.strerror}")
        return ImageRecord(squash, "imported", sidecar)

    def _manifest(self) -> Manifest | None:
        """Look the image up. None, and a fact, when the registry says nothing: enroot may still reach it.

        Raises ImageError for what will not pass.
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
        """What enroot left must be whole, and on storage, before it gets its name. Gives its hash too.

        Raises ImageError, OSError.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

        attempts = Retrying(  # what enroot left on a node may take a while to be seen from here
            retry=retry_if_exception_type((MissingImage, DamagedImage)),
            stop=stop_after_attempt(NFS_VISIBLE_AFTER // 2 if self.enroot.is_on_node else 1),
            wait=wait_fixed(2.0),
            sleep=self.enroot.sleep,
            reraise=True,
        )
        try:
            block = attempts(inspect, temporary)
            hashed, stored = begin(lambda: file_hash(temporary)), begin(lambda: fsync(temporary))
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
    make_directories(place)
    private = temporary_name(place / "enroot")
    private.mkdir(mode=0o700)
    try:
        own = directory_variables(private)
        Path(own["TMPDIR"]).mkdir()
        yield private, own
    finally:
        for directory, names, _ in os.walk(private):  # in layers are directories that even their owner may not write
            for path in (Path(directory, name) for name in names):
                with contextlib.suppress(OSError):
                    if not path.is_symlink():
                        path.chmod(0o700)
        shutil.rmtree(private, ignore_errors=True)


def _check_space(final: Path, temporary: Path | None, size: int) -> None:
    """Refuse an import that is sure to run out of space in the directories ``final`` and ``temporary``.

    ``size`` is how many bytes are downloaded, 0 when that is not known; ``temporary`` is None when it is on another
    host. Raises ImageError, or OSError from statvfs.
    """
    wanted = {final: _LEAST_FINAL}
    if temporary is not None:
        shared = final.stat().st_dev == temporary.stat().st_dev
        wanted |= {final: _LEAST_FINAL + _LEAST_TEMPORARY} if shared else {temporary: _LEAST_TEMPORARY}
    for directory, times in wanted.items():
        status = os.statvfs(directory)
        free, least = status.f_bavail * status.f_frsize, times * size
        is_out_of_inodes = status.f_files and not status.f_favail  # btrfs counts none
        is_unknown = not status.f_blocks  # some FUSE file systems do not tell
        if is_unknown or (free >= max(least, 1) and not is_out_of_inodes):
            continue
        what = f"{'no inode' if is_out_of_inodes else _gib(free)} free in {directory}"
        if size:
            what += f", and an image of {_gib(size)} compressed needs {_gib(least)} there at the least"
        left = ", ".join(path.name for path in dead_temporaries(directory))
        hint = "free space there, or name another directory (images.directory, images.temporary)"
        hint += f"; killed imports left {left}" if left else ""
        raise ImageError(f"not enough space for an import: {what}", hint=hint)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
