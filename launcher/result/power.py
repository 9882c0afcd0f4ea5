"""Power of one node: energy over the benchmark's window, from the samples that ``nvidia-smi`` or ``amd-smi`` wrote.

Invalid telemetry gives no numbers, but reasons, by the codes of InferenceX's utils/aggregate_power.py. The record of
the check is equal to that script's. This module reads files and writes none.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from launcher.core.reading import open_text
from launcher.result.row_fields import Row, finite, shares, tables

LARGEST_GAP = 3.0
"""Seconds without a sample that are allowed within the window."""
METHOD = "per_device_trapezoidal_with_linear_boundary_interpolation"
SCHEMA = 2
"""Version of the meaning of joules: those of the whole deployment, unless a key names a side."""
KEYS = tuple(key for table in ("power", "power_prefill", "power_decode") for key in tables()[table])

_ACCUMULATOR_TOLERANCE = 0.05
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_IDENTITY = re.compile("index|gpu|gpu_id|gpu_index|card|device", re.I)

_Cell = Callable[[str | None], str]
"""Returns the text of one row's cell in a column."""
Samples = Sequence[tuple[float, float]]
"""(Unix seconds, watts), in the order of time."""


@dataclass(frozen=True)
class Window:
    """The benchmark's own window and counts. The record of the check has its fields as keys."""

    start_time_unix: float
    end_time_unix: float
    reported_duration_s: float
    integration_duration_s: float
    completed: int
    total_input_tokens: int
    total_output_tokens: int

    def quantities(self, energy: float, gpus: int) -> dict[str, float]:
        """The quantities from which the shares of the table ``power`` are computed."""
        tokens = self.total_input_tokens + self.total_output_tokens
        counts = {"completed": self.completed, "input_tokens": self.total_input_tokens}
        counts |= {"output_tokens": self.total_output_tokens, "tokens": tokens}
        return {"energy": energy, "window": self.integration_duration_s, "gpus": gpus, **counts}


def add_new(reasons: list[str], *more: str) -> None:
    """Add those reasons that the list does not contain yet."""
    reasons += [reason for reason in dict.fromkeys(more) if reason not in reasons]


def window_of(raw: Mapping[str, Any]) -> tuple[Window | None, list[str]]:
    """The window of a raw result, None if it has none; and the reasons why it is invalid."""
    times = [raw.get(key) for key in ("benchmark_start_time_unix", "benchmark_end_time_unix", "duration")]
    if not all(map(finite, times)):
        return None, ["invalid_benchmark_window"]
    start, end, duration = (float(value) for value in times if value is not None)
    if end <= start or duration <= 0:
        return None, ["invalid_benchmark_window"]
    reasons, counts = [], []
    if abs(duration - (end - start)) > max(0.5, (end - start) * 0.01):
        reasons.append("benchmark_duration_mismatch")
    for key, code in (
        ("completed", "invalid_successful_query_count"),
        ("total_input_tokens", "invalid_input_token_count"),
        ("total_output_tokens", "invalid_output_token_count"),
    ):
        count = raw.get(key)
        if not isinstance(count, int) or isinstance(count, bool) or count <= 0:
            count = 0
            reasons.append(code)
        counts.append(count)
    return Window(start, end, duration, end - start, *counts), reasons


def time_of(text: str) -> float | None:
    """Unix seconds of a monitor's time: epoch in s or ms, ``YYYY/MM/DD HH:MM:SS[.f]`` or ISO 8601. Without a zone it is
    local time. None for any other text."""
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        number = float(text)
        return None if math.isinf(number) else number / 1000.0 if number > 1e12 else number
    for form in ("%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S"):
        try:
            return datetime.strptime(text, form).timestamp()
        except ValueError:
            continue
    try:
        return datetime.fromisoformat(text if "T" in text else text.replace(" ", "T", 1)).timestamp()
    except ValueError:
        return None


def _watts(text: str) -> float | None:
    """The first number of a cell (``412.34 W``)."""
    match = None if text.lower() in ("[n/a]", "n/a", "na") else _NUMBER.search(text)
    return number if match and math.isfinite(number := float(match[0])) else None


@contextmanager
def _table(path: Path) -> Iterator[tuple[list[str], Iterator[_Cell]]]:
    """The header of a CSV file and a `_Cell` for each row. Raises OSError, csv.Error."""
    with open_text(path, newline="", errors="replace") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = header
        yield header, (_cells(row) for row in reader)


def _cells(row: Mapping[Any, Any]) -> _Cell:
    return lambda column: (row.get(column) or "").strip()


