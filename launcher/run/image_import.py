"""An image of a plan, by the store: where it is imported, and with which enroot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launcher.core.errors import ConfigError, ImageError
from launcher.core.process import CommandRunner
from launcher.core.yaml_source import Document
from launcher.image import usage
from launcher.image.die_with_parent import tied
from launcher.image.reference import Reference
from launcher.image.request import ImageRecord, ImageRequest
from launcher.image.store import ImageStore, unmarked
from launcher.image.usage import Use
from launcher.plan.plan import PlannedImage
from launcher.run.record import RunRecord, records

if TYPE_CHECKING:
    from launcher.image.registry import Registry

PATIENCE = 1800
"""Seconds that the job of an import may wait for a node. Slurm itself ends it then, whatever became of us."""

_OWN = "LAUNCHER_ENROOT_DIRECTORY"
_PREFIX = "launcher-enroot-"
_ON_NODE = (
    *("sh", "-c"),
    f'cd "${{{_OWN}%/*}}" && find . -maxdepth 1 -user "$(id -un)" -name "{_PREFIX}*" -mtime +0 -exec rm -rf "{{}}" +\n'
    f'mkdir -p -- "${{{_OWN}:?}}/temp" && enroot version && "$@"\n'
    f'code=$?; rm -rf -- "${{{_OWN}:?}}"; exit "$code"',
    "sh",
)
"""On the node: enroot's layers are of no use there afterwards, and nobody else would remove them. srun ends a step by
SIGKILL, so what an ended one left is removed a day later, by the next import there; none lasts so long."""


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
    """What an import needs of `launcher.run.stages.Effects`."""

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
    image: PlannedImage,
    how: Importing,
    token: str,
    effects: World,
    *,
    job_name: str = "launcher",
    mark: Callable[[Path], None] = unmarked,
) -> ImageRecord:
    """Have the image as a whole squash file. ``token`` marks the job of an import, if it takes one; ``mark`` is as
    `ImageStore` has it.

    Raises ImageError, with the line that names the image.
    """
    squash = Path(image.squash)
    if how.tools == "rehearsal":
        squash.parent.mkdir(parents=True, exist_ok=True)
    here = how.is_here(image)
    store = ImageStore(
        effects.run,
        say=effects.say,
        enroot=("enroot",) if here else (*tied(_srun(image, how, token, job_name)), *_ON_NODE, "enroot"),
        asked=here,
        registry=_registry(image, how, effects),
        mark=mark,
        sleep=effects.sleep,
    )
    own = {**effects.tools, **({} if here else _on_node(image.temporary or "/tmp", token))}
    request = ImageRequest(
        reference=image.reference,
        uri=image.uri,
        squash=squash,
        flock_path=Path(image.lock),
        lock_wait=image.lock_wait,
        import_timeout=image.import_timeout + (0 if here else PATIENCE),
        temp_directory=Path(image.temporary) if image.temporary and here else None,
        enroot_environment={**own, **image.environment},
        where=image.where,
        architecture=image.architecture,
        moved_tag=image.moved_tag,
    )
    try:
        record = store.ensure(request)
    except ImageError as error:
        if error.where == image.where is not None:
            error.where = _line_of(image.where, image.reference)
        raise
    digest = f", {record.digest}" if record.digest else ""
    effects.say(f"image {image.reference}: {record.how} in {record.seconds:.3f} s ({record.size / 1e6:.1f} MB{digest})")
    return record


def import_comment(token: str) -> str:
    """The comment of the job that imports an image for a run: not the run's own, whose job it is not."""
    return f"{token}-import"


def images_in_use(runs: Path) -> dict[str, list[str]]:
    """Squash files that runs have which have not ended, with those runs; as far as the records below ``runs`` tell."""
    found: dict[str, list[str]] = {}
    for record in records(runs):
        if not record.ended:
            for squash in _images_of(record):
                found.setdefault(squash, []).append(record.id)
    return found


