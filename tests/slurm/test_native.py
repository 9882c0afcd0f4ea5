"""SlurmNative with child processes that answer, hang, die and babble in pyslurm's place. No Slurm is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.services import open_scheduler
from launcher.slurm.client import JobKey, Phase, SchedulerUnreachable
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.local import LocalScheduler
from launcher.slurm.native import IMPORT_TIMEOUT, SlurmNative, choose_backend
from launcher.slurm.native_worker import rows
from tests.commands import ScriptedCommands
from tests.slurm.fakes import NOT_KNOWN
from tests.slurm.test_commands import SACCT, SQUEUE, SUBMITTED

DONE = JobKey("1", SUBMITTED, "run-abc")
FAILED = JobKey("2", SUBMITTED, "tok-b")
ROWS = [
    ["1", "COMPLETED", "0:0", "0:0", "1795289084", "1795289084", "1795289085", "node[01-02]", "None", "run-abc token"],
    [
        "2",
        "FAILED",
        "3:0",
        "0:0",
        "1795289084",
        "1795289084",
        "1795289084",
        "node01",
        "NonZeroExitCode",
        "tok-b|with|pipes",
    ],
    ["3", "PENDING", "0:0", "0:0", "1795289084", "", "", "", "JobHeldUser", "tok-c"],
]


def child(body: str) -> list[str]:
    """A worker that runs ``body`` for the question ``q``."""
    script = f"import json, os, sys, time\nrows = {ROWS!r}\nq = json.load(sys.stdin)\n{body}\n"
    return [sys.executable, "-c", script]


ANSWERS = "print(json.dumps({'version': '22.5.3', 'rows': [r for r in rows if r[0] in q.get('ids', '123')]}))"


def native(body: str = ANSWERS, *, timeout: float = 20.0, **replies: Any) -> tuple[SlurmNative, ScriptedCommands]:
    runner = ScriptedCommands(**{"squeue": SQUEUE, "sacct": "", "scontrol": NOT_KNOWN, **replies})
    return SlurmNative(runner=runner, environ=dict(os.environ), timeout=timeout, worker=child(body)), runner


def test_ends_come_with_exit_codes_and_no_command_is_run() -> None:
    scheduler, runner = native()
    held = JobKey("3", SUBMITTED, "tok-c")
    states = scheduler.poll([DONE, FAILED, held])
    assert states[DONE].succeeded and states[DONE].nodes == "node[01-02]"
    assert (states[FAILED].word, states[FAILED].exit_code) == ("FAILED", (3, 0))
    assert states[held].hopeless and states[held].started is None
    assert runner.calls == []


def test_each_question_has_a_child_that_ends_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    scheduler, runner = native(f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); {ANSWERS}")
    for _ in range(3):
        assert scheduler.poll([DONE])[DONE].source == "slurmctld"
    asked = pids.read_text().split()
    assert len(set(asked)) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in asked)
    assert runner.calls == []


def test_the_child_of_a_killed_launcher_ends(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    body = f"open({str(place)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(0.5); {ANSWERS}"
    code = f"from tests.slurm.test_native import *\nnative({body!r})[0].poll([DONE])\n"
    ours = subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT)
    end = time.monotonic() + 60
    while not (place.exists() and place.read_text().endswith("\n")):
        assert time.monotonic() < end and ours.poll() is None
        time.sleep(0.02)
    ours.kill()
    ours.wait()
    _gone(int(place.read_text()))


_ROOT = Path(__file__).resolve().parents[2]


def _gone(pid: int) -> None:
    end = time.monotonic() + 60
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "the child is still there"
        time.sleep(0.02)


def test_what_the_controller_forgot_is_asked_of_accounting() -> None:
    scheduler, runner = native("print('{\"rows\": []}', flush=True)", sacct=SACCT)
    state = scheduler.poll([FAILED])[FAILED]
    assert (state.word, state.source) == ("FAILED", "sacct")
    assert runner.programs() == ["sacct"]


def test_another_job_with_this_id_is_nobodys_news() -> None:
    scheduler, _ = native()
    stale = JobKey("1", SUBMITTED - 86400, "run-of-yesterday")
    state = scheduler.poll([stale])[stale]
    assert state.phase is Phase.UNKNOWN
    assert state.reason.startswith("slurmctld: knows another job with this id; sacct: does not know the job")


def test_a_controller_out_of_reach_is_unknown_without_squeue() -> None:
    scheduler, runner = native('print(\'{"error": "Unable to contact slurm controller"}\', flush=True)')
    state = scheduler.poll([DONE])[DONE]
    assert state.phase is Phase.UNKNOWN
    assert state.reason.startswith("slurmctld: Unable to contact slurm controller")
    assert "squeue" not in runner.programs()
    with pytest.raises(SchedulerUnreachable, match="Unable to contact"):
        scheduler.find("tok-none")


def test_a_child_that_hangs_is_ended_and_holds_up_nobody(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    scheduler, _ = native(f"open({str(pids)!r}, 'a').write(str(os.getpid()) + '\\n'); time.sleep(60)", timeout=4.0)
    began = time.monotonic()
    threads = [threading.Thread(target=scheduler.poll, args=([DONE],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 3 * 4.0, "three questions at once do not wait for one another"
    assert re.match(r"slurmctld: timed out after [34] s", scheduler.poll([DONE])[DONE].reason)
    asked = pids.read_text().split()
    assert len(set(asked)) == 4
    for pid in asked:
        _gone(int(pid))


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(3)",
        "os.kill(os.getpid(), 11)",
        "print('what?', flush=True)",
        "print('[1]', flush=True)",
        "print('{}', flush=True)",
        "print('{\"rows\": [[1, 2]]}', flush=True)",
    ],
)
def test_when_the_child_fails_squeue_is_asked(body: str) -> None:
    scheduler, runner = native(body, sacct=SACCT)
    for _ in range(2):
        assert scheduler.poll([FAILED])[FAILED].exit_code == (3, 0)
    assert runner.programs() == ["squeue", "sacct"] * 2
    assert [job.id for job in scheduler.find("tok-b")] == ["2"]


def test_a_child_that_does_not_greet_delays_a_cancel_by_no_more_than_a_look() -> None:
    worker = [sys.executable, "-c", "import time; time.sleep(60)"]
    runner = ScriptedCommands(scancel="")
    scheduler = SlurmNative(runner=runner, environ=dict(os.environ), timeout=1.0, worker=worker)
    began = time.monotonic()
    scheduler.cancel([DONE])
    assert time.monotonic() - began < IMPORT_TIMEOUT
    assert runner.calls == [("scancel", "1")]


def test_what_is_ours_is_cancelled_by_scancel() -> None:
    scheduler, runner = native(scancel="")
    scheduler.cancel([JobKey("3", SUBMITTED, "tok-c"), DONE, JobKey("77", SUBMITTED, "x")])
    assert runner.calls == [("scancel", "3", "77")]


def test_the_row_of_a_job() -> None:
    job = SimpleNamespace(
        id=7,
        user_id=1000,
        state="FAILED",
        exit_code=1,
        exit_code_signal=9,
        derived_exit_code=5,
        derived_exit_code_signal=0,
        submit_time=10,
        start_time=None,
        end_time=30,
        allocated_nodes=None,
        state_reason="None",
        comment="a|b",
    )
    other = SimpleNamespace(**{**vars(job), "id": 8, "user_id": None})
    library = SimpleNamespace(Jobs=SimpleNamespace(load=lambda: {7: job, 8: other}))
    assert rows(library, {"ids": ["7", "9"]}) == [["7", "FAILED", "1:9", "5:0", "10", "", "30", "", "None", "a|b"]]
    assert [row[0] for row in rows(library, {"user": 1000})] == ["7"]
    assert rows(library, {"ids": []}) == []


def test_without_pyslurm_the_child_says_so() -> None:
    code = "import sys; sys.modules['pyslurm'] = None; from launcher.slurm.native_worker import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].startswith("pyslurm cannot be imported")


@pytest.fixture
def pyslurm_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("body", "scontrol", "why"),
    [
        (ANSWERS, "slurm 23.02.7", "pyslurm 22.5.3 is of another release than slurm 23.02.7"),
        ('print(json.dumps({"error": "not importable"})); sys.exit(1)', "slurm 22.05.8", "not importable"),
        ("sys.exit('fatal: no slurm.conf')", "slurm 22.05.8", "pyslurm's process: "),
        (ANSWERS, (127, "scontrol: not found"), "Slurm's release cannot be told: scontrol: exit 127"),
    ],
)
def test_why_pyslurm_is_not_used(body: str, scontrol: Any, why: str, pyslurm_installed: None) -> None:
    runner = ScriptedCommands(scontrol=scontrol)
    native, said = choose_backend(runner=runner, environ=dict(os.environ), worker=child(body))
    assert native is None
    assert said.startswith(why) and ("fatal" not in body or said.endswith("fatal: no slurm.conf"))


@pytest.mark.parametrize("version", ["slurm 22.05.8", "slurm-wlm 22.05.8"])
def test_pyslurm_of_this_release_is_used(version: str, pyslurm_installed: None) -> None:
    runner = ScriptedCommands(scontrol=version)
    native, said = choose_backend(runner=runner, environ=dict(os.environ), worker=child(ANSWERS))
    assert native is not None
    assert said == f"pyslurm 22.5.3 for {version}"


def test_the_choice_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said: list[str] = []
    for backend in ("auto", "pyslurm", "commands"):
        assert type(open_scheduler("slurm", backend, Path("jobs"), said.append)) is SlurmCommands
    assert type(open_scheduler("local", "auto", Path("jobs"))) is LocalScheduler
    assert said == [
        "Slurm is asked by its commands: pyslurm is not installed",
        "Slurm is asked by its commands: pyslurm is not installed",
        "Slurm is asked by its commands: as asked for",
    ]
