"""The stand-in for the srt-slurm repository, the programs on PATH, and a whole submission with both."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from launcher.core.errors import JobsExist, SubmissionError
from launcher.core.process import clean_environment, run
from launcher.rehearsal import stand_ins
from launcher.rehearsal.srtctl_contract import schema_errors, stand_in_data
from launcher.rehearsal.stand_ins import StandIns, stand_in_environment, tools_directory
from launcher.result.validate import MeasuredPoint, read_result
from launcher.run.kind import Submitted
from launcher.slurm.client import JobKey, Phase
from launcher.slurm.local import LocalScheduler
from launcher.srtctl.checkout import Checkout, Checkouts, known_keys
from launcher.srtctl.planned import SrtSlurm
from launcher.srtctl.submit import Submission, apply, write_srtslurm
from tests.result.documents import make_expected
from tests.run.runs import plan_on


def test_the_commit_is_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settings = (
        "[user]\nname=x\n[commit]\ngpgsign=true\n[core]\nautocrlf=true\nhooksPath=/nowhere\n[init]\ndefaultBranch=z\n"
    )
    (home / ".gitconfig").write_text(settings)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    before = os.umask(0o077)
    try:
        repository = stand_ins.ensure_repository(tmp_path / "a")
    finally:
        os.umask(before)
    monkeypatch.delenv("GIT_DIR")
    assert run(["git", "rev-parse", "HEAD"], timeout=9, cwd=repository).stdout.strip() == stand_ins.REPOSITORY_SHA
    assert repository == tmp_path / "a" / f"srt-slurm-{stand_ins.REPOSITORY_SHA[:12]}"
    stamp = repository.stat().st_mtime_ns
    assert stand_ins.ensure_repository(tmp_path / "a") == repository and repository.stat().st_mtime_ns == stamp


def test_several_processes_may_make_it_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    makers = [fork.Process(target=stand_ins.ensure_repository, args=(tmp_path,)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(20)
        assert maker.exitcode == 0
    assert [p.name for p in tmp_path.iterdir()] == [f"srt-slurm-{stand_ins.REPOSITORY_SHA[:12]}"]


def test_a_git_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SubmissionError, match="cannot be made"):
        stand_ins.ensure_repository(tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == []


def test_the_tree_declares_the_keys_that_the_stand_in_checks(tmp_path: Path) -> None:
    assert known_keys(stand_ins.ensure_repository(tmp_path)) == set(stand_in_data().cluster)


def test_srtslurm_yaml_is_judged_field_by_field() -> None:
    right = {"cluster": "c", "gpus_per_node": "4", "use_het_jobs": "no", "telemetry": {"a": [1]}, "containers": {}}
    assert schema_errors(right, stand_in_data().cluster) == {}
    wrong = {"cluster": 1, "use_het_jobs": "maybe", "telemetry": 1, "containers": {"a": 1}, "bogus": None}
    assert schema_errors({**wrong, "default_health_check": {"a": 1, "b": "x"}}, stand_in_data().cluster) == {
        "cluster": ["Not a valid string."],
        "use_het_jobs": ["Not a valid boolean."],
        "default_health_check": {"b": {"value": ["Not a valid integer."]}},
        "containers": {"a": {"value": ["Not a valid string."]}},
        "telemetry": ["Not a valid mapping type."],
        "bogus": ["Unknown field."],
    }


def test_the_programs_start(tmp_path: Path) -> None:
    tools = tools_directory(tmp_path / "tools with space")
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(["srtctl", "apply", "--help"], env=environ, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "--no-preflight" in done.stdout
    done = subprocess.run(["enroot", "version"], env=environ, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "rehearsal" in done.stdout
    assert tools_directory(tmp_path / "tools with space") == tools


def test_the_environment_names_the_jobs_of_the_embedded_scheduler_only(tmp_path: Path) -> None:
    path = f"{tmp_path}/rehearsal/bin:/usr/bin"
    assert stand_in_environment(tmp_path, "slurm", {"PATH": "/usr/bin"}) == {"PATH": path}
    local = {
        "PATH": f"{tmp_path}/rehearsal/bin-without-slurm:{path}",
        "LAUNCHER_LOCAL_JOBS": str(tmp_path / "jobs"),
    }
    assert stand_in_environment(tmp_path, "local", {"PATH": "/usr/bin"}) == local


def test_only_jobs_of_srtctl_get_its_repository(tmp_path: Path) -> None:
    tools, plan = StandIns(), plan_on("local", tmp_path)
    tools.make_stand_in_inputs(dataclasses.replace(plan, kind="script", details={"script": {}}))
    assert not (tmp_path / "rehearsal").exists() and Path(plan.model.path, "config.json").is_file()
    tools.make_stand_in_inputs(plan)
    assert (tmp_path / "rehearsal" / stand_ins.REPOSITORY_NAME / ".git").is_dir()


class PreparedTree:
    """A prepared work tree, with a recipe, ready to be submitted to the embedded scheduler."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.environ = clean_environment(os.environ) | {
            **stand_in_environment(root, "local", os.environ),
            "LAUNCHER_REHEARSAL_SECONDS": "0.01",
            "RUNNER_NAME": "local_0",
        }
        self.tree = self.prepare({})
        self.scheduler = LocalScheduler(self.jobs)
        (root / "model").mkdir()
        (root / "image.sqsh").touch()
        document = {
            "default_partition": "p",
            "default_time_limit": "4:00:00",
            "srtctl_root": str(self.tree.root),
            "model_paths": {"m": str(root / "model")},
            "containers": {"c": str(root / "image.sqsh")},
        }
        write_srtslurm(self.tree.root / "srtslurm.yaml", document, self.tree.cluster_keys)
        recipe = {
            "name": "small",
            "model": {"path": "m", "container": "c", "precision": "fp8"},
            "resources": {"gpu_type": "h200", "agg_nodes": 1, "agg_workers": 1},
            "benchmark": {"type": "sa-bench", "isl": 64, "osl": 64, "concurrencies": "1x2"},
            "sbatch_directives": {"comment": "run-7"},
        }
        (self.tree.root / "recipes/small.yaml").write_text(yaml.safe_dump(recipe))

    def prepare(self, extra: dict[str, str]) -> Checkout:
        repository = stand_ins.ensure_repository(self.root / "rehearsal")
        wanted = SrtSlurm(
            repository=str(repository),
            ref=stand_ins.REPOSITORY_REF,
            sha=stand_ins.REPOSITORY_SHA,
            overlays=(),
            patches=(),
            setup=(("make", "setup"),),
            setup_timeout=1800,
            root=str(self.root / "run"),
            cache=str(self.root / "cache"),
        )
        return Checkouts(environ={**self.environ, **extra}).prepare(wanted)

    def submit(self, faults: str = "", *argv: str) -> Submitted:
        extra = {"LAUNCHER_REHEARSAL_FAULTS": faults}
        for known in (self.root / "cache").rglob("launcher-options.json"):  # a program that is faulty is another one
            known.unlink()
        options = self.prepare(extra).options
        submission = Submission(
            ("srtctl", "apply", "-f", "recipes/small.yaml", *argv),
            self.tree.root,
            self.environ | extra,
            "run-7",
            options,
            earlier=frozenset(job.id for job in self.scheduler.find("run-7")),
        )
        return apply(submission, scheduler=self.scheduler, sleep=lambda seconds: None)

    def wait(self, job: JobKey) -> str:
        deadline = time.monotonic() + 90
        while (state := self.scheduler.poll([job])[job]).phase is not Phase.TERMINAL and time.monotonic() < deadline:
            time.sleep(0.05)
        return state.word


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedTree:
    return PreparedTree(tmp_path)


