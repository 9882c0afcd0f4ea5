"""Whether a result file can be believed. Nothing is written here.

A file must hold what InferenceX needs next: `utils/process_result.py` reads `max_concurrency`, `model_id` and
both throughputs, divides every key ending in ``ms`` by 1000, and 1000 by every key that contains ``tpot``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_FILE_NAME = re.compile(r"results_concurrency_(\d+)_gpus_(\d+)(?:_ctx_(\d+)_gen_(\d+))?\.json")
_AGENTIC_NAME = re.compile(r".*_conc(\d+)\.json")
_LENGTHS = re.compile(r"isl_(\d+)_osl_(\d+)")
_NOT_FINITE = re.compile(rb'(?:"([^"]{1,80})"\s*:|[\[,])\s*[-+]?(NaN|Infinity)\b')
_FALSE = msgspec.Raw(b"false")
_NEEDED = ("max_concurrency", "total_token_throughput", "output_throughput", "completed")


@dataclass(frozen=True)
class FileName:
    """What a result's file name says; ``split`` are the GPUs of prefill and of decode, None when aggregated."""

    concurrency: int
    gpus: int
    split: tuple[int, int] | None = None

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """The parts of ``results_concurrency_N_gpus_G[_ctx_C_gen_D].json``, or None for another name."""
        found = _FILE_NAME.fullmatch(name)
        if found is None:
            return None
        concurrency, gpus, prefill, decode = found.groups()
        return cls(int(concurrency), int(gpus), None if prefill is None else (int(prefill), int(decode)))


