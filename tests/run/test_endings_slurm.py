"""Endings that Slurm itself makes, with the real programs' words: each is put down to the right layer.

The jobs leave logs as srtctl's do: the orchestrator is a few lines of shell that wait for a worker by srun, and say how
it ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.errors import JobError
from launcher.core.process import run
from launcher.run.failures import first_failures
from launcher.run.fields import Verdict
from launcher.run.verdict import verdict
from launcher.slurm.client import JobKey
from tests import conftest
from tests.conftest import SlurmCluster
from tests.slurm.live import Cluster

pytestmark = pytest.mark.slurm

SAY = """say() { echo "$(date '+%F %T') [$1] $2"; }
say INFO 'Starting backend workers'
"""
WAIT = """
wait $!; code=$?
say ERROR "Critical process 'decode_0_node01' exited with code $code"
say INFO 'Cleaning up 1 processes...'
exit 1
"""
WORKER = "srun -n1 --overlap --output=node01_decode_w0.out sh -c '{}' &"
COMPLAINS = 'trap "echo RuntimeError: I was interrupted; exit 1" TERM; echo up; while :; do sleep 0.2; done'


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(slurm_cluster, tmp_path)
    yield cluster
    cluster.close()


def begin(cluster: Cluster, worker: str, *options: str, rest: str = WAIT) -> tuple[JobKey, Path]:
    """Submit a job of one worker; the directory of its logs."""
    logs = cluster.work / f"job{len(cluster.submitted)}"
    logs.mkdir()
    script = SAY + WORKER.format(worker) + rest
    where = (f"--output={logs}/sweep_%j.log", f"--chdir={logs}")
    return cluster.submit(script, *where, "--no-requeue", *options), logs


def ruling(cluster: Cluster, job: JobKey, logs: Path) -> Verdict:
    """What is said of the job's end."""
    state = cluster.until(job, lambda state: state.phase.value == "terminal", seconds=300)
    time.sleep(0.5)  # the last lines of a step that Slurm ends come a moment later
    return verdict(JobError(f"the job ended as {state.describe()}"), state, first_failures(logs, seconds=60))


def test_what_slurm_ends_is_slurms(cluster: Cluster) -> None:
    limited = begin(cluster, COMPLAINS, "--time=1")  # Slurm looks at limits late: this one is taken up last
    cancelled = begin(cluster, COMPLAINS)
    lost = begin(cluster, COMPLAINS, f"--nodelist=node{cluster.nodes}")
    for job, logs in (cancelled, lost):
        cluster.until(job, lambda state: state.word == "RUNNING")
        while not (logs / "node01_decode_w0.out").exists():
            time.sleep(0.1)
    cluster.command("scancel", cancelled[0].id)
    said = ruling(cluster, *cancelled)
    assert said.layer == "scheduler" and "somebody else cancelled it" in said.text and "Runtime" not in said.text

    node = cluster.state(lost[0]).nodes
    cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        said = ruling(cluster, *lost)
        assert said.layer == "node" and f"a node failed on {node}" in said.text and "Runtime" not in said.text
    finally:
        argv = ["scontrol", "update", f"nodename={node}", "state=resume"]
        run(argv, timeout=60, env=cluster.environ)  # a node that answers may be back by itself

    said = ruling(cluster, *limited)
    assert said.layer == "scheduler" and "the time limit was reached on node" in said.text, said
    assert "Runtime" not in said.text and re.search(r", at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", said.text)


def test_a_worker_that_sigkill_ended(cluster: Cluster) -> None:
    job, logs = begin(cluster, "echo up; kill -9 $$")
    (logs / "node01_frontend_0.out").write_text("2026-11-21 09:00:00 ERROR no instances found\n")
    (logs / "benchmark.out").write_text("ValueError: 3 of 4 requests failed\n")
    said = ruling(cluster, job, logs)
    assert said.layer == "server" and "worker decode 0 on node01 was killed by SIGKILL (exit code 137" in said.text
    assert "instances" not in said.text and "ValueError" not in said.text


def test_a_controller_that_workers_cannot_reach(cluster: Cluster) -> None:
    """The worker's srun asks at a port where nobody listens, as when slurmctld is away."""
    conf = (cluster.directory / "etc/slurm.conf").read_text()
    away = cluster.work / "slurm.conf"
    away.write_text(re.sub(r"^SlurmctldPort=.*$", "SlurmctldPort=9", conf, flags=re.MULTILINE))
    for file in (cluster.directory / "etc").iterdir():
        if file.name != "slurm.conf":
            (cluster.work / file.name).symlink_to(file)
    job, logs = begin(cluster, "echo up", rest=WAIT.replace("wait $!", f"wait $!; SLURM_CONF={away} srun true"))
    said = ruling(cluster, job, logs)
    assert said.layer == "scheduler", said
    assert "Slurm's controller could not be reached, since 20" in said.text and "ontact slurm controller" in said.text


CGROUPS = Path("/sys/fs/cgroup")
LIMITS = {
    "by sampling": ("JobAcctGatherParams=OverMemoryKill", "JobAcctGatherFrequency=task=1"),
    "by cgroups": ("TaskPlugin=task/cgroup",),
}
"""How Slurm can keep a memory limit here: cgroups of version 1 want root, and those of 2 systemd (22.05)."""
if os.geteuid() != 0 or not (CGROUPS / "memory/memory.limit_in_bytes").exists():
    del LIMITS["by cgroups"]


@pytest.mark.parametrize("how", LIMITS)
def test_a_worker_that_the_memory_limit_ended(how: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Slurm's sockets of steps lie below it, and the path of a socket has at most 107 bytes (unix(7)).
    tmp_path = tmp_path_factory.mktemp("limit")
    directory, nodes = tmp_path / "slurm", 1
    (directory / "etc").mkdir(parents=True)
    settings = ("CgroupPlugin=cgroup/v1", f"CgroupMountpoint={CGROUPS}", "ConstrainRAMSpace=yes")
    (directory / "etc/cgroup.conf").write_text("\n".join([*settings, ""]))
    port, more = str(conftest.free_ports(nodes + 2)), ("SelectTypeParameters=CR_Core_Memory", *LIMITS[how])
    conftest.require_up(conftest.cluster("up", directory, "--nodes", "1", "--port", port, "--set", *more))
    cluster = Cluster(SlurmCluster(conftest.cluster_environment(directory), directory, nodes), tmp_path)
    try:
        grows = 'echo up; exec python3 -c "x = bytes(1) * (300 << 20); import time; time.sleep(60)"'
        job, logs = begin(cluster, grows, "--mem=80M")
        (logs / "node01_frontend_0.out").write_text("2026-11-21 09:00:00 ERROR no instances found\n")
        said = ruling(cluster, job, logs)
    finally:
        cluster.close()
        conftest.cluster("down", directory)
        with contextlib.suppress(OSError):  # slurmd leaves its own, empty
            (CGROUPS / "memory/slurm_node01").rmdir()
    assert said.layer == "server" and "the memory limit of the job was reached on node01, at 20" in said.text, said
    assert re.search(r"node01_decode_w0.out: slurmstepd\S*: error: .*(oom-kill event|exceeded memory limit)", said.text)
    assert "instances" not in said.text
