"""A second kind of job, a script that writes one result, goes through everything: this file alone knows it.

It is registered with the kinds that the project has, and named by the lanes of a runner file. Loop, record, evidence,
cancel, adopt, cleanup, resume and sweep are the product's, driven by its own commands.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import project
from launcher.benchmark.benchmark import Benchmark
from launcher.cli import main
from launcher.core.errors import ResultError
from launcher.core.process import CommandRunner
from launcher.core.shipped import shipped
from launcher.plan.derive import AppliedRules, Context, assemble_plan, planned_model
from launcher.plan.expected import expected_results, result_stem
from launcher.plan.plan import Allocation, Plan
from launcher.project import Project
from launcher.result.collect import CollectedResults, Problem
from launcher.result.document import UnusableResult
from launcher.result.validate import read_result
from launcher.run.kind import Earlier, Prepared, Run, Submitted
from launcher.run.prepare import prepare
from launcher.run.record import RunRecord
from launcher.runner.file import RunnerFile
from launcher.services import open_run
from launcher.slurm.client import JobKey, JobState
from tests.conftest import SlurmCluster
from tests.result.documents import fixed, make_expected
from tests.run.driving import KEY, ONE


def result_name(concurrency: int) -> str:
    return f"results_concurrency_{concurrency}_gpus_8_ctx_4_gen_4.json"


def script(output: str, concurrency: int, seconds: float) -> None:
    """The job: waits, writes its result, and says a word."""
    time.sleep(seconds)
    Path(output, result_name(concurrency)).write_text(json.dumps(fixed(concurrency)))
    sys.stdout.write("measured\n")


class ScriptKind:
    """A job that is a script: nothing to prepare, one result, no end of its own in its log."""

    name = "script"

    def __init__(self, of: Project) -> None:
        pass

    def plan(self, benchmark: Benchmark, file: RunnerFile, context: Context) -> Plan:
        details = {"script": {"seconds": float(context.host.get("SCRIPT_SECONDS", "0"))}}
        benchmark = replace(benchmark, concurrencies=benchmark.concurrencies[:1])
        rules = AppliedRules.of(benchmark, file, power=False)
        return assemble_plan(
            rules,
            context,
            images=(),
            model=planned_model(rules, "hf:a/b", context),
            results=expected_results(benchmark, result_stem(benchmark, context.runner_name)),
            holds=Allocation("0:10:00", 1, 4),
            details=details,
        )

    def describe(self, plan: Plan) -> list[tuple[str, str]]:
        return [("script", f"waits {plan.details['script']['seconds']} s, then measures")]

    def fingerprint(self, plan: Plan) -> dict[str, str]:
        return {"script": "always the same"}

    def is_complete(self, plan: Plan) -> bool:
        return True

    def complete(self, plan: Plan, prepared: Prepared) -> Plan:
        raise AssertionError("it is whole")

    def prepare(self, run: Run) -> Prepared:
        root = run.record.directory / "job"
        root.mkdir(exist_ok=True)
        return Prepared(root, {"root": str(root)})

    def check_nodes(self, run: Run) -> None:
        assert run.record.step("submit").state != "running", "a launcher that dies in a look leaves no run in doubt"

    def submit(self, run: Run, prepared: Prepared, earlier: Earlier, start: CommandRunner) -> Submitted:
        output = prepared.root
        (concurrency,), seconds = run.plan.results.concurrencies, run.plan.details["script"]["seconds"]
        held = self.submits_held(run.plan)
        if held:
            call = f"from tests.run.test_another_kind import script; script({str(output)!r}, {concurrency}, {seconds})"
            (output / "job.sh").write_text(f'#!/bin/sh\ncd {Path.cwd()} && {sys.executable} -c "{call}"\n')
            log = self.log_in(output, "")
            argv = ["sbatch", "--hold", "--parsable", f"--comment={run.id}", f"--output={log}", str(output / "job.sh")]
            done = run.services.run(argv, timeout=60, env=run.services.environment)
            assert done.ok, done
            return Submitted(done.stdout.strip(), None, output, log, held=True)
        from launcher.slurm.local import submit

        job = submit(
            Path(run.services.environ["LAUNCHER_STATE"], "jobs"),
            functools.partial(script, str(output), concurrency, seconds),
            name=run.plan.job_name,
            token=run.id,
            log=self.log_in(output, ""),
        )
        return Submitted(job.id, job.submitted, output, self.log_in(output, ""))

    def submits_held(self, plan: Plan) -> bool:
        return plan.scheduler.kind == "slurm"

    def output_directory(self, plan: Plan, job_id: str) -> Path:
        raise AssertionError("no submission of these tests loses its answer")

    def output_of_log(self, log: Path) -> Path | None:
        return log.parent if log.name == "job.log" else None

    def log_in(self, output: Path, job_id: str) -> Path:
        return output / "job.log"

    def complete_directory(self, run: Run) -> None:
        pass

    def end_state_in_log(self, job: JobKey, log: Path) -> JobState | None:
        return None

    def evidence(self, run: Run) -> Mapping[str, Path | str]:
        return {"script.txt": f"waits {run.plan.details['script']['seconds']} s\n"}

    def end_leftovers(self, run: Run) -> None:
        """Leaves nothing."""

    def collect(self, run: Run, patience: float) -> CollectedResults:
        assert run.record.job is not None
        (concurrency,) = run.plan.results.concurrencies
        path = Path(run.record.job.output, result_name(concurrency))
        if not path.exists():
            return CollectedResults(problems=(Problem("no result", concurrency),))
        try:
            point = read_result(path, concurrency, make_expected())
        except UnusableResult as wrong:
            raise ResultError(str(wrong), where=str(path)) from None
        shutil.copy(path, run.results_directory / f"{run.plan.results.filename}.json")
        return CollectedResults(points=(point,))

    def own_directories(self, plan: Plan) -> Sequence[Path]:
        return ()


class ScriptCluster:
    """A user's state directory, and a runner file whose lanes are of this kind."""

    def __init__(self, root: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.state = root / "state"
        text = shipped("runners").joinpath("local.yaml").read_text()
        text = text.replace("name: local\n", "name: scripts\n").replace("tools: rehearsal", "tools: system")
        text = text.replace('kind: local, time-limit: "0:10:00"', scheduler)
        text = text.replace("  - repository: rehearsal\n", "  - kind: script\n    repository: rehearsal\n")
        (root / "runners").mkdir()
        (root / "runners/scripts.yaml").write_text(text)
        monkeypatch.setitem(project.KINDS, ScriptKind.name, ScriptKind)
        monkeypatch.setenv("LAUNCHER_STATE", str(self.state))
        monkeypatch.setenv("LAUNCHER_RUNNERS", str(root / "runners"))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))

    def select(self, *more: str) -> list[str]:
        return [*ONE, "--runner", "scripts", *more]

    def record(self, run_id: str) -> RunRecord:
        return RunRecord.load(self.state / "runs", run_id)

    def submitted_and_left(self, run_id: str) -> None:
        """A run whose launcher submitted the job, and went without a word."""
        child = os.fork()
        if child == 0:
            try:
                of = Project.open(os.environ)
                benchmark = next(
                    entry.benchmark for entry in of.matrix().entries(_selection()) if "1P1D" in entry.benchmark.topology
                )
                plan = of.plan_by_hand(benchmark, "scripts", run_id=run_id)
                prepare(open_run(of, RunRecord.create(of.runs, plan)))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert self.record(run_id).job is not None


