"""Jobs of several nodes go through the launcher's own commands, on a real Slurm; docker, ip, rocm-smi are stand-ins."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import environment_of
from launcher.cli import main
from launcher.run import finish
from launcher.run.record import RunRecord
from tests.conftest import SlurmCluster
from tests.container.jobs import left, wait_for
from tests.container.multinode_nodes import LANES, WRAPPER, Cluster, a_row, role
from tests.container.multinode_nodes import agentic as agentic_row
from tests.model.checkpoints import checkpoint
from tests.result.documents import age, agentic, evaluation, fixed_1k1k

pytestmark = pytest.mark.slurm

FOLDER = "sglang-disagg_isl_1024_osl_1024"
ROW = {"precision": "bf16", "isl": 1024, "osl": 1024}
NAMES = {at: f"concurrency_{at}_req_rate_inf_gpus_16_ctx_8_gen_8.json" for at in (4, 8)}


QUANTISED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "amd-multinode": ({}, {}, "BF16"),
    "llm-d": (
        {"precision": "fp4", "settings": {"DECODE_NODES": "1"}},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "U8",
    ),
    "tilert": (
        {"precision": "fp8", "prefill": role(tp=4), "decode": role(tp=4)},
        {"quant_method": "fp8"},
        "F8_E4M3",
    ),
}
"""By kind: what a row says of two nodes of this cluster, and the checkpoint that its runner file serves."""


class Boxes:
    """A workflow's job on the real Slurm, whose nodes have the stand-ins; ``kind`` is that of its lane."""

    def __init__(self, root: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        lane, row, self.measuring = LANES[kind]
        self.kind, self.cluster, self.state = kind, Cluster(root, lane), root / "state"
        programs = self.cluster.stand_ins / "bin"
        if kind == "amd-multinode":
            (programs / "srun").unlink()
        else:
            enroot = shlex.join([sys.executable, "-m", "launcher.rehearsal.enroot_stand_in"])
            self.program("enroot", f'exec {enroot} "$@"')
        text = self.cluster.runner.document.text
        for theirs, ours in (
            ("partition: (compute|batch|gpu-2)", "partition: batch"),
            (r'account: ("{user}"|benchmark)', "account: root"),
            ('time-limit: "[48]:00:00"', 'time-limit: "0:10:00"'),
            ("node: {gpus: [48]", "node: {gpus: 4"),
            ("arch: aarch64", f"arch: {os.uname().machine}"),
            ("      run-logs: .*\n", ""),
        ):
            text = re.sub(theirs, ours, text)
        (root / "runners").mkdir()
        (root / f"runners/{lane}.yaml").write_text(text)
        for name, value in slurm.env.items():
            if name.startswith(("SLURM", "MUNGE")):
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("LAUNCHER_STATE", str(self.state))
        monkeypatch.setenv("LAUNCHER_RUNNERS", str(root / "runners"))
        monkeypatch.setenv("GITHUB_WORKSPACE", str(self.cluster.workspace))
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        monkeypatch.setenv("RUNNER_NAME", f"{lane}_00")
        self.monkeypatch = monkeypatch
        own, config, dtype = QUANTISED[kind]
        self.row(row(**{**ROW, **own}))
        shutil.rmtree(self.cluster.model)
        checkpoint(self.cluster.model, {"quantization_config": config} if config else None, dtype=dtype)
        (self.cluster.workspace / "benchmarks/multi_node/dsv4_bf16_mi355x_sglang-disagg.sh").write_text(WRAPPER)
        self.measures()

    def program(self, name: str, text: str) -> None:
        """A stand-in of this test."""
        path = self.cluster.stand_ins / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def row(self, row: Benchmark) -> None:
        for name, value in environment_of(row).items():
            self.monkeypatch.setenv(name, value)

    def measures(self, *, at: tuple[int, ...] = (4, 8), then: str = "exit 0") -> None:
        """What the containers do: one of them measures."""
        lines = [
            'echo "served by $NODE_RANK$TILERT_ROLE"',
            f'[ "$NODE_RANK$TILERT_ROLE" = {self.measuring} ] || {{ {then}; }}',
            f"cd $BENCHMARK_LOGS_DIR; mkdir -p {FOLDER}"
            if self.kind == "amd-multinode"
            else f"cd {self.cluster.workspace}",
        ]
        served = "glm5" if self.kind == "tilert" else "/models/DeepSeek-V4-Pro"
        for concurrency in at:
            document = shlex.quote(json.dumps(fixed_1k1k(concurrency, model_id=served)))
            lines.append(f"printf %s {document} >{self.named(concurrency)}")
        self.cluster.server("\n".join([*lines, then]))

    def named(self, concurrency: int, published: bool = False) -> str:
        """How a result is called by what measures, and as it is published."""
        if self.kind == "amd-multinode":
            return f"stem_{NAMES[concurrency]}" if published else f"{FOLDER}/{NAMES[concurrency]}"
        return f"stem_c{concurrency}_gpus_8_ctx_4_gen_4.json"

    def ci(self, code: int = 0) -> RunRecord:
        assert main(["ci"]) == code
        return self.record()

    def record(self) -> RunRecord:
        (directory,) = (self.state / "runs").iterdir()
        return RunRecord.load(self.state / "runs", directory.name)

    def driver(self) -> subprocess.Popen[bytes]:
        """Another process that drives the run, whose job runs."""
        process = subprocess.Popen([sys.executable, "-m", "launcher", "ci"], stdin=subprocess.DEVNULL)
        wait_for(lambda: (self.cluster.root / "running").exists() or process.poll() is not None)
        return process

    @property
    def succeeded(self) -> bool:
        """Whether the run is good, with every result where the workflow looks."""
        files = [self.cluster.workspace / self.named(at, published=True) for at in (4, 8)]
        return (
            self.record().fields.state == "succeeded"
            and self.record().fields.settled
            and all(p.is_file() for p in files)
        )


@pytest.fixture
def boxes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster
) -> Iterator[Boxes]:
    yield Boxes(tmp_path, slurm_cluster, monkeypatch, getattr(request, "param", "amd-multinode"))
    main(["cleanup"])