def test_a_whole_rehearsal(prepared: PreparedTree) -> None:
    done = prepared.submit("", "--no-preflight", "--tags", "a")
    assert done.output == prepared.tree.root / "outputs" / done.job_id and not done.adopted
    assert done.submitted is not None and abs(done.submitted - time.time()) < 60
    assert prepared.wait(JobKey(done.job_id, done.submitted, "run-7")) == "COMPLETED"
    logs = done.output / "logs"
    assert "✓ Sweep completed successfully" in (logs / f"sweep_{done.job_id}.log").read_text()
    for concurrency in (1, 2):
        file = logs / f"sa-bench_isl_64_osl_64/results_concurrency_{concurrency}_gpus_4.json"
        assert isinstance(read_result(file, concurrency, make_expected(64, 64)), MeasuredPoint)


def test_faults_of_a_submission(prepared: PreparedTree) -> None:
    lost = prepared.submit("silent")
    assert lost.adopted and lost.output.is_dir()
    old = prepared.submit("no-json,no-no-preflight", "--no-preflight")
    assert "--no-preflight is left out" in old.notes[0] and old.job_id != lost.job_id
    with pytest.raises(JobsExist) as caught:
        prepared.submit("two-ids")
    assert len(caught.value.job_ids) >= 2
    for job in prepared.scheduler.find("run-7"):
        prepared.wait(job)


def test_a_refused_submission_leaves_no_job(prepared: PreparedTree) -> None:
    with pytest.raises(SubmissionError, match="refused on request"):
        prepared.submit("fail")
    assert prepared.scheduler.find("run-7") == []
    (prepared.root / "image.sqsh").unlink()
    with pytest.raises(SubmissionError, match="Container alias 'c' resolved to") as caught:
        prepared.submit()
    assert "preflight: false" in (caught.value.hint or "")