def _selection() -> Any:
    from launcher.benchmark.expand import Selection

    return Selection(keys=[KEY], sequences=["1k1k"], nodes="multi", evals="none")


@pytest.fixture
def script_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptCluster]:
    script_cluster = ScriptCluster(tmp_path, 'kind: local, time-limit: "0:10:00"', monkeypatch)
    yield script_cluster
    main(["cleanup"])


def good(script_cluster: ScriptCluster, run_id: str) -> None:
    record = script_cluster.record(run_id)
    assert record.fields.state == "succeeded" and record.fields.settled
    assert len(list((record.directory / "results").glob("*.json"))) == 1
    assert (record.directory / "evidence/script.txt").is_file()
    summary = json.loads((record.directory / "summary.json").read_text())
    assert [point["state"] for point in summary["points"]] == ["ok"]


def test_a_plan_of_it(script_cluster: ScriptCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *script_cluster.select("--json")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kind"] == "script" and plan["script"] == {"seconds": 0.0} and "recipe" not in plan
    assert main(["plan", *script_cluster.select()]) == 0
    assert "script     waits 0.0 s" in capsys.readouterr().out


def test_a_run_and_a_sweep_of_it(script_cluster: ScriptCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *script_cluster.select("--run-id", "r")]) == 0
    good(script_cluster, "r")
    assert main(["logs", "r"]) == 0
    assert "measured" in capsys.readouterr().out
    assert main(["collect", "r"]) == 0
    sweep = ["-k", KEY, "--seq", "1k1k", "--topology", "1P1D*", "--runner", "scripts", "--max-jobs", "2"]
    assert main(["sweep", *sweep]) == 0
    runs = [path.name for path in (script_cluster.state / "runs").iterdir()]
    assert len(runs) == 3
    for run_id in runs:
        good(script_cluster, run_id)


