"""What every backend must answer, against Slurm itself: real daemons, real jobs, and a controller that goes away.

Each test runs by the commands, and by pyslurm where it is importable (tests/conftest.py says so when it is not).
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.slurm.client import JobKey, JobState, Scheduler, SchedulerUnreachable
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.native import SlurmNative, choose
from launcher.slurm.states import Phase
from launcher.slurm.watch import Pace, Watcher
from tests.conftest import SlurmCluster
from tests.conftest import cluster as cluster_script
from tests.slurm.live import Cluster

pytestmark = pytest.mark.slurm

BACKENDS = ["commands", *(["pyslurm"] if importlib.util.find_spec("pyslurm") else [])]


def hasty_backend(cluster: Cluster, timeout: float) -> Scheduler:
    """The backend under test, less patient."""
    if not isinstance(cluster.scheduler, SlurmNative):
        return SlurmCommands(environ=cluster.environ, timeout=timeout)
    return SlurmNative(cluster.scheduler.version, environ=cluster.environ, timeout=timeout)


@pytest.fixture(params=BACKENDS)
def cluster(slurm_cluster: SlurmCluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    cluster = Cluster(slurm_cluster, tmp_path)
    if request.param == "pyslurm":
        native, why = choose(runner=cluster.runner, environ=cluster.environ)
        if native is None:
            pytest.skip(why)
        cluster.scheduler = native
    yield cluster
    cluster.close()
    if request.param == "pyslurm":
        assert [call.argv for call in cluster.runner.calls if call.argv[:2] == ("squeue", "-h")] == []


def test_the_ends_of_jobs(cluster: Cluster) -> None:
    good = cluster.submit("sleep 0.2")
    bad = cluster.submit("exit 3")
    killed = cluster.submit("kill -9 $$")
    lost = cluster.submit("true", "--output=/nonexistent/x.log")
    state = cluster.end(good)
    assert state.succeeded, state
    assert state.started is not None and state.ended is not None and state.nodes
    state = cluster.end(bad)
    assert (state.word, state.exit_code) == ("FAILED", (3, 0))
    assert cluster.end(killed).exit_code == (0, 9)
    assert "could not be opened" in cluster.end(lost).describe()


def test_a_new_job_is_known_at_once(cluster: Cluster) -> None:
    for _ in range(5):
        assert cluster.state(cluster.submit("sleep 5")).phase is Phase.ALIVE


def test_cancelling(cluster: Cluster) -> None:
    job = cluster.submit("sleep 100")
    cluster.until(job, lambda state: state.word == "RUNNING")
    began = time.monotonic()
    cluster.scheduler.cancel([job])
    assert time.monotonic() - began < 2
    state = cluster.end(job)
    assert state.word == "CANCELLED" and not state.succeeded
    cluster.scheduler.cancel([job])


def test_a_job_of_another_run_is_not_cancelled(cluster: Cluster) -> None:
    job = cluster.submit("sleep 100")
    stale = JobKey(job.id, time.time() - 86400, "run-of-yesterday")
    assert cluster.state(stale).phase is Phase.UNKNOWN
    cluster.scheduler.cancel([stale])
    time.sleep(0.5)
    assert cluster.state(job).phase is Phase.ALIVE


def test_held_and_hopeless_jobs(cluster: Cluster) -> None:
    held = cluster.submit("true", "--hold")
    wide = cluster.submit("true", "-N", "500")
    assert cluster.until(held, lambda state: state.hopeless).reason == "JobHeldUser"
    assert cluster.until(wide, lambda state: state.hopeless).reason in ("PartitionNodeLimit", "PartitionConfig")
    cluster.command("scontrol", "release", held.id)
    assert cluster.end(held).succeeded


def test_a_lost_id_is_found_by_its_token(cluster: Cluster) -> None:
    alive = cluster.submit("sleep 100")
    ended = cluster.submit("true")
    cluster.end(ended)
    for job in (alive, ended):
        (found,) = cluster.scheduler.find(job.token)
        assert found.id == job.id
        assert found.matches(job.submitted, "")
    assert cluster.scheduler.find("run-that-never-was") == []


def test_a_requeued_job_stays_the_same_job(cluster: Cluster) -> None:
    job = cluster.submit("sleep 100", "--requeue")
    cluster.until(job, lambda state: state.word == "RUNNING")
    time.sleep(2.5)  # beyond the tolerance of submit times
    cluster.command("scontrol", "requeue", job.id)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert cluster.state(job).phase is Phase.ALIVE
    (found,) = cluster.scheduler.find(job.token)
    assert found.id == job.id
    cluster.scheduler.cancel([found])
    assert cluster.end(job).word == "CANCELLED"


def test_an_id_that_was_never_given_out(cluster: Cluster) -> None:
    state = cluster.state(JobKey("99999999", time.time(), "run-x"))
    assert state.phase is Phase.UNKNOWN
    assert state.reason.count("does not know the job") == 3


def test_evidence(cluster: Cluster) -> None:
    job = cluster.submit("exit 3")
    cluster.end(job)
    said = cluster.scheduler.describe(job)
    assert "ExitCode=3:0" in said["scontrol"]
    assert "DerivedExitCode" in said["sacct"] and f"{job.id}.batch" in said["sacct"]


def test_a_controller_that_hangs_is_unknown_and_then_right(cluster: Cluster) -> None:
    job = cluster.submit("sleep 2")
    cluster.until(job, lambda state: state.word == "RUNNING")
    hasty = hasty_backend(cluster, 1.0)
    pid = cluster.controller
    seen: list[JobState] = []
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(8, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        state = hasty.poll([job])[job]
        assert state.phase is Phase.UNKNOWN and "timed out" in state.reason
        with pytest.raises(SchedulerUnreachable):
            hasty.find("run-that-never-was")
        watcher = Watcher(hasty, pace=Pace(first=0.5, running=1), on_change=lambda job, old, new: seen.append(new))
        assert watcher.watch([job])[job].succeeded
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)
    assert seen[0].phase is Phase.UNKNOWN


def test_a_controller_that_is_restarted_loses_no_job(cluster: Cluster) -> None:
    job = cluster.submit("sleep 8")
    cluster.until(job, lambda state: state.word == "RUNNING")
    hasty = hasty_backend(cluster, 2.0)
    pid = cluster.controller
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    try:
        state = hasty.poll([job])[job]
        assert state.phase is Phase.UNKNOWN, state
        assert "timed out" in state.reason  # they try for 9 s and more
        assert "sacct: says" in state.reason
    finally:
        restarted = cluster_script("up", cluster.directory, "--nodes", str(cluster.nodes), "--port", cluster.port)
    assert restarted.returncode == 0, restarted.stderr
    assert cluster.end(job).succeeded
