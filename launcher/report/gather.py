"""What was asked for, as a report takes it in: run ids, sweeps, directories; each read by its own reader."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from launcher.core.errors import ConfigError, suggest
from launcher.report.document import Gathered
from launcher.report.records import add_run, add_runs


def gather(names: Sequence[str], state: Path) -> Gathered:
    """Everything that the names stand for. Raises ConfigError for a name that stands for nothing."""
    gathered = Gathered()
    for name in names:
        _add(gathered, name, state)
        gathered.sources.append(name)
    return gathered


def _add(gathered: Gathered, name: str, state: Path) -> None:
    for place, add in ((state / "runs" / name, add_run), (state / "sweeps" / name, _add_sweep)):
        if "/" not in name and name not in (".", "..") and place.is_dir():
            add(gathered, place)
            return
    path = Path(name)
    if (path / "run.json").is_file():
        add_run(gathered, path.resolve())
    elif (path / "sweep.json").is_file():
        _add_sweep(gathered, path.resolve())
    elif (path / "runs").is_dir():
        add_runs(gathered, path.resolve() / "runs")
    elif path.exists():
        from launcher.report.artifacts import add_tree

        add_tree(gathered, path)
    else:
        known: list[str] = []
        for directory in (state / "runs", state / "sweeps"):
            with contextlib.suppress(OSError):
                known += [one.name for one in directory.iterdir()]
        hint = suggest(name, known, "a run, a sweep or a directory; launcher status lists the runs")
        raise ConfigError(f"there is no run, sweep or directory {name}", where=str(state), hint=hint)


def _add_sweep(gathered: Gathered, directory: Path) -> None:
    from launcher.report.sweeps import add_sweep  # most reports have none, and it costs a tenth of a second

    add_sweep(gathered, directory)
