"""Writes the aggregates of the results in a directory beside them, as the next steps of the workflow would.

Everything is computed before anything is written: a result that cannot be aggregated raises and leaves no file.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.benchmark.environment import environment_of
from launcher.core.errors import LauncherError, ResultError
from launcher.core.publish import publishing
from launcher.core.reading import LARGEST_RESULT, load_json, open_regular, open_text, read_file
from launcher.result.agentic_rows import Profile, Records, agentic_row, parallelism, read_records, whole_numbers
from launcher.result.power import add_new, one_node, with_power
from launcher.result.power_package import Package, several_nodes
from launcher.result.row_fields import Row, finite, fixed_row

SUMMARY, RECORDS = "profile_export_aiperf.json", "profile_export.jsonl"
_MAX_LOG = 64 << 20
"""Bytes that are read of a server's log, from its beginning."""
_MAX_WORD_FILE = 4096
"""Bytes of a file that contains one word."""

_LONG_VALUE = 1 << 16
"""Bytes from which a value of a raw result is a list of requests, not a number or a name."""
_DATA_SET = "datasets--semianalysisai--cc-traces-weka*"


def read_document(path: Path) -> Any:
    """A file's JSON. Raises ResultError if it cannot be read."""
    try:
        return load_json(path, LARGEST_RESULT)
    except OSError as error:
        raise ResultError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise ResultError(f"not JSON: {error}", where=str(path)) from None


def _read_without_lists(path: Path) -> dict[str, Any]:
    """A raw result with empty lists in place of its long ones, which no aggregate needs: ``itls`` alone may have twenty
    million numbers. Raises ResultError."""
    try:
        raw = msgspec.json.decode(read_file(path, LARGEST_RESULT), type=dict[str, msgspec.Raw])
        return {k: json.loads(bytes(v)) if memoryview(v).nbytes < _LONG_VALUE else [] for k, v in raw.items()}
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):  # among them NaN, which Python reads
        document = read_document(path)
    if not isinstance(document, dict):
        raise ResultError("is JSON, but no object", where=str(path))
    return document


