"""What the commands that drive runs and sweeps print with ``--json``: a line each time something happens.

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
    """The run that begins, and what it holds at most."""

    run: str
    runner: str
    gpu_hours: float | None


class RunWaiting(Struct, frozen=True, kw_only=True, tag_field="event", tag="waiting"):
    """After a silence: what a run waits for, since when, for how many seconds at most, how far its job is."""

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
    """What one concurrency gave, in tokens per second and GPU; null where there is no valid result."""

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
    """The process of its own that drives a run or sweep (``--detach``), and where its output is."""

    name: str
    pid: int
    log: str


class SweepMessage(Struct, frozen=True, kw_only=True, tag_field="event", tag="sweep"):
    """What a sweep's driver says."""

    time: float
    kind: str
    text: str


class SweepEnded(Struct, frozen=True, kw_only=True, tag_field="event", tag="sweep-end"):
    """How a sweep stands when its driver leaves: how many points are in each state."""

    sweep: str
    points: dict[str, int]
    exit_code: int


RUN_LINE_TYPES = (RunStarting, RunEvent, RunWaiting, LogText, RunEnded, DriverStarted)


def sweep_line_types() -> tuple[type, ...]:
    """Those of a sweep; one on another machine (``--on``) is told as `sweep status` does."""
    from launcher.sweep.overview import Overview

    return (*RUN_LINE_TYPES, SweepMessage, SweepEnded, Overview)


@dataclass(frozen=True)
class StreamingCommand:
    """A command that prints while it works: what does it, which gives the exit code, and the types of its lines."""

    do: Callable[[argparse.Namespace], int]
    lines: Callable[[], tuple[type, ...]] = lambda: RUN_LINE_TYPES

    def __call__(self, arguments: argparse.Namespace) -> int:
        return self.do(arguments)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of each line with ``--json``."""
        return schema_of(self.lines())
