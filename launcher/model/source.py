"""The source of a checkpoint, a directory or a Hugging Face repository: its files, and how their bytes are read.

The bytes are read in any order, from many threads. huggingface_hub (the extra ``hub``) lists a repository and gives
URLs, token and session. We fetch the bytes by HTTP ranges, so that they are hashed, resumed and verified as those of
any other source.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from launcher.core.errors import ConfigError, ModelError
from launcher.core.lines import count_of
from launcher.core.stop import NEVER, Stop
from launcher.core.waiting import retry_after_seconds
from launcher.model.manifest import MANIFEST_NAME, WORK_DIRECTORY, Manifest, read_range
from launcher.model.weights import why_unreadable

PREFIX = "hf:"
MAX_ATTEMPTS = 6
"""Requests for one range that yield no byte, before we give up."""

LONGEST_WAIT = 600.0
"""The longest Retry-After, in seconds, for which we wait."""

FIRST_WAIT = 2.0
"""Seconds before the second request, if the hub does not state any; then twice as long each time, up to 60."""

_MAX_SMALL_FILE = 4 << 20
"""The most bytes of a file that is read to identify a checkpoint."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_EXCLUDED_DIRECTORIES = (".git", ".cache", WORK_DIRECTORY)
"""Directories at any depth that are not part of a checkpoint: of git, of huggingface_hub's downloads, our own."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. ``stamp`` changes when its content does (a modification time, a blob's id).

    The source may state hashes of the content: ``hash`` (as in a manifest with the source's ``part_size``), ``sha256``,
    ``git_sha1`` (git's blob id).
    """

    path: str
    size: int
    stamp: str
    hash: str | None = None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Reader:
    """An open file of a source. ``descriptor`` is set when the kernel can copy from it.

    ``chunks(offset, length, buffer)`` gives the bytes of a range, in order, perhaps in ``buffer``; each piece is valid
    until the next one is requested. Fewer bytes come if the file ends. Raises OSError, ModelError. ``check_unchanged``
    raises ModelError when the file changed since it was listed.
    """

    chunks: Callable[[int, int, memoryview], Iterator[memoryview]]
    check_unchanged: Callable[[], None] = lambda: None
    descriptor: int | None = None

    def close(self) -> None:
        """Release what the reader holds."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class Source(Protocol):
    """``name`` and ``revision`` go into the manifest; ``part_size`` belongs to the files' hashes, if they have any."""

    name: str
    revision: str | None
    part_size: int | None
    files: tuple[SourceFile, ...]

    def open(self, file: SourceFile) -> Reader: ...


def source_of(name: str, *, stop: Stop = NEVER) -> Source:
    """The source of this name: a directory, or ``hf:ORGANISATION/NAME[@REVISION]``.

    Waits for a busy hub, until ``stop`` is requested. Raises ModelError, ConfigError, Cancelled.
    """
    if not name.startswith(PREFIX):
        return DirectorySource(Path(name))
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    return HubSource(repository, revision or None, stop=stop)


