"""What failed in one log: the line of failure that says most about why the log's program ended.

Programs survive many errors, report that another program is gone, and report errors again while they are ended. So a
line of failure has a standing: the cause of an end, a symptom of another program's end, survived, or a consequence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.run.log_lines import Interval, Line, parse, tail, zone_of

LINES = 40
"""Lines that are kept around the first failure."""

LONGEST = 200
"""Characters that are kept of a line."""

Standing = Literal["cause", "symptom", "survived", "consequence"]


@dataclass(frozen=True)
class Failure:
    """A line of failure in a log.

    ``source`` is what wrote it: server, benchmark, orchestrator, or slurm. ``at`` is its time in seconds since the
    epoch, from a stamp of the line or of one near it (``stamped``), else the file's time. ``lines`` are those around
    it. ``died`` is the program's exit code, where a program that waited for it reports one; ``process`` is the
    program's log, ``last`` that log's last line. ``zone_unknown``: the log has stamps of an unknown time zone.
    """

    file: str
    source: str
    text: str
    at: float
    lines: tuple[str, ...] = ()
    standing: Standing = "cause"
    stamped: bool = False
    died: int | None = None
    process: str = ""
    last: str = ""
    zone_unknown: bool = False

    @property
    def by_signal(self) -> bool:
        """Whether a signal ended the program, which could then not say why."""
        return self.died is not None and self.died > 128


LOG_WORDS: Mapping[str, list[Any]] = msgspec.yaml.decode(Path(__file__).with_name("log_words.yaml").read_bytes())


def any_of(words: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern for the words that log_words.yaml has under this name."""
    return re.compile("|".join(LOG_WORDS[words]), flags)


_EXCEPTION = re.compile(
    r"(?P<whole>(?:[a-z_][\w]*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Died|Timeout)\b(?=:|$|\().*)"
)
_FATAL = any_of("fatal")
# srun says so of every program that failed: its own word tells more.
_ONLY_AN_EXIT = re.compile(r"srun: error: .*: [Ee]xited with exit code \d+$")
_IGNORED = re.compile(r"Exception ignored in")
_PYXIS_FAILED = re.compile(r"pyxis: (?:failed|container start failed|couldn)")
_ENROOT_SAYS = re.compile(r"pyxis: {2,}((?!\[(?:INFO|WARN))\S.*)")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
_WEAK, _HARMLESS = any_of("weak"), any_of("harmless", re.IGNORECASE)
_OF_ANOTHER, _TERMINATED, _SERVER_DIED = any_of("of another"), any_of("terminated"), any_of("server died")
_WORKS, _ENDS = any_of("works"), any_of("ends")
WORKED_ON_AFTER = 5.0
"""Seconds after a failure from which work in the log counts: until then other threads may still write."""

WITHIN = 2000
"""Lines after a failure that are searched for signs of work."""

_WORK_LINES, _PLAIN_LINES = 3, 10

_GLOG = re.compile(r"\b[EF](?:20\d\d)?\d{4} \d")


