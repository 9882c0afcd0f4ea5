"""Where a checkpoint comes from: which files it has, and how their bytes are read, in any order, from many threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.core.errors import ModelError
from launcher.model.manifest import MANIFEST_NAME, WORK_DIRECTORY, FileEntry, Manifest, drop_from_cache, read_range

_NOT_TAKEN = (".git", ".cache", WORK_DIRECTORY)
"""Directories at any depth that are not part of a checkpoint: git's, huggingface_hub's for downloads, our own."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. ``stamp`` changes when its content does (a modification time, a blob's id).

    The source may state more of the content: ``hash`` (as in a manifest with the source's ``part_size``), ``sha256``,
    ``git_sha1`` (git's blob id).
    """

    path: str
    size: int
    stamp: str
    hash: str | None = None
    sha256: str | None = None
    git_sha1: str | None = None


class Reader:
    """An open file of a source. ``descriptor`` is there when the kernel can copy from it."""

    descriptor: int | None = None

    def chunks(self, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of a range, in order; each piece is valid until the next one is requested.

        ``buffer`` may be used for them. Fewer bytes come when the file ends. Raises OSError, ModelError.
        """
        raise NotImplementedError

    def drop_from_cache(self, offset: int, length: int) -> None:
        """Keep a range that was read out of the page cache, where it came through that."""

    def check_unchanged(self) -> None:
        """Raise ModelError when the file is not what it was when it was listed."""

    def close(self) -> None:
        """Release what the reader holds."""


class Source(Protocol):
    """``name`` and ``revision`` go into the manifest; ``part_size`` is that of the files' hashes, if they have any."""

    name: str
    revision: str | None
    part_size: int | None
    files: tuple[SourceFile, ...]

    def open(self, file: SourceFile) -> Reader: ...


class DirectorySource:
    """A directory: an archive tier, another mount, a snapshot in a hub cache (its links are followed).

    A copy must agree with the manifest of the directory, if it has one. Raises ModelError when the directory cannot be
    listed, or a link in it leads nowhere.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.name = str(self.directory)
        manifest = Manifest.read(self.directory)
        if manifest and (found := manifest.differences(self.directory)):
            raise ModelError("the source is not as its manifest says: " + "; ".join(found[:10]), where=self.name)
        self.revision = manifest.revision if manifest else None
        self.part_size = manifest.part_size if manifest else None
        known = {entry.path: entry for entry in manifest.files} if manifest else {}
        try:
            listed = sorted(_walk(self.directory, ""))
        except OSError as error:
            raise ModelError(f"cannot be listed: {error.strerror}", where=error.filename or self.name) from None
        if known:
            listed = [name for name in listed if name in known]
        self.files = tuple(self._describe(name, known.get(name)) for name in listed)
        if not self.files:
            raise ModelError("no files to stage", where=self.name)

    def _describe(self, name: str, entry: FileEntry | None) -> SourceFile:
        path = self.directory / name
        try:
            status = path.stat()
        except OSError as error:
            why = "a link to nothing" if path.is_symlink() else str(error.strerror).lower()
            raise ModelError(f"{name} is {why}", where=self.name) from None
        return SourceFile(
            name,
            status.st_size,
            str(status.st_mtime_ns),
            hash=entry.hash if entry else None,
            sha256=entry.sha256 if entry else None,
        )

    def open(self, file: SourceFile) -> Reader:
        """Open one of ``files``. Raises OSError, ModelError when it is another by now."""
        return _FileReader(self.directory / file.path, file)


class _FileReader(Reader):
    def __init__(self, path: Path, file: SourceFile) -> None:
        self._path, self._file = path, file
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def _open(self) -> int:
        assert self.descriptor is not None
        return self.descriptor

    def chunks(self, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        return read_range(self._open, offset, length, buffer)

    def drop_from_cache(self, offset: int, length: int) -> None:
        drop_from_cache(self._open, offset, length)

    def check_unchanged(self) -> None:
        status = os.fstat(self._open)
        if (status.st_size, str(status.st_mtime_ns)) != (self._file.size, self._file.stamp):
            raise ModelError("the file changed while it was copied", where=str(self._path))

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def _walk(directory: Path, prefix: str) -> Iterator[str]:
    """Relative paths of all files; links are followed. Leftovers of downloads are no files of the checkpoint."""
    for entry in list(os.scandir(directory)):  # no directory stays open while those below are listed
        if entry.is_dir():
            if entry.name not in _NOT_TAKEN:
                yield from _walk(directory / entry.name, f"{prefix}{entry.name}/")
        elif entry.name != MANIFEST_NAME and not entry.name.endswith((".incomplete", ".part", ".lock")):
            yield prefix + entry.name
