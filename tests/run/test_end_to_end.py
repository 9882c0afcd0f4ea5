"""What needs a process of the launcher's own: its exit code and output, signals, kills, and other launchers beside it.

Runs are those of the rehearsal's tools on the embedded scheduler. What goes right and wrong in a run, and which verdict
comes of it, is in test_rehearsed_runs, without such processes.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.driving import KEY, ONE, Desk, github_environment, running


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("user"), extra={"LAUNCHER_REHEARSAL_SECONDS": "0.01"})


@pytest.fixture
def desk(shared_desk: Desk) -> Iterator[Desk]:
    yield shared_desk
    shared_desk.forget_runs()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def test_a_run_comes_out_as_results_that_say_they_are_rehearsed(desk: Desk) -> None:
    said = desk.run()
    summary = desk.summary()
    assert summary["rehearsal"] is True
    assert [p["concurrency"] for p in summary["points"]] == [1, 4, 8, 16]
    assert all(p["state"] == "ok" for p in summary["points"])
    assert desk.record()["state"] == "succeeded"
    results = sorted((desk.state / "runs/r/results").glob("minimaxm3_1k1k_fp8_*_conc4_gpus_8_ctx_4_gen_4.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["rehearsal"] is True
    assert "REHEARSAL" in said and "1 of 1 runs succeeded" in said
    assert "[INFO] Benchmark completed successfully" in said  # the job's log was streamed


@pytest.mark.parametrize(("faults", "code", "message"), [("nan", 7, "invalid"), ("exit=3", 6, "FAILED, exit code 3")])
def test_a_run_that_failed_is_the_exit_code_of_the_process(desk: Desk, faults: str, code: int, message: str) -> None:
    assert message in desk.run("--conc", "4", code=code, LAUNCHER_REHEARSAL_FAULTS=faults)
    assert (desk.record()["state"], desk.record()["exit_code"]) == ("failed", code)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_the_job_first(desk: Desk, number: signal.Signals, code: int) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    asked = time.time()
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code, out
    events = [json.loads(line) for line in (desk.state / "runs/r/events.jsonl").read_text().splitlines()]
    cancelled = next(e for e in events if e["text"].startswith("asked for the end"))
    assert cancelled["time"] - asked < 2
    assert not desk.alive_jobs()
    assert desk.record()["state"] == "cancelled"
    assert (desk.state / "runs/r/results/multinode_server_logs.tar.gz").is_file()


def test_a_signal_during_an_import_ends_it_and_leaves_no_part(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_ENROOT="slow=60")
    squash = desk.state / "squash"
    wait_until(lambda: squash.is_dir() and list(squash.glob(".*.part")))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert [p.name for p in squash.iterdir() if p.suffix != ".lock"] == []


def test_what_a_killed_launcher_left_is_cleaned_up_by_another(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    assert desk.alive_jobs()
    assert "(nobody drives it)" in desk.launcher("status")
    said = desk.launcher("cleanup")
    assert "1 runs were left behind" in said
    assert not desk.alive_jobs()
    assert desk.launcher("cleanup") == "no run was left behind\n"


def test_a_killed_run_is_resumed_to_its_results_with_one_job(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=3")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    desk.launcher("resume", "r")
    assert desk.record()["state"] == "succeeded"
    assert len(list((desk.state / "jobs").glob("[0-9]*"))) == 1
    assert "has succeeded already" in desk.launcher("resume", "r")


def test_a_driven_run_is_left_alone_and_can_be_followed_and_cancelled(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    log = Path(desk.record()["job"]["output"], "logs", "sweep_1.log")
    wait_until(lambda: log.is_file() and log.stat().st_size)
    assert desk.launcher("cleanup") == "no run was left behind\n"
    assert "another launcher drives this run" in desk.launcher("resume", "r", code=2)
    desk.launcher("cancel", "r")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 6, out
    assert "CANCELLED" in out
    assert "Sweep Orchestrator" in desk.launcher("logs", "r")


def test_results_of_a_job_that_outlived_its_launcher_are_collected(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=2")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    assert "the job has not ended" in desk.launcher("collect", "r", code=6)
    wait_until(lambda: not desk.alive_jobs())
    assert desk.launcher("collect", "r") == "run r: succeeded\n"
    assert [p["state"] for p in desk.summary()["points"]] == ["ok"] * 4


def test_a_signal_ends_every_job_of_a_sweep(desk: Desk) -> None:
    arguments = ("sweep", "-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
    process = desk.start(*arguments, "--max-jobs", "2", LAUNCHER_REHEARSAL_FAULTS="hang")
    wait_until(lambda: [bool(desk.record(run).get("job")) for run in desk.run_ids()] == [True, True])
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143, out
    assert not desk.alive_jobs()
    assert {desk.record(run)["state"] for run in desk.run_ids()} == {"cancelled"}


def test_cleanup_of_a_cancelled_job_of_github_finds_it_by_the_environment(desk: Desk) -> None:
    environment = github_environment(desk)
    process = desk.start("ci", **environment, LAUNCHER_REHEARSAL_FAULTS="hang")
    wait_until(desk.run_ids)
    (run_id,) = desk.run_ids()
    desk.wait_for(running, run_id)
    process.kill()
    process.communicate()
    desk.launcher("cleanup", "--from-env", **environment)
    assert not desk.alive_jobs()
