"""The lines of JSON that commands which drive runs and sweeps print with ``--json``, one for each event.

`StreamingCommand` is such a command with the types of its lines; `launcher schema` prints their JSON Schema.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from launcher.cli.command import schema_of


class RunEvent(Struct, frozen=True, kw_only=True):
    """An event of a run, as in its ``events.jsonl``: ``time`` in seconds since the epoch, ``stage`` and ``state``
    (running, done) of a stage, ``job`` (its id) and ``state`` (Slurm's word) of a job, ``at_most`` in seconds, the
    ``layer`` that an end is of. An event may have more keys."""

    event: Literal["stage", "job", "note", "warning", "error", "wait", "end", "verdict"]
    time: float
    run: str
    text: str
    stage: str | UnsetType = UNSET
    state: str | UnsetType = UNSET
    job: str | UnsetType = UNSET
    layer: str | UnsetType = UNSET
    at_most: float | UnsetType = UNSET


class RunStarting(Struct, frozen=True, kw_only=True, tag_field="event", tag="run"):
    """The run that begins, and the most that it can cost."""

    run: str
    runner: str
    gpu_hours: float | None


class RunWaiting(Struct, frozen=True, kw_only=True, tag_field="event", tag="waiting"):
    """After a silence: what a run waits for, since when, for how many seconds at most, and how far its job is."""

    time: float
    run: str
    text: str
    since: float
    at_most: float | UnsetType = UNSET
    progress: str | UnsetType = UNSET


class LogText(Struct, frozen=True, kw_only=True, tag_field="event", tag="log"):
    """New lines of a job's log, without secrets and control characters."""

    time: float
    run: str
    lines: list[str]


class PointMeasured(Struct, frozen=True, kw_only=True):
    """The throughput at one concurrency, in tokens per second and GPU; null where there is no valid result."""

    concurrency: int
    throughput_per_gpu: float | None


class RunEnded(Struct, frozen=True, kw_only=True, tag_field="event", tag="outcome"):
    """How a run ended; ``exit_code`` is the command's where it is the only run."""

    run: str
    state: str
    exit_code: int
    error: str | UnsetType = UNSET
    verdict: str | UnsetType = UNSET
    points: list[PointMeasured]


class DriverStarted(Struct, frozen=True, kw_only=True, tag_field="event", tag="detached"):
    """The process that drives a run or sweep after ``--detach``, and the file of its output."""

    name: str
    pid: int
    log: str


class SweepMessage(Struct, frozen=True, kw_only=True, tag_field="event", tag="sweep"):
    """A message of a sweep's driver."""

    time: float
    kind: str
    text: str


class SweepEnded(Struct, frozen=True, kw_only=True, tag_field="event", tag="sweep-end"):
    """How many points of a sweep are in each state when its driver leaves."""

    sweep: str
    points: dict[str, int]
    exit_code: int


RUN_LINE_TYPES = (RunStarting, RunEvent, RunWaiting, LogText, RunEnded, DriverStarted)


def sweep_line_types() -> tuple[type, ...]:
    """The types of a sweep's lines; with ``--on`` they are the overviews of `sweep status`."""
    from launcher.sweep.overview import Overview

    return (*RUN_LINE_TYPES, SweepMessage, SweepEnded, Overview)


@dataclass(frozen=True)
class StreamingCommand:
    """A command that prints while it works: its function, which returns the exit code, and the types of its lines."""

    function: Callable[[argparse.Namespace], int]
    lines: Callable[[], tuple[type, ...]] = lambda: RUN_LINE_TYPES

    def __call__(self, arguments: argparse.Namespace) -> int:
        return self.function(arguments)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of each line with ``--json``."""
        return schema_of(self.lines())
