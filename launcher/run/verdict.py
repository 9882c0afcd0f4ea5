"""Why a run ended as it did: the responsible layer, and in plain words what ended it, where, and when.

The verdict is a pure function of the launcher's own error, the job's end as Slurm reports it, and the first failure in
the job's logs (failures.py). What Slurm reports about limits, nodes, memory and cancellation comes before any log.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from launcher.core.errors import Cancelled, LauncherError
from launcher.run.fields import Verdict
from launcher.run.log_failure import CONTROLLER_AWAY, LOG_WORDS, Failure, cut, source_of
from launcher.slurm.client import LOST, JobState, Phase

_SCHEDULERS = {
    "TIMEOUT": "the time limit was reached",
    "DEADLINE": "its deadline was reached",
    "CANCELLED": "somebody else cancelled it",
    "PREEMPTED": "another job took its place",
    "REVOKED": "another cluster of the federation runs it",
    LOST: "Slurm lost the job, and confirms no end of it",
}
_NODES = {"NODE_FAIL": "a node failed", "BOOT_FAIL": "a node did not boot"}
_FAILED_NODE = re.compile(r"\bsrun: error: Node failure on ([A-Za-z0-9_.,\[\]-]{1,200})")
"""srun's message about nodes that failed. The node after slurmstepd's ``ON`` is the one that it runs on."""

_BY_SLURM = r"(?:slurmstepd\S*|srun): (?:error: )?(?:.*(?:{}))"
_MEMORY_LIMIT, _SAMPLED = (
    re.compile(_BY_SLURM.format("|".join(LOG_WORDS[words]))) for words in ("memory limit", "memory limit by sampling")
)

END_OF_LIMIT = 90.0
"""Seconds before a job's end in which failures in its logs may come from the limit itself: Slurm sends SIGTERM, and
SIGKILL after KillWait, 30 s by default."""

_ROLE = r"(?P<role>prefill|decode|agg|frontend|router)"
_WORKER = re.compile(rf"(?P<node>.*)_{_ROLE}_w?(?P<index>\d+)\.out")
_PROCESS = re.compile(rf"{_ROLE}_(?P<index>\d+)(?:_(?P<node>.*))?")


def verdict(
    error: LauncherError | None,
    job: JobState | None = None,
    failures: Sequence[Failure] = (),
    *,
    stage: str = "",
) -> Verdict:
    """Which layer caused the end, and how. ``failures`` are in the order of `first_failures`; ``stage`` is the step
    that was under way before there was a job, in words."""
    first = next((failure for failure in failures if failure.standing in ("cause", "symptom")), None)
    if error is None:
        doubt = f"; {job.failed_step}" if job is not None and job.failed_step else ""
        return Verdict("", f"good: the job COMPLETED with 0:0, and every result is there and valid{doubt}")
    if isinstance(error, Cancelled):
        return Verdict(
            "cancelled", cut(error.message, WIDTH) + (f" {stage}" if stage and stage not in error.message else "")
        )
    if error.layer in ("configuration", "image", "model", "checkout", "node", "results"):
        first = first or next(iter(failures), None)
        if error.layer == "results" and first is not None:
            return Verdict("results", f"{cut(error.message, WIDTH)}; first failure in {first.file}: {first.text}")
        many = error.layer == "configuration"  # a list of findings, shown completely
        return Verdict(error.layer, cut(error.message, WIDTH) if many else _one_line_message(error.message))
    if error.layer == "submission":
        return Verdict(_layer_of(error.message) or "scheduler", _one_line_message(error.message))
    if error.layer == "launcher":  # a fault of the launcher, or of the disk that it writes to
        return Verdict("launcher", _one_line_message(error.message))
    if job is None or job.phase is not Phase.TERMINAL:
        return Verdict("scheduler", cut(error.message, WIDTH))
    return _by_slurm(job, failures) or _by_logs(job, first)


WIDTH = 240
"""Characters of an error's message in a verdict."""


def _by_slurm(job: JobState, failures: Sequence[Failure]) -> Verdict | None:
    """The verdict on a job that Slurm itself ended, or whose node failed; None for any other."""
    where = f" on {job.nodes}" if job.nodes else ""
    since = f", at {_local_time(job.ended)}" if job.ended is not None else ""
    if job.word in _NODES:
        matches = (_FAILED_NODE.search(line) for failure in failures for line in (failure.text, *failure.lines))
        named = next((match[1] for match in matches if match), job.nodes)
        nodes_of_job = f", one of {job.nodes}" if named != job.nodes and job.nodes else ""
        where = f" on {named}{nodes_of_job}" if named else ""
        return Verdict("node", f"{_NODES[job.word]}{where}{since} ({job.word})")
    failed = job.word == LOST and job.exit_code != (0, 0)  # then its logs say more
    by_word = job.word in _SCHEDULERS and not failed
    memory_failure = _memory_limit(failures, _SAMPLED if by_word else _MEMORY_LIMIT)
    if memory_failure is not None or job.out_of_memory:
        memory_failure = memory_failure or next(
            (f for f in failures if re.search(r"\b(?:oom|OOM)|[Oo]ut [Oo]f [Mm]emory|Killed", f.text)), None
        )
        memory_failure = memory_failure or next((f for f in failures if f.standing == "cause"), None)
        layer = "benchmark" if memory_failure is not None and memory_failure.source == "benchmark" else "server"
        return Verdict(
            layer,
            f"the memory limit of the job was reached{where}{since} ({job.describe()}){_quote_failure(memory_failure)}",
        )
    if by_word:
        before = None
        if job.word == "TIMEOUT":
            causes = [f for f in failures if f.standing == "cause" and f.source != "slurm"]
            until = job.ended - END_OF_LIMIT if job.ended is not None else None
            before = next((f for f in causes if until is None or (f.stamped and f.at < until)), None)
        said_before = f"; before that{_quote_failure(before)[1:]}" if before is not None else ""
        return Verdict("scheduler", f"{_SCHEDULERS[job.word]}{where}{since} ({job.describe()}){said_before}")
    if job.exit_code is not None and job.exit_code[1] == 53:
        return Verdict("node", f"the job's output file or directory could not be opened{where}")
    return None


