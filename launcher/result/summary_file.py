"""Reads `summary.json` for reports and sweeps, also an older or damaged one; and formats the summaries of many runs as
a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from launcher.core.errors import ResultError
from launcher.core.lines import Line, table
from launcher.core.reading import prepare_type, read_file

Kind = TypeVar("Kind")

NAME = "summary.json"
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Evaluation:
    """One task at one concurrency (None: not stated), as in ``summary.json``. ``task`` is "" if no result names one.
    Scores are shares from 0 to 1, ``n_eff`` is the number of samples, ``threshold`` the minimum score."""

    concurrency: int | None
    task: str = ""
    state: Literal["ok", "invalid", "missing"] = "ok"
    reason: str | None = None
    score: float | None = None
    score_name: str | None = None
    score_se: float | None = None
    em_strict: float | None = None
    em_flexible: float | None = None
    n_eff: int | None = None
    threshold: float | None = None
    rehearsal: bool = False


class SummaryPoint(msgspec.Struct, frozen=True):
    """One concurrency, as `launcher.result.validate.MeasuredPoint` has it. Its numbers are not validated: each may be
    any JSON value."""

    state: str
    concurrency: int | None = None
    reason: str | None = None
    path: str | None = None
    rehearsal: bool = False
    duration_s: float | None = None
    ended: float | None = None
    doubts: tuple[str, ...] = ()
    throughput_per_gpu: Any = None
    output_throughput_per_gpu: Any = None
    ttft_median_ms: Any = None
    ttft_p99_ms: Any = None
    tpot_median_ms: Any = None
    tpot_p99_ms: Any = None
    itl_median_ms: Any = None
    itl_p99_ms: Any = None
    e2el_median_ms: Any = None
    e2el_p99_ms: Any = None
    e2e_norm_intvty_p90: Any = None


class Image(msgspec.Struct, frozen=True):
    """A container image that the job used."""

    reference: str | None = None
    digest: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """The part of a summary that is read again. ``evaluations`` is None in summaries of versions without them."""

    points: tuple[SummaryPoint, ...] = ()
    evaluations: tuple[Evaluation, ...] | None = None
    images: tuple[Image, ...] = ()
    rehearsal: bool = False
    srt_slurm: dict[str, Any] = {}
    model: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def read_document(directory: Path | str) -> dict[str, Any] | None:
    """The summary of a run's directory as a JSON object; None if it does not exist. Raises ResultError."""
    return _read(directory, dict[str, Any])


def read_summary(directory: Path | str) -> Summary | None:
    """The summary of a run's directory; None if it does not exist. Raises ResultError if it has another form."""
    return _read(directory, Summary)


def _read(directory: Path | str, kind: type[Kind]) -> Kind | None:
    try:
        return msgspec.json.decode(read_file(f"{directory}/{NAME}", _LARGEST), type=prepare_type(kind))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ResultError(f"its summary cannot be read: {error}", where=str(directory)) from None


REHEARSAL = "REHEARSAL: nothing was served and nothing was measured; the numbers are made up."
_HEAD = ("runner", "benchmark", "configuration", "topology")
_COLUMNS = (*_HEAD, "ISL/OSL", "conc", "tok/s", "tok/s/GPU", "TTFT ms", "TPOT ms", "ITL ms", "state")
_NUMBERS = (("total_throughput", 0), ("throughput_per_gpu", 1), ("ttft_median_ms", 1), ("tpot_median_ms", 2),
            ("itl_median_ms", 2))  # fmt: skip
_SCORES = (*_HEAD, "task", "conc", "score", "least", "samples", "state")
_MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One point: its cells as text, whether it is ok, and whether it is a rehearsal."""

    cells: tuple[str, ...]
    good: bool
    rehearsal: bool


def rows(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each point, in the order of the summaries; a run without points has one row with its state.

    Latencies are medians. ``state`` is ``ok``, or the state of the point and of the job.
    """
    result = []
    for summary in summaries:
        benchmark, job = summary["benchmark"], summary["job"]
        lengths = f"{benchmark['isl']}/{benchmark['osl']}" if benchmark["isl"] else str(benchmark["scenario"])
        ended = "" if job["state"] == "COMPLETED" else ", no job" if job["id"] is None else f", job {job['state']}"
        for point in summary["points"] or [{"state": "ok" if not summary["problems"] else "failed"}]:
            numbers = (_number(point.get(key), digits) for key, digits in _NUMBERS)
            cells = (lengths, str(point.get("concurrency", _MISSING)), *numbers)
            result.append(_row(summary, cells, f"{point['state']}{ended}", good=point["state"] == "ok" and not ended))
    return result


def score_rows(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each task that was to be evaluated; one with a score below its threshold is not good."""
    result = []
    for summary in summaries:
        for evaluation in summary.get("evaluations") or ():
            score, threshold, reason = (evaluation.get(key) for key in ("score", "threshold", "reason"))
            low = score is not None and threshold is not None and score < threshold
            state = f"{evaluation['state']}: {reason}" if reason else "too low" if low else str(evaluation["state"])
            concurrency = _MISSING if evaluation.get("concurrency") is None else str(evaluation["concurrency"])
            numbers = (_number(score, 4), _number(threshold, 2), _number(evaluation.get("n_eff"), 0))
            cells = (str(evaluation.get("task") or _MISSING), concurrency, *numbers)
            result.append(_row(summary, cells, state, good=evaluation["state"] == "ok" and not low))
    return result


def _row(summary: Mapping[str, Any], cells: Sequence[str], state: str, *, good: bool) -> Row:
    benchmark = summary["benchmark"]
    method = [benchmark["spec_decoding"]] if benchmark["spec_decoding"] != "none" else []
    configuration = " ".join([benchmark["framework"], benchmark["precision"], *method])
    head = (summary["runner"], benchmark["exp_name"], configuration, benchmark["topology"])
    rehearsal = bool(summary["rehearsal"])
    return Row((*map(str, head), *cells, f"REHEARSAL, {state}" if rehearsal else state), good, rehearsal)


def table_lines(summaries: Sequence[Mapping[str, Any]], width: int | None) -> list[Line]:
    """The tables of points and of scores for a terminal of ``width`` columns. Without a width each row is one line."""
    points, scores = rows(summaries), score_rows(summaries)
    lines = [Line(REHEARSAL, "yellow")] if any(row.rehearsal for row in points) else []
    for columns, table_rows in ((_COLUMNS, points), (_SCORES, scores)):
        styles = ["yellow" if row.rehearsal and row.good else "green" if row.good else "red" for row in table_rows]
        lines += [Line("")] if table_rows is scores and scores else []
        lines += table(columns, [row.cells for row in table_rows], width, styles) if table_rows else []
    return lines


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else _MISSING
