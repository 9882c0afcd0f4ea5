"""Jobs in a container go through the launcher's own commands: on the embedded scheduler, and on Slurm.

Their plans are built by hand; docker and srun are stand-ins, everything else is real.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace as change

from launcher import project
from launcher.benchmark.benchmark import Benchmark
from launcher.cli import main
from launcher.container.kind import ContainerKind
from launcher.container.planned import COPY, LOG, SCRIPT, ContainerJob
from launcher.core.shipped import shipped
from launcher.plan.derive import Context
from launcher.plan.plan import OWN, Plan, WorkspacePlan
from launcher.project import Project
from launcher.run.prepare import prepare
from launcher.run.record import RunRecord
from launcher.runner.file import RunnerFile
from launcher.services import open_run
from launcher.slurm.client import JobKey
from tests.conftest import SlurmCluster
from tests.container.jobs import JobHost, left, wait_for
from tests.container.plans import RESULT, a_container, a_job, an_allocation, an_image, expected, staging
from tests.result.documents import age, evaluation, fixed
from tests.run.driving import ONE

MOUNTS = {"/workspace": "{workspace}"}
GOOD = f"cat > $RESULT_FILENAME.json <<'END'\n{json.dumps(fixed(4))}\nEND\necho served > server.log"


class Boxes:
    """A user, a workspace, and a runner whose lanes run scripts in containers as the test says."""

    def __init__(self, root: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.state, self.host = root, root / "state", JobHost(root)
        self.slurm = "kind: slurm" in scheduler
        self.job = a_job(
            allocation=an_allocation(gpus=1) if self.slurm else None,
            container=a_container(engine="pyxis" if self.slurm else "docker", image="org/image:tag", mounts=MOUNTS),
        )
        self.changes: dict[str, Any] = {}
        text = shipped("runners").joinpath("local.yaml").read_text()
        text = text.replace("name: local\n", "name: boxes\n").replace("tools: rehearsal", "tools: system")
        text = text.replace('kind: local, time-limit: "0:10:00"', scheduler)
        text = text.replace("  - repository: rehearsal\n", "  - kind: boxed\n    repository: rehearsal\n")
        (root / "runners").mkdir()
        (root / "runners/boxes.yaml").write_text(text)
        monkeypatch.setitem(project.KINDS, "boxed", lambda of: ContainerKind("boxed", self.plan, of.state / "jobs"))
        monkeypatch.setenv("LAUNCHER_STATE", str(self.state))
        monkeypatch.setenv("LAUNCHER_RUNNERS", str(root / "runners"))
        monkeypatch.setenv("GITHUB_WORKSPACE", str(self.host.workspace))
        monkeypatch.setenv("PATH", self.host.stand_ins.path)
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        monkeypatch.setenv("SHELL_LEFTOVER", "x")
        self.host.benchmark(GOOD)

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> Plan:
        plan = self.host.plan(self.job, kind="boxed", runner="boxes", run_key=context.run_key)
        return dataclasses.replace(plan, **self.changes)

    def run(self, code: int = 0, run_id: str = "r") -> RunRecord:
        assert main(["run", *ONE, "--runner", "boxes", "--run-id", run_id]) == code
        return self.record(run_id)

    def record(self, run_id: str = "r") -> RunRecord:
        return RunRecord.load(self.state / "runs", run_id)

    def submitted_and_left(self, run_id: str, results: Literal["run", "workspace"] = "run") -> None:
        """A run whose launcher submitted the job, and went without a word."""
        child = os.fork()
        if child == 0:
            try:
                of = Project.open(os.environ)
                benchmark = next(iter(of.matrix().entries(_selection()))).benchmark
                record = RunRecord.create(of.runs, of.plan_by_hand(benchmark, "boxes", run_id=run_id))
                record.update(results=results)
                prepare(open_run(of, record))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert self.record(run_id).job is not None


def _selection() -> Any:
    from launcher.benchmark.expand import Selection
    from tests.run.driving import KEY

    return Selection(keys=[KEY], sequences=["1k1k"], nodes="multi", evals="none")


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    boxes = Boxes(tmp_path, 'kind: local, time-limit: "0:10:00"', monkeypatch)
    yield boxes
    main(["cleanup"])


@pytest.fixture
def slurm_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster) -> Iterator[Boxes]:
    for name, value in slurm_cluster.env.items():
        if name.startswith(("SLURM", "MUNGE")):
            monkeypatch.setenv(name, value)
    boxes = Boxes(tmp_path, 'kind: slurm, partition: batch, account: root, time-limit: "0:10:00"', monkeypatch)
    yield boxes
    main(["cleanup"])


def test_a_run_on_this_host(boxes: Boxes, capsys: pytest.CaptureFixture[str]) -> None:
    record = boxes.run()
    assert record.fields.state == "succeeded" and record.fields.settled
    results = record.directory / "results"
    assert json.loads((results / f"{RESULT}.json").read_text())["completed"] == 40
    assert (results / "server.log").read_text() == "served\n"
    assert (record.directory / "evidence" / SCRIPT).read_text().startswith("#!/usr/bin/env bash")
    assert "image=docker.io/org/image@sha256:abc" in (record.directory / "evidence/facts.txt").read_text()
    images = record.step("images").facts["images"]
    assert images == [
        {"reference": "org/image:tag", "squash": None, "how": "pulled", "bytes": None, "digest": "sha256:abc"}
    ]
    summary = json.loads((record.directory / "summary.json").read_text())
    assert [point["state"] for point in summary["points"]] == ["ok"]
    assert main(["logs", "r"]) == 0
    assert "the job ends with exit code 0" in capsys.readouterr().out
    assert main(["plan", *ONE, "--runner", "boxes"]) == 0
    shown = capsys.readouterr().out
    assert "docker of org/image:tag" in shown and "this host" in shown and "{workspace} → /workspace" in shown


def test_no_secret_is_on_disk_and_nothing_of_the_shell_reaches_the_job(boxes: Boxes) -> None:
    boxes.host.benchmark(f"{GOOD}\nprintf '%s' \"$HF_TOKEN\" | wc -c >> server.log")
    record = boxes.run()
    assert (record.directory / "results/server.log").read_text().split() == ["served", "21"]
    told = [path for path in boxes.root.rglob("*") if path.is_file() and b"hf_secretsecret" in path.read_bytes()]
    assert told == []
    job = boxes.state / "jobs" / record.job.id if record.job else None
    assert job is not None and job.is_dir()


def test_the_shell_of_the_host_stays_outside(boxes: Boxes) -> None:
    docker = boxes.host.stand_ins.root / "bin/docker"
    docker.write_text(
        docker.read_text().replace("root=", f'[ "$1" != run ] || env > {boxes.root}/docker-env\nroot=', 1)
    )
    boxes.run()
    names = {line.partition("=")[0] for line in (boxes.root / "docker-env").read_text().splitlines()}
    assert "HF_TOKEN" in names and "MODEL" in names and "SHELL_LEFTOVER" not in names and "LAUNCHER_STATE" not in names


@pytest.mark.parametrize(
    ("benchmark", "error"),
    [
        ("exit 3", "job"),
        (f"{GOOD}\nexit 3", "job"),
        ("true", "results"),
        ('echo \'{"model_id": "m", \' > $RESULT_FILENAME.json', "results"),
        (GOOD.replace('"max_concurrency": 4', '"max_concurrency": 8'), "results"),
    ],
    ids=["fails", "fails with a result", "no result", "half a result", "another row's"],
)
def test_both_the_job_and_its_result_decide(boxes: Boxes, benchmark: str, error: str) -> None:
    boxes.host.benchmark(benchmark)
    record = boxes.run(code=6 if error == "job" else 7)
    assert record.fields.error is not None and record.fields.error.layer == error
    assert record.fields.settled and boxes.host.stand_ins.containers() == []


def test_what_fails_first_is_looked_for_in_the_benchmarks_logs(boxes: Boxes) -> None:
    boxes.host.benchmark("echo 'torch.OutOfMemoryError: CUDA out of memory' > server.log; exit 1")
    record = boxes.run(code=6)
    assert record.fields.verdict is not None and "CUDA out of memory" in record.fields.verdict.text


def test_yesterdays_result_is_not_this_jobs(boxes: Boxes) -> None:
    (boxes.host.workspace / f"{RESULT}.json").write_text(json.dumps(fixed(4)))
    age(boxes.host.workspace / f"{RESULT}.json", 86400)
    boxes.host.benchmark("true")
    record = boxes.run(code=7)
    assert record.fields.error is not None and "older than this job" in record.fields.error.message
    assert not (record.directory / f"results/{RESULT}.json").exists()


def test_jobs_by_hand_do_not_count_each_others_files(boxes: Boxes) -> None:
    """All of them write files of the same names, and may be at it at the same time."""
    (boxes.host.workspace / "results").mkdir()
    (boxes.host.workspace / "results/yesterdays.log").touch()
    boxes.host.benchmark(f"{GOOD}\nmkdir results; echo 1 > results/a.log; echo 700 > gpu_metrics.csv")
    first = boxes.run(run_id="first")
    boxes.host.benchmark(GOOD)
    second = boxes.run(run_id="second")
    assert (first.directory / "results/gpu_metrics.csv").read_text() == "700\n"
    assert (first.directory / "results/results/a.log").exists()
    assert {path.name for path in (second.directory / "results").iterdir()} >= {f"{RESULT}.json", "server.log"}
    assert not (second.directory / "results/gpu_metrics.csv").exists()
    assert not (boxes.host.workspace / "server.log").exists() and not (boxes.host.workspace / f"{RESULT}.json").exists()


@pytest.mark.parametrize("command", [["cancel", "left"], ["cleanup"]])
def test_another_process_ends_it_and_its_container(boxes: Boxes, command: list[str]) -> None:
    boxes.host.benchmark("sleep 600")
    boxes.submitted_and_left("left")
    wait_for(boxes.host.stand_ins.containers)
    assert main(command) == 0
    record = boxes.record("left")
    assert record.fields.state == "cancelled" and record.fields.settled
    wait_for(lambda: not boxes.host.stand_ins.containers())


@pytest.mark.parametrize("command", [["resume", "left"], ["cleanup"], ["cancel", "left"]])
def test_the_container_of_a_killed_job_is_ended_and_no_other(boxes: Boxes, command: list[str]) -> None:
    """The daemon goes on with a container whose client is gone, and a killed script ends nothing."""
    boxes.host.benchmark("sleep 600")
    boxes.submitted_and_left("left")
    stand_ins = boxes.host.stand_ins
    wait_for(lambda: list((stand_ins.root / "containers").glob("*/pid")))  # what is written last
    record = boxes.record("left")
    assert record.job is not None
    (theirs := stand_ins.root / "containers/theirs").mkdir()
    labels = f"launcher.job=left.{record.job.id}\nlauncher.user={os.getuid() + 1}\n"
    for name, text in (("name", "theirs\n"), ("label", labels), ("pid", "0")):
        (theirs / name).write_text(text)
    supervisor = json.loads((boxes.state / "jobs" / record.job.id / "job.json").read_text())["keeper"]
    os.killpg(supervisor["pid"], signal.SIGKILL)
    assert len(stand_ins.containers()) == 2
    main(command)
    assert stand_ins.containers() == ["theirs"]
    shutil.rmtree(theirs)
    assert any("the job left its container" in event["text"] for event in boxes.record("left").events())


def test_what_a_run_by_hand_made_for_itself_goes_once_everything_is_with_its_record(boxes: Boxes) -> None:
    good = boxes.run(run_id="good")
    boxes.host.benchmark("true")
    bad = boxes.run(code=7, run_id="bad")
    own = boxes.host.workspace / OWN
    assert (own / "good" / COPY).is_dir() and (own / "bad" / COPY).is_dir()
    assert main(["cleanup"]) == 0
    assert not (own / "good").exists() and (own / "bad" / COPY).is_dir(), "its result may still be found there"
    assert main(["logs", "good"]) == 0
    assert (good.directory / f"results/{RESULT}.json").exists() and bad.fields.settled


def test_a_cancelled_job_of_a_workflow_leaves_its_logs_alone(boxes: Boxes) -> None:
    boxes.host.benchmark("sleep 600")
    boxes.submitted_and_left("left", "workspace")
    wait_for(boxes.host.stand_ins.containers)
    assert main(["cleanup"]) == 0
    workspace = boxes.host.workspace
    assert (workspace / "LOGS" / LOG).exists() and not (workspace / OWN / "left").exists()


def test_another_process_resumes_it(boxes: Boxes) -> None:
    boxes.host.benchmark(f"sleep 1\n{GOOD}")
    boxes.submitted_and_left("left")
    assert main(["resume", "left"]) == 0
    assert boxes.record("left").fields.state == "succeeded"


def test_results_of_a_workflow_stay_in_its_workspace(boxes: Boxes) -> None:
    boxes.host.benchmark(f"{GOOD}\necho x > beside")
    boxes.submitted_and_left("left", "workspace")
    assert main(["resume", "left"]) == 0
    record, workspace = boxes.record("left"), boxes.host.workspace
    assert record.fields.state == "succeeded"
    assert (workspace / f"{RESULT}.json").exists() and (workspace / "server.log").exists()
    assert (workspace / "beside").exists(), "a workflow's job works in its checkout"
    assert not (workspace / OWN / "left").exists() and (workspace / "LOGS" / LOG).exists()
    assert (record.directory / "evidence" / SCRIPT).exists()
    assert list(record.step("collect").facts["published"]) == [f"{RESULT}.json"]


def test_a_job_of_it_is_adopted(boxes: Boxes) -> None:
    boxes.host.benchmark(f"sleep 1\n{GOOD}")
    boxes.submitted_and_left("first")
    job = boxes.record("first").job
    assert job is not None
    shutil.rmtree(boxes.state / "runs/first")
    adopt = ["adopt", job.id, *ONE, "--runner", "boxes", "--run-id", "second", "--output", job.output]
    assert main(adopt) == 0
    assert boxes.record("second").fields.state == "succeeded"


# --- Slurm


@pytest.mark.slurm
def test_a_run_on_slurm(slurm_boxes: Boxes) -> None:
    record = slurm_boxes.run()
    assert record.fields.state == "succeeded" and record.fields.settled
    assert record.job is not None and record.job.released and not record.job.held
    assert Path(record.job.log) == slurm_boxes.host.workspace / OWN / "r" / record.job.id / LOG
    assert (record.directory / f"results/{RESULT}.json").exists()
    names = slurm_boxes.host.stand_ins.names()
    assert "HF_TOKEN" in names and "PORT" in names and "SHELL_LEFTOVER" not in names
    (call,) = slurm_boxes.host.stand_ins.calls("srun")
    assert "--export=ALL" in call and not [word for word in call if "hf_secret" in word]


@pytest.mark.slurm
def test_an_image_of_the_node_is_the_jobs_and_not_ours(slurm_boxes: Boxes) -> None:
    slurm_boxes.changes = {"images": (an_image(slurm_boxes.root, environment={"TMPDIR": f"{slurm_boxes.root}/t"}),)}
    enroot, seen = slurm_boxes.host.stand_ins.root / "bin/enroot", slurm_boxes.root / "seen"
    text = enroot.read_text().partition("\n")[2]
    enroot.write_text(f"#!/bin/sh\necho \"${{CUDA_VISIBLE_DEVICES-none}} $SLURM_STEP_ID $TMPDIR\" > '{seen}'\n{text}")
    slurm_boxes.host.benchmark(f'{GOOD}\necho "$CUDA_VISIBLE_DEVICES $SLURM_STEP_ID ${{TMPDIR-none}}" > server.log')
    record = slurm_boxes.run()
    assert record.fields.state == "succeeded"
    gpus, step, temporary = seen.read_text().split()
    assert (
        gpus in ("none", "NoDevFiles", "-1")
        and step == "0"
        and temporary.startswith(f"{slurm_boxes.root}/t/.launcher-import-")
    )
    log = (record.directory / "results/server.log").read_text().split()
    assert log[0] == "0" and log[1] == "1" and log[2] != temporary, "the GPU is the benchmark's"
    job_id = record.job_key and record.job_key.id
    assert json.loads((record.directory / "submission.json").read_text())["said"] == job_id
    facts = record.step("images").facts
    assert facts["images"][0]["how"] == "by the job" and int(facts["job"]["image_import_seconds"]) >= 0
    assert "image_import_seconds" in (record.directory / "evidence/facts.txt").read_text()


@pytest.mark.slurm
def test_a_job_on_a_copy_of_the_checkout(slurm_boxes: Boxes) -> None:
    (slurm_boxes.root / "node").mkdir()
    (slurm_boxes.host.workspace / ".git").mkdir()
    (slurm_boxes.host.workspace / "big").write_text("left out")
    slurm_boxes.job = change(slurm_boxes.job, staging=staging(slurm_boxes.root))
    slurm_boxes.host.benchmark(f"{GOOD}\nls -A > server.log")
    record = slurm_boxes.run()
    assert record.fields.state == "succeeded"
    seen = (record.directory / "results/server.log").read_text().split()
    assert "benchmarks" in seen and ".git" not in seen and "big" not in seen
    assert (record.directory / f"results/{RESULT}.json").exists()
    assert not (slurm_boxes.host.workspace / f"{RESULT}.json").exists(), "another run by hand may be at it"
    assert list((slurm_boxes.root / "node").iterdir()) == []


@pytest.mark.slurm
def test_a_refused_job(slurm_boxes: Boxes) -> None:
    job = slurm_boxes.job
    slurm_boxes.job = change(job, allocation=an_allocation(partition="nowhere", gpus=1))
    record = slurm_boxes.run(code=5)
    assert record.job is None and record.fields.error is not None
    assert "invalid partition" in record.fields.error.message.lower() and record.fields.error.hint is not None


@pytest.mark.slurm
def test_a_cancelled_job_ends_its_container_and_no_other(slurm_boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job has the same name: only ours carries our token."""
    other = ["sbatch", "--parsable", "--job-name=x_00", "--wrap=sleep 600", "--output=/dev/null", "--partition=batch"]
    theirs = subprocess.run(other, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    try:
        running = slurm_boxes.root / "running"
        slurm_boxes.host.benchmark(f"touch '{running}'; sleep 600 & wait")
        monkeypatch.setenv("HOME", str(slurm_boxes.root))
        child = os.fork()
        if child == 0:
            try:
                slurm_boxes.run(run_id="left")
            finally:
                os._exit(0)
        wait_for(running.exists)
        assert main(["cancel", "left"]) == 0
        os.waitpid(child, 0)
        record = slurm_boxes.record("left")
        assert record.fields.settled and record.job is not None and record.job.state == "CANCELLED"
        assert "the job ends with exit code 143" in Path(record.job.log).read_text()
        wait_for(lambda: not left(f"HOME={slurm_boxes.root}\0"))
        shown = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, timeout=60).stdout.split()
        assert theirs in shown
    finally:
        subprocess.run(["scancel", theirs], timeout=60)


