"""One image to have, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

How = Literal["hit", "adopted", "imported"]
MovedTag = Literal["keep", "refresh", "fail"]


@dataclass(frozen=True)
class ImageRequest:
    """One image to have as a squash file. Can be pickled, to be carried out on a compute node.

    ``uri`` is the canonical one (`Reference.uri`). ``architecture`` (``x86_64``, ``aarch64``) is what the nodes need;
    None asks for that of the host. ``moved_tag`` says what a tag that names another image by now means for one that is
    there: ``keep`` says so and uses it, ``refresh`` imports the new one beside it, ``fail`` is an error.
    ``flock_path`` is what the bash launchers flock. ``lock_wait`` and
    ``import_timeout`` are in seconds. ``enroot_environment`` is added to the environment of enroot and wins over
    everything. ``temp_directory`` (node-local: aufs whiteouts cannot be removed over NFS) gets enroot's temporaries;
    the system's temporary directory when None. ``space`` is how many bytes must be free in both directories before an
    import begins. ``where`` is the place that errors point to (``file:line`` of the image), else the squash file.
    """

    reference: str
    uri: str
    squash: Path
    flock_path: Path | None = None
    lock_wait: float = 1800.0
    enroot_environment: Mapping[str, str] = field(default_factory=dict)
    import_timeout: float = 3600.0
    temp_directory: Path | None = None
    space: int = 0
    where: str | None = None
    architecture: str | None = None
    moved_tag: MovedTag = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "enroot_environment", dict(self.enroot_environment))  # a mappingproxy has no pickle


@dataclass(frozen=True)
class ImageRecord:
    """What was done for an image, and what it is.

    ``how``: ``hit`` (a record of ours fits the file), ``adopted`` (whole, and made by somebody else), ``imported``.
    ``digest`` and ``index`` are as in `Manifest`, and None when they are not known. ``size`` in bytes, ``created`` (by
    mksquashfs) and ``seconds`` (all of it, waiting included) in seconds. ``facts`` are one-line statements of what was
    not as it should be.
    """

    reference: str
    uri: str
    squash: Path
    how: How
    size: int
    created: int
    seconds: float
    digest: str | None = None
    index: str | None = None
    enroot_version: str | None = None
    listing: str | None = None
    facts: tuple[str, ...] = ()
