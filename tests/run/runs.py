"""Runs on disk, for tests of what is done with them: a record and a plan, and a scheduler that tests script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.core.shipped import shipped
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.project import plan_benchmark
from launcher.run.kind import JobKind, Run, Services
from launcher.run.record import RunRecord
from launcher.runner.fleet import Fleet
from launcher.slurm.client import JobKey, JobState, Phase
from launcher.srtctl.kind import SrtctlKind
from launcher.srtctl.locate import RecipeFinder
from tests.benchmarks import a_benchmark

DONE = JobState(Phase.TERMINAL, "COMPLETED", exit_code=(0, 0))
RUNNING = JobState(Phase.ALIVE, "RUNNING")
HELD = JobState(Phase.ALIVE, "PENDING", reason="JobHeldUser")
CANCELLED = JobState(Phase.TERMINAL, "CANCELLED", exit_code=(0, 15), nodes="node01")


class NoScheduler:
    """A scheduler that must not be asked."""

    name = "nobody"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class ScriptedScheduler:
    """A scheduler whose jobs stand as ``states`` says, by id, or else are DONE. It remembers what it was asked."""

    name = "scripted"

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}
        self.polls: list[int] = []
        self.cancelled: list[str] = []
        self.released: list[str] = []
        self.jobs: list[JobKey] = []
        """What `find` finds."""

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.polls.append(len(jobs))
        return {job: self.states.get(job.id, DONE) for job in jobs}

    def find(self, token: str) -> list[JobKey]:
        return list(self.jobs)

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        self.cancelled += [job.id for job in jobs]
        self.states.update({job.id: CANCELLED for job in jobs})

    def release(self, job: JobKey) -> None:
        self.released.append(job.id)
        self.states[job.id] = DONE

    def describe(self, job: JobKey) -> dict[str, str]:
        return {}


def plan_on(runner: str, root: Path, *, run_key: str = "r1", **changes: object) -> Plan:
    """The plan of a benchmark on a shipped runner."""
    context = Context(
        workspace=str(root), runner_name=f"{runner}_0", run_key=run_key, today="20260101", state=str(root)
    )
    return plan_benchmark(a_benchmark(**changes), Fleet([shipped("runners")]).get(runner), RecipeFinder(), context)


def services(scheduler: Any = None, environ: Mapping[str, str] | None = None, **changes: Any) -> Services:
    """Services that meet nothing real unless ``changes`` say so."""
    return Services(scheduler or NoScheduler(), environ or {}, **changes)


def srtctl_kind() -> JobKind:
    """The kind of jobs that srtctl submits, for runs that are planned already."""

    def never(*arguments: Any) -> Plan:
        raise AssertionError("planned again")

    return SrtctlKind(never, never)


def a_run(root: Path, plan: Plan | None = None, given: Services | None = None, kind: JobKind | None = None) -> Run:
    """A run with a new record below ``root``/runs."""
    plan = plan or plan_on("local", root)
    record = RunRecord.create(root / "runs", plan)
    return Run(record, plan, kind or srtctl_kind(), given or services())


def events(record: RunRecord) -> list[str]:
    """What was told of a run."""
    return [str(event["text"]) for event in record.events()]
