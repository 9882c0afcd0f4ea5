"""The main job as a user drives it, on the rehearsal's tools and the embedded scheduler: real processes and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.environment import environment_of
from launcher.benchmark.selection import Selection
from launcher.core.process import ProcessIdentity
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.project import Project
from launcher.rehearsal.stand_ins import REPOSITORY_SHA, ensure_repository
from launcher.srtctl.recipe import dump, variants
from tests.run.driving import KEY, ONE, Desk

NAME = "override_disagg-gb200-1p1d-dep4-tp4-marlin-2n"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def running(record: Mapping[str, Any]) -> bool:
    return bool(record["state"] == "running")


def test_a_run_comes_out_as_results_that_say_they_are_rehearsed(desk: Desk) -> None:
    said = desk.run()
    summary = desk.summary()
    assert summary["rehearsal"] is True
    assert [p["concurrency"] for p in summary["points"]] == [1, 4, 8, 16]
    assert all(p["state"] == "ok" for p in summary["points"])
    assert desk.record()["state"] == "succeeded"
    results = sorted((desk.state / "runs/r/results").glob("minimaxm3_1k1k_fp8_*_conc4_gpus_8_ctx_4_gen_4.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["rehearsal"] is True
    assert "REHEARSAL" in said and "1 of 1 runs succeeded" in said
    assert "[INFO] Benchmark completed successfully" in said  # the job's log was streamed


def test_chosen_concurrencies_are_what_runs(desk: Desk) -> None:
    desk.run("--conc", "4", "16")
    assert [p["concurrency"] for p in desk.summary()["points"]] == [4, 16]
    logs = Path(desk.record()["job"]["output"]) / "logs"
    assert len(list(logs.glob("sa-bench_*/results_*.json"))) == 2


def test_the_submission_is_clean_and_carries_the_run(desk: Desk) -> None:
    desk.run(VIRTUAL_ENV="/somebody/elses", SBATCH_PARTITION="other", SLURM_JOB_NAME="outer")
    tree = desk.state / "srt-slurm/srt-slurm-r"
    text = (tree / "srtslurm.yaml").read_text()
    assert "minimax-m3-mxfp8" in text and "nginx" not in text
    script = next(tree.glob("outputs/*/sbatch_script.sh")).read_text()
    assert "#SBATCH --comment=r\n" in script
    assert (tree / "configs/minimax-m3-gb200-vllm-fixes.sh").is_file()


@pytest.mark.parametrize(
    ("faults", "code", "message"),
    [
        ("partial-results", 7, "concurrency 16"),
        ("zero-tokens", 7, "invalid"),
        ("truncated-json", 7, "invalid"),
        ("nan", 7, "invalid"),
        ("exit=3", 6, "FAILED, exit code 3"),
        ("worker-death", 6, "FAILED"),
        ("two-ids", 5, "one job was asked for"),
        ("fail", 5, "srtctl apply exited with"),
    ],
)
def test_what_goes_wrong_never_comes_out_green(desk: Desk, faults: str, code: int, message: str) -> None:
    said = desk.run(code=code, LAUNCHER_REHEARSAL_FAULTS=faults)
    assert message in said
    record = desk.record()
    assert (record["state"], record["exit_code"]) == ("failed", code)
    assert not alive_jobs(desk)


def test_a_submission_that_says_nothing_is_found_by_its_token(desk: Desk) -> None:
    said = desk.run(LAUNCHER_REHEARSAL_FAULTS="silent")
    assert "srtctl failed, and the job exists" in said
    assert desk.record()["stages"]["submit"]["adopted"] is True


def test_a_log_that_never_comes_does_not_matter(desk: Desk) -> None:
    desk.run(LAUNCHER_REHEARSAL_FAULTS="no-log")


def test_an_image_that_cannot_be_had_ends_the_run_before_a_job(desk: Desk) -> None:
    said = desk.run(code=3, LAUNCHER_REHEARSAL_ENROOT="fail=404")
    assert "404" in said
    assert "job" not in desk.record()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_the_job_first(desk: Desk, number: signal.Signals, code: int) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    asked = time.time()
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code, out
    events = [json.loads(line) for line in (desk.state / "runs/r/events.jsonl").read_text().splitlines()]
    cancelled = next(e for e in events if e["text"].startswith("asked for the end"))
    assert cancelled["time"] - asked < 2
    assert not alive_jobs(desk)
    assert desk.record()["state"] == "cancelled"
    assert (desk.state / "runs/r/results/multinode_server_logs.tar.gz").is_file()


def test_a_signal_during_an_import_ends_it_and_leaves_no_part(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_ENROOT="slow=60")
    desk.wait_for(lambda r: r.get("stages", {}).get("images", {}).get("state") == "running")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert [p.name for p in (desk.state / "squash").iterdir() if p.suffix != ".lock"] == []


def test_what_a_killed_launcher_left_is_cleaned_up_by_another(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    assert alive_jobs(desk)
    assert "(nobody drives it)" in desk.launcher("status")
    said = desk.launcher("cleanup")
    assert "1 runs were left behind" in said
    assert not alive_jobs(desk)
    assert desk.launcher("cleanup") == "no run was left behind\n"


def test_a_killed_run_is_resumed_to_its_results_with_one_job(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=3")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    desk.launcher("resume", "r")
    assert desk.record()["state"] == "succeeded"
    assert len(list((desk.state / "jobs").glob("[0-9]*"))) == 1
    assert "has succeeded already" in desk.launcher("resume", "r")


def test_a_driven_run_is_left_alone_and_can_be_followed_and_cancelled(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    desk.wait_for(running)
    log = Path(desk.record()["job"]["output"], "logs", "sweep_1.log")
    for _ in range(200):
        if log.is_file() and log.stat().st_size:
            break
        time.sleep(0.1)
    assert desk.launcher("cleanup") == "no run was left behind\n"
    assert "another launcher drives this run" in desk.launcher("resume", "r", code=2)
    desk.launcher("cancel", "r")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 6, out
    assert "CANCELLED" in out
    assert "Sweep Orchestrator" in desk.launcher("logs", "r")


def test_results_of_a_job_that_outlived_its_launcher_are_collected(desk: Desk) -> None:
    process = desk.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="slow-start=2")
    desk.wait_for(running)
    process.kill()
    process.communicate()
    assert "the job has not ended" in desk.launcher("collect", "r", code=6)
    for _ in range(100):
        if not alive_jobs(desk):
            break
        time.sleep(0.1)
    assert desk.launcher("collect", "r") == "run r: succeeded\n"
    assert [p["state"] for p in desk.summary()["points"]] == ["ok"] * 4


def test_a_signal_ends_every_job_of_a_sweep(desk: Desk) -> None:
    arguments = ("sweep", "-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
    process = desk.start(*arguments, "--max-jobs", "2", LAUNCHER_REHEARSAL_FAULTS="hang")
    for _ in range(300):
        found = list((desk.state / "runs").iterdir()) if (desk.state / "runs").is_dir() else []
        if len(found) == 2 and all(desk.record(r.name).get("job") for r in found):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143, out
    assert not alive_jobs(desk)
    assert {desk.record(r.name)["state"] for r in (desk.state / "runs").iterdir()} == {"cancelled"}


def test_a_sweep_that_fails_fast_ends_the_rest(desk: Desk) -> None:
    arguments = ("sweep", "-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
    said = desk.launcher(*arguments, "--max-jobs", "1", "--fail-fast", code=6, LAUNCHER_REHEARSAL_FAULTS="exit=3")
    assert "another run of the sweep failed" in said
    states = sorted(desk.record(r.name)["state"] for r in (desk.state / "runs").iterdir())
    assert states == ["cancelled", "failed"]


def test_a_recipe_that_only_the_checkout_holds_is_read_there_and_checked(desk: Desk) -> None:
    tree = ensure_repository(desk.root / "upstream")
    document = variants(Document.read(shipped("recipes") / "vllm/minimax-m3-gb200-fp8/1k1k.yaml").mapping(), NAME)[0]
    (tree / "recipes/only-here.yaml").write_text(dump(document.document))
    for words in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "recipe"]):
        subprocess.run(["git", *words], cwd=tree, check=True, timeout=60)
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, timeout=60).stdout
    text = (shipped("runners") / "local.yaml").read_text().replace(REPOSITORY_SHA, sha.strip())
    runners = desk.root / "runners"
    runners.mkdir()
    (runners / "local.yaml").write_text(re.sub(r"rehearsal: .*\.?", f"rehearsal: {tree}", text, count=1))
    environment = {
        **github_environment(desk),
        "CONFIG_FILE": "recipes/only-here.yaml",
        "LAUNCHER_RUNNERS": str(runners),
    }
    planned = json.loads(desk.launcher("plan", "--from-env", "--json", **environment))
    assert planned["recipe"]["document"] is None
    assert [f["rule"] for f in planned["findings"]] == ["recipe-unread"]
    desk.launcher("ci", **environment)
    (run,) = (desk.state / "runs").iterdir()
    assert json.loads((run / "plan.json").read_text())["recipe"]["origin"] == "checkout"
    assert not (desk.state / "srt-slurm" / f"srt-slurm-{run.name}").exists()  # the workflow has its logs
    assert "Sweep Orchestrator" in desk.launcher("logs", run.name)
    wrong = desk.launcher("ci", code=2, **{**environment, "OSL": "512", "GITHUB_RUN_ID": "78"})
    assert "[sequence-length]" in wrong
    assert not any(desk.record(r.name).get("job") for r in (desk.state / "runs").glob("78-*"))


def test_an_id_that_is_taken_is_refused(desk: Desk) -> None:
    desk.run("--conc", "4")
    assert "exists already" in desk.run(code=2)


def test_a_sweep_says_which_run_failed_and_goes_on(desk: Desk) -> None:
    said = desk.launcher(
        "sweep",
        "-k",
        KEY,
        "--runner",
        "local",
        "--seq",
        "1k1k",
        "--topology",
        "1P1D*",
        "--conc",
        "4",
        "--max-jobs",
        "2",
    )
    assert "2 of 2 runs succeeded" in said


def github_environment(desk: Desk) -> dict[str, str]:
    project = Project.open({"HOME": str(desk.root)}, workspace=str(desk.workspace))
    chosen = Selection(keys=[KEY], sequences=["1k1k"], nodes="multi")
    benchmark = next(e for e in project.matrix().entries(chosen) if e.benchmark.topology == "1P1D DEP4/TP4")
    for name in ("output", "summary"):
        (desk.root / name).touch()
    return {
        **environment_of(benchmark.benchmark),
        "RUNNER_NAME": "local_0",
        "RESULT_FILENAME": "RESULT",
        "GITHUB_ACTIONS": "true",
        "GITHUB_RUN_ID": "77",
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_WORKSPACE": str(desk.workspace),
        "GITHUB_OUTPUT": str(desk.root / "output"),
        "GITHUB_STEP_SUMMARY": str(desk.root / "summary"),
        "HF_TOKEN": "hf_secretsecret",
    }


def test_ci_puts_results_where_the_workflow_looks(desk: Desk) -> None:
    environment = github_environment(desk)
    said = desk.launcher("ci", **environment)
    names = sorted(p.name for p in desk.workspace.glob("RESULT_*.json"))
    assert len(names) == 4 and names[0].startswith("RESULT_sa-bench_isl_1024_osl_1024_conc")
    assert (desk.workspace / "LOGS").is_dir()
    assert (desk.workspace / "multinode_server_logs.tar.gz").is_file()
    assert "state" in (desk.root / "output").read_text()
    assert "REHEARSAL" in (desk.root / "summary").read_text()
    assert "::stop-commands::" in said and "::add-mask::hf_secretsecret" in said
    rest = said.replace("::add-mask::hf_secretsecret", "")
    assert "hf_secretsecret" not in rest
    assert "hf_secretsecret" not in "".join(
        p.read_text(errors="replace") for p in (desk.state / "runs").rglob("*.json*")
    )
    assert "no job is left" in desk.launcher("cleanup", "--from-env", **environment)


def test_ci_fails_with_an_annotation(desk: Desk) -> None:
    said = desk.launcher("ci", code=7, **github_environment(desk), LAUNCHER_REHEARSAL_FAULTS="partial-results")
    assert "::error title=launcher: results::" in said.replace("%3A", ":")


def test_cleanup_of_a_cancelled_job_of_github_finds_it_by_the_environment(desk: Desk) -> None:
    environment = github_environment(desk)
    process = desk.start("ci", **environment, LAUNCHER_REHEARSAL_FAULTS="hang")
    run_id = None
    for _ in range(200):
        runs = list((desk.state / "runs").glob("77-1-*")) if (desk.state / "runs").is_dir() else []
        if runs:
            run_id = runs[0].name
            break
        time.sleep(0.1)
    assert run_id is not None
    desk.wait_for(running, run_id)
    process.kill()
    process.communicate()
    desk.launcher("cleanup", "--from-env", **environment)
    assert not alive_jobs(desk)


def alive_jobs(desk: Desk) -> list[str]:
    """Processes of this desk's jobs that still run, seen without asking the launcher."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            text = command + (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        ours = str(desk.state / "jobs") in text and "launcher" in command and int(entry.name) != os.getpid()
        if ours and ProcessIdentity.of(int(entry.name)).alive():
            found.append(command.replace("\0", " "))
    return found
