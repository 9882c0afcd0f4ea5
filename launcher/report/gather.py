"""Reads a report's sources: run ids, sweeps and directories, each with its own reader.

This module reads rows of aggregates from any directory tree, such as downloaded artifacts of a workflow. It reads every
``*.json`` and uses those that contain rows: ``agg_*.json``, agentic results, evaluations with their ``meta_env.json``,
and the lists that the workflow collects. A row that several files contain counts once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from launcher.core.errors import ConfigError, ResultError, suggest
from launcher.core.reading import load_json
from launcher.report.document import Image, ReportInput, Run
from launcher.report.points import Point, State, identity_of_row, metrics
from launcher.report.records import add_run, add_runs
from launcher.result.evaluation_rows import META, evaluation_state, is_evaluation, requested_rows
from launcher.result.evaluations import Thresholds
from launcher.result.row_fields import is_row

LARGEST = 64 << 20
"""Bytes of a file that is read: a collected list of 10,000 rows has some 20 MB."""

MOST = 100_000
"""Files of a tree that are read."""


def gather(names: Sequence[str], state: Path) -> ReportInput:
    """Read all sources. Raises ConfigError for a name that is no run, sweep or directory."""
    gathered = ReportInput()
    for name in names:
        _add(gathered, name, state)
        gathered.sources.append(name)
    return gathered


def _add(gathered: ReportInput, name: str, state: Path) -> None:
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
        add_tree(gathered, path)
    else:
        known: list[str] = []
        for directory in (state / "runs", state / "sweeps"):
            with contextlib.suppress(OSError):
                known += [path.name for path in directory.iterdir()]
        hint = suggest(name, known, "a run, a sweep or a directory; launcher status lists the runs")
        raise ConfigError(f"there is no run, sweep or directory {name}", where=str(state), hint=hint)


def _add_sweep(gathered: ReportInput, directory: Path) -> None:
    from launcher.report.sweeps import add_sweep  # most reports have none, and it costs a tenth of a second

    add_sweep(gathered, directory)


def add_tree(gathered: ReportInput, root: Path) -> None:
    """Add every row below a directory, or in one file. An ``agg_*.json`` without rows is a problem."""
    seen = {_text(point.row) for point in gathered.points}
    thresholds = Thresholds.below(root)
    for path in _files(gathered, root):
        is_aggregate = path.name.startswith("agg_")
        try:
            value = load_json(path, LARGEST)
        except (OSError, ValueError) as error:
            if is_aggregate:
                reason = error.strerror if isinstance(error, OSError) else error
                gathered.problems.append(f"{_shown(path, root)}: it cannot be read: {reason}")
            continue
        try:
            rows = requested_rows(path.parent, value) if path.name == META else _rows(value)
        except ResultError as error:
            gathered.problems.append(f"{_shown(path, root)}: {error.message}")
            continue
        for row in rows:
            if is_evaluation(row):
                threshold, _ = thresholds.minimum(str(row["model_prefix"]), str(row["task"]))
                row = {**row, "threshold": threshold if row["task"] else None}
            elif not is_row(row):
                if is_aggregate:
                    gathered.problems.append(f"{_shown(path, root)}: no row of an aggregate")
                continue
            if (text := _text(row)) not in seen:
                seen.add(text)
                _add_row(gathered, row, _shown(path.parent, root), path)


def _text(row: Mapping[str, Any]) -> str:
    """The row as text, without the keys that its collector or this module added."""
    return json.dumps({key: row[key] for key in row if key not in ("source", "threshold")}, sort_keys=True)


def _files(gathered: ReportInput, root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    count = 0
    for directory, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            if name.endswith(".json"):
                count += 1
                if count > MOST:
                    gathered.problems.append(f"{root}: it has more than {MOST} files; the rest was not looked at")
                    return
                yield Path(directory, name)


def _rows(value: Any) -> Iterator[Any]:
    """The rows of a file, which contains a row or a list. The workflow's collector leaves nested lists in it."""
    for item in value if isinstance(value, list) else [value]:
        yield from item if isinstance(item, list) else [item]


def _shown(path: Path, root: Path) -> str:
    base = root if root.is_dir() else root.parent
    return str(path.relative_to(base)) if path != base else base.name or str(base)


def _add_row(gathered: ReportInput, row: dict[str, Any], artifact: str, path: Path) -> None:
    try:
        identity = identity_of_row(row)
    except ConfigError as error:
        gathered.problems.append(f"{artifact}/{path.name}: {error.message}")
        return
    image, fingerprint = str(row.get("image") or ""), str(row.get("recipe_fingerprint") or "")
    run = Run(
        id=artifact,
        runner=str(row["hw"]),
        images=(Image(reference=image),) if image else (),
        model=str(row.get("model") or ""),
        fingerprint=fingerprint,
        source=str(path.parent),
    )
    if (run_id := gathered.artifacts.get(run)) is None:
        run_id, number = artifact, len(gathered.artifacts)
        while run_id in gathered.runs:  # a list has rows of many jobs
            number += 1
            run_id = f"{artifact} {number}"
        gathered.artifacts[run] = run_id
    gathered.runs[run_id] = replace(run, id=run_id)
    state, reason = _row_state(row) if is_row(row) else evaluation_state(row)
    gathered.points.append(Point(identity, row, state, reason, "results" if reason else "", run_id))


def _row_state(row: dict[str, Any]) -> tuple[State, str]:
    """The state of an aggregate's row, and the reason. InferenceX itself accepts rows that are refused here."""
    if row.get("rehearsal"):
        return "rehearsal", "stand-ins ran, and nothing was measured"
    if "num_requests_successful" in row and not row["num_requests_successful"]:
        return "refused", "no request succeeded"
    for name in metrics():
        value = row.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            return "refused", f"{name} is {value}"
        if name.endswith("tput_per_gpu") and isinstance(value, int | float) and value <= 0:
            return "refused", f"{name} is {value:g}, and must be above 0"
    return "ok", ""
