"""Staging: a checkpoint comes to its destination whole, or not at all.

    <name>.staging.<token>/            everything is written here; the name shows that it is no checkpoint
    <name>.staging.<token>/.staging/   owner.json, journals of parts
    <name>.staging.<token>/.complete.json   the manifest, written last, when everything was verified
    <name>/                            by one rename, when everything was synced

A killed process leaves a staging directory. The next one for the same source and destination takes it over and copies
only the missing parts. Nothing that exists at the destination is ever overwritten or removed. The lock beside it only
avoids doing the work twice.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from launcher.core.errors import Cancelled, ModelError
from launcher.core.lease import Lock
from launcher.core.leftovers import disk_usage
from launcher.core.process import CommandRunner, run
from launcher.core.publish import fsync, utc_timestamp, write_json
from launcher.core.rights import make_directories, os_error_hint
from launcher.core.stop import NEVER, Stop
from launcher.model.checkpoint import examine
from launcher.model.copy import WORKERS, Copier, NoProgress, Progress, SetLayout
from launcher.model.destination import existing_manifest, lock_path, remove_work_directory, staging_directory
from launcher.model.manifest import (
    MANIFEST_NAME,
    PART_SIZE,
    WORK_DIRECTORY,
    FileEntry,
    Manifest,
    hash_file,
    is_below,
)
from launcher.model.source import DirectorySource, Source

LOCK_WAIT = 6 * 3600.0
"""Seconds to wait for another process that stages to the same destination."""


@dataclass(frozen=True)
class StagingResult:
    """The outcome of a staging.

    ``how`` is ``staged`` (by us, now), ``there`` (it was there already) or ``lost`` (another process published first,
    and its copy is kept). ``copied`` and ``resumed`` are bytes.
    """

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
    stop: Stop = NEVER,
    set_layout: SetLayout | None = None,
) -> StagingResult:
    """Have the checkpoint of ``source`` at ``destination``, whole. An existing one costs one stat a file.

    ``set_layout`` is as for `Copier`, `striping` on Lustre. Raises ModelError, Cancelled; what was copied until then is
    kept for the next call.
    """
    destination = destination.absolute()
    began = time.monotonic()
    _check_source(source, destination)
    with _explain_errors("staging", destination):
        if manifest := existing_manifest(destination, source):
            return StagingResult("there", manifest)
        make_directories(destination.parent)
        with Lock(
            lock_path(destination),
            what=f"staging {source.name} to {destination}",
            wait=LOCK_WAIT,
            on_wait=lambda owner: log(f"waiting for {owner}"),
            sleep=stop.sleep,
        ) as lock:
            for fact in lock.facts:
                log(fact)
            if lock.owner:
                raise ModelError(f"still being staged by {lock.owner}", where=str(destination))
            if manifest := existing_manifest(destination, source):
                return StagingResult("there", manifest)
            directory = staging_directory(source, destination, adopt=lock.acquired, log=log)
            copier = Copier(source, directory, workers=workers, progress=progress, stop=stop, set_layout=set_layout)
            staged = _copy_and_verify(copier)
            winner = _publish(directory, destination, source)
            if winner:
                log(f"{destination} was published by another process meanwhile; its copy is kept")
            how: Literal["staged", "lost"] = "lost" if winner else "staged"
            return StagingResult(how, winner or staged, copier.copied, copier.resumed, time.monotonic() - began)


def adopt(destination: Path, *, progress: Progress = NoProgress(), stop: Stop = NEVER) -> Manifest:
    """Write the manifest of an existing checkpoint, after examining it and reading all of it.

    Raises ModelError when it is not whole, Cancelled.
    """
    destination = destination.absolute()
    if manifest := Manifest.read(destination):
        return manifest
    report = examine(destination, precision=None)
    if not report.whole:
        raise ModelError("not whole: " + "; ".join(report.problems[:10]), where=str(destination))
    source = DirectorySource(destination)
    progress.begin(len(source.files), sum(file.size for file in source.files))
    entries = []
    with _explain_errors("adopting", destination):
        for file in source.files:
            advance = functools.partial(progress.advance, file.path, file.size)
            content_hash = hash_file(destination / file.path, PART_SIZE, advance=advance, stop=stop)
            with contextlib.closing(source.open(file)) as reader:
                reader.check_unchanged()
            entries.append(FileEntry(file.path, file.size, content_hash))
        fingerprint = dict(report.fingerprint)
        manifest = Manifest(str(destination), None, tuple(entries), created=utc_timestamp(), fingerprint=fingerprint)
        write_json(destination / MANIFEST_NAME, asdict(manifest))
    return manifest


@contextlib.contextmanager
def _explain_errors(operation: str, destination: Path) -> Iterator[None]:
    """Turn an OSError within the block into a ModelError; give both it and Cancelled a hint what to do next."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename or destination)
        hint = f"{os_error_hint(error, path)}; the same command goes on from here"
        raise ModelError(f"{operation} failed: {error.strerror or error}", where=str(path), hint=hint) from error
    except Cancelled as error:
        error.hint = error.hint or "the same command goes on from here"
        raise