def test_a_run_from_the_submission_to_the_results(boxes: Boxes) -> None:
    stale = boxes.cluster.logs / FOLDER
    stale.mkdir(parents=True)
    (stale / "concurrency_16_req_rate_inf_gpus_16_ctx_8_gen_8.json").write_text(json.dumps(fixed_1k1k(16)))
    age(stale / "concurrency_16_req_rate_inf_gpus_16_ctx_8_gen_8.json", 86400)
    record = boxes.ci()
    assert record.fields.state == "succeeded" and record.fields.settled
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
    boxes.monkeypatch.setattr(finish, "RESULT_PATIENCE", 1.0)
    record = boxes.ci(code=7)
    assert record.fields.error is not None and "concurrency 4: no result" in record.fields.error.message
    assert (boxes.cluster.workspace / f"stem_{NAMES[8]}").is_file()


def test_a_container_that_fails_with_every_result_there(boxes: Boxes) -> None:
    boxes.measures(then="exit 3")
    record = boxes.ci(code=6)
    assert record.fields.error is not None and "exit code 3" in record.fields.error.message
    assert (boxes.cluster.workspace / f"stem_{NAMES[4]}").is_file()


@pytest.mark.parametrize(
    ("fault", "said"), [("rdma", "its RDMA is set up wrongly"), ("locks", "a lock that it holds in ")]
)
def test_a_red_look_is_put_down_to_its_node(boxes: Boxes, fault: str, said: str) -> None:
    if fault == "locks":  # flock_stand_in: those of the nodes are their own
        boxes.program("flock", "exit 0")
    else:
        (boxes.cluster.workspace / "benchmarks/multi_node/amd_utils/helpers/rdma_check.sh").write_text("exit 1\n")
    record = boxes.ci(code=6)
    assert record.fields.verdict is not None and record.fields.verdict.layer == "node"
    assert said in record.fields.verdict.text


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


@pytest.mark.parametrize("boxes", LANES, indirect=True)
def test_a_cancel_ends_the_containers_of_all_nodes(boxes: Boxes) -> None:
    """What runs in each of two containers, by its own process."""
    root = boxes.cluster.root
    boxes.measures(then=f"touch {root}/pid.$$; exec sleep 600")
    with subprocess.Popen([sys.executable, "-m", "launcher", "ci"], stdin=subprocess.DEVNULL) as driver:
        wait_for(lambda: len(list(root.glob("pid.*"))) == 2)
        servers = [Path("/proc", path.suffix[1:]) for path in root.glob("pid.*")]
        assert all(server.exists() for server in servers)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=30) == 143
    wait_for(lambda: not any(server.exists() for server in servers), seconds=10)
    wait_for(lambda: boxes.cluster.containers() == [], seconds=10)
    wait_for(lambda: left(str(boxes.cluster.stand_ins / "nodes")) == [], seconds=30)