@pytest.mark.slurm
def test_the_node_dies_under_the_job(slurm_boxes: Boxes, slurm_cluster: SlurmCluster) -> None:
    running = slurm_boxes.root / "running"
    slurm_boxes.host.benchmark(f"{GOOD}\ntouch '{running}'; sleep 600 & wait")
    child = os.fork()
    if child == 0:
        try:
            slurm_boxes.run(code=6, run_id="left")
        finally:
            os._exit(0)
    wait_for(running.exists)
    job = slurm_boxes.record("left").job
    assert job is not None
    (node,) = subprocess.run(["squeue", "-h", "-j", job.id, "-o", "%N"], capture_output=True, text=True).stdout.split()
    update = ["scontrol", "update", f"nodename={node}"]
    subprocess.run([*update, "state=down", "reason=test"], timeout=60, check=True)
    try:
        os.waitpid(child, 0)
    finally:
        subprocess.run([*update, "state=resume"], timeout=60)
    fields = slurm_boxes.record("left").fields
    assert fields.state == "failed" and fields.verdict is not None
    assert fields.verdict.layer == "node" and f"a node failed on {node}" in fields.verdict.text
    wait_for(lambda: not left(f"HOME={slurm_boxes.root}\0"))


def a_port_is_taken(boxes: Boxes) -> RunRecord:
    """A run whose server wants a port that somebody else on this host has, and keeps."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        port = theirs.getsockname()[1]
        boxes.job = change(boxes.job, container=change(boxes.job.container, environment={"PORT": str(port)}))
        boxes.host.benchmark(f"exec {sys.executable} -m http.server --bind 127.0.0.1 $PORT > server.log 2>&1")
        record = boxes.run(code=6)
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    return record


def test_a_port_is_taken_under_docker(boxes: Boxes) -> None:
    verdict = a_port_is_taken(boxes).fields.verdict
    assert verdict is not None and "Address already in use" in verdict.text and boxes.host.stand_ins.containers() == []


@pytest.mark.slurm
def test_a_port_is_taken_on_a_node(slurm_boxes: Boxes) -> None:
    verdict = a_port_is_taken(slurm_boxes).fields.verdict
    assert verdict is not None and "Address already in use" in verdict.text


def test_the_log_tells_the_end_of_a_job(boxes: Boxes) -> None:
    job = boxes.run().job
    assert job is not None
    kind = ContainerKind("boxed", boxes.plan, boxes.state / "jobs")
    key, log = JobKey(job.id, job.submitted, "r"), Path(job.log)
    state = kind.end_state_in_log(key, log)
    assert state is not None and state.exit_code == (0, 0) and not state.succeeded, "Slurm alone tells a success"
    with log.open("a") as file:
        file.write("launcher: job 1 on another node\n")
    assert kind.end_state_in_log(key, log) is None, "it was requeued"
    assert kind.output_of_log(log) == Path(job.output) and kind.output_of_log(log.with_name("x.log")) is None


def test_a_workspace_that_only_has_a_copy_on_compute_nodes(boxes: Boxes) -> None:
    shared = boxes.root / "shared"
    boxes.changes = {"workspace": WorkspacePlan(str(boxes.host.workspace), str(shared))}
    record = boxes.run()
    assert record.job is not None and Path(record.job.output).is_relative_to(shared)
    assert (record.directory / f"results/{RESULT}.json").exists() and (shared / f"{RESULT}.json").exists()


def test_an_eval_only_run(boxes: Boxes) -> None:
    boxes.changes = {"results": expected(mode="eval", run_eval=True, required=("results*.json",), isl=None, osl=None)}
    results = shlex.quote(json.dumps(evaluation()))
    boxes.host.benchmark(f"echo {results} > results_x.json; echo '{{}}' > meta_env.json; echo s > sample_1.jsonl")
    record = boxes.run()
    assert sorted(p.name for p in (record.directory / "results").glob("*.json*")) == [
        "meta_env.json",
        "results_x.json",
        "sample_1.jsonl",
    ]


def test_the_script_of_a_plan_is_the_plans(boxes: Boxes) -> None:
    record = boxes.run()
    assert ContainerJob.of(record.plan).script.path in (record.directory / "evidence" / SCRIPT).read_text()
