"""The job's body, run where it stands: what it leaves behind, and what its faults do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launcher.rehearsal import engine_stand_in
from launcher.result.document import UnusableResult
from launcher.result.validate import MeasuredPoint, read_result
from tests.result.documents import make_expected, read_or_error
from tests.shared import SHARED, needs_shared

RECIPE = {
    "name": "small",
    "model": {"path": "hf:x/y", "container": "/dev/null", "precision": "fp8"},
    "resources": {
        "gpu_type": "gb200",
        "gpus_per_node": 4,
        "prefill_nodes": 1,
        "prefill_workers": 1,
        "decode_nodes": 2,
        "decode_workers": 2,
    },
    "backend": {"type": "sglang"},
    "benchmark": {"type": "sa-bench", "isl": 128, "osl": 128, "concurrencies": "4x16"},
}


class JobRun:
    def __init__(self, output: Path, squash: Path) -> None:
        self.output, self.logs, self.squash = output, output / "logs", squash

    def run(self, recipe: dict[str, object] | None = None, **environ: str) -> int:
        self.output.mkdir()
        document = {**RECIPE, **(recipe or {})}
        document["model"] = {**document["model"], "container": str(self.squash)}  # type: ignore[dict-item]
        (self.output / "config.yaml").write_text(yaml.safe_dump(document))
        (self.output / "sbatch_script.sh").write_text("#!/bin/bash\n")
        (self.output / "7.json").write_text("{}")
        return engine_stand_in.run_job(
            self.output, "config.yaml", {"SLURM_JOB_ID": "7", "LAUNCHER_REHEARSAL_SECONDS": "0.001", **environ}
        )

    def files(self) -> set[str]:
        return {str(p.relative_to(self.output)) for p in self.output.rglob("*") if p.is_file()}

    def results(self) -> dict[int, MeasuredPoint | UnusableResult]:
        paths = sorted(self.logs.glob("sa-bench_*/results_*.json"))
        numbers = [int(path.name.split("_")[2]) for path in paths]
        return {
            n: read_or_error(read_result, p, n, make_expected(128, 128)) for n, p in zip(numbers, paths, strict=True)
        }


@pytest.fixture
def job_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRun:
    monkeypatch.chdir(tmp_path)
    squash = tmp_path / "image.sqsh"
    squash.touch()
    return JobRun(tmp_path / "7", squash)


@needs_shared
def test_it_leaves_the_files_of_a_real_job(job_run: JobRun) -> None:
    assert SHARED is not None
    real = SHARED / "reference/one-machine/samples/srtctl-disagg-job3"
    names = {str(p.relative_to(real)).replace("3.json", "7.json") for p in real.rglob("*") if p.is_file()}
    assert job_run.run() == 0
    expected = {n for n in names if not n.endswith((".csv", "sweep_3.log"))}
    assert expected <= job_run.files()
    assert "logs/sbatch_script.sh" in job_run.files()
    lock = yaml.safe_load((job_run.output / "recipe.lock.yaml").read_text())
    assert lock["lock"]["rehearsal"] is True and lock["name"] == "small"


def test_every_concurrency_has_a_result_that_the_launcher_takes(
    job_run: JobRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job_run.run() == 0
    results = job_run.results()
    assert list(results) == [16, 4] or list(results) == [4, 16]
    assert all(isinstance(p, MeasuredPoint) and p.rehearsal and p.gpus == 12 for p in results.values())
    output = capsys.readouterr().out
    for line in ("🚀 srtctl Sweep Orchestrator", "Job ID: 7", "[INFO] Started 3 worker processes", "✓ Sweep completed"):
        assert line in output


def test_aggregated_workers_are_named_and_counted_as_srtctl_does(job_run: JobRun) -> None:
    resources = {"gpu_type": "h200", "gpus_per_node": 8, "agg_nodes": 2, "agg_workers": 4}
    assert job_run.run({"resources": resources}) == 0
    names = {p.name for p in job_run.logs.iterdir()}
    assert {"node01_agg_w0.out", "node01_agg_w1.out", "node02_agg_w2.out", "node02_agg_w3.out"} <= names
    assert (job_run.logs / "sa-bench_isl_128_osl_128/results_concurrency_4_gpus_16.json").exists()


def test_the_two_sides_share_no_node(job_run: JobRun) -> None:
    resources = {**RECIPE["resources"], "gpus_per_prefill": 2, "gpus_per_decode": 2}  # type: ignore[dict-item]
    assert job_run.run({"resources": resources}) == 0
    names = {p.name for p in job_run.logs.iterdir()}
    assert {"node01_prefill_w0.out", "node02_decode_w0.out", "node02_decode_w1.out"} <= names
    assert (job_run.logs / "sa-bench_isl_128_osl_128/results_concurrency_4_gpus_6_ctx_2_gen_4.json").exists()


def test_aliases_are_resolved_in_the_job_and_an_unknown_one_ends_it(
    job_run: JobRun, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"path": "no-such-alias", "container": "x", "precision": "fp8"}
    assert job_run.run({"model": model}) == 1
    output = capsys.readouterr().out
    assert f"FileNotFoundError: Model path does not exist: {job_run.output.parent}/no-such-alias" in output
    assert "✗ Sweep failed (exit code: 1)" in output


def test_eval_only_leaves_eval_files_and_no_results(job_run: JobRun) -> None:
    assert job_run.run(EVAL_ONLY="true", EVAL_CONC="4 16", MODEL_PREFIX="dsr1") == 0
    assert job_run.results() == {}
    meta = json.loads((job_run.logs / "eval_results/meta_env.json").read_text())
    assert meta["eval_concs"] == [4, 16]


def test_run_eval_comes_after_the_benchmark(job_run: JobRun) -> None:
    assert job_run.run(RUN_EVAL="true") == 0
    assert len(job_run.results()) == 2
    assert json.loads((job_run.logs / "eval_results/meta_env.json").read_text())["conc"] == 16


def test_an_agentic_job_writes_into_the_workspace(job_run: JobRun, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    benchmark = {"type": "custom", "env": {"CONC": "4"}, "command": "bash x.sh"}
    assert job_run.run({"benchmark": benchmark}, INFMAX_WORKSPACE=str(workspace), RESULT_FILENAME="r") == 0
    assert [p.name for p in workspace.iterdir()] == ["r_conc4.json"]
    assert (job_run.logs / "agentic/conc_4").is_dir()


@pytest.mark.parametrize(
    ("fault", "code", "results"),
    [
        ("worker-death", 1, {4: MeasuredPoint}),
        ("partial-results", 0, {4: MeasuredPoint}),
        ("zero-tokens", 0, {4: UnusableResult, 16: UnusableResult}),
        ("exit=9", 9, {4: MeasuredPoint, 16: MeasuredPoint}),
        ("truncated-json", 0, {4: MeasuredPoint, 16: UnusableResult}),
        ("nan", 0, {4: MeasuredPoint, 16: UnusableResult}),
        ("slow-start=0.01,exit=3", 3, {4: MeasuredPoint, 16: MeasuredPoint}),
    ],
)
def test_faults_do_what_they_say(
    job_run: JobRun, capsys: pytest.CaptureFixture[str], fault: str, code: int, results: dict[int, type]
) -> None:
    assert job_run.run(LAUNCHER_REHEARSAL_FAULTS=fault) == code
    assert {n: type(p) for n, p in job_run.results().items()} == results
    verdict = f"✗ Sweep failed (exit code: {code})" if code else "✓ Sweep completed successfully"
    output = capsys.readouterr().out
    assert verdict in output
    assert ("Critical process 'decode_1_node03' exited with code 137" in output) == (fault == "worker-death")


def test_an_unknown_fault_is_an_error(job_run: JobRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert job_run.run(LAUNCHER_REHEARSAL_FAULTS="worker-deaht") == 1
    assert "did you mean 'worker-death'?" in capsys.readouterr().out


def test_a_hanging_job_hangs_until_it_is_ended(job_run: JobRun, tmp_path: Path) -> None:
    assert job_run.run() == 0  # makes the directory
    environ = {
        **os.environ,
        "SLURM_JOB_ID": "7",
        "LAUNCHER_REHEARSAL_FAULTS": "hang",
        "LAUNCHER_REHEARSAL_SECONDS": "0",
    }
    argv = [sys.executable, "-m", "launcher.rehearsal.engine_stand_in", str(job_run.output)]
    for file in job_run.logs.glob("sa-bench_*/*"):
        file.unlink()
    job = subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not job_run.results() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert job.poll() is None and list(job_run.results()) == [4]
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == -signal.SIGTERM


def test_a_job_may_start_before_its_configuration_is_there(tmp_path: Path) -> None:
    squash = tmp_path / "i.sqsh"
    squash.touch()
    argv = [sys.executable, "-m", "launcher.rehearsal.engine_stand_in", str(tmp_path / "7"), "config_x.yaml"]
    environ = {**os.environ, "SLURM_JOB_ID": "7", "LAUNCHER_REHEARSAL_SECONDS": "0"}
    job = subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL, cwd=tmp_path)
    while not (tmp_path / "7/logs").is_dir():
        time.sleep(0.02)
    time.sleep(0.2)
    document = {**RECIPE, "model": {**RECIPE["model"], "container": str(squash)}}  # type: ignore[dict-item]
    partial = tmp_path / "7/partial"
    partial.write_text(yaml.safe_dump(document))
    partial.rename(tmp_path / "7/config_x.yaml")
    assert job.wait(60) == 0
