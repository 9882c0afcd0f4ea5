"""What every backend must answer, against Slurm itself: real daemons, real jobs, and a controller that goes away.

Each test runs by the commands, and by pyslurm where it is importable (tests/conftest.py says so when it is not).
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.slurm.client import JobKey, Phase, Scheduler, SchedulerUnreachable
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.native import SlurmNative, choose_backend
from launcher.slurm.poller import JobPoller, Pace
from tests.conftest import SlurmCluster
from tests.conftest import cluster as cluster_script
from tests.slurm.following import follow, rounds
from tests.slurm.live import Cluster

pytestmark = pytest.mark.slurm

BACKENDS = ["commands", *(["pyslurm"] if importlib.util.find_spec("pyslurm") else [])]


def hasty_backend(cluster: Cluster, timeout: float) -> Scheduler:
    """The backend under test, less patient."""
    if not isinstance(cluster.scheduler, SlurmNative):
        return SlurmCommands(environ=cluster.environ, timeout=timeout)
    return SlurmNative(environ=cluster.environ, timeout=timeout)


@pytest.fixture(params=BACKENDS)
def cluster(slurm_cluster: SlurmCluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    cluster = Cluster(slurm_cluster, tmp_path)
    if request.param == "pyslurm":
        native, why = choose_backend(runner=cluster.runner, environ=cluster.environ)
        if native is None:
            pytest.skip(why)
        cluster.scheduler = native
    yield cluster
    cluster.close()
    if request.param == "pyslurm":
        assert [call for call in cluster.runner.calls if call[:2] == ("squeue", "-h")] == []


def test_the_ends_of_jobs(cluster: Cluster) -> None:
    good = cluster.submit("sleep 0.2", "-N2")
    bad = cluster.submit("exit 3")
    killed = cluster.submit("kill -9 $$")
    lost = cluster.submit("true", "--output=/nonexistent/x.log")
    state = cluster.end(good)
    assert state.succeeded, state
    assert state.started is not None and state.ended is not None
    assert re.search(r"[\[,]", state.nodes), f"both nodes, which accounting has seconds later: {state.nodes}"
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
    assert time.monotonic() - began < 30, "it does not wait for the end of the job, which may be long"
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


def test_our_hold_is_released(cluster: Cluster) -> None:
    job = cluster.submit("true", "--hold", f"--dependency=afterany:{cluster.submit('true').id}")
    assert cluster.until(job, lambda state: state.word == "PENDING").reason == "JobHeldUser"
    cluster.scheduler.release(job)
    assert cluster.end(job).succeeded
    cluster.scheduler.release(job)
    cluster.scheduler.release(JobKey("99999999"))


def test_a_failed_step_of_a_good_job_is_seen(cluster: Cluster) -> None:
    """Not so of steps that are cancelled, as srtctl ends its servers."""
    bad = cluster.submit("srun -n1 sh -c 'exit 5'; exit 0", "--output=/dev/null")
    ended = cluster.submit("srun -n1 --overlap sleep 60 & sleep 1; kill $!; wait; exit 0", "--output=/dev/null")
    state = cluster.end(bad)
    assert state.succeeded and state.derived == (5, 0)
    assert "a step of it ended with exit code 5" in state.describe()
    state = cluster.end(ended)
    assert state.succeeded and state.derived in ((0, 9), (0, 0)) and state.failed_step == ""


def test_a_record_that_lacks_the_exit_code_of_a_step_is_not_believed(cluster: Cluster) -> None:
    """Accounting keeps 0:0 for ever when the step's end came to the controller after the job's; this one is made so."""
    bad = cluster.submit("srun -n1 sh -c 'exit 5'; exit 0", "--output=/dev/null")
    good = cluster.submit("srun -n1 true", "--output=/dev/null")
    assert cluster.end(bad).succeeded and cluster.end(good).succeeded
    cluster.command("sacctmgr", "-i", "modify", "job", "where", f"jobid={bad.id}", "set", "DerivedExitCode=0")
    assert cluster.command("sacct", "-X", "-n", "-P", "-j", bad.id, "-o", "DerivedExitCode") == "0:0"
    states = cluster.scheduler.poll([bad, good])
    assert states[bad].derived == (5, 0) and "exit code 5" in states[bad].failed_step
    assert states[good].derived == (0, 0) and states[good].failed_step == ""


def test_our_own_hold_is_no_reason_of_an_end(cluster: Cluster) -> None:
    held = cluster.submit("true", "--hold", "--output=/dev/null")
    cluster.scheduler.release(held)
    assert "JobHeld" not in cluster.end(held).describe()


def test_the_tasks_of_an_array(cluster: Cluster) -> None:
    """Each has an id of its own; the array's is that of its last task, and stands for all of them until they start."""
    script = "sleep 1; [ $SLURM_ARRAY_TASK_ID != 2 ] || exit 3"
    last = cluster.submit(script, "--array=0-3", "--hold", "--output=/dev/null")
    assert cluster.state(last).hopeless
    cluster.scheduler.release(last)
    end = time.monotonic() + 60
    while len(tasks := cluster.scheduler.find(last.token)) < 4:
        assert time.monotonic() < end, tasks
        time.sleep(0.1)
    assert last.id in [task.id for task in tasks]
    states = follow(cluster.scheduler, tasks, pace=Pace(first=0.3, running=0.5))
    (bad,) = [task for task, state in states.items() if not state.succeeded]
    assert [state.word for task, state in states.items() if task != bad] == ["COMPLETED"] * 3
    assert (states[bad].word, states[bad].exit_code) == ("FAILED", (3, 0))
    assert task_of(cluster, bad) == "2" and task_of(cluster, last) == "3"


