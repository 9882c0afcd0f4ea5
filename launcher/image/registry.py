"""What a registry says of an image before anything is downloaded: its digest, its architecture, its size.

The HTTP API of OCI registries (distribution-spec v1.1): a manifest, or an index of them by platform; a token from the
realm that a 401 names. Wrong names, missing permission and the wrong architecture are errors at once. A registry that
does not answer is `Unreachable`; what follows from that is for the caller to decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import platform
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launcher.core.errors import ImageError
from launcher.core.retry import error_of, telling
from launcher.image.enroot import MadeByCommand, allows_http, credentials, fault_of_status, with_account
from launcher.image.reference import Reference
from launcher.image.squash import Sidecar

ATTEMPTS = 4
PATIENCE = 300.0
"""Seconds that a registry may make us wait (``Retry-After``) in all."""

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_ACCEPT = ", ".join((*_INDEXES, *_MANIFESTS))
_LARGEST = 16 << 20
"""Bytes that are read of an answer. No manifest and no image configuration is longer."""
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


class Unreachable(ImageError):
    """The registry did not answer, or not in a way that says anything of the image."""


class _MayPass(ImageError):
    """Another request may be answered: after ``pause`` seconds, if the registry said so, and at most ``attempts``."""

    pause: float | None = None
    attempts = ATTEMPTS


class _NoAnswer(_MayPass, Unreachable):
    """A status of 500 or more, an answer that was cut, or no connection."""


class _Platform(msgspec.Struct):
    """What an image is for, in an index and in the image's own configuration."""

    architecture: str
    os: str = "linux"


class _Descriptor(msgspec.Struct):
    """What stands for a manifest in an index, and for configuration and layers in a manifest."""

    digest: str
    size: int = 0
    platform: _Platform | None = None


class _Document(msgspec.Struct):
    """What we read of an index (``manifests``) or a manifest (``config``, ``layers``)."""

    manifests: list[_Descriptor] | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None


_T = TypeVar("_T", _Document, _Platform)


@dataclass(frozen=True)
class Manifest:
    """An image for one platform.

    ``digest`` is that of the platform's manifest, which `enroot digest` prints too; ``index`` that of the index by
    which it was found, None for an image of one platform. ``architecture`` is Debian's name (amd64, arm64), ``size``
    the bytes of its layers as they are downloaded.
    """

    digest: str
    index: str | None
    architecture: str
    size: int


