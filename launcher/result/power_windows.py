"""The samples and measurement windows of a power package: their validity, and the window of a result.

Sentences and codes are those of InferenceX, as in power_package.py.
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
from launcher.result.power import LARGEST_GAP, Window, add_new, largest_gap
from launcher.result.row_fields import Row, finite

_DIRECTORY = "windows"
_CODE = "measurement_window_"
_HEADER = ["schema_version", "timestamp_unix", "scrape_seq", "hostname", "gpu_index", "gpu_uuid", "power_w"]

Device = tuple[str, int]
"""A GPU: host and index."""


@dataclass
class Samples:
    """One GPU's samples, in the order of time, and the UUIDs that they state."""

    uuids: list[str] = field(default_factory=list)
    series: list[tuple[float, float]] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.series]


def read_samples(path: Path) -> tuple[dict[Device, Samples], list[tuple[int, Device]], list[str]]:
    """The samples by GPU, in the order of GPUs; the (scrape, GPU) of each sample; and the problems of the file."""
    if not path.is_file():
        return {}, [], [f"samples_csv_missing in {path.name}"]
    reasons: list[str] = []
    unique: dict[tuple[int, Device], tuple[float, str, float]] = {}
    repeated = False
    try:
        with open_text(path, newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != _HEADER:
                return {}, [], [f"samples_csv_header_mismatch in {path.name}"]
            for cells in reader:
                if (sample := _sample(cells)) is None:
                    add_new(reasons, "samples_csv_malformed")
                elif sample[0] in unique:
                    repeated = True
                else:
                    unique[sample[0]] = sample[1]
    except (OSError, UnicodeDecodeError, csv.Error):
        add_new(reasons, "samples_csv_malformed")
    if repeated:
        add_new(reasons, "duplicate_sample_row")
    samples: dict[Device, Samples] = {device: Samples() for device in sorted({device for _, device in unique})}
    for scrape, device in sorted(unique, key=lambda key: key[0]):
        time, uuid, watts = unique[scrape, device]
        add_new(samples[device].uuids, uuid)
        samples[device].series.append((time, watts))
    if any(later <= earlier for one in samples.values() for earlier, later in itertools.pairwise(one.times)):
        add_new(reasons, "timestamp_non_monotonic")
    for of_gpu in samples.values():
        of_gpu.series.sort()
    return samples, list(unique), [f"{reason} in {path.name}" for reason in reasons]


def _sample(cells: Sequence[str]) -> tuple[tuple[int, Device], tuple[float, str, float]] | None:
    if len(cells) != len(_HEADER):
        return None
    try:
        schema, scrape, index = int(cells[0]), int(cells[2]), int(cells[4])
        time, watts = float(cells[1]), float(cells[6])
    except ValueError:
        return None
    valid = schema == 1 and cells[3] and cells[5] and scrape >= 0 and index >= 0
    if not valid or not math.isfinite(time) or not math.isfinite(watts) or watts < 0:
        return None
    return (scrape, (cells[3], index)), (time, cells[5], watts)


@dataclass(frozen=True)
class MeasuredWindow:
    """One window's file, with the keys of the record of the check. End and duration are 0 if the window did not end."""

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
    """The windows by type and concurrency, the files of incomplete ones, the validation of each expected one, and the
    errors of files."""

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
    samples: Mapping[Device, Samples],
) -> Checked:
    """Check the windows of a package in ``directory``, whose results are below ``results``."""
    checked = Checked()
    repeated = _read_windows(directory, results, checked)
    for key, found in sorted(checked.parsed.items()):
        if key not in expected:
            checked.error(found.window_file, f"{_CODE}unexpected")
    for kind, concurrency in expected:
        window = checked.parsed.get((kind, concurrency))
        gaps: dict[str, float] = {}
        if window is None:
            reasons = [f"{_CODE}{'duplicate' if (kind, concurrency) in repeated else 'missing'}"]
        elif window.window_file in checked.incomplete:
            reasons = [f"{_CODE}incomplete"]
        elif not (reasons := _result_reasons(window, results)):
            gaps, reasons = _coverage(window, devices, samples)
        checked.validations.append(
            {
                "benchmark_type": kind,
                "concurrency": concurrency,
                "window_file": None if window is None else window.window_file,
                "power_coverage_valid": not reasons,
                "reason_codes": list(dict.fromkeys(reasons)),
                "per_device_max_sample_gap_seconds": {} if reasons else gaps,
            }
        )
    return checked


def _read_windows(directory: Path, results: Path, checked: Checked) -> set[tuple[str, int]]:
    """Read all windows. Keys that several windows have are returned; those windows are not in ``checked.parsed``."""
    windows = directory / _DIRECTORY
    repeated: set[tuple[str, int]] = set()
    if not windows.is_dir():
        return set()
    if not _stays_below(directory, _DIRECTORY):
        checked.error(_DIRECTORY, f"{_CODE}artifact_path_invalid")
        return set()
    for path in sorted(windows.iterdir()):
        name = f"{_DIRECTORY}/{path.name}"
        if path.is_symlink() or not path.is_file():
            checked.error(name, f"{_CODE}artifact_path_invalid")
        elif isinstance(window := _read_window(path, name, results, checked), str):
            checked.error(name, window)
        elif (other := checked.parsed.get(window.key)) is not None:
            repeated.add(window.key)
            checked.error(other.window_file, f"{_CODE}duplicate")
            checked.error(name, f"{_CODE}duplicate")
        else:
            checked.parsed[window.key] = window
    for key in repeated:
        del checked.parsed[key]
    return repeated