def write_document(path: Path, value: Any) -> None:
    """Write a document atomically. Raises ResultError."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
        with publishing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"cannot be written: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise ResultError(f"is not written: {error}", where=str(path)) from None


def power_required(environ: Mapping[str, str]) -> bool:
    """Whether a job without valid power measurements has failed."""
    return environ.get("REQUIRE_POWER", "").lower() in ("1", "true", "yes")


def aggregate_fixed(directory: Path, stem: str, environ: Mapping[str, str]) -> Row:
    """Write ``agg_<stem>.json`` and ``power_validation_<stem>.json`` of ``<stem>.json``; return the row.

    Raises ConfigError for the variables and ResultError for the result. If power is required and not valid, raises
    ResultError after both files are written.
    """
    path = directory / f"{stem}.json"
    raw = _read_without_lists(path)
    row, (prefill, decode) = fixed_row(raw, environ)
    if row["is_multinode"]:
        logs = directory / environ.get("POWER_RESULT_ROOT", "LOGS")
        telemetry = directory / environ.get("POWER_ARTIFACT_DIR", "LOGS/power")
        package = Package(telemetry, logs, path, (prefill, decode), environ.get("POWER_PRODUCER_SHA") or None)
        # The package's copy of the result is compared with the complete document.
        metrics, record = several_nodes(package, read_document(path) if telemetry.is_dir() else raw)
    else:
        names = [n for n in (environ.get("GPU_METRICS_CSV"), "gpu_metrics.csv", "/workspace/gpu_metrics.csv") if n]
        telemetry = next((directory / n for n in names if (directory / n).is_file()), directory / names[0])
        metrics, record = one_node(telemetry, raw, prefill)
    flag = {"rehearsal": True} if raw.get("rehearsal") is True else {}  # nobody may take it for a measurement
    row = with_power(row | flag, metrics)
    write_document(directory / f"agg_{stem}.json", row)
    try:
        write_document(directory / f"power_validation_{stem}.json", {**record, "benchmark_result": str(path)})
    except ResultError:  # its name is the longer one
        if power_required(environ):
            raise
    if not record["power_valid"] and power_required(environ):
        raise ResultError(f"power is required, and not valid: {', '.join(record['reasons'])}", where=str(path))
    return row


def aggregate_several_nodes(directory: Path, stem: str, environ: Mapping[str, str]) -> list[Row]:
    """`aggregate_fixed` of every ``<stem>_*.json`` whose name states its GPUs.

    The first failure is raised, as it ends the workflow's step.
    """
    environ = {**environ, **_producer_variable(directory, environ)}
    rows = []
    for path in sorted(directory.glob(f"{glob.escape(stem)}_*.json")):
        if path.is_file() and (gpus := _gpu_variables(path.name)):
            rows.append(aggregate_fixed(directory, path.stem, {**environ, **gpus}))
    return rows


def _producer_variable(directory: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """POWER_PRODUCER_SHA, the commit whose power package is accepted, from the file that the launcher wrote; nothing if
    the variable is set or there is no file."""
    stamp = directory / "power-producer-sha.txt"
    if environ.get("POWER_PRODUCER_SHA") or not stamp.is_file():
        return {}
    try:
        return {"POWER_PRODUCER_SHA": read_file(stamp, _MAX_WORD_FILE).decode().rstrip("\n")}
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"the commit of the power package cannot be read: {error}", where=str(stamp)) from None


def _gpu_variables(name: str) -> dict[str, str]:
    """The GPUs of both sides from a result's file name, as variables; nothing if it states none."""
    matches = (re.findall(rf"_{word}_(\d{many})", name) for word, many in (("gpus", "+"), ("ctx", "*"), ("gen", "*")))
    gpus, prefill, decode = (numbers[-1] if numbers else "" for numbers in matches)
    prefill, decode = (prefill, decode) if prefill and decode else (gpus, "0")
    return {"IS_MULTINODE": "true", "PREFILL_GPUS": prefill, "DECODE_GPUS": decode} if gpus else {}


def aggregate_run(directory: Path, benchmark: Benchmark, names: Iterable[str], logs: Path | None = None) -> list[str]:
    """Write the aggregates of a run's results, the files ``names`` in ``directory``; return a sentence per failure.

    ``logs`` is the job's own directory of logs, which may contain a power package. An agentic result is an aggregate
    already, and rows of evaluations come from `evaluation_rows`.
    """
    if benchmark.agentic or benchmark.eval_only:
        return []
    if benchmark.multinode and benchmark.decode is None:
        benchmark = replace(benchmark, decode=Role(0, 1))
    environ = environment_of(benchmark)
    environ |= _producer_variable(directory, environ)
    if logs is not None and (logs / "power").is_dir():
        environ |= {"POWER_ARTIFACT_DIR": str(logs / "power"), "POWER_RESULT_ROOT": str(logs)}
    problems = []
    for name in names:
        gpus = _gpu_variables(name) if benchmark.multinode else {}
        if name.endswith(".json") and (gpus or not benchmark.multinode):
            try:
                aggregate_fixed(directory, name.removesuffix(".json"), {**environ, **gpus})
            except LauncherError as error:
                problems.append(f"{name} gives no aggregate: {error.message}")
    return problems


def export_directory(base: Path, name: str = RECORDS) -> Path:
    """The directory of AIPerf's export, which contains the file ``name``: ``base`` or the first such subdirectory."""
    children = sorted(base.iterdir()) if base.is_dir() else ()
    return next((directory for directory in (base, *children) if (directory / name).is_file()), base)


def _records(path: Path) -> Records:
    try:
        with open_text(path) as lines:
            return read_records(lines)
    except OSError as error:
        raise ResultError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise ResultError(f"no records of requests: {error!r}"[:400], where=str(path)) from None


