"""Jobs of several nodes go through the launcher's own commands, on a real Slurm; docker, ip, rocm-smi are stand-ins."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import environment_of
from launcher.cli import main
from launcher.run.record import RunRecord
from tests.conftest import SlurmCluster
from tests.container.jobs import left, wait_for
from tests.container.multinode_nodes import WRAPPER, Cluster, a_row
from tests.result.documents import age, evaluation, fixed_1k1k

pytestmark = pytest.mark.slurm

FOLDER = "sglang-disagg_isl_1024_osl_1024"
ROW = {"precision": "bf16", "isl": 1024, "osl": 1024}
NAMES = {at: f"concurrency_{at}_req_rate_inf_gpus_16_ctx_8_gen_8.json" for at in (4, 8)}


class Boxes:
    """A workflow's job on the real Slurm, whose nodes have the stand-ins."""

    def __init__(self, root: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.state = Cluster(root), root / "state"
        (self.cluster.stand_ins / "bin/srun").unlink()
        text = self.cluster.runner.document.text
        for theirs, ours in (
            ("partition: compute", "partition: batch"),
            ('account: "{user}", time-limit: "8:00:00"', 'account: root, time-limit: "0:10:00"'),
            ("node: {gpus: 8", "node: {gpus: 4"),
            ("      run-logs: $HOME/slurm_job-$JOB\n", ""),
        ):
            assert theirs in text
            text = text.replace(theirs, ours)
        (root / "runners").mkdir()
        (root / "runners/mi355x-amds.yaml").write_text(text)
        for name, value in slurm.env.items():
            if name.startswith(("SLURM", "MUNGE")):
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("LAUNCHER_STATE", str(self.state))
        monkeypatch.setenv("LAUNCHER_RUNNERS", str(root / "runners"))
        monkeypatch.setenv("GITHUB_WORKSPACE", str(self.cluster.workspace))
        monkeypatch.setenv("PATH", f"{self.cluster.stand_ins / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        monkeypatch.setenv("RUNNER_NAME", "mi355x-amds_00")
        self.monkeypatch = monkeypatch
        self.row(a_row(**ROW))
        amd = self.cluster.workspace / "benchmarks/multi_node"
        (amd / "dsv4_bf16_mi355x_sglang-disagg.sh").write_text(WRAPPER)
        self.measures()

    def row(self, row: Benchmark) -> None:
        for name, value in environment_of(row).items():
            self.monkeypatch.setenv(name, value)

    def measures(self, *, at: tuple[int, ...] = (4, 8), then: str = "exit 0") -> None:
        """What the containers do: the first node's measures."""
        lines = [
            'echo "served by $NODE_RANK"',
            f'[ "$NODE_RANK" = 0 ] || {{ {then}; }}',
            f"cd $BENCHMARK_LOGS_DIR; mkdir -p {FOLDER}",
        ]
        for concurrency in at:
            document = shlex.quote(json.dumps(fixed_1k1k(concurrency, model_id="/models/DeepSeek-V4-Pro")))
            lines.append(f"printf %s {document} >{FOLDER}/{NAMES[concurrency]}")
        self.cluster.server("\n".join([*lines, then]))

    def ci(self, code: int = 0) -> RunRecord:
        assert main(["ci"]) == code
        (directory,) = (self.state / "runs").iterdir()
        return RunRecord.load(self.state / "runs", directory.name)


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster) -> Iterator[Boxes]:
    yield Boxes(tmp_path, slurm_cluster, monkeypatch)
    main(["cleanup"])


def test_a_run_from_the_submission_to_the_results(boxes: Boxes) -> None:
    stale = boxes.cluster.logs / FOLDER
    stale.mkdir(parents=True)
    (stale / "concurrency_16_req_rate_inf_gpus_16_ctx_8_gen_8.json").write_text(json.dumps(fixed_1k1k(16)))
    age(stale / "concurrency_16_req_rate_inf_gpus_16_ctx_8_gen_8.json", 86400)
    record = boxes.ci()
    assert record.fields.state == "succeeded" and record.settled
    workspace = boxes.cluster.workspace
    assert sorted(p.name for p in workspace.glob("stem_*.json")) == [f"stem_{NAMES[at]}" for at in (4, 8)]
    logs = workspace / "LOGS"
    assert (
        "served by 0" in (logs / "benchmark_job.log").read_text()
        and "served by 1" in (logs / "benchmark_job.log").read_text()
    )
    assert stale.is_dir() and not list(workspace.glob(".launcher/*/")), "nothing of ours is left, all of others'"
    evidence = record.directory / "evidence"
    assert (evidence / "job.sh").read_text().startswith("#!/usr/bin/env bash") and "nodes=" in (
        evidence / "facts.txt"
    ).read_text()
    told = [p for p in boxes.state.rglob("*") if p.is_file() and b"hf_secretsec" in p.read_bytes()]
    assert told == [] and boxes.cluster.containers() == []


def test_a_missing_result_is_red_for_its_concurrency(boxes: Boxes) -> None:
    boxes.measures(at=(8,))
    record = boxes.ci(code=7)
    assert record.fields.error is not None and "concurrency 4: no result" in record.fields.error.message
    assert (boxes.cluster.workspace / f"stem_{NAMES[8]}").is_file()


def test_a_container_that_fails_with_every_result_there(boxes: Boxes) -> None:
    boxes.measures(then="exit 3")
    record = boxes.ci(code=6)
    assert record.fields.error is not None and "exit code 3" in record.fields.error.message
    assert (boxes.cluster.workspace / f"stem_{NAMES[4]}").is_file()


def test_a_red_look_is_put_down_to_its_node(boxes: Boxes) -> None:
    check = boxes.cluster.workspace / "benchmarks/multi_node/amd_utils/helpers/rdma_check.sh"
    check.write_text("exit 1\n")
    record = boxes.ci(code=6)
    assert record.fields.verdict is not None and record.fields.verdict.layer == "node"
    assert "its RDMA is set up wrongly" in record.fields.verdict.text


def test_sbatch_refuses(boxes: Boxes) -> None:
    boxes.monkeypatch.setenv("SLURM_EXCLUDE_NODES", "no-such-node")
    record = boxes.ci(code=5)
    assert record.job is None and not list(boxes.cluster.workspace.glob(".launcher/*/*/"))


def test_an_evaluation_alone(boxes: Boxes) -> None:
    boxes.row(a_row(**ROW, run_eval=True, eval_only=True, eval_concurrencies=(8,)))
    lines = [
        '[ "$NODE_RANK" = 0 ] || exit 0',
        'mkdir -p "$BENCHMARK_LOGS_DIR/eval_results"; cd "$BENCHMARK_LOGS_DIR/eval_results"',
    ]
    files = {"results_x.json": evaluation(model_name="DeepSeek-V4-Pro")}
    lines += [f"printf %s {shlex.quote(json.dumps(document))} >{name}" for name, document in files.items()]
    boxes.cluster.server("\n".join(lines))
    record = boxes.ci()
    assert record.fields.state == "succeeded" and list(boxes.cluster.workspace.glob("results*.json"))


def test_a_cancel_ends_the_containers_of_all_nodes(boxes: Boxes) -> None:
    boxes.measures(then="sleep 600")
    foreign = boxes.cluster.stand_ins / "nodes"
    with subprocess.Popen([sys.executable, "-m", "launcher", "ci"], stdin=subprocess.DEVNULL) as driver:
        wait_for(lambda: len(list(foreign.glob("*/containers/*/pid"))) == 2)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=30) == 143
    wait_for(lambda: boxes.cluster.containers() == [], seconds=10)
    wait_for(lambda: left(str(boxes.cluster.stand_ins / "nodes")) == [], seconds=30)
