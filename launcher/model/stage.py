"""Staging: a checkpoint comes to its destination whole, or not at all.

    <name>.staging.<token>/            everything is written here; nobody takes it for a checkpoint
    <name>.staging.<token>/.staging/   owner.json, journals of parts
    <name>.staging.<token>/.complete.json   the manifest, written last, when everything was verified
    <name>/                            by one rename, when everything was synced

A process that is killed leaves a staging directory. The next one for the same source and destination takes it over and
copies only the parts that are missing. What is at the destination already is never overwritten or removed. The lock
beside it only saves doing the work twice.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Literal

import xxhash

from launcher.core.errors import Cancelled, ModelError
from launcher.core.lease import Lock
from launcher.core.process import CommandRunner, ProcessIdentity, run
from launcher.core.publish import fsync, write_json
from launcher.core.stop import Stop
from launcher.model.checkpoint import examine
from launcher.model.copy import WORKERS, Copier, CreateFile, NoProgress, Progress, journal_directory
from launcher.model.destination import (
    StagingOwner,
    existing_manifest,
    lock_path,
    owner_of,
    remove_work_directory,
    size_of,
    staging_directories,
)
from launcher.model.manifest import MANIFEST_NAME, PART_SIZE, WORK_DIRECTORY, FileEntry, Manifest, hash_file, is_below
from launcher.model.source import DirectorySource, Source

LOCK_WAIT = 6 * 3600.0
"""Seconds to wait for another process that stages to the same destination."""

_HINTS = {
    errno.ENOSPC: "free some space; the same command then goes on from here. `launcher model gc` removes leftovers",
    errno.EDQUOT: "the quota is used up; the same command goes on from here when there is room again",
    errno.EROFS: "the file system is mounted read-only here",
    errno.EACCES: "this user may not write there",
    errno.ESTALE: "the file system lost a file handle; the same command goes on from here",
    errno.EIO: "the storage failed; the same command goes on from here, after it has read again what was written",
}


@dataclass(frozen=True)
class Staged:
    """The outcome of a staging.

    ``how`` is ``staged`` (by us, now), ``there`` (it was there already) or ``lost`` (another process published first,
    and its copy is kept). ``copied`` and ``resumed`` are bytes.
    """

    path: Path
    how: Literal["staged", "there", "lost"]
    manifest: Manifest
    copied: int = 0
    resumed: int = 0
    seconds: float = 0.0


def stage(
    source: Source,
    destination: Path,
    *,
    workers: int = WORKERS,
    progress: Progress = NoProgress(),
    log: Callable[[str], None] = lambda text: None,
    stop: Stop = Stop.never(),
    stripe: Callable[[Path], CreateFile | None] | None = None,
) -> Staged:
    """Have the checkpoint of ``source`` at ``destination``, whole. Idempotent: what is there costs one stat a file.

    ``stripe`` gets the staging directory and returns what creates each file (`striping`). Raises ModelError, Cancelled;
    what was copied until then stays for the next call.
    """
    destination = destination.absolute()
    began = time.monotonic()
    _refuse(source, destination)
    with _explained("staging", destination):
        if found := existing_manifest(destination, source):
            return Staged(destination, "there", found)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with Lock(
            lock_path(destination),
            what=f"staging {source.name} to {destination}",
            wait=LOCK_WAIT,
            on_wait=lambda owner: log(f"waiting for {owner}"),
            sleep=stop.sleep,
        ) as held:
            for fact in held.facts:
                log(fact)
            if held.owner:
                raise ModelError(f"still being staged by {held.owner}", where=str(destination))
            if found := existing_manifest(destination, source):
                return Staged(destination, "there", found)
            staging = _Staging(source, destination, _directory(source, destination, adopt=held.acquired, log=log))
            done = staging.fill(workers, progress, stop, stripe)
            how = staging.publish(log)
            return Staged(destination, how, staging.manifest, done.copied, done.resumed, time.monotonic() - began)


def adopt(destination: Path, *, progress: Progress = NoProgress(), stop: Stop = Stop.never()) -> Manifest:
    """Write the manifest of a checkpoint that is there already, after looking at it and reading all of it.

    Raises ModelError when it is not whole, Cancelled.
    """
    destination = destination.absolute()
    if found := Manifest.read(destination):
        return found
    report = examine(destination, precision=None)
    if not report.whole:
        raise ModelError("not whole: " + "; ".join(report.problems[:10]), where=str(destination))
    source = DirectorySource(destination)
    progress.begin(len(source.files), sum(file.size for file in source.files))
    entries = []
    with _explained("adopting", destination):
        for file in source.files:
            tell = functools.partial(progress.advance, file.path, file.size)
            content_hash = hash_file(destination / file.path, PART_SIZE, tell=tell, stop=stop)
            with contextlib.closing(source.open(file)) as reader:
                reader.check_unchanged()
            entries.append(FileEntry(file.path, file.size, content_hash))
        manifest = Manifest(str(destination), None, tuple(entries), created=_now())
        manifest.write(destination / MANIFEST_NAME)
    return manifest


@contextlib.contextmanager
def _explained(what: str, destination: Path) -> Iterator[None]:
    """Turn an OSError within the block into a ModelError, and say of both it and Cancelled what to do next."""
    try:
        yield
    except OSError as error:
        where, hint = str(error.filename or destination), _HINTS.get(error.errno or 0)
        raise ModelError(f"{what} failed: {error.strerror or error}", where=where, hint=hint) from error
    except Cancelled as error:
        error.hint = error.hint or "the same command goes on from here"
        raise


def _directory(source: Source, destination: Path, *, adopt: bool, log: Callable[[str], None]) -> Path:
    """A staging directory that is ours: a dead one of the same source, under a new token, or else a new one.

    The rename takes it over: if its process was only stopped, it finds its paths gone.
    """
    text = "\n".join(f"{file.path}\0{file.size}" for file in sorted(source.files, key=lambda file: file.path))
    listing = xxhash.xxh3_128(text.encode()).hexdigest()
    mine = StagingOwner(ProcessIdentity.mine(), source.name, source.revision, listing, _now())
    new = destination.with_name(f"{destination.name}.staging.{secrets.token_hex(6)}")
    for old in staging_directories(destination) if adopt else ():
        its = owner_of(old)
        wanted = (mine.source, mine.revision, mine.listing)
        if its and (its.source, its.revision, its.listing) == wanted and its.process.alive() is not True:
            old.rename(new)
            log(f"going on with what pid {its.process.pid} on {its.process.host} had staged since {its.began}")
            break
    journal_directory(new).mkdir(parents=True, exist_ok=True)
    write_json(new / WORK_DIRECTORY / "owner.json", asdict(mine))
    return new


class _Staging:
    """One staging directory on its way to the destination."""

    manifest: Manifest

    def __init__(self, source: Source, destination: Path, directory: Path) -> None:
        self._source, self._destination, self._directory = source, destination, directory

    def fill(
        self, workers: int, progress: Progress, stop: Stop, stripe: Callable[[Path], CreateFile | None] | None
    ) -> Copier:
        """Copy, verify and sync everything; at the end the directory needs only its name."""
        self._check_space()
        part_size = self._source.part_size or PART_SIZE
        copier = Copier(
            self._source,
            self._directory,
            part_size=part_size,
            workers=workers,
            progress=progress,
            stop=stop,
            create=stripe(self._directory) if stripe else None,
        )
        copier.copy()
        entries = tuple(copier.entries)
        self.manifest = Manifest(self._source.name, self._source.revision, entries, part_size, created=_now())
        self._verify()
        # A kill while the manifest is written leaves a temporary; in there nobody takes it for a part of the model.
        self.manifest.write(self._directory / WORK_DIRECTORY / MANIFEST_NAME)
        (self._directory / WORK_DIRECTORY / MANIFEST_NAME).rename(self._directory / MANIFEST_NAME)
        for directory, _, _ in os.walk(self._directory, topdown=False):
            fsync(Path(directory))
        return copier

    def _check_space(self) -> None:
        """Raise ModelError before the first byte when it cannot fit, less what an earlier process has written."""
        needed = sum(max(0, file.size - size_of(self._directory / file.path)) for file in self._source.files)
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            message = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
            hint = "`launcher model gc` shows what dead stagings hold"
            raise ModelError(message, where=str(self._destination.parent), hint=hint)

    def _verify(self) -> None:
        """Raise ModelError unless everything listed is there, and its own files say that the checkpoint is whole."""
        report = examine(self._directory, precision=None, unfinished=True)
        if problems := [*self.manifest.differences(self._directory), *report.problems]:
            message = "what the source holds is not a whole checkpoint: " + "; ".join(problems[:10])
            raise ModelError(message, where=self._source.name)

    def publish(self, log: Callable[[str], None]) -> Literal["staged", "lost"]:
        """Rename the directory to its destination, unless another process was there first."""
        try:
            self._directory.rename(self._destination)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if (winner := existing_manifest(self._destination, self._source)) is None:
                raise
            self.manifest = winner
            shutil.rmtree(self._directory, ignore_errors=True)
            log(f"{self._destination} was published by another process meanwhile; its copy is kept")
            return "lost"
        fsync(self._destination.parent)
        remove_work_directory(self._destination)
        return "staged"


def _refuse(source: Source, destination: Path) -> None:
    """Raise ModelError when a directory would be staged into itself, or a file's name leads to another place.

    Refused are names outside of the destination and those of our own files: a hub's listing is somebody else's text.
    """
    if isinstance(source, DirectorySource):
        inner, outer = destination.resolve(), source.directory.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ModelError("source and destination are one within the other", where=str(destination))
    for file in source.files:
        if not is_below(file.path) or PurePosixPath(file.path).parts[0] in (MANIFEST_NAME, WORK_DIRECTORY):
            raise ModelError(f"a file is named {file.path!r}, which cannot be staged", where=source.name)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Stripe:
    """Files of at least ``at_least`` bytes lie on ``count`` targets (-1: all), ``size`` on each in turn."""

    at_least: int
    count: int
    size: str = "4M"


DEFAULT = (Stripe(0, 1), Stripe(1 << 30, 4), Stripe(8 << 30, 8))
"""A checkpoint of few large shards with one stripe each is read at the speed of one storage target. These follow common
advice of sites (Lustre wiki, NERSC): small files on one target, files from 1 GiB on four, from 8 GiB on eight."""


def striping(
    policy: Sequence[Stripe] = DEFAULT,
    *,
    log: Callable[[str], None] = lambda text: None,
    run: CommandRunner = run,
) -> Callable[[Path], CreateFile | None]:
    """Lustre striping, as `stage` takes it: a file's layout is fixed when it is created, before its first byte.

    The staging directory gets the layout of the smallest files as its default; a larger file is created by
    `lfs setstripe` before it is opened. Without `lfs` nothing is done. Where `lfs` refuses (the directory is not on
    Lustre) that is said once.
    """

    def layout(size: int) -> Stripe | None:
        fitting = sorted((one for one in policy if size >= one.at_least), key=lambda one: one.at_least)
        return fitting[-1] if fitting else None

    def laid_out(path: Path, stripe: Stripe) -> bool:
        done = run(["lfs", "setstripe", "-c", str(stripe.count), "-S", stripe.size, str(path)], timeout=60)
        if not done.ok:
            log(f"{path}: not striped: {done.tail(1) or done}")
        return done.ok

    def begin(directory: Path) -> CreateFile | None:
        default = layout(0)
        if not policy or shutil.which("lfs") is None or (default and not laid_out(directory, default)):
            return None

        def create(path: Path, size: int) -> None:
            if (stripe := layout(size)) and stripe != default:
                laid_out(path, stripe)

        return create

    return begin
