"""Lines of a job's logs as they are meant: without terminal escapes and labels, with their level and time.

Every engine has a form of its own. The forms are those of srt-slurm, vLLM, SGLang, TensorRT-LLM, dynamo, NATS, etcd,
nginx, glog (Mooncake, NIXL, torch), loguru and Slurm's own programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path

from launcher.core.reading import read_end

TAIL = 256 * 1024
"""Bytes that are read of the end of each log."""

# Colours, cursor moves and titles; and colours whose escape character a copy has lost.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|\[\d[\d;]{0,10}m")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

_LABEL = re.compile(
    r"\s*(?:"
    r"\((?P<process>\w[\w.-]*(?: [\w.-]+=?[\w.:-]*)*? pid=\d+(?:, \w+=[^)\s]*)*)\) ?"  # vLLM, Ray
    r"|\[(?P<rank>(?:rank|default)\s?\d+|\d+,\d+<\w+>)\]:? ?"  # torch, mpirun --tag-output
    r"|(?P<task>\d{1,4}): (?=\S)"  # srun --label
    r"|(?P<service>[\w.-]{1,40}-\d+) +\| "  # docker compose
    r")"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CLOCK = r"(?P<clock>\d\d:\d\d:\d\d)(?P<part>[.,]\d{1,9})?"
_ZONE = r" ?(?P<zone>Z\b|UTC\b|GMT\b|[+-]\d\d:?\d\d\b)?"
_STAMPS = tuple(
    re.compile(form)
    for form in (
        rf"(?P<year>\d{{4}})[-/](?P<month>\d\d)[-/](?P<day>\d\d)[ T]{_CLOCK}{_ZONE}",
        rf"\b(?P<month>\d\d)/(?P<day>\d\d)/(?P<year>\d{{4}})[- ]{_CLOCK}{_ZONE}",  # TensorRT-LLM
        rf"\b(?P<month>\d\d)-(?P<day>\d\d) {_CLOCK}",  # vLLM: no year
        rf"\b(?P<level>[IWEFD])(?P<year>20\d\d)?(?P<month>\d\d)(?P<day>\d\d) {_CLOCK}",  # glog
        rf"\b(?:[A-Z][a-z]{{2}} )?(?P<name>{'|'.join(_MONTHS)}) +(?P<day>\d\d?) {_CLOCK}{_ZONE}(?: (?P<year>\d{{4}}))?",
        rf"(?<![\w:./-]){_CLOCK}(?![\d:])",  # the clock alone
        r"\"(?:ts|time|timestamp)\": ?\"?(?P<epoch>1\d{9}(?:\.\d+)?)\b",
    )
)
_AT_THE_FRONT = 60
"""Characters of a line in which its stamp and level begin: further on they are what the line is about."""

_WORDS = {
    "debug": ("TRACE", "DEBUG", "DBG", "TRC", "D"),
    "info": ("INFO", "NOTICE", "INF", "I", "N"),
    "warn": ("WARNING", "WARN", "WRN", "W"),
    "error": ("ERROR", "ERR", "E", "SEVERE"),
    "fatal": ("CRITICAL", "CRIT", "FATAL", "FTL", "PANIC", "EMERG", "ALERT", "F", "C"),
}
_LEVELS = {word: level for level, words in _WORDS.items() for word in words}
_LONG = "|".join(word for words in _WORDS.values() for word in words if len(word) > 1)
_LEVEL_WORD = re.compile(rf"(?P<word>{_LONG})(?=[\]\s:|)\"',>-]|$)")
_LEVEL_FRONT = re.compile(rf"[\[(<|\s]*(?:{_LEVEL_WORD.pattern})")
_LEVEL_LETTER = re.compile(r"\W*(?:\[[\w .-]{1,24}\]\s*){0,3}\[?(?P<word>[DINWECF])(?:\]| \|)")
_LEVEL_LATER = re.compile(rf"[\W\d]*(?:[\w.:/\[\]-]+[\s|\]-]+){{1,2}}?{_LEVEL_WORD.pattern}")
_LEVEL_LOWER = re.compile(
    r"\W*\"level\": ?\"(?P<json>\w+)\"|\W*\[(?P<bracket>debug|info|notice|warn|error|crit|alert|emerg)\]"
    r"|(?:srun|sbatch|scancel|salloc|slurmstepd\S*|slurmd\S*): (?P<slurm>debug|info|warning|error|fatal): "
)
_LOCATION = re.compile(
    r"[\s\])|>:-]*(?:\[[\w.<>/-]+(?:\.\w+)?:\d+\]|[\w./-]+\.(?:py|cc|cpp|cu|rs|go):\d+\]?:?)?[\s:|>-]*"
)
_ONLY_A_LEVEL = re.compile(rf"[\W\d]*(?:{_LONG})?[\W\d]*")
_THREAD = re.compile(r"^ +\d+ ")
_RANK_IN_STAMP = re.compile(r"[^\]\[]{0,8}\s(?P<rank>(?:(?:DP|TP|PP|EP|CP|MoE_)\w* ?)+)\]")


@dataclass(frozen=True)
class Line:
    """A line of a log. ``text`` is without escapes, labels and its stamp, ``body`` without its level and its place in
    the source either. ``level`` is debug, info, warn, error, fatal or "". ``label`` names the process within the log
    that wrote it, "" when it does not say. ``at`` is its own time in seconds since the epoch, None without a stamp;
    ``zoned`` says that the stamp names its zone."""

    text: str
    body: str
    level: str = ""
    label: str = ""
    at: float | None = None
    zoned: bool = False


def clean(text: str) -> str:
    """Lines without terminal escapes and control characters; of what a progress bar wrote over itself the last."""
    text = _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))
    return "\n".join([line.rpartition("\r")[2].rstrip() for line in text.split("\n")])


def parse(line: str, written: float, zone: tzinfo | None = None) -> Line:
    """What a cleaned line says of itself. ``written`` is when its file was last written: the year, or the day, of a
    stamp without one is the last that is not later. ``zone`` is that of a stamp that names none, None for ours."""
    label = ""
    while match := _LABEL.match(line):
        label = label or next(value for value in match.groups() if value)
        line = line[match.end() :]
    stamp, at = _stamp(line, written, zone)
    if stamp is None:
        level, rest = _level(line, stamped=False)
        return Line(line.strip(), rest.strip() if level else line.strip(), level, label)
    parts, before, after = stamp.groupdict(), line[: stamp.start()], line[stamp.end() :]
    zoned = bool(parts.get("zone") or parts.get("epoch"))
    if not _ONLY_A_LEVEL.fullmatch(before):  # the stamp is a part of what the line says
        level, rest = _level(line, stamped=False)
        return Line(line.strip(), rest.strip() if level else line.strip(), level, label, at, zoned)
    if rank := _RANK_IN_STAMP.match(after):  # SGLang: [2026-11-21 10:00:05 DP0 TP1]
        label, after = label or rank["rank"].strip(), after[rank.end() - 1 :]
    letter = parts.get("level")
    level, rest = (_LEVELS[letter], _THREAD.sub("", after)) if letter else ("", after)
    if not level:
        level, _ = _level(before, stamped=False)
    if not level:
        level, rest = _level(after, stamped=True)
    text = f"{before.rstrip('[( ')} {after.lstrip('])').strip()}".strip()
    return Line(text, rest[_end_of_location(rest) :].strip(), level, label, at, zoned)


def _level(text: str, *, stamped: bool) -> tuple[str, str]:
    """The level that a line begins with, and what follows it; "" and the whole text without one."""
    forms = (_LEVEL_FRONT, *((_LEVEL_LETTER, _LEVEL_LATER) if stamped else ()))
    for form in forms:
        if match := form.match(text[: 2 * _AT_THE_FRONT]):
            rest = text[match.end() :]
            return _LEVELS[match["word"]], rest[_end_of_location(rest) :]
    if match := _LEVEL_LOWER.match(text) or (text.startswith("{") and _LEVEL_LOWER.search(text[:200])) or None:
        word = next(value for value in match.groups() if value).upper()
        return _LEVELS.get(word, ""), text[match.end() :] if match["bracket"] else text
    return "", text


def _end_of_location(text: str) -> int:
    match = _LOCATION.match(text)
    return match.end() if match else 0


def _stamp(line: str, written: float, zone: tzinfo | None) -> tuple[re.Match[str] | None, float | None]:
    """The stamp of a line, and its time; None when it has none that can be."""
    head = line[: 2 * _AT_THE_FRONT]
    if not any(map(str.isdigit, head)):
        return None, None
    for form in _STAMPS:
        match = form.search(head)
        if match is not None and (match.start() < _AT_THE_FRONT or line.startswith("{")):
            try:
                return match, _seconds(match.groupdict(), written, zone)
            except (ValueError, OverflowError, OSError):
                continue
    return None, None


def _seconds(parts: dict[str, str | None], written: float, zone: tzinfo | None) -> float:
    """The time of a stamp. Raises ValueError, OverflowError, OSError."""
    if parts.get("epoch"):
        return float(parts["epoch"] or 0)
    latest = datetime.fromtimestamp(written, zone) + timedelta(days=1)  # clocks and zones may differ
    name, month = parts.get("name"), parts.get("month")
    number = _MONTHS.index(name) + 1 if name else int(month) if month else 0
    clock = datetime.strptime(parts["clock"] or "", "%H:%M:%S").replace(tzinfo=zone)
    fraction = float(f"0.{(parts.get('part') or '.0')[1:]}")
    if not number:
        when = clock.replace(year=latest.year, month=latest.month, day=latest.day)
        while when.timestamp() > written + 60:
            when -= timedelta(days=1)
    else:
        year = int(parts.get("year") or 0)
        when = clock.replace(year=year or latest.year, month=number, day=int(parts["day"] or 0))
        if not year and when > latest:
            when = when.replace(year=latest.year - 1)
    zone_name = parts.get("zone")
    if zone_name in ("Z", "UTC", "GMT"):
        when = when.replace(tzinfo=timezone.utc)
    elif zone_name:
        hours, minutes = int(zone_name[1:3]), int(zone_name[-2:])
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if zone_name[0] == "-" else 1)
        when = when.replace(tzinfo=timezone(offset))
    return when.timestamp() + fraction


Interval = tuple[float | None, float | None]
"""When a job began and ended, in seconds since the epoch by Slurm's clock; None for what is not known."""

