"""The embedded scheduler with real processes."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.core import publish
from launcher.core.errors import SubmissionError
from launcher.core.process import ProcessIdentity
from launcher.slurm import local
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable
from launcher.slurm.local import KILL_GRACE, LocalScheduler, submit


def work(place: str, seconds: float, code: int | None = None) -> None:
    """Runs for so long, or until the file ``go`` is there; tells when it begins and how it was ended."""
    directory = Path(place)
    publish.write_text(directory / "began", f"{os.getpid()} {os.environ['SLURM_JOB_ID']} {Path.cwd()}")
    print("begin")
    print("a warning", file=sys.stderr)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until and not (directory / "go").exists():
            time.sleep(0.02)
    finally:
        (directory / "left").write_text("")
    print("end")
    if code is not None:
        raise SystemExit(code)


def explode() -> None:
    raise ValueError("no such model")


def vanish() -> None:
    os._exit(7)


def stubborn(place: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    publish.write_text(Path(place) / "began", str(os.getpid()))
    time.sleep(60)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start(place: Path, function: Callable[..., object] = work, *args: object, **more: Any) -> JobKey:
    call = functools.partial(function, *args)
    return submit(place / "jobs", call, name="test", token=f"tok-{place.name}", log=place / "%j.log", **more)


def end_of(place: Path, key: JobKey) -> JobState:
    scheduler = LocalScheduler(place / "jobs")
    until(lambda: scheduler.poll([key])[key].phase is Phase.TERMINAL)
    return scheduler.poll([key])[key]


def has_gone(pid: int) -> bool:
    return ProcessIdentity.of(pid).alive() is False


def test_a_job_that_ends_well(tmp_path: Path) -> None:
    key = start(tmp_path, work, str(tmp_path), 0.1)
    state = end_of(tmp_path, key)
    assert state.succeeded, state
    assert state.submitted == key.submitted
    assert state.started is not None and state.ended is not None and state.started <= state.ended
    assert sorted((tmp_path / "1.log").read_text().splitlines()) == ["a warning", "begin", "end"]
    _, job_id, where = (tmp_path / "began").read_text().split(" ", 2)
    assert (job_id, where) == ("1", str(Path.cwd()))


def test_failures_keep_their_exit_code_and_reason(tmp_path: Path) -> None:
    exits = start(tmp_path, work, str(tmp_path), 0.0, 3, slots=4)
    raises = start(tmp_path, explode, slots=4)
    dies = start(tmp_path, vanish, slots=4)
    assert [key.id for key in (exits, raises, dies)] == ["1", "2", "3"]
    state = end_of(tmp_path, exits)
    assert (state.word, state.exit_code) == ("FAILED", (3, 0))
    state = end_of(tmp_path, raises)
    assert (state.word, state.exit_code) == ("FAILED", (1, 0))
    assert "ValueError: no such model" in (tmp_path / "2.log").read_text()
    state = end_of(tmp_path, dies)
    assert (state.word, state.exit_code) == ("FAILED", None)
    assert "without a result" in state.describe()


def compiled_where() -> None:
    assert sys.pycache_prefix is None and not sys.dont_write_bytecode
    print([os.environ.get(variable) for variable in local._BYTECODE])


def test_where_the_benchmark_compiles_is_not_where_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workflows set for the benchmark's Python is there for the job, and no Python that leads to it has it."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "/tmp/elsewhere")
    key = start(tmp_path, compiled_where)
    assert end_of(tmp_path, key).succeeded
    assert (tmp_path / "1.log").read_text() == "[None, '/tmp/elsewhere']\n"


def leave_a_child(place: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    (Path(place) / "child").write_text(str(child.pid))


def test_nothing_of_a_job_outlives_it(tmp_path: Path) -> None:
    key = start(tmp_path, leave_a_child, str(tmp_path))
    assert end_of(tmp_path, key).succeeded
    until(lambda: has_gone(int((tmp_path / "child").read_text())))


SUBMITTER = """
import sys
from pathlib import Path
from tests.slurm.test_local import work, start
print(start(Path(sys.argv[1]), work, sys.argv[1], 120.0).id)
"""


@pytest.fixture
def foreign(tmp_path: Path) -> JobKey:
    """A job whose submitter, another process with captured output, is gone. The job does not hold its submitter's
    pipes open: its output would then not end before the time-out."""
    done = subprocess.run(
        [sys.executable, "-c", SUBMITTER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        start_new_session=True,
    )
    assert done.stdout == "1\n"
    (key,) = LocalScheduler(tmp_path / "jobs").find(f"tok-{tmp_path.name}")
    until((tmp_path / "began").exists)
    return key


def test_a_job_goes_on_after_its_submitter(tmp_path: Path, foreign: JobKey) -> None:
    state = LocalScheduler(tmp_path / "jobs").poll([foreign])[foreign]
    assert (state.phase, state.word) == (Phase.ALIVE, "RUNNING")
    (tmp_path / "go").write_text("")
    assert end_of(tmp_path, foreign).succeeded
    assert "end" in (tmp_path / "1.log").read_text()


def test_a_job_is_cancelled_from_another_process(tmp_path: Path, foreign: JobKey) -> None:
    pid = int((tmp_path / "began").read_text().split()[0])
    LocalScheduler(tmp_path / "jobs").cancel([foreign])
    state = end_of(tmp_path, foreign)
    assert state.word == "CANCELLED"
    until(lambda: has_gone(pid))
    assert (tmp_path / "left").exists(), "SIGTERM unwinds the function"
    assert "end\n" not in (tmp_path / "1.log").read_text()


def test_a_supervisor_that_is_killed_is_a_node_failure(tmp_path: Path, foreign: JobKey) -> None:
    place = tmp_path / "jobs" / "1"
    job = local.read_job(place)
    assert job is not None
    pid = int((tmp_path / "began").read_text().split()[0])
    os.kill(job.supervisor.pid, signal.SIGKILL)
    state = end_of(tmp_path, foreign)
    assert state.word == "NODE_FAIL" and not state.succeeded
    until(lambda: has_gone(pid))  # nothing goes on unseen
    LocalScheduler(tmp_path / "jobs").cancel([foreign])


def test_a_function_that_does_not_heed_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = start(tmp_path, stubborn, str(tmp_path))
    until((tmp_path / "began").exists)
    pid = int((tmp_path / "began").read_text())
    began = time.time()
    LocalScheduler(tmp_path / "jobs").cancel([key])
    assert LocalScheduler(tmp_path / "jobs").poll([key])[key].phase is Phase.ALIVE, "cancel does not wait for the end"
    state = end_of(tmp_path, key)
    assert state.word == "CANCELLED" and (state.ended or 0.0) - began > KILL_GRACE - 0.1
    until(lambda: has_gone(pid))


def test_the_time_limit(tmp_path: Path) -> None:
    key = start(tmp_path, work, str(tmp_path), 60.0, time_limit=1.5)
    state = end_of(tmp_path, key)
    assert state.word == "TIMEOUT"
    assert state.started is not None and state.ended is not None and 1.4 < state.ended - state.started < 30


def test_jobs_wait_for_a_slot_in_order(tmp_path: Path) -> None:
    gates = [tmp_path / name for name in "abc"]
    for gate in gates:
        gate.mkdir()
    keys = [start(tmp_path, work, str(gate), 120.0, slots=1) for gate in gates]
    scheduler = LocalScheduler(tmp_path / "jobs")
    until((gates[0] / "began").exists)
    time.sleep(0.5)
    assert [state.word for state in scheduler.poll(keys).values()] == ["RUNNING", "PENDING", "PENDING"]
    scheduler.cancel([keys[1]])
    assert end_of(tmp_path, keys[1]).word == "CANCELLED"
    assert scheduler.poll([keys[1]])[keys[1]].started is None
    (gates[0] / "go").write_text("")
    (gates[2] / "go").write_text("")
    assert all(end_of(tmp_path, key).succeeded for key in (keys[0], keys[2]))
    assert not (gates[1] / "began").exists()


def test_a_cancel_before_the_supervisor_is_ready(tmp_path: Path) -> None:
    key = start(tmp_path, work, str(tmp_path), 30.0)
    LocalScheduler(tmp_path / "jobs").cancel([key])
    assert end_of(tmp_path, key).word == "CANCELLED"


def fake_job(place: Path, **changes: object) -> JobKey:
    """A job directory as an earlier boot, or another machine, left it."""
    process = ProcessIdentity.of(os.getpid())
    keeper = {"host": process.host, "boot": process.boot, "pid": process.pid, "started": process.started}
    job = {
        "id": "5",
        "name": "n",
        "token": "t",
        "log": "/l",
        "submitted": 1000.0,
        "time_limit": None,
        "slots": 1,
        "keeper": {**keeper, **changes},
    }
    (place / "5").mkdir(parents=True)
    publish.write_json(place / "5" / "job.json", job)
    publish.write_json(place / "5" / "state.json", {"word": "RUNNING", "started": 1001.0})
    return JobKey("5", 1000.0, "t")


@pytest.mark.parametrize(
    ("changes", "phase", "word"),
    [
        ({}, Phase.ALIVE, "RUNNING"),
        ({"boot": "an-earlier-boot"}, Phase.TERMINAL, "NODE_FAIL"),
        ({"started": "1"}, Phase.TERMINAL, "NODE_FAIL"),  # the pid was given to another process
        ({"host": "another"}, Phase.UNKNOWN, ""),
    ],
)
def test_a_pid_alone_is_no_process(tmp_path: Path, changes: dict[str, object], phase: Phase, word: str) -> None:
    key = fake_job(tmp_path, **changes)
    state = LocalScheduler(tmp_path).poll([key])[key]
    assert (state.phase, state.word) == (phase, word)


def test_who_is_not_there_is_unknown(tmp_path: Path) -> None:
    fake_job(tmp_path)
    scheduler = LocalScheduler(tmp_path)
    for key in (JobKey("6", 1000.0, "t"), JobKey("5", 2000.0, "other")):
        assert scheduler.poll([key])[key].phase is Phase.UNKNOWN
        scheduler.cancel([key])  # and is not touched: the supervisor of this fake is the test itself
    (tmp_path / "5" / "state.json").write_text("{ torn")
    assert scheduler.poll([JobKey("5", 1000.0, "t")]).popitem()[1].phase is Phase.UNKNOWN


def test_finding(tmp_path: Path) -> None:
    key = fake_job(tmp_path)
    assert LocalScheduler(tmp_path).find("t") == [key]
    assert LocalScheduler(tmp_path).find("u") == LocalScheduler(tmp_path).find("") == []
    assert LocalScheduler(tmp_path / "never").find("t") == []
    (tmp_path / "5" / "job.json").write_text(json.dumps({"id": "5"}))
    (tmp_path / "5").rename(tmp_path / "7")
    with pytest.raises(SchedulerUnreachable):
        LocalScheduler(tmp_path).find("t")


def test_evidence(tmp_path: Path) -> None:
    key = fake_job(tmp_path)
    assert '"RUNNING"' in LocalScheduler(tmp_path).describe(key)["state.json"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(SubmissionError, match="could not be started"):
        start(tmp_path, work, str(tmp_path), 0.0)


DAMAGED = (b"", b"[]", b'{"word": 5}', b"[" * 100_000, b"\xff")


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_of_one_job_stops_no_other(tmp_path: Path, content: bytes) -> None:
    jobs = tmp_path / "jobs"
    for number, name in (("1", "job.json"), ("2", "state.json")):
        (jobs / number).mkdir(parents=True)
        (jobs / number / name).write_bytes(content)
    job = local.Job("2", "n", "other", "/l", 1.0, None, 1, ProcessIdentity.current())
    (jobs / "2/job.json").write_bytes(msgspec.json.encode(job))
    scheduler = LocalScheduler(jobs)
    states = scheduler.poll([JobKey("1"), JobKey("2")])
    assert {state.phase for state in states.values()} == {Phase.UNKNOWN}
    scheduler.cancel([JobKey("1"), JobKey("2")])
    with pytest.raises(SchedulerUnreachable, match=r"job\.json"):
        scheduler.find("other")
    key = start(tmp_path, work, str(tmp_path), 0.05, slots=1)
    assert end_of(tmp_path, key).succeeded
