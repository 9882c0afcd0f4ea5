"""What launchers leave behind on a real Slurm, and jobs that were started by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import SlurmCluster
from tests.run.driving import ONE, LauncherUser, github_environment
from tests.run.test_end_to_end import wait_until

pytestmark = pytest.mark.slurm
RUN = (*ONE, "--runner", "one-machine", "--conc", "4")


@pytest.fixture
def user(tmp_path: Path, slurm_cluster: SlurmCluster) -> LauncherUser:
    extra = {k: v for k, v in slurm_cluster.env.items() if k.startswith(("SLURM", "MUNGE"))}
    return LauncherUser(tmp_path, runner="one-machine", extra=extra)


def abandoned(user: LauncherUser, run_id: str, faults: str) -> str:
    """The id of a job whose launcher was killed."""
    process = user.start("run", *RUN, "--run-id", run_id, LAUNCHER_REHEARSAL_FAULTS=faults)
    user.wait_for(lambda r: bool(r.get("job", {}).get("released")), run_id)
    process.kill()
    process.communicate()
    return str(user.record(run_id)["job"]["id"])


def comment(user: LauncherUser, job: str) -> str:
    argv = ["squeue", "-h", "--states=all", "-j", job, "-o", "%k"]
    return subprocess.run(argv, env=user.environment(), capture_output=True, text=True, timeout=60).stdout.strip()


def scontrol(user: LauncherUser, *words: str) -> bool:
    """Whether Slurm did it."""
    argv = ["scontrol", *words]
    return subprocess.run(argv, env=user.environment(), capture_output=True, timeout=60).returncode == 0


def test_a_job_started_by_hand_is_taken_over_to_its_results(user: LauncherUser) -> None:
    job = abandoned(user, "first", "slow-start=12")
    wait_until(lambda: scontrol(user, "suspend", job))  # once it runs; else it may have ended by then
    said = user.launcher("adopt", job, *RUN, "--run-id", "second", code=2)
    assert f"job {job} belongs to run first" in said
    shutil.rmtree(user.state / "runs/first")
    adopting = user.start("adopt", job, *RUN, "--run-id", "third")
    user.wait_for(lambda r: comment(user, job) == "first third", "third")
    assert scontrol(user, "resume", job)
    _, said = adopting.communicate(timeout=300)
    assert adopting.returncode == 0, said
    record = user.record("third")
    assert (record["state"], record["job"]["id"], record["job"]["by_hand"]) == ("succeeded", job, True)
    assert [p["state"] for p in user.summary("third")["points"]] == ["ok"]
    assert "nobody can say" in user.launcher("adopt", "9999999", *RUN, "--run-id", "fourth", code=6)


@pytest.mark.parametrize("words", [("--array=0-1", "--wrap=sleep 60"), ("--wrap=sleep 60", ":", "-N1")])
def test_a_job_of_several_is_not_taken_over(user: LauncherUser, words: tuple[str, ...]) -> None:
    argv = ["sbatch", "--parsable", "--output=/dev/null", *words]
    done = subprocess.run(argv, env=user.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    said = user.launcher("adopt", job, *RUN, "--run-id", "r", code=2)
    subprocess.run(["scancel", job], env=user.environment(), timeout=60)
    assert "one of several under one id" in said


def test_the_next_job_of_a_github_runner_ends_what_the_last_one_left(user: LauncherUser) -> None:
    github = {**github_environment(user), "RUNNER_NAME": "one-machine"}
    process = user.start("ci", **github, LAUNCHER_REHEARSAL_FAULTS="hang")
    left = None
    for _ in range(400):
        left = next(iter((user.state / "runs").glob("77-1-*/run.json")), None)
        if left is not None and json.loads(left.read_text()).get("job"):
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    assert left is not None
    process.kill()
    process.communicate()
    by_hand = abandoned(user, "mine", "hang")
    said = user.launcher("ci", **{**github, "GITHUB_RUN_ID": "78"})
    assert f"run {left.parent.name} was left behind by an earlier job of this runner" in said
    assert json.loads(left.read_text())["state"] == "cancelled"
    assert user.record("mine")["state"] != "cancelled", "a run by hand is its person's"
    user.launcher("cleanup")
    assert user.record("mine")["state"] == "cancelled" and user.record("mine")["job"]["id"] == by_hand


def test_the_evidence_of_a_failure_names_its_layer(user: LauncherUser) -> None:
    said = user.launcher("run", *RUN, "--run-id", "r", code=6, LAUNCHER_REHEARSAL_FAULTS="worker-death")
    verdict = user.record("r")["verdict"]
    assert verdict["layer"] == "server" and "_decode_w0.out: rehearsal: torch.OutOfMemoryError" in verdict["text"]
    assert f"\nserver: {verdict['text']}" in said
    assert "server:" in user.launcher("status")
    assert "_decode_w0.out" in user.launcher("status", "r")
    evidence = user.state / "runs/r/evidence"
    names = {p.name for p in evidence.iterdir()}
    assert names >= {
        *("verdict.txt", "events.txt", "first-failure.txt", "job.log", "scheduler.json"),
        *("sbatch_script.sh", "config.yaml", "recipe.yaml", "srtslurm.yaml"),
    }
    assert "CUDA out of memory" in (evidence / "first-failure.txt").read_text()
    assert "FAILED, exit code 1" in (evidence / "events.txt").read_text()


def test_a_clean_up_step_ends_a_job_of_its_runner_whose_record_is_gone(user: LauncherUser) -> None:
    github = {**github_environment(user), "RUNNER_NAME": "one-machine"}
    process = user.start("ci", **github, LAUNCHER_REHEARSAL_FAULTS="hang")
    wait_until(lambda: any(user.record(run).get("job", {}).get("released") for run in user.run_ids()))
    process.kill()
    process.communicate()
    job = user.record(user.run_ids()[0])["job"]["id"]
    by_hand = abandoned(user, "mine", "hang")
    shutil.rmtree(user.state / "runs" / next(run for run in user.run_ids() if run != "mine"))
    said = user.launcher("cleanup", "--from-env", **{**github, "RUNNER_TYPE": "another", "RESULT_FILENAME": ""})
    assert f"has no record here, and its job {job} lives" in said and "never began" not in said
    assert user.record("mine")["state"] != "cancelled", "a run by hand is its person's"
    user.launcher("cancel", "mine")
    assert user.record("mine")["job"]["id"] == by_hand and user.record("mine")["state"] == "cancelled"
    assert "never began" in user.launcher("cleanup", "--from-env", **github)