_APART = 450.0
"""Seconds by which clocks, and a log's last line and its file, may differ: half of what any two zones do."""

_LOOKED_AT = 100
"""Lines at each end of a log among which a stamp without a zone is looked for."""


def zone_of(lines: Sequence[str], written: float, during: Interval) -> tuple[tzinfo | None, bool]:
    """The zone of a log's stamps that name none (None is ours), and whether it is known.

    Containers mostly have UTC, hosts their own. A log's stamps lie in the time of its job, and the last one is not
    later than the file's own time; most often it is as late as that.
    """
    first, last = (_naive(ends, written) for ends in (lines[:_LOOKED_AT], reversed(lines[-_LOOKED_AT:])))
    if first is None or last is None:
        return None, True

    def silent(zone: tzinfo | None) -> float | None:
        """Seconds between the last stamp and the file's time; None where the stamps cannot be of this zone."""
        earliest, latest = (parse(line, written, zone).at or 0.0 for line in (first, last))
        began, ended = during
        late = latest - _APART > (written if ended is None else min(written, ended))
        return None if late or (began is not None and earliest < began - _APART) else written - latest

    utc = timezone.utc
    offset = round(((parse(last, written, utc).at or 0.0) - written) / (2 * _APART)) * 2 * _APART
    offset += 86400.0 if offset < -43200 else 0.0  # of a clock alone the day is not known
    by_offset = None if abs(offset) > 50400 else timezone(timedelta(seconds=offset))
    gaps = {zone: gap for zone in (None, utc) if (gap := silent(zone)) is not None}
    close = next((zone for zone, gap in gaps.items() if gap <= _APART), ...)
    if close is not ...:
        return close, True
    if gaps:
        return next(iter(gaps)), len(set(gaps.values())) == 1
    return by_offset, by_offset is not None and silent(by_offset) is not None


