"""`launcher sweep` as a person types it: what is refused with a clear error, and one sweep from start to report."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import sweeping
from launcher.sweep.estimate import Past, estimates, expected
from launcher.sweep.ledger import Ledger, names
from launcher.sweep.schema import Retried, Started
from tests.run.driving import KEY, InProcessUser, LauncherUser
from tests.sweep.test_decide import a_job

SELECTED = ("-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
QUICK = {"LAUNCHER_REHEARSAL_SECONDS": "0.01"}


@pytest.fixture
def user(tmp_path: Path) -> InProcessUser:
    return InProcessUser(tmp_path, extra=QUICK)


@pytest.fixture
def undriven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep is made, and nobody drives it."""
    monkeypatch.setattr(sweeping, "drive", lambda *given: 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "-k", "no-such-*"), "no-such-*"),
        (("start", *SELECTED[:6], "--topology", "9P9D*"), "no entry has topology 9P9D*"),
        (("start", *SELECTED, "--max-nodes", "1"), "needs 2 nodes, and --max-nodes is 1: it could never start"),
        (("start", *SELECTED, "--max-gpu-hours", "3"), "--max-gpu-hours is 3: it could never start"),
        (("start", *SELECTED, "--max-jobs", "0"), "'0' is not a positive number"),
        (("start", *SELECTED, "--max-nodes", "-4"), "is not a positive number"),
        (("start", *SELECTED, "--max-gpu-hours", "-1"), "is not a number of GPU-hours"),
        (("start", *SELECTED, "--retries", "-1"), "or negative"),
        (("start", *SELECTED, "--fail-fast=x1"), "neither a number of failures nor a layer"),
        (("start", *SELECTED, "--canary", "x"), "no job is called x"),
        (("start", *SELECTED, "--name", "../x"), "cannot be a sweep's name"),
        (("start", *SELECTED, "--run-id", "x"), "a sweep has many runs"),
        (("start", *SELECTED, "--notify", "'"), "it cannot be split into words"),
        (("start", *SELECTED, "--reuse", "nobody"), "there is no sweep nobody"),
        (("status", "m4"), "there is no sweep m4"),
        (("status",), "there is no sweep"),
        (("resume", "m4"), "there is no sweep m4"),
        (("pause", "m4"), "there is no sweep m4"),
        (("add", "m4", "--conc", "8"), "there is no sweep m4"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_made(user: InProcessUser, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit) if said.startswith(("'0'", "is not", "or neg")) else _nothing() as caught:
        assert said in user.launcher("sweep", *words, code=2)
    if caught is not None:
        assert caught.value.code == 2
    assert names(user.state / "sweeps") == []


class _nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        return None


def test_a_name_that_is_taken_an_unknown_one_and_old_ledgers(user: InProcessUser, undriven: None) -> None:
    user.launcher("sweep", "start", *SELECTED, "--name", "m3-weekend")
    before = (user.state / "sweeps/m3-weekend/sweep.json").read_bytes()
    other = (*SELECTED[:-1], "16", "--name", "m3-weekend")
    said = user.launcher("sweep", "start", *other, code=2)
    assert "there is a sweep m3-weekend already" in said and "launcher sweep resume m3-weekend" in said
    assert (user.state / "sweeps/m3-weekend/sweep.json").read_bytes() == before
    assert "did you mean m3-weekend?" in user.launcher("sweep", "status", "m3-weekand", code=2)
    assert "no job of this sweep is for runner x" in user.launcher(
        "sweep", "drain", "m3-weekend", "--runner", "x", code=2
    )
    assert "nobody drives it" in user.launcher("sweep", "pause", "m3-weekend")
    assert "0 runs were ended" in user.launcher("sweep", "cancel", "m3-weekend")
    (user.state / "sweeps/old").mkdir()
    (user.state / "sweeps/old/sweep.json").write_text('{"schema": 0, "id": "old"}')
    assert "expected schema 1, and it is 0" in user.launcher("sweep", "resume", "old", code=2)
    listed = user.launcher("sweep", "list")
    assert "m3-weekend  0/2 ok  2 planned" in listed and "old  unreadable" in listed
    assert "no job has topology x" in user.launcher(
        "sweep", "add", "m3-weekend", "--conc", "8", "--topology", "x", code=2
    )


def test_plan_says_points_cost_and_what_is_done_and_makes_nothing(user: InProcessUser) -> None:
    said = user.launcher("sweep", "plan", *SELECTED)
    assert "2 points in 2 jobs, of which 0 points are done already" in said
    assert "node-hours (nodes × time limit)" in said and "no earlier run says how long it takes" in said
    document = json.loads(user.launcher("sweep", "plan", *SELECTED, "--json"))
    assert [job["benchmark"]["concurrencies"] for job in document["jobs"]] == [[4], [4]]
    assert not (user.state / "sweeps").exists()


def test_a_sweep_from_its_start_to_points_that_another_one_takes_over(user: InProcessUser) -> None:
    told = user.root / "told"
    script = user.root / "notify"
    script.write_text(f'#!/bin/sh\necho "$LAUNCHER_SWEEP $LAUNCHER_SWEEP_STATE $1" >> {told}\n')
    script.chmod(0o755)
    said = user.launcher("sweep", *SELECTED, "--name", "one", "--canary", "auto", "--notify", f"{script} 'a b'")
    assert "sweep one  2/2 ok" in said and "2 of 2 runs succeeded" in said
    deadline = time.monotonic() + 30
    while not told.exists() or len(told.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert set(told.read_text().splitlines()) == {"one succeeded a b"}
    document = json.loads(user.launcher("sweep", "status", "one", "--json"))
    assert document["points"] == {"ok": 2} and document["exit_code"] == 0
    assert {point["state"] for point in document["states"]} == {"ok"}
    explained = user.launcher("sweep", "resume", "one", "--explain")
    assert explained.count("a valid result of run") == 2
    assert "2 points are done already" in user.launcher("sweep", "plan", *SELECTED)
    again = user.launcher("sweep", "start", *SELECTED, "--name", "two", "--reuse", "one")
    assert "sweep two  2/2 ok" in again
    states = json.loads(user.launcher("sweep", "status", "two", "--json"))["states"]
    assert all(point["reused"] and point["run"].startswith("one-") for point in states)
    assert len(user.run_ids()) == 2
    user.launcher("sweep", "add", "one", "--conc", "8", "--topology", "1P1D DEP4/TP4")
    assert "1 planned" in user.launcher("sweep", "status", "one")
    user.launcher("sweep", "resume", "one")
    assert json.loads(user.launcher("sweep", "status", "one", "--json"))["points"] == {"ok": 3}
    assert "nothing to remove" in user.launcher("sweep", "gc")
    assert "would be removed" in user.launcher("sweep", "gc", "--grace", "0")
    user.launcher("sweep", "gc", "--grace", "0", "--apply")
    assert names(user.state / "sweeps") == [] and len(user.run_ids()) == 3, "runs and results stay"


def test_a_detached_driver_is_stopped_killed_and_taken_over(tmp_path: Path) -> None:
    user = LauncherUser(tmp_path, extra=QUICK)
    said = user.launcher("sweep", "start", *SELECTED, "--name", "d", "--detach", LAUNCHER_REHEARSAL_FAULTS="hang")
    pid = int(said.split("driven by pid ")[1].split(",")[0])
    deadline = time.monotonic() + 90
    while '"running"' not in user.launcher("sweep", "status", "d", "--json"):
        assert time.monotonic() < deadline
    assert "another launcher drives this sweep" in user.launcher("sweep", "resume", "d", code=2)
    os.kill(pid, signal.SIGKILL)
    said = user.launcher("sweep", "cancel", "d")
    assert "runs were ended" in said and not user.alive_jobs()
    assert "nobody drives it" in user.launcher("sweep", "status", "d")
    assert "2/2 ok" in user.launcher("sweep", "resume", "d", timeout=180)


def test_an_interrupt_can_leave_the_jobs_alive(tmp_path: Path) -> None:
    user = LauncherUser(tmp_path, extra=QUICK)
    words = ("sweep", "start", *SELECTED, "--name", "d", "--detach-on-interrupt")
    with user.start(*words, LAUNCHER_REHEARSAL_FAULTS="hang") as process:
        deadline = time.monotonic() + 90
        while not (user.state / "sweeps/d").exists() or '"running"' not in user.launcher(
            "sweep", "status", "d", "--json"
        ):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 7, out
    assert user.alive_jobs()
    assert "runs were ended" in user.launcher("sweep", "cancel", "d") and not user.alive_jobs()


def test_estimates_are_by_runs_of_the_same_and_say_how_many_and_how_far_apart() -> None:
    job = a_job(1, 4, 16)
    same: dict[str, Any] = {
        "runner": job.runner,
        "model": job.benchmark.model,
        "topology": job.benchmark.topology,
        "measures": job.benchmark.measures,
    }
    history = [Past(**same, concurrencies=(4, 16), seconds=s) for s in (600.0, 900.0, 1200.0)]
    history.append(Past(**{**same, "runner": "other"}, concurrencies=(4, 16), seconds=1.0))
    found = estimates([job, a_job(2)], history)
    assert found[job.key].seconds == 900.0 and found[job.key].n == 3 and a_job(2).key not in found
    (scaled,) = estimates([a_job(1, 40)], history).values()
    assert scaled.seconds == 1800.0, "linear in requests"
    said = expected([job, a_job(2)], found, 2)
    assert "expected 2.0 GPU-hours (1.3 to 2.7 by 3 earlier runs), beside at most 8.0 of 1 jobs" in said


def test_events_of_a_retry_name_class_signature_and_wait(tmp_path: Path) -> None:
    from launcher.sweep.schema import Policy
    from scripts.measure_sweeps.emulation import drive, make_sweep
    from tests.sweep.test_crash import row

    make_sweep(tmp_path, "s", [row(1, 4, END_FIRST="PREEMPTED")], Policy())
    drive(tmp_path, "s")
    events = Ledger.load(tmp_path / "state/sweeps", "s").events()
    (retry,) = [event for event in events if isinstance(event, Retried)]
    assert (retry.kind, retry.wait) == ("preempted", 0.0) and retry.signature.startswith("scheduler: ")
    assert [event.why for event in events if isinstance(event, Started)] == ["first", "preempted"]
