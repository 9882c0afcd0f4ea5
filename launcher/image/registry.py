"""What a registry says of an image before anything is downloaded: its digest, its architecture, its size.

The HTTP API of OCI registries (distribution-spec v1.1): a manifest, or an index of them by platform; a token from the
realm that a 401 names, asked for as enroot asks (docker.sh of 3.5 and 4.1). Wrong names, missing permission and the
wrong architecture are errors at once. A registry that does not answer is `Unreachable`, and so is one that refuses us
where enroot may ask in another way than we can; what follows from that is for the caller to decide.
"""

from __future__ import annotations

import hashlib
import http.client
import platform
import re
import time
import urllib.error
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launcher.core.errors import ImageError
from launcher.core.reading import built
from launcher.core.waiting import asked_pause, error_of, telling
from launcher.image.enroot import FAULTS, PasswordFromCommand, fault_of_status, why_enroot_differs, with_account_hint
from launcher.image.reference import Fault, Reference, fault_table
from launcher.image.requests import INDEXES, MANIFESTS, Requests
from launcher.image.squash import Sidecar

MAX_ATTEMPTS = 4
PATIENCE = 300.0
"""Seconds that a registry may make us wait (``Retry-After``) in all."""

_CONFIGURATIONS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_MOST_ENTRIES = 100
"""Entries of an index that are looked at, and documents that one look-up reads within indexes."""
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


class Unreachable(ImageError):
    """The registry did not answer, or not in a way that says anything of the image."""


class _MayPass(ImageError):
    """Another request may be answered: after ``pause`` seconds, if the registry said so, and at most ``attempts``."""

    pause: float | None = None
    attempts = MAX_ATTEMPTS


class _NoAnswer(_MayPass, Unreachable):
    """A status of 500 or more, an answer that was cut, or no connection."""


class _Descriptor(msgspec.Struct):
    """What stands for configuration and layers in a manifest."""

    digest: str
    size: int = 0
    mediaType: str | None = None


class _Document(msgspec.Struct):
    """What we read of an index (``manifests``) or a manifest (``config``, ``layers``)."""

    manifests: list[Any] | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None


class _Configuration(msgspec.Struct):
    """What we read of an image's own configuration. enroot takes either spelling, and only warns of neither."""

    architecture: str | None = None
    Architecture: str | None = None


_T = TypeVar("_T", _Document, _Configuration)


