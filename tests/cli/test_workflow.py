"""The workflows of docs/guides/github.md: the page's own text, run as GitHub runs it, on the one-machine cluster."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import launcher.cli
from launcher import __version__
from launcher.benchmark.contracts import MULTI_NODE, SINGLE_NODE
from launcher.benchmark.environment import benchmark_from_environment, environment_of
from launcher.benchmark.expand import Selection
from launcher.benchmark.matrix import Entry
from launcher.cli import main
from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.doctor.step import is_compatible
from launcher.project import Project
from tests.cli.github_steps import GitHubJob, programs
from tests.conftest import SlurmCluster
from tests.run.driving import KEY, LauncherUser, github_environment
from tests.run.test_end_to_end import wait_until
from tests.shared import SHARED, needs_shared

PAGE = (Path(__file__).parents[2] / "docs/guides/github.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SHOWN = {
    match[1]: block for block in BLOCKS if (match := re.match(r"# .*`launcher ci --print-workflow ([a-z-]+)`", block))
}


@functools.cache
def document(name: str) -> dict[Any, Any]:
    value: dict[Any, Any] = yaml.safe_load(SHOWN[name])
    return value


@pytest.mark.parametrize(
    "name", [file.stem.partition("-")[2] for file in Path(launcher.cli.__file__).parent.glob("workflow-*.yml")]
)
def test_the_page_shows_what_this_version_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ci", "--print-workflow", name]) == 0
    assert SHOWN[name] == capsys.readouterr().out
    job = next(iter(document(name)["jobs"].values()))
    assert job["env"]["LAUNCHER_VERSION"] == __version__
    assert all("${{" not in step.get("run", "") for step in job["steps"]), "nothing from outside is pasted into a shell"
    launch = next(step for step in job["steps"] if step.get("name") == "Launch")
    assert launch["run"].splitlines()[-1].startswith("exec launcher ci")


@pytest.mark.parametrize(("name", "contract"), [("multi-node", MULTI_NODE), ("single-node", SINGLE_NODE)])
def test_a_workflow_sets_every_variable_of_its_contract(name: str, contract: Any) -> None:
    asked = {f.variable for f in (*contract.fields, *(f for side in contract.roles.values() for f in side))}
    job = document(name)["jobs"]["benchmark"]
    assert asked | contract.options.keys() <= job["env"].keys() | {"RESULT_FILENAME"}, "that name `launcher ci` gives"


def started(name: str, tmp_path: Path, entry: Mapping[str, Any], **inputs: Any) -> GitHubJob:
    inputs = {"config": json.dumps(entry), "runner": entry["runner"], **inputs}
    return GitHubJob(document(name), tmp_path, tmp_path, {}, inputs, runner="r_0").start()


def agrees(entry: Entry, tmp_path: Path) -> None:
    """The job's variables mean the row."""
    benchmark = entry.benchmark
    only = {"eval-only": True} if benchmark.eval_only else {}
    job = started("multi-node" if benchmark.multinode else "single-node", tmp_path, entry.data, **only)
    found = environment_of(benchmark_from_environment(job.env))
    assert {**found, "RUN_EVAL": ""} == {**environment_of(benchmark), "RUN_EVAL": ""}, entry.key


def test_rows_of_our_matrix_reach_the_launcher_as_they_are(tmp_path: Path) -> None:
    entries = Project.open({}, workspace=str(tmp_path)).matrix().entries(Selection(evals="none"))
    assert len(entries) > 50
    for entry in entries:
        agrees(entry, tmp_path)


@needs_shared
@pytest.mark.shared
def test_rows_of_inferencex_reach_the_launcher_as_they_are(tmp_path: Path) -> None:
    """Of every kind of row a few: agentic ones, evaluations, settings of both sides."""
    assert SHARED is not None
    matrix = Project.open({}, workspace=str(SHARED / "inferencex")).matrix()
    found: dict[object, list[Entry]] = {}
    for evals in ("none", "only"):
        for entry in matrix.entries(Selection(evals=evals)):
            data = entry.data
            sides = [sorted(data.get(side, {}).keys()) for side in ("prefill", "decode")]
            found.setdefault((evals, str(sorted(data.keys())), str(sides)), []).append(entry)
    assert len(found) > 20
    for alike in found.values():
        for entry in (alike[0], alike[-1]):
            agrees(entry, tmp_path)


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """The command in a step of the runner `local`, with changes to the variables of a good one; its code and text."""
    user = LauncherUser(tmp_path)
    good = {**user.environment(), **github_environment(user), "GITHUB_JOB": "benchmark"}
    good["GITHUB_ENV"] = good["GITHUB_OUTPUT"]

    def check(capsys: pytest.CaptureFixture[str], **changes: str) -> tuple[int, str]:
        for name in os.environ.keys() - good.keys():
            monkeypatch.delenv(name)
        for name, value in {**good, **changes}.items():
            monkeypatch.setenv(name, value)
        code = main(["ci", "--check-environment"])
        return code, "".join(capsys.readouterr())

    return check


