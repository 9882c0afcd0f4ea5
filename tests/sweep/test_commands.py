"""`launcher sweep` as a person types it: what is refused with a clear error, and one sweep from start to report."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.cli import detached, ending, sweep_driving, sweeping
from launcher.core.lease import LockOwner
from launcher.core.process import Completed, host_label
from launcher.core.stop import Stop
from launcher.project import Project
from launcher.srtctl.kind import SrtctlKind
from launcher.sweep.decide import Start
from launcher.sweep.estimate import EarlierRun, estimates, expected
from launcher.sweep.ledger import Ledger, names
from launcher.sweep.making import RunMaker
from launcher.sweep.retry import TIME_LIMIT
from launcher.sweep.schema import Began, Left, Policy, Retried, Started
from tests.run.driving import KEY, InProcessUser, LauncherUser, valid_lines
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
    assert "there is a sweep m3-weekend already" in said and "sweep resume m3-weekend" in said
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
    user.launcher("sweep", "list", "--json")
    first, second = valid_lines(user, "sweep list")
    assert first["points"] == {"planned": 2} and second["id"] == "old" and "expected schema 1" in second["unreadable"]
    (line,) = user.launcher("sweep", "status", "m3-weekend", "--watch", "--json").splitlines()
    document = json.loads(user.launcher("sweep", "status", "m3-weekend", "--json"))
    assert json.loads(line) == document and len(document["jobs"]) == 2
    assert [(p["state"], p["reason"]) for p in document["states"]] == [("planned", "no attempt yet")] * 2
    assert "no job has topology x" in user.launcher(
        "sweep", "add", "m3-weekend", "--conc", "8", "--topology", "x", code=2
    )


def test_plan_says_points_cost_and_what_is_done_and_makes_nothing(user: InProcessUser) -> None:
    said = user.launcher("sweep", "plan", *SELECTED)
    assert "2 points in 2 jobs, of which 0 points are done already" in said
    assert "node-hours (nodes × time limit)" in said and "no earlier run says how long it takes" in said
    user.launcher("sweep", "plan", *SELECTED, "--json")
    (document,) = valid_lines(user, "sweep plan", whole=True)
    assert [job["benchmark"]["concurrencies"] for job in document["jobs"]] == [[4], [4]]
    assert not (user.state / "sweeps").exists()


def test_a_sweep_from_its_start_to_points_that_another_one_takes_over(user: InProcessUser) -> None:
    told = user.root / "told"
    script = user.root / "notify"
    script.write_text(f'#!/bin/sh\nsleep 0.3\necho "$LAUNCHER_SWEEP $LAUNCHER_SWEEP_STATE $1" >> {told}\n')
    script.chmod(0o755)
    said = user.launcher("sweep", *SELECTED, "--name", "one", "--canary", "auto", "--notify", f"{script} 'a b'")
    assert "sweep one  2/2 ok" in said
    assert told.read_text().splitlines() == ["one succeeded a b"] * 2, "notices are waited for"
    document = json.loads(user.launcher("sweep", "status", "one", "--json"))
    assert document["points"] == {"ok": 2} and document["exit_code"] == 0
    assert {point["state"] for point in document["states"]} == {"ok"}
    explained = user.launcher("sweep", "resume", "one", "--explain")
    assert explained.count("a valid result of run") == 2
    assert "2 points are done already" in user.launcher("sweep", "plan", *SELECTED)
    user.launcher("sweep", "resume", "one", "--json", "--explain")
    assert user.printed == ""
    user.launcher("sweep", "start", *SELECTED, "--name", "two", "--reuse", "one", "--json")
    *_, end = valid_lines(user, "sweep start")
    assert end == {"event": "sweep-end", "sweep": "two", "points": {"ok": 2}, "exit_code": 0}
    states = json.loads(user.launcher("sweep", "status", "two", "--json"))["states"]
    assert all(point["reused"] and point["run"].startswith("one-") for point in states)
    assert len(user.run_ids()) == 2
    theirs = Path(
        json.loads((user.state / "runs" / states[0]["run"] / "summary.json").read_text())["points"][0]["path"]
    )
    theirs.rename(user.root / "aside")
    assert json.loads(user.launcher("sweep", "status", "two", "--json"))["points"] == {"ok": 2}, "as after a cleanup"
    kept = user.state / "runs" / states[0]["run"] / "results"
    kept.rename(user.root / "kept")
    (lost,) = (p for p in json.loads(user.launcher("sweep", "status", "two", "--json"))["states"] if p["state"] != "ok")
    assert lost["state"] == "missing" and "its result was removed" in lost["reason"]
    assert "sweep two  2/2 ok" in user.launcher("sweep", "resume", "two") and len(user.run_ids()) == 3
    (user.root / "aside").rename(theirs)
    (user.root / "kept").rename(kept)
    user.launcher("sweep", "add", "one", "--conc", "8", "--topology", "1P1D DEP4/TP4")
    assert "1 planned" in user.launcher("sweep", "status", "one")
    user.launcher("sweep", "resume", "one")
    assert json.loads(user.launcher("sweep", "status", "one", "--json"))["points"] == {"ok": 3}
    assert "nothing to remove" in user.launcher("sweep", "gc")
    child = subprocess.Popen(["true"])
    child.wait()
    half = user.state / "sweeps" / f".other.{host_label()}.{child.pid}.0123abcd.part"
    half.mkdir()
    assert user.launcher("sweep", "gc", "--grace", "0").count("would remove") == 3 and half.exists()
    user.launcher("sweep", "gc", "--grace", "0", "--apply")
    assert list((user.state / "sweeps").iterdir()) == [] and len(user.run_ids()) == 4, "runs and results stay"


def test_a_detached_driver_is_stopped_killed_and_taken_over(tmp_path: Path) -> None:
    user = LauncherUser(tmp_path, extra=QUICK)
    said = user.launcher("sweep", "start", *SELECTED, "--name", "d", "--detach", LAUNCHER_REHEARSAL_FAULTS="hang")
    pid = int(said.split("driven by pid ")[1].split(",")[0])
    assert any(isinstance(event, Began) for event in Ledger.load(user.state / "sweeps", "d").events())
    deadline = time.monotonic() + 90
    while '"running"' not in user.launcher("sweep", "status", "d", "--json"):
        assert time.monotonic() < deadline
    for more in ((), ("--detach",)):
        assert "another launcher drives this sweep" in user.launcher("sweep", "resume", "d", *more, code=2)
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
    same = job.runner, job.benchmark.model, job.benchmark.topology, job.benchmark.measures
    history = [EarlierRun(same, (4, 16), seconds) for seconds in (600.0, 900.0, 1200.0)]
    history.append(EarlierRun(("other", *same[1:]), (4, 16), 1.0))
    found = estimates([job, a_job(2)], history)
    assert found[job.key].seconds == 900.0 and found[job.key].n == 3 and a_job(2).key not in found
    (scaled,) = estimates([a_job(1, 40)], history).values()
    assert scaled.seconds == 1800.0, "linear in requests"
    said = expected([job, a_job(2)], found, 2)
    assert "expected 2.0 GPU-hours (1.3 to 2.7 by 3 earlier runs), beside at most 8.0 of 1 job" in said


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


@pytest.fixture
def made(user: InProcessUser, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Sweep ``m``, which nobody has driven."""
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "drive", lambda *given: 0)
        user.launcher("sweep", "start", *SELECTED, "--name", "m")
    return Ledger.load(user.state / "sweeps", "m")


