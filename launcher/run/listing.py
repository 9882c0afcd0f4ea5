"""The runs of a state directory, also those whose records cannot be read: no run is passed over for that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.reading import read_file
from launcher.core.rights import describe_os_error
from launcher.plan.plan import check_run_id
from launcher.run.fields import LARGEST, RecordedJob, RunFields, owner_in, read_fields
from launcher.run.record import RunRecord, missing_record_error, open_locked


@dataclass(frozen=True)
class UnreadableRecord:
    """A run's directory whose record or plan is not there or cannot be read, and why. Its job has its name as token."""

    directory: Path
    error: ConfigError
    job: RecordedJob | None = None
    """Its job, where the record could be read and its plan cannot."""

    @property
    def id(self) -> str:
        return self.directory.name

    @property
    def record(self) -> RunRecord:
        """A record that says no more than that there is this run."""
        return RunRecord(self.directory, RunFields(self.id, "", job=self.job))

    @property
    def job_name(self) -> str | None:
        """The name of its job, if its plan can be read."""
        with contextlib.suppress(ConfigError):
            return self.record.plan.job_name
        return None

    @property
    def driven(self) -> bool | None:
        """Whether a launcher drives the run: by its lock, and by what is left of the record; None: cannot be told."""
        with contextlib.suppress(OSError):
            if (handle := open_locked(self.directory / "driver.lock", create=0)) is None:
                return True
            os.close(handle)
        owner = None
        with contextlib.suppress(OSError):
            owner = owner_in(read_file(self.directory / "run.json", LARGEST))
        return owner.alive() if owner is not None else False


def records(runs: Path, unreadable: list[UnreadableRecord] | None = None) -> list[RunRecord]:
    """All readable runs, oldest first; those that cannot be read are added to ``unreadable``. Raises ConfigError."""
    return sorted(each_record(runs, unreadable), key=lambda record: record.fields.created)


def each_record(
    runs: Path, unreadable: list[UnreadableRecord] | None = None, *, facts: bool = True
) -> Iterator[RunRecord]:
    """The runs of a directory by name. Those whose record cannot be read are added to ``unreadable``.

    Without ``facts`` the steps have none, and thousands of records are read in less than a second. What is hidden
    (a record that is being made), or holds nothing, is no run. Raises ConfigError when nothing can be listed.
    """
    try:
        names = sorted(path.name for path in runs.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"the runs cannot be listed: {describe_os_error(error, runs)}", where=str(runs)) from None
    for name in names:
        if name.startswith("."):
            continue
        directory = runs / name
        try:
            fields = read_fields(f"{directory}/run.json", check_run_id(name), facts=facts)
        except (FileNotFoundError, NotADirectoryError):
            if unreadable is not None and _holds_something(directory):
                unreadable.append(UnreadableRecord(directory, missing_record_error(directory)))
        except ConfigError as error:
            if unreadable is not None and directory.is_dir():
                unreadable.append(UnreadableRecord(directory, error))
        else:
            yield RunRecord(directory, fields)


def _holds_something(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except OSError:
        return False