def _columns(header: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The columns of time, power and GPU; None for one that does not exist."""
    power = (c for c in header if re.search("power", c, re.I) and not re.search("limit|cap|max|min", c, re.I))
    times = (c for c in header if re.search("time", c, re.I))
    return next(times, None), next(power, None), next((c for c in header if _IDENTITY.fullmatch(c)), None)


def by_gpu(name: str) -> tuple[int, int | str]:
    """The sort key of a GPU's name: numbers first."""
    return (0, int(name)) if name.isdigit() else (1, name)


@dataclass
class Integration:
    """The energy of all GPUs, with the keys of a record of the check; ``reasons`` say why it is invalid."""

    reasons: list[str] = field(default_factory=list)
    observed_gpu_ids: list[str] = field(default_factory=list)
    per_gpu_sample_counts: dict[str, int] = field(default_factory=dict)
    per_gpu_max_sample_gap_s: dict[str, float] = field(default_factory=dict)
    per_gpu_energy_j: dict[str, float] = field(default_factory=dict)
    device_issues: dict[str, list[str]] = field(default_factory=dict)


def integrate(path: Path, start: float, end: float, gpus: int | None) -> Integration:
    """The energy of each GPU of a CSV file between two times. ``gpus`` is their expected number."""
    result = Integration()
    if gpus is not None and gpus <= 0:
        result.reasons.append("invalid_expected_gpu_count")
    try:
        samples = _samples(path, start, end, result.reasons)
    except (OSError, csv.Error):
        add_new(result.reasons, "telemetry_file_unreadable")
        return result
    if not samples:
        return result
    result.observed_gpu_ids = sorted(samples, key=by_gpu)
    if gpus is not None and 0 < gpus != len(samples):
        add_new(result.reasons, "expected_gpu_count_mismatch")
    for gpu in result.observed_gpu_ids:
        series = sorted((time, watts[0] if len(watts) == 1 else mean(watts)) for time, watts in samples[gpu].items())
        result.per_gpu_sample_counts[gpu] = len(series)
        issue = None
        if len(series) < 2:
            issue = "insufficient_power_samples"
        elif series[0][0] > start or series[-1][0] < end:
            issue = "benchmark_window_not_bracketed"
        else:
            gap = result.per_gpu_max_sample_gap_s[gpu] = largest_gap([time for time, _ in series], start, end)
            result.per_gpu_energy_j[gpu] = energy(series, start, end)
            if gap > LARGEST_GAP:
                issue = "sampling_gap_exceeded"
        if issue is not None:
            result.device_issues[gpu] = [issue]
            add_new(result.reasons, issue)
    return result


def _samples(path: Path, start: float, end: float, reasons: list[str]) -> dict[str, dict[float, list[float]]]:
    """The watts near the window by GPU and time; nothing if the file cannot be used."""
    if not path.is_file() or path.stat().st_size == 0:
        reasons.append("telemetry_file_empty" if path.is_file() else "telemetry_file_missing")
        return {}
    samples: dict[str, dict[float, list[float]]] = {}
    nameless = False
    with _table(path) as (header, rows):
        columns = _columns(header)
        kinds = ("timestamp", "power", "gpu_identity")
        if missing := [f"{kind}_column_missing" for kind, column in zip(kinds, columns, strict=True) if not column]:
            add_new(reasons, *missing)
            return {}
        for cell in rows:
            time, watts, gpu = time_of(cell(columns[0])), _watts(cell(columns[1])), cell(columns[2])
            if time is None:
                add_new(reasons, "invalid_timestamp_sample")  # it may be in the window
            elif not start - LARGEST_GAP <= time <= end + LARGEST_GAP:
                continue
            elif watts is None or watts < 0:
                add_new(reasons, "invalid_power_sample")
            elif not gpu:
                nameless = True
            else:
                samples.setdefault(gpu, {}).setdefault(time, []).append(watts)
    add_new(reasons, *(["gpu_identity_missing"] if nameless else []), *([] if samples else ["no_usable_power_samples"]))
    return samples


def largest_gap(times: Sequence[float], start: float, end: float) -> float:
    """The longest time between samples from the last one before ``start`` to the first one after ``end``."""
    relevant = times[bisect.bisect_right(times, start) - 1 : bisect.bisect_left(times, end) + 1]
    return max((later - earlier for earlier, later in itertools.pairwise(relevant)), default=0.0)


def energy(series: Samples, start: float, end: float) -> float:
    """Joules between two times that the samples bracket: trapezoids, with power interpolated linearly at both ends."""
    inside = [(time, watts) for time, watts in series if start < time < end]
    return _trapezoids([(start, _power_at(series, start)), *inside, (end, _power_at(series, end))])


def _trapezoids(series: Samples) -> float:
    joules = 0.0
    for (t0, p0), (t1, p1) in itertools.pairwise(series):
        joules += (t1 - t0) * (p0 + p1) / 2.0
    return joules


def _power_at(series: Samples, time: float) -> float:
    right = bisect.bisect_left(series, time, key=lambda sample: sample[0])
    if right < len(series) and math.isclose(series[right][0], time, rel_tol=0.0, abs_tol=1e-9):
        return series[right][1]
    (t0, p0), (t1, p1) = series[right - 1], series[right]
    return p0 + (time - t0) / (t1 - t0) * (p1 - p0)


def _energies(path: Path) -> dict[str, float] | None:
    """Joules by GPU in one snapshot of AMD's counters; None if it has none."""
    energies = {}
    with _table(path) as (header, rows):
        if "gpu" not in header or "total_energy_consumption" not in header:
            return None
        for cell in rows:
            try:
                joules = float(cell("total_energy_consumption"))
            except ValueError:
                continue
            if (gpu := cell("gpu")) and math.isfinite(joules):
                energies[gpu] = joules
    return energies or None


def accumulators(path: Path) -> dict[str, Any] | None:
    """A comparison of AMD's energy counters with the integral of all samples, for information only; None without
    snapshots."""
    snapshots = {which: path.with_name(f"{path.stem}_energy_{which}.csv") for which in ("start", "end")}
    missing = [f"missing_{which}_snapshot" for which, snapshot in snapshots.items() if not snapshot.is_file()]
    if len(missing) == len(snapshots):
        return None
    before, after = ({}, {}) if missing else (_energies(snapshot) for snapshot in snapshots.values())
    if before is None or after is None or missing:
        unparseable = f"unparseable_{'start' if before is None else 'end'}_snapshot"
        return {"available": False, "reason": next(iter(missing), unparseable)}
    delta = {gpu: after[gpu] - before[gpu] for gpu in sorted(before.keys() & after.keys(), key=by_gpu)}
    series = _all_samples(path)
    both = sorted(series.keys() & delta.keys(), key=by_gpu)
    integral = float(sum(_trapezoids(series[gpu]) for gpu in both))
    ends = [time for gpu in both for time, _ in (series[gpu][0], series[gpu][-1])]
    total, negative = float(sum(delta.values())), [gpu for gpu, joules in delta.items() if joules < 0]
    error = abs(total - integral) / total if total > 0 else None
    return {
        "available": True,
        "accumulator_delta_j": total,
        "integrated_stream_j": integral,
        "relative_error": error,
        "within_tolerance": error is not None and not negative and error <= _ACCUMULATOR_TOLERANCE,
        "tolerance": _ACCUMULATOR_TOLERANCE,
        "per_gpu_delta_j": delta,
        "integrated_gpu_ids": both,
        "unmatched_gpus": sorted(before.keys() ^ after.keys(), key=by_gpu),
        "negative_delta_gpus": negative,
        "stream_span_s": max(ends) - min(ends) if ends else 0.0,
    }


def _all_samples(path: Path) -> dict[str, list[tuple[float, float]]]:
    samples: dict[str, list[tuple[float, float]]] = {}
    with _table(path) as (header, rows):
        columns = _columns(header)
        for cell in rows if all(columns) else ():
            time, watts, gpu = time_of(cell(columns[0])), _watts(cell(columns[1])), cell(columns[2])
            if time is not None and watts is not None and gpu:
                samples.setdefault(gpu, []).append((time, watts))
    return {gpu: sorted(series) for gpu, series in samples.items()}


def one_node(path: Path, raw: Mapping[str, Any], gpus: int | None, reasons: Sequence[str] = ()) -> tuple[Row, Row]:
    """The metrics of a node's telemetry (none if it is invalid) and the record of the check.

    ``raw`` is the document with the window and the counts; ``reasons`` say why there is no window.
    """
    window, invalid = (None, list(reasons)) if reasons else window_of(raw)
    result = Integration() if window is None else integrate(path, window.start_time_unix, window.end_time_unix, gpus)
    add_new(invalid, *result.reasons)
    metrics: Row = {}
    if window is not None and not invalid:
        energies = result.per_gpu_energy_j.values()
        metrics = shares("power", window.quantities(sum(energies), len(result.observed_gpu_ids)))
    try:
        check = None if reasons else accumulators(path)
    except (OSError, csv.Error):
        check = {"available": False, "reason": "cross_check_error"}
    record = {
        **vars(result),
        "schema_version": 1,
        "power_valid": not invalid,
        "reasons": invalid,
        "telemetry_source": str(path),
        "benchmark_window": None if window is None else asdict(window),
        "integration_method": METHOD,
        "expected_gpu_count": gpus,
        "observed_gpu_count": len(result.observed_gpu_ids),
        "accumulator_check": check,
        "metrics": rounded(metrics),
    }
    return metrics, record


def rounded(metrics: Mapping[str, float]) -> Row:
    """The finite metrics, rounded as a record of the check has them."""
    return {key: round(value, 6) for key, value in metrics.items() if math.isfinite(value)}


def with_power(row: Mapping[str, Any], metrics: Mapping[str, float]) -> Row:
    """The row with these metrics instead of its own; without any metric it states that power is not valid."""
    digits = {k: f.digits for t in ("power", "power_prefill", "power_decode") for k, f in tables()[t].items()}
    kept = {key: value for key, value in row.items() if key not in (*KEYS, "power_invalid_reasons")}
    state = {"power_metric_schema_version": SCHEMA, "power_valid": int(bool(metrics))}
    return {**kept, **state, **{key: round(value, digits[key]) for key, value in metrics.items()}}