class DirectorySource:
    """A directory: an archive tier, another mount, a snapshot in a hub cache (its links are followed).

    A copy must agree with the directory's manifest, if there is one. Raises ModelError when the directory cannot be
    listed, or a link in it is broken.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.name = str(self.directory)
        manifest = Manifest.read(self.directory)
        if manifest and (differences := manifest.differences(self.directory)):
            raise ModelError("the source is not as its manifest says: " + "; ".join(differences[:10]), where=self.name)
        self.revision = manifest.revision if manifest else None
        self.part_size = manifest.part_size if manifest else None
        known = {entry.path: entry for entry in manifest.files} if manifest else {}
        files = []
        try:
            for name in known or sorted(_walk(self.directory, "")):
                status, entry = (self.directory / name).stat(), known.get(name)
                stated = (entry.hash, entry.sha256) if entry else (None, None)
                files.append(SourceFile(name, status.st_size, str(status.st_mtime_ns), *stated))
        except OSError as error:
            problem = why_unreadable(Path(error.filename), error)
            raise ModelError(f"{error.filename} is {problem}", where=self.name) from None
        self.files = tuple(files)

    def open(self, file: SourceFile) -> Reader:
        """Open one of ``files``. Raises OSError."""
        path = self.directory / file.path
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        def check_unchanged() -> None:
            status = os.fstat(descriptor)
            if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.stamp):
                raise ModelError("the file changed while it was copied", where=str(path))

        return Reader(partial(read_range, descriptor), check_unchanged, descriptor)


def _walk(directory: Path, prefix: str) -> Iterator[str]:
    """Relative paths of all files; links are followed. Leftovers of downloads are left out."""
    for entry in list(os.scandir(directory)):  # no directory stays open while those below are listed
        if entry.is_dir():
            if entry.name not in _EXCLUDED_DIRECTORIES:
                yield from _walk(directory / entry.name, f"{prefix}{entry.name}/")
        elif entry.name != MANIFEST_NAME and not entry.name.endswith((".incomplete", ".part", ".lock")):
            yield prefix + entry.name


class HubSource:
    """``ORGANISATION/NAME`` at a commit, tag or branch. A branch is resolved to its commit, which is the revision.

    Token and endpoint come from the environment (HF_TOKEN, HF_ENDPOINT). Waits for a busy hub, until ``stop`` is
    requested. Raises ModelError when the repository cannot be read, ConfigError without huggingface_hub, Cancelled.
    """

    part_size: int | None = None

    def __init__(
        self, repository: str, revision: str | None = None, *, stop: Stop = NEVER, attempts: int = MAX_ATTEMPTS
    ) -> None:
        self._attempts = attempts
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise ConfigError("huggingface_hub is not installed", hint="pip install 'launcher[hub]'") from None
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):  # huggingface_hub's words
                message = f"{name}={os.environ[name]} forbids it to ask the hub"
                raise ConfigError(message, where=PREFIX + repository, hint=f"unset {name}, or name a directory")
        self.name, self.repository, self._stop = PREFIX + repository, repository, stop
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        info = self._listing(HfApi(endpoint=self._endpoint), revision)
        self.revision: str | None = info.sha
        files = []
        for sibling in info.siblings or ():
            if sibling.rfilename != ".gitattributes":
                # A large file has its own sha256 and size; a small one is a blob of git.
                size, sha256 = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, None)
                blob = None if sibling.lfs else sibling.blob_id
                files.append(SourceFile(sibling.rfilename, size or 0, str(sha256 or blob), None, sha256, blob))
        self.files = tuple(files)

    def _listing(self, api: Any, revision: str | None) -> Any:
        """The repository's files with sizes and hashes, from huggingface_hub."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        repository = self.name if revision is None else f"{self.name}@{revision}"
        requests = _HubRequests(repository, self._stop, self._attempts)
        while True:
            with requests.attempt():
                try:
                    return api.model_info(self.repository, revision=revision, files_metadata=True)
                except HfHubHTTPError as error:
                    requests.check_status(error.response)
                except HFValidationError as error:
                    raise ModelError(str(error).splitlines()[0], where=self.name) from None

    def open(self, file: SourceFile) -> Reader:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repository, file.path, revision=self.revision, endpoint=self._endpoint)
        return Reader(partial(self._chunks, url, f"{self.name}: {file.path}"))

    def _chunks(self, url: str, where: str, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        end, requests = offset + length, _HubRequests(where, self._stop, self._attempts)
        while offset < end:
            with requests.attempt(), _open_range(url, offset, end) as response:
                requests.check_status(response)
                if response.status_code == 200 and offset > 0:
                    raise ModelError("the server does not answer ranges", where=where)
                for raw in response.iter_raw():
                    piece = memoryview(raw)[: end - offset]
                    yield piece
                    offset += len(piece)
                    requests.failures = 0
                    if offset == end:
                        return
                raise _RetryableError("the connection was cut")


def _open_range(url: str, offset: int, end: int) -> Any:
    """A request for a range: a context manager that gives the response."""
    from huggingface_hub import get_session, get_token

    headers = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "launcher"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    return get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=60)


