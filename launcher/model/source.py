"""Where a checkpoint comes from, a directory or a Hugging Face repository: its files, and how their bytes are read.

The bytes are read in any order, from many threads. huggingface_hub (the extra ``hub``) lists a repository and gives
URLs, token and session. The bytes are fetched by HTTP ranges here, so that they are hashed, resumed and verified as
those of any other source.
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
ATTEMPTS = 6
"""Requests for one range without any byte in between, before it is given up."""

LONGEST_WAIT = 600.0
"""Seconds that a Retry-After may ask for."""

FIRST_WAIT = 2.0
"""Seconds before the second request, where the hub does not say; then twice as long each time, up to 60."""

_SMALL = 4 << 20
"""Bytes of a file that is read to learn what a checkpoint is."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
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


@dataclass(frozen=True)
class Reader:
    """An open file of a source. ``descriptor`` is there when the kernel can copy from it.

    ``chunks(offset, length, buffer)`` gives the bytes of a range, in order; each piece is valid until the next one is
    requested. ``buffer`` may be used for them. Fewer bytes come when the file ends. Raises OSError, ModelError.
    ``check_unchanged`` raises ModelError when the file is not what it was when it was listed.
    """

    chunks: Callable[[int, int, memoryview], Iterator[memoryview]]
    check_unchanged: Callable[[], None] = lambda: None
    descriptor: int | None = None

    def close(self) -> None:
        """Release what the reader holds."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class Source(Protocol):
    """``name`` and ``revision`` go into the manifest; ``part_size`` is that of the files' hashes, if they have any."""

    name: str
    revision: str | None
    part_size: int | None
    files: tuple[SourceFile, ...]

    def open(self, file: SourceFile) -> Reader: ...


def source_of(given: str, *, stop: Stop = NEVER) -> Source:
    """The source that a person names: a directory, or ``hf:ORGANISATION/NAME[@REVISION]``.

    A busy hub is waited for, until ``stop`` comes. Raises ModelError, ConfigError, Cancelled.
    """
    if not given.startswith(PREFIX):
        return DirectorySource(Path(given))
    repository, _, revision = given.removeprefix(PREFIX).partition("@")
    return HubSource(repository, revision or None, stop=stop)


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
        files = []
        try:
            for name in known or sorted(_walk(self.directory, "")):
                status, entry = (self.directory / name).stat(), known.get(name)
                stated = (entry.hash, entry.sha256) if entry else (None, None)
                files.append(SourceFile(name, status.st_size, str(status.st_mtime_ns), *stated))
        except OSError as error:
            why = why_unreadable(Path(error.filename), error)
            raise ModelError(f"{error.filename} is {why}", where=self.name) from None
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
    """Relative paths of all files; links are followed. Leftovers of downloads are no files of the checkpoint."""
    for entry in list(os.scandir(directory)):  # no directory stays open while those below are listed
        if entry.is_dir():
            if entry.name not in _NOT_TAKEN:
                yield from _walk(directory / entry.name, f"{prefix}{entry.name}/")
        elif entry.name != MANIFEST_NAME and not entry.name.endswith((".incomplete", ".part", ".lock")):
            yield prefix + entry.name


