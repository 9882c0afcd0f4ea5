"""The samples and measurement windows of a power package: which are good, and which window belongs to a result.

As in `power_package`, whose sentences and codes these are too.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.core.reading import LARGEST_RESULT, load_json, open_text
from launcher.result.power import LARGEST_GAP, Window, add, largest_gap
from launcher.result.row_fields import Row, finite

_DIRECTORY = "windows"
_BAD = "measurement_window_"
_HEADER = ["schema_version", "timestamp_unix", "scrape_seq", "hostname", "gpu_index", "gpu_uuid", "power_w"]

Device = tuple[str, int]
"""A GPU: host and index."""


@dataclass
class Samples:
    """One GPU's samples by time, and the ids that it went by."""

    uuids: list[str] = field(default_factory=list)
    series: list[tuple[float, float]] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.series]


def read_samples(path: Path) -> tuple[dict[Device, Samples], list[tuple[int, Device]], list[str]]:
    """The samples by GPU, in the order of GPUs; the (scrape, GPU) of each; and what is wrong with the file."""
    if not path.is_file():
        return {}, [], [f"samples_csv_missing in {path.name}"]
    reasons: list[str] = []
    unique: dict[tuple[int, Device], tuple[float, str, float]] = {}
    twice = False
    try:
        with open_text(path, newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != _HEADER:
                return {}, [], [f"samples_csv_header_mismatch in {path.name}"]
            for cells in reader:
                if (sample := _sample(cells)) is None:
                    add(reasons, "samples_csv_malformed")
                elif sample[0] in unique:
                    twice = True
                else:
                    unique[sample[0]] = sample[1]
    except (OSError, UnicodeDecodeError, csv.Error):
        add(reasons, "samples_csv_malformed")
    if twice:
        add(reasons, "duplicate_sample_row")
    found: dict[Device, Samples] = {device: Samples() for device in sorted({device for _, device in unique})}
    for scrape, device in sorted(unique, key=lambda key: key[0]):
        at, uuid, watts = unique[scrape, device]
        add(found[device].uuids, uuid)
        found[device].series.append((at, watts))
    if any(later <= earlier for s in found.values() for earlier, later in itertools.pairwise(s.times)):
        add(reasons, "timestamp_non_monotonic")
    for samples in found.values():
        samples.series.sort()
    return found, list(unique), [f"{reason} in {path.name}" for reason in reasons]


def _sample(cells: Sequence[str]) -> tuple[tuple[int, Device], tuple[float, str, float]] | None:
    if len(cells) != len(_HEADER):
        return None
    try:
        schema, scrape, index = int(cells[0]), int(cells[2]), int(cells[4])
        at, watts = float(cells[1]), float(cells[6])
    except ValueError:
        return None
    good = schema == 1 and cells[3] and cells[5] and scrape >= 0 and index >= 0
    if not good or not math.isfinite(at) or not math.isfinite(watts) or watts < 0:
        return None
    return (scrape, (cells[3], index)), (at, cells[5], watts)


@dataclass(frozen=True)
class MeasuredWindow:
    """One window's file, by the keys that the record of the check has. End and duration are 0 where it never ended."""

    window_file: str
    benchmark_type: str
    concurrency: int
    result_path: str
    start_time_unix: float
    end_time_unix: float
    duration: float

    @property
    def key(self) -> tuple[str, int]:
        return self.benchmark_type, self.concurrency


@dataclass
class Checked:
    """The windows by type and concurrency, the files of those that did not complete, what is said of each expected one,
    and what is wrong with files."""

    parsed: dict[tuple[str, int], MeasuredWindow] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
    validations: list[Row] = field(default_factory=list)
    errors: list[Row] = field(default_factory=list)

    def error(self, path: str, reason: str) -> None:
        self.errors.append({"path": path, "reason_codes": [reason]})


def check_windows(
    directory: Path,
    results: Path,
    expected: Sequence[tuple[str, int]],
    devices: Collection[Device],
    found: Mapping[Device, Samples],
) -> Checked:
    """Look at the windows of a package in ``directory``, whose results are below ``results``."""
    checked = Checked()
    twice = _scan(directory, results, checked)
    for key, window in sorted(checked.parsed.items()):
        if key not in expected:
            checked.error(window.window_file, f"{_BAD}unexpected")
    for kind, concurrency in expected:
        own = checked.parsed.get((kind, concurrency))
        gaps: dict[str, float] = {}
        if own is None:
            reasons = [f"{_BAD}{'duplicate' if (kind, concurrency) in twice else 'missing'}"]
        elif own.window_file in checked.incomplete:
            reasons = [f"{_BAD}incomplete"]
        elif not (reasons := _result_reasons(own, results)):
            gaps, reasons = _coverage(own, devices, found)
        checked.validations.append(
            {
                "benchmark_type": kind,
                "concurrency": concurrency,
                "window_file": None if own is None else own.window_file,
                "power_coverage_valid": not reasons,
                "reason_codes": list(dict.fromkeys(reasons)),
                "per_device_max_sample_gap_seconds": {} if reasons else gaps,
            }
        )
    return checked


def _scan(directory: Path, results: Path, checked: Checked) -> set[tuple[str, int]]:
    """Read all windows. Those that are there twice are returned, and count as none."""
    windows = directory / _DIRECTORY
    twice: set[tuple[str, int]] = set()
    if not windows.is_dir():
        return set()
    if not _stays_below(directory, _DIRECTORY):
        checked.error(_DIRECTORY, f"{_BAD}artifact_path_invalid")
        return set()
    for path in sorted(windows.iterdir()):
        name = f"{_DIRECTORY}/{path.name}"
        if path.is_symlink() or not path.is_file():
            checked.error(name, f"{_BAD}artifact_path_invalid")
        elif isinstance(window := _parsed(path, name, results, checked), str):
            checked.error(name, window)
        elif (other := checked.parsed.get(window.key)) is not None:
            twice.add(window.key)
            checked.error(other.window_file, f"{_BAD}duplicate")
            checked.error(name, f"{_BAD}duplicate")
        else:
            checked.parsed[window.key] = window
    for key in twice:
        del checked.parsed[key]
    return twice


def _stays_below(root: Path, relative: str) -> bool:
    try:
        return (root / relative).resolve().is_relative_to(root.resolve())
    except (ValueError, OSError):
        return False


def _parsed(path: Path, name: str, results: Path, checked: Checked) -> MeasuredWindow | str:
    """A window, or the code of what is wrong with its file."""
    try:
        said = load_json(path)
    except (OSError, ValueError):
        return f"{_BAD}malformed"
    if not isinstance(said, dict):
        return f"{_BAD}malformed"
    status, kind, concurrency = said.get("status"), said.get("benchmark_type"), said.get("concurrency")
    start: Any = said.get("benchmark_start_time_unix")
    end, duration = said.get("benchmark_end_time_unix"), said.get("duration")
    if (
        said.get("schema_version") != 1
        or said.get("clock_source") != "head_node_unix_clock"
        or status not in ("running", "completed", "failed", "interrupted")
        or not isinstance(kind, str)
        or not isinstance(concurrency, int)
        or not finite(start)
    ):
        return f"{_BAD}malformed"
    result = said.get("result_path")
    if not isinstance(result, str) or not result or result.startswith(("/", "~")):
        return f"{_BAD}result_path_invalid"
    parts = PurePosixPath(result).parts
    if not parts or ".." in parts or not _stays_below(results, result) or Path(result).stem != path.stem:
        return f"{_BAD}result_path_invalid"
    if not _agrees(str(status), end, duration, said.get("reason")):
        return f"{_BAD}malformed"
    if status != "completed":
        checked.incomplete.add(name)
    return MeasuredWindow(name, kind, concurrency, result, float(start), float(end or 0), float(duration or 0))


def _agrees(status: str, end: Any, duration: Any, reason: Any) -> bool:
    """Whether the end of a window fits its status."""
    told = isinstance(reason, str) and bool(reason)
    if status in ("running", "interrupted"):
        return end is None and duration is None and (told if status == "interrupted" else reason is None)
    if not finite(end) or not finite(duration) or duration <= 0:
        return False
    return reason is None if status == "completed" else told


def _result_reasons(window: MeasuredWindow, results: Path) -> list[str]:
    """Where the result that a window names is not there, or has other times."""
    path = results / window.result_path
    try:
        result = load_json(path, LARGEST_RESULT) if path.is_file() else None
    except (OSError, ValueError):
        return [f"{_BAD}result_missing"]
    if result is None and not path.is_file():
        return [f"{_BAD}result_missing"]
    times = ("benchmark_start_time_unix", "benchmark_end_time_unix", "duration")
    if not isinstance(result, dict) or [result.get(k) for k in times] != [
        window.start_time_unix,
        window.end_time_unix,
        window.duration,
    ]:
        return [f"{_BAD}result_mismatch"]
    off = abs(window.end_time_unix - window.start_time_unix - window.duration)
    return [f"{_BAD}clock_mismatch"] if off > max(0.5, 0.01 * window.duration) else []


def _coverage(
    window: MeasuredWindow, devices: Collection[Device], found: Mapping[Device, Samples]
) -> tuple[dict[str, float], list[str]]:
    """The longest gap of each GPU, and why its samples do not cover the window."""
    gaps: dict[str, float] = {}
    reasons = []
    for device in sorted(devices):
        samples = found.get(device, Samples())
        times = samples.times
        if times and len(samples.uuids) != 1:
            reasons.append("gpu_uuid_changed")
            continue
        if not times or times[0] > window.start_time_unix or times[-1] < window.end_time_unix:
            reasons.append(f"{_BAD}not_bracketed")
            continue
        largest = largest_gap(times, window.start_time_unix, window.end_time_unix)
        gaps[f"{device[0]}/{samples.uuids[0]}"] = largest
        if largest > LARGEST_GAP:
            reasons.append("sample_gap_exceeded")
    return gaps, reasons


def selected(
    checked: Checked,
    raw: Mapping[str, Any],
    results: Path,
    name: str,
    held: Window | None,
) -> tuple[MeasuredWindow | None, str, str]:
    """The one completed window that belongs to a result, found by its content; else None, a code and a sentence.

    ``name`` is the result's file, ``held`` its own window (None: it has none that is good).
    """
    concurrency = raw.get("max_concurrency")
    matches = [
        window
        for window in checked.parsed.values()
        if window.window_file not in checked.incomplete and window.concurrency == concurrency
    ]
    if len(matches) != 1:
        text = f"found {len(matches)} completed windows for concurrency {concurrency!r}"
        return None, "window_for_result_missing", text
    window = matches[0]
    path = results / window.result_path
    try:
        original = load_json(path, LARGEST_RESULT)
    except (OSError, ValueError):
        return None, f"{_BAD}result_missing", f"original result unreadable: {path}"
    if json.dumps(original, sort_keys=True) != json.dumps(raw, sort_keys=True):
        return None, "result_content_mismatch", f"workspace copy {name} differs from original {window.result_path}"
    if held is not None and (held.start_time_unix, held.end_time_unix) != (
        window.start_time_unix,
        window.end_time_unix,
    ):
        text = "benchmark window fields do not match the selected window file"
        return None, f"{_BAD}result_mismatch", text
    return window, "", ""
