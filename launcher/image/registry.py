"""What a registry says of an image before anything is downloaded: its digest, its architecture, its size.

The HTTP API of OCI registries (distribution-spec v1.1): a manifest, or an index of them by platform; a token from the
realm that a 401 names. Wrong names, missing permission and the wrong architecture are errors at once. A registry that
does not answer is `Unreachable`; what follows from that is for the caller to decide.
"""

from __future__ import annotations

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
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
    """Another request may be answered. ``pause`` is how many seconds the registry said to wait, if it said so."""

    pause: float | None = None


class _NoAnswer(_MayPass, Unreachable):
    """A status of 500 or more, or an answer that was cut."""


class _NoConnection(_NoAnswer):
    """No connection. It is tried once more only, because many hosts have no way to the internet."""


class _Platform(msgspec.Struct):
    architecture: str
    os: str = "linux"


class _Entry(msgspec.Struct):
    digest: str
    platform: _Platform


class _Config(msgspec.Struct):
    digest: str


class _Layer(msgspec.Struct):
    size: int


class _Document(msgspec.Struct):
    """What we read of an index (``manifests``) or a manifest (``config``, ``layers``)."""

    manifests: list[_Entry] | None = None
    config: _Config | None = None
    layers: list[_Layer] | None = None


class _Configuration(msgspec.Struct):
    architecture: str


_T = TypeVar("_T", _Document, _Configuration)


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

    def is_named(self, digest: str | None) -> bool:
        """Whether a digest means this image."""
        return digest is not None and digest in (self.digest, self.index)


@dataclass(frozen=True)
class TagAnswer:
    """What the tag of an image that is there names now: ``fact`` says it if it is not the recorded image for sure.

    ``moved_to`` is the digest of the other image that it names, None when it is not known to name another one.
    """

    fact: str = ""
    moved_to: str | None = None


