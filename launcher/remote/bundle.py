"""What a command needs of this machine's files, on the far side: matrix, recipes, runner files; once, by content.

They go as one tar whose name is its hash. There it is unpacked into a directory of that name, whole or not at all; a
bundle that is there already is not sent again.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher.core.errors import ConfigError, RemoteError
from launcher.core.publish import make_private, publishing_directory
from launcher.core.terminal import one_line
from launcher.remote.session import Session

PART = 512 << 10
"""Bytes of a bundle in one message."""
MOST = 64 << 20
"""Bytes that a bundle may have, packed or not."""
MOST_FILES = 20_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LEFT_OUT = {".git", "__pycache__", ".venv", "node_modules"}


@dataclass(frozen=True)
class Bundle:
    """A tar.gz and its SHA-256; equal files give equal bytes."""

    digest: str
    content: bytes


def pack(places: Mapping[str, Path | bytes]) -> Bundle:
    """The files of ``places``, a name in the bundle → a file or directory here, or what a file of it holds. Raises
    ConfigError, OSError."""
    packed = io.BytesIO()
    size = count = 0
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, place in sorted(places.items()):
            for path, inner in [(None, "")] if isinstance(place, bytes) else _files(place):
                member = tarfile.TarInfo(f"{name}/{inner}" if inner else name)
                content = place if isinstance(place, bytes) else (path or place).read_bytes()
                runs = path is not None and os.access(path, os.X_OK)
                member.size, member.mode = len(content), 0o700 if runs else 0o600
                size, count = size + len(content), count + 1
                if size > MOST or count > MOST_FILES:
                    message = f"more than {MOST >> 20} MiB or {MOST_FILES} files would be sent to the login node"
                    raise ConfigError(message, where=name, hint="name a smaller directory")
                tar.addfile(member, io.BytesIO(content))
    content = gzip.compress(packed.getvalue(), 6, mtime=0)
    return Bundle(hashlib.sha256(content).hexdigest(), content)


def _files(place: Path) -> Iterator[tuple[Path, str]]:
    """The regular files of a directory with their paths in it, links followed to files alone; or the file itself."""
    if place.is_file():
        yield place, ""
    for directory, below, names in os.walk(place):
        below[:] = sorted(name for name in below if name not in _LEFT_OUT)
        for path in (Path(directory, name) for name in sorted(names)):
            if path.is_file():
                yield path, path.relative_to(place).as_posix()


def send_bundle(session: Session, bundle: Bundle) -> str:
    """Have the bundle there; the path of its directory. Raises RemoteError."""
    place = session.request("put", str, digest=bundle.digest)
    for at in range(0, len(bundle.content), PART) if not place else ():
        data = base64.b64encode(bundle.content[at : at + PART]).decode()
        last = at + PART >= len(bundle.content)
        place = session.request("put", str, digest=bundle.digest, offset=at, data=data, last=last)
    return place


def unpack_bundle(directory: Path, bundle: Bundle) -> Path:
    """The bundle below ``directory``, unpacked there unless it was; its own directory."""
    final = directory / bundle.digest
    if not final.is_dir():
        make_private(directory)
        with publishing_directory(final) as made:
            made.mkdir(mode=0o700)
            (made / "workspace").mkdir()
            _unpack(bundle.content, made)
    return final


def receive_part(state: Path, digest: str, offset: int = 0, data: str = "", last: bool = False) -> str:
    """The far side of `send_bundle`, a part or the question: the path of the bundle once it is whole, else "". Raises
    RemoteError."""
    directory = state / "bundles"
    if not _DIGEST.fullmatch(digest):
        raise RemoteError("a bundle's name is its SHA-256")
    final = directory / digest
    if final.is_dir() or not data:
        if not final.is_dir():
            return ""
        os.utime(final)  # it is used again: `tidying` counts from here
        return str(final)
    make_private(directory)
    part = directory / f".{digest}.{os.getpid()}"
    if offset > MOST or (offset and (not part.exists() or part.stat().st_size != offset)):
        raise RemoteError("the parts of a bundle came out of order")
    kept = False
    try:
        with part.open("ab" if offset else "wb") as file:
            file.write(base64.b64decode(data))
        if not last:
            kept = True
            return ""
        content = part.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise RemoteError("the bundle arrived changed", hint="try again")
        return str(unpack_bundle(directory, Bundle(digest, content)))
    finally:
        if not kept:
            part.unlink(missing_ok=True)


def _unpack(content: bytes, directory: Path) -> None:
    """Write a bundle's files. Raises RemoteError for whatever is no plain file below the directory."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        for member in tar:
            path = path_below(directory, member.name)
            if not member.isreg() or (file := tar.extractfile(member)) is None:
                raise RemoteError(f"a bundle holds what is no file: {one_line(member.name)[:200]}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())
            path.chmod(member.mode & 0o700)


def path_below(directory: Path, name: object) -> Path:
    """A path below a directory, by a name that another side gives. Raises RemoteError where it would lead elsewhere."""
    path = PurePosixPath(str(name))
    plain = str(name) == path.as_posix() and str(name).isprintable() and len(str(name)) < 1000
    if path.is_absolute() or not path.parts or ".." in path.parts or not plain:
        raise RemoteError(f"a file's path leaves its directory: {one_line(name)[:200]}")
    return directory.joinpath(*path.parts)