LACKS = [
    ({"GITHUB_ENV": "", "GITHUB_JOB": ""}, ["GITHUB_JOB not set", "GITHUB_ENV: not set"]),
    ({"LAUNCHER_VERSION": "9.0.0"}, ["LAUNCHER_VERSION: the workflow is written for launcher 9.0.0"]),
    (
        {"TP": "8", "RUNNER_NAME": "nobody_0"},
        ["variables of two kinds of jobs", "no runner file claims the prefix 'nobody'"],
    ),
    (
        {"ISL": "x", "PREFILL_TP": "", "LAUNCHER_STATE": "/proc/1/no"},
        ["ISL is 'x'", "PREFILL_TP is not set", "records"],
    ),
    ({"PATH": "/nowhere"}, ["the runner's host: git is not on PATH"]),
    (
        {"PATH": "/nowhere", "RUNNER_NAME": "one-machine_0", "SLURM_CONF": "/nowhere"},
        ["sbatch is not on PATH", "SLURM_CONF"],
    ),
    (
        {"CONFIG_FILE": "", "PREFILL_ADDITIONAL_SETTINGS": '["CONFIG_FIL=x"]'},
        ["additional setting 'CONFIG_FIL' is not known"],
    ),
]


@pytest.mark.parametrize(("changes", "lacks"), LACKS, ids=lambda value: ",".join(value))
def test_a_step_is_told_all_that_it_lacks(
    step: Any, capsys: pytest.CaptureFixture[str], changes: dict[str, str], lacks: list[str]
) -> None:
    code, printed = step(capsys, **changes)
    assert code == 2
    assert [word for word in lacks if word not in printed] == [], printed
    assert printed.count("lacks: ") == printed.count("::error title=launcher%3A environment::") >= len(lacks)
    assert "hf_secretsecret" not in printed


def test_a_step_that_lacks_nothing_is_told_so(step: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, printed = step(capsys, LAUNCHER_VERSION=__version__)
    assert (code, "nothing is missing: " in printed) == (0, True), printed
    assert not (tmp_path / "state/runs").exists() and list((tmp_path / "workspace").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "wanted", "good"),
    [("0.1.3", "0.1.0", True), ("0.2.0", "0.1.9", False), ("0.1.0", "0.1.1", False), ("2.3.0", "2.1.7", True),
     ("3.0.0", "2.9.9", False), ("2.1.0", "2.2.0", False), ("0.1.0", "x", False)],
)  # fmt: skip
def test_which_version_serves_a_workflow(version: str, wanted: str, good: bool) -> None:
    assert is_compatible(version, wanted) is good


def test_settings_of_a_row_are_data(tmp_path: Path) -> None:
    row = {"CONC_LIST": "4", "PREFILL_ADDITIONAL_SETTINGS": '["CONFIG_FILE=a b;$(id)*", "SLURM_PARTITION=first"]'}
    given = {
        **github_environment(LauncherUser(tmp_path)),
        **row,
        "DECODE_ADDITIONAL_SETTINGS": '["SLURM_PARTITION=second"]',
    }
    del given["CONFIG_FILE"]
    found = benchmark_from_environment(given).settings
    assert found == {"CONFIG_FILE": "a b;$(id)*", "SLURM_PARTITION": "second"}
    for wrong in ('["PATH=/tmp"]', "[1]", "{", '["CONFIG_FILE"]'):
        with pytest.raises(ConfigError, match="PREFILL_ADDITIONAL_SETTINGS"):
            benchmark_from_environment({**given, "PREFILL_ADDITIONAL_SETTINGS": wrong})
    with pytest.raises(ConfigError, match="SLURM_PARTITION is 'third'"):
        benchmark_from_environment({**given, "SLURM_PARTITION": "third"})


@pytest.mark.parametrize(
    ("names", "by"), [("", "bash"), ("gb200-nv_*", "launcher"), ("x_1 gb200-nv_0", "launcher"), ("gb200-nv_1", "bash")]
)
def test_one_runner_after_the_other(tmp_path: Path, names: str, by: str) -> None:
    """The step of the time between: the programs here only say that they were started."""
    (step,) = yaml.safe_load(next(block for block in BLOCKS if "BY_LAUNCHER" in block))
    for path, printed in (("launcher", 'echo "launcher $1"'), ("runners/launch_gb200-nv.sh", "echo bash")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f"#!/bin/sh\n{printed}\n")
        (tmp_path / path).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_NAME": "gb200-nv_0", "BY_LAUNCHER": names}
    argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n")[:-1] == (["launcher ci"] if by == "launcher" else ["launcher shadow", "bash"])


