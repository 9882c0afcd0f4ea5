"""Against Slurm itself: real daemons, real jobs, and a controller that goes away."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from launcher.process import Completed, run
from launcher.slurm.client import JobKey, JobState, SchedulerUnreachable
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.states import Phase
from launcher.slurm.watch import Pace, Watcher
from tests.conftest import SlurmCluster
from tests.conftest import cluster as cluster_script

pytestmark = pytest.mark.slurm


class Counting:
    """Runs programs for real, and keeps which."""

    def __init__(self) -> None:
        self.calls: list[Completed] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed:
        done = run(argv, timeout=timeout, cwd=cwd, env=env, input=input)
        self.calls.append(done)
        return done


class Cluster:
    def __init__(self, given: SlurmCluster, work: Path) -> None:
        self.environ = dict(given.env)
        self.directory: Path = given.directory
        self.nodes: int = given.nodes
        self.work = work
        self.runner = Counting()
        self.scheduler = SlurmCommands(runner=self.runner, environ=self.environ)
        self.submitted: list[JobKey] = []

    def command(self, *argv: str) -> str:
        done = run(argv, timeout=60, env=self.environ, cwd=self.work)
        assert done.ok, done
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> JobKey:
        token = f"run-{secrets.token_hex(4)}"
        job = self.command("sbatch", "--parsable", f"--comment={token}", *options, "--wrap", script)
        self.submitted.append(JobKey(job, time.time(), token))
        return self.submitted[-1]

    def state(self, job: JobKey) -> JobState:
        return self.scheduler.poll([job])[job]

    def until(self, job: JobKey, condition: Callable[[JobState], bool], seconds: float = 40.0) -> JobState:
        end = time.monotonic() + seconds
        while not condition(state := self.state(job)):
            assert time.monotonic() < end, state.describe()
            time.sleep(0.1)
        return state

    def end(self, job: JobKey) -> JobState:
        return self.until(job, lambda state: state.phase is Phase.TERMINAL)


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(slurm_cluster, tmp_path)
    yield cluster
    for job in cluster.submitted:
        subprocess.run(["scancel", job.id], env=cluster.environ, timeout=60, check=False)


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


def test_fifty_jobs_cost_few_calls(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [cluster.submit(f"sleep {n % 10}; exit {n % 2}") for n in range(50)]
    cluster.runner.calls.clear()
    began = time.monotonic()
    states = Watcher(cluster.scheduler).watch(jobs)
    seconds = time.monotonic() - began
    programs = [call.argv[0] for call in cluster.runner.calls]
    with capsys.disabled():
        counts = ", ".join(f"{programs.count(name)} {name}" for name in sorted(set(programs)))
        busy = sum(call.seconds for call in cluster.runner.calls)
        print(f"\n50 jobs that end within {seconds:.0f} s: {counts}, {busy:.2f} s of them running")
    assert [states[job].succeeded for job in jobs] == [n % 2 == 0 for n in range(50)]
    assert all(states[job].word == ("FAILED" if n % 2 else "COMPLETED") for n, job in enumerate(jobs))
    assert programs.count("squeue") <= 2 + seconds / 1.6, "two seconds, less the jitter, at the shortest"
    assert programs.count("sacct") <= programs.count("squeue")
    assert programs.count("scontrol") < 25, "only while accounting lags"


def _controller(cluster: Cluster) -> int:
    return int((cluster.directory / "run" / "slurmctld.pid").read_text())


def _port(cluster: Cluster) -> str:
    found = re.search(r"^SlurmctldPort=(\d+)$", (cluster.directory / "etc" / "slurm.conf").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_controller_that_hangs_is_unknown_and_then_right(cluster: Cluster) -> None:
    job = cluster.submit("sleep 2")
    cluster.until(job, lambda state: state.word == "RUNNING")
    quick = SlurmCommands(environ=cluster.environ, timeout=1.0)
    pid = _controller(cluster)
    seen: list[JobState] = []
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(8, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        state = quick.poll([job])[job]
        assert state.phase is Phase.UNKNOWN and "timed out" in state.reason
        with pytest.raises(SchedulerUnreachable):
            quick.find("run-that-never-was")
        watcher = Watcher(quick, pace=Pace(first=0.5, running=1), on_change=lambda job, old, new: seen.append(new))
        assert watcher.watch([job])[job].succeeded
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)
    assert seen[0].phase is Phase.UNKNOWN


def test_a_controller_that_is_restarted_loses_no_job(cluster: Cluster) -> None:
    job = cluster.submit("sleep 8")
    cluster.until(job, lambda state: state.word == "RUNNING")
    quick = SlurmCommands(environ=cluster.environ, timeout=2.0)
    pid = _controller(cluster)
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    try:
        state = quick.poll([job])[job]
        assert state.phase is Phase.UNKNOWN, state
        assert "squeue: timed out" in state.reason  # it tries for 9 s and more
        assert "sacct: says" in state.reason
    finally:
        restarted = cluster_script("up", cluster.directory, "--nodes", str(cluster.nodes), "--port", _port(cluster))
    assert restarted.returncode == 0, restarted.stderr
    assert cluster.end(job).succeeded