def aggregate_agentic(directory: Path, stem: str, environ: Mapping[str, str]) -> Row:
    """Write ``<stem>.json`` from AIPerf's export below RESULT_DIR; return the row.

    Raises ConfigError for the variables, ResultError for the export.
    """
    results = directory / environ.get("RESULT_DIR", "results")
    exported = export_directory(results / "aiperf_artifacts")
    records = _records(exported / RECORDS)
    summary, server = (
        read_document(path) if (path := exported / name).exists() else {}
        for name in (SUMMARY, "server_metrics_export.json")
    )
    expected = expected_outputs(_data_set(environ), records) if records.good else []
    row = agentic_row(Profile(records, summary, server, list(_server_logs(results)), expected), environ)
    out = directory / environ.get("AGENTIC_OUTPUT_DIR", ".")
    out.mkdir(parents=True, exist_ok=True)
    write_document(out / f"{stem}.json", row)
    return row


def _server_logs(results: Path) -> Iterator[str]:
    """The texts of the servers' logs: the run's own, and those of srt-slurm's watchtower for several nodes."""
    paths = [results / "server.log"]
    for root in (results, *list(results.parents)[:3]):
        paths += sorted(root.glob("watchtower-*.out")) if root.is_dir() else []
    for path in sorted({path.resolve() for path in paths}):
        if path.is_file():
            with open_regular(path) as file:
                yield file.read(_MAX_LOG).decode("utf-8", errors="replace").replace("\x00", "")


def _data_set(environ: Mapping[str, str]) -> Path | None:
    """The newest snapshot of the traces' data set in the Hugging Face cache."""
    home = Path(environ["HF_HOME"]) if environ.get("HF_HOME") else Path.home() / ".cache/huggingface"
    cache = Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    snapshots = [path for path in cache.glob(f"{_DATA_SET}/snapshots/*") if path.is_dir()]
    snapshots.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in snapshots if any(path.glob("*.json*"))), None)


def expected_outputs(data_set: Path | None, records: Records) -> list[int]:
    """The output lengths that the traces state for the turns of these records."""
    turns: dict[str, list[int]] = {}
    for trace in _traces(data_set) if data_set is not None else ():
        requests = [request for request in trace.get("requests", []) if request.get("type") in ("n", "s")]
        lengths = (request.get("out") if (n := request.get("output_length")) is None else n for request in requests)
        if trace.get("id") and requests:
            turns[str(trace["id"])] = [int(length or 0) for length in lengths]
    expected = []
    for record in records.good if turns else ():
        metadata = record.get("metadata", {})
        name, turn = str(metadata.get("conversation_id") or "").split("::", 1)[0], metadata.get("turn_index")
        if turn is not None and turn < len(turns.get(name, ())):
            expected.append(turns[name][int(turn)])
    return expected


def _traces(data_set: Path) -> Iterator[Any]:
    for path in (*sorted(data_set.glob("*.jsonl")), *sorted(data_set.glob("*.json"))):
        try:
            with open_text(path, errors="replace") as file:
                for text in file if path.suffix == ".jsonl" else [file.read()]:
                    try:
                        trace = json.loads(text)
                    except (ValueError, RecursionError):
                        continue  # an empty line, or no JSON
                    if isinstance(trace, dict):
                        yield trace
        except OSError:
            continue


def aggregate_agentic_power(directory: Path, stem: str, environ: Mapping[str, str]) -> None:
    """Add the power of one node to ``<stem>.json`` if RESULT_DIR contains its samples.

    Raises ConfigError for the variables. If power is required and not valid, raises ResultError after all is written.
    """
    results = directory / environ.get("RESULT_DIR", "results")
    if environ.get("IS_MULTINODE", "").lower() == "true":  # srt-slurm's package has their power
        return
    if not power_required(environ) and not (results / "gpu_metrics.csv").is_file():
        return
    aggregate = directory / environ.get("AGENTIC_OUTPUT_DIR", ".") / f"{stem}.json"
    reasons = add_agentic_power(results, aggregate, parallelism(environ)[1])
    if reasons and power_required(environ):
        raise ResultError(f"power is required, and not valid: {', '.join(reasons)}", where=str(results))


