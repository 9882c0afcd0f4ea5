"""Node-local staging on a real Slurm cluster of one machine, with a directory for each node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launcher.core.process import Completed, run
from launcher.core.stop import Stop
from launcher.model.manifest import Manifest
from launcher.model.nodes import (
    DIRECTORY,
    Allocation,
    NodeResult,
    NodeTask,
    end_orphaned_jobs,
    stage_on_nodes,
    stage_on_this_node,
    this_node,
)
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.poller import Pace
from tests.commands import ScriptedCommands
from tests.conftest import SlurmCluster
from tests.model.checkpoints import checkpoint
from tests.model.test_stage import content

NODES = ["node02", "node03", "node05"]


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    return slurm_cluster


@dataclass
class NodeDirectories:
    """A source, a directory for each of three nodes, a state directory."""

    root: Path
    nodes: list[str]
    said: list[str] = field(default_factory=list)

    @property
    def template(self) -> str:
        return str(self.root / "{node}" / "nvme" / "M")

    @property
    def listed(self) -> str:
        return ",".join(self.nodes)

    def of(self, node: str) -> Path:
        return self.root / node / "nvme" / "M"

    def stage(self, where: Allocation | None = None) -> list[NodeResult]:
        return stage_on_nodes(
            NodeTask(str(self.root / "archive" / "M"), self.template),
            where or Allocation(nodes=self.listed),
            state=self.root / "state",
            scheduler=SlurmCommands,
            log=self.said.append,
        )

    def left(self) -> list[str]:
        """Jobs of stagings that live, and what they left in the state directory."""
        shown = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True, timeout=60).stdout
        jobs = [line for line in shown.splitlines() if "launcher-stage-" in line]
        return jobs + [path.name for path in (self.root / "state" / DIRECTORY).iterdir()]


@pytest.fixture
def node_directories(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeDirectories:
    monkeypatch.setattr("launcher.model.nodes._PACE", Pace(first=0.3, running=1.0, pending=0.5))
    monkeypatch.setattr("launcher.model.nodes._RESULT_TIMEOUT", 2.0)
    checkpoint(tmp_path / "archive" / "M")
    names = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, timeout=60).stdout.split()
    nodes = sorted(set(names))[1:4]
    for node in nodes:
        (tmp_path / node).mkdir()
    return NodeDirectories(tmp_path, nodes)


@pytest.mark.slurm
def test_every_node_gets_its_own_copy(
    node_directories: NodeDirectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, source = node_directories.nodes, tmp_path / "archive" / "M"
    (tmp_path / nodes[1] / "nvme").write_text("a file in the place of the directory")
    first = node_directories.stage()
    assert [(v.node, v.ok) for v in first] == [(nodes[0], True), (nodes[1], False), (nodes[2], True)]
    assert "nvme" in (first[1].error or "")
    for node in (nodes[0], nodes[2]):
        assert content(node_directories.of(node)) == content(source)
        assert Manifest.read(node_directories.of(node)) is not None
    assert node_directories.left() == []

    (tmp_path / nodes[1] / "nvme").unlink()
    options = ["--parsable", "--nodes=3", f"--nodelist={node_directories.listed}", "--output=/dev/null"]
    job = subprocess.run(
        ["sbatch", *options, "--wrap", "sleep 60"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.strip().partition(";")[0]  # fmt: skip
    try:
        run(["sh", "-c", f'until [ -n "$(squeue -h -j {job} -t RUNNING)" ]; do sleep 0.1; done'], timeout=60)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        again = node_directories.stage(Allocation())
        monkeypatch.delenv("SLURM_JOB_ID")
        assert [(v.node, v.how) for v in again] == [(nodes[0], "there"), (nodes[1], "staged"), (nodes[2], "there")]
        some = node_directories.stage(Allocation(job=job, exclude=(nodes[0],)))
        assert [(v.node, v.ok, v.copied) for v in some] == [(nodes[1], True, 0), (nodes[2], True, 0)]
    finally:
        subprocess.run(["scancel", job], timeout=60)


@pytest.mark.slurm
def test_slurm_picks_nodes_that_are_fit(node_directories: NodeDirectories) -> None:
    broken = node_directories.nodes[0]
    with out_of_service(broken, "drain"):
        results = node_directories.stage()
        assert [(v.node, v.ok) for v in results] == [
            (broken, False),
            (node_directories.nodes[1], True),
            (node_directories.nodes[2], True),
        ]
        assert "Slurm says that it is drain" in (results[0].error or "")
        picked = node_directories.stage(Allocation(count=2, exclude=tuple(node_directories.nodes)))
        assert len(picked) == 2
        assert all(v.ok and v.node not in node_directories.nodes for v in picked)


@contextlib.contextmanager
def out_of_service(node: str, state: str) -> Iterator[None]:
    """Have a node drained or down meanwhile."""
    update = ["scontrol", "update", f"nodename={node}"]
    look = ["sinfo", "-h", "-n", node, "-o", "%T"]
    subprocess.run([*update, f"state={state}", "reason=test"], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([*update, "state=resume"], timeout=60)  # one that was down comes back by itself
        until(lambda: subprocess.run(look, capture_output=True, text=True, timeout=60).stdout.strip() == "idle")


@contextlib.contextmanager
def slow(node_directories: NodeDirectories, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Let every node's staging wait, while a file is there, after it made its directory; gives whether all did."""
    hold = node_directories.root / "hold"
    hold.touch()
    code = f"""
import pathlib, time
import launcher.model.stage as stage
check = stage._check_space
def patient(*arguments):
    while pathlib.Path({str(hold)!r}).exists():
        time.sleep(0.05)
    check(*arguments)
stage._check_space = patient
"""
    (node_directories.root / "site").mkdir()
    (node_directories.root / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(node_directories.root / "site"))
    try:
        yield lambda: len(list(node_directories.root.glob("*/nvme/M.staging.*"))) == len(node_directories.nodes)
    finally:
        hold.unlink(missing_ok=True)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slurm
