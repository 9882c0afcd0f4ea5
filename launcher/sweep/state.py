"""The state of a sweep by its events, and of each point by the records of its attempts. All functions are pure.

Reading the same events always gives the same state. The driver applies each event that it writes to the state that it
already has.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from launcher.core.errors import ResultError
from launcher.sweep.schema import (
    Added,
    Began,
    Ended,
    Excluded,
    Held,
    Job,
    Left,
    Line,
    Requested,
    Retried,
    Reused,
    Skipped,
    Started,
    Sweep,
    Voided,
)

Phase = Literal["none", "preparing", "alive", "unknown", "over"]
"""The phase of an attempt: no record yet; its job is not submitted yet; its job lives; that is unknown; it is over."""

PointWord = Literal[
    "planned", "preparing", "queued", "running", "unknown", "ok", "failed", "missing", "not started", "cancelled"
]


@dataclass(frozen=True)
class Facts:
    """What the record of an attempt says now. ``ok`` are the concurrencies with a valid result of the sweep's own
    fingerprint; ``bad`` says why others have none. ``word`` is the job's state as Slurm names it."""

    phase: Phase
    word: str = ""
    says: str = ""
    state: str = ""
    ok: frozenset[int] = frozenset()
    bad: Mapping[int, str] = field(default_factory=dict)
    layer: str = ""
    text: str = ""
    exit_code: int = 0
    job: str = ""
    log: str = ""
    nodes: str = ""
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None


NONE = Facts("none")


@dataclass
class Attempt:
    """One attempt of a job, by its events."""

    event: Started
    ended: Ended | None = None
    void: str = ""
    granted: Retried | None = None
    """The event that allowed it, for a retry; when the attempt is voided, that event allows another one."""

    @property
    def run(self) -> str:
        return self.event.run

    @property
    def open(self) -> bool:
        """Whether no event says that it is over."""
        return self.ended is None and not self.void


@dataclass(frozen=True)
class PointState:
    """The state of one point, the reason, and the run; ``attempts`` are the runs that were to measure it."""

    job: str
    concurrency: int
    state: PointWord
    reason: str = ""
    run: str = ""
    layer: str = ""
    exit_code: int = 0
    attempts: tuple[str, ...] = ()
    reused: bool = False


def gpu_hours(job: Job, facts: Facts) -> float:
    """What an attempt has cost, by the scheduler's own times: GPUs × elapsed."""
    if facts.started is None or facts.ended is None or not job.gpus:
        return 0.0
    return job.gpus * max(0.0, facts.ended - facts.started) / 3600


