"""Run records: on disk at once, readable by anyone, and whose they are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from launcher.derive import Context
from launcher.errors import ConfigError
from launcher.plan import Plan
from launcher.processid import ProcessId
from launcher.record import RunRecord, check_run_id, records
from launcher.resolve import plan_benchmark
from launcher.runner import Fleet
from launcher.shipped import shipped
from launcher.srtctl.locate import RecipeFinder
from tests.benchmarks import a_benchmark


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    context = Context(workspace=str(tmp_path), runner_name="gb200-nv_0", run_key="r1", today="20260101")
    return plan_benchmark(a_benchmark(), Fleet([shipped("runners")]).get("gb200-nv"), RecipeFinder(), context)


def test_what_is_written_is_there_for_another_process(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path / "runs", plan)
    record.update(job={"id": "7"})
    record.set_stage("images", "running")
    record.set_stage("images", "done", images=[1])
    record.event("note", "ü", extra=1)
    other = RunRecord.load(tmp_path / "runs", "r1")
    assert other.get("job") == {"id": "7"}
    assert other.stage("images")["state"] == "done" and other.stage("images")["images"] == [1]
    assert other.stage("none") == {}
    assert [(e["kind"], e["text"], e["extra"]) for e in other.events()] == [("note", "ü", 1)]
    assert other.plan.as_dict() == plan.as_dict()
    assert [r.id for r in records(tmp_path / "runs")] == ["r1"]


def test_an_event_that_a_killed_launcher_left_half_is_passed_over(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    record.event("note", "whole")
    with (record.directory / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "ki')
    assert [e["text"] for e in record.events()] == ["whole"]


def test_a_run_is_made_once(tmp_path: Path, plan: Plan) -> None:
    RunRecord.create(tmp_path, plan)
    with pytest.raises(ConfigError, match="exists already"):
        RunRecord.create(tmp_path, plan)


def test_a_run_that_is_not_there_names_the_nearest(tmp_path: Path, plan: Plan) -> None:
    RunRecord.create(tmp_path, plan)
    with pytest.raises(ConfigError) as error:
        RunRecord.load(tmp_path, "r11")
    assert error.value.hint == "did you mean r1?"
    (tmp_path / "r1/run.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        RunRecord.load(tmp_path, "r1")
    assert records(tmp_path) == []


@pytest.mark.parametrize("run_id", ["../x", "", "a b", "x" * 121, ".hidden", "a/b"])
def test_ids_that_cannot_be_names(run_id: str) -> None:
    with pytest.raises(ConfigError):
        check_run_id(run_id)


def test_whose_a_run_is(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    assert not record.owned_by_another
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        its = asdict(ProcessId.of(other.pid))
        record.update(owner=its)
        assert record.owned_by_another
        record.update(owner={**its, "started": "1"})  # the pid was given out again
        assert not record.owned_by_another
        record.update(owner={**its, "host": "elsewhere"})
        assert not record.owned_by_another
        record.update(owner=its)
        other.kill()
        other.wait()
    assert not record.owned_by_another


def test_a_runs_directory_that_cannot_be_made(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        RunRecord.create(tmp_path / "file" / "runs", plan)


def test_the_record_is_plain_json(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    assert json.loads((record.directory / "run.json").read_text())["state"] == "new"
