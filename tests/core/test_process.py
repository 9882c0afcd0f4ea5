"""Running programs: the whole answer, a bound on the time, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import Cancelled
from launcher.core.process import NOT_EXECUTABLE, NOT_FOUND, clean_environment, pid_exists, run, stoppable
from launcher.core.stop import EndedBySignal, ended_by_signals

PYTHON = sys.executable


def test_the_answer_is_whole() -> None:
    done = run([PYTHON, "-c", "import sys; print(sys.stdin.read()); sys.stderr.write('e'); sys.exit(3)"],
               timeout=20, input="hello")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr, done.ok) == (3, "hello\n", "e", False)


def test_a_program_that_is_not_there_or_may_not_run(tmp_path: Path) -> None:
    assert run(["no-such-program-at-all"], timeout=5).returncode == NOT_FOUND
    (tmp_path / "plain").write_text("x")
    assert run([str(tmp_path / "plain")], timeout=5).returncode == NOT_EXECUTABLE
    assert "no such directory" in run([PYTHON, "-c", ""], timeout=5, cwd=tmp_path / "none").stderr


def test_a_time_out_ends_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid_file}; wait"
    began = time.monotonic()
    for timeout in (0.5, 5.0, 25.0):  # a busy machine may need longer for the shell's start
        done = run(["sh", "-c", script], timeout=timeout)
        assert done.timed_out
        if pid_file.is_file() and pid_file.read_text():
            break
    assert time.monotonic() - began < 50
    assert not _alive(int(pid_file.read_text()))


def test_asked_to_stop_it_ends_the_program_and_raises(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def begun() -> bool:
        return pid_file.is_file() and bool(pid_file.read_text())

    began = time.monotonic()
    with pytest.raises(Cancelled, match=r"^stopped while this ran: sh -c echo"):
        stoppable(begun)(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"], timeout=60)
    assert time.monotonic() - began < 50
    assert not _alive(int(pid_file.read_text()))


def test_stoppable_gives_the_answer_when_nobody_stops_it() -> None:
    code = "import sys, time; time.sleep(0.5); sys.stdout.write(sys.stdin.read() * 2)"
    done = stoppable(lambda: False)([PYTHON, "-c", code], timeout=20, input="ab" * 100_000)
    assert done.ok and len(done.stdout) == 400_000


def test_the_environment_of_a_submission_is_clean() -> None:
    dirty = {"SBATCH_PARTITION": "x", "SLURM_JOB_ID": "1", "VIRTUAL_ENV": "/v", "SLURM_CONF": "/c", "HOME": "/h"}
    assert clean_environment(dirty) == {"HOME": "/h", "SLURM_CONF": "/c"}


def _alive(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_program_is_started_ends_it(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Raised inside of Popen, an exception left a program that nobody knew. (Seen on a busy machine.)"""
    started: list[int] = []

    class Starting(subprocess.Popen[str]):
        def _execute_child(self, *arguments: Any) -> None:
            super()._execute_child(*arguments)  # type: ignore[misc]
            started.append(self.pid)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Starting)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stays so
    try:
        with pytest.raises((EndedBySignal, KeyboardInterrupt)), ended_by_signals():
            run(["sleep", "600"], timeout=600)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not pid_exists(started[0])