def test_a_node_that_dies_midway_has_not_staged_and_the_others_have(
    node_directories: NodeDirectories, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = node_directories.nodes[1]
    with ThreadPoolExecutor(1) as pool, slow(node_directories, monkeypatch) as all_are_there:
        staging = pool.submit(node_directories.stage)
        until(all_are_there)
        for pid in processes_of(dying, node_directories.root):
            os.kill(pid, signal.SIGKILL)
        with out_of_service(dying, "down"):
            (node_directories.root / "hold").unlink()
            results = staging.result(timeout=60)
    assert [(v.node, v.ok) for v in results] == [(n, n != dying) for n in node_directories.nodes]
    assert results[1].how == "unknown"
    assert "no result of it" in (results[1].error or "")
    assert not node_directories.of(dying).exists()
    assert node_directories.left() == []
    again = node_directories.stage()
    assert [v.how for v in again] == ["there", "staged", "there"]


def processes_of(node: str, root: Path) -> list[int]:
    """The task of a staging on a node of the cluster, and its slurmstepd: what a dying node takes with it."""
    results = []
    for node_directories in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            environ = (
                (node_directories / "environ").read_bytes().split(b"\0") if node_directories.name.isdigit() else []
            )
            if (
                f"SLURMD_NODENAME={node}".encode() in environ
                and str(root).encode() in (node_directories / "cmdline").read_bytes()
            ):
                results += [
                    int(node_directories.name),
                    int((node_directories / "stat").read_text().rpartition(")")[2].split()[1]),
                ]
    return results


@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_is_stopped_leaves_no_job(
    node_directories: NodeDirectories, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    state, source = node_directories.root / "state", node_directories.root / "archive" / "M"
    argv = [sys.executable, "-m", "launcher", "model", "stage", node_directories.template, "--from", str(source)]
    argv += [f"--nodes={node_directories.listed}", f"--state={state}"]
    with (
        slow(node_directories, monkeypatch) as all_are_there,
        subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child,
    ):
        try:
            until(all_are_there)
        finally:
            child.send_signal(number)
        _, output = child.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert len(node_directories.left()) == 2  # a job and its directory
        assert end_orphaned_jobs(state, SlurmCommands, node_directories.said.append) == 1
    else:
        assert child.returncode == 128 + number, output
    assert node_directories.left() == []
    assert all(v.ok for v in node_directories.stage())


@pytest.mark.slurm
def test_stopped_within_a_job_it_leaves_no_step(
    node_directories: NodeDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [
        "sbatch",
        "--parsable",
        "--nodes=3",
        f"--nodelist={node_directories.listed}",
        "--output=/dev/null",
        "--wrap",
        "sleep 60",
    ]
    job = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip().partition(";")[0]
    steps = ["squeue", "-h", "-s", "-j", job, "-o", "%i %j"]
    try:
        run(["sh", "-c", f'until [ -n "$(squeue -h -j {job} -t RUNNING)" ]; do sleep 0.1; done'], timeout=60)
        argv = [sys.executable, "-m", "launcher", "model", "stage", node_directories.template, f"--job={job}"]
        argv += ["--from", str(node_directories.root / "archive" / "M"), f"--state={node_directories.root / 'state'}"]
        with (
            slow(node_directories, monkeypatch) as all_are_there,
            subprocess.Popen(argv, stderr=subprocess.PIPE) as child,
        ):
            try:
                until(all_are_there)
            finally:
                child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 128 + signal.SIGTERM
            until(lambda: "launcher-stage" not in run(steps, timeout=60).stdout)
    finally:
        subprocess.run(["scancel", job], timeout=60)


def test_a_node_that_says_nothing_has_failed(tmp_path: Path) -> None:
    def srun(argv: Sequence[str]) -> Completed:
        lines = [f'0: launcher-node-verdict {{"node": "{node}", "ok": true, "how": "staged"}}' for node in NODES[:-1]]
        return Completed(tuple(argv), 1, "\n".join(["noise", *lines]), "srun: error: node05: task 2: Killed", 0.0)

    commands, task = ScriptedCommands(srun=srun), NodeTask("/archive/M", "/nvme/M")
    allocation = Allocation(job="7", nodes="node[02-03,05]")
    results = stage_on_nodes(task, allocation, state=tmp_path, scheduler=SlurmCommands, run=commands)
    assert results[:2] == [NodeResult("node02", True, "staged"), NodeResult("node03", True, "staged")]
    assert not results[2].ok
    assert "node05: task 2: Killed" in (results[2].error or "")
    options = {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--jobid=7"}
    assert options <= set(commands.calls[-1])


def test_slurms_name_of_this_node_comes_before_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node07")
    assert this_node() == "node07"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_nodes_task_answers_when_slurm_asks_it_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def asked_to_stop(source: object, destination: Path, *, workers: int, stop: Stop) -> None:
        os.kill(os.getpid(), number)
        stop.sleep(60)

    monkeypatch.setattr("launcher.model.nodes.stage", asked_to_stop)
    before = signal.getsignal(number)
    answer = stage_on_this_node(NodeTask(str(checkpoint(tmp_path / "M")), "/nvme/M"))
    assert (answer["ok"], answer["path"], answer["error"]) == (False, "/nvme/M", f"stopped by {number.name}")
    assert signal.getsignal(number) == before
