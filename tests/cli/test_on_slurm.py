"""`--on` with a real Slurm behind a real sshd: what goes on when everything on the way is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.core.lease import LockOwner
from tests.cli.test_on import go_there
from tests.conftest import SlurmCluster
from tests.remote.servers import Site, on_host, site, sshd
from tests.run.driving import KEY, ONE

pytestmark = pytest.mark.slurm


def cluster_variables(cluster: SlurmCluster) -> dict[str, str]:
    return {key: value for key, value in cluster.env.items() if key.startswith(("SLURM", "MUNGE", "PATH"))}


def jobs_of(cluster: SlurmCluster, run: str) -> list[str]:
    """The states of the jobs of runs whose ids begin like that, by accounting."""
    argv = ["sacct", "-X", "-n", "-P", "-o", "State,Comment"]
    printed = subprocess.run(argv, env=cluster.env, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return [state for state, _, comment in (line.partition("|") for line in printed) if comment.startswith(run)]


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_connection_and_driver_are_killed_and_another_login_node_takes_the_run_over(
    tmp_path: Path, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        site(tmp_path / "one", runner="one-machine", **cluster_variables(slurm_cluster)) as first,
        sshd(tmp_path / "two") as second,
    ):
        go_there(first, monkeypatch)
        monkeypatch.setenv("LAUNCHER_REHEARSAL_SECONDS", "3")
        words = ("--runner", "one-machine", "--run-id", "taken", "--conc", "4")
        assert main(["--on", "one-machine", "run", *ONE, *words, "--detach"]) == 0
        record = first.far / "runs/taken/run.json"
        until(lambda: json.loads(record.read_text())["state"] == "running")
        printed = json.loads(record.read_text())
        os.kill(printed["owner"]["pid"], signal.SIGKILL)
        first.server.process.kill()
        other = Site(first.root, second)
        go_there(other, monkeypatch)
        capsys.readouterr()
        assert main(["--on", "one-machine", "resume", "taken"]) == 0
        shown = capsys.readouterr().out
        assert "succeeded" in shown and "COMPLETED" in shown
        assert jobs_of(slurm_cluster, "taken") == ["COMPLETED"]


def test_a_sweep_is_taken_over_once_the_lease_of_a_login_node_that_is_gone_is_over(
    tmp_path: Path, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two login nodes with names of their own; of the first one driver and sshd are killed while a job runs."""
    if os.geteuid():
        pytest.skip("a host's name is changed in a namespace of its own: needs root")
    hosts = [on_host(tmp_path, name) for name in ("login-a", "login-b")]
    variables = {"program": hosts[0], **cluster_variables(slurm_cluster)}
    with (
        site(tmp_path / "one", runner="one-machine", **variables) as first,
        sshd(tmp_path / "two", program=hosts[1]) as second,
    ):
        go_there(first, monkeypatch)
        monkeypatch.setenv("LAUNCHER_REHEARSAL_SECONDS", "8")  # its driver asks how it stands every 5 s
        words = ("-k", KEY, "--seq", "1k1k", "--conc", "16", "--topology", "1P1D*", "--max-jobs", "1")
        words += ("--lease", "5", "--name", "gone")
        assert main(["--on", "one-machine", "sweep", "start", *words, "--runner", "one-machine", "--detach"]) == 0
        sweep = first.far / "sweeps/gone"
        until(lambda: any(state_of(run) == "running" for run in first.far.glob("runs/gone-*")))
        owner = LockOwner.from_json((sweep / "driver").read_bytes())
        assert owner.host == "login-a"
        os.kill(owner.pid, signal.SIGKILL)
        first.server.process.kill()
        go_there(Site(first.root, second), monkeypatch)
        monkeypatch.setenv("LAUNCHER_REHEARSAL_SECONDS", "8")  # what runs get from here, a resume gives them too
        resume = ["--on", "one-machine", "sweep", "resume", "gone"]
        assert main(resume) == 2, "who cannot be proven gone is left in peace"
        assert "another launcher drives this sweep" in capsys.readouterr().err
        assert main([*resume, "--take-over"]) == 0
        assert "sweep gone  2/2 ok" in capsys.readouterr().out
        assert "on login-a" in (printed := (sweep / "driver.log").read_text()) and "no heartbeat for" in printed
        drivers = [json.loads(line).get("driver", "") for line in (sweep / "events.jsonl").read_text().splitlines()]
        assert [driver.split()[3].rstrip(",") for driver in drivers if driver] == ["login-a", "login-b"]
        assert jobs_of(slurm_cluster, "gone-") == ["COMPLETED"] * 2


def state_of(run: Path) -> Any:
    with contextlib.suppress(OSError):
        return json.loads((run / "run.json").read_text())["state"]