class Log:
    """A log: its last lines, cleaned, each parsed when it is needed. ``during`` is the time of its job."""

    def __init__(self, path: Path, file: str, written: float, during: Interval = (None, None)) -> None:
        self.file = file
        self.source = source_of(file)
        self.raw = tail(path)
        self._written = written
        self._during = during
        self._lines: dict[int, Line] = {}

    @cached_property
    def _zone(self) -> tuple[tzinfo | None, bool]:
        return zone_of(self.raw, self._written, self._during)

    def line(self, number: int) -> Line:
        if number not in self._lines:
            line = parse(self.raw[number], self._written)
            if line.at is not None and not line.zoned and (zone := self._zone[0]) is not None:
                line = parse(self.raw[number], self._written, zone)
            self._lines[number] = line
        return self._lines[number]

    def when(self, number: int) -> tuple[float, bool]:
        """When a line was written, and whether a stamp says so: its own, one of a line before it, or of one soon after.

        Stamps of an unknown zone are ignored, and a stamp later than the file's time is replaced by that.
        """
        before = range(number, max(-1, number - WITHIN), -1)
        for other in (*before, *range(number + 1, min(number + LINES, len(self.raw)))):
            line = self.line(other)
            if line.at is not None and (line.zoned or self._zone[1]):
                return min(line.at, self._written), True
        return self._written, False

    @property
    def zone_unknown(self) -> bool:
        return not self._zone[1]

    @cached_property
    def suspects(self) -> list[int]:
        """The lines that may be failures."""
        lines = [line.lower() for line in self.raw]
        text = "\n".join(lines)
        words = [word for word in LOG_WORDS["perhaps"] if word in text]
        numbers = {number for number, line in enumerate(lines) if any(word in line for word in words)}
        glog = {number for number, line in enumerate(self.raw) if line[:1] in "EF[" and _GLOG.search(line[:60])}
        return sorted(numbers | glog)

    @property
    def last(self) -> str:
        """The last line with a word in it."""
        texts = (cut(self.line(number).text) for number in reversed(range(len(self.raw))))
        return next((text for text in texts if re.search(r"\w", text)), "")

    def around(self, number: int) -> tuple[str, ...]:
        start = max(0, number - 5)
        return tuple(self.raw[start : start + LINES])


def cut(text: str, width: int = LONGEST) -> str:
    """A text as one line of at most ``width`` characters; of a longer one the end is left out."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def source_of(file: str) -> str:
    """What writes a log of this name."""
    name = file.rpartition("/")[2]
    if name.startswith(("sweep_", "slurm-")):
        return "orchestrator"
    return "benchmark" if name.startswith(("benchmark", "eval", "bench_", "aiperf")) else "server"


def _failure_strength(line: Line) -> int:
    """How surely a line is a failure: 0 not at all, 1 perhaps one that the program survives, 2 certainly."""
    if line.level in ("debug", "info", "warn") or _HARMLESS.search(line.text):
        return 0
    if _ONLY_AN_EXIT.search(line.body):
        return 1
    if CONTROLLER_AWAY.search(line.body):
        return 2  # srun waits for the controller, and may say so without the word error
    if _EXCEPTION.match(line.body) or _FATAL.search(line.body) or line.level == "fatal":
        return 1 if _OF_ANOTHER.search(line.body) and line.level != "fatal" else 2
    return 1 if line.level == "error" or _TRACEBACK.search(line.body) or _WEAK.search(line.body) else 0


def failure_in(log: Log) -> Failure | None:
    """The line of failure that says most about why the log's program ended; None without any."""
    marks: list[tuple[int, int]] = []
    ended = ignored = False
    for number in log.suspects:
        body = log.line(number).body
        ignored = ignored or _IGNORED.match(body) is not None
        if ignored:  # Python at its exit; the exception's name is the last line of what it prints
            ignored = _EXCEPTION.match(body) is None
            continue
        if "FAILURE DETAILS" in body and log.source == "orchestrator":
            break  # behind this it repeats what is in other logs
        end = SLURM_ENDS.search(body)
        if end is not None and end["what"] == "JOB":
            break  # Slurm's own word of the job's end says it all
        if end is not None or _TERMINATED.search(body):
            ended = True  # the program is being ended: what follows is a consequence
            if any(strength > 1 for _, strength in marks):
                break
        if log.source == "orchestrator" and any(form.match(body) for form in _WATCHED_ENDS):
            continue  # `launcher.run.failures` reads them
        if strength := _failure_strength(log.line(number)):
            marks.append((number, 0 if ended else strength))
    if not marks:
        return None
    lasting = [mark for position, mark in enumerate(marks) if mark[1] and not _worked_afterwards(log, marks, position)]
    number, strength = max(lasting or marks, key=lambda mark: (mark[1], -mark[0]))
    own_message = next((mark for mark, _ in lasting if log.line(mark).body.startswith("launcher: error:")), None)
    number, text = _naming_line(log, number) if own_message is None else _script_message(log, own_message, marks)
    standing: Standing = "symptom" if _OF_ANOTHER.search(text) else "cause"
    if not lasting:
        standing = "survived" if strength else "consequence"
    source, last = log.source, log.last
    if source == "benchmark" and _SERVER_DIED.search(text):
        source, last = "server", ""  # a script that waits for its server says so
    if CONTROLLER_AWAY.search(text):
        source = "slurm"  # in whichever log it stands
    failed_at, stamped = log.when(number)
    around, unknown = log.around(number), log.zone_unknown and not stamped
    return Failure(
        *(log.file, source, text, failed_at, around, standing, stamped),
        process=log.file,
        last=last,
        zone_unknown=unknown,
    )


