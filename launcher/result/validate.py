"""Whether a result file can be believed. Nothing is written here.

A file must hold what InferenceX needs next: `utils/process_result.py` reads `max_concurrency`, `model_id` and
both throughputs, divides every key ending in ``ms`` by 1000, and 1000 by every key that contains ``tpot``.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.plan.plan import Expected
from launcher.result.contradictions import (
    STAND_IN_KEY,
    Window,
    gpu_contradictions,
    model_contradictions,
    row_contradictions,
    stand_in_contradictions,
    time_contradictions,
    time_doubts,
)
from launcher.result.document import Document, UnusableResult, require_finite
from launcher.result.own_numbers import (
    FAILED,
    agentic_contradictions,
    concurrency_doubts,
    failed_requests,
    fixed_contradictions,
)

_FILE_NAME = re.compile(r"results_concurrency_(\d+)_gpus_(\d+)(?:_ctx_(\d+)_gen_(\d+))?\.json")
_AGENTIC_NAME = re.compile(r".*_conc(\d+)\.json")
_LENGTHS = re.compile(r"isl_(\d+)_osl_(\d+)")
_TYPED = ("duration", "request_throughput", "total_input_tokens", "total_output_tokens", "num_prompts", *FAILED)
"""Keys whose values must be numbers where they exist: a text or null would prevent the checks of the rates."""

_MAX_REASONS = 6
"""Reasons that the message about one file lists."""

_NEEDED = ("max_concurrency", "total_token_throughput", "output_throughput", "completed")


@dataclass(frozen=True)
class ResultFileName:
    """The values in a result's file name; ``split`` has the GPUs of prefill and of decode, None when aggregated."""

    concurrency: int
    gpus: int
    split: tuple[int, int] | None = None

    @classmethod
    def parse(cls, name: str) -> ResultFileName | None:
        """The parts of ``results_concurrency_N_gpus_G[_ctx_C_gen_D].json``, or None for another name."""
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            return None
        concurrency, gpus, prefill, decode = match.groups()
        return cls(int(concurrency), int(gpus), None if prefill is None else (int(prefill), int(decode)))


@dataclass(frozen=True)
class MeasuredPoint:
    """One measured concurrency. Rates are in tokens per second, latencies in milliseconds; None means not stated.

    Charts of agentic results use ``e2e_norm_intvty_p90``, in tokens/s/user. ``throughput_per_gpu`` and
    ``output_throughput_per_gpu`` are `tput_per_gpu` and `output_tput_per_gpu` as process_result.py computes them.
    ``ended`` is in Unix seconds: the document's own value, otherwise the file's modification time. ``doubts`` need a
    person's attention; they do not make the point invalid.
    """

    concurrency: int
    completed: int
    path: Path
    requests: int | None = None
    gpus: int | None = None
    prefill_gpus: int | None = None
    decode_gpus: int | None = None
    total_throughput: float | None = None
    output_throughput: float | None = None
    throughput_per_gpu: float | None = None
    output_throughput_per_gpu: float | None = None
    ttft_median_ms: float | None = None
    ttft_p99_ms: float | None = None
    tpot_median_ms: float | None = None
    tpot_p99_ms: float | None = None
    itl_median_ms: float | None = None
    itl_p99_ms: float | None = None
    e2el_median_ms: float | None = None
    e2el_p99_ms: float | None = None
    e2e_norm_intvty_p90: float | None = None
    duration_s: float | None = None
    ended: float | None = None
    rehearsal: bool = False
    doubts: tuple[str, ...] = ()


def read_result(path: Path, concurrency: int, expected: Expected, window: Window | None = None) -> MeasuredPoint:
    """Read one sa-bench result, ``…/sa-bench_isl_I_osl_O/results_concurrency_N_gpus_G[_ctx_C_gen_D].json``.

    The file name and the document must both state ``concurrency``. The directory's name must state the ``expected``
    lengths (None: not checked). ``window`` is the time in which the benchmark ran. Raises only UnusableResult, both for
    the content of the file and for a file that cannot be read.
    """
    name, folder = ResultFileName.parse(path.name), path.parent.name
    if name is None:
        raise UnusableResult("its name is not results_concurrency_N_gpus_G[_ctx_C_gen_D].json")
    if name.concurrency != concurrency:
        raise UnusableResult(f"its name says concurrency {name.concurrency}, expected {concurrency}")
    if (lengths := _LENGTHS.search(folder)) is not None:
        isl, osl = int(lengths[1]), int(lengths[2])
        requested = isl if expected.isl is None else expected.isl, osl if expected.osl is None else expected.osl
        if (isl, osl) != requested:
            raise UnusableResult(f"it was measured with ISL/OSL {isl}/{osl}, expected {requested[0]}/{requested[1]}")
        if expected.tool is not None and not folder.startswith(f"{expected.tool}_"):
            raise UnusableResult(f"its directory is {folder}, and the plan measures with {expected.tool}")
    return _fixed_point(path, name, Document.read(path), expected, window)


