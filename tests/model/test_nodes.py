"""Node-local staging on a real Slurm cluster of one machine, with a directory for each node."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.model.manifest import Manifest
from launcher.model.nodes import Allocation, NodeVerdict, stage_on_nodes, this_node
from launcher.process import Completed, run
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


@pytest.mark.slurm
def test_every_node_gets_its_own_copy(cluster: SlurmCluster, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "archive" / "M")
    names = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, timeout=60).stdout.split()
    nodes = sorted(set(names))[1:4]
    template = str(tmp_path / "{node}" / "nvme" / "M")
    for node in nodes:
        (tmp_path / node).mkdir()
    (tmp_path / nodes[1] / "nvme").write_text("a file in the place of the directory")
    where = Allocation(nodes=",".join(nodes))
    first = stage_on_nodes(str(source), template, where, timeout=120)
    assert [(v.node, v.ok) for v in first] == [(nodes[0], True), (nodes[1], False), (nodes[2], True)]
    assert "nvme" in (first[1].error or "")
    for node in (nodes[0], nodes[2]):
        assert content(tmp_path / node / "nvme" / "M") == content(source)
        assert Manifest.read(tmp_path / node / "nvme" / "M") is not None

    (tmp_path / nodes[1] / "nvme").unlink()
    job = subprocess.run(
        ["sbatch", "--parsable", "--nodes=3", f"--nodelist={where.nodes}", "--output=/dev/null", "--wrap", "sleep 60"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.strip().partition(";")[0]  # fmt: skip
    try:
        run(["sh", "-c", f'until [ -n "$(squeue -h -j {job} -t RUNNING)" ]; do sleep 0.1; done'], timeout=60)
        again = stage_on_nodes(str(source), template, Allocation(job=job), timeout=120)
        assert [(v.node, v.how) for v in again] == [(nodes[0], "there"), (nodes[1], "staged"), (nodes[2], "there")]
        some = stage_on_nodes(str(source), template, Allocation(job=job, exclude=(nodes[0],)), timeout=120)
        assert [(v.node, v.ok, v.copied) for v in some] == [(nodes[1], True, 0), (nodes[2], True, 0)]
    finally:
        subprocess.run(["scancel", job], timeout=60)
    shutil.rmtree(tmp_path / nodes[0])


class Fake:
    """Names nodes as scontrol does; srun answers for all but the last."""

    def __init__(self) -> None:
        self.argv: list[str] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed:
        if argv[0] == "scontrol":
            return Completed(tuple(argv), 0, "\n".join(NODES), "", 0.0)
        self.argv = list(argv)
        said = [f'0: launcher-node-verdict {{"node": "{node}", "ok": true, "how": "staged"}}' for node in NODES[:-1]]
        return Completed(tuple(argv), 1, "\n".join(["noise", *said]), "srun: error: node05: task 2: Killed", 0.0)


def test_a_node_that_says_nothing_has_failed() -> None:
    fake = Fake()
    found = stage_on_nodes("/archive/M", "/nvme/M", Allocation(nodes="node[02-03,05]", partition="batch"), run=fake)
    assert found[:2] == [NodeVerdict("node02", True, "staged"), NodeVerdict("node03", True, "staged")]
    assert not found[2].ok
    assert "node05: task 2: Killed" in (found[2].error or "")
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--partition=batch"} <= set(
        fake.argv
    )


def test_slurms_name_of_this_node_comes_before_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node07")
    assert this_node() == "node07"
