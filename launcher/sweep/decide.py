"""What begins next, and what follows from an end: canary, fail fast, breaker, retries, exclusion, budget.

All functions are pure: they read the state and facts about results, and return starts and events to be written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from msgspec import structs

from launcher.runner.cluster_schema import Limits
from launcher.sweep.points import canaries, guard, ordered, topology_of
from launcher.sweep.retry import AllowedRetry, allowed_retry, class_of, named_node, signature
from launcher.sweep.schema import Ended, Event, Excluded, Held, Job, Retried, Skipped
from launcher.sweep.state import Attempt, Facts, State, gpu_hours, held_jobs

BREAKER_JOBS, BREAKER_TOPOLOGIES = 3, 2
"""The breaker holds a class of jobs when so many of them, of so many topologies, failed with one signature."""

HELD_LAYERS = frozenset({"configuration", "image", "model", "checkout", "server", "benchmark", "results"})
"""Layers whose failures depend on image and model. A node that failed is excluded instead."""


NOT_YET = "its canary has not passed yet"


@dataclass(frozen=True)
class Start:
    """An attempt that may begin: of which concurrencies of the job, and without which nodes."""

    job: Job
    concurrencies: tuple[int, ...]
    why: str
    exclude: tuple[str, ...] = ()


class Decisions:
    """What a driver decides. ``nodes`` is how many nodes each runner has, ``limits`` are those of the runners' files,
    where they are known."""

    def __init__(self, state: State, nodes: Mapping[str, int | None] = {}, limits: Mapping[str, Limits] = {}) -> None:
        self.state = state
        self._nodes, self._limits = nodes, limits
        self.ok: dict[str, set[int]] = defaultdict(set)
        self.waiting: dict[str, float] = {}
        """Jobs that lack a result and have no attempt under way, in order, with the time (of the driver's clock) from
        which one may begin."""
        self.failures: list[Ended] = []
        """Ends of failed jobs that are not retried."""
        self._again: dict[str, str] = {}
        """By job with an earlier attempt: why there may be another one."""
        self._canaries: dict[str, str] = {}
        self._guards: dict[str, str] = {}
        """By runner and image, while they wait for a canary: why their other jobs are not started."""

    def begin(
        self, attempts: Mapping[str, list[tuple[Attempt, Facts]]], now: float, reused: Mapping[str, set[int]] = {}
    ) -> list[Event]:
        """Take over the attempts of earlier drivers, by job; returns the events to write. The driver itself continues
        attempts that are not over. ``reused`` are concurrencies with a result elsewhere."""
        events: list[Event] = []
        state = self.state
        for key, attempts_of_job in attempts.items():
            for _, facts in attempts_of_job:
                self.ok[key] |= facts.ok
        for key, concurrencies in reused.items():
            self.ok[key] |= concurrencies
        self._canaries = canaries(list(self.state.jobs.values()), self.state.policy.canary)
        for key, guarded in self._canaries.items():
            if not self.ok[key]:
                self._guards[guarded] = NOT_YET
        for job in ordered(list(state.jobs.values()), state.policy.order):
            attempts_of_job = attempts.get(job.key, [])
            if any(attempt.open for attempt, _ in attempts_of_job) or not self._missing_concurrencies(job):
                continue
            last_facts = attempts_of_job[-1][1] if attempts_of_job else None
            if last_facts is not None and last_facts.phase == "unknown":
                continue
            granted = state.granted.get(job.key)
            if last_facts is None or last_facts.phase == "none":
                self.waiting[job.key] = now
            elif granted is not None:
                self._again[job.key] = granted.kind
                self.waiting[job.key] = now + granted.wait
            elif last_facts.state in ("succeeded", "cancelled") or last_facts.ok:
                self._again[job.key] = "missing"
                self.waiting[job.key] = now
            elif state.began is not None and state.began.retry_failed:
                self._again[job.key] = "failed"
                self.waiting[job.key] = now
            elif (retry := self._allowed_retry(attempts_of_job[-1][0], last_facts)) is not None:
                events += self._retry(attempts_of_job[-1][0], last_facts, retry, now)
        for key, guarded in self._canaries.items():
            attempts_of_job = attempts.get(key, [])
            if not self.ok[key] and key not in self.waiting and attempts_of_job and not attempts_of_job[-1][0].open:
                self._guards[guarded] = (
                    f"canary failed: {signature(attempts_of_job[-1][1].layer, attempts_of_job[-1][1].text)}"
                )
        first = [key for key in self._canaries if key in self.waiting and not self.ok[key]]
        self.waiting = {**{key: self.waiting[key] for key in first}, **self.waiting}
        return events

    def add(self, jobs: list[Job], now: float) -> None:
        """Take jobs whose points were appended."""
        for job in jobs:
            if self._missing_concurrencies(job):
                self.waiting[job.key] = now

    def _missing_concurrencies(self, job: Job) -> list[int]:
        return [c for c in job.concurrencies if c not in self.ok[job.key]]

    def next(self, now: float) -> Start | None:
        """The next attempt that may begin."""
        if self.state.ending or self.fail_fast_reason:
            return None
        for key, due in self.waiting.items():
            job = self.state.jobs[key]
            if due <= now and not self.blocking_reason(job):
                return self._start(job)
        return None

    def _start(self, job: Job) -> Start:
        lacks, granted = tuple(self._missing_concurrencies(job)), self.state.granted.get(job.key)
        reason = self._again.get(job.key, "first")
        if job.key in self._canaries and not self.ok[job.key]:
            lacks = (min(lacks),)
            reason = "canary" if reason == "first" else reason
        excluded = [node for node, event in self.state.excluded.items() if event.runner == job.runner]
        exclude = tuple(dict.fromkeys((*excluded, *(granted.avoid if granted is not None else ()))))
        return Start(job, lacks, reason, exclude)

    def started(self, key: str) -> None:
        """An attempt of the job has begun."""
        del self.waiting[key]

    def blocking_reason(self, job: Job) -> str:
        """Why no attempt of this job may begin, apart from its waiting time and room; "" when one may."""
        state = self.state
        if paused := state.pause_state(job):
            return {"pause": "paused", "drain": "drained"}[paused]
        if (hold := state.breaker(job)) is not None:
            return f"breaker: {hold.signature}"
        guarded = self._guards.get(guard(job), "")
        if guarded and (job.key not in self._canaries or guarded != NOT_YET):
            return guarded
        used_here, limits = state.used.get(job.runner, 0.0), self._limits.get(job.runner, Limits())
        in_all = state.spent + state.reserved, state.policy.max_gpu_hours, ""
        for used, budget, place in (in_all, (used_here, limits.max_gpu_hours, f" on {job.runner}")):
            if budget is not None and used + (job.gpu_hours or 0.0) > budget:
                return f"budget: {used:.1f} of {budget:g} GPU-hours{place} are spent or reserved"
        return ""

    @property
    def fail_fast_reason(self) -> str:
        """Why no further attempt begins after failures; "" while fail fast allows more."""
        return f"fail fast: {self._counted[-1].signature}" if self._counted and self.reaches_fail_fast(0) else ""

    def reaches_fail_fast(self, failures: int) -> bool:
        """Whether no attempt begins any more after ``failures`` further ones, assuming that their layer counts."""
        policy = self.state.policy.fail_fast
        return policy is not None and len(self._counted) + failures >= (int(policy) if policy.isdigit() else 1)

    @property
    def _counted(self) -> list[Ended]:
        """The failures that the policy's fail_fast (a number, or a layer) counts."""
        policy = self.state.policy.fail_fast or ""
        return [failure for failure in self.failures if policy.isdigit() or failure.layer == policy]

    def due(self, now: float) -> bool:
        """Whether an attempt waits only for its time, or for somebody to unpause the sweep."""
        if self.state.ending or self.fail_fast_reason:
            return False
        jobs = [(self.state.jobs[key], due) for key, due in self.waiting.items()]
        return any(self.blocking_reason(job) in (("",) if due > now else ()) + ("paused",) for job, due in jobs)

    def left(self) -> list[Event]:
        """The events for jobs that this driver does not start, with the reason."""
        skipped: list[Event] = []
        for key in self.waiting:
            reason = self.fail_fast_reason or self.blocking_reason(self.state.jobs[key]) or "the driver left"
            skipped.append(Skipped(time=0.0, job=key, why=reason))
        return skipped

    def after(self, attempt: Attempt, facts: Facts, now: float) -> list[Event]:
        """The events that follow from the end of an attempt, to be written before any effect."""
        job = self.state.jobs[attempt.event.job]
        concurrencies = attempt.event.concurrencies
        self.ok[job.key] |= facts.ok
        lacking = [c for c in concurrencies if c not in self.ok[job.key]]
        if lacking and facts.state == "succeeded":  # the run is good, but its results do not count for this sweep
            text = next((facts.bad[c] for c in lacking if c in facts.bad), "it has no result of them")
            facts = replace(facts, layer="results", text=text)
        cause = signature(facts.layer, facts.text) if lacking else ""
        ended = Ended(
            time=0.0,
            job=job.key,
            run=attempt.run,
            state=facts.state,
            ok=tuple(sorted(facts.ok)),
            layer=facts.layer,
            text=facts.text[:500],
            signature=cause,
            gpu_hours=round(gpu_hours(job, facts), 4),
            nodes=facts.nodes,
        )
        if not lacking:
            self._canary_passed(job)
            if self._missing_concurrencies(job):  # a canary measured one concurrency; the others follow
                self._again.pop(job.key, None)
                self.waiting[job.key] = now
            return [ended]
        if facts.state == "cancelled":
            return [ended]
        if (retry := self._allowed_retry(attempt, facts)) is not None and self.state.retries_left > 0:
            return [ended, *self._retry(attempt, facts, retry, now)]
        self.failures.append(ended)
        if job.key in self._canaries and not self.ok[job.key]:
            self._guards[guard(job)] = f"canary failed: {cause}"
        else:
            self._canary_passed(job)
        return [ended, *self._breaker(job, ended)]

    def _canary_passed(self, job: Job) -> None:
        if (guarded := self._canaries.get(job.key)) is not None:
            self._guards.pop(guarded, None)

    def _allowed_retry(self, attempt: Attempt, facts: Facts) -> AllowedRetry | None:
        key = attempt.event.job
        failure_class = class_of(facts)
        before = self.state.retry_counts[key, failure_class.name] if failure_class is not None else 0
        retry = allowed_retry(facts, before, self.state.policy)
        canary = key in self._canaries and not self.ok[key] and facts.layer in ("node", "scheduler")
        if retry is None and canary and not self.state.retry_counts[key, "canary"]:
            return AllowedRetry("canary", 0.0, (named_node(facts),) if named_node(facts) else ())
        return retry

    def _retry(self, attempt: Attempt, facts: Facts, retry: AllowedRetry, now: float) -> list[Event]:
        key, events, avoid = attempt.event.job, list[Event](), retry.avoid
        runner = self.state.jobs[key].runner
        if retry.excluded:
            used = sum(event.runner == runner for event in self.state.excluded.values())
            if used < max(2, (self._nodes.get(runner) or 0) // 10):
                reason = f"{facts.text[:200]} (job {facts.job})"
                events.append(Excluded(time=0.0, node=retry.excluded, runner=runner, run=attempt.run, reason=reason))
            else:
                avoid = (*avoid, retry.excluded)
        cause = signature(facts.layer, facts.text)
        events.append(
            Retried(time=0.0, job=key, run=attempt.run, kind=retry.kind, signature=cause, wait=retry.wait, avoid=avoid)
        )
        self._again[key] = retry.kind
        self.waiting = {key: now + retry.wait, **self.waiting}
        return events

    def _breaker(self, job: Job, ended: Ended) -> list[Event]:
        """The event that holds jobs of one class, once enough of them failed alike."""
        image, model = job.benchmark.image, job.benchmark.model
        hold = Held(time=0.0, runner=job.runner, image=image, model=model, signature=ended.signature, runs=())
        alike = [(self.state.jobs[f.job], f.run) for f in self.failures if f.signature == ended.signature]
        alike = [(other, run) for other, run in alike if held_jobs(hold, other)]
        topologies = {topology_of(other) for other, _ in alike}
        many = len(alike) >= BREAKER_JOBS and len(topologies) >= BREAKER_TOPOLOGIES
        if ended.layer not in HELD_LAYERS or not many or self.state.breaker(job) is not None:
            return []
        return [structs.replace(hold, runs=tuple(run for _, run in alike))]
