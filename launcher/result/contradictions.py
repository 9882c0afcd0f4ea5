"""What contradicts a document of any kind: the plan, the run's time. Plain values in, sentences out.

Each sentence names the field, both values, and where each stands. Nothing here reads a result. What contradicts a
document by its own numbers is in own_numbers.py. Which check a sentence is of, and what that means, refusals.yaml has.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from launcher.core.reading import built
from launcher.plan.plan import Expected

Numbers = Mapping[str, float]

LEAST_MS = 0.001
"""Milliseconds by which a latency may be below zero: two readings of a clock differ by that. InferenceX's client takes
the time of the whole and of the first token apart, and where all tokens come at once their difference can be -4 ns."""

_MOUNTS = frozenset({"model", "models"})
"""What a checkpoint's directory is called in a container (srtctl mounts it at /model), whichever model it is."""


@dataclass(frozen=True)
class Window:
    """The time in which our result was made: from the submission until now, in Unix seconds of this host's clock."""

    since: float
    until: float
    skew: float = 0.0

    def time_problem(self, written: float, name: str) -> str | None:
        """What is wrong with a time; None when it lies in the window, give or take the skew."""
        if written < self.since - self.skew:
            return f"{name} is older than this run: {self.since - written:.0f} s before the submission"
        if written > self.until + self.skew:
            return f"{name} is from the future: {written - self.until:.0f} s after this host's clock"
        return None


_ZONES = 14 * 3600.0
"""Seconds by which a clock of another zone may differ from UTC."""


def differ(one: float, other: float, tolerance: float) -> bool:
    """Whether two numbers that should be one differ by more than this share of the larger."""
    return abs(one - other) > tolerance * max(abs(one), abs(other))


def out_of_order(rising: Numbers) -> Iterator[str]:
    """The first pair of statistics that is out of order; they come by rank."""
    last: tuple[str, float] | None = None
    for name, value in rising.items():
        if last is not None and value < last[1] - LEAST_MS * 1e-3 - 1e-9 * abs(last[1]):
            yield f"{name} is {value:.6g}, less than {last[0]}, which is {last[1]:.6g}"
            return
        last = name, value


def number_at(document: object, *keys: str) -> float | None:
    """The number that stands under these keys; None for anything else."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    is_number = isinstance(document, int | float) and not isinstance(document, bool)
    return float(document) if is_number else None  # type: ignore[arg-type]


def row_contradictions(document: Mapping[str, object], expected: Expected, where: str) -> Iterator[str]:
    """Where a document repeats the row, and repeats another one. What is empty or unknown to it says nothing, and
    neither does 0 or 1, which InferenceX writes where a variable is not given."""
    for key, planned in expected.row.items():
        said = document.get(key)
        if said in (None, "", "unknown", "0") or (type(said) is int and said < 2) or isinstance(said, list | dict):
            continue
        if str(said).lower() != str(planned).lower():
            yield f"{key} is {said!r} in {where}, and {planned!r} in the plan"


def model_contradictions(name: object, expected: Expected, key: str) -> Iterator[str]:
    """What a document calls the model, against the names that the plan has for it."""
    if not isinstance(name, str) or not name.strip() or not expected.models or _bare(name) in _MOUNTS:
        return
    if _bare(name) not in {_bare(known) for known in expected.models}:
        yield f"{key} is {name[:200]!r}, and the plan's model {expected.models[0]}"


def _bare(name: str) -> str:
    """A model's name without directory, organisation, case and separators; of a path into a Hugging Face cache, the
    repository's."""
    if cached := re.search(r"models--([^/]+)", name):
        name = cached[1].replace("--", "/")
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].partition("@")[0].lower())


MARK = re.compile(r"backend|(?:is_)?(?:rehearsal|mock(?:ed)?|simulated|stand_?in|dry_?run)", re.IGNORECASE)
"""Keys by which a document says that no real engine stands behind it. `mocker` is a backend of srt-slurm."""


def stand_in_contradictions(document: Mapping[str, object], expected: Expected) -> Iterator[str]:
    """Whether no real engine stands behind a document, where one was to be measured."""
    if expected.rehearsal:
        return
    for key, said in document.items():
        if MARK.fullmatch(key) and ("mock" in str(said).lower() if key == "backend" else said and said != "false"):
            yield f"{key} is {said!r}: it is a rehearsal's or a mock's, and the plan's tools are those of the system"
            return
    if "mock" in (expected.engine or ""):
        yield f"backend.type of the recipe is {expected.engine}: no engine was measured"


def gpu_contradictions(gpus: int, split: tuple[int, int] | None, total: float, expected: Expected) -> Iterator[str]:
    """The GPUs of a file's name, by which the workflow divides the total, against themselves and the plan's."""
    prefill, decode = split or (gpus, 0)
    if prefill <= 0:
        yield "its file name says no prefill GPU, and process_result.py divides by them"
    elif prefill + decode != gpus:
        yield f"its file name says {gpus} GPUs, and {prefill}+{decode} of them"
    elif expected.gpus is not None and (prefill, decode) != expected.gpus:
        planned = sum(expected.gpus)
        rates = f"{total / gpus:.1f} tokens/s/GPU for {total / planned:.1f}"
        said = "{}+{}".format(*expected.gpus)
        yield f"its file name says {prefill}+{decode} GPUs, and the plan {said}: {rates}"


def time_contradictions(numbers: Numbers, expected: Expected, window: Window | None) -> Iterator[str]:
    """When the benchmark began and ended by its own clock, against the run's time and against its duration."""
    began, ended = (numbers.get(f"benchmark_{which}_time_unix") for which in ("start", "end"))
    if window is not None:
        for which, instant in (("start", began), ("end", ended)):
            if (
                instant is not None
                and (said := window.time_problem(instant, f"benchmark_{which}_time_unix")) is not None
            ):
                yield said
    if began is None or ended is None or (duration := numbers.get("duration")) is None:
        return
    if abs(ended - began - duration) > max(0.5, expected.limits.tolerance * duration):
        between = "lie between benchmark_start_time_unix and benchmark_end_time_unix"
        yield f"duration is {duration:.6g}, and {ended - began:.6g} s {between}"


def time_doubts(duration: float | None, date: object, expected: Expected, window: Window | None) -> Iterator[str]:
    """What is odd about the time of a measurement. ``date`` is the client's own, of its container's zone.

    Of a rehearsal nothing is: its seconds are made up.
    """
    if window is None or expected.rehearsal:
        return
    if duration is not None and duration > window.until - window.since + window.skew:
        ago = f"this run's job was submitted {window.until - window.since:.0f} s ago"
        yield f"it was measured for {duration:.0f} s, and {ago}"
    if isinstance(date, str) and re.fullmatch(r"\d{8}-\d{6}", date):
        try:
            utc = timegm(time.strptime(date, "%Y%m%d-%H%M%S"))
        except ValueError:
            return
        if (
            said := Window(window.since, window.until, window.skew + _ZONES).time_problem(utc, f"date ({date})")
        ) is not None:
            yield said


class Refusal(msgspec.Struct, frozen=True):
    """A check: what it says, a title, and what it means with what to do next."""

    says: str
    title: str
    text: str


@cache
def refusals() -> Mapping[str, Refusal]:
    """All checks by rule id, the first that fits first."""
    content = Path(__file__).with_name("refusals.yaml").read_bytes()
    return msgspec.yaml.decode(content, type=built(dict[str, Refusal]))


def rule_of(reason: str) -> str:
    """The id of the check that gives this reason."""
    return next(rule for rule, refusal in refusals().items() if re.search(refusal.says, reason))
