"""Why a run ended as it did: which layer it is put down to, and the first failure in the logs.

The verdict is a pure function of what is known: the launcher's own error, how Slurm says the job ended, and the first
line of failure among the job's logs. Logs are read in bounded pieces, since a worker's log can have gigabytes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launcher.core.errors import Cancelled, LauncherError
from launcher.result.logs import log_files
from launcher.slurm.client import LOST, JobState, Phase

TAIL = 256 * 1024
"""Bytes that are read of the end of each log."""

FILES = 400
"""Logs that are looked at: 72 nodes leave some three each."""

LINES = 40
"""Lines that are kept of what failed first."""


@dataclass(frozen=True)
class Failure:
    """A line of failure in a log. ``source`` is what wrote it: server, benchmark, or orchestrator. ``at`` is when, in
    seconds since the epoch, by the line or one before it, else by the file. ``lines`` are those around it."""

    file: str
    source: str
    text: str
    at: float
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Which layer an end is put down to, and what happened, in one line.

    ``layer`` is configuration, image, model, scheduler, node, server, benchmark, results or cancelled; it is "" for a
    success.
    """

    layer: str
    text: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}" if self.layer else self.text


# Orchestrators repeat what killed a worker; such lines are told from the worker's own by their file.
_FAILED = re.compile(
    r"Traceback \(most recent call last\)|^\s*(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception)\b|CUDA error|out of memory"
    r"|\bOOM\b|oom-kill|Xid|NCCL (?:error|WARN .*(?:timeout|failed))|Segmentation fault|core dumped|\bFATAL\b"
    r"|\b(?:ERROR|CRITICAL)\b|\[ERROR\]|error:|No such file or directory|Killed|pyxis: (?:failed|couldn)"
    r"|slurmstepd: error|exited with (?:exit )?code [1-9]",
)
# Of a traceback the last line is what happened.
_NAMED = re.compile(r"^\s*(?:[\w.]+\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b.*")
_HARMLESS = re.compile(
    r"CANCELLED AT|error: \*\*\*|0 errors?\b|errors?[=:] *0\b|error_rate|DUE TO TIME LIMIT|pyxis: child \d", re.I
)

# Slurm ends the job's programs then, and whatever they say of it is a consequence.
_LIMIT_REACHED = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON .* DUE TO TIME LIMIT")

_BY_TEXT: tuple[tuple[str, str], ...] = (
    (
        "image",
        r"pyxis: (?:failed|couldn).*(?:container|image|squash|filesystem)|pyxis: container start failed|execve\(\)"
        r"|enroot|[Ii]nvalid image format|\.sqsh"
        r"|[Cc]ontainer image|registry-1\.docker|manifests/|File system corruption|launcher: error: image",
    ),
    (
        "node",
        r"\bXid\b|uncorrectable|ECC error|NVLink|fell off the bus|No space left on device|[Ss]tale file handle"
        r"|Input/output error|Too many levels of symbolic links|Duplicate jobid|CUDA-capable device"
        r"|system not yet initialized|Node failure|node failure|Permission denied.*/(?:raid|scratch|tmp)",
    ),
    (
        "model",
        r"[Mm]odel (?:path|directory).*(?:not exist|not found)|safetensors|config\.json|tokenizer|[Cc]heckpoint"
        r"|weight_scale|input_scale|huggingface|hf_hub|HTTPError.*huggingface|KeyError: '(?:model|layers)\.",
    ),
    (
        "configuration",
        r"unrecognized arguments|invalid choice|ValidationError|Unknown field|unexpected keyword argument|ConfigError"
        r"|argument --|No module named|selector|--container-mounts: source path",
    ),
)

_STAMPS = (
    (re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)"), "%Y-%m-%d %H:%M:%S"),
    (re.compile(r"\b(\d\d/\d\d/\d{4})-(\d\d:\d\d:\d\d)"), "%m/%d/%Y %H:%M:%S"),
)

_SCHEDULERS = {
    "TIMEOUT": "the time limit was reached",
    "DEADLINE": "its deadline was reached",
    "CANCELLED": "somebody else cancelled it",
    "PREEMPTED": "another job took its place",
    "REVOKED": "another cluster of the federation runs it",
    LOST: "Slurm lost the job, and confirms no end of it",
}
_NODES = {"NODE_FAIL": "a node failed", "BOOT_FAIL": "a node did not boot"}