class Registry:
    """Asks registries. ``environ`` names enroot's credentials file, proxies, and ENROOT_ALLOW_HTTP.

    ``timeout`` is in seconds, for each request; ``attempts`` is how often one is sent that may get another answer.
    ``log`` gets a line for each failed attempt that is followed by another.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        log: Callable[[str], None] = lambda message: None,
        sleep: Callable[[float], None] = time.sleep,
        timeout: float = 10.0,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._environ, self._log, self._sleep, self._timeout, self._attempts = environ, log, sleep, timeout, attempts
        self._scheme = "http" if allows_http(environ) else "https"
        self._opener = urllib.request.build_opener(_Redirects)
        self._authorization: dict[tuple[str, str], str] = {}
        self._realms: dict[str, str] = {}

    def once(self, timeout: float) -> Registry:
        """The same, which asks only once and says nothing meanwhile. ``timeout`` is in seconds."""
        return Registry(self._environ, timeout=timeout, attempts=1)

    def manifest(self, reference: Reference, architecture: str | None = None, *, where: str) -> Manifest:
        """Look up the image for ``architecture`` (``x86_64``, ``aarch64``, or Debian's names; this machine's if None).

        Raises Unreachable; ImageError for what will not pass: 401, 403, 404, no such architecture, a digest that does
        not fit, a rate limit that lasts longer than we wait. ``where`` is the place that errors point to.
        """
        machine = architecture or platform.machine()
        wanted = _DEBIAN.get(machine, machine)
        body, digest = self._fetch(_Document, reference, f"manifests/{reference.version}", where)
        index, found = None, wanted
        if body.manifests is not None:
            there: dict[str, str] = {}
            for entry in body.manifests:
                if entry.platform.os == "linux":
                    there.setdefault(entry.platform.architecture, entry.digest)
            if wanted not in there:
                raise _wrong_architecture(reference, [name for name in there if name != "unknown"], wanted, where)
            index, digest = digest, there[wanted]
            body, _ = self._fetch(_Document, reference, f"manifests/{digest}", where)
        elif body.config is None:
            raise _not_understood(reference, where)
        else:
            found = self._fetch(_Configuration, reference, f"blobs/{body.config.digest}", where)[0].architecture
        if body.layers is None:
            raise _not_understood(reference, where)
        if found != wanted:
            raise _wrong_architecture(reference, [found], wanted, where)
        return Manifest(digest, index, found, sum(layer.size for layer in body.layers))

    def tag_digest(self, reference: Reference, *, where: str) -> str | None:
        """The digest that the tag names now (of the index, if there is one): one HEAD, which no rate limit counts.

        None when the registry does not say. Raises as `manifest` does.
        """
        _, headers = self._patiently(reference, f"manifests/{reference.version}", where, "HEAD")
        return headers.get("Docker-Content-Digest")

    def check_tag(self, squash: Path, known: Sidecar, architecture: str | None, *, where: str) -> TagAnswer:
        """Whether the tag of ``squash`` still names the image that is ``known`` to be there.

        A digest cannot move. A registry that does not answer is a fact, since a whole image is there. ``where`` is the
        place that errors point to.
        """
        reference = Reference.parse(known.uri)
        if reference.digest:
            return TagAnswer()
        try:
            now = self.tag_digest(reference, where=where)
            if now is not None and now in (known.digest, known.index):
                return TagAnswer()
            manifest = self.manifest(reference, architecture, where=where)
        except ImageError as error:
            return TagAnswer(f"whether the tag names another image now is not known: {error.message}")
        if known.digest is None:
            names = f"the tag names {manifest.digest} now"
            return TagAnswer(f"of which digest {squash.name} is was never recorded; {names}")
        if manifest.is_named(known.digest):
            return TagAnswer()
        return TagAnswer(
            f"{squash.name} is of {known.digest}, and the tag names {manifest.digest} now", manifest.digest
        )

    def _fetch(self, kind: type[_T], reference: Reference, what: str, where: str) -> tuple[_T, str]:
        """A JSON document and its digest, checked against what was asked for and what the registry says."""
        content, _ = self._patiently(reference, what, where, "GET")
        try:
            return msgspec.json.decode(content, type=kind), _digest(content)
        except msgspec.MsgspecError:
            raise _not_understood(reference, where) from None

    def _patiently(self, reference: Reference, what: str, where: str, method: str) -> tuple[bytes, Message]:
        """Ask until there is an answer, as often and as long as that makes sense. Raises as `manifest` does."""
        from tenacity import RetryCallState, Retrying, retry_if_exception_type

        url = f"{self._scheme}://{reference.host}/v2/{reference.repository}/{what}"
        deadline = time.monotonic() + PATIENCE

        def wait(state: RetryCallState) -> float:
            asked = getattr(error_of(state), "pause", None)
            return float(2 ** (state.attempt_number - 1) if asked is None else asked)

        def stop(state: RetryCallState) -> bool:
            attempts = min(2, self._attempts) if isinstance(error_of(state), _NoConnection) else self._attempts
            return state.attempt_number >= attempts or time.monotonic() + state.upcoming_sleep > deadline

        attempts = Retrying(
            retry=retry_if_exception_type(_MayPass),
            stop=stop,
            wait=wait,
            sleep=self._sleep,
            before_sleep=telling(self._log),
            reraise=True,
        )
        return attempts(self._ask, url, reference, where, method)

    def _ask(self, url: str, reference: Reference, where: str, method: str) -> tuple[bytes, Message]:
        account = (reference.registry, reference.repository)
        try:
            try:
                answer = self._send(url, method, self._authorization.get(account))
            except urllib.error.HTTPError as error:
                if error.code != 401 or account in self._authorization:
                    raise
                self._authorization[account] = self._permission(error.headers.get("WWW-Authenticate"), reference)
                answer = self._send(url, method, self._authorization[account])
        except MadeByCommand as error:
            raise Unreachable(f"{reference.registry} was not asked: {error.message}", where=where) from None
        except urllib.error.HTTPError as error:
            raise self._status(error, reference, where) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, time-outs, resets, a cut answer
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            kind = _NoAnswer if isinstance(error, http.client.HTTPException) else _NoConnection
            raise kind(
                f"the registry {reference.registry} cannot be reached: {reason}",
                where=where,
                hint="try again later; see whether this host reaches it",
            ) from None
        content, headers = answer
        for said in (url.rpartition("/")[2], headers.get("Docker-Content-Digest", "")) if method == "GET" else ():
            if said.startswith("sha256:") and said != (actual := _digest(content)):  # a proxy may have mixed it up
                raise _MayPass(
                    f"{reference.registry} answered with {actual[:19]}… where it says {said[:19]}…",
                    where=where,
                    hint="try again later; look at a proxy in between",
                )
        return answer

    def _send(self, url: str, method: str, authorization: str | None) -> tuple[bytes, Message]:
        request = urllib.request.Request(url, headers={"Accept": _ACCEPT}, method=method)
        if authorization:
            # Not redirected: blobs lie with others, who refuse a second authorisation and are not to have ours.
            request.add_unredirected_header("Authorization", authorization)
        with self._opener.open(request, timeout=self._timeout) as response:
            content = response.read(_LARGEST)
            if method != "HEAD" and (response.length or 0) > 0:  # read(n) does not say that the connection was cut
                raise http.client.IncompleteRead(content, response.length)
            return content, response.headers

    def _permission(self, challenge: str | None, reference: Reference) -> str:
        """The Authorization header that a 401's challenge asks for. Raises HTTPError when the realm refuses."""
        kind, _, rest = (challenge or "").partition(" ")
        said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = said.pop("realm", "")
        host = urllib.parse.urlsplit(realm).netloc if kind.lower() == "bearer" else ""
        self._realms[reference.registry] = host
        account = (credentials(host, self._environ) if host else None) or credentials(reference.host, self._environ)
        basic = None
        if account is not None:
            basic = "Basic " + b64encode(f"{account.login}:{account.password}".encode()).decode()
        if kind.lower() == "bearer" and urllib.parse.urlsplit(realm).scheme in {"https", self._scheme}:
            query = {"scope": f"repository:{reference.repository}:pull", **said}
            content, _ = self._send(f"{realm}?{urllib.parse.urlencode(query)}", "GET", basic)
            try:
                answer = json.loads(content)
                return f"Bearer {answer.get('token') or answer['access_token']}"
            except (ValueError, KeyError, AttributeError):
                raise urllib.error.URLError(f"{host} gave no token") from None
        if basic is not None:
            return basic
        raise urllib.error.HTTPError(realm, 401, "Unauthorized", http.client.HTTPMessage(), None)

    def _status(self, error: urllib.error.HTTPError, reference: Reference, where: str) -> ImageError:
        realm = self._realms.get(reference.registry, "")
        fault = with_account(fault_of_status(error.code), reference.registry, self._environ, realm)
        message = f"{reference.registry}: {reference.repository}:{reference.version}: {fault.what}"
        if not fault.may_pass:
            return ImageError(message, where=where, hint=fault.hint)
        pause = _retry_after(error.headers.get("Retry-After"))
        if pause is not None:
            message += f", which says to come again in {pause:.0f} s"
        passing = (_NoAnswer if error.code >= 500 else _MayPass)(message, where=where, hint=fault.hint)
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


def _wrong_architecture(reference: Reference, there: list[str], wanted: str, where: str) -> ImageError:
    found = ", ".join(there) or "no Linux"
    return ImageError(
        f"{reference.repository}:{reference.version} is for {found}, and the nodes need {wanted}",
        where=where,
        hint=f"name an image that has {wanted}; or correct node.arch in the runner file",
    )


def _not_understood(reference: Reference, where: str) -> ImageError:
    return ImageError(
        f"{reference.registry} has something for {reference.repository} that is no image manifest",
        where=where,
        hint="name a container image; manifests of schema 1 and of charts or models are none",
    )


def _retry_after(text: str | None) -> float | None:
    """Seconds, from seconds or a date (RFC 9110, 10.2.3)."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