def _images_of(record: RunRecord) -> list[str]:
    """The squash files of a run: as planned, and as they were had."""
    planned: list[str] = []
    with contextlib.suppress(ConfigError):
        planned = [image.squash for image in record.plan.images]
    had = record.stage("images").get("images", ())
    return list(dict.fromkeys([*planned, *(i["planned"] for i in had if "planned" in i), *(i["squash"] for i in had)]))


def marking(record: RunRecord) -> Callable[[Path], None]:
    """Marks images as used by a run; that it cannot is a fact, since others must know that their gc does not see it."""

    def mark(squash: Path) -> None:
        if error := usage.mark(squash, record.id, record.directory):
            said = f"{squash.name} cannot be marked as used by this run: {error.strerror}; gc of others may remove it"
            record.event("note", said)

    return mark


def unmark(record: RunRecord) -> None:
    """Remove the marks of a run that is settled; of another they stay."""
    if record.settled:
        for directory in {Path(squash).parent for squash in _images_of(record)}:
            usage.release(directory, record.id, record.directory)


def run_is_over(use: Use) -> bool:
    """Whether the record that a mark names says so: one that is not seen from here says nothing."""
    try:
        record = RunRecord.load(Path(use.record).parent, use.run)
    except ConfigError:
        return False
    return record.settled


_PLACE = re.compile(r"(?P<path>.+) \((?P<key>[^()]+)\)")


def _line_of(where: str, reference: str) -> str:
    """``file (key)`` → ``file:line`` of the image under the key, as near as it is found."""
    found = _PLACE.fullmatch(where)
    if found is None:
        return where
    try:
        document = Document.read(Path(found["path"]), strict=False)
    except ConfigError:
        return where
    data = document.data
    keys = [found["key"]] if isinstance(data, dict) and found["key"] in data else found["key"].split(".")
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return where if data is None else document.where([*keys, *(_path_to(data, reference) or ())])


def _path_to(data: object, value: str) -> tuple[str | int, ...] | None:
    """The keys that lead to a value in a document."""
    if data == value:
        return ()
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, part in inner:
        if (rest := _path_to(part, value)) is not None:
            return (key, *rest)
    return None


def _registry(image: PlannedImage, how: Importing, effects: World) -> Registry | None:
    """None for stand-ins, whose images are in no registry, unless that is one on this machine: a test's."""
    host = Reference.parse(image.uri).registry.partition(":")[0]
    if how.tools == "rehearsal" and host not in ("127.0.0.1", "localhost"):
        return None
    from launcher.image.registry import Registry

    return Registry({**effects.environ, **image.environment}, say=effects.say, sleep=effects.sleep)


def _on_node(temporary: str, token: str) -> Mapping[str, str]:
    """enroot's directories for an import on a compute node; it makes all of them itself but the first two."""
    own = f"{temporary}/{_PREFIX}{token}"
    names = ("TEMP", "CACHE", "DATA", "RUNTIME")
    return {_OWN: own, "TMPDIR": f"{own}/temp", **{f"ENROOT_{name}_PATH": f"{own}/{name.lower()}" for name in names}}


def _srun(image: PlannedImage, how: Importing, token: str, job_name: str) -> tuple[str, ...]:
    """A job of one task without GPUs, on a node of the architecture that the image is for.

    It has a deadline in place of --immediate, which a Slurm with SchedulerParameters=defer always refuses.
    """
    partition = image.import_partition or how.partition
    minutes = max(1, image.import_timeout // 60)
    return (
        "srun",
        *([f"--partition={partition}"] if partition else []),
        *([f"--account={how.account}"] if how.account else []),
        "--nodes=1",
        "--ntasks=1",
        *([f"--cpus-per-task={image.processors}"] if image.processors else []),
        f"--time={minutes}",
        f"--deadline=now+{60 * minutes + PATIENCE}",
        f"--job-name={job_name}",
        f"--comment={import_comment(token)}",
        *image.import_options,
    )
