"""A job that writes much log, beside the launcher that follows it: a short form of scripts/measure_logs."""

from __future__ import annotations

import json
import subprocess
import sys

from scripts.import_graph import ROOT


def test_much_log_at_once_delays_no_end_and_fills_no_memory() -> None:
    """Generous bounds: the figures proper are in docs/design.md, by the script, on a machine that does nothing else."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "measure_logs"), "brief"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["exit"] == 0 and found["said"] == ""
    assert found["end noticed or asked for, s"] < 30
    assert found["greatest memory MB"] < 200
    assert found["CPU s"] < 30
