"""What people do to runs that others drive, and what a run gets of its driver: by the launcher's own program."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from launcher.run.record import RunRecord
from tests.run.driving import InProcessUser, LauncherUser, github_environment
from tests.run.runs import plan_on

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