class _RetryableError(Exception):
    """Another request may succeed, after ``wait`` seconds if the hub stated them."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _HubRequests:
    """Repeated requests to the hub for one resource; ``failures`` counts those since the last success."""

    def __init__(self, where: str, stop: Stop, attempts: int) -> None:
        self._where, self._stop, self._attempts = where, stop, attempts
        self.failures = 0

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one request. If it fails and another may succeed, wait as long as the hub asks, or longer each time.

        Raises ModelError after too many failures, or when the hub asks for too long a wait; Cancelled.
        """
        try:
            yield
        except _retryable_errors() as error:
            if problem := _permanent_problem(error):
                raise ModelError(f"the hub cannot be asked: {problem}", where=self._where, hint=_SETTINGS) from None
            self.failures += 1
            requested = error.wait if isinstance(error, _RetryableError) else None
            if self.failures >= self._attempts or (requested or 0) > LONGEST_WAIT:
                attempts = count_of(self.failures, "request")
                message = f"gave up after {attempts}: {str(error) or type(error).__name__}"
                message += f", which asks for {requested:.0f} s" if requested else ""
                raise ModelError(message, where=self._where, hint="the same command goes on from here") from None
            self._stop.sleep(min(FIRST_WAIT * 2 ** (self.failures - 1), 60) if requested is None else requested)

    def check_status(self, response: Any) -> None:
        """Raise _RetryableError for a status that may change soon, ModelError for a permanent one."""
        status, hint = response.status_code, None
        if status < 400:
            return
        if status in _BUSY:
            raise _RetryableError(f"HTTP {status}", _requested_wait(response.headers))
        message = "the hub does not have it" if status == 404 else "the hub does not give it"
        if status in (401, 403):
            message = "the hub refuses: no such repository, or not for this token"
            hint = "set HF_TOKEN to a token that may read it, and accept its terms on the hub"
        raise ModelError(f"{message} (HTTP {status})", where=self._where, hint=hint)


_SETTINGS = "correct HF_ENDPOINT, HTTPS_PROXY or SSL_CERT_FILE of this environment, or unset HF_HUB_OFFLINE"


def _permanent_problem(error: Exception) -> str | None:
    """Why no further attempt can succeed; None when one may. The errors are those of huggingface_hub and httpx."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"OfflineModeIsEnabled", "UnsupportedProtocol", "LocalProtocolError", "InvalidURL"}:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"its certificate is not trusted ({error})"
    return None


def pinned_files(source: str, names: Iterable[str], *, stop: Stop = NEVER) -> dict[str, bytes]:
    """The contents of small files of ``hf:ORGANISATION/NAME@COMMIT``, those of ``names`` that exist, by name.

    Each request is sent at most twice, since the files only confirm a checkpoint. Raises ModelError, ConfigError,
    Cancelled.
    """
    repository, _, commit = source.removeprefix(PREFIX).partition("@")
    hub, contents = HubSource(repository, commit, stop=stop, attempts=2), {}
    for file in hub.files:
        if file.path in names and file.size <= _MAX_SMALL_FILE:
            with contextlib.closing(hub.open(file)) as reader:
                chunks = reader.chunks(0, file.size, memoryview(bytearray(file.size)))
                contents[file.path] = b"".join(bytes(chunk) for chunk in chunks)
    return contents


def _requested_wait(headers: Any) -> float | None:
    """Seconds by a Retry-After (a number, or a date), or by the hub's own header ``RateLimit: "api";r=0;t=55``."""
    if (retry_after := headers.get("retry-after")) is not None:
        return retry_after_seconds(retry_after)
    match = re.search(r"\bt=(\d+)", headers.get("ratelimit") or "")
    return float(match[1]) if match else None


def _retryable_errors() -> tuple[type[Exception], ...]:
    """Errors after which a retry may succeed. huggingface_hub raises those of httpx, which has two package names."""
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            httpx = importlib.import_module(name)
            return (httpx.TransportError, httpx.InvalidURL, OSError, _RetryableError)
    return (OSError, _RetryableError)