def test_it_is_resumed_by_another_process(script_cluster: ScriptCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_SECONDS", "1")
    script_cluster.submitted_and_left("left")
    assert main(["resume", "left"]) == 0
    good(script_cluster, "left")


@pytest.mark.parametrize("command", [["cancel", "left"], ["cleanup"]])
def test_it_is_ended_by_another_process(
    script_cluster: ScriptCluster,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SCRIPT_SECONDS", "600")
    script_cluster.submitted_and_left("left")
    assert main(command) == 0
    record = script_cluster.record("left")
    assert record.fields.state == "cancelled" and record.fields.settled and "CANCELLED" in capsys.readouterr().out
    assert record.fields.verdict is not None and record.fields.verdict.layer == "cancelled"


def test_a_job_of_it_is_adopted(script_cluster: ScriptCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_SECONDS", "1")
    script_cluster.submitted_and_left("first")
    job = script_cluster.record("first").job
    assert job is not None
    shutil.rmtree(script_cluster.state / "runs/first/evidence", ignore_errors=True)
    shutil.move(script_cluster.state / "runs/first/job", script_cluster.root / "job")
    (script_cluster.state / "runs/first/job").symlink_to(script_cluster.root / "job")
    (script_cluster.state / "runs/first/run.json").unlink()
    assert (
        main(
            [
                "adopt",
                job.id,
                *script_cluster.select("--run-id", "second", "--output", str(script_cluster.root / "job")),
            ]
        )
        == 0
    )
    good(script_cluster, "second")


@pytest.mark.slurm
def test_it_is_held_released_and_watched_on_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster
) -> None:
    for name, value in slurm_cluster.env.items():
        if name.startswith(("SLURM", "MUNGE")):
            monkeypatch.setenv(name, value)
    script_cluster = ScriptCluster(
        tmp_path, 'kind: slurm, partition: batch, account: root, time-limit: "0:10:00"', monkeypatch
    )
    assert main(["run", *script_cluster.select("--run-id", "r")]) == 0
    good(script_cluster, "r")
    job = script_cluster.record("r").job
    assert job is not None and job.released and not job.held
    said = subprocess.run(["squeue", "-h"], env=dict(os.environ), capture_output=True, text=True, timeout=60).stdout
    assert job.id not in said.split()
