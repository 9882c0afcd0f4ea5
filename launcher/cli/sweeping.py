"""`launcher sweep plan`, `start` and `resume`: many benchmarks, with an id and a ledger (`launcher.sweep`)."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from launcher import __version__
from launcher.benchmark.benchmark import Benchmark
from launcher.cli.command import Command, CommandRewriter, Log, log_to_stderr, refusal_lines
from launcher.cli.common import confirm_cost, for_each_plan, open_project, show_elapsed
from launcher.cli.streaming import StreamingCommand, sweep_line_types
from launcher.cli.sweep_driving import detach, drive, summary
from launcher.cli.sweep_status import SweepWatcher, ledger_named
from launcher.core import lines
from launcher.core.errors import ConfigError, ErrorInfo
from launcher.core.lines import Terminal, count_of
from launcher.core.process import run as run_program
from launcher.core.terminal import one_line, print_line
from launcher.plan.plan import Plan
from launcher.plan.refusing import require_acceptable
from launcher.project import Project
from launcher.sweep import ledger as ledgers
from launcher.sweep.attempts import Records, earlier_runs
from launcher.sweep.estimate import Estimate, estimates, expected
from launcher.sweep.ledger import Ledger
from launcher.sweep.making import image_digest
from launcher.sweep.points import canaries, differences, identity, job_of, ordered, points_in
from launcher.sweep.schema import Job, Policy, Reused, Sweep
from launcher.sweep.state import State


@partial(StreamingCommand, lines=sweep_line_types)
def start(arguments: argparse.Namespace) -> int:
    """Create a sweep of all benchmarks that are selected, and drive it; those that cannot take part are listed.

    The exit code is 0 only when every point is ok, 7 when points are left, else that of the first that failed.
    """
    if arguments.run_id:
        raise ConfigError("a sweep has many runs", where="--run-id", hint="launcher run --run-id ID; --name names it")
    project, policy = open_project(arguments, look=True), policy_from_flags(arguments)
    with show_elapsed("planning", arguments):
        jobs, refused, code = _accepted_jobs(arguments, project, policy)
    if not jobs:
        return code
    show_texts = not (arguments.json or arguments.quiet)
    if show_texts:
        for text in cost_lines(jobs):
            print_line(text)
    runners = dict.fromkeys(job.runner for job in jobs)
    costs = {name: sum(job.gpu_hours or 0.0 for job in jobs if job.runner == name) for name in runners}
    confirm_cost(project, costs, yes=arguments.yes)
    now = time.time()
    name = arguments.name or f"{time.strftime('sweep-%m%d-%H%M%S', time.localtime(now))}-{os.urandom(2).hex()}"
    sweep = Sweep(
        id=name,
        created=now,
        launcher=__version__,
        selection=tuple(sys.argv[1:]),
        policy=policy,
        jobs=tuple(jobs),
        left_out=tuple(str(error) for error in refused),
    )
    reused = results_of_other_sweeps(project, jobs, arguments.reuse) if arguments.reuse else {}
    events = [
        Reused(time=now, job=key, run=done.run, concurrencies=(concurrency,))
        for key, known in reused.items()
        for concurrency, done in known.items()
    ]
    ledger = Ledger.create(project.sweeps, sweep, events)
    if show_texts:
        print_line(f"sweep {name}: {points_in(jobs)}")
    if arguments.detach:
        return detach(project, ledger, arguments) or code
    return drive(project, ledger, arguments, policy) or code


@partial(StreamingCommand, lines=sweep_line_types)
def resume(arguments: argparse.Namespace) -> int:
    """Continue a sweep: its living jobs first, then points without a valid result."""
    project = open_project(arguments, look=True)
    ledger = ledger_named(project.sweeps, arguments.name)
    sweep = SweepWatcher(project.runs, ledger).overview()
    out = log_to_stderr if arguments.json else print_line
    if arguments.explain:
        for point in sweep.states:
            out(one_line(f"{point.job} c{point.concurrency}: {point.state}: {point.reason}"))
    if sweep.points.keys() <= {"ok"}:
        for line in summary(sweep):
            out(CommandRewriter(arguments)(line))
        return 0
    if arguments.detach:
        return detach(project, ledger, arguments)
    policy = State(ledger.sweep, ledger.events()).policy
    return drive(project, ledger, arguments, policy)


def _accepted_jobs(
    arguments: argparse.Namespace, project: Project, policy: Policy
) -> tuple[list[Job], list[ConfigError], int]:
    """The jobs of the selection, within the limits of the sweep; the errors of those that cannot take part, which are
    printed, and their exit code."""
    jobs, refused = selected_jobs(arguments, project, policy)
    for line in refusal_lines([ErrorInfo.from_error(error) for error in refused], len(jobs), "that were selected"):
        print_line(line, file=sys.stderr)
    jobs, elsewhere = jobs_of_one_scheduler(project, jobs)
    for error in elsewhere:
        print(f"launcher: {error}", file=sys.stderr)
    if jobs:
        require_startable(project, jobs, policy)
    return jobs, refused + elsewhere, ConfigError.exit_code if refused or not jobs else 0


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it would start: its jobs in their order (``document``), and texts about their costs, when they may
    be over, and which points are done already."""

    code: int
    document: SweepPlanDocument
    texts: tuple[str, ...] = ()


