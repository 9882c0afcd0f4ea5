"""What is asked for: an image reference in any notation that is in use, and the image that a plan names by it.

References are written in the one notation that all versions of enroot read alike.

enroot 3.x and 4.x disagree on most spellings: 3.x (src/docker.sh, one regular expression) takes ``nvcr.io/x/y:tag`` for
a Docker Hub image and ``name:tag@sha256:…`` for a user ``name:tag``; 4.x takes ``localhost/x`` for a Hub image. Both
read ``docker://REGISTRY#REPOSITORY:TAG`` and ``docker://REGISTRY#REPOSITORY:sha256:HEX`` as they are meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from launcher.core.errors import ConfigError
from launcher.core.publish import NAME_MAX

HUB = "docker.io"
_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

NameRule = Literal["underscore", "plus", "plus-nv"]
"""How a cluster names its squash files; see `squash_name`."""

_LONGEST_TAG = 128
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STRAY = re.compile(r"[^A-Za-z0-9._:/@#-]")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CREDENTIALS = "user names belong in enroot's file, ~/.config/enroot/.credentials"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """What an image reference means.

    ``registry`` is a host with or without a port, ``docker.io`` for all names of Docker Hub. ``repository`` is spelled
    out (``library/nginx``). ``tag`` and ``digest`` (``sha256:`` and 64 hexadecimal digits) are what was given: with
    both, the digest decides; with neither, ``latest`` is meant.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, *, where: str | None = None) -> Reference:
        """Read a reference: short Hub names, ``registry/…``, ``registry#…``, tag, digest, ``docker://`` before it.

        A registry before ``/`` has a dot or a port, or is ``localhost``, as Docker has it; before ``#`` it is any host.
        Raises ConfigError, which names what is wrong; ``where`` is the place it points to.
        """
        if not text.strip():
            raise ConfigError("the image is empty", where=where, hint="name one, as in vllm/vllm-openai:v0.25.1")
        try:
            return _read(text.removeprefix("docker://"))
        except _Wrong as wrong:
            raise ConfigError(f"image {_shown(text)}: {wrong.what}", where=where, hint=wrong.hint) from None

    @property
    def host(self) -> str:
        """Where the registry answers, with its port if it has one."""
        return "registry-1.docker.io" if self.registry == HUB else self.registry

    @property
    def version(self) -> str:
        """The digest, else the tag. A digest leaves no room for the tag."""
        return self.digest or self.tag or "latest"

    @property
    def uri(self) -> str:
        """The spelling for `enroot import` that enroot 3.x and 4.x read alike."""
        return f"docker://{self.host}#{self.repository}:{self.version}"


@dataclass(frozen=True)
class PlannedImage:
    """One image to have as a squash file. The fields are those of the plan's JSON.

    ``uri`` is the canonical reference (`Reference.uri`), ``lock`` the path that the bash launchers flock. ``lock_wait``
    and ``import_timeout`` are in seconds. ``temporary`` is the directory for enroot's temporaries on the host that
    imports: a node-local one, since aufs whiteouts cannot be removed over NFS. ``environment`` is added to enroot's
    and wins over everything else in it. ``architecture`` (``x86_64``, ``aarch64``) is what the nodes need; None means
    that of this host. ``moved_tag`` says what to do when an image is there and its tag names another one by now:
    ``keep`` uses it and says so, ``refresh`` imports the new one beside it, ``fail`` is an error. ``processors``,
    ``import_partition`` and ``import_options`` are for the job of an import on a compute node. ``where`` is the place
    that names the image, for errors. Where ``shared`` is false each node has a directory of this name for itself, and
    the job imports the image on its node.
    """

    reference: str
    uri: str
    squash: str
    import_on: Literal["login", "compute"]
    role: str
    lock: str
    lock_wait: int
    import_timeout: int
    temporary: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    where: str | None = None
    architecture: str | None = None
    moved_tag: Literal["keep", "refresh", "fail"] = "keep"
    processors: int | None = None
    import_partition: str | None = None
    import_options: tuple[str, ...] = ()
    shared: bool = True

    @property
    def squash_path(self) -> Path:
        return Path(self.squash)

    @property
    def error_location(self) -> str:
        """The place that errors point to: where the image is named, else its squash file."""
        return self.where or self.squash


def same_image(a: Reference | str, b: Reference | str) -> bool:
    """Whether two references, each in any notation, mean one image. Two digests decide alone; tags are not looked up.

    Raises ConfigError when a text is not a reference.
    """
    a, b = (Reference.parse(x) if isinstance(x, str) else x for x in (a, b))
    return a.uri == b.uri


def names_an_image(name: str) -> bool:
    """Whether a container name is an image reference and no alias: an alias has neither a slash nor a colon."""
    return "/" in name or ":" in name


