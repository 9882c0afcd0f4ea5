"""Our hold on a job: when it is lifted, when it is not ours any more, and what the record says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from launcher.plan.plan import Plan
from launcher.run.kind import Run
from launcher.run.record import RecordedJob, RunRecord
from launcher.run.threads import record_release, should_release
from launcher.slurm.client import JobState, Phase, SchedulerUnreachable, unknown_state
from launcher.srtctl.planned import SrtctlJob
from tests.plans import with_job
from tests.run.runs import HELD, RUNNING, a_run, events, plan_on, srtctl_kind

WAITING = JobState(Phase.ALIVE, "PENDING", reason="Priority")
BY_ADMIN = JobState(Phase.ALIVE, "PENDING", reason="JobHeldAdmin")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = plan_on("gb200-nv", tmp_path)
    root, recipe = tmp_path / "tree", structs.replace(SrtctlJob.of(plan).recipe, path="recipes/one.yaml", selector=None)
    (root / "recipes").mkdir(parents=True)
    (root / "recipes/one.yaml").write_text("name: one\n")
    return with_job(plan, recipe=recipe, srt_slurm=structs.replace(SrtctlJob.of(plan).srt_slurm, root=str(root)))


@pytest.fixture
def run(tmp_path: Path, plan: Plan) -> Run:
    run = a_run(tmp_path, plan)
    run.record.update(job=RecordedJob("7", 1.0, str(tmp_path / "outputs/7"), str(tmp_path / "outputs/7/l"), held=True))
    return run


def is_ours(run: Run) -> bool:
    return run.record.job is not None and run.record.job.held


def test_a_job_goes_on_with_what_srtctl_had_no_time_to_write(run: Run, tmp_path: Path) -> None:
    assert should_release(run, HELD)
    assert (tmp_path / "outputs/7/logs").is_dir()
    assert (tmp_path / "outputs/7/config.yaml").read_text() == "name: one\n"
    (tmp_path / "outputs/7/config.yaml").write_text("srtctl's own")
    assert should_release(run, HELD)
    assert (tmp_path / "outputs/7/config.yaml").read_text() == "srtctl's own"


def test_a_release_counts_once_slurm_shows_it(run: Run) -> None:
    assert should_release(run, HELD)
    record_release(run, SchedulerUnreachable("away"))
    assert should_release(run, HELD) and "is still held: away" in events(run.record)[-1]
    record_release(run)
    assert should_release(run, HELD), "a controller that was killed has forgotten it"
    record_release(run)
    assert events(run.record)[-2:] == ["job 7 released", "job 7 released again"]
    assert not should_release(run, WAITING) and not is_ours(run)
    assert not should_release(run, HELD), "somebody else's hold"
    job = RunRecord.load(run.record.directory.parent, "r1").job
    assert job is not None and not job.held


@pytest.mark.parametrize("state", [RUNNING, BY_ADMIN])
def test_what_runs_or_an_administrator_holds_is_not_released(run: Run, state: JobState) -> None:
    assert not should_release(run, state)
    assert not is_ours(run) and "the hold is not ours" in events(run.record)[-1]


def test_a_job_that_waits_for_something_else_too_is_released(run: Run) -> None:
    assert should_release(run, replace(HELD, reason="Dependency"))


@pytest.mark.parametrize("state", [unknown_state("silence"), JobState(Phase.TERMINAL, "CANCELLED")])
def test_without_a_living_job_nothing_changes(run: Run, state: JobState) -> None:
    assert not should_release(run, state)
    assert is_ours(run)


@pytest.mark.parametrize("job", [None, RecordedJob("7", 1.0, "/x", "/x/l")])
def test_a_run_without_a_hold(run: Run, job: RecordedJob | None) -> None:
    run.record.update(job=job)
    assert not is_ours(run) and not should_release(run, HELD)


def test_a_directory_that_cannot_be_made_whole_keeps_the_job_held(run: Run, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    assert not should_release(run, HELD)
    assert is_ours(run) and "not released yet" in events(run.record)[-1]


def test_which_plans_hold(plan: Plan) -> None:
    kind = srtctl_kind()
    assert kind.submits_held(plan)
    assert not kind.submits_held(replace(plan, scheduler=replace(plan.scheduler, kind="local")))
    document = {"sbatch_directives": {"hold": ""}}
    assert not kind.submits_held(with_job(plan, recipe=structs.replace(SrtctlJob.of(plan).recipe, document=document)))


@pytest.mark.parametrize("reason", ["launch_failed_requeued_held", "(launch failed requeued held)"])
def test_a_job_that_no_node_could_start_is_tried_once_more(tmp_path: Path, reason: str) -> None:
    """By Slurm's own hold; a second one ends the run after a while, as all that waiting does not end."""

    def of(job_id: str, **more: bool) -> Run:
        run = a_run(tmp_path, plan_on("local", tmp_path, run_key=f"r{job_id}"))
        run.record.update(job=RecordedJob(job_id, 1.0, str(tmp_path), str(tmp_path / "log"), **more))
        return run

    held, run = replace(WAITING, reason=reason), of("1", released=True)
    assert should_release(run, held) and not should_release(run, held) and held.hopeless
    assert run.record.job is not None and run.record.job.tried_again
    assert any("tried once more" in text for text in events(run.record))
    assert not should_release(of("2", by_hand=True), held), "a person's job is a person's"
    for others in ("JobHeldUser", "JobHeldAdmin", "job_requeued_in_held_state"):
        assert not should_release(run, replace(WAITING, reason=others))
