"""What needs a process of the launcher's own: its exit code and output, signals, kills, and other launchers beside it.

Runs are those of the rehearsal's tools on the embedded scheduler. What goes right and wrong in a run, and which verdict
comes of it, is in test_rehearsed_runs, without such processes.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.scenes import never_silent  # noqa: F401
from tests.run.driving import KEY, ONE, LauncherUser, github_environment, running

pytestmark = pytest.mark.usefixtures("never_silent")

HANG = 120.0
"""Seconds after which a process is taken to hang. No bound of the launcher's: on two cores at a load of 14 one of these
tests took 25 s that takes 5 s at a load of 6."""


@pytest.fixture(scope="module")
def shared_user(tmp_path_factory: pytest.TempPathFactory) -> LauncherUser:
    return LauncherUser(tmp_path_factory.mktemp("user"), extra={"LAUNCHER_REHEARSAL_SECONDS": "0.01"})


@pytest.fixture
def user(shared_user: LauncherUser) -> Iterator[LauncherUser]:
    yield shared_user
    shared_user.forget_runs()


def wait_until(condition: Callable[[], object], seconds: float = HANG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def test_a_run_comes_out_as_results_that_say_they_are_rehearsed(user: LauncherUser) -> None:
    said = user.run()
    summary = user.summary()
    assert summary["rehearsal"] is True
    assert [p["concurrency"] for p in summary["points"]] == [1, 4, 8, 16]
    assert all(p["state"] == "ok" for p in summary["points"])
    assert user.record()["state"] == "succeeded"
    results = sorted((user.state / "runs/r/results").glob("minimaxm3_1k1k_fp8_*_conc4_gpus_8_ctx_4_gen_4.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["rehearsal"] is True
    assert "REHEARSAL" in said and "1 of 1 runs succeeded" in said
    assert "[INFO] Benchmark completed successfully" in said  # the job's log was streamed
    pasted = re.findall(r"^(?:Next|  or): (.*)$", said, re.MULTILINE)
    assert len(pasted) == 2
    for line in pasted:  # from anywhere, in a shell that has neither this program on its path nor the state directory
        shell = ["sh", "-c", line]
        done = subprocess.run(
            shell, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and done.stdout and done.stderr == "", done


@pytest.mark.parametrize(("faults", "code", "message"), [("nan", 7, "invalid"), ("exit=3", 6, "FAILED, exit code 3")])
def test_a_run_that_failed_is_the_exit_code_of_the_process(
    user: LauncherUser, faults: str, code: int, message: str
) -> None:
    assert message in user.run("--conc", "4", code=code, LAUNCHER_REHEARSAL_FAULTS=faults)
    assert (user.record()["state"], user.record()["exit_code"]) == ("failed", code)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_the_job_first(user: LauncherUser, number: signal.Signals, code: int) -> None:
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    user.wait_for(running)
    asked = time.time()
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == code, out
    events = [json.loads(line) for line in (user.state / "runs/r/events.jsonl").read_text().splitlines()]
    cancelled = next(e for e in events if e["text"].startswith("asked for the end"))
    assert cancelled["time"] - asked < 2
    assert not user.alive_jobs()
    assert user.record()["state"] == "cancelled"
    assert (user.state / "runs/r/results/multinode_server_logs.tar.gz").is_file()


def test_a_signal_during_an_import_ends_it_and_leaves_no_part(tmp_path: Path) -> None:
    user = LauncherUser(tmp_path)
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_ENROOT="slow=60")
    squash = user.state / "squash"
    wait_until(lambda: squash.is_dir() and list(squash.glob(".*.part")))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 130, out
    assert [p.name for p in squash.iterdir() if p.suffix != ".lock"] == []
    said, images = user.record()["verdict"], user.record()["stages"]["images"]
    assert said["layer"] == "cancelled"
    assert said["text"] == f"stopped by SIGINT while importing {images['last']}"


def test_what_a_killed_launcher_left_is_cleaned_up_by_another(user: LauncherUser) -> None:
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    user.wait_for(running)
    process.kill()
    process.communicate()
    assert user.alive_jobs()
    assert "(nobody drives it)" in user.launcher("status")
    said = user.launcher("cleanup")
    assert "1 run was left behind" in said
    assert not user.alive_jobs()
    assert user.launcher("cleanup") == "no run was left behind\n"


def test_a_killed_run_is_resumed_to_its_results_with_one_job(user: LauncherUser) -> None:
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=3")
    user.wait_for(running)
    process.kill()
    process.communicate()
    user.launcher("resume", "r")
    assert user.record()["state"] == "succeeded"
    assert len(list((user.state / "jobs").glob("[0-9]*"))) == 1
    assert "has succeeded already" in user.launcher("resume", "r")


def test_a_driven_run_is_left_alone_and_can_be_followed_and_cancelled(user: LauncherUser) -> None:
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    user.wait_for(running)
    log = Path(user.record()["job"]["output"], "logs", "sweep_1.log")
    wait_until(lambda: log.is_file() and log.stat().st_size)
    assert user.launcher("cleanup") == "no run was left behind\n"
    assert "another launcher drives this run" in user.launcher("resume", "r", code=2)
    process.send_signal(signal.SIGSTOP)
    woken = f"kill -CONT {process.pid}"
    wait_until(lambda: f"running (its launcher is stopped: {woken})" in user.launcher("status"))
    said = user.launcher("cleanup")
    assert f"its launcher (pid {process.pid}) is stopped" in said and "no run was left behind" in said
    assert f"it is stopped: {woken}" in user.launcher("resume", "r", code=2)
    process.send_signal(signal.SIGCONT)
    user.launcher("cancel", "r")
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 6, out
    assert "CANCELLED" in out
    assert "Sweep Orchestrator" in user.launcher("logs", "r")


def test_results_of_a_job_that_outlived_its_launcher_are_collected(user: LauncherUser) -> None:
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=2")
    user.wait_for(running)
    process.kill()
    process.communicate()
    assert "the job has not ended" in user.launcher("collect", "r", code=6)
    wait_until(lambda: not user.alive_jobs())
    assert user.launcher("collect", "r") == "run r: succeeded\n"
    assert [p["state"] for p in user.summary()["points"]] == ["ok"] * 4


def test_a_signal_ends_every_job_of_a_sweep(user: LauncherUser) -> None:
    arguments = ("sweep", "-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
    process = user.start(*arguments, "--max-jobs", "2", LAUNCHER_REHEARSAL_FAULTS="hang")
    wait_until(lambda: [bool(user.record(run).get("job")) for run in user.run_ids()] == [True, True])
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 143, out
    assert not user.alive_jobs()
    assert {user.record(run)["state"] for run in user.run_ids()} == {"cancelled"}


def test_cleanup_of_a_cancelled_job_of_github_finds_it_by_the_environment(user: LauncherUser) -> None:
    environment = github_environment(user)
    process = user.start("ci", **environment, LAUNCHER_REHEARSAL_FAULTS="hang")
    wait_until(user.run_ids)
    (run_id,) = user.run_ids()
    user.wait_for(running, run_id)
    process.kill()
    process.communicate()
    user.launcher("cleanup", "--from-env", **environment)
    assert not user.alive_jobs()
