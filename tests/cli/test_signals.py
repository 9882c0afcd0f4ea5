"""A signal ends every command with what it started: children, and files that are not whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run.driving import LauncherUser

HANG = 120.0
CODES = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + HANG
    while not path.is_file() or not path.read_text().strip():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)
    return path.read_text().strip()


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + HANG
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("number", "code"), CODES)
def test_an_import_by_hand_ends_and_leaves_no_part(tmp_path: Path, number: signal.Signals, code: int) -> None:
    user = LauncherUser(tmp_path)
    process = user.start("image", "import", "--runner", "local", "org/x:1", LAUNCHER_REHEARSAL_ENROOT="slow=60")
    squash = user.state / "squash"
    deadline = time.monotonic() + HANG
    while not (squash.is_dir() and list(squash.glob(".*.part"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == code, out
    assert [p.name for p in squash.iterdir() if p.suffix != ".lock"] == []


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_command_that_waits_for_a_program_ends_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """By a command of our own, with the program's main function: its program is one that never ends."""
    pid, temporary = tmp_path / "pid", tmp_path / "temporary"
    text = f"""
import sys, tempfile
from pathlib import Path
import launcher.cli
from launcher.cli import status
from launcher.core.process import run

def waits(arguments):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}) as directory:
        Path({str(temporary)!r}).write_text(directory)
        run(["sh", "-c", "echo $$ > {pid}; exec sleep 600"], timeout=600)

status.status = waits
sys.exit(launcher.cli.main(["status"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        env={**os.environ, "LAUNCHER_STATE": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    child, directory = int(wait_for(pid)), Path(wait_for(temporary))
    process.send_signal(number)
    _, printed = process.communicate(timeout=HANG)
    assert process.returncode == code and "Traceback" not in printed, printed
    assert is_gone(child) and not directory.exists()
