"""An image of a plan, by the store: where it is imported, and with which enroot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launcher.errors import ConfigError
from launcher.image.request import ImageRecord, ImageRequest
from launcher.image.store import ImageStore
from launcher.plan import PlannedImage
from launcher.process import CommandRunner
from launcher.record import records

if TYPE_CHECKING:
    from launcher.image.registry import Registry

_OWN = "LAUNCHER_ENROOT_DIRECTORY"
_ON_NODE = ("sh", "-c", f'enroot version; "$@"; code=$?; rm -rf -- "${{{_OWN}:?}}"; exit "$code"', "sh")
"""On the node: enroot's layers are of no use there afterwards, and nobody else would remove them."""


@dataclass(frozen=True)
class Importing:
    """What of a runner decides how its images are imported; ``kind`` is the scheduler's."""

    tools: str
    kind: str
    partition: str | None
    account: str | None

    def is_here(self, image: PlannedImage) -> bool:
        """Whether enroot runs on this host."""
        return image.import_on == "login" or self.kind == "local"


class World(Protocol):
    """What an import needs of `launcher.stages.Effects`."""

    @property
    def environ(self) -> Mapping[str, str]: ...
    @property
    def say(self) -> Callable[[str], None]: ...
    @property
    def run(self) -> CommandRunner: ...
    @property
    def tools(self) -> Mapping[str, str]: ...
    def sleep(self, seconds: float) -> None: ...


def have_image(
    image: PlannedImage, how: Importing, token: str, effects: World, *, job_name: str = "launcher"
) -> ImageRecord:
    """Have the image as a whole squash file. ``token`` marks the job of an import, if it takes one.

    Raises ImageError.
    """
    squash = Path(image.squash)
    if how.tools == "rehearsal":
        squash.parent.mkdir(parents=True, exist_ok=True)
    here = how.is_here(image)
    store = ImageStore(
        effects.run,
        say=effects.say,
        enroot=("enroot",) if here else (*_srun(image, how, token, job_name), *_ON_NODE, "enroot"),
        asked=here,
        registry=_registry(image, how, effects),
        sleep=effects.sleep,
    )
    own = effects.tools if here else _on_node(image.temporary or "/tmp", token)
    record = store.ensure(
        ImageRequest(
            reference=image.reference,
            uri=image.uri,
            squash=squash,
            flock_path=Path(image.lock),
            lock_wait=image.lock_wait,
            import_timeout=image.import_timeout,
            temp_directory=Path(image.temporary) if image.temporary and here else None,
            enroot_environment={**own, **image.environment},
            where=image.where,
            architecture=image.architecture,
            moved_tag=image.moved_tag,
        )
    )
    digest = f", {record.digest}" if record.digest else ""
    effects.say(f"image {image.reference}: {record.how} in {record.seconds:.3f} s ({record.size / 1e6:.1f} MB{digest})")
    return record


def images_in_use(runs: Path) -> dict[str, list[str]]:
    """Squash files that runs have which have not ended, with those runs; as far as the records below ``runs`` tell."""
    found: dict[str, list[str]] = {}
    for record in records(runs):
        if record.ended:
            continue
        with contextlib.suppress(ConfigError):
            for image in record.plan.images:
                found.setdefault(image.squash, []).append(record.id)
        for image in record.stage("images").get("images", ()):
            if record.id not in found.setdefault(image["squash"], []):
                found[image["squash"]].append(record.id)
    return found


def _registry(image: PlannedImage, how: Importing, effects: World) -> Registry | None:
    """None for stand-ins: what they import is in no registry."""
    if how.tools == "rehearsal":
        return None
    from launcher.image.registry import Registry

    return Registry({**effects.environ, **image.environment}, say=effects.say, sleep=effects.sleep)


def _on_node(temporary: str, token: str) -> Mapping[str, str]:
    """enroot's directories for an import on a compute node; it makes all of them itself but the first."""
    own = f"{temporary}/launcher-{token}"
    return {
        _OWN: own,
        "ENROOT_TEMP_PATH": temporary,
        "ENROOT_CACHE_PATH": f"{own}/cache",
        "ENROOT_DATA_PATH": f"{own}/data",
        "ENROOT_RUNTIME_PATH": f"{own}/runtime",
    }


def _srun(image: PlannedImage, how: Importing, token: str, job_name: str) -> tuple[str, ...]:
    """A job of one task without GPUs, on a node of the architecture that the image is for."""
    partition = image.import_partition or how.partition
    return (
        "srun",
        *([f"--partition={partition}"] if partition else []),
        *([f"--account={how.account}"] if how.account else []),
        "--nodes=1",
        "--ntasks=1",
        *([f"--cpus-per-task={image.processors}"] if image.processors else []),
        f"--time={max(1, image.import_timeout // 60)}",
        f"--job-name={job_name}",
        f"--comment={token}-import",
        *image.import_options,
    )
