"""`.complete.json`, the manifest of a staged checkpoint, which is written last; and the hash that it contains.

A file is cut into parts of ``part_size`` bytes (the last one is shorter), which can be copied, hashed and resumed in
any order. Each part has an XXH3-128 digest (big-endian, as `xxhsum -H128` prints it). The hash of a file of one part is
that of the part. The hash of a longer file is the XXH3-128 of its parts' 16-byte digests in order.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import xxhash

from launcher.core.errors import ModelError
from launcher.core.reading import open_regular, prepare_type, read_file
from launcher.core.rights import os_error_hint
from launcher.core.stop import NEVER, Stop
from launcher.model.weights import why_unreadable, wrong_size

MANIFEST_NAME = ".complete.json"
"""The manifest's name in a checkpoint's directory. It exists only when everything else is complete."""

WORK_DIRECTORY = ".staging"
"""The directory of owner and journals in a directory that is being staged. A directory that has it, and no manifest, is
no checkpoint."""

STAGING_NAME = re.compile(r"(?P<name>.+)\.staging\.(?P<token>[0-9a-f]{12})")
"""Names of directories that are being staged, or that a killed process left."""

PART_SIZE = 64 << 20
_MAX_MANIFEST = 64 << 20  # a manifest: some 100 bytes a file
BUFFER = 256 << 10


@dataclass(frozen=True)
class FileEntry:
    """One file: path below the checkpoint ('/' between parts), size in bytes, hash, and the hub's sha256 if stated."""

    path: str
    size: int
    hash: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not is_below(self.path):
            raise ValueError(f"{self.path!r} is not below the checkpoint")


@dataclass(frozen=True)
class Manifest:
    """``source`` is a directory or ``hf:ORGANISATION/NAME``; ``revision`` is the hub's commit, which copies keep.

    ``fingerprint`` is what the files stated when they were verified (fingerprint.py); None in manifests of earlier
    versions.
    """

    source: str
    revision: str | None
    files: tuple[FileEntry, ...]
    part_size: Annotated[int, msgspec.Meta(ge=1)] = PART_SIZE
    created: str = ""
    algorithm: Literal["xxh3-128"] = "xxh3-128"
    schema: Literal[1] = 1
    fingerprint: dict[str, str | int | float] | None = None

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def summary(self) -> dict[str, Any]:
        """For records and JSON output: without the list of files."""
        return {
            "source": self.source,
            "revision": self.revision,
            "files": len(self.files),
            "bytes": self.bytes,
            "created": self.created,
        }

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """The manifest of a checkpoint, None if there is none. Raises ModelError when the file is not one of ours."""
        path = directory / MANIFEST_NAME
        try:
            return msgspec.json.decode(read_file(path, _MAX_MANIFEST), type=prepare_type(cls))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            message = f"the manifest cannot be read: {error.strerror}"
            raise ModelError(message, where=str(path), hint=os_error_hint(error, path)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"not a manifest of this version: {error}", where=str(path)) from None

    def differences(self, directory: Path) -> list[str]:
        """How the directory differs from the manifest, by names and sizes alone: one stat a file, nothing is read."""
        differences = []
        for entry in self.files:
            path = directory / entry.path
            try:
                size = path.stat().st_size
                if size != entry.size:
                    differences.append(f"{entry.path} is {wrong_size(size, entry.size)}")
            except FileNotFoundError:
                differences.append(f"{entry.path} is missing")
            except OSError as error:
                differences.append(f"{entry.path} is {why_unreadable(path, error)}")
        return differences

    def deep_differences(
        self,
        directory: Path,
        *,
        workers: int = 8,
        advance: Callable[[str, int, int], None] = lambda path, size, count: None,
        stop: Stop = NEVER,
    ) -> list[str]:
        """How the directory differs from the manifest, by content: every byte is read and hashed.

        ``advance`` gets path and size of the file, and the number of bytes that were read. Raises Cancelled.
        """

        def check(entry: FileEntry) -> str | None:
            report = functools.partial(advance, entry.path, entry.size)
            try:
                is_same = hash_file(directory / entry.path, self.part_size, advance=report, stop=stop) == entry.hash
            except OSError as error:
                return f"{entry.path} cannot be read: {error.strerror}"
            return None if is_same else f"{entry.path} has another content than was staged"

        if differences := self.differences(directory):
            return differences
        with ThreadPoolExecutor(workers, "verify") as pool:
            return [difference for difference in pool.map(check, self.files) if difference]

    def extra(self, directory: Path) -> list[str]:
        """Files at the top of the directory that the manifest does not name."""
        known = {PurePosixPath(entry.path).parts[0] for entry in self.files} | {MANIFEST_NAME, WORK_DIRECTORY}
        return sorted(entry.name for entry in os.scandir(directory) if entry.name not in known)


def hash_of_parts(digests: Sequence[bytes]) -> str:
    """The hash of a file from its parts' digests, in order."""
    return digests[0].hex() if len(digests) == 1 else xxhash.xxh3_128(b"".join(digests)).hexdigest()


def parts_of(size: int, part_size: int) -> list[tuple[int, int]]:
    """Offset and length of each part of a file; an empty file has one empty part."""
    return [(offset, min(part_size, size - offset)) for offset in range(0, max(1, size), part_size)]


def hash_part(descriptor: int, offset: int, length: int) -> bytes:
    """Read and hash a part of an open file, and drop its pages from the cache. Raises OSError."""
    state = xxhash.xxh3_128()
    for piece in read_range(descriptor, offset, length, memoryview(bytearray(min(BUFFER, length)))):
        state.update(piece)
    drop_from_cache(descriptor, offset, length)
    return state.digest()


def read_range(descriptor: int, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
    """The bytes of a range of an open file, in order, through one buffer; fewer if the file ends. Raises OSError."""
    end = offset + length
    while offset < end:
        count = os.preadv(descriptor, [buffer[: end - offset]], offset)
        if count == 0:
            return
        yield buffer[:count]
        offset += count


def hash_file(
    path: Path, part_size: int, *, advance: Callable[[int], None] = lambda count: None, stop: Stop = NEVER
) -> str:
    """The hash of a file; ``advance`` gets the number of further bytes read. Raises OSError, Cancelled."""
    digests = []
    with open_regular(path, buffered=False) as file:
        for offset, length in parts_of(os.fstat(file.fileno()).st_size, part_size):
            stop.check()
            digests.append(hash_part(file.fileno(), offset, length))
            advance(length)
    return hash_of_parts(digests)


def drop_from_cache(descriptor: int, offset: int, length: int) -> None:
    """Drop clean pages of a range from the page cache, and begin to write dirty ones.

    A checkpoint of 700 GB must not evict what other processes need. Linux writes dirty pages on this advice
    (mm/fadvise.c).
    """
    if length:
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def is_below(path: str) -> bool:
    """Whether a relative path names something below its directory."""
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path
