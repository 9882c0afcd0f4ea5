"""The report as a value. ``report.json`` is its JSON; page, tables, JUnit and Markdown are made from it alone.

`ReportInput` is the data from which a report is built: everything that the readers of its sources return.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import msgspec

from launcher.core.lines import count_of
from launcher.report.points import EVALUATION, Identity, Point, State

SCHEMA_VERSION = 1

Answer = Literal["better", "same", "worse", "not comparable"]

STATES: tuple[State, ...] = ("ok", "reused", "rehearsal", "stale", "refused", "missing")
"""All states of a point, the best first."""

MEANING: dict[State, str] = {
    "ok": "measured by this job, and nothing contradicts it",
    "reused": "valid, and taken over from an earlier run of the same fingerprint",
    "rehearsal": "made up by stand-ins; nothing was measured",
    "stale": "of another job, image or recipe than was asked for",
    "refused": "there is a result, and it cannot be believed, or its score is too low",
    "missing": "asked for, and there is no result",
}


class Struct(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of the document; default values are left out of its JSON."""


class Image(Struct, frozen=True, kw_only=True):
    """A container image: the requested reference, and the digest of the image that ran."""

    reference: str
    digest: str = ""


class Run(Struct, frozen=True, kw_only=True):
    """The run or artifact that points come from. Times are in Unix seconds.

    ``measured`` has each concurrency with the begin and end of its measurement. ``notes`` are problems and doubts that
    belong to no point. ``model`` is the checkpoint's path, ``commit`` that of the workspace, ``srt_slurm`` that of the
    srt-slurm tree, ``key`` that of the matrix, or a similar one.
    """

    id: str
    runner: str = ""
    state: str = ""
    layer: str = ""
    verdict: str = ""
    job: str = ""
    nodes: str = ""
    images: tuple[Image, ...] = ()
    model: str = ""
    srt_slurm: str = ""
    commit: str = ""
    recipe: str = ""
    fingerprint: str = ""
    key: str = ""
    created: float | None = None
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    measured: tuple[tuple[int, float, float], ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """The inputs of this run, by name."""
        return {
            "run": self.id,
            "job": self.job,
            "image": ", ".join(image.reference for image in self.images),
            "digest": ", ".join(image.digest for image in self.images),
            **{
                name: getattr(self, name) for name in ("model", "srt_slurm", "commit", "recipe", "fingerprint", "nodes")
            },
        }

    @property
    def provenance(self) -> tuple[tuple[str, str], ...]:
        """The inputs that many runs share, with their titles."""
        images = ", ".join(f"{image.reference} {image.digest}".strip() for image in self.images)
        parts = {
            "image": images,
            "checkpoint": self.model,
            "srt-slurm": self.srt_slurm,
            "commit": self.commit,
            "runner": self.runner,
        }
        return tuple((name, text) for name, text in parts.items() if text)


@dataclass
class ReportInput:
    """The points (each attempt is one, in the order of time), their runs, and the problems of reading them."""

    points: list[Point] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    artifacts: dict[Run, str] = field(default_factory=dict)
    """Runs that come from artifacts, with the artifact's name as their id; and their unique ids in ``runs``."""

    def add(self, run: Run, points: Iterable[Point]) -> None:
        """Add a run with its points, unless it was added before."""
        if run.id not in self.runs:
            self.runs[run.id] = run
            self.points += points

    def attempts(self) -> list[Point]:
        """The points. An evaluation that failed before its tasks were known counts as an attempt at each task that
        another attempt has."""
        tasks: dict[Identity, dict[Identity, None]] = {}
        for point in self.points:
            if point.identity.task:
                tasks.setdefault(replace(point.identity, task=""), {})[point.identity] = None
        return [
            point if identity is point.identity else replace(point, identity=identity)
            for point in self.points
            for identity in (tasks.get(point.identity) if point.identity.scenario == EVALUATION else None)
            or (point.identity,)
        ]


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt at a point: its run, and its result."""

    state: State
    run: str = ""
    reason: str = ""
    layer: str = ""
    metrics: dict[str, float] = {}


class Entry(Struct, frozen=True, kw_only=True):
    """One point: its identity, its state and its metrics.

    ``metrics`` are by the names of metrics.yaml, in its units. ``rule`` is the check that refused it. ``attempts`` are
    all tries, oldest first: the last good one counts, else the last one. ``frontier``: no other ok point of its curve
    beats it; an evaluation, of scenario ``evaluation``, is on none. ``configuration`` is the name of its curve: ``gb200
    dynamo-vllm fp8 mtp``.
    """

    id: str
    state: State
    model: str
    hardware: str
    framework: str
    precision: str
    scenario: str
    concurrency: int
    spec_decoding: str = "none"
    disagg: bool = False
    isl: int | None = None
    osl: int | None = None
    topology: str = ""
    configuration: str = ""
    kv_offload: str = "none"
    task: str = ""
    run: str = ""
    reason: str = ""
    layer: str = ""
    rule: str = ""
    metrics: dict[str, float] = {}
    frontier: bool = False
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """The point's name within its configuration: topology, concurrency, an evaluation's task."""
        return f"{self.topology} c{self.concurrency} {self.task}".rstrip()

    @property
    def lengths(self) -> str:
        return self.scenario if self.isl is None else f"{self.isl}/{self.osl}"


def point_name(point: Entry | Identity) -> str:
    """A point's full name: model, lengths, configuration, topology, concurrency, task."""
    offload = "" if point.kv_offload == "none" else f" {point.kv_offload}"
    short = f"{point.topology} c{point.concurrency} {point.task}".rstrip()
    return f"{point.model} {point.lengths} {point.configuration}{offload} {short}"


class Axis(Struct, frozen=True, kw_only=True):
    metric: str
    title: str
    unit: str
    better: Literal["more", "less"]


class Curve(Struct, frozen=True, kw_only=True):
    """The points of one configuration that can be drawn, and those on its frontier, by x; as ids."""

    name: str
    points: tuple[str, ...]
    frontier: tuple[str, ...]


class Panel(Struct, frozen=True, kw_only=True):
    """One picture: a model at its lengths."""

    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]


