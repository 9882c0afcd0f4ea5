"""What people do to runs that others drive, and what a run gets of its driver: by the launcher's own program."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.cli import ending
from launcher.run import orphans
from launcher.run.kind import Run
from launcher.run.orphans import SILENCE, end_run
from launcher.run.record import REQUEST, RecordedJob, RunRecord
from launcher.slurm.client import JobKey, JobState, SchedulerUnreachable
from tests.run.driving import KEY, InProcessUser, LauncherUser, github_environment, running
from tests.run.runs import a_run, plan_on, services, srtctl_kind
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
    record.release()
    said = user.launcher("resume", "r", code=2, HF_TOKEN="")
    assert "HF_TOKEN is not set" in said and user.record()["state"] == "new"


def test_a_queued_run_of_a_live_sweep_is_cancelled_and_never_submitted(user: LauncherUser) -> None:
    person = LauncherUser(user.root)
    arguments = ("-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
    sweep = person.start("sweep", *arguments, "--max-jobs", "1", LAUNCHER_REHEARSAL_FAULTS="hang")
    try:
        wait_until(lambda: sorted(person.record(run)["state"] for run in person.run_ids()) == ["preparing", "running"])
        states = {person.record(run)["state"]: run for run in person.run_ids()}
        said = person.launcher("cancel", states["preparing"])
        assert "let it go" in said
        queued = person.record(states["preparing"])
        assert queued["state"] == "cancelled" and "job" not in queued
        assert "launcher cancel" in queued["error"]["message"]
        person.launcher("cancel", states["running"])
        out, _ = sweep.communicate(timeout=HANG)
    finally:
        sweep.kill()
    # The first in order decides: which of the two became ready first, and ran, is the machine's business.
    assert sweep.returncode == (130 if "dep4-tp4" in states["preparing"] else 6), out
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


def test_two_cancels_with_slurm_silent_end_soon_and_say_what_they_wait_for(tmp_path: Path) -> None:
    """One after the other; `launcher cancel RUN RUN` asks side by side."""
    slurm, said = Silent(), list[float]()
    began = time.monotonic()
    try:
        for name in ("7", "8"):
            run = a_run(tmp_path, plan_on("local", tmp_path, run_key=f"r{name}"), services(slurm))
            run.record.update(state="running", job=RecordedJob(name, 1.0, str(tmp_path), str(tmp_path / "log")))
            with pytest.raises(SchedulerUnreachable, match=f"job {name}") as caught:
                end_run(run, "launcher cancel", lambda text: said.append(time.monotonic()), SILENCE)
            assert caught.value.exit_code == 5 and f"scancel {name}" in str(caught.value)
            said.append(time.monotonic())
    finally:
        slurm.over.set()
    # Ten seconds for both, where the machine does nothing else.
    assert 2 * SILENCE <= 8 and time.monotonic() - began < 50 and slurm.cancelled == ["7", "8"]
    assert len(said) > 2, "each says what it waits for before it gives up"


def test_several_runs_are_ended_side_by_side_and_none_keeps_another(
    user: LauncherUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [RunRecord.create(user.state / "runs", plan_on("local", user.root, run_key=name)) for name in "abc"]
    together = threading.Barrier(3)

    def end(run: Run, *arguments: object) -> None:
        together.wait(20)
        if run.id == "a":
            raise SchedulerUnreachable("silent", where="run a")
        if run.id == "b":
            raise ValueError("a fault of ours")
        run.record.update(state="cancelled")

    monkeypatch.setattr(ending, "end_run", end)
    for record in records:
        record.release()
    said = user.launcher("cancel", "a", "b", "c", "b", code=5)
    assert "run a: silent" in said and "run b: unexpected ValueError: a fault of ours" in said
    assert user.record("c")["state"] == "cancelled"


def test_a_run_that_was_cancelled_can_be_resumed(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.record.request_cancel("launcher cancel")
    stop = run.services.for_run(run.record).stop
    assert stop.requested() and "launcher cancel" in stop.reason().message
    run.record.withdraw_cancel()
    assert not stop.requested() and not stop.wait(0.6)


@pytest.mark.parametrize("content", ["", "[", "[]", '{"text": 5}', "x" * 9000])
def test_a_request_that_cannot_be_read_is_one(tmp_path: Path, content: str) -> None:
    record = a_run(tmp_path).record
    (record.directory / REQUEST).write_text(content)
    assert record.cancel_requested() and record.cancel_reason().message == "cancelled on request"


@pytest.fixture
def killed(user: LauncherUser) -> tuple[LauncherUser, dict[str, str]]:
    """A person whose `launcher ci` was killed while its job runs, and the environment of the launch step."""
    person = LauncherUser(user.root)
    environment = {**github_environment(person), "GITHUB_JOB": "benchmark", "RUNNER_TYPE": "gb200"}
    environment["GITHUB_ENV"] = str(person.root / "env")
    process = person.start("ci", **environment, LAUNCHER_REHEARSAL_FAULTS="hang")
    wait_until(person.run_ids)
    person.wait_for(running, person.run_ids()[0])
    process.kill()
    process.communicate()
    return person, environment


LATER_STEPS: dict[str, dict[str, str]] = {
    "others": {"RUNNER_TYPE": "cluster:x", "RESULT_FILENAME": "ANOTHER"},
    "none": {"RUNNER_TYPE": "", "RESULT_FILENAME": ""},
    "not even the row": {"CONC_LIST": "", "PREFILL_TP": "", "MODEL": "", "IMAGE": "", "IS_MULTINODE": ""},
    "another job of GitHub on this runner": {"GITHUB_RUN_ID": "78", "RESULT_FILENAME": "ANOTHER"},
}


@pytest.mark.parametrize("name", LATER_STEPS)
def test_a_clean_up_step_finds_the_run_without_the_launch_steps_variables(
    killed: tuple[LauncherUser, dict[str, str]], name: str
) -> None:
    person, environment = killed
    (run_id,) = person.run_ids()
    assert (person.root / "env").read_text().splitlines()[1] == run_id
    said = person.launcher("cleanup", "--from-env", **{**environment, **LATER_STEPS[name]})
    assert f"run {run_id}: job" in said and "never began" not in said
    assert not person.alive_jobs() and person.record(run_id)["state"] == "cancelled"


def test_a_run_with_an_id_of_its_own_is_found_by_its_job_and_by_what_it_left(user: LauncherUser) -> None:
    environment = {**github_environment(user), "GITHUB_JOB": "benchmark"}
    plan = plan_on("local", user.root, run_key="my-own")
    record = RunRecord.create(user.state / "runs", plan)
    record.update(results="workspace", github_job=orphans.github_job_identity(environment))
    record.release()
    assert orphans.runs_of_job(user.state / "runs", environment)[0].id == "my-own"
    assert "my-own" in user.launcher("cleanup", "--from-env", **environment)
    left = {**environment, "LAUNCHER_RUN_ID": "my-own", "GITHUB_JOB": "other"}
    assert "my-own" in LauncherUser(user.root).launcher("cleanup", "--from-env", **left)
    other = {**environment, "RUNNER_NAME": "local_1"}
    assert "it never began" in user.launcher("cleanup", "--from-env", **other)
    said = user.launcher("cleanup", "--from-env", code=2, **{**other, "CONC_LIST": "", "TP": "8"})
    assert "never began" not in said, "which run is meant cannot be told"


@pytest.mark.parametrize(
    ("state", "ended", "stays"), [("cancelled", 2, False), ("cancelled", 0, True), ("failed", 2, True)]
)
def test_the_tree_of_a_cancelled_run_goes_after_a_day(user: LauncherUser, state: str, ended: int, stays: bool) -> None:
    plan = plan_on("local", user.root, run_key="r")
    record = RunRecord.create(user.state / "runs", plan)
    record.update(state=state, results="workspace", ended=time.time() - ended * 86400)
    record.release()
    (tree,) = srtctl_kind().own_directories(plan)
    (tree / "outputs").mkdir(parents=True)
    (user.root / "kept").mkdir()
    user.launcher("cleanup")
    assert tree.exists() is stays and (user.root / "kept").exists()
