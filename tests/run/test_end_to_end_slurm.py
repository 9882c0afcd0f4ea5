"""The main job through a real Slurm: sbatch, accounting, scancel, and a controller that goes away."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.core.shipped import shipped
from tests.conftest import SlurmCluster
from tests.run.driving import KEY, ONE, LauncherUser

pytestmark = pytest.mark.slurm


@pytest.fixture
def user(tmp_path: Path, slurm_cluster: SlurmCluster) -> LauncherUser:
    extra = {k: v for k, v in slurm_cluster.env.items() if k.startswith(("SLURM", "MUNGE"))}
    return LauncherUser(tmp_path, runner="one-machine", extra=extra)


def slurm(user: LauncherUser, *argv: str) -> str:
    return subprocess.run(argv, env=user.environment(), capture_output=True, text=True, timeout=60).stdout


def accounted(user: LauncherUser, job: str) -> list[str]:
    """(state, exit code, comment) by sacct, once it knows the job."""
    for _ in range(100):
        said = slurm(user, "sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Comment").strip()
        if said and not said.startswith(("PENDING", "RUNNING")):
            return said.split("|")
        time.sleep(0.1)
    raise AssertionError(f"sacct does not know job {job}")


def running(record: Mapping[str, Any]) -> bool:
    return bool(record["state"] == "running")


def test_a_sweep_through_sbatch(user: LauncherUser) -> None:
    user.launcher(
        *("sweep", "-k", KEY, "--runner", "one-machine", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4", "16"),
        *("--max-jobs", "2"),
    )
    runs = list((user.state / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        record = user.record(run.name)
        assert record["state"] == "succeeded"
        assert accounted(user, record["job"]["id"]) == ["COMPLETED", "0:0", run.name]
        assert [p["state"] for p in user.summary(run.name)["points"]] == ["ok", "ok"]


@pytest.mark.parametrize("backend", ["pyslurm", "commands"])
def test_how_slurm_is_asked_is_chosen_and_said_and_shared(user: LauncherUser, backend: str) -> None:
    said = user.run("--conc", "4", "--slurm-backend", backend, "--verbose")
    if backend == "commands":
        words = "Slurm is asked by its commands: as asked for"
    elif importlib.util.find_spec("pyslurm"):
        words = "Slurm is asked by pyslurm 2"
    else:
        words = "Slurm is asked by its commands: pyslurm is not installed"
    assert said.count(words) == 1
    assert words in (user.state / "runs/r/events.jsonl").read_text()
    (place,) = (user.state / "poller").iterdir()
    assert (place / "answer.json").is_file()
    assert not list((place / "wants").iterdir()), "its job has ended"


def test_a_failed_job_is_a_failure_with_results_on_disk(user: LauncherUser) -> None:
    said = user.run("--conc", "4", code=6, LAUNCHER_REHEARSAL_FAULTS="exit=3")
    assert "FAILED, exit code 3" in said
    assert list((user.state / "runs/r/results").glob("*_conc4_*.json"))
    assert "ExitCode=3:0" in (user.state / "runs/r/evidence/scheduler.json").read_text()


def test_what_sbatch_refuses_is_a_submission_error_with_its_words(user: LauncherUser) -> None:
    runners = user.root / "runners"
    runners.mkdir()
    text = (shipped("runners") / "one-machine.yaml").read_text()
    (runners / "one-machine.yaml").write_text(text.replace("partition: batch", "partition: nowhere"))
    said = user.run("--runners", str(runners), code=5)
    assert "Invalid partition" in said or "invalid partition" in said
    assert "job" not in user.record()


def test_a_signal_sends_scancel_within_two_seconds(user: LauncherUser) -> None:
    process = user.start("run", *ONE, "--runner", "one-machine", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    user.wait_for(running)
    asked = time.time()
    process.send_signal(signal.SIGINT)
    job = user.record()["job"]["id"]
    while not slurm(user, "squeue", "-h", "-t", "all", "-j", job, "-o", "%T").startswith(("CANCELLED", "COMPLETING")):
        assert time.time() - asked < 4
        time.sleep(0.05)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert time.time() - asked < 12
    assert accounted(user, job)[0].startswith("CANCELLED")


def test_a_killed_launcher_is_resumed_by_another_with_the_same_job(user: LauncherUser) -> None:
    start = ("run", *ONE, "--runner", "one-machine", "--run-id", "r")
    process = user.start(*start, LAUNCHER_REHEARSAL_FAULTS="slow-start=4")
    user.wait_for(lambda r: "job" in r)
    process.kill()
    process.communicate()
    job = user.record()["job"]["id"]
    user.launcher("resume", "r")
    assert user.record()["state"] == "succeeded" and user.record()["job"]["id"] == job


def test_a_job_whose_id_was_lost_is_found_by_its_token_and_ended(user: LauncherUser) -> None:
    process = user.start("run", *ONE, "--runner", "one-machine", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    user.wait_for(running)
    process.kill()
    process.communicate()
    path = user.state / "runs/r/run.json"
    job = user.record()["job"]["id"]
    text = path.read_text().replace('"job": {', '"lost": {', 1).replace('"adopted": false', '"adopted": null')
    record = text.replace('"state": "done"', '"state": "running"')  # as if it had been killed before it could write
    path.write_text(record)
    user.launcher("cleanup", "r")
    assert accounted(user, job)[0].startswith("CANCELLED")


def test_the_controller_goes_away_for_a_while(user: LauncherUser, slurm_cluster: SlurmCluster) -> None:
    process = user.start(
        "run", *ONE, "--runner", "one-machine", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=3"
    )
    user.wait_for(running)
    pid = int((slurm_cluster.directory / "run/slurmctld.pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(8)
        assert process.poll() is None  # nobody said that the job has ended, so nobody says it
    finally:
        os.kill(pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert user.record()["state"] == "succeeded"