# On the cluster: what a maintainer pastes, on a runner that is called `one-machine_0`.

RUNNER = """\
name: one-box
sku: one-box
runners: [one-box]
tools: rehearsal
scheduler: {partition: batch, account: benchmark, time-limit: "0:10:00"}
node: {gpus: 4}
storage: [{path: /, kind: local}]
images: {directory: "{state}/squash", import-on: login, lock-wait: 60}
models:
  - {path: "{state}/models/{model}"}
lanes:
  - kind: container
    when: {nodes: single}
    container:
      engine: docker
      allocation: {exclusive: false, time-limit-variable: SALLOC_TIME_LIMIT}
      script: {names: ["{model}_{precision}_box.sh"], variable: BENCH_SCRIPT_OVERRIDE}
      port: {base: 30000, add: job-id}
      model-variables: [MODEL_PATH]
      flags: [--init]
pass-environment: [LAUNCHER_REHEARSAL_FAULTS, LAUNCHER_REHEARSAL_SECONDS]
"""
PROFILED = 'if [ "${PROFILE:-0}" = 1 ]; then gzip -c server.log >"profile_$RESULT_FILENAME.trace.json.gz"; fi\n'


class Fleet:
    """The runner's host, and the checkout that its jobs get."""

    def __init__(self, root: Path, cluster: SlurmCluster) -> None:
        self.cluster, self.repository = cluster, root / "repository"
        slurm = {k: v for k, v in cluster.env.items() if k.startswith(("SLURM", "MUNGE"))}
        self.user = LauncherUser(root, extra={**slurm, "LAUNCHER_REHEARSAL_SECONDS": "0.01"})
        scripts = self.repository / "benchmarks"
        shutil.copytree(shipped("recipes") / "benchmarks", scripts)
        (self.repository / "runners").mkdir()
        (self.repository / "runners/one-box.yaml").write_text(RUNNER)
        text = (scripts / "single_node/fixed_seq_len/minimaxm3_fp8_local.sh").read_text()
        (scripts / "single_node/fixed_seq_len/minimaxm3_fp8_box.sh").write_text(text + PROFILED)
        (scripts / "single_node/acceptance.sh").write_text(
            'echo "modes: $THINKING_MODES" >speedbench-reference-al.yaml\n'
        )
        self.entries = Project.open({}, workspace=str(self.repository)).matrix().entries(Selection(evals="none"))
        self.number = 76
        self.bin = programs(root / "bin")

    def job(self, name: str, inputs: Mapping[str, Any], *, runner: str = "one-machine_0", **host: str) -> GitHubJob:
        self.number += 1
        user = self.user.environment(**host)
        user["PATH"] = f"{self.bin}:{user['PATH']}"
        root = self.user.root / "runner"
        root.mkdir(exist_ok=True)
        given = {"runner": "one-machine", **inputs}
        return GitHubJob(document(name), self.repository, root, user, given, runner, str(self.number)).start()

    def several_nodes(self, **host: str) -> GitHubJob:
        of = (
            e
            for e in self.entries
            if e.key == KEY and e.benchmark.topology == "1P1D DEP4/TP4" and e.benchmark.isl == 1024
        )
        return self.job("multi-node", {"config": json.dumps(next(of).data)}, **host)

    def one_node(self, name: str = "single-node", **inputs: Any) -> GitHubJob:
        (entry,) = (e for e in self.entries if e.key == "minimaxm3-fp8-local-vllm")
        return self.job(name, {"config": json.dumps(entry.data), **inputs}, runner="one-box_0")

    def states(self, job: GitHubJob) -> list[str]:
        """How the runs of this GitHub job ended."""
        runs = (self.user.state / "runs").glob(f"{job.run}-1-*/run.json")
        return [json.loads(path.read_text())["state"] for path in runs]

    def released(self, job: GitHubJob) -> bool:
        runs = (self.user.state / "runs").glob(f"{job.run}-1-*/run.json")
        return any(json.loads(path.read_text()).get("job", {}).get("released") for path in runs)

    def jobs(self) -> str:
        """What Slurm has that lives."""
        argv = ["squeue", "-h", "-o", "%i %T %j", "-t", "PENDING,RUNNING,SUSPENDED"]
        return subprocess.run(argv, env=self.cluster.env, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, slurm_cluster: SlurmCluster) -> Iterator[Fleet]:
    yield Fleet(tmp_path_factory.mktemp("g"), slurm_cluster)


