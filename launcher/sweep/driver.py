"""The driver: brings a sweep to its end, as the feed of the loop of runs (`launcher.run.loop`).

Every decision is an event on the disk before its effect. A driver first continues what an earlier one left: it follows
jobs that live, collects jobs that ended, and voids a start without a record.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import Cancelled, ConfigError, LauncherError
from launcher.core.lease import Lock
from launcher.run.finish import Outcome
from launcher.run.kind import Run
from launcher.run.loop import Feed
from launcher.run.orphans import end_run
from launcher.runner.cluster_schema import Limits
from launcher.sweep.attempts import Records, facts_of_outcome, is_over, with_first_cause
from launcher.sweep.decide import Decisions
from launcher.sweep.ledger import Ledger
from launcher.sweep.making import RunMaker
from launcher.sweep.overview import event_text
from launcher.sweep.schema import Added, Began, Ended, Event, Left, Requested, Skipped, Started, Voided
from launcher.sweep.slots import Slots
from launcher.sweep.state import Attempt, Facts, State

AHEAD = 4
"""Runs that are prepared at once, also before there is room for their jobs."""

CHECK_SECONDS = 0.5
"""Seconds between two checks for requests of people, and between two attempts to write events after a full disk."""

ASK_AGAIN = 30.0
"""Seconds after which a run is continued whose job's state was unknown; twice as long each time."""

RECORD_TRIES = 3
"""Attempts to make a record, every ASK_AGAIN seconds, before its job is left to a later driver."""

COLLECT_AGAIN = (10.0, 20.0, 40.0)
"""Seconds before missing results are collected again, without a new job."""

Say = Callable[[str, str], None]
"""Called with a kind (start, end, note, error) and a line for people."""


@dataclass
class OpenAttempt:
    """An attempt that is under way in this process."""

    run: Run
    attempt: Attempt
    nodes: int
    admitted: bool = False
    has_job: bool = False
    asked_again: int = 0
    collected_again: int = 0
    first: Facts | None = None


@dataclass(frozen=True)
class DriverSetting:
    """What a driver needs beside its sweep: records, `limits:` of the runners' files, how many nodes runners have, and
    whether a job with a run's id may live."""

    runs: Path
    limits: Mapping[str, Limits] = field(default_factory=dict)
    nodes: Mapping[str, int | None] = field(default_factory=dict)
    may_live: Callable[[str], bool] = lambda run: False
    clock: Callable[[], float] = time.monotonic


