"""Image references in all notations in use, and the image that a plan names by one.

We write references in the one notation that all versions of enroot read alike.

enroot 3.x and 4.x disagree on most spellings: 3.x (src/docker.sh, one regular expression) takes ``nvcr.io/x/y:tag`` for
a Docker Hub image and ``name:tag@sha256:…`` for a user ``name:tag``; 4.x takes ``localhost/x`` for a Hub image. Both
read ``docker://REGISTRY#REPOSITORY:TAG`` and ``docker://REGISTRY#REPOSITORY:sha256:HEX`` as they are meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from launcher.core.errors import ConfigError
from launcher.core.publish import NAME_MAX
from launcher.core.reading import prepare_type
from launcher.core.yaml_source import Document

HUB = "docker.io"
_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

_FILE_AND_KEY = re.compile(r"(?P<path>.+) \((?P<key>[^()]+)\)")

NameRule = Literal["underscore", "plus", "plus-nv"]
"""How a cluster names its squash files; see `squash_name`."""


@dataclass(frozen=True)
class Fault:
    """``what`` is wrong, a ``hint`` what to do, and whether another attempt may succeed (``may_pass``)."""

    what: str
    hint: str
    may_pass: bool = False


@cache
def fault_table(name: str) -> dict[str, dict[str, Fault]]:
    """A table of faults, the file ``name`` beside this one: section → pattern (a regular expression) → fault."""
    import msgspec

    content = Path(__file__).with_name(name).read_bytes()
    return msgspec.yaml.decode(content, type=prepare_type(dict[str, dict[str, Fault]]))


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
    def parse(cls, text: str) -> Reference:
        """Parse a reference: short Hub names, ``registry/…``, ``registry#…``, tag, digest, ``docker://`` before it.

        Before ``/`` a registry has a dot or a port, or is ``localhost``, as in Docker; before ``#`` it is any host.
        Raises ConfigError, which names what is wrong.
        """
        result = _parse(text)
        if isinstance(result, Fault):
            raise ConfigError(f"image {_quoted(text)}: {result.what}", hint=result.hint)
        return result

    @property
    def host(self) -> str:
        """The host that answers for the registry, with its port if it has one."""
        return "registry-1.docker.io" if self.registry == HUB else self.registry

    @property
    def version(self) -> str:
        """The digest, else the tag. A digest leaves no room for the tag."""
        return self.digest or self.tag or "latest"

    @property
    def uri(self) -> str:
        """The spelling for `enroot import` that enroot 3.x and 4.x read alike. Equal URIs mean the same image.

        Tags are not looked up, and the tag beside a digest does not count.
        """
        return f"docker://{self.host}#{self.repository}:{self.version}"

    @property
    def for_docker(self) -> str:
        """The spelling that docker and podman read."""
        registry = "" if self.registry == HUB else f"{self.registry}/"
        return f"{registry}{self.repository}{'@' if self.digest else ':'}{self.version}"


@dataclass(frozen=True)
class PlannedImage:
    """An image that a job needs as a squash file. The fields are those of the plan's JSON.

    ``uri`` is the canonical reference (`Reference.uri`), ``lock`` the path that the bash launchers flock. ``lock_wait``
    and ``import_timeout`` are in seconds. ``temporary`` is the directory for enroot's temporaries on the host that
    imports: a node-local one, since aufs whiteouts cannot be removed over NFS. ``environment`` is added to enroot's
    and wins over everything else in it. ``architecture`` (``x86_64``, ``aarch64``) is what the nodes need; None means
    that of this host. ``moved_tag`` says what to do when the image is there, but its tag names another one now:
    ``keep`` uses it and logs that, ``refresh`` imports the new one beside it, ``fail`` is an error. ``processors``,
    ``import_partition`` and ``import_options`` are for the job of an import on a compute node. ``where`` is the place
    that names the image, for errors. When ``shared`` is false, each node has its own directory of this name, and the
    job imports the image on its node.
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

    def location(self) -> str:
        """The place for errors: the line that names the image (for ``where: file (key)``), else its squash file."""
        where = self.where or self.squash
        match = _FILE_AND_KEY.fullmatch(where)
        if match is None:
            return where
        try:
            document = Document.read(Path(match["path"]), strict=False)
        except ConfigError:
            return where
        data = document.data
        keys = [match["key"]] if isinstance(data, dict) and match["key"] in data else match["key"].split(".")
        for key in keys:
            data = data.get(key) if isinstance(data, dict) else None
        return where if data is None else document.location([*keys, *(_find_keys(data, self.reference) or ())])


