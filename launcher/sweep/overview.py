"""A sweep at one moment, as one value: what `status`, the live view, the plain lines and the JSON all show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from launcher.sweep.schema import Event, Job
from launcher.sweep.state import NONE, Facts, PointState, State, exit_code, gpu_hours, point_states

RANK = ("running", "unknown", "queued", "preparing", "failed", "missing", "cancelled", "not started", "planned", "ok")
"""Which state of its points a job shows: the first of these that one of them has."""

Progress = Callable[[str], tuple[int | None, str]]
"""What a running job's log says: the concurrency that is measured, and the last line about throughput."""


@dataclass(frozen=True)
class JobLine:
    """One job: the state that its points are in together, why, and its last attempt. ``since`` is when that began to
    wait or to run, in seconds since the epoch; ``ok`` is how many of its points have a result. ``now`` is the
    concurrency that is being measured and ``throughput`` the last line about it, by the job's log."""

    key: str
    runner: str
    topology: str
    measures: str
    concurrencies: tuple[int, ...]
    state: str
    reason: str
    ok: int
    run: str = ""
    job: str = ""
    nodes: str = ""
    attempts: int = 0
    since: float | None = None
    log: str = ""
    now: int | None = None
    throughput: str = ""


@dataclass(frozen=True)
class Overview:
    """All of it. ``driver`` says who drives the sweep, "" for nobody; ``asked`` what people asked for; ``rate`` is in
    points an hour, None before the second result; ``end`` when all will be measured at that rate; ``left`` is why the
    last driver left."""

    id: str
    driver: str
    asked: str
    points: dict[str, int]
    runners: dict[str, dict[str, int]]
    jobs: tuple[JobLine, ...]
    spent: float
    reserved: float
    budget: float | None
    rate: float | None
    end: float | None
    excluded: tuple[str, ...]
    held: tuple[str, ...]
    notes: tuple[str, ...] = ()
    left: str = ""
    exit_code: int = 0
    states: tuple[PointState, ...] = field(default=(), repr=False)


def overview(
    state: State,
    facts: Callable[[str], Facts],
    now: float,
    *,
    driver: str = "",
    notes: Sequence[str] = (),
    progress: Progress = lambda log: (None, ""),
) -> Overview:
    """The sweep as it stands. ``facts`` gives what the record of a run says, ``progress`` what a running job's log
    says of the concurrency that it measures; each is asked once for a run."""
    read: dict[str, Facts] = {}

    def once(run: str) -> Facts:
        if run not in read:
            read[run] = facts(run)
        return read[run]

    points = point_states(state, once)
    by_job: dict[str, list[PointState]] = {}
    for point in points:
        by_job.setdefault(point.job, []).append(point)
    lines = tuple(_line(job, by_job.get(key, []), once, state, progress) for key, job in state.jobs.items())
    runners: dict[str, Counter[str]] = {}
    for line in lines:
        runners.setdefault(line.runner, Counter())[line.state] += 1
    unsettled = sum(
        gpu_hours(state.jobs[attempt.event.job], once(run))
        for run, attempt in state.by_run.items()
        if attempt.open and run in read
    )
    rate, end = _rate(state, points, once, now)
    requested = ", ".join(f"{verb} {runner}".strip() for runner, verb in state.requested.items())
    return Overview(
        id=state.sweep.id,
        driver=driver,
        asked=state.ending or requested,
        points=dict(Counter(point.state for point in points)),
        runners={runner: dict(counts) for runner, counts in runners.items()},
        jobs=lines,
        spent=round(state.spent + unsettled, 2),
        reserved=round(max(0.0, state.reserved - unsettled), 2),
        budget=state.policy.max_gpu_hours,
        rate=rate,
        end=end,
        excluded=tuple(f"{node.node} of {node.runner}: {node.reason}" for node in state.excluded.values()),
        held=tuple(f"{hold.image} with {hold.model} on {hold.runner}: {hold.signature}" for hold in state.held),
        notes=tuple(notes),
        left=state.left.why if state.left is not None else "",
        exit_code=exit_code(points),
        states=tuple(points),
    )


