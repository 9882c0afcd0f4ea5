"""Which runs use an image, by their records: for the marks in image directories, and for who collects garbage there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.rights import describe_os_error
from launcher.image import usage
from launcher.image.usage import ImageUse
from launcher.run.record import RunRecord

_UNKNOWN = "runs that cannot be listed"


def images_in_use(runs: Path, directories: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Squash files of runs that have not ended, with the ids of those runs, as far as the records in ``runs`` tell.

    Where the runs cannot be listed, every image of ``directories`` may be in use. A run whose record cannot be read may
    live: it uses the images of its plan, and where that cannot be read either, every image.
    """
    from launcher.run.listing import UnreadableRecord, records

    users: dict[str, list[str]] = {}
    unreadable: list[UnreadableRecord] = []
    try:
        alive = [record for record in records(runs, unreadable) if not record.fields.has_ended]
    except ConfigError:
        return {str(path): [_UNKNOWN] for directory in directories for path in directory.glob("*.sqsh")}
    for record in [*alive, *(record_error.record for record_error in unreadable)]:
        images = _images_of(record)
        if images is None:
            images = [str(path) for directory in directories for path in directory.glob("*.sqsh")]
        for squash in images:
            users.setdefault(squash, []).append(record.id)
    return users


def _images_of(record: RunRecord) -> list[str] | None:
    """The squash files of a run: as planned, and as they were had. None when neither is known."""
    used = [image.get(key) for key in ("planned", "squash") for image in record.images]
    images = [image for image in used if isinstance(image, str) and image]
    try:
        images = [*(image.squash for image in record.plan.images), *images]
    except ConfigError:
        if not images:
            return None
    return list(dict.fromkeys(images))


def mark_used_by(record: RunRecord) -> Callable[[Path], None]:
    """A function that marks an image as used by the run.

    Where no mark can be made, the run's record says so: the garbage collection of others does not see the use then.
    """

    def mark(squash: Path) -> None:
        if error := usage.add_mark(squash, record.id, record.directory):
            reason = f"{describe_os_error(error, squash.parent)}; gc of others may remove it"
            record.event("note", f"{squash.name} cannot be marked as used by this run: {reason}")

    return mark


def unmark(record: RunRecord) -> None:
    """Remove the marks of a run that is settled; those of another run stay."""
    if record.fields.settled:
        for directory in {Path(squash).parent for squash in _images_of(record) or ()}:
            usage.remove_marks(directory, record.id, record.directory)


def is_run_over(use: ImageUse) -> bool:
    """Whether the record that a mark names says that its run is over. A record that is not seen from here does not."""
    try:
        record = RunRecord.load(Path(use.record).parent, use.run)
    except ConfigError:
        return False
    return record.fields.settled