@dataclass
class Registry:
    """Asks the registry of an image. ``environ`` names enroot's credentials file, proxies, and ENROOT_ALLOW_HTTP.

    ``architecture`` is ``x86_64``, ``aarch64``, or Debian's name; None means this machine's. ``timeout`` is in seconds,
    for each request; ``attempts`` is how often one is sent that may get another answer. ``log`` gets a line for each
    failed attempt that is followed by another.
    """

    reference: Reference
    environ: Mapping[str, str]
    architecture: str | None = None
    log: Callable[[str], None] = lambda message: None
    sleep: Callable[[float], None] = time.sleep
    timeout: float = 10.0
    attempts: int = ATTEMPTS
    _authorization: str | None = field(default=None, init=False)
    _realm: str = field(default="", init=False)

    def manifest(self) -> Manifest:
        """Look up the image.

        Raises Unreachable; ImageError for what will not pass: 401, 403, 404, no such architecture, a digest that does
        not fit, a rate limit that lasts longer than we wait.
        """
        machine = self.architecture or platform.machine()
        wanted = _DEBIAN.get(machine, machine)
        body, digest = self._fetch(_Document, f"manifests/{self.reference.version}")
        index = None
        if body.manifests is not None:
            linux = [entry for entry in body.manifests if entry.platform and entry.platform.os == "linux"]
            there = {entry.platform.architecture: entry.digest for entry in reversed(linux) if entry.platform}
            self._require(wanted, there)
            index, digest = digest, there[wanted]
            body, _ = self._fetch(_Document, f"manifests/{digest}")
        elif body.config is not None:
            self._require(wanted, [self._fetch(_Platform, f"blobs/{body.config.digest}")[0].architecture])
        if body.layers is None or not (index or body.config):
            raise self._not_understood()
        return Manifest(digest, index, wanted, sum(layer.size for layer in body.layers))

    def check_tag(self, squash: Path, known: Sidecar) -> tuple[str, str | None]:
        """Whether the tag still names the image that is ``known`` to be at ``squash``.

        Gives a fact, empty when it does for sure, and the digest of the other image that it is known to name now. A
        digest cannot move. A registry that does not answer is a fact, since a whole image is there.
        """
        if self.reference.digest:
            return "", None
        try:
            # One HEAD, which no rate limit counts, gives the digest of the index, if there is one.
            _, headers = self._patiently(f"manifests/{self.reference.version}", "HEAD")
            named = headers.get("Docker-Content-Digest")
            if named and named in (known.digest, known.index):
                return "", None
            now = self.manifest()
        except ImageError as error:
            return f"whether the tag names another image now is not known: {error.message}", None
        if known.digest is None:
            return f"of which digest {squash.name} is was never recorded; the tag names {now.digest} now", None
        if known.digest in (now.digest, now.index):
            return "", None
        return f"{squash.name} is of {known.digest}, and the tag names {now.digest} now", now.digest

    def _require(self, wanted: str, there: Iterable[str]) -> None:
        if wanted not in there:
            found = ", ".join(sorted(there)) or "no Linux"
            raise ImageError(
                f"{self.reference.repository}:{self.reference.version} is for {found}, and the nodes need {wanted}",
                hint=f"name an image that has {wanted}; or correct node.arch in the runner file",
            )

    def _not_understood(self) -> ImageError:
        return ImageError(
            f"{self.reference.registry} has something for {self.reference.repository} that is no image manifest",
            hint="name a container image; manifests of schema 1 and of charts or models are none",
        )

    def _fetch(self, kind: type[_T], what: str) -> tuple[_T, str]:
        """A JSON document and its digest, checked against what was asked for and what the registry says."""
        content, _ = self._patiently(what, "GET")
        try:
            return msgspec.json.decode(content, type=kind), _digest(content)
        except msgspec.MsgspecError:
            raise self._not_understood() from None

    @cached_property
    def _scheme(self) -> str:
        return "http" if allows_http(self.environ) else "https"

    def _patiently(self, what: str, method: str) -> tuple[bytes, Message]:
        """Ask until there is an answer, as often and as long as that makes sense. Raises as `manifest` does."""
        from tenacity import RetryCallState, Retrying, retry_if_exception_type

        url = f"{self._scheme}://{self.reference.host}/v2/{self.reference.repository}/{what}"
        deadline = time.monotonic() + PATIENCE

        def wait(state: RetryCallState) -> float:
            asked = getattr(error_of(state), "pause", None)
            return float(2 ** (state.attempt_number - 1) if asked is None else asked)

        def stop(state: RetryCallState) -> bool:
            attempts = min(self.attempts, getattr(error_of(state), "attempts", ATTEMPTS))
            return state.attempt_number >= attempts or time.monotonic() + state.upcoming_sleep > deadline

        attempts = Retrying(
            retry=retry_if_exception_type(_MayPass),
            stop=stop,
            wait=wait,
            sleep=self.sleep,
            before_sleep=telling(self.log),
            reraise=True,
        )
        return attempts(self._ask, url, method)

    def _ask(self, url: str, method: str) -> tuple[bytes, Message]:
        registry = self.reference.registry
        try:
            try:
                content, headers = self._send(url, method, self._authorization)
            except urllib.error.HTTPError as error:
                if error.code != 401 or self._authorization:
                    raise
                self._authorization = self._permission(error.headers.get("WWW-Authenticate"))
                content, headers = self._send(url, method, self._authorization)
        except MadeByCommand as error:
            raise Unreachable(f"{registry} was not asked: {error.message}") from None
        except urllib.error.HTTPError as error:
            raise self._status(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, time-outs, resets, a cut answer
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            hint = "try again later; see whether this host reaches it"
            failure = _NoAnswer(f"the registry {registry} cannot be reached: {reason}", hint=hint)
            if not isinstance(error, http.client.HTTPException):
                failure.attempts = 2  # many hosts have no way to the internet
            raise failure from None
        for said in (url.rpartition("/")[2], headers.get("Docker-Content-Digest", "")) if method == "GET" else ():
            if said.startswith("sha256:") and said != (actual := _digest(content)):  # a proxy may have mixed it up
                message = f"{registry} answered with {actual[:19]}… where it says {said[:19]}…"
                raise _MayPass(message, hint="try again later; look at a proxy in between")
        return content, headers

    def _send(self, url: str, method: str, authorization: str | None) -> tuple[bytes, Message]:
        request = urllib.request.Request(url, headers={"Accept": _ACCEPT}, method=method)
        if authorization:
            # Not redirected: blobs lie with others, who refuse a second authorisation and are not to have ours.
            request.add_unredirected_header("Authorization", authorization)
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(request, timeout=self.timeout) as response:
            content = response.read(_LARGEST)
            if method != "HEAD" and (response.length or 0) > 0:  # read(n) does not say that the connection was cut
                raise http.client.IncompleteRead(content, response.length)
            return content, response.headers

    def _permission(self, challenge: str | None) -> str:
        """The Authorization header that a 401's challenge asks for. Raises HTTPError when the realm refuses."""
        kind, _, rest = (challenge or "").partition(" ")
        said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm, is_bearer = said.pop("realm", ""), kind.lower() == "bearer"
        place = urllib.parse.urlsplit(realm)
        self._realm = place.netloc if is_bearer else ""
        account = credentials(self._realm, self.environ) or credentials(self.reference.host, self.environ)
        basic = None
        if account is not None:
            basic = "Basic " + b64encode(f"{account.login}:{account.password}".encode()).decode()
        if is_bearer and place.scheme in {"https", self._scheme}:
            query = {"scope": f"repository:{self.reference.repository}:pull", **said}
            content, _ = self._send(f"{realm}?{urllib.parse.urlencode(query)}", "GET", basic)
            try:
                answer = json.loads(content)
                return f"Bearer {answer.get('token') or answer['access_token']}"
            except (ValueError, KeyError, AttributeError):
                raise urllib.error.URLError(f"{place.netloc} gave no token") from None
        if basic is not None:
            return basic
        raise urllib.error.HTTPError(realm, 401, "Unauthorized", http.client.HTTPMessage(), None)

    def _status(self, error: urllib.error.HTTPError) -> ImageError:
        of = self.reference
        fault = with_account(fault_of_status(error.code), of, self.environ, self._realm)
        message = f"{of.registry}: {of.repository}:{of.version}: {fault.what}"
        if not fault.may_pass:
            return ImageError(message, hint=fault.hint)
        pause = _retry_after(error.headers.get("Retry-After", ""))
        if pause is not None:
            message += f", which says to come again in {pause:.0f} s"
        passing = (_NoAnswer if error.code >= 500 else _MayPass)(message, hint=fault.hint)
        passing.pause = pause
        return passing


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A HEAD stays one, which Python before 3.13 forgets; and what was asked by TLS is not fetched without."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"a redirection from https to {urllib.parse.urlsplit(newurl).scheme}")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and req.get_method() == "HEAD":
            following.method = "HEAD"
        return following


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _retry_after(text: str) -> float | None:
    """Seconds, from seconds or a date (RFC 9110, 10.2.3)."""
    with contextlib.suppress(ValueError, TypeError):
        return float(text) if text.isdecimal() else max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
