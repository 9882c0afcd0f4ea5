"""Our hold on a job: when it is lifted, when it is not ours any more, and what the record says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.core.shipped import shipped
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.run.held_job import Hold
from launcher.run.record import RunRecord
from launcher.run.stages import holds
from launcher.runner import Fleet
from launcher.slurm.client import JobState, SchedulerUnreachable, unknown
from launcher.slurm.states import Phase
from launcher.srtctl.locate import RecipeFinder
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.resolve import plan_benchmark
from tests.benchmarks import a_benchmark
from tests.plans import with_job

HELD = JobState(Phase.ALIVE, "PENDING", reason="JobHeldUser")
WAITING = JobState(Phase.ALIVE, "PENDING", reason="Priority")
RUNNING = JobState(Phase.ALIVE, "RUNNING")
BY_ADMIN = JobState(Phase.ALIVE, "PENDING", reason="JobHeldAdmin")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    context = Context(workspace=str(tmp_path), runner_name="gb200-nv_0", run_key="r1", today="20260101")
    plan = plan_benchmark(a_benchmark(), Fleet([shipped("runners")]).get("gb200-nv"), RecipeFinder(), context)
    root, recipe = tmp_path / "tree", replace(SrtctlJob.of(plan).recipe, path="recipes/one.yaml", selector=None)
    (root / "recipes").mkdir(parents=True)
    (root / "recipes/one.yaml").write_text("name: one\n")
    return with_job(plan, recipe=recipe, srt_slurm=replace(SrtctlJob.of(plan).srt_slurm, root=str(root)))


@pytest.fixture
def record(tmp_path: Path, plan: Plan) -> RunRecord:
    record = RunRecord.create(tmp_path / "runs", plan)
    record.update(job={"id": "7", "submitted": 1.0, "output": str(tmp_path / "outputs/7"), "held": True})
    return record


def told(record: RunRecord) -> list[str]:
    return [e["text"] for e in record.events()]


def test_a_job_goes_on_with_what_srtctl_had_no_time_to_write(record: RunRecord, tmp_path: Path) -> None:
    hold = Hold(record)
    assert hold.may_end(HELD)
    assert (tmp_path / "outputs/7/logs").is_dir()
    assert (tmp_path / "outputs/7/config.yaml").read_text() == "name: one\n"
    (tmp_path / "outputs/7/config.yaml").write_text("srtctl's own")
    assert hold.may_end(HELD)
    assert (tmp_path / "outputs/7/config.yaml").read_text() == "srtctl's own"


def test_a_release_counts_once_slurm_shows_it(record: RunRecord) -> None:
    hold = Hold(record)
    assert hold.may_end(HELD)
    hold.ended(SchedulerUnreachable("away"))
    assert hold.may_end(HELD) and "is still held: away" in told(record)[-1]
    hold.ended()
    assert hold.may_end(HELD), "a controller that was killed has forgotten it"
    hold.ended()
    assert told(record)[-2:] == ["job 7 released", "job 7 released again"]
    assert not hold.may_end(WAITING) and not hold.ours
    assert not hold.may_end(HELD), "somebody else's hold"
    assert not Hold(RunRecord.load(record.directory.parent, "r1")).ours


@pytest.mark.parametrize("state", [RUNNING, BY_ADMIN])
def test_what_runs_or_an_administrator_holds_is_not_released(record: RunRecord, state: JobState) -> None:
    assert not Hold(record).may_end(state)
    assert not Hold(record).ours and "the hold is not ours" in told(record)[-1]


def test_a_job_that_waits_for_something_else_too_is_released(record: RunRecord) -> None:
    assert Hold(record).may_end(replace(HELD, reason="Dependency"))


@pytest.mark.parametrize("state", [unknown("silence"), JobState(Phase.TERMINAL, "CANCELLED")])
def test_without_a_living_job_nothing_changes(record: RunRecord, state: JobState) -> None:
    assert not Hold(record).may_end(state)
    assert Hold(record).ours


@pytest.mark.parametrize("job", [None, {"id": "7", "output": "/x"}])
def test_a_run_without_a_hold(tmp_path: Path, plan: Plan, job: dict[str, Any] | None) -> None:
    record = RunRecord.create(tmp_path / "runs", plan)
    record.update(job=job)
    assert not Hold(record).ours and not Hold(record).may_end(HELD)


def test_a_directory_that_cannot_be_made_whole_keeps_the_job_held(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    assert not Hold(record).may_end(HELD)
    assert Hold(record).ours and "not released yet" in told(record)[-1]


def test_which_plans_hold(plan: Plan) -> None:
    assert holds(plan)
    assert not holds(replace(plan, scheduler=replace(plan.scheduler, kind="local")))
    document = {"sbatch_directives": {"hold": ""}}
    assert not holds(with_job(plan, recipe=replace(SrtctlJob.of(plan).recipe, document=document)))