def squash_name(text: str, rule: NameRule, *, where: str | None = None) -> str:
    """The file name that a cluster gives to the image spelled ``text``, by its rule.

    ``underscore``: each of ``/ : @ #`` becomes ``_``. ``plus``: it becomes ``+``. ``plus-nv``: as ``plus``, after a
    leading ``nvcr.io/`` or ``nvcr.io#`` is dropped. The text counts as it was given, because files that the bash
    launchers made must be found again. Raises ConfigError for an unknown rule, for what is no reference, and for a name
    longer than a directory entry may be (255 bytes).
    """
    if rule not in get_args(NameRule):
        raise ConfigError(f"unknown naming rule {rule!r}", where=where, hint=f"use {' or '.join(get_args(NameRule))}")
    Reference.parse(text, where=where)
    if rule == "plus-nv":
        text = re.sub(r"^nvcr\.io[/#]", "", text)
    name = re.sub(r"[/:@#]", "_" if rule == "underscore" else "+", text) + ".sqsh"
    if len(name.encode()) > NAME_MAX:
        raise ConfigError(
            f"the squash file of {_shown(text)} would have a name of {len(name)} bytes; {NAME_MAX} are possible",
            where=where,
            hint="refer to the image by a shorter tag, or by digest without the tag",
        )
    return name


def refreshed_name(squash: Path, digest: str) -> Path:
    """``x.sqsh`` → ``x@0123456789ab.sqsh``: the place for an image of the same tag, of that digest."""
    stem = re.sub(r"@[0-9a-f]{12}$", "", squash.name.removesuffix(".sqsh"))
    return squash.with_name(f"{stem}@{digest.removeprefix('sha256:')[:12]}.sqsh")


class _Wrong(ValueError):
    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def _read(body: str) -> Reference:
    if scheme := _SCHEME.match(body):
        raise _Wrong(f"the scheme {scheme.group()} is not supported", "write docker://, or no scheme")
    if stray := _STRAY.search(body):
        what = "whitespace" if stray.group().isspace() else f"the character {stray.group()!r}"
        raise _Wrong(f"{what} cannot stand in an image reference", "names have letters, digits and . _ - / : # @")

    registry, rest = _split_registry(body)
    name, tag, digest = _split_version(rest)
    if not name:
        raise _Wrong("the repository is empty", "write REPOSITORY:TAG, with its registry before it if need be")
    if name != name.lower():
        raise _Wrong(f"the repository {name!r} has upper-case letters", "registries have lower-case names only")
    for component in name.split("/"):
        if not component:
            raise _Wrong(f"the repository {name!r} has an empty part", "one '/' between two names, none at the ends")
        if not _COMPONENT.fullmatch(component):
            raise _Wrong(f"{component!r} is not a repository name", "letters and digits, with . _ __ or - between them")
    if registry == HUB and "/" not in name:
        name = f"library/{name}"
    return Reference(registry, name, tag, digest)


def _split_registry(body: str) -> tuple[str, str]:
    if body.count("#") > 1:
        raise _Wrong("'#' stands in it twice", "only the registry is followed by '#': nvcr.io#nvidia/x:tag")
    if "#" in body:
        registry, _, rest = body.partition("#")
        if "@" in registry:
            raise _Wrong("a user name stands before '@'", _CREDENTIALS)
        if "/" in registry:
            raise _Wrong(f"'#' ends the registry, and {registry!r} is not one", "write REGISTRY#REPOSITORY:TAG")
    else:
        first, slash, after = body.partition("/")
        named = slash and "@" not in first and ("." in first or ":" in first or first == "localhost")
        registry, rest = (first, after) if named else (HUB, body)
    host, colon, port = registry.partition(":")
    if not _HOST.fullmatch(host):
        what = f"{host!r} is not a host name" if host else "the registry is empty"
        raise _Wrong(what, "a registry is a host, with :PORT if need be")
    if colon and not (port.isdecimal() and 0 < int(port) < 65536):
        raise _Wrong(f"{port!r} is not a port of the registry {host}", "a tag follows the last part of the name")
    registry = registry.lower()
    return (HUB if registry in _HUB_NAMES else registry), rest


def _split_version(rest: str) -> tuple[str, str | None, str | None]:
    """Name, tag and digest of what follows the registry."""
    if "@" in rest:
        named, _, digest = rest.partition("@")
        if not digest.startswith("sha256:"):
            raise _Wrong("only a digest, sha256:…, can follow '@'", _CREDENTIALS)
    else:  # enroot's own notation of a digest, and the only one that 3.x has
        named, sha, hexadecimal = rest.partition(":sha256:")
        digest = f"sha256:{hexadecimal}" if sha else ""
    if digest and not _DIGEST.fullmatch(digest):
        raise _Wrong(f"{digest!r} is not a digest", "a digest is sha256: and 64 digits 0-9 a-f")
    name, colon, tag = named.partition(":")
    if not colon:
        return name, None, digest or None
    if len(tag) > _LONGEST_TAG:
        raise _Wrong(
            f"the tag has {len(tag)} characters; {_LONGEST_TAG} are possible", "use a shorter tag, or the digest"
        )
    if not _TAG.fullmatch(tag):
        raise _Wrong(
            f"{tag!r} is not a tag" if tag else "a tag should follow ':'", "tags have letters, digits and . _ -"
        )
    return name, tag, digest or None


def _shown(text: str) -> str:
    """The text for a message: short, and without what may be a password."""
    return repr(re.sub(r"[^/]*@(?!sha256:)", "…@", text)[:200])