def test_resume_begins_although_nothing_can_be_planned_as_it_was(
    user: InProcessUser, made: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lives is followed all the same. One runner file that is gone stops no other."""
    path = made.directory / "sweep.json"
    document = json.loads(path.read_text())
    document["jobs"][0]["runner"] = "gone"
    path.write_text(json.dumps(document))
    monkeypatch.setattr(SrtctlKind, "fingerprint", lambda self, plan: {"recipe": "another"})
    said = user.launcher("sweep", "resume", "m", code=7)
    assert "runner gone: nothing of it begins" in said and "there is no runner 'gone'" in said
    assert "what is measured has changed since the sweep was made: recipe is another" in said
    assert isinstance(last := made.events()[-1], Left) and (last.why, last.exit_code) == ("finished", 7)


def test_a_fault_of_the_driver_is_what_its_last_line_says(
    user: InProcessUser, made: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*given: Any) -> None:
        raise OSError(5, "Input/output error", "somewhere")

    monkeypatch.setattr(sweep_driving, "run_feed", faulty)
    assert "Input/output error" in user.launcher("sweep", "resume", "m", code=1)
    assert isinstance(last := made.events()[-1], Left) and last.why.startswith("fault: OSError: [Errno 5]")
    assert "nobody drives it; the last driver left: fault: OSError" in user.launcher("sweep", "status", "m")


def test_runners_of_other_controllers_are_named_and_left_out(
    user: InProcessUser, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sinfo is a stand-in here."""
    partitions = "batch\n"
    monkeypatch.setattr(sweeping, "run_program", lambda argv, timeout: Completed(tuple(argv), 0, partitions, "", 0.0))
    here = ("sweep", "plan", *SELECTED[:2], *SELECTED[4:], "--runner", "gb200-nv")
    user.launcher(*here)
    partitions = "other\n"
    said = user.launcher(*here, code=2)
    assert "runner gb200-nv: 2 jobs are left out: this Slurm controller has no partition batch" in said
    job = a_job(1)
    two = [msgspec.structs.replace(job, runner=name) for name in ("local", "gb200-nv")]
    monkeypatch.setattr(sweeping, "selected_jobs", lambda *given: (two, []))
    monkeypatch.setattr(sweeping, "require_startable", lambda *given: None)
    assert "1 job is left out: its jobs need the scheduler slurm" in user.launcher(
        "sweep", "start", *SELECTED, "--name", "n", "--yes"
    )
    sweep = Ledger.load(user.state / "sweeps", "n").sweep
    assert [one.runner for one in sweep.jobs] == ["local"] and "runner gb200-nv" in sweep.left_out[0]


def test_a_detached_start_keeps_the_code_of_what_was_refused_and_hands_flags_on(
    user: InProcessUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is a stand-in, which ends at once and well."""
    words: list[str] = []

    class Process:
        pid, returncode = 1, 0

        def poll(self) -> int:
            return 0

    def start(name: str, argv: Any, log: Path, *given: Any) -> detached.Driver:
        words.extend(argv)
        return detached.Driver(Process(), log, 0)  # type: ignore[arg-type]

    monkeypatch.setattr(detached, "start_driver", start)
    matrix = user.workspace / "m.yaml"
    shipped = Path(sweeping.__file__).parents[2] / "recipes/matrix.yaml"
    matrix.write_text(shipped.read_text() + "\nbad:\n  image: x\n")
    flags = ("--detach", "--detach-on-interrupt", "--name", "d", "--matrix", str(matrix), "-k", KEY, "bad")
    said = user.launcher("sweep", "start", *SELECTED[2:], *flags, code=2)
    assert "that were selected cannot be done" in said and "driven by pid 1" in said
    assert "--detach-on-interrupt" in words
    words.clear()
    user.launcher("sweep", "resume", "d", "--detach", "--take-over")
    assert "--take-over" in words


def test_a_cancel_that_no_driver_took_ends_the_jobs(
    user: InProcessUser, made: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver dies while it is asked. Ends of runs are a stand-in."""
    ended: list[str] = []
    monkeypatch.setattr(ending, "end_runs", lambda project, runs, why: ended.extend(runs) or iter(()))
    made.append(Started(time=0.0, job=made.sweep.jobs[0].key, run="m-1", concurrencies=(4,)))
    (user.state / "runs/m-1").mkdir(parents=True)
    owner, seen = LockOwner.here("drives"), [1, 1]
    monkeypatch.setattr(Ledger, "driver", lambda self: owner if seen and seen.pop() else None)
    assert "1 run was ended" in user.launcher("sweep", "cancel", "m") and ended == ["m-1"]


def test_a_cancel_beside_a_lock_whose_holder_nobody_sees_says_so_and_writes_nothing(
    user: InProcessUser, made: Ledger
) -> None:
    made.append(Started(time=0.0, job=made.sweep.jobs[0].key, run="m-1", concurrencies=(4,)))
    (user.state / "runs/m-1").mkdir(parents=True)
    with (made.directory / "driver.flock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "an unknown process holds its lock" in user.launcher("sweep", "cancel", "m", code=1)
    assert len(made.events()) == 1


def test_limits_of_the_runner_file_are_asked_about_and_kept(
    user: InProcessUser, undriven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = user.root / "runners"
    runners.mkdir()
    text = (Path(sweeping.__file__).parents[2] / "runners/local.yaml").read_text()
    path = runners / "local.yaml"
    path.write_text(f"{text}\nlimits: {{ask-above: 1}}\n")
    start = ("sweep", "start", *SELECTED, "--runners", str(runners), "--name")
    assert "GPU-hours" in user.launcher(*start, "unasked"), "where nobody can answer, nothing is asked"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda said: next(answers))
    assert "nothing was started" in user.launcher(*start, "no", code=2)
    user.launcher(*start, "yes")
    user.launcher(*start, "flag", "--yes")
    assert names(user.state / "sweeps") == ["flag", "unasked", "yes"] and next(answers, None) is None
    for limit, said in (("max-nodes: 1", "needs 2 nodes"), ("max-gpu-hours: 0.1", "reserves")):
        path.write_text(f"{text}\nlimits: {{{limit}}}\n")
        answer = user.launcher(*start, "never", code=2)
        assert said in answer and f"limits.{limit.split(':')[0]} of runner local is" in answer


def test_a_further_attempt_after_a_time_limit_has_a_longer_one(made: Ledger, user: InProcessUser) -> None:
    project = Project.open({"HOME": str(user.root), "LAUNCHER_STATE": str(user.state)}, workspace=str(user.workspace))
    job = made.sweep.jobs[0]
    maker = RunMaker(project, Stop.never(), print, Policy(retry_timeout=2.0))
    seconds = [maker.plan(Start(job, job.concurrencies, why), "x").scheduler.seconds for why in ("first", TIME_LIMIT)]
    assert seconds == [job.seconds, 2 * (job.seconds or 0.0)]