def show_plan(value: SweepPlan, terminal: Terminal) -> Iterator[str]:
    columns = ("job", "runner", "topology", "nodes", "limit h", "GPU-h", "conc", "done already")
    if value.document.jobs:
        yield from lines.table(columns, [_row(job) for job in value.document.jobs], terminal.width)
    for text in value.texts:
        yield from lines.wrap_words(text, terminal.width, "  ")


class Done(msgspec.Struct, frozen=True):
    """The run that has a valid result of a point already, and why that result counts."""

    run: str
    why: str


class PlannedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job of a sweep (`Job`), what one attempt costs at most, how long it may take, and its points that are done
    already, by concurrency."""

    key: str
    runner: str
    kind: str
    benchmark: Benchmark
    fingerprint: dict[str, str]
    nodes: int | None
    gpus: int | None
    seconds: float | None
    narrow: bool
    gpu_hours: float | None
    canary: bool
    expected: Estimate | None
    done: dict[str, Done]


class SweepPlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `sweep plan` prints: the jobs in their order, and why others are left out."""

    schema: Literal[1] = 1
    jobs: list[PlannedJob]
    left_out: list[str]


@partial(
    Command,
    SweepPlan,
    show=show_plan,
    exit_code=lambda value: value.code,
    to_json=lambda value: value.document,
    json_type=SweepPlanDocument,
)
def plan(arguments: argparse.Namespace, log: Log) -> SweepPlan:
    """What `start` with the same flags would do. Nothing is created or started."""
    project, policy = open_project(arguments, look=True), policy_from_flags(arguments)
    jobs, refused, code = _accepted_jobs(arguments, project, policy)
    left_out = [str(error) for error in refused]
    if not jobs:
        return SweepPlan(code, SweepPlanDocument(jobs=[], left_out=left_out))
    done = results_of_other_sweeps(project, jobs)
    canary = canaries(jobs, policy.canary)
    guesses = estimates(jobs, earlier_runs(project.runs))
    planned = [
        PlannedJob(
            **{name: getattr(job, name) for name in (*Job.__struct_fields__, "gpu_hours")},
            canary=job.key in canary,
            expected=guesses.get(job.key),
            done={str(concurrency): known for concurrency, known in sorted(done.get(job.key, {}).items())},
        )
        for job in ordered(jobs, policy.order)
    ]
    count = count_of(sum(map(len, done.values())), "point is", "points are")
    texts = [f"{points_in(jobs)}, of which {count} done already", *cost_lines(jobs)]
    texts.append(expected(jobs, guesses, policy.max_jobs))
    if done:
        names = dict.fromkeys(known.why.rpartition(" ")[2] for points in done.values() for known in points.values())
        texts.append(f"--reuse {' '.join(names)} takes them over")
    return SweepPlan(code, SweepPlanDocument(jobs=planned, left_out=left_out), tuple(texts))


