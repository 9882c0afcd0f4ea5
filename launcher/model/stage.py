"""Staging: a checkpoint comes to its destination whole, or not at all.

    <name>.staging.<token>/            everything is written here; nobody takes it for a checkpoint
    <name>.staging.<token>/.staging/   owner.json, journals of parts
    <name>.staging.<token>/.complete.json   the manifest, last, when all of it was verified
    <name>/                            by one rename, when all of it was synced

A process that is killed leaves a staging directory; the next one for the same source and destination takes it over, and
copies only the parts that are not there. What lies at the destination already is never overwritten or removed. The lock
beside it saves work twice done, nothing else.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Literal

from launcher.core.errors import Cancelled, ModelError
from launcher.core.lease import Lock
from launcher.core.process_identity import ProcessIdentity
from launcher.core.publish import fsync_directory, write_json
from launcher.model.checkpoint import examine
from launcher.model.copy import WORKERS, Copied, Copier, Progress
from launcher.model.destination import StagingOwner, finish, lock_path, owner_of, settle, staging_directories
from launcher.model.manifest import (
    NAME,
    PART_SIZE,
    WORK,
    FileEntry,
    Manifest,
    hash_file,
    is_below,
    size_of,
)
from launcher.model.source import DirectorySource, Source

LOCK_WAIT = 6 * 3600.0
"""Seconds to wait for another process that stages to the same destination."""

_HINTS = {
    errno.ENOSPC: "free some space; the same command then goes on from here, `launcher model gc` removes what there is",
    errno.EDQUOT: "the quota is used up; the same command goes on from here when there is some",
    errno.EROFS: "the file system is mounted read-only here",
    errno.EACCES: "this user may not write there",
    errno.ESTALE: "the file system lost a file handle; the same command goes on from here",
    errno.EIO: "the storage failed; the same command goes on from here, and reads again what it had written",
}


@dataclass(frozen=True)
class Staged:
    """What became of it. ``how``: ``staged`` now; ``there`` already; ``lost`` to another process, whose copy counts.

    ``copied`` and ``resumed`` are bytes; ``facts`` one-line statements for a log.
    """

    path: Path
    how: Literal["staged", "there", "lost"]
    manifest: Manifest
    copied: int = 0
    resumed: int = 0
    seconds: float = 0.0
    facts: tuple[str, ...] = ()


def stage(
    source: Source,
    destination: Path,
    *,
    workers: int = WORKERS,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
    stripe: Callable[[Path, Source], Callable[[Path, int], None]] | None = None,
    lock_wait: float = LOCK_WAIT,
    sleep: Callable[[float], None] = time.sleep,
) -> Staged:
    """Have the checkpoint of ``source`` at ``destination``, whole. Idempotent: what is there costs one stat a file.

    ``stripe`` is told the staging directory and gives what makes each file (launcher/model/striping.py). Raises
    ModelError, Cancelled; what was copied until then stays for the next call.
    """
    destination = destination.absolute()
    began = time.monotonic()
    _refuse_nesting(source, destination)
    _refuse_names(source)
    try:
        if found := settle(destination, source):
            return Staged(destination, "there", found)
        destination.parent.mkdir(parents=True, exist_ok=True)
        what = f"staging {source.name} to {destination}"
        waiting = _stoppable(sleep, should_stop)
        lock = Lock(lock_path(destination), what=what, wait=lock_wait, on_wait=_teller(say), sleep=waiting)
        with lock as held:
            for fact in held.facts:
                say(fact)
            if held.owner:
                raise ModelError(f"still being staged by {held.owner}", where=str(destination))
            if found := settle(destination, source):
                return Staged(destination, "there", found, facts=held.facts)
            copy = _Staging(source, destination, _directory(source, destination, adopt=held.acquired, say=say))
            done, how = copy.run(workers, progress, should_stop, stripe, say)
            return Staged(
                destination, how, copy.manifest, done.copied, done.resumed, time.monotonic() - began, held.facts
            )
    except OSError as error:
        where = str(error.filename or destination)
        raise ModelError(
            f"staging failed: {error.strerror or error}", where=where, hint=_HINTS.get(error.errno or 0)
        ) from error


def adopt(
    destination: Path, *, progress: Progress | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Manifest:
    """Write the manifest of a checkpoint that is there already, after looking at it and reading all of it.

    Raises ModelError when it is not whole, Cancelled.
    """
    destination = destination.absolute()
    if found := Manifest.read(destination):
        return found
    verdict = examine(destination, precision=None)
    if not verdict.whole:
        raise ModelError("not whole: " + "; ".join(verdict.problems[:10]), where=str(destination))
    source = DirectorySource(destination)
    if progress:
        progress.begin(len(source.files), sum(file.size for file in source.files))
    entries = []
    try:
        for file in source.files:

            def advance(path: str, count: int, size: int = file.size) -> None:
                if progress:
                    progress.advance(path, size, count)

            found_hash = hash_file(destination / file.path, PART_SIZE, file.path, advance, should_stop)
            source.open(file).check_unchanged()
            entries.append(FileEntry(file.path, file.size, found_hash))
        manifest = Manifest(str(destination), None, tuple(entries), created=_now())
        manifest.write(destination / NAME)
    except OSError as error:
        raise ModelError(
            f"adopting failed: {error.strerror}", where=str(destination), hint=_HINTS.get(error.errno or 0)
        ) from error
    return manifest


def _directory(source: Source, destination: Path, *, adopt: bool, say: Callable[[str], None]) -> Path:
    """A staging directory that is ours: a dead one of the same source, under a new token, or a new one.

    The rename is what takes it over. Whoever had it and was only stopped finds its paths gone.
    """
    mine = StagingOwner(ProcessIdentity.mine(), source.name, source.revision, _listing(source), _now())
    new = destination.with_name(f"{destination.name}.staging.{secrets.token_hex(6)}")
    for old in staging_directories(destination) if adopt else ():
        its = owner_of(old)
        same = its is not None and (its.source, its.revision, its.listing) == (mine.source, mine.revision, mine.listing)
        if its is not None and same and its.process.alive() is not True:
            old.rename(new)
            say(f"going on with what pid {its.process.pid} on {its.process.host} had staged since {its.began}")
            break
    (new / WORK / "parts").mkdir(parents=True, exist_ok=True)
    write_json(new / WORK / "owner.json", asdict(mine))
    return new


class _Staging:
    """One staging directory on its way to the destination."""

    manifest: Manifest

    def __init__(self, source: Source, destination: Path, directory: Path) -> None:
        self._source, self._destination, self._directory = source, destination, directory

    def run(
        self,
        workers: int,
        progress: Progress | None,
        should_stop: Callable[[], bool],
        stripe: Callable[[Path, Source], Callable[[Path, int], None]] | None,
        say: Callable[[str], None],
    ) -> tuple[Copied, Literal["staged", "lost"]]:
        self._check_space()
        create = stripe(self._directory, self._source) if stripe else (lambda path, size: None)
        part_size = self._source.part_size or PART_SIZE
        copied = Copier(
            self._source,
            self._directory,
            self._directory / WORK / "parts",
            part_size=part_size,
            workers=workers,
            progress=progress,
            should_stop=should_stop,
            create=create,
        ).copy()
        self.manifest = Manifest(
            self._source.name, self._source.revision, tuple(copied.files), part_size, created=_now()
        )
        self._verify()
        self.manifest.write(self._directory / WORK / NAME)  # there, because a kill leaves what it is written to
        (self._directory / WORK / NAME).rename(self._directory / NAME)
        for directory, _, _ in os.walk(self._directory, topdown=False):
            fsync_directory(Path(directory))
        return copied, self._publish(say)

    def _check_space(self) -> None:
        """Say before the first byte that it cannot fit. Blocks that an earlier process wrote count as there."""
        needed = sum(max(0, file.size - size_of(self._directory / file.path)) for file in self._source.files)
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise ModelError(
                f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
                where=str(self._destination.parent),
                hint="`launcher model gc` shows what dead stagings hold",
            )

    def _verify(self) -> None:
        """A checkpoint, by what its own files say; everything that was listed, by the manifest."""
        found = self.manifest.differences(self._directory)
        verdict = examine(self._directory, precision=None, unfinished=True)
        if problems := [*found, *verdict.problems]:
            raise ModelError(
                "what the source holds is not a whole checkpoint: " + "; ".join(problems[:10]), where=self._source.name
            )

    def _publish(self, say: Callable[[str], None]) -> Literal["staged", "lost"]:
        try:
            self._directory.rename(self._destination)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            winner = settle(self._destination, self._source)
            if winner is None:
                raise
            self.manifest = winner
            shutil.rmtree(self._directory, ignore_errors=True)
            say(f"{self._destination} was published by another process meanwhile; its copy is kept")
            return "lost"
        fsync_directory(self._destination.parent)
        finish(self._destination)
        return "staged"


def _refuse_nesting(source: Source, destination: Path) -> None:
    """A directory is not staged into itself."""
    if isinstance(source, DirectorySource):
        inner, outer = destination.resolve(), source.directory.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ModelError("source and destination are one within the other", where=str(destination))


def _refuse_names(source: Source) -> None:
    """A hub's listing is somebody else's text: nothing of it may be written outside, or over what is ours."""
    for file in source.files:
        if not is_below(file.path) or PurePosixPath(file.path).parts[0] in (NAME, WORK):
            raise ModelError(f"a file is named {file.path!r}, which cannot be staged", where=source.name)


def _listing(source: Source) -> str:
    import xxhash

    text = "\n".join(f"{file.path}\0{file.size}" for file in sorted(source.files, key=lambda file: file.path))
    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def _stoppable(sleep: Callable[[float], None], should_stop: Callable[[], bool]) -> Callable[[float], None]:
    """A sleep that raises Cancelled when somebody asked to stop."""

    def patient(seconds: float) -> None:
        if should_stop():
            raise Cancelled("stopped while another process stages")
        sleep(seconds)

    return patient


def _teller(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda owner: say(f"waiting for {owner}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
