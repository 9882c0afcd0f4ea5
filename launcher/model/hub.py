"""A Hugging Face repository at a pinned revision as a source.

huggingface_hub (the extra ``hub``) lists the repository and gives URLs, token and session. The bytes are fetched by
HTTP ranges here, so that they are hashed, resumed and verified as those of any other source.
"""

from __future__ import annotations

import email.utils
import importlib
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from launcher.core.errors import ConfigError, ModelError
from launcher.core.stop import Stop
from launcher.model.source import Reader, SourceFile

PREFIX = "hf:"
ATTEMPTS = 6
"""Requests for one range without any byte in between, before it is given up."""

LONGEST_WAIT = 600.0
"""Seconds that a Retry-After may ask for."""

FIRST_WAIT = 2.0
"""Seconds before the second request, where the hub does not say; then twice as long each time, up to 60."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Again(Exception):
    """Another request may succeed, after ``wait`` seconds if the hub said how many."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class HubSource:
    """``ORGANISATION/NAME`` at a commit, tag or branch. A branch is resolved to its commit, which is the revision.

    Token and endpoint come from the environment (HF_TOKEN, HF_ENDPOINT). A busy hub is waited for, until ``stop``
    comes. Raises ModelError when the repository cannot be had, ConfigError without huggingface_hub, Cancelled.
    """

    part_size: int | None = None

    def __init__(self, repository: str, revision: str | None = None, *, stop: Stop = Stop.never()) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise ConfigError("huggingface_hub is not installed", hint="pip install 'launcher[hub]'") from None
        self.name = PREFIX + repository
        self.repository = repository
        self._stop = stop
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        info = self._listing(HfApi(endpoint=self._endpoint), revision)
        self.revision: str | None = info.sha
        self.files = tuple(
            _file(sibling) for sibling in info.siblings or () if sibling.rfilename not in (".gitattributes",)
        )
        if not self.files:
            raise ModelError("the repository holds no files", where=self.name)

    def _listing(self, api: Any, revision: str | None) -> Any:
        """The repository's files with sizes and hashes. A busy hub is asked again."""
        failures = 0
        while True:
            try:
                return _model_info(api, self.repository, revision, self.name)
            except _Again as again:
                failures += 1
                _wait(again, failures, self._stop, self.name)

    def open(self, file: SourceFile) -> Reader:
        """A reader by HTTP ranges."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repository, file.path, revision=self.revision, endpoint=self._endpoint)
        return _HttpReader(url, f"{self.name}: {file.path}", self._stop)


class _HttpReader(Reader):
    def __init__(self, url: str, where: str, stop: Stop) -> None:
        self._url, self._where, self._stop = url, where, stop

    def chunks(self, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        end = offset + length
        failures = 0
        while offset < end:
            try:
                for piece in self._request(offset, end):
                    yield piece
                    offset += len(piece)
                    failures = 0
                if offset < end:
                    raise _Again("the connection was cut")
            except _Again as again:
                failures += 1
                _wait(again, failures, self._stop, self._where)

    def _request(self, offset: int, end: int) -> Iterator[memoryview]:
        from huggingface_hub import get_session, get_token

        session = get_session()
        errors = _transport_errors()
        headers = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "launcher"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        try:
            with session.stream("GET", self._url, headers=headers, follow_redirects=True, timeout=60) as response:
                _judge(response, self._where)
                if response.status_code == 200 and offset > 0:
                    raise ModelError("the server does not answer ranges", where=self._where)
                left = end - offset
                for piece in response.iter_raw():
                    yield memoryview(piece)[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
        except errors as error:
            raise _Again(f"{type(error).__name__}: {error}") from None


def _model_info(api: Any, repository: str, revision: str | None, where: str) -> Any:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return api.model_info(repository, revision=revision, files_metadata=True)
    except HFValidationError as error:
        raise ModelError(str(error).splitlines()[0], where=where) from None
    except HfHubHTTPError as error:
        _judge(error.response, where, revision)
        raise ModelError(str(error).splitlines()[0], where=where) from None
    except _transport_errors() as error:
        raise _Again(f"{type(error).__name__}: {error}") from None


def _judge(response: Any, where: str, revision: str | None = None) -> None:
    """Raise _Again for a status that may change soon, ModelError for one that stays."""
    status = response.status_code
    if status in _BUSY:
        raise _Again(f"HTTP {status}", _asked_wait(response.headers))
    if status in (401, 403):
        hint = "set HF_TOKEN to a token that may read it, and accept its terms on the hub"
        raise ModelError(
            f"the hub refuses (HTTP {status}): no such repository, or not for this token", where=where, hint=hint
        )
    if status == 404:
        at = f" at revision {revision}" if revision else ""
        raise ModelError(f"the hub does not have it{at} (HTTP 404)", where=where)
    if status >= 400:
        raise ModelError(f"the hub answers HTTP {status}", where=where)


def _asked_wait(headers: Any) -> float | None:
    """Seconds of a Retry-After (a number, or a date), or of the hub's own ``RateLimit: "api";r=0;t=55``."""
    said = headers.get("retry-after")
    if said is not None:
        if said.strip().isdecimal():
            return float(said)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
        except ValueError:
            return None
    found = re.search(r"\bt=(\d+)", headers.get("ratelimit") or "")
    return float(found[1]) if found else None


def _wait(again: _Again, failures: int, stop: Stop, where: str) -> None:
    """Wait before the next request: as long as the hub asks for, or else longer each time.

    Raises ModelError after too many ``failures`` in succession, or when the hub asks for too long a wait; Cancelled.
    """
    if failures >= ATTEMPTS or (again.wait or 0) > LONGEST_WAIT:
        wish = f", which asks for {again.wait:.0f} s" if again.wait else ""
        message = f"gave up after {failures} requests: {again}{wish}"
        raise ModelError(message, where=where, hint="the same command goes on from here")
    stop.sleep(min(FIRST_WAIT * 2 ** (failures - 1), 60) if again.wait is None else again.wait)


def _transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub's client raises when a connection fails: httpx's error, under either of its two names."""
    for name in ("httpx2", "httpx"):
        try:
            found = importlib.import_module(name)
        except ImportError:
            continue
        return (found.TransportError, OSError)
    return (OSError,)


def _file(sibling: Any) -> SourceFile:
    lfs = sibling.lfs
    return SourceFile(
        sibling.rfilename,
        (lfs.size if lfs else sibling.size) or 0,
        str(lfs.sha256 if lfs else sibling.blob_id),
        sha256=lfs.sha256 if lfs else None,
        git_sha1=None if lfs else sibling.blob_id,
    )
