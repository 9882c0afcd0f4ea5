"""The short form of `scripts/faults inputs`, in a process of its own: what it opens and starts is watched."""

from __future__ import annotations

import subprocess
import sys


def test_broken_input() -> None:
    argv = [sys.executable, "-m", "tests.faults", "inputs", "--processes", "1"]
    numbers = ["--files", "60", "--environments", "100", "--seed", "11"]
    done = subprocess.run([*argv, *numbers], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "60 files and 100 environments: 0 wrong" in done.stdout