def _memory_limit(failures: Sequence[Failure], pattern: re.Pattern[str]) -> Failure | None:
    """Slurm's own message about a memory limit, in or around a failure: it follows the program's own messages."""
    for f in (failure for failure in failures if failure.standing != "survived"):
        for file, text in ((f.file, f.text), *((f.process or f.file, line) for line in (f.last, *f.lines))):
            if pattern.match(text.lstrip("0123456789: ")):  # srun puts the task before each line
                return replace(f, file=file, text=cut(text))
    return None


def _by_logs(job: JobState, first: Failure | None) -> Verdict:
    """The verdict on a job that ended by itself, by its logs."""
    ended = f" (the job ended as {job.describe()})"
    if first is None:
        return Verdict("benchmark", f"{job.describe()}: {_SCHEDULERS.get(job.word, 'no log says why')}")
    layer = _layer_of(first.text) or {"benchmark": "benchmark", "slurm": "scheduler"}.get(first.source, "server")
    by = " (the file's time: of which zone its stamps are is not known)" if first.zone_unknown else ""
    when = f"at {_local_time(first.at)}{by}"
    if CONTROLLER_AWAY.search(first.text):
        what = f"Slurm's controller could not be reached, since {_local_time(first.at)}"
    elif first.source == "slurm":
        what = f"Slurm ended the job {when}"
    elif "did not become healthy" in first.text:
        what = f"the servers did not become healthy in time, until {_local_time(first.at)}"
    else:
        what = f"{_program_name(first)} {_end_text(first.died)} {when}"
    # The last lines of an orchestrator are about its clean-up.
    tells = first.source != "orchestrator" and first.last not in first.text and first.text not in first.last
    last = f"; its last line: {first.last}" if tells else ""
    return Verdict(layer, f"{what}{_quote_failure(first)}{last}{ended}")


def _quote_failure(failure: Failure | None) -> str:
    return f"; {failure.file}: {failure.text}" if failure is not None else ""


def _program_name(failure: Failure) -> str:
    """The program that failed, in words, by the name of its log."""
    file = (failure.process or failure.file).rpartition("/")[2]
    if failure.text.startswith("launcher: error:"):
        return "the job's script"
    if match := _WORKER.fullmatch(file) or _PROCESS.fullmatch(file):
        prefix = "worker " if match["role"] in ("prefill", "decode", "agg") else ""
        return f"{prefix}{match['role']} {match['index']}" + (f" on {match['node']}" if match["node"] else "")
    if file.startswith("infra"):
        return "NATS or etcd"
    if source_of(file) == "orchestrator":
        return "srtctl's orchestrator"
    if failure.source == "benchmark":
        return "the evaluation" if file.startswith("eval") else "the benchmark's client"
    return "the server" if file.startswith(("server", "benchmark")) else file.removesuffix(".out").removesuffix(".log")


def _end_text(died: int | None) -> str:
    """How a program ended, by its exit code as srun and shells report it."""
    if died is None:
        return "failed"
    if died <= 128:
        return f"ended with exit code {died}"
    try:
        name = signal.Signals(died - 128).name
    except ValueError:
        return f"ended with exit code {died}"
    if name == "SIGKILL":
        return f"was killed by SIGKILL (exit code {died}, usually for want of memory)"
    return f"was ended by {name} (exit code {died})"


def _local_time(seconds: float) -> str:
    """A time for a person, local as in events.txt."""
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def _layer_of(text: str) -> str | None:
    rows = (row for entry in LOG_WORDS["layers"] for row in entry.items())
    return next((layer for layer, words in rows if any(re.search(word, text) for word in words)), None)


def _one_line_message(message: str) -> str:
    """An error's message in one line: its first line, and of several lines also the one that says why.

    sbatch's own error comes before srtctl's message about it, then a line that names an error, then the last line.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) < 2:
        return cut(message, WIDTH)
    for words in ("sbatch: error:", "rror: ", "❌", "rror", "atal", "***"):
        if line_with_cause := next((line for line in lines[1:] if words in line), None):
            break
    else:
        line_with_cause = lines[-1]
    return f"{cut(lines[0], WIDTH)} {cut(line_with_cause, WIDTH)}"