def _stays_below(root: Path, relative: str) -> bool:
    try:
        return (root / relative).resolve().is_relative_to(root.resolve())
    except (ValueError, OSError):
        return False


def _read_window(path: Path, name: str, results: Path, checked: Checked) -> MeasuredWindow | str:
    """A window, or the code of its file's problem."""
    try:
        document = load_json(path)
    except (OSError, ValueError):
        return f"{_CODE}malformed"
    if not isinstance(document, dict):
        return f"{_CODE}malformed"
    status, kind, concurrency = document.get("status"), document.get("benchmark_type"), document.get("concurrency")
    start: Any = document.get("benchmark_start_time_unix")
    end, duration = document.get("benchmark_end_time_unix"), document.get("duration")
    if (
        document.get("schema_version") != 1
        or document.get("clock_source") != "head_node_unix_clock"
        or status not in ("running", "completed", "failed", "interrupted")
        or not isinstance(kind, str)
        or not isinstance(concurrency, int)
        or not finite(start)
    ):
        return f"{_CODE}malformed"
    result = document.get("result_path")
    if not isinstance(result, str) or not result or result.startswith(("/", "~")):
        return f"{_CODE}result_path_invalid"
    parts = PurePosixPath(result).parts
    if not parts or ".." in parts or not _stays_below(results, result) or Path(result).stem != path.stem:
        return f"{_CODE}result_path_invalid"
    if not _end_fits_status(str(status), end, duration, document.get("reason")):
        return f"{_CODE}malformed"
    if status != "completed":
        checked.incomplete.add(name)
    return MeasuredWindow(name, kind, concurrency, result, float(start), float(end or 0), float(duration or 0))


def _end_fits_status(status: str, end: Any, duration: Any, reason: Any) -> bool:
    """Whether a window with this status may have this end, duration and reason."""
    if status in ("running", "interrupted") and (end is not None or duration is not None):
        return False
    if status in ("completed", "failed") and not (finite(end) and finite(duration) and duration > 0):
        return False
    return reason is None if status in ("running", "completed") else isinstance(reason, str) and bool(reason)


def _result_reasons(window: MeasuredWindow, results: Path) -> list[str]:
    """Codes for a window whose result is missing or has other times."""
    path = results / window.result_path
    try:
        result = load_json(path, LARGEST_RESULT) if path.is_file() else None
    except (OSError, ValueError):
        return [f"{_CODE}result_missing"]
    if result is None and not path.is_file():
        return [f"{_CODE}result_missing"]
    times = ("benchmark_start_time_unix", "benchmark_end_time_unix", "duration")
    if not isinstance(result, dict) or [result.get(k) for k in times] != [
        window.start_time_unix,
        window.end_time_unix,
        window.duration,
    ]:
        return [f"{_CODE}result_mismatch"]
    difference = abs(window.end_time_unix - window.start_time_unix - window.duration)
    return [f"{_CODE}clock_mismatch"] if difference > max(0.5, 0.01 * window.duration) else []


def _coverage(
    window: MeasuredWindow, devices: Collection[Device], samples: Mapping[Device, Samples]
) -> tuple[dict[str, float], list[str]]:
    """The longest gap of each GPU, and the codes for GPUs whose samples do not cover the window."""
    gaps: dict[str, float] = {}
    reasons = []
    for device in sorted(devices):
        of_gpu = samples.get(device, Samples())
        times = of_gpu.times
        if times and len(of_gpu.uuids) != 1:
            reasons.append("gpu_uuid_changed")
            continue
        if not times or times[0] > window.start_time_unix or times[-1] < window.end_time_unix:
            reasons.append(f"{_CODE}not_bracketed")
            continue
        largest = largest_gap(times, window.start_time_unix, window.end_time_unix)
        gaps[f"{device[0]}/{of_gpu.uuids[0]}"] = largest
        if largest > LARGEST_GAP:
            reasons.append("sample_gap_exceeded")
    return gaps, reasons


def select_window(
    checked: Checked, raw: Mapping[str, Any], results: Path, name: str, own_window: Window | None
) -> tuple[MeasuredWindow | None, str, str]:
    """The only completed window of a result, by the result's content; otherwise None, a code and a sentence.

    ``name`` is the result's file name, ``own_window`` the window that the result states, None if it is invalid.
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
        return None, f"{_CODE}result_missing", f"original result unreadable: {path}"
    if json.dumps(original, sort_keys=True) != json.dumps(raw, sort_keys=True):
        return None, "result_content_mismatch", f"workspace copy {name} differs from original {window.result_path}"
    times = window.start_time_unix, window.end_time_unix
    if own_window is not None and (own_window.start_time_unix, own_window.end_time_unix) != times:
        return None, f"{_CODE}result_mismatch", "benchmark window fields do not match the selected window file"
    return window, "", ""
