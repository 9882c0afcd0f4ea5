"""What was asked for, as a report takes it in: run ids, sweeps, directories; each read by its own reader.

Points of directories of aggregates, and of what a workflow uploaded and somebody downloaded, are read here, of any tree
of files. Every ``*.json`` is looked at, and what holds rows of aggregates is taken: ``agg_*.json``, agentic results,
evaluations with their ``meta_env.json``, the lists that the workflow collects. One row that is there twice, alone and
in a list, counts once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace as change

from launcher.core.errors import ConfigError, ResultError, suggest
from launcher.core.reading import load_json
from launcher.report.document import Image, ReportInput, Run
from launcher.report.points import Point, State, identity_of_row, metrics
from launcher.report.records import add_run, add_runs
from launcher.result.evaluation_rows import META, evaluation_state, is_evaluation, requested_rows
from launcher.result.evaluations import Thresholds
from launcher.result.row_fields import is_row

LARGEST = 64 << 20
"""Bytes of one file: a collected list of 10,000 rows has some 20 MB."""

MOST = 100_000
"""Files of a tree that are looked at."""


def gather(names: Sequence[str], state: Path) -> ReportInput:
    """Everything that the names stand for. Raises ConfigError for a name that stands for nothing."""
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
                known += [one.name for one in directory.iterdir()]
        hint = suggest(name, known, "a run, a sweep or a directory; launcher status lists the runs")
        raise ConfigError(f"there is no run, sweep or directory {name}", where=str(state), hint=hint)


def _add_sweep(gathered: ReportInput, directory: Path) -> None:
    from launcher.report.sweeps import add_sweep  # most reports have none, and it costs a tenth of a second

    add_sweep(gathered, directory)


def add_tree(gathered: ReportInput, root: Path) -> None:
    """Every row below a directory, or of one file. What claims to be an aggregate and is none is a problem."""
    seen = {_text(point.row) for point in gathered.points}
    thresholds = Thresholds.below(root)
    for path in _files(gathered, root):
        named = path.name.startswith("agg_")
        try:
            value = load_json(path, LARGEST)
        except (OSError, ValueError) as error:
            if named:
                why = error.strerror if isinstance(error, OSError) else error
                gathered.problems.append(f"{_shown(path, root)}: it cannot be read: {why}")
            continue
        try:
            rows = requested_rows(path.parent, value) if path.name == META else _rows(value)
        except ResultError as error:
            gathered.problems.append(f"{_shown(path, root)}: {error.message}")
            continue
        for row in rows:
            if is_evaluation(row):
                least, _ = thresholds.minimum(str(row["model_prefix"]), str(row["task"]))
                row = {**row, "threshold": least if row["task"] else None}
            elif not is_row(row):
                if named:
                    gathered.problems.append(f"{_shown(path, root)}: no row of an aggregate")
                continue
            if (text := _text(row)) not in seen:
                seen.add(text)
                _add_row(gathered, row, _shown(path.parent, root), path)


def _text(row: Mapping[str, Any]) -> str:
    """The row without what its collector, or we, put to it."""
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
    """The rows of a file: it is one, or a list, in which the workflow's collector leaves lists as they are."""
    for one in value if isinstance(value, list) else [value]:
        yield from one if isinstance(one, list) else [one]


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
    if (known := gathered.artifacts.get(run)) is None:
        known, number = artifact, len(gathered.artifacts)
        while known in gathered.runs:  # a list has rows of many jobs
            number += 1
            known = f"{artifact} {number}"
        gathered.artifacts[run] = known
    gathered.runs[known] = change(run, id=known)
    state, reason = judge(row) if is_row(row) else evaluation_state(row)
    gathered.points.append(Point(identity, row, state, reason, "results" if reason else "", known))


def judge(row: dict[str, Any]) -> tuple[State, str]:
    """How a row stands that nobody has judged here: what InferenceX lets through and nothing can be made of."""
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