class State:
    """What the events of a sweep amount to."""

    def __init__(self, sweep: Sweep, events: Iterable[Line] = ()) -> None:
        self.sweep = sweep
        self.policy = sweep.policy
        self.jobs: dict[str, Job] = {job.key: job for job in sweep.jobs}
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)
        self.by_run: dict[str, Attempt] = {}
        self.granted: dict[str, Retried] = {}
        """By job: a further attempt that was allowed, and has not been started."""
        self.retry_counts: Counter[tuple[str, str]] = Counter()
        self.excluded: dict[str, Excluded] = {}
        self.held: list[Held] = []
        self.skipped: dict[str, str] = {}
        self.reused: dict[str, dict[int, str]] = defaultdict(dict)
        self.reused_runs: dict[str, str] = {}
        """By reused run: a job of this sweep that it has results of."""
        self.requested: dict[str, str] = {}
        """By runner ("" for all): pause or drain."""
        self.ending = ""
        """stop or cancel, once requested."""
        self.reserved = self.spent = 0.0
        self.used: dict[str, float] = defaultdict(float)
        """By runner: GPU-hours that are spent or reserved."""
        self.began: Began | None = None
        self.left: Left | None = None
        for event in events:
            self.apply(event)

    def apply(self, event: Line) -> None:
        """Take one more event."""
        match event:
            case Began():
                self.began, self.policy, self.left = event, event.policy, None
                self.held, self.skipped, self.requested, self.ending = [] if event.anyway else self.held, {}, {}, ""
            case Started():
                attempt = self.by_run[event.run] = Attempt(event, granted=self.granted.pop(event.job, None))
                self.attempts[event.job].append(attempt)
                self.reserved += event.gpu_hours
                self.used[self._runner(event.job)] += event.gpu_hours
            case Voided() | Ended():
                self._close(event)
            case Retried():
                self.granted[event.job] = event
                self.retry_counts[event.job, event.kind] += 1
            case Excluded():
                self.excluded[event.node] = event
            case Held():
                self.held.append(event)
            case Skipped():
                self.skipped[event.job] = event.why
            case Added():
                self.jobs.update({job.key: job for job in event.jobs if job.key not in self.jobs})
            case Reused():
                self.reused[event.job].update(dict.fromkeys(event.concurrencies, event.run))
                self.reused_runs.setdefault(event.run, event.job)
            case Left():
                self.left = event
            case Requested():
                self._ask(event)

    def _close(self, event: Voided | Ended) -> None:
        attempt = self.by_run.get(event.run)
        if attempt is None or not attempt.open:
            return
        self.reserved -= attempt.event.gpu_hours
        cost = event.gpu_hours if isinstance(event, Ended) else 0.0
        self.used[self._runner(attempt.event.job)] += cost - attempt.event.gpu_hours
        if isinstance(event, Voided):
            attempt.void = event.why or "no job"
            if attempt.granted is not None:
                self.granted[attempt.event.job] = attempt.granted
        else:
            attempt.ended = event
            self.spent += event.gpu_hours

    def _runner(self, job: str) -> str:
        return self.jobs[job].runner if job in self.jobs else ""

    def _ask(self, event: Requested) -> None:
        if event.verb in ("stop", "cancel"):
            self.ending = event.verb
        elif event.verb == "go-on":
            for runner in [event.runner] if event.runner else list(self.requested):
                self.requested.pop(runner, None)
        else:
            self.requested[event.runner] = event.verb

    def pause_state(self, job: Job) -> str:
        """Why jobs of this runner are not started now: pause or drain; "" when they are."""
        return self.requested.get("") or self.requested.get(job.runner, "")

    def breaker(self, job: Job) -> Held | None:
        """The hold that keeps this job from being started."""
        return next((hold for hold in self.held if held_jobs(hold, job)), None)

    def counted_attempts(self, job: str) -> list[Attempt]:
        """The attempts of a job that count: all but voided ones."""
        return [attempt for attempt in self.attempts.get(job, ()) if not attempt.void]

    @property
    def retries_left(self) -> int:
        """How many attempts may still be added."""
        budget = self.policy.retries if self.policy.retries is not None else max(2, len(self.jobs) // 10)
        return budget - self.retry_counts.total()


def held_jobs(hold: Held, job: Job) -> bool:
    """Whether the breaker's class has this job."""
    benchmark = job.benchmark
    return (hold.runner, hold.image, hold.model) == (job.runner, benchmark.image, benchmark.model)


def point_states(state: State, facts: Callable[[str], Facts]) -> list[PointState]:
    """The state of every point, in the order of the sweep. ``facts`` gives what a run's record says now."""
    points = []
    for job in state.jobs.values():
        attempts = [(attempt, facts(attempt.run)) for attempt in state.counted_attempts(job.key)]
        points += [_point_state(state, job, concurrency, attempts, facts) for concurrency in job.concurrencies]
    return points


def _point_state(
    state: State, job: Job, concurrency: int, attempts: list[tuple[Attempt, Facts]], facts: Callable[[str], Facts]
) -> PointState:
    measuring = [(attempt, facts_now) for attempt, facts_now in attempts if concurrency in attempt.event.concurrencies]
    runs = tuple(attempt.run for attempt, _ in measuring)
    if (run := state.reused.get(job.key, {}).get(concurrency)) is not None:
        facts_of_reused = facts(run)
        if concurrency in facts_of_reused.ok:
            reason = f"reused from run {run}, of the same fingerprint"
            return PointState(job.key, concurrency, "ok", reason, run, attempts=runs, reused=True)
        if not measuring:
            problem = (
                facts_of_reused.bad.get(concurrency, "") or facts_of_reused.text or "it has no such result any more"
            )
            reason = (
                f"reused from run {run}: {problem if facts_of_reused.phase != 'none' else 'its record was removed'}"
            )
            return PointState(job.key, concurrency, "missing", reason, run, "results", ResultError.exit_code)
    for attempt, facts_now in measuring:
        if concurrency in facts_now.ok:
            reason = f"a valid result of run {attempt.run}, of the same fingerprint"
            return PointState(job.key, concurrency, "ok", reason, attempt.run, attempts=runs)
    word, reason, layer, code = _state_without_result(state, job, concurrency, measuring)
    if word == "failed" and layer == "results" and any(facts_now.ok for _, facts_now in attempts):
        word = "missing"
    return PointState(job.key, concurrency, word, reason, runs[-1] if runs else "", layer, code, runs)


def _state_without_result(
    state: State, job: Job, concurrency: int, attempts: list[tuple[Attempt, Facts]]
) -> tuple[PointWord, str, str, int]:
    """State, reason, layer and exit code of a point without a valid result."""
    not_started = state.skipped.get(job.key, "")
    if not not_started and (hold := state.breaker(job)) is not None:
        not_started = f"breaker: {hold.signature}"
    if not attempts:
        return ("not started", not_started, "", 0) if not_started else ("planned", "no attempt yet", "", 0)
    attempt, facts = attempts[-1]
    if facts.phase == "none":
        if attempt.ended is None:
            return "planned", f"run {attempt.run} has no record: it is started again under a new id", "", 0
        return "missing", f"the record of run {attempt.run} was removed", "results", ResultError.exit_code
    if facts.phase in ("preparing", "unknown"):
        word: PointWord = "preparing" if facts.phase == "preparing" else "unknown"
        return word, facts.says or f"run {attempt.run}", "", 0
    if facts.phase == "alive":
        return "queued" if facts.word in ("", "PENDING") else "running", facts.says, "", 0
    reason_now = facts.bad.get(concurrency, "") or facts.text
    if facts.state == "cancelled":
        return "cancelled", facts.text, "cancelled", facts.exit_code
    if facts.state == "succeeded":
        reason_now = facts.bad.get(concurrency, "") or "no result, and others of its job are there"
        return "missing", reason_now, "results", ResultError.exit_code
    if facts.layer != "results" and facts.text:
        reason_now = f"{facts.layer}: {facts.text}"
    return "failed", reason_now, facts.layer, facts.exit_code


FOLLOWS = ("fail fast", "canary failed", "breaker")
"""Beginnings of reasons why a point was not started because others failed: their failure decides the exit code."""


def exit_code(points: Iterable[PointState]) -> int:
    """0 when every point is ok, 7 when points are left or missing, else the code of the first failure in order."""
    bad = [point for point in points if point.state != "ok"]
    failed = [point.exit_code for point in bad if point.state in ("failed", "cancelled")]
    unmeasured = [point for point in bad if point.state not in ("failed", "cancelled")]
    if any(not point.reason.startswith(FOLLOWS) for point in unmeasured) or (unmeasured and not failed):
        return ResultError.exit_code
    return next((code for code in failed if code), 1) if bad else 0