def _row(job: PlannedJob) -> tuple[str, ...]:
    hours = f"{job.seconds / 3600:.1f}" if job.seconds else "?"
    cost = f"{job.gpu_hours:.1f}" if job.gpu_hours is not None else "?"
    done = "; ".join(f"c{concurrency}: {known.why}" for concurrency, known in job.done.items())
    concurrencies = " ".join(map(str, job.benchmark.concurrencies))
    return job.key, job.runner, job.benchmark.topology, str(job.nodes or "?"), hours, cost, concurrencies, done


def results_of_other_sweeps(
    project: Project, jobs: list[Job], names: Sequence[str] | None = None
) -> dict[str, dict[int, Done]]:
    """Points for which other sweeps (default: all) have a valid result with the same fingerprint: job key →
    concurrency → that run. Raises ConfigError for a name that no sweep has."""
    sweeps = project.sweeps
    done: dict[str, dict[int, Done]] = {}
    mine: dict[str, list[Job]] = {}
    for job in jobs:
        mine.setdefault(identity(job.benchmark, job.runner), []).append(job)
    for name in ledgers.names(sweeps) if names is None else names:
        try:
            other = State((ledger := Ledger.load(sweeps, name)).sweep, ledger.events())
        except ConfigError:
            if names is not None:
                raise
            continue
        facts = Records(project.runs, other).facts
        for theirs in other.jobs.values():
            alike = mine.get(identity(theirs.benchmark, theirs.runner), [])
            if not alike or differences(alike[-1].fingerprint, theirs.fingerprint):
                continue
            for run in dict.fromkeys(
                [a.run for a in other.counted_attempts(theirs.key)] + [*other.reused[theirs.key].values()]
            ):
                for concurrency in facts(run).ok:
                    known = Done(run, f"ok, same fingerprint, in {name}")
                    for job in alike:
                        if concurrency in job.concurrencies:
                            done.setdefault(job.key, {})[concurrency] = known
    return done


def policy_from_flags(arguments: argparse.Namespace) -> Policy:
    """The policy of a sweep by the flags. Raises ConfigError."""
    fail_fast = arguments.fail_fast
    if fail_fast is not None and not (fail_fast.isdigit() and int(fail_fast) > 0) and not fail_fast.isalpha():
        raise ConfigError(f"{fail_fast!r} is neither a number of failures nor a layer", where="--fail-fast")
    try:
        notify = tuple(shlex.split(arguments.notify or ""))
    except ValueError as error:
        raise ConfigError(f"it cannot be split into words: {error}", where="--notify") from None
    given = {name: value for name, value in vars(arguments).items() if name in Policy.__struct_fields__}
    return Policy(**{**given, "accept": tuple(arguments.accept), "notify": notify})


def selected_jobs(
    arguments: argparse.Namespace, project: Project, policy: Policy
) -> tuple[list[Job], list[ConfigError]]:
    """A job for each selected benchmark that can be planned, and the errors of the others."""
    refused: list[ConfigError] = []
    keys: set[str] = set()
    digests: dict[tuple[str, str], str] = {}

    def job_of_plan(plan: Plan, location: object) -> Job:
        require_acceptable(plan, policy.accept)
        image = (plan.runner, plan.images[0].squash if plan.images else "")
        if image not in digests:  # jobs share images, and each is looked up in a file
            digests[image] = image_digest(plan)
        job = job_of(plan, project.kind(plan.kind).fingerprint(plan), digests[image])
        if job.key in keys:
            raise ConfigError("it is selected twice", where=str(location))
        keys.add(job.key)
        return job

    return for_each_plan(arguments, project, refused, job_of_plan, "sweep"), refused


