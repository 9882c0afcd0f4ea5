"""Jobs in containers by the command line, on a host without Slurm and docker: their programs are the rehearsal's.

The two rows are of recipes/matrix.yaml: one runs in a pyxis container, one in docker's. Job, script, server and client
are processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.environment import environment_of
from launcher.benchmark.expand import Selection
from launcher.project import Project
from tests.cli.scenes import never_silent  # noqa: F401
from tests.run.driving import KEY, InProcessUser, LauncherUser, running
from tests.run.test_end_to_end import HANG, wait_until

pytestmark = pytest.mark.usefixtures("never_silent")

PYXIS, DOCKER = "minimaxm3-fp8-local-vllm", "minimaxm3-fp8-local-sglang"
BOTH = pytest.mark.parametrize("key", [PYXIS, DOCKER])
QUICK = {"LAUNCHER_REHEARSAL_SECONDS": "0.01"}


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture
def user(shared_root: Path) -> Iterator[LauncherUser]:
    """Whose commands run in this process."""
    user = InProcessUser(shared_root, extra=QUICK)
    yield user
    user.forget_runs()


@pytest.fixture
def other(shared_root: Path) -> Iterator[LauncherUser]:
    """The same one, whose commands are processes."""
    user = LauncherUser(shared_root, extra=QUICK)
    yield user
    user.forget_runs()


def words(key: str, run_id: str = "r") -> tuple[str, ...]:
    return ("run", "-k", key, "--run-id", run_id)


def own_workspace(user: LauncherUser) -> Path:
    return user.state / "workspaces/r"


def docker(user: LauncherUser, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The stand-in, as somebody else on this host calls it."""
    program = user.state / "rehearsal/bin/docker"
    return subprocess.run(
        [program, *arguments], env=os.environ | more, capture_output=True, text=True, timeout=HANG, check=False
    )


def is_measuring(user: LauncherUser) -> bool:
    """Whether the server of the run's script is up: then a script that hangs does so in its client."""
    log = own_workspace(user) / "server.log"
    return log.is_file() and "ready on port" in log.read_text()