def _naming_line(log: Log, number: int) -> tuple[int, str]:
    """The line that names the failure, and its text: for a traceback the line of its exception."""
    line, after = log.line(number), range(number + 1, min(number + 200, len(log.raw)))
    if _PYXIS_FAILED.search(line.body):  # it shows enroot's log behind that
        enroot = ((n, _ENROOT_SAYS.search(log.line(n).body)) for n in after[:40])
        if cause := next(((n, exception) for n, exception in enroot if exception), None):
            return cause[0], cut(f"pyxis: {cause[1][1]}")
    begins = after and (_TRACEBACK.search(log.line(after[0]).body) or _EXCEPTION.match(log.line(after[0]).body))
    if _TRACEBACK.search(line.body) or (begins and not _EXCEPTION.match(line.body) and not _FATAL.search(line.body)):
        for later in after:
            candidate = log.line(later)
            if candidate.label == line.label and (exception := _EXCEPTION.match(candidate.body)):
                return later, cut(exception["whole"])
    exception = _EXCEPTION.match(line.body)
    return number, cut(exception["whole"] if exception else line.text)


def _script_message(log: Log, own_message: int, marks: Sequence[tuple[int, int]]) -> tuple[int, str]:
    """The message of one of our scripts, and the program's message that caused it."""
    before = [mark for mark, _ in marks if own_message - LINES < mark < own_message]
    cause = f" ({_naming_line(log, before[-1])[1]})" if before else ""
    return own_message, cut(log.line(own_message).body) + cause


def _worked_afterwards(log: Log, marks: Sequence[tuple[int, int]], position: int) -> bool:
    """Whether the log shows that its program worked after a line of failure."""
    number, strength = marks[position]
    label, failed_at = log.line(number).label, log.when(number)[0]
    works, plain, sign_seen = 0, 0, False
    for later in range(number + 1, min(number + WITHIN, len(log.raw))):
        line = log.line(later)
        if (label and line.label != label) or line.level in ("warn", "error", "fatal"):
            continue
        sign = _WORKS.search(line.body) is not None
        plain += bool(line.text) and not log.raw[later].startswith((" ", "\t"))
        if strength > 1 and line.at is not None and line.at < failed_at + WORKED_ON_AFTER:
            sign = False
        sign_seen = sign_seen or sign
        works += line.level == "info" and not _ENDS.search(line.body) and (strength == 1 or line.at is not None)
        if strength == 1 and (sign_seen or works >= _WORK_LINES):
            return True
        if sign_seen and (works >= _WORK_LINES or plain >= _PLAIN_LINES):
            return True
    return False


CRITICAL = re.compile(r"Critical process '(?P<name>[^']+)' exited with code (?P<code>-?\d+)")
CLIENT = re.compile(r"(?P<what>Benchmark|Eval\w*|lm-eval\w*) failed with exit code (?P<code>\d+)")
_REPEATS = re.compile(r"Critical process failure detected|=+$|Wait for model aborted")
_WATCHED_ENDS = (CRITICAL, CLIENT, _REPEATS)
"""Lines of an orchestrator about the end of a program that it watches."""
CONTROLLER_AWAY = any_of("controller away")
SLURM_ENDS = re.compile(r"\*\*\* (?P<what>JOB|STEP) \S+ ON .*CANCELLED AT \S+(?P<why> DUE TO [A-Z ]+)?")


def is_weak(text: str) -> bool:
    """Whether a line of failure may be one that its program survives."""
    return not (_EXCEPTION.match(text) or _FATAL.search(text))