def jobs_of_one_scheduler(project: Project, jobs: list[Job]) -> tuple[list[Job], list[ConfigError]]:
    """The jobs that the scheduler of the first job can run, and an error for each other runner."""
    schedulers = {name: project.fleet.get(name).runner.scheduler for name in dict.fromkeys(job.runner for job in jobs)}
    kind = next((scheduler.kind for scheduler in schedulers.values()), "")
    reasons = {name: f"its jobs need the scheduler {s.kind}" for name, s in schedulers.items() if s.kind != kind}
    if kind == "slurm":
        answer = run_program(["sinfo", "-h", "-a", "-o", "%R"], timeout=30)
        partitions = set(answer.stdout.split()) if answer.ok else set()
        for name, scheduler in schedulers.items():
            if partitions and scheduler.partition and scheduler.partition not in partitions:
                reasons[name] = f"this Slurm controller has no partition {scheduler.partition}"
    left_out = []
    for name, reason in reasons.items():
        message = f"{count_of(sum(job.runner == name for job in jobs), 'job is', 'jobs are')} left out: {reason}"
        hint = "a sweep of their own, where they are served"
        left_out.append(ConfigError(message, where=f"runner {name}", hint=hint))
    return [job for job in jobs if job.runner not in reasons], left_out


def require_startable(project: Project, jobs: list[Job], policy: Policy) -> None:
    """Raise ConfigError for a job that could never start within the limits of the sweep and of its runner's file."""
    for job in jobs:
        limits = project.fleet.get(job.runner).runner.limits
        suffix = f"of runner {job.runner}"
        for where, maximum in (("--max-nodes", policy.max_nodes), (f"limits.max-nodes {suffix}", limits.max_nodes)):
            if maximum is not None and (job.nodes or 1) > maximum:
                message = f"{job.key} needs {job.nodes} nodes, and {where} is {maximum}: it could never start"
                raise ConfigError(message, where=where, hint="a larger one, or leave the job out by --topology")
        for where, budget in (
            ("--max-gpu-hours", policy.max_gpu_hours),
            (f"limits.max-gpu-hours {suffix}", limits.max_gpu_hours),
        ):
            if budget is not None and (cost := job.gpu_hours) is not None and cost > budget:
                message = f"{job.key} reserves {cost:.1f} GPU-hours (GPUs × time limit), and {where} is {budget:g}"
                raise ConfigError(f"{message}: it could never start", where=where)
            if budget is not None and job.gpu_hours is None:
                message = f"{job.key}: how many GPUs it holds, or for how long at most, is not known: it has no budget"
                raise ConfigError(message, where=where, hint="its recipe is not at hand: --srt-slurm DIR")
    if policy.canary not in ("auto", "off") and policy.canary not in {job.key for job in jobs}:
        hint = f"auto, off, or one of: {', '.join(job.key for job in jobs[:12])}"
        raise ConfigError(f"no job is called {policy.canary}", where="--canary", hint=hint)


def cost_lines(jobs: list[Job]) -> Iterator[str]:
    """The most that jobs can cost, a line for each runner."""
    for runner in dict.fromkeys(job.runner for job in jobs):
        mine = [job for job in jobs if job.runner == runner]
        hours = [job.gpu_hours for job in mine if job.gpu_hours is not None]
        unknown = f", and {count_of(len(mine) - len(hours), 'job')} of unknown size" if len(hours) < len(mine) else ""
        node_hours = sum((job.nodes or 0) * (job.seconds or 0.0) for job in mine) / 3600
        cost = f"{node_hours:.1f} node-hours (nodes × time limit) = {sum(hours):.1f} GPU-hours{unknown}"
        yield f"{runner}: {count_of(len(mine), 'job')}, at most {cost}"