def read_agentic_result(
    path: Path, concurrency: int, expected: Expected, window: Window | None = None
) -> MeasuredPoint:
    """Read one agentic result, ``<RESULT_FILENAME>_conc<N>.json``, as InferenceX aggregates it from AIPerf's records.

    It is valid when the workflow takes it (``num_requests_successful`` must be at least 1) and nothing contradicts it.
    The file has seconds, the point milliseconds; there are no 99th percentiles. Raises UnusableResult.
    """
    match = _AGENTIC_NAME.fullmatch(path.name)
    if match is None or int(match[1]) != concurrency:
        raise UnusableResult(f"its name does not end in _conc{concurrency}.json")
    return _agentic_point(path, concurrency, Document.read(path), expected, window)


def read_single_result(
    path: Path, concurrency: int, expected: Expected, gpus: int, window: Window | None = None
) -> MeasuredPoint:
    """Read the only result of a job that measures one concurrency: its file name contains nothing that can be checked.

    A fixed result is benchmark_serving.py's, with the keys of sa-bench. An agentic result has the keys that
    `read_agentic_result` describes. Raises UnusableResult.
    """
    if expected.mode == "agentic":
        return _agentic_point(path, concurrency, Document.read(path), expected, window)
    prefill, decode = expected.gpus or (gpus, 0)
    name = ResultFileName(concurrency, prefill + decode, (prefill, decode) if decode else None)
    return _fixed_point(path, name, Document.read(path), expected, window)


_LISTS = ("input_lens", "output_lens", "ttfts")
_MODEL = ("model_id", "model", "model_name", "served_model_name")


def _fixed_point(
    path: Path, name: ResultFileName, document: Document, expected: Expected, window: Window | None
) -> MeasuredPoint:
    numbers = _fixed_numbers(document, name.concurrency)
    total, output, completed = (numbers[key] for key in ("total_token_throughput", "output_throughput", "completed"))
    lists = {key: values for key in _LISTS if (values := document.list_of_numbers(key))}
    lists["errors"] = [document.count_filled("errors")]
    stated = {k: document.value(k) for k in document if k in _MODEL or k in expected.row or STAND_IN_KEY.fullmatch(k)}
    _refuse_contradictions(
        *stand_in_contradictions(stated, expected),
        *(text for key in _MODEL for text in model_contradictions(stated.get(key), expected, key)),
        *row_contradictions(stated, expected, path.name),
        *gpu_contradictions(name.gpus, name.split, total, expected),
        *fixed_contradictions(numbers, lists, expected),
        *time_contradictions(numbers, expected, window),
    )
    prefill, decode = expected.gpus or name.split or (name.gpus, 0)
    requests = numbers.get("num_prompts")
    doubts = [f"{key} is negative" for key, value in numbers.items() if key.startswith("median") and value < 0]
    if requests is not None and int(completed) < int(requests):
        doubts.append(f"{int(completed)} of {int(requests)} requests completed")
    doubts += model_contradictions(document.value("tokenizer_id"), expected, "tokenizer_id")
    doubts += time_doubts(numbers.get("duration"), document.value("date"), expected, window)
    doubts += concurrency_doubts(numbers, at_full_rate=document.value("request_rate") == "inf")
    return MeasuredPoint(
        concurrency=name.concurrency,
        completed=int(completed),
        path=path,
        requests=None if requests is None else int(requests),
        gpus=prefill + decode,
        prefill_gpus=name.split[0] if name.split else None,
        decode_gpus=name.split[1] if name.split else None,
        total_throughput=total,
        output_throughput=output,
        throughput_per_gpu=total / (prefill + decode),
        output_throughput_per_gpu=output / (decode or prefill),
        **{
            f"{metric}_{which}_ms": numbers.get(f"{which}_{metric}_ms")
            for metric in ("ttft", "tpot", "itl", "e2el")
            for which in ("median", "p99")
        },
        duration_s=numbers.get("duration"),
        ended=numbers.get("benchmark_end_time_unix") or _modification_time(path),
        rehearsal=bool(document.value("rehearsal")),
        doubts=tuple(doubts),
    )