class Change(Struct, frozen=True, kw_only=True):
    """One metric of one point on both sides: medians where a side has several measurements, with their spread.
    ``change`` is relative to the base; up to ``threshold`` it is the same."""

    metric: str
    answer: Answer
    base: float | None = None
    now: float | None = None
    change: float | None = None
    threshold: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)


class Compared(Struct, frozen=True, kw_only=True):
    """One point beside the same one of the other side. ``id`` is that of the entry, "" where there is none here;
    ``reason`` says why it cannot be compared, ``differs`` what else is not the same; ``samples`` are the measurements
    of the base and of this side."""

    point: str
    answer: Answer
    id: str = ""
    reason: str = ""
    changes: tuple[Change, ...] = ()
    differs: tuple[str, ...] = ()
    samples: tuple[int, int] = (0, 0)


class Comparison(Struct, frozen=True, kw_only=True):
    """This report against another one. ``failed`` are the thresholds that are passed, in sentences; ``exit_code`` is
    what the command ends with."""

    against: str
    points: tuple[Compared, ...]
    failed: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """The metrics that tables show: the main ones, and others that became worse."""
        main = ("tput_per_gpu", "median_intvty", "p90_e2e_norm_intvty", "median_ttft", "median_e2el")
        changes = [change for point in self.points for change in point.changes]
        compared, worse = {c.metric for c in changes}, {c.metric for c in changes if c.answer == "worse"}
        return tuple(name for name in (*main, *sorted(worse - {*main})) if name in compared)

    @property
    def summary(self) -> str:
        """How many points are better, same, worse, not comparable."""
        answers: tuple[Answer, ...] = ("worse", "better", "same", "not comparable")
        counts = ((answer, sum(point.answer == answer for point in self.points)) for answer in answers)
        return ", ".join(f"{count} {answer}" for answer, count in counts if count) or "no points"


class Document(Struct, frozen=True, kw_only=True):
    """The whole report. ``made`` is when (ISO 8601), ``problems`` what could not be read."""

    schema_version: int = SCHEMA_VERSION
    title: str
    made: str
    sources: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    panels: tuple[Panel, ...] = ()
    points: tuple[Entry, ...] = ()
    runs: tuple[Run, ...] = ()
    problems: tuple[str, ...] = ()
    comparison: Comparison | None = None

    @property
    def rehearsed(self) -> str:
        """A warning about rehearsed points; "" if there are none."""
        count = self.counts.get("rehearsal")
        return (
            f"REHEARSAL: the numbers of {count} of {len(self.points)} points are made up by stand-ins" if count else ""
        )

    @property
    def measured(self) -> list[Entry]:
        """The points that are throughput and latency."""
        return [entry for entry in self.points if entry.scenario != EVALUATION]

    @property
    def evaluations(self) -> list[Entry]:
        """The points that are scores."""
        return [entry for entry in self.points if entry.scenario == EVALUATION]


def points_not_ok(document: Document) -> Iterator[tuple[Entry, list[Entry]]]:
    """Points that are not ok, grouped by state, layer and reason: the first of each group, and the group."""

    def cause(entry: Entry) -> tuple[str, ...]:
        return entry.state, entry.layer, entry.rule, entry.reason

    others = sorted((entry for entry in document.points if entry.state != "ok"), key=cause)
    for _, group in groupby(others, key=cause):
        members = list(group)
        yield members[0], members


def all_notes(document: Document) -> Iterator[tuple[str, str]]:
    """The notes of points and runs: the name of the point or run, and the note. Points with one note share a line."""
    points: dict[str, list[Entry]] = {}
    for entry in document.points:
        for note in entry.notes:
            points.setdefault(note, []).append(entry)
    for note, entries in points.items():
        more = f" and {count_of(len(entries) - 1, 'more point')}" if len(entries) > 1 else ""
        yield f"{entries[0].lengths} {entries[0].configuration} {entries[0].short}{more}", note
    yield from ((f"run {run.id}", note) for run in document.runs for note in run.notes)


def as_json(document: Document) -> bytes:
    """``report.json``. Raises ValueError for a number that JSON does not have."""
    for entry in document.points:
        for measured in (entry.metrics, *(attempt.metrics for attempt in entry.attempts)):
            if wrong := [name for name, number in measured.items() if not math.isfinite(number)]:
                raise ValueError(f"{wrong[0]} of {entry.id} is no number of JSON")
    try:
        content = msgspec.json.encode(document)
    except UnicodeEncodeError:  # half a surrogate pair, out of somebody's JSON
        value = {"schema_version": SCHEMA_VERSION, **msgspec.to_builtins(document)}
        return json.dumps(value, indent=1).encode() + b"\n"
    return msgspec.json.format(b'{"schema_version":%d,%b' % (SCHEMA_VERSION, content[1:]), indent=1) + b"\n"


def schema() -> bytes:
    """The JSON Schema of ``report.json``."""
    return json.dumps(msgspec.json.schema(Document), indent=1).encode() + b"\n"