def images(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = record["stages"]["images"]["images"]
    return found


@BOTH
def test_a_run_comes_out_as_results_that_say_they_are_rehearsed(user: LauncherUser, key: str) -> None:
    before = sorted(path.name for path in user.workspace.iterdir())
    said = user.launcher(*words(key))
    assert "REHEARSAL" in said and "1 of 1 runs succeeded" in said
    summary, record = user.summary(), user.record()
    assert summary["rehearsal"] is True
    assert [(p["concurrency"], p["state"], p["gpus"]) for p in summary["points"]] == [(16, "ok", 4)]
    results = user.state / "runs/r/results"
    (result,) = results.glob("minimaxm3_1k1k_fp8_*_conc16_local_manual.json")
    assert json.loads(result.read_text())["rehearsal"] is True
    assert "rehearsal" in (results / "server.log").read_text()
    assert "rehearsal" in (results / "gpu_metrics.csv").read_text()
    (image,) = images(record)
    assert image["digest"].startswith("sha256:")
    assert (image["how"] == "pulled") is (key == DOCKER)
    # The job works where the runner file says, not where somebody happens to be.
    assert sorted(path.name for path in user.workspace.iterdir()) == before
    assert "succeeded" in user.launcher("status", "r")
    assert "nothing was measured" in user.launcher("logs", "r")
    result.unlink()
    assert "succeeded" in user.launcher("collect", "r") and result.is_file()
    assert (user.state / "runs/r/evidence/job.sh").is_file()


@BOTH
@pytest.mark.parametrize(
    ("faults", "code", "verdict"),
    [
        ("exit=9", 6, "benchmark: FAILED, exit code 9"),
        ("worker-death", 6, "server: the server failed at "),
        ("partial-results", 7, "results: "),
    ],
)
def test_what_goes_wrong_in_a_container_never_comes_out_green(
    user: LauncherUser, key: str, faults: str, code: int, verdict: str
) -> None:
    said = user.launcher(*words(key), code=code, LAUNCHER_REHEARSAL_FAULTS=faults)
    record = user.record()
    assert (record["state"], record["exit_code"]) == ("failed", code)
    assert f"\n{verdict}" in said
    if faults == "worker-death":
        assert "server.log: rehearsal: torch.OutOfMemoryError" in said


def test_an_image_that_cannot_be_pulled_is_the_images_fault(tmp_path: Path) -> None:
    user = InProcessUser(tmp_path, extra=QUICK)
    said = user.launcher(*words(DOCKER), code=6, LAUNCHER_REHEARSAL_FAULTS="no-image")
    assert (
        "\nimage: the job's script failed at " in said
        and "benchmark_job.log: launcher: error: image" in said
        and "lmsysorg/sglang:v0.5.14-cu130" in said
    )
    assert not (own_workspace(user) / "server.log").exists()


@pytest.mark.parametrize(
    ("fault", "said"), [("404", "404"), ("nospace", "space"), ("truncate", "no whole squash file")]
)
def test_an_image_that_cannot_be_imported_holds_no_gpu(tmp_path: Path, fault: str, said: str) -> None:
    user = InProcessUser(tmp_path, extra=QUICK)
    assert said in user.launcher(*words(PYXIS), code=3, LAUNCHER_REHEARSAL_ENROOT=f"fail={fault}")
    record = user.record()
    assert record["verdict"]["layer"] == "image" and record.get("job") is None
    assert not list((user.state / "jobs").glob("*")) and not list((user.state / "squash").glob("*.sqsh"))


@pytest.mark.parametrize(("key", "number", "code"), [(PYXIS, signal.SIGHUP, 129), (DOCKER, signal.SIGINT, 130)])
def test_a_signal_ends_the_container_and_leaves_nothing(
    other: LauncherUser, key: str, number: signal.Signals, code: int
) -> None:
    process = other.start(*words(key), LAUNCHER_REHEARSAL_FAULTS="hang")
    other.wait_for(running)
    wait_until(lambda: is_measuring(other))
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == code, out
    assert other.record()["state"] == "cancelled"
    assert not docker(other, "ps", "--all", "--quiet").stdout
    wait_until(lambda: not left(other))


def left(user: LauncherUser) -> list[str]:
    """Processes whose working directory is the run's workspace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(own_workspace(user)):
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_a_foreign_container_of_our_name_is_left_alone(user: LauncherUser, tmp_path: Path) -> None:
    user.launcher("run", "-k", DOCKER, "--run-id", "first")  # has the programs made
    user.forget_runs()
    (tmp_path / "theirs.sh").write_text("sleep 600\n")
    program = user.state / "rehearsal/bin/docker"
    argv = [program, "run", "--rm", "--name=launcher-r-1", "--label=launcher.job=other.1", "--workdir=/w"]
    docker(user, "pull", "org/theirs:1")
    with subprocess.Popen(
        [*argv, f"--volume={tmp_path}:/w", "--entrypoint=bash", "org/theirs:1", "theirs.sh"]
    ) as theirs:
        try:
            wait_until(lambda: docker(user, "ps", "--quiet").stdout)
            said = user.launcher(*words(DOCKER), code=6)
            assert user.record()["job"]["id"] == "1"
            assert "Conflict. The container name" in said
            assert len(docker(user, "ps", "--quiet").stdout.split()) == 1
        finally:
            docker(user, "rm", "--force", "launcher-r-1")
        assert theirs.wait(HANG) == 137


NODES = ("minimaxm3-fp8-nodes-sglang-disagg", "minimaxm3-fp8-nodes-llmd", "minimaxm3-fp8-nodes-tilert")


@pytest.mark.parametrize("key", NODES)
def test_two_nodes_of_this_host(user: LauncherUser, key: str) -> None:
    """A process for each, with the stand-ins' contract: a container on each node, one of which measures."""
    said = user.launcher(*words(key))
    assert "nodes: node0 node1" in said and "REHEARSAL" in said and user.record()["state"] == "succeeded"
    results = user.state / "runs/r/results"
    assert [("no model is served" in (results / f"LOGS/server_{rank}.log").read_text()) for rank in (0, 1)] == [
        True
    ] * 2
    points = [json.loads(path.read_text()) for path in results.glob("minimaxm3_*.json")]
    assert len(points) == 2 and all(point["rehearsal"] for point in points)
    kind = json.loads((user.state / "runs/r/plan.json").read_text())["kind"]
    assert kind == {"disagg": "amd-multinode", "llmd": "llm-d", "tilert": "tilert"}[key.rpartition("-")[2]]
    user.launcher("cleanup")
    assert not own_workspace(user).exists()


@pytest.mark.parametrize("key", NODES[:1])
def test_a_cancel_ends_what_runs_on_each_node(other: LauncherUser, key: str) -> None:
    process = other.start(*words(key), LAUNCHER_REHEARSAL_FAULTS="hang")
    other.wait_for(lambda record: bool(list((other.state / "workspaces").rglob("server_1.log"))))
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 143
    other.launcher("cleanup")  # a machine that is slow has the job killed before its nodes have ended all
    for name in ("node0", "node1"):
        assert not docker(other, "ps", "--quiet", SLURMD_NODENAME=name).stdout
    wait_until(lambda: not left(other))


@BOTH
def test_a_killed_run_is_resumed_to_its_results_with_one_job(other: LauncherUser, key: str) -> None:
    process = other.start(*words(key), LAUNCHER_REHEARSAL_FAULTS="slow-start=3")
    other.wait_for(running)
    process.kill()
    process.communicate()
    other.launcher("resume", "r")
    assert other.record()["state"] == "succeeded"
    assert len(list((other.state / "jobs").glob("[0-9]*"))) == 1


def test_a_sweep_takes_rows_of_every_kind(user: LauncherUser) -> None:
    arguments = ("-k", KEY, "minimaxm3-fp8-local-*", "--runner", "local", "--seq", "1k1k", "--conc", "16")
    said = user.launcher("sweep", *arguments, "--topology", "1P1D DEP4/TP4", "T*", "--max-jobs", "3")
    assert "  3/3 ok\n" in said
    kinds = [json.loads((user.state / "runs" / run / "plan.json").read_text())["kind"] for run in user.run_ids()]
    assert sorted(kinds) == ["container", "docker", "srtctl"]


@BOTH
def test_a_workflow_finds_results_and_an_evaluation_where_it_looks(user: LauncherUser, key: str) -> None:
    project = Project.open({"HOME": str(user.root)}, workspace=str(user.workspace))
    (entry,) = project.matrix().entries(Selection(keys=[key], evals="none"))
    environment = {
        **environment_of(entry.benchmark),
        "RUN_EVAL": "true",
        "RUNNER_NAME": "local_0",
        "RESULT_FILENAME": "RESULT",
        "GITHUB_RUN_ID": "77",
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_WORKSPACE": str(user.workspace),
        "HF_TOKEN": "hf_secretsecret",
    }
    said = user.launcher("ci", **environment)
    found = {path.name for path in user.workspace.iterdir()}
    assert {"RESULT.json", "server.log", "gpu_metrics.csv", "meta_env.json", "LOGS"} <= found, said
    assert [name for name in found if name.startswith("results_")]
    assert json.loads((user.workspace / "meta_env.json").read_text())["rehearsal"] is True
    (score,) = user.summary(user.run_ids()[0])["evaluations"]
    assert (score["task"], score["state"], score["em_strict"], score["threshold"]) == ("gsm8k", "ok", 0.95, 0.9)
    told = json.loads(user.launcher("report", user.run_ids()[0], "--json"))["points"]
    assert {(point["scenario"], point["state"]) for point in told} == {
        (entry.benchmark.scenario, "rehearsal"),
        ("evaluation", "rehearsal"),
    }
    assert list((user.state / "workspaces").iterdir()) == []
    assert "hf_secretsecret" not in said
