"""`--on` with a real Slurm behind a real sshd: what goes on when everything on the way is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launcher.cli import main
from tests.cli.test_on import go_there
from tests.conftest import SlurmCluster
from tests.remote.servers import Site, site, sshd
from tests.run.driving import ONE

pytestmark = pytest.mark.slurm


def test_connection_and_driver_are_killed_and_another_login_node_takes_the_run_over(
    tmp_path: Path, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {key: value for key, value in slurm_cluster.env.items() if key.startswith(("SLURM", "MUNGE", "PATH"))}
    with site(tmp_path / "one", runner="one-machine", **variables) as first, sshd(tmp_path / "two") as second:
        go_there(first, monkeypatch)
        monkeypatch.setenv("LAUNCHER_REHEARSAL_SECONDS", "3")
        words = ("--runner", "one-machine", "--run-id", "taken", "--conc", "4")
        assert main(["--on", "one-machine", "run", *ONE, *words, "--detach"]) == 0
        record = first.far / "runs/taken/run.json"
        deadline = time.monotonic() + 120
        while (said := json.loads(record.read_text()))["state"] != "running":
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        os.kill(said["owner"]["pid"], signal.SIGKILL)
        first.server.process.kill()
        other = Site(first.root, second)
        go_there(other, monkeypatch)
        capsys.readouterr()
        assert main(["--on", "one-machine", "resume", "taken"]) == 0
        shown = capsys.readouterr().out
        assert "succeeded" in shown and "COMPLETED" in shown
        argv = ["sacct", "-X", "-n", "-P", "-o", "JobID,State,Comment"]
        jobs = subprocess.run(argv, env=slurm_cluster.env, capture_output=True, text=True, timeout=60).stdout.split()
        assert [job.split("|")[1] for job in jobs if job.endswith("|taken")] == ["COMPLETED"]
