"""What failed first in a job, by all its logs: the cause before symptoms, and these before consequences.

Logs of srtctl's orchestrator and of Slurm's programs say which program died, and how; that counts more than error
messages of other programs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path

from launcher.result.logs import log_files
from launcher.run.log_failure import (
    CLIENT,
    CRITICAL,
    LINES,
    SLURM_ENDS,
    Failure,
    Log,
    Standing,
    cut,
    failure_in,
    is_weak,
    source_of,
)
from launcher.run.log_lines import Interval

FILES = 400
"""Logs that are read: 72 nodes leave some three each."""

SIGKILLED = 128 + 9
"""The exit code, as srun and shells give it, of a program that SIGKILL ended."""

_STANDING_ORDER: dict[Standing, int] = {"cause": 0, "symptom": 1, "survived": 2, "consequence": 3}

_ENDING = re.compile(r"(?:Cleaning up \d+ processes|Received signal )|Cleanup$")
_LOG_FILE = re.compile(r"Log file: (\S+)")
_PROCESS = re.compile(r"--- Process: (\S+) ---")


def first_failures(
    logs: Path, *, seconds: float, during: Interval = (None, None), clock: Callable[[], float] = time.monotonic
) -> list[Failure]:
    """What failed in each log, the cause first; what the orchestrator says about other programs comes last.

    ``during`` is when the job ran, which decides about the zone of stamps that name none. Stops after ``seconds``. An
    unreadable file raises nothing.
    """
    logs_read: list[Log] = []
    failures: list[Failure] = []
    until = clock() + seconds
    files = ((path.relative_to(logs).as_posix(), path, status) for path, status in log_files(logs))
    candidates = list(islice((file for file in files if file[1].suffix in (".out", ".log", ".err")), 10 * FILES))
    # The orchestrator's log comes first: it says which program died, and must be read before time runs out.
    for name, path, status in sorted(candidates, key=lambda file: source_of(file[0]) != "orchestrator")[:FILES]:
        if clock() > until:
            break
        log = Log(path, name, status.st_mtime, during)
        logs_read.append(log)
        if (failure := failure_in(log)) is not None:
            failures.append(failure)
    # When a script says that its server died, show the last line of the server's log.
    server = next((log.last for log in logs_read if log.file.rpartition("/")[2] == "server.log"), "")
    failures = [
        replace(f, last=server) if f.source == "server" and source_of(f.file) != "server" else f for f in failures
    ]
    return _in_order(failures, *_program_ends(logs_read))


def _program_ends(logs: Sequence[Log]) -> tuple[list[Failure], float | None]:
    """What orchestrator and Slurm report: the programs that ended by themselves, first to last; and when the others
    began to be ended, after which their messages are consequences."""
    dead: list[Failure] = []
    ending: list[float] = []
    for log in logs:
        by_orchestrator = log.source == "orchestrator"
        for number in log.suspects if not by_orchestrator else range(len(log.raw)):
            body = log.line(number).body
            if slurm_end := SLURM_ENDS.search(log.raw[number]):
                if slurm_end["why"] and slurm_end["what"] == "STEP":  # Slurm itself reports a job's end
                    at, stamped = log.when(number)
                    text = cut(log.line(number).text)
                    dead.append(Failure(log.file, "slurm", text, at, log.around(number), "cause", stamped))
                if slurm_end["what"] == "JOB":
                    ending.append(log.when(number)[0])
            elif by_orchestrator and (program_end := CRITICAL.match(body) or CLIENT.match(body)):
                dead.append(_death(program_end, log, number, logs))
            elif by_orchestrator and _ENDING.match(body):
                ending.append(log.when(number)[0])
    return sorted(dead, key=lambda failure: failure.at), min(ending, default=None)


def _death(end: re.Match[str], orchestrator: Log, number: int, logs: Sequence[Log]) -> Failure:
    """The end of a program as the orchestrator reports it."""
    name, code = end.groupdict().get("name"), int(end["code"])
    program_log = _log_of(name, end, orchestrator, logs)
    died_at, stamped = orchestrator.when(number)
    lines = [orchestrator.raw[number]]
    if program_log is not None:
        lines += ["", f"{program_log.file}, its end:", *program_log.raw[-LINES // 2 :]]
    return Failure(
        *(
            orchestrator.file,
            "server" if name else "benchmark",
            cut(orchestrator.line(number).body),
            died_at,
            tuple(lines),
        ),
        stamped=stamped,
        died=128 - code if code < 0 else code,
        process=program_log.file if program_log is not None else name or "benchmark",
        last=program_log.last if program_log is not None else "",
    )


def _log_of(name: str | None, end: re.Match[str], orchestrator: Log, logs: Sequence[Log]) -> Log | None:
    """The log of the program that an orchestrator's line names, by the failure details, else by the program's name."""
    endings: tuple[str, ...] = ("benchmark.out",) if not name and end["what"] == "Benchmark" else ("eval.out",)
    if name:
        inside, endings = "", ()
        for number in range(len(orchestrator.raw)):
            body = orchestrator.line(number).body
            if found := _PROCESS.match(body):
                inside = found[1]
            elif inside == name and (found := _LOG_FILE.match(body)):
                endings = (found[1].rpartition("/")[2],)
        if not endings and (found := re.match(r"([a-z_]+)_(\d+)(?:_(.+))?$", name)):
            role, index, node = found.groups("")
            endings = (f"{node}_{role}_w{index}.out", f"{node}_{role}_{index}.out")
        endings = endings or ("infra.out" if "infra" in name else f"{name}.out",)
    return next((log for log in logs if log.file.endswith(endings)), None)


def _in_order(failures: Sequence[Failure], ends: Sequence[Failure], ending: float | None) -> list[Failure]:
    """The failures of all logs with their standing among each other, the cause first, each log once."""
    deaths = [failure for failure in ends if failure.died is not None]
    dead = {failure.process: failure for failure in reversed(deaths)}
    standing = [_with_standing(failure, dead, ending) for failure in failures]
    explained = {failure.file for failure in standing if failure.standing == "cause"}
    repeated = [
        failure if program not in explained else replace(failure, standing="consequence")
        for program, failure in dead.items()
    ]
    by_slurm = [failure for failure in ends if failure.died is None]
    killed = {failure.process for failure in deaths if failure.died == SIGKILLED and failure.at <= deaths[0].at}
    kept: dict[str, Failure] = {}
    for failure in sorted([*standing, *repeated, *by_slurm], key=lambda failure: _order(failure, killed)):
        kept.setdefault(failure.file, failure)
    return list(kept.values())


def _with_standing(failure: Failure, dead: Mapping[str, Failure], ending: float | None) -> Failure:
    """A log's failure with its standing, given what is reported about the job's programs."""
    if failure.source == "orchestrator" or failure.standing not in ("cause", "symptom"):
        return failure
    weak = is_weak(failure.text)
    if (end := dead.get(failure.file)) is not None:
        # A program that a signal ends cannot say why: an error that it wrote before has another cause.
        explains = not (end.by_signal and (weak or failure.standing == "symptom"))
        at, stamped = (failure.at, True) if failure.stamped else (min(failure.at, end.at), end.stamped)
        standing: Standing = "cause" if explains else "symptom"
        return replace(failure, died=end.died, standing=standing, at=at, stamped=stamped)
    if ending is not None and failure.stamped and int(failure.at) > ending:
        return replace(failure, standing="consequence")
    servers_died = any(end.source == "server" for end in dead.values())
    if dead and (weak or (failure.source == "benchmark" and servers_died)):
        return replace(failure, standing="symptom")
    return failure


def _order(failure: Failure, killed: Set[str]) -> tuple[object, ...]:
    """Sort key: by standing; then Slurm's report, programs killed first, and time. The orchestrator comes last."""
    return (
        _STANDING_ORDER[failure.standing],
        failure.source != "slurm",
        failure.process not in killed,
        failure.source == "orchestrator",
        failure.at,
        failure.source != "server",
        failure.file,
    )