class Driver(Feed):
    """The feed of a loop (`launcher.run.loop.Feed`) for one sweep, whose ``lock`` this process holds."""

    def __init__(
        self, ledger: Ledger, lock: Lock, maker: RunMaker, setting: DriverSetting, say: Say, leaving: threading.Event
    ) -> None:
        self._stale = [path for path, request in ledger.requests() if isinstance(request, Requested)]
        self.ledger, self.state = ledger, State(ledger.sweep, ledger.events())
        self.records = Records(setting.runs, self.state)
        self.decisions = Decisions(self.state, setting.nodes, setting.limits)
        self.open: dict[str, OpenAttempt] = {}
        self._failed: set[str] = set()
        """Runs that failed, and whose results and logs are still collected."""
        self.outcomes: list[Outcome] = []
        self.leaving = leaving
        self._lock, self._maker, self._setting, self._say = lock, maker, setting, say
        slots, over = ledger.directory.parent / ".slots", partial(is_over, setting.runs)
        self._slots = Slots(slots, setting.limits, over, say, setting.clock)
        self._clock = setting.clock
        self._adopted: list[Run] = []
        self._again: list[tuple[float, Run]] = []
        self._unwritten: list[Event] = []
        self._requests_checked = self._scanned = -1e9
        self._idle = False
        self._disk_problem = ""
        self._unmade: dict[str, int] = {}
        self.on_end: Callable[[Ended], None] = lambda ended: None

    def begin(self, driver: str, policy: Any, *, anyway: bool = False, retry_failed: bool = False) -> None:
        """Begin to drive: record that, and take over what earlier drivers left. Raises LauncherError."""
        for note in self.ledger.unread:
            self._say("error", note)
        for path in self._stale:  # it was meant for an earlier driver
            path.unlink(missing_ok=True)
            self._say("note", f"a request that no earlier driver took is dropped: {path.name}")
        self._write(Began(time=0.0, driver=driver, policy=policy, anyway=anyway, retry_failed=retry_failed), must=True)
        attempts: dict[str, list[tuple[Attempt, Facts]]] = {}
        for key in self.state.jobs:
            for attempt in self.state.counted_attempts(key):
                facts = self.records.facts(attempt.run)
                if attempt.open and facts.phase == "none":
                    if not self._setting.may_live(attempt.run):
                        self._write(Voided(time=0.0, run=attempt.run, why="it has no record"))
                        continue
                    facts = replace(facts, phase="unknown")  # no second job beside one that may live
                attempts.setdefault(key, []).append((attempt, facts))
        for attempt, facts in chain.from_iterable(attempts.values()):
            if not (attempt.open and facts.phase == "over"):
                continue
            if not facts.job and facts.state == "cancelled":
                self._write(Voided(time=0.0, run=attempt.run, why=facts.text))
            else:
                self._settle(attempt, facts)
        attempts = {key: [pair for pair in pairs if not pair[0].void] for key, pairs in attempts.items()}
        reused = {
            key: {c for c, run in runs.items() if c in self.records.facts(run).ok}
            for key, runs in self.state.reused.items()
        }
        for event in self.decisions.begin(attempts, self._clock(), reused):
            self._write(event)
        for attempt, facts in chain.from_iterable(attempts.values()):
            if (attempt.open and facts.phase != "over") or facts.phase == "unknown":
                self._adopt(attempt, facts)

    def _adopt(self, attempt: Attempt, facts: Facts) -> None:
        """Continue an attempt of an earlier driver; a job that was to be cancelled is ended first."""
        try:
            run = self._maker.adopt(attempt.run)
            if facts.state == "cancelled":
                end_run(run, "launcher sweep resume", lambda text: self._say("note", text))
        except (LauncherError, OSError) as error:
            self._say("error", f"run {attempt.run} cannot be taken over: {error}")
            return
        opened = self.open[run.id] = OpenAttempt(
            run, attempt, attempt.event.nodes, facts.phase != "preparing", run.record.job is not None
        )
        job = self.state.jobs[attempt.event.job]
        if opened.admitted:  # its job lives, or may
            self._slots.take(job.runner, run.id, opened.nodes, always=True)
        self._adopted.append(run)
        self._say("start", f"{job.key}: goes on with run {run.id} ({facts.word or facts.says})")

    # What the loop asks.

    @property
    def exhausted(self) -> bool:
        return self._idle and not (self.open or self._adopted or self._again or self._unwritten)

    def next_run(self, under_way: int) -> Run | None:
        self._take_requests()
        if self._adopted:
            return self._adopted.pop(0)
        now = self._clock()
        for due, again in self._again:
            if due <= now:
                self._again.remove((due, again))
                return again
        asked_later = {run.id for _, run in self._again}
        preparing = sum(not opened.has_job and run not in asked_later for run, opened in self.open.items())
        if preparing >= AHEAD or len(self.open) >= self.state.policy.max_jobs + AHEAD:
            return None
        if self._unwritten or self._awaits_failure:
            return None
        if now - self._scanned < CHECK_SECONDS and (self._idle or self._disk_problem):
            return None
        self._scanned = now
        while (start := self.decisions.next(now)) is not None:
            if (run := self._begin(start)) is not None or self._disk_problem:
                return run
        self._idle = not self.decisions.due(now)
        return None

    def _begin(self, start: Any) -> Run | None:
        """Begin an attempt: make its plan, then the event, then the run's record."""
        job = start.job
        run_id = self._maker.new_id(self.ledger.id, job, len(self.state.attempts[job.key]) + 1)
        try:
            plan = self._maker.plan(start, run_id)
        except ConfigError as error:
            self.decisions.started(job.key)
            self._write(Skipped(time=0.0, job=job.key, why=error.message))
            self._say("error", str(error))
            return None
        allocation = plan.scheduler
        event = Started(
            time=0.0,
            job=job.key,
            run=run_id,
            concurrencies=start.concurrencies,
            why=start.why,
            nodes=allocation.nodes or 1,
            gpu_hours=round(allocation.gpu_hours or 0.0, 4),
            exclude=start.exclude,
        )
        if not self._write(event):
            return None
        self.decisions.started(job.key)
        try:
            run = self._maker.create(plan)
        except (LauncherError, OSError) as error:
            self._say("error", f"{job.key}: run {run_id} cannot be recorded: {error}")
            self._write(Voided(time=0.0, run=run_id, why="its record could not be made"))
            self._unmade[job.key] = self._unmade.get(job.key, 0) + 1
            if self._unmade[job.key] < RECORD_TRIES:
                self.decisions.waiting[job.key] = self._clock() + ASK_AGAIN
            else:
                self._write(Skipped(time=0.0, job=job.key, why=f"its record could not be made: {error}"))
            return None
        self.open[run_id] = OpenAttempt(run, self.state.by_run[run_id], event.nodes)
        self._say("start", f"{job.key}: run {run_id} ({start.why})")
        return run

    def may_submit(self, run: Run, ready: bool) -> bool | Cancelled:
        """Whether there is room for the job; Cancelled says why it is never submitted."""
        opened = self.open[run.id]
        if opened.admitted:
            return True
        job, policy = self.state.jobs[opened.attempt.event.job], self.state.policy
        paused, hold = self.state.pause_state(job), self.state.breaker(job)
        reason = self.state.ending or self.decisions.fail_fast_reason or ("drained" if paused == "drain" else "")
        if reason or hold is not None:
            reason = reason or f"breaker: {hold.signature if hold is not None else ''}"
            return Cancelled(f"its job was not submitted: {reason}")
        if paused or not ready or self._awaits_failure:
            return False
        admitted = [other for other in self.open.values() if other.admitted]
        if len(admitted) >= policy.max_jobs:
            return False
        if policy.max_nodes is not None and sum(o.nodes for o in admitted) + opened.nodes > policy.max_nodes:
            return False
        opened.admitted = self._slots.take(job.runner, run.id, opened.nodes)
        return opened.admitted

    def submitted(self, run: Run) -> None:
        self.open[run.id].has_job = True

    @property
    def _awaits_failure(self) -> bool:
        """Whether no run begins until the causes of these failures are known: they may reach the limit of fail fast,
        which depends on their layer and on whether they are retried."""
        return bool(self._failed) and self.decisions.reaches_fail_fast(len(self._failed))

    def failed(self, run: Run) -> None:
        self._failed.add(run.id)

    def ended(self, run: Run, outcome: Outcome) -> None:
        self._failed.discard(run.id)
        opened = self.open[run.id]
        facts = self.records.facts(run.id)
        if opened.first is not None and facts.word == "CANCELLED":
            facts = with_first_cause(facts, opened.first)
        if facts.phase == "none":
            facts = facts_of_outcome(outcome, run.record.job)
        if outcome.state != "cancelled":
            if facts.phase == "unknown":
                opened.first = opened.first or facts
                wait = ASK_AGAIN * 2 ** min(opened.asked_again, 5)
                self._again.append((self._clock() + wait, run))
                opened.asked_again += 1
                return
            if self._collects_again(opened, facts):
                return
        del self.open[run.id]
        run.record.release()
        if facts.phase == "unknown":  # its cancel was requested, and is again when the sweep is resumed
            return
        if facts.phase in ("alive", "preparing"):  # its end could not be written: a later driver collects
            self._say("error", f"run {run.id} is left as it is, for `sweep resume`: {outcome.error}")
            return
        job = self.state.jobs[opened.attempt.event.job]
        self._slots.give_back(job.runner, run.id)
        self._idle = False
        if not facts.job and facts.state == "cancelled" and not run.record.cancel_requested():
            self._write(Voided(time=0.0, run=run.id, why=facts.text))
            self.decisions.waiting[job.key] = self._clock()
            return
        self.outcomes.append(Outcome(run.id, outcome.state, error=outcome.error, verdict=outcome.verdict))
        self._settle(opened.attempt, facts)

    def _collects_again(self, opened: OpenAttempt, facts: Facts) -> bool:
        """Whether missing results of a job that COMPLETED are collected again: a file system may show them late."""
        completed = facts.layer == "results" and facts.word == "COMPLETED"
        late = completed and any("missing" in reason for reason in facts.bad.values())
        tries = opened.collected_again
        if not late or tries >= len(COLLECT_AGAIN) or opened.run.plan.scheduler.kind == "local":
            return False
        opened.collected_again += 1
        self._again.append((self._clock() + COLLECT_AGAIN[tries], opened.run))
        return True

    def _settle(self, attempt: Attempt, facts: Facts) -> None:
        """Record that an attempt is over, and what follows from it."""
        for event in self.decisions.after(attempt, facts, self._clock()):
            self._write(event)
            if isinstance(event, Ended):
                self.on_end(event)
            self._say("end" if isinstance(event, Ended) and not event.signature else "error", event_text(event))

    def cancel_all_reason(self) -> Cancelled | None:
        if self.state.ending == "cancel":
            return Cancelled("launcher sweep cancel")
        if self.state.policy.fail_fast_cancel and (reason := self.decisions.fail_fast_reason):
            return Cancelled(reason)
        return None

    def should_leave(self) -> bool:
        if self.state.ending == "stop":
            self.leaving.set()
        return self.leaving.is_set()

    def remaining_runs(self) -> Iterable[Run]:
        return self._adopted + [run for _, run in self._again]

    def skip_rest(self) -> None:
        """Record which points this driver leaves, and why."""
        for event in self.decisions.left():
            self._write(event)

    def leave(self, why: str, exit_code: int) -> None:
        """Record that this driver leaves."""
        self._write(Left(time=0.0, why=why, exit_code=exit_code))
        for opened in self.open.values():
            opened.run.record.release()

    # Requests, and the ledger.

    def _take_requests(self) -> None:
        """Every CHECK_SECONDS: take the requests of people, and write the events that a full disk refused."""
        now = self._clock()
        if now - self._requests_checked < CHECK_SECONDS:
            return
        self._requests_checked = now
        with contextlib.suppress(LauncherError):
            while self._unwritten:  # the state has them already
                self.ledger.append(self._unwritten[0])
                del self._unwritten[0]
                self._disk_problem = ""
        if self._lock.lost and not self.leaving.is_set():
            self.leaving.set()
            self._say("error", "another driver has taken this sweep over, for this one was stopped too long: it leaves")
        for path, request in self.ledger.requests():
            if request is None or self._write(request):
                with contextlib.suppress(OSError):
                    path.unlink()
                self._apply_request(request)

    def _apply_request(self, request: Requested | Added | None) -> None:
        self._idle, self._scanned = False, -1e9
        if isinstance(request, Added):
            self.decisions.add([self.state.jobs[job.key] for job in request.jobs], self._clock())
        elif request is not None:
            self._say("note", f"{request.verb}{f' of {request.runner}' if request.runner else ''}, by {request.by}")

    def _write(self, event: Event, *, must: bool = False) -> bool:
        """Write an event and apply it to the state. False when the disk refuses it: it is written later, and nothing
        begins until then."""
        event = msgspec.structs.replace(event, time=time.time())
        try:
            if self._unwritten and not must:
                raise LauncherError("events before it are not written yet")
            self.ledger.append(event)
        except LauncherError as error:
            if must:
                raise
            if not isinstance(event, (Started, Requested, Added)):
                self._unwritten.append(event)
                self.state.apply(event)  # type: ignore[arg-type]
            if not self._disk_problem:
                self._disk_problem = error.message
                self._say("error", f"nothing new begins: {error.message}; what runs is followed")
            return False
        self._disk_problem = ""
        self.state.apply(event)  # type: ignore[arg-type]
        return True
