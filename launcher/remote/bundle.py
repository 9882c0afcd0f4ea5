"""Sends the files of this machine that a command needs (matrix, recipes, runner files) to the far side, once.

They are sent as one tar whose name is its hash. It is unpacked into a directory of that name, whole or not at all; a
bundle that the far side already has is not sent again.
"""

from __future__ import annotations

import base64
import contextlib
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


def pack(sources: Mapping[str, Path | bytes]) -> Bundle:
    """A bundle of ``sources``: name in the bundle → a file or directory here, or the content of a file. Raises
    ConfigError, OSError."""
    buffer = io.BytesIO()
    size = count = 0
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for target, source in sorted(sources.items()):
            for name, mode, content in [("", 0o600, source)] if isinstance(source, bytes) else _read_files(source):
                member = tarfile.TarInfo(f"{target}/{name}" if name else target)
                member.size, member.mode = len(content), mode
                size, count = size + len(content), count + 1
                if size > MOST or count > MOST_FILES:
                    message = f"more than {MOST >> 20} MiB or {MOST_FILES} files would be sent to the login node"
                    raise ConfigError(message, where=target, hint="name a smaller directory")
                tar.addfile(member, io.BytesIO(content))
    content = gzip.compress(buffer.getvalue(), 6, mtime=0)
    return Bundle(hashlib.sha256(content).hexdigest(), content)


def _read_files(source: Path) -> Iterator[tuple[str, int, bytes]]:
    """Relative path, mode and content of the files of a directory, or of the file itself (with the path "").

    Links to files are followed, links to directories are not.
    """
    for path in filter(Path.is_file, [source] if source.is_file() else _paths_below(source)):
        name = "" if path == source else path.relative_to(source).as_posix()
        yield name, 0o700 if os.access(path, os.X_OK) else 0o600, path.read_bytes()


def _paths_below(directory: Path) -> Iterator[Path]:
    """The files one by one: `pack` stops at its limits, without a walk through all of a large directory."""
    for top, below, names in os.walk(directory):
        below[:] = sorted(name for name in below if name not in _LEFT_OUT)
        yield from (Path(top, name) for name in sorted(names))


def send_bundle(session: Session, bundle: Bundle) -> str:
    """Send a bundle unless the far side has it; returns the path of its directory there. Raises RemoteError."""
    path = session.request("put", str, digest=bundle.digest)
    for offset in range(0, len(bundle.content), PART) if not path else ():
        data = base64.b64encode(bundle.content[offset : offset + PART]).decode()
        last = offset + PART >= len(bundle.content)
        path = session.request("put", str, digest=bundle.digest, offset=offset, data=data, last=last)
    return path


def unpack_bundle(directory: Path, bundle: Bundle) -> Path:
    """Unpack a bundle below ``directory`` unless it is there; returns its own directory."""
    final = directory / bundle.digest
    if not final.is_dir():
        make_private(directory)
        with publishing_directory(final) as made:
            made.mkdir(mode=0o700)
            (made / "workspace").mkdir()
            _unpack(bundle.content, made)
    return final


def receive_part(state: Path, digest: str, offset: int = 0, data: str = "", last: bool = False) -> str:
    """The far side of `send_bundle`: store a part, or without data only look whether the bundle is there.

    Returns the path of the bundle once it is whole, else "". Raises RemoteError.
    """
    directory = state / "bundles"
    if not _DIGEST.fullmatch(digest):
        raise RemoteError("a bundle's name is its SHA-256")
    final = directory / digest
    if final.is_dir():
        os.utime(final)  # it is used again: `tidying` counts from here
        return str(final)
    if not data:
        return ""
    make_private(directory)
    part = directory / f".{digest}.{os.getpid()}"
    if offset > MOST or (offset and (not part.exists() or part.stat().st_size != offset)):
        raise RemoteError("the parts of a bundle came out of order")
    with contextlib.ExitStack() as clean_up:
        clean_up.callback(part.unlink, missing_ok=True)
        with part.open("ab" if offset else "wb") as file:
            file.write(base64.b64decode(data))
        if not last:
            clean_up.pop_all()  # keep the part
            return ""
        content = part.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise RemoteError("the bundle arrived changed", hint="try again")
    return str(unpack_bundle(directory, Bundle(digest, content)))


def _unpack(content: bytes, directory: Path) -> None:
    """Write a bundle's files. Raises RemoteError for a member that is no plain file below the directory."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        for member in tar:
            path = path_below(directory, member.name)
            if not member.isreg() or (file := tar.extractfile(member)) is None:
                raise RemoteError(f"a bundle holds what is no file: {one_line(member.name)[:200]}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())
            path.chmod(member.mode & 0o700)


def path_below(directory: Path, name: object) -> Path:
    """The path of an untrusted name below a directory. Raises RemoteError when it would lead out of the directory."""
    path = PurePosixPath(str(name))
    plain = str(name) == path.as_posix() and str(name).isprintable() and len(str(name)) < 1000
    if path.is_absolute() or not path.parts or ".." in path.parts or not plain:
        raise RemoteError(f"a file's path leaves its directory: {one_line(name)[:200]}")
    return directory.joinpath(*path.parts)
