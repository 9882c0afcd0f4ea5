"""Records that an earlier launcher (f41cbbb) wrote: good, failed, cancelled, and killed at each step.

They lie in ``records/`` beside this file, with neutral paths and host names.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.process import ProcessIdentity
from launcher.run.finish import end_early
from launcher.run.kind import Run
from launcher.run.listing import records
from launcher.run.orphans import end_run, find_orphans
from launcher.run.record import RunRecord
from launcher.slurm.client import JobKey
from launcher.srtctl.planned import SrtctlJob
from tests.run.runs import RUNNING, ScriptedScheduler, services, srtctl_kind

RECORDS = Path(__file__).with_name("records")
ENDED = ("cancelled", "failed", "succeeded")
KILLED = ("new", "images", "model", "workspace", "submit", "submitted", "running", "collect")
WITH_JOB = ("submitted", "running", "collect")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    shutil.copytree(RECORDS, tmp_path / "runs")
    return tmp_path / "runs"


def test_all_of_them_are_read(runs: Path) -> None:
    found = {record.id: record for record in records(runs)}
    assert found.keys() == {*ENDED, *(f"killed-{step}" for step in KILLED)}
    for record in found.values():
        plan = record.plan
        assert plan.kind == "srtctl" and SrtctlJob.of(plan).submit.argv[:2] == ("srtctl", "apply")
        assert record.fields.owner is not None and record.fields.owner.host == "login01"
        assert record.fields.settled is (record.id in ENDED)
    assert {record.id for record in find_orphans(runs)[1]} == {f"killed-{step}" for step in KILLED}, "another host's"


@pytest.mark.parametrize("name", ENDED)
def test_an_ended_run_says_how_it_ended(runs: Path, name: str) -> None:
    record = RunRecord.load(runs, name)
    job = record.job
    assert job is not None and job.over and not job.held
    assert job.log == f"{job.output}/logs/sweep_{job.id}.log", "records did not name the log"
    assert record.fields.state == name and record.fields.verdict is not None
    error = record.fields.error
    assert (error is None) is (name == "succeeded")
    if error is not None:
        assert error.layer == {"failed": "job", "cancelled": "cancelled"}[name]


@pytest.mark.parametrize("step", KILLED)
def test_a_killed_run_says_how_far_it_was(runs: Path, step: str) -> None:
    record = RunRecord.load(runs, f"killed-{step}")
    assert record.fields.submission_in_doubt is (step == "submit")
    assert (record.job is not None) is (step in WITH_JOB)
    if step in ("images", "model", "workspace", "submit", "collect"):
        assert record.step(step).state == "running"
    if step in ("model", "workspace"):
        assert record.step("images").facts["images"][0]["how"] == "imported"


@pytest.mark.parametrize("step", KILLED)
def test_a_killed_run_is_ended_and_its_record_keeps_what_it_said(runs: Path, step: str) -> None:
    record = RunRecord.load(runs, f"killed-{step}")
    before = json.loads((record.directory / "run.json").read_text())
    gone = replace(ProcessIdentity.current(), pid=2**22 + 1)
    record.update(owner=gone)
    assert record.abandoned is True
    scheduler = ScriptedScheduler()
    if step in WITH_JOB or step == "submit":
        scheduler.jobs = [JobKey("1", before.get("job", {}).get("submitted", 1.0), record.id)]
        scheduler.states = {"1": RUNNING}
    end_run(Run(record, record.plan, srtctl_kind(), services(scheduler)), "launcher cleanup", lambda text: None)
    assert scheduler.cancelled == (["1"] if scheduler.jobs else [])
    after = json.loads((record.directory / "run.json").read_text())
    assert after["state"] == "cancelled" and RunRecord.load(runs, record.id).fields.settled
    for name, stage in before["stages"].items():
        ended = {**stage, "state": "failed"} if name == "submit" and step == "submit" else stage
        assert {key: after["stages"][name].get(key) for key in ended if key != "at"} == {
            key: value for key, value in ended.items() if key != "at"
        }
    assert {key: after[key] for key in ("schema", "id", "runner", "created")} == {
        key: before[key] for key in ("schema", "id", "runner", "created")
    }


def test_a_run_without_steps_can_fail_now(runs: Path) -> None:
    from launcher.core.errors import ImageError

    record = RunRecord.load(runs, "killed-new")
    run = Run(record, record.plan, srtctl_kind(), services())
    assert end_early(run, ImageError("404")).state == "failed"
    assert RunRecord.load(runs, "killed-new").fields.state == "failed"


def test_commands_show_them(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAUNCHER_STATE", str(runs.parent))
    assert main(["status"]) == 0
    table = capsys.readouterr().out
    for record in records(runs):
        assert record.id in table
        assert main(["status", record.id]) == 0
        assert f"{record.id}   {record.fields.state}" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(ENDED) + len(KILLED)