@pytest.mark.slurm
def test_a_good_job_of_several_nodes(fleet: Fleet) -> None:
    job = fleet.several_nodes().go()
    assert job.state == "success", job.printed
    assert "nothing is missing: " in job.printed["Check the environment"]
    stem = job.env["RESULT_FILENAME"]
    assert job.outputs == {"run-id": job.env["LAUNCHER_RUN_ID"], "state": "succeeded"}
    assert len(job.uploads[f"bmk_{stem}"]) == 4 and job.uploads[f"multinode_server_logs_{stem}"]
    assert "hf_secret" not in "".join(job.printed.values()).replace("::add-mask::hf_secret_hf_token", "")
    assert fleet.states(job) == ["succeeded"] and fleet.jobs() == ""


@pytest.mark.slurm
def test_a_red_job_leaves_its_evidence_and_is_red(fleet: Fleet) -> None:
    job = fleet.several_nodes(LAUNCHER_REHEARSAL_FAULTS="exit=3").go()
    assert (job.state, job.codes) == ("failure", {"Check the environment": 0, "Launch": 6, "Clean up": 0})
    assert job.outputs["state"] == "failed" and "::error title=launcher%3A " in job.printed["Launch"]
    assert job.uploads[f"multinode_server_logs_{job.env['RESULT_FILENAME']}"] and fleet.jobs() == ""


@pytest.mark.slurm
def test_a_cancelled_job_frees_its_nodes_within_githubs_patience(fleet: Fleet) -> None:
    job = fleet.several_nodes(LAUNCHER_REHEARSAL_FAULTS="hang").go(until="Launch")
    process = job.begin("Launch")
    wait_until(lambda: fleet.released(job))
    job.cancel(process)
    assert job.end("Launch", process) == 130, job.printed
    job.rest(after="Launch")
    assert job.codes["Clean up"] == 0 and fleet.states(job) == ["cancelled"] and fleet.jobs() == ""
    assert job.uploads[f"multinode_server_logs_{job.env['RESULT_FILENAME']}"]


def killed(fleet: Fleet) -> GitHubJob:
    """A job whose launcher answers neither SIGINT nor SIGTERM, so that GitHub kills it."""
    job = fleet.several_nodes(LAUNCHER_REHEARSAL_FAULTS="hang").go(until="Launch")
    job.hurry = 0.01
    process = job.begin("Launch")
    wait_until(lambda: fleet.released(job))
    process.send_signal(signal.SIGSTOP)  # what it has of signals it gets never
    job.cancel(process)
    assert job.end("Launch", process) == -signal.SIGKILL
    return job


@pytest.mark.slurm
def test_what_a_killed_launcher_left_is_ended_by_the_next_job_and_by_clean_up(fleet: Fleet) -> None:
    """The first one's host went away with the runner: no step of it came after."""
    first = killed(fleet)
    assert len(fleet.jobs().splitlines()) == 1
    second = killed(fleet)
    assert "was left behind by an earlier job of this runner" in second.printed["Launch"]
    assert fleet.states(first) == ["cancelled"] and len(fleet.jobs().splitlines()) == 1
    second.rest(after="Launch")
    assert second.codes["Clean up"] == 0 and fleet.states(second) == ["cancelled"] and fleet.jobs() == ""


@pytest.mark.slurm
def test_a_good_job_of_one_node_with_an_evaluation(fleet: Fleet) -> None:
    job = fleet.one_node(**{"run-eval": True}).go()
    assert job.state == "success", job.printed
    stem = job.env["RESULT_FILENAME"]
    assert job.env["GPU_COUNT"] == "4" and job.uploads[f"bmk_{stem}"] == [f"agg_{stem}.json"]
    assert "meta_env.json" in job.uploads[f"eval_minimaxm3_1k1k_{stem}"]
    assert "server.log" in job.uploads[f"server_logs_{stem}"] and job.uploads[f"gpu_metrics_{stem}"] == [
        "gpu_metrics.csv"
    ]


@pytest.mark.slurm
def test_a_profile(fleet: Fleet) -> None:
    job = fleet.one_node("profile").go()
    assert job.state == "success", job.printed
    stem = job.env["RESULT_FILENAME"]
    assert job.uploads[f"profile_{stem}"] == [f"{stem}.json", f"profile_{stem}.trace.json.gz"]


@pytest.mark.slurm
def test_acceptance_lengths(fleet: Fleet) -> None:
    row = {"image": "vllm/vllm-openai:v1", "model": "MiniMaxAI/MiniMax-M3-MXFP8", "model-prefix": "minimaxm3"}
    more = {"framework": "vllm", "precision": "fp8", "mtp-list": "1 2", "tp": "4"}
    script = {"script": "benchmarks/single_node/acceptance.sh"}
    job = fleet.job("speedbench", {**row, **more, **script}, runner="one-box_0").go()
    assert job.state == "success", job.printed
    assert job.uploads == {"speedbench_minimaxm3": ["speedbench-reference-al.yaml"]}
    assert (job.workspace / "speedbench-reference-al.yaml").read_text() == "modes: off on\n"