def _fixed_numbers(document: Document, concurrency: int) -> dict[str, float]:
    """The numbers of a fixed result, among them those that process_result.py needs. Raises UnusableResult."""
    if "model_id" not in document or not isinstance(document.value("model_id"), str):
        raise UnusableResult("model_id is not text" if "model_id" in document else "model_id is missing")
    for key in _NEEDED:
        document.number(key)
    for key in document:
        if key in _TYPED or key.endswith("ms") or "tpot" in key:
            document.number(key)
    numbers = document.numbers()
    if numbers["max_concurrency"] != concurrency:
        raise UnusableResult(f"max_concurrency is {numbers['max_concurrency']:g}, expected {concurrency}")
    if numbers["completed"] < 1:
        raise UnusableResult("no request was completed")
    if (
        min(numbers["output_throughput"], numbers["total_token_throughput"]) <= 0
        or numbers.get("total_output_tokens") == 0
    ):
        raise UnusableResult("no output token was generated")
    if zero := [key for key, value in numbers.items() if "tpot" in key and value == 0]:
        raise UnusableResult(f"{zero[0]} is 0, and process_result.py divides by it")
    return numbers


def _refuse_contradictions(*contradictions: str) -> None:
    if contradictions:
        raise UnusableResult("; ".join(contradictions[:_MAX_REASONS]))


def _agentic_point(
    path: Path, concurrency: int, document: Document, expected: Expected, window: Window | None
) -> MeasuredPoint:
    completed = document.number("num_requests_successful")
    if completed < 1:
        raise UnusableResult("no request succeeded")
    if (stated := document.number_if_any("conc")) not in (None, concurrency):
        raise UnusableResult(f"conc is {stated:g}, expected {concurrency}")
    gpus = (document.number_if_any(key) for key in ("num_prefill_gpu", "num_decode_gpu"))
    prefill, decode = (None if count is None else int(count) for count in gpus)
    parts = {key: document.value(key) for key in document}
    metrics = parts.get("request_metrics")
    medians = (_number_below(metrics, "latency", metric, "p50") for metric in ("ttft", "tpot", "itl", "e2el"))
    ttft, tpot, itl, e2el = (None if seconds is None else seconds * 1000 for seconds in medians)
    accounting, failed = parts.get("request_accounting"), failed_requests(parts)
    duration = _number_below(metrics, "throughput", "duration_seconds")
    _refuse_contradictions(
        *stand_in_contradictions(parts, expected),
        *model_contradictions(parts.get("model"), expected, "model"),
        *row_contradictions(parts, expected, path.name),
        *agentic_contradictions(parts, expected),
    )
    _number_below(accounting, "records_error_dropped")
    doubts = [f"{failed:g} requests failed"] if failed else []
    return MeasuredPoint(
        concurrency=concurrency,
        completed=int(completed),
        path=path,
        requests=None if accounting is None else int(completed + failed),
        gpus=None if prefill is None else prefill + (decode or 0),
        prefill_gpus=prefill,
        decode_gpus=decode,
        total_throughput=_number_below(metrics, "throughput", "total", "tokens_per_second"),
        output_throughput=_number_below(metrics, "throughput", "output", "tokens_per_second"),
        throughput_per_gpu=_number_below(metrics, "throughput", "per_gpu", "total_tput_tps"),
        output_throughput_per_gpu=_number_below(metrics, "throughput", "per_gpu", "output_tput_tps"),
        ttft_median_ms=ttft,
        tpot_median_ms=tpot,
        itl_median_ms=itl,
        e2el_median_ms=e2el,
        e2e_norm_intvty_p90=_number_below(metrics, "latency", "e2e_norm_intvty", "p90"),
        duration_s=duration,
        ended=_modification_time(path),
        rehearsal=bool(parts.get("rehearsal")),
        doubts=(*doubts, *time_doubts(duration, None, expected, window)),
    )


def _number_below(metrics: Any, *keys: str) -> float | None:
    for key in keys:
        metrics = metrics.get(key) if isinstance(metrics, dict) else None
    return None if metrics is None else require_finite(".".join(keys), metrics)


def _modification_time(path: Path) -> float | None:
    """In Unix seconds; None if the file's status cannot be read."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None
