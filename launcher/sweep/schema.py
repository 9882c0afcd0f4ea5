"""What a sweep's ledger says, as types: ``sweep.json`` (what is wanted) and the lines of ``events.jsonl`` (what was
decided).

A *point* is one benchmark at one concurrency, a *job* what Slurm runs: a topology with the concurrencies that one
server measures. An *attempt* is one run of a job, with a run record of its own. ``sweep.json`` is never changed; how a
sweep stands is always computed anew, from its events and the records of its runs (`launcher.sweep.state`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from launcher.benchmark.benchmark import Benchmark

SCHEMA = 1

Order = Literal["spread", "given", "short-first", "long-first", "score"]


class Job(Struct, frozen=True, kw_only=True):
    """One job of a sweep, as data: it is planned anew for each attempt, and refused when its fingerprint has changed.

    ``key`` is its name within the sweep and part of its runs' ids. ``nodes``, ``gpus`` (of all nodes) and ``seconds``
    (the time limit) are what one attempt holds at most; None where only the checkout knows. ``fingerprint`` are the
    parts that make two results comparable, by name (`launcher.sweep.points.fingerprint`); ``""`` is not known yet.
    """

    key: str
    runner: str
    kind: str
    benchmark: Benchmark
    fingerprint: Mapping[str, str]
    nodes: int | None = None
    gpus: int | None = None
    seconds: float | None = None
    narrow: bool = False

    @property
    def concurrencies(self) -> tuple[int, ...]:
        return self.benchmark.concurrencies

    @property
    def gpu_hours(self) -> float | None:
        """GPUs × time limit, in hours: what one attempt can cost."""
        return self.gpus * self.seconds / 3600 if self.gpus is not None and self.seconds else None


class Policy(Struct, frozen=True, kw_only=True):
    """How a sweep is driven.

    ``fail_fast`` is a number of failures, or a layer; ``canary`` is ``auto``, ``off`` or a job's key; ``retries`` how
    many attempts may be added in all (None: a tenth of the jobs, two at least); ``retry_timeout`` by how much a time
    limit grows for one more attempt; ``notify`` the program, with its arguments, that is run at each end; ``lease`` for
    how many seconds its driver may give no sign of life until another login node may take the sweep over.
    """

    max_jobs: int = 4
    max_nodes: int | None = None
    max_gpu_hours: float | None = None
    canary: str = "off"
    fail_fast: str | None = None
    fail_fast_cancel: bool = False
    order: Order = "spread"
    retries: int | None = None
    retry_timeout: float | None = None
    confirm: bool = False
    accept: tuple[str, ...] = ()
    notify: tuple[str, ...] = ()
    lease: float = 120.0


class Sweep(Struct, frozen=True, kw_only=True):
    """``sweep.json``: what is wanted, as it was when the sweep was made. ``selection`` is the command line as typed,
    ``left_out`` the selected rows that take no part, with the reason; ``created`` is in seconds since the epoch."""

    id: str
    created: float
    launcher: str
    selection: tuple[str, ...]
    policy: Policy
    jobs: tuple[Job, ...]
    left_out: tuple[str, ...] = ()
    schema: int = SCHEMA


class Event(Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """A line of ``events.jsonl``: a decision, written before its effect. Order is by line; ``time`` is for people."""

    time: float


class Began(Event, frozen=True, kw_only=True, tag="begin"):
    """A driver begins, by ``start`` or ``resume``: holds, skips and pauses before it are over. ``policy`` is the whole
    policy from here on."""

    driver: str
    policy: Policy
    anyway: bool = False
    retry_failed: bool = False


class Started(Event, frozen=True, kw_only=True, tag="start"):
    """An attempt: the run id that it has, what it is to measure, and what is reserved for it until it is settled.

    ``why`` is ``first``, ``canary``, ``missing``, ``failed``, or the retry class that a `Retried` line before it named.
    """

    job: str
    run: str
    concurrencies: tuple[int, ...]
    why: str = "first"
    nodes: int = 0
    gpu_hours: float = 0.0
    exclude: tuple[str, ...] = ()


class Voided(Event, frozen=True, kw_only=True, tag="void"):
    """An attempt that never had a job, and counts for nothing."""

    run: str
    why: str


class Ended(Event, frozen=True, kw_only=True, tag="end"):
    """An attempt is over. Its record says the same, and more; ``gpu_hours`` is what it has cost, by accounting."""

    job: str
    run: str
    state: str
    ok: tuple[int, ...] = ()
    layer: str = ""
    text: str = ""
    signature: str = ""
    gpu_hours: float = 0.0
    nodes: str = ""


class Retried(Event, frozen=True, kw_only=True, tag="retry"):
    """One further attempt of a job is allowed, after ``wait`` seconds: ``kind`` is the class of the failure of ``run``.

    ``avoid`` are nodes that this attempt alone must not get.
    """

    job: str
    run: str
    kind: str
    signature: str = ""
    wait: float = 0.0
    avoid: tuple[str, ...] = ()


class Excluded(Event, frozen=True, kw_only=True, tag="exclude"):
    """A node is not used any more by this sweep."""

    node: str
    runner: str
    run: str
    reason: str


class Held(Event, frozen=True, kw_only=True, tag="hold"):
    """The breaker: jobs of this ``runner``, ``image`` and ``model`` are not started, for they all failed alike."""

    runner: str
    image: str
    model: str
    signature: str
    runs: tuple[str, ...]


class Skipped(Event, frozen=True, kw_only=True, tag="skip"):
    """Points of a job are not started by this driver, and why."""

    job: str
    why: str


class Added(Event, frozen=True, kw_only=True, tag="add"):
    """Points are appended: jobs of their own, which leave the existing ones as they are."""

    jobs: tuple[Job, ...]
    selection: tuple[str, ...]


class Requested(Event, frozen=True, kw_only=True, tag="ask"):
    """A person asked for something: pause, go-on, drain, stop or cancel; of one ``runner`` alone, or of all."""

    verb: Literal["pause", "go-on", "drain", "stop", "cancel"]
    by: str
    runner: str = ""


class Reused(Event, frozen=True, kw_only=True, tag="reuse"):
    """Points of a job count as measured by a run of another sweep, or of none, with the same fingerprint."""

    job: str
    run: str
    concurrencies: tuple[int, ...]


class Left(Event, frozen=True, kw_only=True, tag="leave"):
    """The driver leaves: ``why`` is ``finished``, ``drained``, ``stopped``, ``cancelled``, a signal's name, or after
    ``fault: `` what went wrong with it."""

    why: str
    exit_code: int


Line = Began | Started | Voided | Ended | Retried | Excluded | Held | Skipped | Added | Requested | Reused | Left

DECODE_LINE = msgspec.json.Decoder(Line)
DECODE_SWEEP = msgspec.json.Decoder(Sweep)
