"""A run whose job Slurm has lost, and which says of itself that it ended: its results are there, and it is not good."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.run.finish import finish
from launcher.run.kind import Run
from launcher.run.record import RunRecord
from launcher.slurm.client import LOST, JobState, Phase
from launcher.slurm.local import LocalScheduler
from tests.run.driving import LauncherUser
from tests.run.runs import services, srtctl_kind


@pytest.fixture
def run(tmp_path: Path) -> Run:
    user = LauncherUser(tmp_path)
    user.run("--conc", "4")
    record = RunRecord.load(user.state / "runs", "r")
    return Run(record, record.plan, srtctl_kind(), services(LocalScheduler(user.state / "jobs"), dict(os.environ)))


def test_an_end_by_the_jobs_own_word(run: Run) -> None:
    job, log = run.record.job_key, run.record.log_path
    assert job is not None and log is not None
    state = run.kind.end_state_in_log(job, log)
    assert state is not None and (state.word, state.exit_code) == (LOST, (0, 0))
    outcome = finish(run, state)
    assert (outcome.state, outcome.exit_code) == ("failed", 6)
    assert [point.concurrency for point in outcome.points] == [4]
    assert outcome.verdict is not None and outcome.verdict.layer == "scheduler"
    assert "Slurm lost the job" in outcome.verdict.text and "exit code 0" in outcome.verdict.text
    assert run.record.fields.state == "failed" and run.record.fields.settled
    # What it says is no help where it says that it failed: then its logs tell why.
    outcome = finish(run, replace(state, exit_code=(3, 0), reason="…"))
    assert outcome.verdict is not None and outcome.verdict.layer == "benchmark"
    assert outcome.exit_code == 6
    # A step that failed takes nothing from a good end, and is told.
    good = JobState(Phase.TERMINAL, "COMPLETED", (0, 0), derived=(5, 0))
    outcome = finish(run, good)
    assert outcome.exit_code == 0 and outcome.verdict is not None
    assert "a step of it ended with exit code 5" in outcome.verdict.text
    warnings = [e["text"] for e in run.record.events() if e["kind"] == "warning"]
    assert "the job COMPLETED, but a step of it ended with exit code 5" in warnings