def verdict(
    error: LauncherError | None,
    job: JobState | None = None,
    failures: Sequence[Failure] = (),
) -> Verdict:
    """Whose fault an end is. ``failures`` are in the order of `first_failures`."""
    first = failures[0] if failures else None
    if error is None:
        doubt = f"; {job.failed_step}" if job is not None and job.failed_step else ""
        return Verdict("", f"good: the job COMPLETED with 0:0, and every result is there and valid{doubt}")
    if isinstance(error, Cancelled):
        return Verdict("cancelled", _line(error.message))
    if error.layer in ("configuration", "image", "model", "results"):
        if error.layer == "results" and first is not None:
            return Verdict("results", f"{_line(error.message)}; first failure in {first.file}: {first.text}")
        return Verdict(error.layer, _line(error.message))
    if error.layer == "submission":
        return Verdict(_layer_of(error.message) or "scheduler", _line(_telling(error.message)))
    if job is None or job.phase is not Phase.TERMINAL:
        return Verdict("scheduler", _line(error.message))
    return _of_job(job, first)


def _of_job(job: JobState, first: Failure | None) -> Verdict:
    where = f" on {job.nodes}" if job.nodes else ""
    if job.word in _NODES:
        return Verdict("node", f"{_NODES[job.word]}{where} ({job.word})")
    failed = job.word == LOST and job.exit_code != (0, 0)  # then its logs tell more than that it was lost
    if job.word in _SCHEDULERS and job.word != "TIMEOUT" and not failed:
        return Verdict("scheduler", f"{_SCHEDULERS[job.word]} ({job.describe()})")
    if job.exit_code is not None and job.exit_code[1] == 53:
        return Verdict("node", f"the job's output file or directory could not be opened{where}")
    if first is None:
        layer = "scheduler" if job.word == "TIMEOUT" else "server" if job.word == "OUT_OF_MEMORY" else "benchmark"
        said = _SCHEDULERS.get(job.word, "no log says why")
        return Verdict(layer, f"{job.describe()}: {said}")
    layer = _layer_of(first.text) or {"server": "server", "benchmark": "benchmark"}.get(first.source, "server")
    return Verdict(layer, f"{first.file}: {first.text} (the job ended as {job.describe()})")


def _layer_of(text: str) -> str | None:
    return next((layer for layer, pattern in _BY_TEXT if re.search(pattern, text)), None)


def _telling(message: str) -> str:
    """The line of a submission's message that says why: sbatch's own before srtctl's words about it."""
    lines = message.splitlines()
    for words in ("sbatch: error:", "rror: ", "❌"):
        if told := next((line for line in lines if words in line), None):
            return told
    return message


def _line(text: str, width: int = 240) -> str:
    words = " ".join(text.split())
    return words if len(words) <= width else f"{words[: width - 1]}…"


def first_failures(logs: Path, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> list[Failure]:
    """Every log's first line of failure, in the order of their times; those of the orchestrator last, which only
    tells what happened elsewhere. Stops looking after ``seconds``. Never raises for a file."""
    found: list[Failure] = []
    until = clock() + seconds
    looked = 0
    for path, status in log_files(logs):
        if looked >= FILES or clock() > until:
            break
        if path.suffix in (".out", ".log", ".err"):
            looked += 1
            failure = _failure(path, str(path.relative_to(logs)), status.st_mtime)
            if failure is not None:
                found.append(failure)
    return sorted(found, key=lambda f: (f.source == "orchestrator", f.at, f.file))


def _failure(path: Path, name: str, changed: float) -> Failure | None:
    lines = tail(path)
    at: float | None = None
    for number, line in enumerate(lines):
        if _LIMIT_REACHED.search(line):
            break
        at = _stamp(line) or at
        if _FAILED.search(line) and not _HARMLESS.search(line):
            text = line
            if "Traceback" in line:
                text = next((later for later in lines[number + 1 : number + 200] if _NAMED.match(later)), line)
            around = tuple(lines[max(0, number - 5) : number - 5 + LINES])
            source = "benchmark" if path.name.startswith(("benchmark", "eval", "bench_")) else "server"
            if path.name.startswith(("sweep_", "slurm-")):
                source = "orchestrator"
            return Failure(name, source, _line(text, 200), at if at is not None else changed, around)
    return None


def _stamp(line: str) -> float | None:
    for pattern, form in _STAMPS:
        if found := pattern.search(line[:120]):
            try:
                return datetime.strptime(f"{found[1]} {found[2]}", form).timestamp()
            except ValueError:
                continue
    return None


def tail(path: Path, size: int = TAIL) -> list[str]:
    """The last lines of a file, whole ones, of at most ``size`` bytes; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            text = file.read(size).decode(errors="replace")
    except OSError:
        return []
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return lines[1:] if length > size else lines
