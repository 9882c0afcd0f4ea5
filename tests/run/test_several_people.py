"""What people do to runs that others drive, and what a run gets of its driver: by the launcher's own program."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.core.stop import Stop
from launcher.run import cancelling
from launcher.run.orphans import SILENCE, end_run
from launcher.run.record import RecordedJob, RunRecord
from launcher.slurm.client import JobKey, JobState, SchedulerUnreachable
from tests.run.driving import KEY, InProcessUser, LauncherUser, github_environment
from tests.run.runs import a_run, plan_on, services
from tests.run.test_end_to_end import HANG, wait_until

TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture
def user(tmp_path: Path) -> LauncherUser:
    return InProcessUser(tmp_path)


def test_what_the_host_has_stays_out_of_the_job_and_the_record_names_it(user: LauncherUser) -> None:
    host = {"UCX_TLS": "tcp", "NCCL_IB_DISABLE": "1", "LD_LIBRARY_PATH": "/nowhere", "VLLM_X": "the value of a host"}
    user.launcher("ci", **{**github_environment(user), **host, "HF_TOKEN": TOKEN})
    (run_id,) = user.run_ids()
    left_out = user.record(run_id)["stages"]["submit"]["left_out"]
    assert set(host) <= set(left_out) and not {"HF_TOKEN", "PATH", "HOME"} & set(left_out)
    directory = user.state / "runs" / run_id
    assert "HF_TOKEN" in json.loads((directory / "plan.json").read_text())["passes"]
    stored = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert TOKEN.encode() not in stored and b"the value of a host" not in stored


def test_a_resume_without_a_secret_of_the_plan_names_it(user: LauncherUser) -> None:
    plan = dataclasses.replace(plan_on("local", user.root, run_key="r"), passes=("HF_TOKEN",))
    record = RunRecord.create(user.state / "runs", plan)
    record.let_go()
    said = user.launcher("resume", "r", code=2, HF_TOKEN="")
    assert "HF_TOKEN is not set" in said and user.record()["state"] == "new"


def test_a_queued_run_of_a_live_sweep_is_cancelled_and_never_submitted(user: LauncherUser) -> None:
    person = LauncherUser(user.root)
    arguments = ("-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
    sweep = person.start("sweep", *arguments, "--max-jobs", "1", LAUNCHER_REHEARSAL_FAULTS="hang")
    try:
        wait_until(lambda: sorted(person.record(run)["state"] for run in person.run_ids()) == ["new", "running"])
        states = {person.record(run)["state"]: run for run in person.run_ids()}
        began = time.monotonic()
        said = person.launcher("cancel", states["new"])
        assert time.monotonic() - began < 10 and "let it go" in said
        queued = person.record(states["new"])
        assert queued["state"] == "cancelled" and "job" not in queued
        assert "launcher cancel" in queued["error"]["message"]
        person.launcher("cancel", states["running"])
        out, _ = sweep.communicate(timeout=HANG)
    finally:
        sweep.kill()
    assert sweep.returncode == 130, out
    assert {person.record(run)["state"] for run in person.run_ids()} == {"cancelled"}, "its person cancelled it"
    assert person.record(states["running"])["verdict"]["layer"] == "cancelled"
    assert not person.alive_jobs()


class Silent:
    """A scheduler that answers nothing until its test is over, and remembers whose end was asked for."""

    name = "slurm"

    def __init__(self) -> None:
        self.over = threading.Event()
        self.cancelled: list[str] = []

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.over.wait(60)
        return {}

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        self.cancelled += [job.id for job in jobs]
        self.over.wait(60)


def test_cancelling_with_slurm_silent_ends_soon_and_says_what_it_waits_for(tmp_path: Path) -> None:
    slurm, said = Silent(), list[str]()
    run = a_run(tmp_path, given=services(slurm))
    run.record.update(state="running", job=RecordedJob("7", 1.0, str(tmp_path), str(tmp_path / "log")))
    began = time.monotonic()
    try:
        with pytest.raises(SchedulerUnreachable, match="job 7") as caught:
            end_run(run, "launcher cancel", said.append, SILENCE)
    finally:
        slurm.over.set()
    assert time.monotonic() - began < 10 and slurm.cancelled == ["7"] and len(said) >= 3
    assert caught.value.exit_code == 5 and "scancel 7" in str(caught.value)


def test_a_run_that_was_cancelled_can_be_resumed(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    cancelling.ask(run.record, "launcher cancel")
    stop = cancelling.stop_of(run.record, Stop.never())
    assert stop.requested() and "launcher cancel" in stop.reason().message
    cancelling.withdraw(run.record)
    assert not stop.requested() and not stop.wait(0.6)


@pytest.mark.parametrize("content", ["", "[", "[]", '{"text": 5}', "x" * 9000])
def test_a_request_that_cannot_be_read_is_one(tmp_path: Path, content: str) -> None:
    record = a_run(tmp_path).record
    (record.directory / cancelling.FILE).write_text(content)
    assert cancelling.is_asked(record) and cancelling.reason(record).message == "cancelled on request"
