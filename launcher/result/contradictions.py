"""Checks of a document against the plan and against the time of the run. Pure.

Each check yields sentences that name the field, both values, and where each value stands. own_numbers.py checks a
document's numbers against each other. refusals.yaml assigns each sentence to a rule and explains the rule.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec

from launcher.core.reading import prepare_type
from launcher.plan.plan import Expected

Numbers = Mapping[str, float]

LEAST_MS = 0.001
"""Milliseconds by which a latency may be below zero. InferenceX's client measures the whole request and the first token
separately; when all tokens arrive at once, the difference of the two can be -4 ns."""

_MOUNTS = frozenset({"model", "models"})
"""Names of a checkpoint's directory in a container, whichever model it is (srtctl mounts it at /model)."""


@dataclass(frozen=True)
class Window:
    """The time in which our result was written: from the submission until now, in Unix seconds of this host's clock."""

    since: float
    until: float
    skew: float = 0.0

    def time_problem(self, written: float, name: str) -> str | None:
        """Why a file or key ``name`` with the time ``written`` is not of this run; None if it may be."""
        if written < self.since - self.skew:
            return f"{name} is older than this run: {self.since - written:.0f} s before the submission"
        if written > self.until + self.skew:
            return f"{name} is from the future: {written - self.until:.0f} s after this host's clock"
        return None


_ZONES = 14 * 3600.0
"""Seconds by which local time may differ from UTC."""


def differ(first: float, second: float, tolerance: float) -> bool:
    """Whether two numbers that should be equal differ by more than this share of the larger."""
    return abs(first - second) > tolerance * max(abs(first), abs(second))


def order_contradictions(ascending: Numbers) -> Iterator[str]:
    """The first statistic that is less than the one before it. The statistics must be in the order of their ranks."""
    for (previous, lower), (name, value) in pairwise(ascending.items()):
        if value < lower - LEAST_MS * 1e-3 - 1e-9 * abs(lower):
            yield f"{name} is {value:.6g}, less than {previous}, which is {lower:.6g}"
            return


def number_at(document: object, *keys: str) -> float | None:
    """The number below these nested keys; None if there is no number."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    is_number = isinstance(document, int | float) and not isinstance(document, bool)
    return float(document) if is_number else None  # type: ignore[arg-type]


def row_contradictions(document: Mapping[str, object], expected: Expected, file_name: str) -> Iterator[str]:
    """Keys of the matrix row that the document repeats with another value.

    An empty or unknown value states nothing. Neither do 0 and 1, which InferenceX writes where a variable is not set.
    """
    for key, planned in expected.row.items():
        value = document.get(key)
        if value in (None, "", "unknown", "0") or (type(value) is int and value < 2) or isinstance(value, list | dict):
            continue
        if str(value).lower() != str(planned).lower():
            yield f"{key} is {value!r} in {file_name}, and {planned!r} in the plan"


def model_contradictions(name: object, expected: Expected, key: str) -> Iterator[str]:
    """The document's name of the model (the value of ``key``), if it is none of the plan's names."""
    if not isinstance(name, str) or not name.strip() or not expected.models or _normalised_model(name) in _MOUNTS:
        return
    if _normalised_model(name) not in {_normalised_model(known) for known in expected.models}:
        yield f"{key} is {name[:200]!r}, and the plan's model {expected.models[0]}"


def _normalised_model(name: str) -> str:
    """A model's name without directory, organisation, case and separators. A path into a Hugging Face cache gives the
    name of the repository."""
    if cached := re.search(r"models--([^/]+)", name):
        name = cached[1].replace("--", "/")
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].partition("@")[0].lower())


STAND_IN_KEY = re.compile(r"backend|(?:is_)?(?:rehearsal|mock(?:ed)?|simulated|stand_?in|dry_?run)", re.IGNORECASE)
"""Keys by which a document states that no real engine answered. `mocker` is a backend of srt-slurm."""


def stand_in_contradictions(document: Mapping[str, object], expected: Expected) -> Iterator[str]:
    """Signs that no real engine answered, unless the plan is a rehearsal."""
    if expected.rehearsal:
        return
    for key, value in document.items():
        is_stand_in = "mock" in str(value).lower() if key == "backend" else value and value != "false"
        if STAND_IN_KEY.fullmatch(key) and is_stand_in:
            yield f"{key} is {value!r}: it is a rehearsal's or a mock's, and the plan's tools are those of the system"
            return
    if "mock" in (expected.engine or ""):
        yield f"backend.type of the recipe is {expected.engine}: no engine was measured"


def gpu_contradictions(gpus: int, split: tuple[int, int] | None, total: float, expected: Expected) -> Iterator[str]:
    """Checks the GPUs of a file's name, by which the workflow divides ``total``, against each other and the plan."""
    prefill, decode = split or (gpus, 0)
    if prefill <= 0:
        yield "its file name says no prefill GPU, and process_result.py divides by them"
    elif prefill + decode != gpus:
        yield f"its file name says {gpus} GPUs, and {prefill}+{decode} of them"
    elif expected.gpus is not None and (prefill, decode) != expected.gpus:
        planned = sum(expected.gpus)
        rates = f"{total / gpus:.1f} tokens/s/GPU for {total / planned:.1f}"
        yield f"its file name says {prefill}+{decode} GPUs, and the plan {'{}+{}'.format(*expected.gpus)}: {rates}"


def time_contradictions(numbers: Numbers, expected: Expected, window: Window | None) -> Iterator[str]:
    """Checks the client's begin and end of the benchmark against the run's time and against the duration."""
    began, ended = (numbers.get(f"benchmark_{which}_time_unix") for which in ("start", "end"))
    if window is not None:
        problems = (
            window.time_problem(seconds, f"benchmark_{which}_time_unix")
            for which, seconds in (("start", began), ("end", ended))
            if seconds is not None
        )
        yield from filter(None, problems)
    if began is None or ended is None or (duration := numbers.get("duration")) is None:
        return
    if abs(ended - began - duration) > max(0.5, expected.limits.tolerance * duration):
        between = "lie between benchmark_start_time_unix and benchmark_end_time_unix"
        yield f"duration is {duration:.6g}, and {ended - began:.6g} s {between}"


def time_doubts(duration: float | None, date: object, expected: Expected, window: Window | None) -> Iterator[str]:
    """What is odd about the time of a measurement. ``date`` is the client's own, in its container's time zone.

    A rehearsal is not checked: its durations are made up.
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
        if problem := replace(window, skew=window.skew + _ZONES).time_problem(utc, f"date ({date})"):
            yield problem


class Refusal(msgspec.Struct, frozen=True):
    """A rule: the pattern of its sentences, a title, and a text that explains it and says what to do next."""

    says: str
    title: str
    text: str


@cache
def refusals() -> Mapping[str, Refusal]:
    """All rules by their ids. The first one whose pattern matches a sentence is the rule of that sentence."""
    content = Path(__file__).with_name("refusals.yaml").read_bytes()
    return msgspec.yaml.decode(content, type=prepare_type(dict[str, Refusal]))


def rule_of(reason: str) -> str:
    """The id of the rule that a sentence belongs to."""
    return next(rule for rule, refusal in refusals().items() if re.search(refusal.says, reason))
