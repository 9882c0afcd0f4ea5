"""The image that a plan asks for: one type from the plan to `enroot import`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


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
    that names the image, for errors.
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

    @property
    def squash_path(self) -> Path:
        return Path(self.squash)

    @property
    def error_location(self) -> str:
        """The place that errors point to: where the image is named, else its squash file."""
        return self.where or self.squash
