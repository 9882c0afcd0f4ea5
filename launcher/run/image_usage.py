"""Which runs use an image, by their records: for the marks in image directories, and for who collects garbage there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.image import usage
from launcher.image.usage import ImageUse
from launcher.run.record import RunRecord, records


def images_in_use(runs: Path) -> dict[str, list[str]]:
    """Squash files of runs that have not ended, with the ids of those runs, as far as the records in ``runs`` tell."""
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
    had = record.step("images").facts.get("images", ())
    used = [image.get(key) for key in ("planned", "squash") for image in had]
    return list(dict.fromkeys([*planned, *filter(None, used)]))


def mark_used_by(record: RunRecord) -> Callable[[Path], None]:
    """A function that marks an image as used by the run.

    Where no mark can be made, the run's record says so: the garbage collection of others does not see the use then.
    """

    def mark(squash: Path) -> None:
        if error := usage.mark(squash, record.id, record.directory):
            said = f"{squash.name} cannot be marked as used by this run: {error.strerror}; gc of others may remove it"
            record.event("note", said)

    return mark


def unmark(record: RunRecord) -> None:
    """Remove the marks of a run that is settled; those of another run stay."""
    if record.settled:
        for directory in {Path(squash).parent for squash in _images_of(record)}:
            usage.release(directory, record.id, record.directory)


def is_run_over(use: ImageUse) -> bool:
    """Whether the record that a mark names says that its run is over. A record that is not seen from here does not."""
    try:
        record = RunRecord.load(Path(use.record).parent, use.run)
    except ConfigError:
        return False
    return record.settled
