"""What a registry knows about an image before anything is downloaded: its digest, its architecture, its size.

The HTTP API of OCI registries (distribution-spec v1.1): a manifest, or an index of manifests by platform; a token from
the realm that a 401 names, requested as enroot does (docker.sh of 3.5 and 4.1). Wrong names, missing permission and the
wrong architecture are errors at once. `Unreachable` means that the registry did not answer, or that it refused us where
it may still answer enroot, which can ask in other ways; the caller decides what follows.
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
from launcher.core.reading import prepare_type
from launcher.core.waiting import last_error, log_retries, retry_after_seconds
from launcher.image.enroot import FAULTS, PasswordFromCommand, fault_of_status, why_enroot_differs, with_account_hint
from launcher.image.reference import Reference, fault_table
from launcher.image.requests import INDEXES, MANIFESTS, Requests
from launcher.image.squash import Sidecar

MAX_ATTEMPTS = 4
PATIENCE = 300.0
"""Seconds for which we wait in all when a registry asks for it (``Retry-After``)."""

_CONFIGURATIONS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_MAX_ENTRIES = 100
"""The most entries that are read of an index, and the most documents that one look-up reads within indexes."""
_DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


class Unreachable(ImageError):
    """The registry did not answer, or its answer says nothing about the image."""


class _RetryableError(ImageError):
    """Another request may succeed: after ``pause`` seconds if the registry stated them, ``attempts`` times at most."""

    pause: float | None = None
    attempts = MAX_ATTEMPTS


class _NoAnswerError(_RetryableError, Unreachable):
    """A status of 500 or more, an answer that was cut, or no connection."""


class _Descriptor(msgspec.Struct):
    """A configuration or a layer, as a manifest lists it."""

    digest: str
    size: int = 0
    mediaType: str | None = None


class _Document(msgspec.Struct):
    """What we read of an index (``manifests``) or a manifest (``config``, ``layers``)."""

    manifests: list[Any] | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None


class _Configuration(msgspec.Struct):
    """What we read of an image's configuration. enroot takes either spelling, and only warns when both are missing."""

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
        """An entry as the registry gives it; None when it is no image: signatures, SBOMs, other systems, no digest."""
        fields = entry if isinstance(entry, dict) else {}
        platform, kind = fields.get("platform"), fields.get("mediaType") or ""
        platform = platform if isinstance(platform, dict) else {}
        architecture = name if isinstance(name := platform.get("architecture"), str) else None
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", str(fields.get("digest"))):
            return None
        if platform.get("os", "linux") != "linux" or kind not in ("", *INDEXES, *MANIFESTS):
            return None
        if architecture is None and fields.get("artifactType"):
            return None
        return cls(fields["digest"], architecture, kind in INDEXES)


@dataclass(frozen=True)
class Manifest:
    """An image for one platform.

    ``digest`` is the digest of the platform's manifest, which `enroot digest` prints too. ``index`` is the digest of
    the index that names it, None for an image of one platform. ``architecture`` is Debian's name (amd64, arm64).
    ``size`` is the size of the compressed layers in bytes.
    """

    digest: str
    index: str | None
    architecture: str
    size: int