@dataclass(frozen=True)
class _Entry:
    """An image, or another index, in an index. ``architecture`` is None where the entry has no platform."""

    digest: str
    architecture: str | None
    is_index: bool

    @classmethod
    def read(cls, entry: Any) -> _Entry | None:
        """An entry as the registry gives it; None for what is no image: signatures, SBOMs, other systems, no digest."""
        found = entry if isinstance(entry, dict) else {}
        platform, kind = found.get("platform"), found.get("mediaType") or ""
        place = platform if isinstance(platform, dict) else {}
        architecture = said if isinstance(said := place.get("architecture"), str) else None
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", str(found.get("digest"))):
            return None
        if place.get("os", "linux") != "linux" or kind not in ("", *INDEXES, *MANIFESTS):
            return None
        if architecture is None and found.get("artifactType"):
            return None
        return cls(found["digest"], architecture, kind in INDEXES)


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
    attempts: int = MAX_ATTEMPTS
    _looks: int = field(default=0, init=False)

    def manifest(self) -> Manifest:
        """Look up the image.

        Raises Unreachable; ImageError for what will not pass: 401, 403, 404, no such architecture, a digest that does
        not fit, a rate limit that lasts longer than we wait.
        """
        machine = self.architecture or platform.machine()
        wanted = _DEBIAN.get(machine, machine)
        body, digest = self._fetch(_Document, f"manifests/{self.reference.version}")
        if body.manifests is None:
            self._require(wanted, [self._architecture(body) or wanted])
            return self._manifest(body, digest, None, wanted)
        seen: dict[str, None] = {}
        found = self._within(body.manifests, wanted, seen)
        if found is None:
            self._require(wanted, seen)
            raise self._not_understood()
        return self._manifest(*found, digest, wanted)

    def _within(self, entries: list[Any], wanted: str, seen: dict[str, None]) -> tuple[_Document, str] | None:
        """The manifest of an index for an architecture, and its digest; ``seen`` gets the architectures that it has.

        As enroot does: the first entry whose platform says so. Where there is none, indexes within the index and images
        without a platform, which enroot passes over, are looked into, since the import is by digest.
        """
        images = [image for entry in entries[:_MOST_ENTRIES] if (image := _Entry.read(entry))]
        seen.update((image.architecture, None) for image in images if image.architecture)
        named = [image for image in images if image.architecture == wanted][:1]
        others = [image for image in images if image.architecture is None]
        for image in named or sorted(others, key=lambda image: not image.is_index):
            self._looks += 1
            if self._looks > _MOST_ENTRIES:
                return None
            body, _ = self._fetch(_Document, f"manifests/{image.digest}")
            if body.manifests is not None:
                if found := self._within(body.manifests, wanted, seen):
                    return found
            elif named or (body.config and self._architecture(body) == wanted):
                return body, image.digest
        return None

    def _manifest(self, body: _Document, digest: str, index: str | None, wanted: str) -> Manifest:
        if body.layers is None or not (index or body.config):
            raise self._not_understood()
        return Manifest(digest, index, wanted, sum(layer.size for layer in body.layers))

    def _architecture(self, body: _Document) -> str | None:
        """What an image of one platform is for, by its own configuration; None where that does not say it."""
        if body.config is None:
            raise self._not_understood()
        found, _ = self._fetch(_Configuration, f"blobs/{body.config.digest}")
        said = found.architecture or found.Architecture
        if not said and body.config.mediaType not in _CONFIGURATIONS:
            raise self._not_understood()
        return said or None

    def check_tag(self, squash: Path, known: Sidecar) -> tuple[str, str | None]:
        """Whether the tag still names the image that is ``known`` to be at ``squash``.

        Gives a fact, empty when it does for sure, and the digest of the other image that it is known to name now. A
        digest cannot move. A registry that does not answer is a fact, since a whole image is there.
        """
        if self.reference.digest:
            if known.digest is None:
                return f"{squash.name} was taken for {self.reference.digest}: nobody verified that it is", None
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
            return msgspec.json.decode(content, type=built(kind)), _digest(content)
        except msgspec.MsgspecError:
            raise self._not_understood() from None

    @cached_property
    def _requests(self) -> Requests:
        return Requests(self.reference, self.environ, self.timeout)

    def _patiently(self, what: str, method: str) -> tuple[bytes, Message]:
        """Ask until there is an answer, as often and as long as that makes sense. Raises as `manifest` does."""
        from tenacity import RetryCallState, Retrying, retry_if_exception_type

        url = f"{self._requests.scheme}://{self.reference.host}/v2/{self.reference.repository}/{what}"
        deadline = time.monotonic() + PATIENCE

        def wait(state: RetryCallState) -> float:
            asked = getattr(error_of(state), "pause", None)
            return float(2 ** (state.attempt_number - 1) if asked is None else asked)

        def stop(state: RetryCallState) -> bool:
            attempts = min(self.attempts, getattr(error_of(state), "attempts", MAX_ATTEMPTS))
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
            content, headers = self._requests.send(url, method)
        except PasswordFromCommand as error:
            raise Unreachable(f"{registry} was not asked: {error.message}") from None
        except urllib.error.HTTPError as error:
            raise self._status(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, time-outs, resets, a cut answer
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            if fault := _lasting(str(reason)):  # its certificate, or that it does not speak TLS
                raise Unreachable(f"{registry}: {fault.what}: {reason}", hint=fault.hint) from None
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

    def _status(self, error: urllib.error.HTTPError) -> ImageError:
        of = self.reference
        fault = with_account_hint(fault_of_status(error.code), of, self.environ, self._requests.realm)
        message = f"{of.registry}: {of.repository}:{of.version}: {fault.what}"
        if error.code in (401, 403, 404) and (why := why_enroot_differs(of.host, self.environ)):
            return Unreachable(f"{message}, and enroot may be answered otherwise: {why}", hint=fault.hint)
        if not fault.may_pass:
            return ImageError(message, hint=fault.hint)
        pause = asked_pause(error.headers.get("Retry-After"))
        if pause is not None:
            message += f", which says to come again in {pause:.0f} s"
        passing = (_NoAnswer if error.code >= 500 else _MayPass)(message, hint=fault.hint)
        passing.pause = pause
        return passing


def _lasting(said: str) -> Fault | None:
    """What the words of a failed connection mean, if no other attempt can mend it; None where one may."""
    words = fault_table(FAULTS)["words"].items()
    return next((fault for pattern, fault in words if not fault.may_pass and re.search(pattern, said)), None)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