def is_image_reference(name: str) -> bool:
    """Whether the name of a container is an image reference. An alias has neither a slash nor a colon."""
    return "/" in name or ":" in name


@lru_cache(maxsize=1024)
def squash_name(text: str, rule: NameRule) -> str:
    """The file name that a cluster gives to the image ``text``, by its rule.

    ``underscore``: each of ``/ : @ #`` becomes ``_``. ``plus``: it becomes ``+``. ``plus-nv``: as ``plus``, without a
    leading ``nvcr.io/`` or ``nvcr.io#``. The text is not normalised, because files that the bash launchers made must be
    found again. Raises ConfigError when it is no reference, or the name is longer than a directory entry may be (255
    bytes).
    """
    Reference.parse(text)
    if rule == "plus-nv":
        text = re.sub(r"^nvcr\.io[/#]", "", text)
    name = re.sub(r"[/:@#]", "_" if rule == "underscore" else "+", text) + ".sqsh"
    if len(name.encode()) > NAME_MAX:
        raise ConfigError(
            f"the squash file of {_quoted(text)} would have a name of {len(name)} bytes; {NAME_MAX} are possible",
            hint="refer to the image by a shorter tag, or by digest without the tag",
        )
    return name


def refreshed_name(squash: Path, digest: str) -> Path:
    """``x.sqsh`` → ``x@0123456789ab.sqsh``: the path of another image of the same tag, by its digest."""
    stem = re.sub(r"@[0-9a-f]{12}$", "", squash.name.removesuffix(".sqsh"))
    return squash.with_name(f"{stem}@{digest.removeprefix('sha256:')[:12]}.sqsh")


@lru_cache(maxsize=1024)  # thousands of rows name some dozen images
def _parse(text: str) -> Reference | Fault:
    """What a reference means, or what is wrong with it."""
    parts = _parts(text)
    for name, faults in fault_table("reference_faults.yaml").items():
        part = parts[name]
        for pattern, fault in faults.items():
            if part is not None and (match := re.search(pattern, part)):
                what = fault.what.format(part=part, found=match[match.lastindex or 0], length=len(part))
                return Fault(what, fault.hint)
    registry, repository = str(parts["registry"]).lower(), str(parts["repository"])
    if registry in _HUB_NAMES:
        registry, repository = HUB, repository if "/" in repository else f"library/{repository}"
    return Reference(registry, repository, parts["tag"], parts["digest"])


def _parts(text: str) -> dict[str, str | None]:
    """The parts of a reference as they are written, valid or not; None for a missing part."""
    body = text.removeprefix("docker://")
    registry, is_given, rest = body.rpartition("#")
    if not is_given:
        first, slash, after = body.partition("/")
        is_named = slash and "@" not in first and ("." in first or ":" in first or first == "localhost")
        registry, rest = (first, after) if is_named else (HUB, body)
    host, colon, port = registry.partition(":")
    name, at, digest = rest.partition("@")
    if not at:  # enroot's own notation of a digest, the only one that 3.x knows
        name, at, hexadecimal = rest.partition(":sha256:")
        digest = f"sha256:{hexadecimal}"
    repository, is_tagged, tag = name.partition(":")
    return {
        "text": text,
        "registry": registry,
        "host": host,
        "port": port if colon else None,
        "digest": digest if at else None,
        "tag": tag if is_tagged else None,
        "repository": repository,
    }


def _quoted(text: str) -> str:
    """The text for a message, shortened, and without a possible password."""
    return repr(re.sub(r"[^/]*@(?!sha256:)", "…@", text)[:200])


def _find_keys(data: object, value: str) -> tuple[str | int, ...] | None:
    """The keys that lead to a value in a document."""
    if data == value:
        return ()
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, part in inner:
        if (rest := _find_keys(part, value)) is not None:
            return (key, *rest)
    return None
