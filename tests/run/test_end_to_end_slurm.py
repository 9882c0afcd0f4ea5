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
from tests.run.driving import KEY, ONE, Desk

pytestmark = pytest.mark.slurm


@pytest.fixture
def desk(tmp_path: Path, slurm_cluster: SlurmCluster) -> Desk:
    extra = {k: v for k, v in slurm_cluster.env.items() if k.startswith(("SLURM", "MUNGE"))}
    return Desk(tmp_path, runner="one-machine", extra=extra)


def slurm(desk: Desk, *argv: str) -> str:
    return subprocess.run(argv, env=desk.environment(), capture_output=True, text=True, timeout=60).stdout


def accounted(desk: Desk, job: str) -> list[str]:
    """(state, exit code, comment) by sacct, once it knows the job."""
    for _ in range(100):
        said = slurm(desk, "sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Comment").strip()
        if said and not said.startswith(("PENDING", "RUNNING")):
            return said.split("|")
        time.sleep(0.1)
    raise AssertionError(f"sacct does not know job {job}")


def running(record: Mapping[str, Any]) -> bool:
    return bool(record["state"] == "running")


def test_a_sweep_through_sbatch(desk: Desk) -> None:
    desk.launcher(
        *("sweep", "-k", KEY, "--runner", "one-machine", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4", "16"),
        *("--max-jobs", "2"),
    )
    runs = list((desk.state / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        record = desk.record(run.name)
        assert record["state"] == "succeeded"
        assert accounted(desk, record["job"]["id"]) == ["COMPLETED", "0:0", run.name]
        assert [p["state"] for p in desk.summary(run.name)["points"]] == ["ok", "ok"]


@pytest.mark.parametrize("backend", ["pyslurm", "commands"])
def test_how_slurm_is_asked_is_chosen_and_said_and_shared(desk: Desk, backend: str) -> None:
    said = desk.run("--conc", "4", "--slurm-backend", backend)
    if backend == "commands":
        words = "Slurm is asked by its commands: as asked for"
    elif importlib.util.find_spec("pyslurm"):
        words = "Slurm is asked by pyslurm 2"
    else:
        words = "Slurm is asked by its commands: pyslurm is not installed"
    assert said.count(words) == 1
    assert words in (desk.state / "runs/r/events.jsonl").read_text()
    (place,) = (desk.state / "poller").iterdir()
    assert (place / "answer.json").is_file()
    assert not list((place / "wants").iterdir()), "its job has ended"


def test_a_failed_job_is_a_failure_with_results_on_disk(desk: Desk) -> None:
    said = desk.run("--conc", "4", code=6, LAUNCHER_REHEARSAL_FAULTS="exit=3")
    assert "FAILED, exit code 3" in said
    assert list((desk.state / "runs/r/results").glob("*_conc4_*.json"))
    assert "ExitCode=3:0" in (desk.state / "runs/r/evidence/scheduler.json").read_text()


def test_what_sbatch_refuses_is_a_submission_error_with_its_words(desk: Desk) -> None:
    runners = desk.root / "runners"
    runners.mkdir()
    text = (shipped("runners") / "one-machine.yaml").read_text()
    (runners / "one-machine.yaml").write_text(text.replace("partition: batch", "partition: nowhere"))
    said = desk.run("--runners", str(runners), code=5)
    assert "Invalid partition" in said or "invalid partition" in said
    assert "job" not in desk.record()


def test_a_signal_sends_scancel_within_two_seconds(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "one-machine", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    asked = time.time()
    process.send_signal(signal.SIGINT)
    job = desk.record()["job"]["id"]
    while not slurm(desk, "squeue", "-h", "-t", "all", "-j", job, "-o", "%T").startswith(("CANCELLED", "COMPLETING")):
        assert time.time() - asked < 4
        time.sleep(0.05)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert time.time() - asked < 12
    assert accounted(desk, job)[0].startswith("CANCELLED")


def test_a_killed_launcher_is_resumed_by_another_with_the_same_job(desk: Desk) -> None:
    start = ("run", *ONE, "--runner", "one-machine", "--run-id", "r")
    process = desk.start(*start, LAUNCHER_REHEARSAL_FAULTS="slow-start=4")
    desk.wait_for(lambda r: "job" in r)
    process.kill()
    process.communicate()
    job = desk.record()["job"]["id"]
    desk.launcher("resume", "r")
    assert desk.record()["state"] == "succeeded" and desk.record()["job"]["id"] == job


def test_a_job_whose_id_was_lost_is_found_by_its_token_and_ended(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "one-machine", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    path = desk.state / "runs/r/run.json"
    job = desk.record()["job"]["id"]
    text = path.read_text().replace('"job": {', '"lost": {', 1).replace('"adopted": false', '"adopted": null')
    record = text.replace('"state": "done"', '"state": "running"')  # as if it had been killed before it could write
    path.write_text(record)
    desk.launcher("cleanup", "r")
    assert accounted(desk, job)[0].startswith("CANCELLED")


def test_the_controller_goes_away_for_a_while(desk: Desk, slurm_cluster: SlurmCluster) -> None:
    process = desk.start(
        "run", *ONE, "--runner", "one-machine", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=3"
    )
    desk.wait_for(running)
    pid = int((slurm_cluster.directory / "run/slurmctld.pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(8)
        assert process.poll() is None  # nobody said that the job has ended, so nobody says it
    finally:
        os.kill(pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert desk.record()["state"] == "succeeded"
