"""Which run or sweep a person means: by its id, any prefix that only one has, or the id of the run's Slurm job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ConfigError, resolve_prefix
from launcher.run.fields import read_fields

if TYPE_CHECKING:
    from launcher.run.record import RunRecord

SHORTEST = 4
"""Characters of the shortest prefix that is shown."""


def run_named(runs: Path, text: str) -> str:
    """The id of the run that is meant; what was given where there is none. Raises ConfigError when it may be several.

    Records are read for a number alone, which may be that of a job.
    """
    if os.path.lexists(runs / text) or "/" in text:
        return text
    ids = names(runs)
    by_job = [run for run in ids if _job_of(runs, run) == text] if text.isdecimal() else []
    return resolve_prefix(text, ids, "runs", by_job)


def load_named(runs: Path, text: str) -> RunRecord:
    """The record of the run that is meant. Raises ConfigError."""
    from launcher.run.record import RunRecord

    return RunRecord.load(runs, run_named(runs, text))


def sweep_named(sweeps: Path, text: str) -> str:
    """The name of the sweep that is meant, by itself or by a prefix; what was given where there is none. Raises
    ConfigError when it may be several."""
    return resolve_prefix(text, names(sweeps), "sweeps")


def source_named(state: Path, text: str) -> str:
    """The run or sweep of a report, by its beginning or by a job's id; a directory, and what is neither, as it is."""
    if Path(text).exists() or (state / "sweeps" / text).is_dir():
        return text
    run = run_named(state / "runs", text)
    return run if run != text else sweep_named(state / "sweeps", text)


def names(directory: Path) -> list[str]:
    """The names of all runs, or of all sweeps; none where nobody may list them."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    return []


def shortest(known: Iterable[str]) -> dict[str, str]:
    """Of each name the shortest prefix, in whole words, that no other one has."""
    ordered, short = ["", *sorted(set(known)), ""], {}
    for before, name, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
        end = name.find("-", SHORTEST)
        while end > 0 and (before.startswith(name[:end]) or after.startswith(name[:end])):
            end = name.find("-", end + 1)
        short[name] = name[:end] if end > 0 else name
    return short


def _job_of(runs: Path, run: str) -> str | None:
    with contextlib.suppress(OSError, ConfigError):
        job = read_fields(f"{runs}/{run}/run.json", run, facts=False).job
        return job.id if job is not None else None
    return None