def test_an_agentic_run(boxes: Boxes) -> None:
    """What the containers aggregate is taken by its name; what an earlier job left under it is not."""
    boxes.row(agentic_row(precision="bf16"))
    workspace = boxes.cluster.workspace
    shutil.copy(
        workspace / "benchmarks/multi_node/dsv4_bf16_mi355x_sglang-disagg.sh",
        workspace / "benchmarks/multi_node/agentic",
    )
    document = shlex.quote(json.dumps(agentic(4)))
    boxes.cluster.server(f'[ "$NODE_RANK" = 0 ] || exit 0\nprintf %s {document} >{workspace}/stem_conc4.json')
    record = boxes.ci()
    assert record.fields.state == "succeeded" and (workspace / "stem_conc4.json").is_file()
    boxes.cluster.server("true")
    boxes.monkeypatch.setattr(finish, "RESULT_PATIENCE", 1.0)
    shutil.rmtree(record.directory)
    assert boxes.ci(code=7).fields.state == "failed"


RUNS = 'touch "{0}/running"; sleep 2; exit 0'
"""Time for a driver to be killed, or for squeue to be asked."""


@pytest.mark.parametrize("boxes", LANES, indirect=True)
def test_another_process_resumes_it(boxes: Boxes) -> None:
    boxes.measures(then=RUNS.format(boxes.cluster.root))
    with boxes.driver() as driver:
        driver.kill()
    job = boxes.record().job
    assert main(["resume", boxes.record().id]) == 0 and boxes.succeeded
    again = boxes.record().job
    assert job is not None and again is not None and again.id == job.id
    log = (boxes.cluster.workspace / "LOGS/benchmark_job.log").read_text()
    assert "nodes: " in log and "the job ends with exit code 0" in log
    logs = {path.name.rpartition("_")[0] for path in (boxes.cluster.workspace / "LOGS").rglob("*_*_*.log")}
    assert (
        logs >= {"amd-multinode": set(), "llm-d": {"node_0", "node_1"}, "tilert": {"decode_0", "prefill_1"}}[boxes.kind]
    )
    facts = (boxes.record().directory / "evidence/facts.txt").read_text()
    assert "locks=hold with the login node" in facts and "clock_offset=0" in facts


def test_a_job_of_it_is_adopted(boxes: Boxes) -> None:
    boxes.measures(then=RUNS.format(boxes.cluster.root))
    with boxes.driver() as driver:
        driver.kill()
    job = boxes.record().job
    assert job is not None
    shutil.rmtree(boxes.record().directory)
    assert main(["adopt", job.id, "--from-env", "--output", job.output]) == 0 and boxes.succeeded


@pytest.mark.parametrize("silent", [("squeue",), ("squeue", "sacct", "scontrol")])
def test_squeue_fails_while_the_job_runs(boxes: Boxes, silent: tuple[str, ...]) -> None:
    """squeue_stand_in, and all that could answer in its place: from the job's start on, until it has ended."""
    root = boxes.cluster.root
    boxes.measures(then=RUNS.format(root))
    for name in silent:
        over = "" if name == "squeue" else f" && ! grep -qs 'ends with exit code' {root}/checkout/benchmark_logs/*.out"
        said = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
        boxes.program(name, f'if [ -e {root}/running ]{over}; then {said}; fi; exec {shutil.which(name)} "$@"')
    boxes.ci()
    assert boxes.succeeded


def test_a_node_is_lost(boxes: Boxes) -> None:
    boxes.measures(then=f'touch "{boxes.cluster.root}/running"; sleep 600')
    foreign = boxes.cluster.foreign(0)
    with boxes.driver() as driver:
        job = boxes.record().job
        assert job is not None
        asked = ["squeue", "-h", "-j", job.id, "-o", "%N"]
        nodes = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.strip()
        second = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60)
        update = ["scontrol", "update", f"nodename={second.stdout.split()[1]}"]
        subprocess.run([*update, "state=down", "reason=test"], timeout=60, check=True)
        try:
            assert driver.wait(timeout=120) == 6
        finally:
            subprocess.run([*update, "state=resume"], timeout=60)
    verdict = boxes.record().fields.verdict
    assert verdict is not None and verdict.layer == "node" and "a node failed on" in verdict.text
    wait_for(lambda: boxes.cluster.containers() == ["theirs"], seconds=60)
    assert foreign.is_dir() and not list(boxes.cluster.workspace.glob(".launcher/*/*/"))