def task_of(cluster: Cluster, job: JobKey) -> str:
    found = re.search(r"\bArrayTaskId=(\d+)", cluster.command("scontrol", "show", "job", "-o", job.id))
    assert found is not None
    return found[1]


def test_a_task_that_is_requeued_stays_itself(cluster: Cluster) -> None:
    array = cluster.submit("sleep 100", "--array=0-1", "--requeue", "--output=/dev/null")
    cluster.until(array, lambda state: state.word == "RUNNING")
    tasks = cluster.scheduler.find(array.token)
    time.sleep(2.5)  # beyond the tolerance of submit times
    cluster.command("scontrol", "requeue", f"{array.id}_1")
    for _ in range(10):
        assert {state.phase for state in cluster.scheduler.poll(tasks).values()} == {Phase.ALIVE}
        time.sleep(0.1)
    assert {task.id for task in cluster.scheduler.find(array.token)} == {task.id for task in tasks}
    cluster.scheduler.cancel(tasks)
    assert {state.word for state in follow(cluster.scheduler, tasks).values()} == {"CANCELLED"}


def test_the_components_of_a_heterogeneous_job(cluster: Cluster) -> None:
    """They start and end with their leader, whose id sbatch prints; to release or cancel it is enough."""
    leader = cluster.submit("sleep 1; exit 4", "--hold", "--output=/dev/null", "-N1", component="-N2")
    both = cluster.scheduler.find(leader.token)
    assert sorted(int(job.id) for job in both) == [int(leader.id), int(leader.id) + 1]
    assert all(state.hopeless for state in cluster.scheduler.poll(both).values())
    cluster.scheduler.release(leader)
    states = follow(cluster.scheduler, both, pace=Pace(first=0.3, running=0.5))
    assert [(state.word, state.exit_code) for state in states.values()] == [("FAILED", (4, 0))] * 2
    other = cluster.submit("sleep 100", "--output=/dev/null", "-N1", component="-N1")
    both = cluster.scheduler.find(other.token)
    cluster.until(other, lambda state: state.word == "RUNNING")
    cluster.scheduler.cancel([other])
    assert {state.word for state in follow(cluster.scheduler, both).values()} == {"CANCELLED"}


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
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(8, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        state = hasty.poll([job])[job]
        assert state.phase is Phase.UNKNOWN and "timed out" in state.reason
        with pytest.raises(SchedulerUnreachable):
            hasty.find("run-that-never-was")
        poller = JobPoller(hasty, pace=Pace(first=0.5, running=1))
        poller.watch(job)
        seen = [change for answer in rounds(poller) for change in answer.changes]
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)
    assert seen[0].state.phase is Phase.UNKNOWN and seen[-1].state.succeeded


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