@dataclass(frozen=True)
class Point:
    """One measured concurrency: tokens per second and milliseconds; None where the file does not say.

    ``throughput_per_gpu`` and ``output_throughput_per_gpu`` are `tput_per_gpu` and `output_tput_per_gpu` as
    process_result.py computes them. ``doubts`` are for a person to look at; they do not make the point invalid.
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
    duration_s: float | None = None
    rehearsal: bool = False
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Invalid:
    """A result file that cannot be used, and why."""

    path: Path
    reason: str


class _Unusable(Exception):
    """A document cannot be used as a result; the message says why."""


def read_result(path: Path, *, expected_concurrency: int, isl: int | None, osl: int | None) -> Point | Invalid:
    """Read one sa-bench result, ``…/sa-bench_isl_I_osl_O/results_concurrency_N_gpus_G[_ctx_C_gen_D].json``.

    The file name and the document must both say ``expected_concurrency``, and the directory's name must say ``isl`` and
    ``osl`` (None: not checked). Never raises for what the file holds or for a file that cannot be read.
    """
    try:
        name = FileName.parse(path.name)
        if name is None:
            raise _Unusable("its name is not results_concurrency_N_gpus_G[_ctx_C_gen_D].json")
        if name.concurrency != expected_concurrency:
            raise _Unusable(f"its name says concurrency {name.concurrency}, expected {expected_concurrency}")
        if lengths := _LENGTHS.search(path.parent.name):
            said = int(lengths[1]), int(lengths[2])
            asked = said[0] if isl is None else isl, said[1] if osl is None else osl
            if said != asked:
                text = f"it was measured with ISL/OSL {said[0]}/{said[1]}, expected {asked[0]}/{asked[1]}"
                raise _Unusable(text)
        return _fixed_point(path, name, _load(path), osl)
    except _Unusable as unusable:
        return Invalid(path, str(unusable))


def read_agentic_result(path: Path, *, expected_concurrency: int) -> Point | Invalid:
    """Read one agentic result, ``<RESULT_FILENAME>_conc<N>.json``, as InferenceX aggregates it from AIPerf's records.

    It is valid when the workflow takes it: ``num_requests_successful`` must be at least 1. The file has seconds, the
    point milliseconds; there are no 99th percentiles. Never raises for what the file holds.
    """
    try:
        named = _AGENTIC_NAME.fullmatch(path.name)
        if named is None or int(named[1]) != expected_concurrency:
            raise _Unusable(f"its name does not end in _conc{expected_concurrency}.json")
        return _agentic_point(path, expected_concurrency, _load(path))
    except _Unusable as unusable:
        return Invalid(path, str(unusable))


def read_only_result(
    path: Path, *, concurrency: int, gpus: int, agentic: bool, osl: int | None = None
) -> Point | Invalid:
    """Read the one result of a job that measures one concurrency: its file's name says nothing that can be checked.

    A fixed one is benchmark_serving.py's, with the keys of sa-bench; an agentic one is as `read_agentic_result` has it.
    Never raises for what the file holds or for a file that cannot be read.
    """
    try:
        if agentic:
            return _agentic_point(path, concurrency, _load(path))
        return _fixed_point(path, FileName(concurrency, gpus), _load(path), osl)
    except _Unusable as unusable:
        return Invalid(path, str(unusable))


def is_json_object(path: Path) -> bool:
    """Whether a file can be read and holds a JSON object."""
    try:
        return _load(path) is not None
    except _Unusable:
        return False


def _load(path: Path) -> Mapping[str, msgspec.Raw]:
    """The top level of a JSON object, its values unparsed: `itls` alone can hold twenty million numbers."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None
    if not data.strip():
        raise _Unusable("the file is empty")
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise _Unusable("it is JSON, but not an object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if found := _NOT_FINITE.search(data):
            holder = found[1].decode(errors="replace") if found[1] else "an element of a list"
            raise _Unusable(f"{holder} is {found[2].decode()}") from None
        text = str(error)
        raise _Unusable("truncated JSON" if "truncated" in text else f"not JSON: {text}") from None


def _number(document: Mapping[str, msgspec.Raw], key: str) -> float:
    raw = document.get(key)
    if raw is None:
        raise _Unusable(f"{key} is missing")
    return _finite(key, _value(raw))


def _number_if_any(document: Mapping[str, msgspec.Raw], key: str) -> float | None:
    return _number(document, key) if key in document else None


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Unusable(f"not JSON: {error}") from None


def _finite(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unusable(f"{key} is {value!r}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Unusable(f"{key} is not finite")
    return number


def _fixed_point(path: Path, name: FileName, document: Mapping[str, msgspec.Raw], osl: int | None) -> Point:
    if not (raw := document.get("model_id")) or not isinstance(_value(raw), str):
        raise _Unusable("model_id is missing" if raw is None else "model_id is not text")
    concurrency, total, output, completed = (_number(document, key) for key in _NEEDED)
    numbers = {key: _number(document, key) for key in document if key.endswith("ms") or "tpot" in key}
    if concurrency != name.concurrency:
        raise _Unusable(f"max_concurrency is {concurrency:g}, expected {name.concurrency}")
    if completed < 1:
        raise _Unusable("no request was completed")
    tokens = _number_if_any(document, "total_output_tokens")
    if output <= 0 or total <= 0 or tokens == 0:
        raise _Unusable("no output token was generated")
    if zero := [key for key, value in numbers.items() if "tpot" in key and value == 0]:
        raise _Unusable(f"{zero[0]} is 0, and process_result.py divides by it")
    prefill, decode = name.split or (name.gpus, 0)
    if prefill <= 0:
        raise _Unusable("its file name says no prefill GPU, and process_result.py divides by them")
    requests = _number_if_any(document, "num_prompts")
    doubts = [f"{key} is negative" for key, value in numbers.items() if key.startswith("median") and value < 0]
    if requests is not None and int(completed) < int(requests):
        doubts.append(f"{int(completed)} of {int(requests)} requests completed")
    if osl and tokens and not osl / 2 <= tokens / int(completed) <= osl:
        doubts.append(f"{tokens / int(completed):.0f} output tokens a request, where OSL is {osl}")
    if name.split is not None and sum(name.split) != name.gpus:
        doubts.append(f"its file name says {name.gpus} GPUs, and {name.split[0]}+{name.split[1]} of them")
    return Point(
        concurrency=name.concurrency,
        completed=int(completed),
        path=path,
        requests=None if requests is None else int(requests),
        gpus=name.gpus,
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
        duration_s=_number_if_any(document, "duration"),
        rehearsal=bool(_value(document.get("rehearsal", _FALSE))),
        doubts=tuple(doubts),
    )


def _agentic_point(path: Path, concurrency: int, document: Mapping[str, msgspec.Raw]) -> Point:
    completed = _number(document, "num_requests_successful")
    if completed < 1:
        raise _Unusable("no request succeeded")
    if (said := _number_if_any(document, "conc")) not in (None, concurrency):
        raise _Unusable(f"conc is {said:g}, expected {concurrency}")
    parts = {key: _value(document[key]) for key in ("request_accounting", "request_metrics") if key in document}
    failed, metrics = _within(parts.get("request_accounting"), "records_error_dropped"), parts.get("request_metrics")
    gpus = (_number_if_any(document, key) for key in ("num_prefill_gpu", "num_decode_gpu"))
    prefill, decode = (None if count is None else int(count) for count in gpus)
    latency = {
        f"{metric}_median_ms": None if seconds is None else seconds * 1000
        for metric in ("ttft", "tpot", "itl", "e2el")
        for seconds in (_within(metrics, "latency", metric, "p50"),)
    }
    return Point(
        concurrency=concurrency,
        completed=int(completed),
        path=path,
        requests=None if failed is None else int(completed + failed),
        gpus=None if prefill is None else prefill + (decode or 0),
        prefill_gpus=prefill,
        decode_gpus=decode,
        total_throughput=_within(metrics, "throughput", "total", "tokens_per_second"),
        output_throughput=_within(metrics, "throughput", "output", "tokens_per_second"),
        throughput_per_gpu=_within(metrics, "throughput", "per_gpu", "total_tput_tps"),
        output_throughput_per_gpu=_within(metrics, "throughput", "per_gpu", "output_tput_tps"),
        **latency,
        duration_s=_within(metrics, "throughput", "duration_seconds"),
        rehearsal=bool(_value(document.get("rehearsal", _FALSE))),
        doubts=(f"{failed:g} requests failed",) if failed else (),
    )


def _within(metrics: Any, *keys: str) -> float | None:
    for key in keys:
        metrics = metrics.get(key) if isinstance(metrics, dict) else None
    return None if metrics is None else _finite(".".join(keys), metrics)