def _copy_and_verify(copier: Copier) -> Manifest:
    """Copy, verify and sync everything; afterwards the directory can be renamed."""
    source, directory = copier.source, copier.into
    _check_space(source, directory)
    manifest = Manifest(source.name, source.revision, copier.copy(), copier.part_size, created=utc_timestamp())
    manifest = replace(manifest, fingerprint=_verify(manifest, directory))
    # A kill while the manifest is written leaves a temporary file, which must not lie among the files of the model.
    write_json(directory / WORK_DIRECTORY / MANIFEST_NAME, asdict(manifest))
    (directory / WORK_DIRECTORY / MANIFEST_NAME).rename(directory / MANIFEST_NAME)
    for below, _, _ in os.walk(directory, topdown=False):
        fsync(Path(below))
    return manifest


def _check_space(source: Source, directory: Path) -> None:
    """Raise ModelError before the first byte when the files, less what an earlier process copied, cannot fit."""
    needed = sum(max(0, file.size - disk_usage(directory / file.path)) for file in source.files)
    free = shutil.disk_usage(directory).free
    if needed > free:
        message = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        hint = "`launcher model gc` shows what dead stagings hold"
        raise ModelError(message, where=str(directory.parent), hint=hint)


def _verify(manifest: Manifest, directory: Path) -> dict[str, str | int | float]:
    """The fingerprint of the copied files. Raises ModelError unless all listed files exist, and their content is that
    of a whole checkpoint."""
    report = examine(directory, precision=None, unfinished=True)
    if problems := [*manifest.differences(directory), *report.problems]:
        message = "what the source holds is not a whole checkpoint: " + "; ".join(problems[:10])
        raise ModelError(message, where=manifest.source)
    return dict(report.fingerprint)


def _publish(directory: Path, destination: Path, source: Source) -> Manifest | None:
    """Rename the directory to its destination. Returns the manifest of another process that did so first, else None."""
    try:
        directory.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if (winner := existing_manifest(destination, source)) is None:
            raise
        shutil.rmtree(directory, ignore_errors=True)
        return winner
    fsync(destination.parent)
    remove_work_directory(destination)
    return None


def _check_source(source: Source, destination: Path) -> None:
    """Raise ModelError for an empty source, a destination within the source, or a file that must not be written.

    Names outside of the destination and names of our own files are refused: a hub's listing is untrusted.
    """
    if isinstance(source, DirectorySource):
        target, origin = destination.resolve(), source.directory.resolve()
        if target.is_relative_to(origin) or origin.is_relative_to(target):
            raise ModelError("source and destination are one within the other", where=str(destination))
    if not source.files:
        raise ModelError("it holds no files to stage", where=source.name)
    for file in source.files:
        if not is_below(file.path) or PurePosixPath(file.path).parts[0] in (MANIFEST_NAME, WORK_DIRECTORY):
            raise ModelError(f"a file is named {file.path!r}, which cannot be staged", where=source.name)


DEFAULT_LAYOUTS = ((0, 1, "4M"), (1 << 30, 4, "4M"), (8 << 30, 8, "4M"))
"""A checkpoint of few large shards with one stripe each is read at the speed of one storage target. This is common
advice (Lustre wiki, NERSC): small files on one target, files from 1 GiB on four targets, from 8 GiB on eight."""


def striping(
    layouts: Iterable[tuple[int, int, str]] | None = None,
    *,
    log: Callable[[str], None] = lambda text: None,
    run: CommandRunner = run,
) -> SetLayout:
    """Lustre striping for `stage`: the layout of a file is fixed when it is created, before its first byte.

    Each of ``layouts`` (None: `DEFAULT_LAYOUTS`) has the least size of its files in bytes, the number of targets (-1:
    all), and the stripe size. The staging directory gets the layout of the smallest files as its default; a larger file
    is created by `lfs setstripe` before it is opened. Without `lfs` nothing is done. If `lfs` refuses (the directory is
    not on Lustre), that is logged once.
    """
    largest_first = sorted(DEFAULT_LAYOUTS if layouts is None else layouts, reverse=True) if shutil.which("lfs") else []

    def layout_of(size: int) -> tuple[int, int, str] | None:
        return next((layout for layout in largest_first if size >= layout[0]), None)

    def set_layout(path: Path, size: int) -> None:
        layout = layout_of(size)
        if layout is None or (layout == layout_of(0) and not path.is_dir()):
            return
        _, count, stripe_size = layout
        done = run(["lfs", "setstripe", "-c", str(count), "-S", stripe_size, str(path)], timeout=60)
        if not done.ok:
            log(f"{path}: not striped: {done.tail(1) or done}")
            if path.is_dir():
                largest_first.clear()

    return set_layout