def _line(
    job: Job,
    points: Sequence[PointState],
    facts: Callable[[str], Facts],
    state: State,
    progress: Progress,
) -> JobLine:
    by_state = {point.state: point for point in reversed(points)}
    shown = next((by_state[point_state] for point_state in RANK if point_state in by_state), None)
    attempts = state.counted_attempts(job.key)
    facts_of_last = facts(attempts[-1].run) if attempts else NONE
    since = facts_of_last.started if facts_of_last.word == "RUNNING" else facts_of_last.ended or facts_of_last.submitted
    point_state = shown.state if shown is not None else "planned"
    now, throughput = progress(facts_of_last.log) if point_state == "running" and facts_of_last.log else (None, "")
    return JobLine(
        key=job.key,
        runner=job.runner,
        topology=job.benchmark.topology,
        measures=job.benchmark.measures,
        concurrencies=job.concurrencies,
        state=point_state,
        reason=shown.reason if shown is not None and shown.state != "ok" else "",
        ok=sum(point.state == "ok" for point in points),
        run=attempts[-1].run if attempts else "",
        job=facts_of_last.job,
        nodes=facts_of_last.nodes,
        attempts=len(attempts),
        since=since,
        log=facts_of_last.log,
        now=now,
        throughput=throughput,
    )


def _rate(
    state: State, points: Sequence[PointState], facts: Callable[[str], Facts], now: float
) -> tuple[float | None, float | None]:
    """Points an hour since this driver began, and when the others will be there at that rate."""
    began = state.began.time if state.began is not None else now
    new = sum(point.state == "ok" and not point.reused and (facts(point.run).ended or 0.0) >= began for point in points)
    unmeasured = sum(point.state != "ok" for point in points)
    if new < 2 or now <= began:
        return None, None
    rate = new * 3600 / (now - began)
    return round(rate, 2), now + unmeasured / rate * 3600


def age(since: float | None, now: float) -> str:
    """How long ago, in at most four characters."""
    if since is None:
        return ""
    minutes = max(0, int((now - since) / 60))
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h" if minutes < 6000 else f"{minutes // 1440}d"


def header_lines(sweep: Overview) -> list[str]:
    """What stands above the jobs: points, cost, runners and their queues."""
    total, ok = sum(sweep.points.values()), sweep.points.get("ok", 0)
    counts = "  ".join(f"{sweep.points[word]} {word}" for word in RANK if word != "ok" and word in sweep.points)
    budget = f" of {sweep.budget:g}" if sweep.budget is not None else ""
    rate = f"   {sweep.rate:.3g} points/h" if sweep.rate is not None and total > ok else ""
    end = f", all by {time.strftime('%a %H:%M', time.localtime(sweep.end))}" if sweep.end is not None and rate else ""
    queues = (
        " ".join([name, *(f"{counted[word]} {word}" for word in RANK[:4] if word in counted)])
        for name, counted in sweep.runners.items()
    )
    return [
        f"{sweep.id}  {ok}/{total} ok  {counts}{f'  [{sweep.asked}]' if sweep.asked else ''}".rstrip(),
        f"GPU-hours {sweep.spent:.1f} spent, {sweep.reserved:.1f} reserved{budget}{rate}{end}",
        " | ".join(queues),
    ]


def event_text(event: Event) -> str:
    """An event as a line for people."""
    text = msgspec.to_builtins(event)
    match text["event"]:
        case "end":
            cost = f", {text['gpu_hours']:.1f} GPU-hours" if text.get("gpu_hours") else ""
            if not text.get("signature"):
                return f"{text['job']}: ok ({', '.join(map(str, text.get('ok', ())))}){cost}"
            return f"{text['job']}: {text['state']}: {text.get('layer', '')}: {text.get('text', '')}{cost}"
        case "retry":
            return f"{text['job']}: tried again in {text.get('wait', 0):.0f} s ({text['kind']})"
        case "exclude":
            return f"node {text['node']} of {text['runner']} is used no more: {text['reason']}"
        case "hold":
            group = f"{text['image']} with {text['model']} on {text['runner']}"
            return f"{group} is held: {len(text['runs'])} jobs failed alike: {text['signature']}"
    return f"{text['event']}: {text}"
