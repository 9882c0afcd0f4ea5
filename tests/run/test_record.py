"""Run records: on disk at once, readable by anyone, and whose they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.core.process import ProcessIdentity
from launcher.plan.plan import Plan, check_run_id
from launcher.run import finish
from launcher.run.listing import records
from launcher.run.record import RecordedJob, RunFields, RunRecord
from tests.run.runs import a_run, plan_on


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_on("gb200-nv", tmp_path)


def test_what_is_written_is_there_for_another_process(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path / "runs", plan)
    record.update(job=RecordedJob("7", None, "/x", "/l"))
    record.set_step("images", "running")
    record.set_step("images", "done", images=[1])
    record.event("note", "ü", extra=1)
    other = RunRecord.load(tmp_path / "runs", "r1")
    assert other.job == RecordedJob("7", None, "/x", "/l")
    assert other.step("images").state == "done" and other.step("images").facts == {"images": [1]}
    assert other.step("none").state == ""
    assert [(e["kind"], e["text"], e["extra"]) for e in other.events()] == [("note", "ü", 1)]
    assert other.plan.as_dict() == plan.as_dict()
    assert [r.id for r in records(tmp_path / "runs")] == ["r1"]


def test_facts_that_come_while_a_step_goes_on_leave_its_beginning(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path / "runs", plan)
    record.set_step("images", "running", last="first")
    began = record.step("images").began
    record.add_step_facts("images", last="second")
    step = RunRecord.load(tmp_path / "runs", record.id).step("images")
    assert (step.state, step.began, step.facts) == ("running", began, {"last": "second"})
    assert step.at > began


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
    assert not record.driven_by_another
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        its = ProcessIdentity.of(other.pid)
        record.update(owner=its)
        assert record.driven_by_another
        record.update(owner=replace(its, started="1"))  # the pid was given out again
        assert not record.driven_by_another
        record.update(owner=replace(its, host="elsewhere"))
        assert not record.driven_by_another
        record.update(owner=its)
        other.kill()
        other.wait()
    assert not record.driven_by_another


def test_a_runs_directory_that_cannot_be_made(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        RunRecord.create(tmp_path / "file" / "runs", plan)


def test_the_record_is_plain_json(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    assert json.loads((record.directory / "run.json").read_text())["state"] == "new"


_TRY = """
import sys
from pathlib import Path
from launcher.core.errors import ConfigError
from launcher.run.record import RunRecord
from launcher.run import finish
from launcher.run.record import RecordedJob
record = RunRecord.load(Path(sys.argv[1]), "r1")
try:
    record.acquire()
except ConfigError as error:
    sys.exit(str(error))
"""


def _take(runs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _TRY, str(runs)], capture_output=True, text=True, timeout=60)


def test_one_process_drives_a_run(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    record.acquire()  # it has it already
    assert "another launcher drives this run" in _take(tmp_path).stderr


def test_a_run_is_taken_over_as_it_is_by_then(tmp_path: Path, plan: Plan) -> None:
    code = _TRY.replace("record.acquire()", "record.acquire(); record.update(job=RecordedJob('7', None, '/x', '/l'))")
    RunRecord.create(tmp_path / "a", plan)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    stale = RunRecord.load(tmp_path / "b", "r1")
    stale.update(owner=None)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True, timeout=60)
    stale.acquire()
    assert stale.job is not None and stale.job.id == "7"


def test_a_submission_goes_on_until_its_program_ends(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    with record.submitting() as handle:
        program = subprocess.Popen(["sleep", "1"], pass_fds=[handle])
    began = time.monotonic()
    with RunRecord.load(tmp_path, "r1").submitting():
        assert program.poll() is not None or time.monotonic() - began > 0.8
    program.wait()


@pytest.mark.parametrize(
    ("fields", "settled"),
    [
        ({"state": "running", "job": {"id": "7"}}, False),
        ({"state": "cancelled", "job": {"id": "7"}}, False),
        ({"state": "cancelled", "job": {"id": "7", "over": True}}, True),
        ({"state": "cancelled", "stages": {"submit": {"state": "running"}}}, False),
        ({"state": "failed", "stages": {"submit": {"state": "unknown"}}}, False),
        ({"state": "failed", "stages": {"submit": {"state": "failed"}}}, True),
        ({"state": "cancelled"}, True),
    ],
)
def test_a_run_is_settled_when_nothing_of_it_can_be_left(
    tmp_path: Path, plan: Plan, fields: dict[str, Any], settled: bool
) -> None:
    record = RunRecord.create(tmp_path, plan)
    record.fields = replace(RunFields.read({"id": "r1", "runner": "x", **fields}), owner=ProcessIdentity.current())
    assert record.fields.settled is settled
    assert record.abandoned is False, "we live"
    record.update(owner=replace(ProcessIdentity.current(), started="0"))
    assert record.abandoned is (not settled)
    record.update(owner=replace(ProcessIdentity.current(), host="elsewhere"))
    assert record.abandoned is (False if settled else None)


def test_a_launcher_that_is_killed_while_it_makes_a_record_leaves_none(tmp_path: Path, plan: Plan) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            RunRecord.create(tmp_path, plan)
    assert records(tmp_path) == []
    assert RunRecord.create(tmp_path, plan).id == "r1"


def test_a_number_that_is_not_finite_hides_no_record(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    record.set_step("model", "done", seconds=float("inf"))
    (again,) = records(tmp_path)
    assert again.step("model").facts["seconds"] == float("inf")


def test_cut_events_are_passed_over(tmp_path: Path, plan: Plan) -> None:
    record = RunRecord.create(tmp_path, plan)
    for cut in ('{"text": "…'.encode()[:-1], b"7\n", b"[]"):
        with (record.directory / "events.jsonl").open("ab") as file:
            file.write(cut)
        record.event("note", "one line\u2028and no second one")
    assert [event["text"] for event in record.events()] == ["one line\u2028and no second one"] * 3


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o007])
def test_a_record_is_for_its_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        run = a_run(tmp_path / "state", plan_on("local", tmp_path))
        run.record.event("note", "a name of \udcff")
        run.record.acquire()
        assert run.results_directory.is_dir()
        finish.end_early(run, ConfigError("wrong"))
    finally:
        os.umask(before)
    for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert {"run.json", "plan.json", "events.jsonl", "summary.json", "driver.lock", "evidence"} <= {
        path.name for path in run.record.directory.iterdir()
    }