@dataclass
class Registry:
    """Queries the registry of an image. ``environ`` names enroot's credentials file, proxies, and ENROOT_ALLOW_HTTP.

    ``architecture`` is ``x86_64``, ``aarch64``, or Debian's name; None means this machine's. ``timeout`` is in seconds,
    for each request; ``attempts`` limits how often a request is sent. ``log`` gets a line for each failed attempt that
    is followed by another.
    """

    reference: Reference
    environ: Mapping[str, str]
    architecture: str | None = None
    log: Callable[[str], None] = lambda message: None
    sleep: Callable[[float], None] = time.sleep
    timeout: float = 10.0
    attempts: int = MAX_ATTEMPTS
    _lookups: int = field(default=0, init=False)

    def manifest(self) -> Manifest:
        """Look up the image.

        Raises Unreachable; ImageError when a retry cannot help: 401, 403, 404, no such architecture, a digest that does
        not fit, a rate limit that lasts longer than we wait.
        """
        machine = self.architecture or platform.machine()
        wanted = _DEBIAN_NAMES.get(machine, machine)
        body, digest = self._fetch(_Document, f"manifests/{self.reference.version}")
        if body.manifests is None:
            self._require_architecture(wanted, [self._architecture(body) or wanted])
            return self._manifest(body, digest, None, wanted)
        seen: dict[str, None] = {}
        match = self._find_in_index(body.manifests, wanted, seen)
        if match is None:
            self._require_architecture(wanted, seen)
            raise self._no_manifest()
        return self._manifest(*match, digest, wanted)

    def _find_in_index(self, entries: list[Any], wanted: str, seen: dict[str, None]) -> tuple[_Document, str] | None:
        """The manifest for an architecture within an index, and its digest; ``seen`` gets the index's architectures.

        As in enroot, the first entry of that platform counts. Without one we also search nested indexes and images
        without a platform: enroot ignores them, but we import by digest.
        """
        images = [image for entry in entries[:_MAX_ENTRIES] if (image := _Entry.read(entry))]
        seen.update((image.architecture, None) for image in images if image.architecture)
        named = [image for image in images if image.architecture == wanted][:1]
        others = [image for image in images if image.architecture is None]
        for image in named or sorted(others, key=lambda image: not image.is_index):
            self._lookups += 1
            if self._lookups > _MAX_ENTRIES:
                return None
            body, _ = self._fetch(_Document, f"manifests/{image.digest}")
            if body.manifests is not None:
                if match := self._find_in_index(body.manifests, wanted, seen):
                    return match
            elif named or (body.config and self._architecture(body) == wanted):
                return body, image.digest
        return None

    def _manifest(self, body: _Document, digest: str, index: str | None, wanted: str) -> Manifest:
        if body.layers is None or not (index or body.config):
            raise self._no_manifest()
        return Manifest(digest, index, wanted, sum(layer.size for layer in body.layers))

    def _architecture(self, body: _Document) -> str | None:
        """The architecture of an image of one platform, by its configuration; None where that does not state it."""
        if body.config is None:
            raise self._no_manifest()
        configuration, _ = self._fetch(_Configuration, f"blobs/{body.config.digest}")
        architecture = configuration.architecture or configuration.Architecture
        if not architecture and body.config.mediaType not in _CONFIGURATIONS:
            raise self._no_manifest()
        return architecture or None

    def check_tag(self, squash: Path, known: Sidecar) -> tuple[str, str | None]:
        """Whether the tag still names the image at ``squash``, whose record is ``known``.

        Returns a fact and a digest. The fact is empty when the tag certainly names the same image. The digest is that
        of the other image which the tag names now, None when it is not known to name another. A digest cannot move.
        That a registry does not answer is only a fact, because a whole image is there.
        """
        if self.reference.digest:
            if known.digest is None:
                return f"{squash.name} was taken for {self.reference.digest}: nobody verified that it is", None
            return "", None
        try:
            # One HEAD gives the digest of the index, if there is one. No rate limit counts it.
            _, headers = self._send(f"manifests/{self.reference.version}", "HEAD")
            header = headers.get("Docker-Content-Digest")
            if header and header in (known.digest, known.index):
                return "", None
            manifest = self.manifest()
        except ImageError as error:
            return f"whether the tag names another image now is not known: {error.message}", None
        if known.digest is None:
            return f"the digest of {squash.name} was never recorded; the tag names {manifest.digest} now", None
        if known.digest in (manifest.digest, manifest.index):
            return "", None
        return f"{squash.name} is of {known.digest}, and the tag names {manifest.digest} now", manifest.digest

    def _require_architecture(self, wanted: str, present: Iterable[str]) -> None:
        if wanted not in present:
            platforms = ", ".join(sorted(present)) or "no Linux"
            raise ImageError(
                f"{self.reference.repository}:{self.reference.version} is for {platforms}, and the nodes need {wanted}",
                hint=f"name an image that has {wanted}; or correct node.arch in the runner file",
            )

    def _no_manifest(self) -> ImageError:
        return ImageError(
            f"{self.reference.registry} has something for {self.reference.repository} that is no image manifest",
            hint="name a container image; manifests of schema 1 and of charts or models are none",
        )

    def _fetch(self, kind: type[_T], path: str) -> tuple[_T, str]:
        """A JSON document and its digest, checked against the requested digest and the one that the registry states."""
        content, _ = self._send(path, "GET")
        try:
            return msgspec.json.decode(content, type=prepare_type(kind)), _digest(content)
        except msgspec.MsgspecError:
            raise self._no_manifest() from None

    @cached_property
    def _requests(self) -> Requests:
        return Requests(self.reference, self.environ, self.timeout)

    def _send(self, path: str, method: str) -> tuple[bytes, Message]:
        """Send a request, and repeat it while another attempt may succeed. Raises as `manifest` does."""
        from tenacity import RetryCallState, Retrying, retry_if_exception_type

        url = f"{self._requests.scheme}://{self.reference.host}/v2/{self.reference.repository}/{path}"
        deadline = time.monotonic() + PATIENCE

        def wait(state: RetryCallState) -> float:
            pause = getattr(last_error(state), "pause", None)
            return float(2 ** (state.attempt_number - 1) if pause is None else pause)

        def stop(state: RetryCallState) -> bool:
            attempts = min(self.attempts, getattr(last_error(state), "attempts", MAX_ATTEMPTS))
            return state.attempt_number >= attempts or time.monotonic() + state.upcoming_sleep > deadline

        attempts = Retrying(
            retry=retry_if_exception_type(_RetryableError),
            stop=stop,
            wait=wait,
            sleep=self.sleep,
            before_sleep=log_retries(self.log),
            reraise=True,
        )
        return attempts(self._send_once, url, method)

    def _send_once(self, url: str, method: str) -> tuple[bytes, Message]:
        registry = self.reference.registry
        try:
            content, headers = self._requests.send(url, method)
        except PasswordFromCommand as error:
            raise Unreachable(f"{registry} was not asked: {error.message}") from None
        except urllib.error.HTTPError as error:
            raise self._status_error(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, time-outs, resets, a cut answer
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            for pattern, fault in fault_table(FAULTS)["words"].items():
                if not fault.may_pass and re.search(pattern, str(reason)):  # of its certificate, or no TLS at all
                    raise Unreachable(f"{registry}: {fault.what}: {reason}", hint=fault.hint) from None
            hint = "try again later; see whether this host reaches it"
            failure = _NoAnswerError(f"the registry {registry} cannot be reached: {reason}", hint=hint)
            if not isinstance(error, http.client.HTTPException):
                failure.attempts = 2  # many hosts have no route to the internet
            raise failure from None
        digests = (url.rpartition("/")[2], headers.get("Docker-Content-Digest", ""))
        for stated in digests if method == "GET" else ():
            if stated.startswith("sha256:") and stated != (actual := _digest(content)):  # perhaps by a broken proxy
                message = f"{registry} answered with {actual[:19]}… where it says {stated[:19]}…"
                raise _RetryableError(message, hint="try again later; look at a proxy in between")
        return content, headers

    def _status_error(self, error: urllib.error.HTTPError) -> ImageError:
        reference = self.reference
        fault = with_account_hint(fault_of_status(error.code), reference, self.environ, self._requests.realm)
        message = f"{reference.registry}: {reference.repository}:{reference.version}: {fault.what}"
        if error.code in (401, 403, 404) and (why := why_enroot_differs(reference.host, self.environ)):
            return Unreachable(f"{message}, and enroot may be answered otherwise: {why}", hint=fault.hint)
        if not fault.may_pass:
            return ImageError(message, hint=fault.hint)
        pause = retry_after_seconds(error.headers.get("Retry-After"))
        if pause is not None:
            message += f", which says to come again in {pause:.0f} s"
        retryable = (_NoAnswerError if error.code >= 500 else _RetryableError)(message, hint=fault.hint)
        retryable.pause = pause
        return retryable


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