def _naive(lines: Iterable[str], written: float) -> str | None:
    """The first line with a stamp that names no zone."""
    return next((line for line in lines if (p := parse(line, written)).at is not None and not p.zoned), None)


def tail(path: Path, size: int = TAIL) -> list[str]:
    """The last lines of a file, whole ones and cleaned, of at most ``size`` bytes; none when it cannot be read."""
    try:
        text, is_cut = read_end(path, size)
    except OSError:
        return []
    return clean(text.decode(errors="replace")).split("\n")[is_cut:]


_CONCURRENCY = re.compile(r"(?:max[_ -]?)?concurrency\D{1,12}(\d+)|\bconc[ =_:]+(\d+)", re.IGNORECASE)
_THROUGHPUT = re.compile(r"throughput|tok(?:en)?s?/s|req(?:uest)?s?/s|\bit/s", re.IGNORECASE)


def progress(log: str) -> tuple[int | None, str]:
    """What the end of a job's log says: the concurrency that is being measured, and the last line about throughput."""
    concurrency, throughput = None, ""
    for line in (*tail(Path(log)), *tail(Path(log).with_name("benchmark.out"))):  # srt-slurm's client has its own
        if match := _CONCURRENCY.search(line):
            concurrency = int(match[1] or match[2])
        if _THROUGHPUT.search(line):
            throughput = line.strip()[:200]
    return concurrency, throughput
