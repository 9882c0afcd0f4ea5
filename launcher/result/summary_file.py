"""`summary.json` read again, by reports, sweeps and tables: of this version or an older one, whole or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from launcher.core.errors import ResultError
from launcher.core.reading import built, read_file

Kind = TypeVar("Kind")

NAME = "summary.json"
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Evaluation:
    """One task at one concurrency (None: not told), as ``summary.json`` has it. ``task`` is "" where there is no result
    that names one. Scores are shares from 0 to 1, ``n_eff`` the samples, ``threshold`` the least score."""

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


class Measured(msgspec.Struct, frozen=True):
    """One concurrency, as `launcher.result.validate.Point` has it. Nobody has looked at its numbers: each may be
    anything that JSON has."""

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
    """An image that was used."""

    reference: str | None = None
    digest: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """What is read again of a summary. ``evaluations`` is None where nobody wrote them down yet."""

    points: tuple[Measured, ...] = ()
    evaluations: tuple[Evaluation, ...] | None = None
    images: tuple[Image, ...] = ()
    rehearsal: bool = False
    srt_slurm: dict[str, Any] = {}
    model: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def read_document(directory: Path | str) -> dict[str, Any] | None:
    """The summary of a run's directory as it stands; None where there is none. Raises ResultError."""
    return _read(directory, dict[str, Any])


def read_summary(directory: Path | str) -> Summary | None:
    """The same by its parts. Raises ResultError where they are of another form."""
    return _read(directory, Summary)


def _read(directory: Path | str, kind: type[Kind]) -> Kind | None:
    try:
        return msgspec.json.decode(read_file(f"{directory}/{NAME}", _LARGEST), type=built(kind))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ResultError(f"its summary cannot be read: {error}", where=str(directory)) from None