def add_agentic_power(results: Path, aggregate: Path, gpus: int | None) -> list[str]:
    """Add the power of one node to an agentic aggregate, and write the window and the record of the check beside the
    telemetry. Returns the reasons why power is not valid. Raises ResultError."""
    csv, window_file = results / "gpu_metrics.csv", results / "agentic_power_window.json"
    window, reasons = _agentic_window(results)
    if window is not None:
        write_document(window_file, window)
    metrics, record = one_node(csv, window or {}, gpus, reasons)
    if window is None:
        record["window_source"] = "aiperf_profile_lifecycle"
    missing = "" if aggregate.is_file() else "missing"
    if not missing:
        try:
            write_document(aggregate, with_power(read_document(aggregate), metrics))
        except ResultError:
            missing = "unwritable"
    if missing and window is None:
        return reasons
    if missing:
        add_new(record["reasons"], f"aggregate_result_{missing}")
        record |= {"power_valid": False, "metrics": {}}
    write_document(results / "power_validation.json", {**record, "benchmark_result": str(window_file)})
    return list(record["reasons"])


def _agentic_window(results: Path) -> tuple[Row | None, list[str]]:
    """The window of AIPerf's profile with the counts of its good records; None and reasons if there is none."""
    exported = export_directory(results / "aiperf_artifacts")
    if not (exported / SUMMARY).is_file() or not (exported / RECORDS).is_file():
        return None, ["profile_artifacts_missing"]
    try:
        summary, good = read_document(exported / SUMMARY), _records(exported / RECORDS).good
    except ResultError:
        return None, ["profile_artifacts_invalid"]
    if not isinstance(summary, dict):
        raise ResultError("is JSON, but no object", where=str(exported / SUMMARY))
    stated = [summary.get(key) for key in ("start_time", "end_time")]
    if None in stated:
        return None, ["profile_window_missing"]
    times, zone = [_profile_time(value) for value in stated], None
    if any(isinstance(time, datetime) and time.tzinfo is None for time in times):
        offset = results / "agentic_power_timezone_offset.txt"
        if not offset.is_file():
            return None, ["profile_timezone_offset_missing"]
        if (zone := _time_zone(offset)) is None:
            return None, ["profile_timezone_offset_invalid"]
    start, end = (
        (time if time.tzinfo is not None else time.replace(tzinfo=zone)).timestamp()
        if isinstance(time, datetime)
        else time
        for time in times
    )
    if start is None or end is None or end <= start:
        return None, ["profile_window_invalid"]
    tokens = [whole_numbers(good, f"{kind}_sequence_length") for kind in ("input", "output")]
    if not good:
        return None, ["successful_request_count_invalid"]
    if any(len(counts) != len(good) or min(counts) < 0 or sum(counts) <= 0 for counts in tokens):
        return None, ["incomplete_token_accounting"]
    return {
        "benchmark_start_time_unix": start,
        "benchmark_end_time_unix": end,
        "duration": end - start,
        "completed": len(good),
        "total_input_tokens": sum(tokens[0]),
        "total_output_tokens": sum(tokens[1]),
    }, []


def _profile_time(value: Any) -> datetime | float | None:
    """A time of a profile: Unix seconds, or ISO 8601 with or without a zone."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        except ValueError:
            return None
    return float(value) if finite(value) else None


def _time_zone(path: Path) -> timezone | None:
    try:
        match = re.fullmatch(r"([+-])(\d{2}):?(\d{2})", read_file(path, _MAX_WORD_FILE).decode().strip())
    except (OSError, UnicodeDecodeError):
        return None
    if match is None or int(match[2]) > 23 or int(match[3]) > 59:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(offset if match[1] == "+" else -offset)