class HubSource:
    """``ORGANISATION/NAME`` at a commit, tag or branch. A branch is resolved to its commit, which is the revision.

    Token and endpoint come from the environment (HF_TOKEN, HF_ENDPOINT). A busy hub is waited for, until ``stop``
    comes. Raises ModelError when the repository cannot be had, ConfigError without huggingface_hub, Cancelled.
    """

    part_size: int | None = None

    def __init__(
        self, repository: str, revision: str | None = None, *, stop: Stop = NEVER, attempts: int = ATTEMPTS
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
        """The repository's files with sizes and hashes. A busy hub is asked again."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        asked = self.name if revision is None else f"{self.name}@{revision}"
        requests = _Requests(asked, self._stop, self._attempts)
        while True:
            with requests.attempt():
                try:
                    return api.model_info(self.repository, revision=revision, files_metadata=True)
                except HfHubHTTPError as error:
                    requests.judge(error.response)
                except HFValidationError as error:
                    raise ModelError(str(error).splitlines()[0], where=self.name) from None

    def open(self, file: SourceFile) -> Reader:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repository, file.path, revision=self.revision, endpoint=self._endpoint)
        return Reader(partial(self._chunks, url, f"{self.name}: {file.path}"))

    def _chunks(self, url: str, where: str, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        end, requests = offset + length, _Requests(where, self._stop, self._attempts)
        while offset < end:
            with requests.attempt(), _opened(url, offset, end) as response:
                requests.judge(response)
                if response.status_code == 200 and offset > 0:
                    raise ModelError("the server does not answer ranges", where=where)
                for raw in response.iter_raw():
                    piece = memoryview(raw)[: end - offset]
                    yield piece
                    offset += len(piece)
                    requests.failures = 0
                    if offset == end:
                        return
                raise _Again("the connection was cut")


def _opened(url: str, offset: int, end: int) -> Any:
    """A request for a range, as a context that gives the response."""
    from huggingface_hub import get_session, get_token

    headers = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "launcher"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    return get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=60)


class _Again(Exception):
    """Another request may succeed, after ``wait`` seconds if the hub said how many."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _Requests:
    """Requests to the hub for one thing, as many as it takes; ``failures`` counts those without success in between."""

    def __init__(self, where: str, stop: Stop, attempts: int) -> None:
        self._where, self._stop, self._attempts = where, stop, attempts
        self.failures = 0

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one request: where another one may succeed, wait as long as the hub asks for, or longer each time.

        Raises ModelError after too many failures, or when the hub asks for too long a wait; Cancelled.
        """
        try:
            yield
        except _passing_errors() as error:
            if why := _hopeless(error):
                raise ModelError(f"the hub cannot be asked: {why}", where=self._where, hint=_SETTINGS) from None
            self.failures += 1
            asked = error.wait if isinstance(error, _Again) else None
            if self.failures >= self._attempts or (asked or 0) > LONGEST_WAIT:
                wish = f", which asks for {asked:.0f} s" if asked else ""
                tried = count_of(self.failures, "request")
                message = f"gave up after {tried}: {str(error) or type(error).__name__}{wish}"
                raise ModelError(message, where=self._where, hint="the same command goes on from here") from None
            self._stop.sleep(min(FIRST_WAIT * 2 ** (self.failures - 1), 60) if asked is None else asked)

    def judge(self, response: Any) -> None:
        """Raise _Again for a status that may change soon, ModelError for one that stays."""
        status, hint = response.status_code, None
        if status < 400:
            return
        if status in _BUSY:
            raise _Again(f"HTTP {status}", _asked_wait(response.headers))
        message = "the hub does not have it" if status == 404 else "the hub does not give it"
        if status in (401, 403):
            message = "the hub refuses: no such repository, or not for this token"
            hint = "set HF_TOKEN to a token that may read it, and accept its terms on the hub"
        raise ModelError(f"{message} (HTTP {status})", where=self._where, hint=hint)


_SETTINGS = "correct HF_ENDPOINT, HTTPS_PROXY or SSL_CERT_FILE of this environment, or unset HF_HUB_OFFLINE"


def _hopeless(error: Exception) -> str | None:
    """Why no further attempt can go better; None when one may. The errors are those of huggingface_hub and httpx."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"OfflineModeIsEnabled", "UnsupportedProtocol", "LocalProtocolError", "InvalidURL"}:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"its certificate is not trusted ({error})"
    return None


def pinned_files(given: str, names: Iterable[str], *, stop: Stop = NEVER) -> dict[str, bytes]:
    """Small files of ``hf:ORGANISATION/NAME@COMMIT``, those of ``names`` that are there, by name.

    The hub is asked twice at most, since what is learnt only confirms. Raises ModelError, ConfigError, Cancelled.
    """
    repository, _, commit = given.removeprefix(PREFIX).partition("@")
    source, found = HubSource(repository, commit, stop=stop, attempts=2), {}
    for file in source.files:
        if file.path in names and file.size <= _SMALL:
            with contextlib.closing(source.open(file)) as reader:
                chunks = reader.chunks(0, file.size, memoryview(bytearray(file.size)))
                found[file.path] = b"".join(bytes(chunk) for chunk in chunks)
    return found


def _asked_wait(headers: Any) -> float | None:
    """Seconds of a Retry-After (a number, or a date), or of the hub's own ``RateLimit: "api";r=0;t=55``."""
    if (said := headers.get("retry-after")) is not None:
        return retry_after_seconds(said)
    found = re.search(r"\bt=(\d+)", headers.get("ratelimit") or "")
    return float(found[1]) if found else None


def _passing_errors() -> tuple[type[Exception], ...]:
    """What may not come again. huggingface_hub's client fails with httpx's error, under either of its two names."""
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            httpx = importlib.import_module(name)
            return (httpx.TransportError, httpx.InvalidURL, OSError, _Again)
    return (OSError, _Again)
