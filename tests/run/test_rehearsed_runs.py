"""What the stand-ins let go right or wrong, and what comes out of it: by the command line, in this process.

The job itself, srtctl and git are processes all the same. All runs share one state directory, so images and checkouts
of earlier ones are found. What needs a process of the launcher's own is in test_end_to_end.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.project import Project
from launcher.rehearsal.engine_stand_in import run_job
from launcher.rehearsal.stand_ins import REPOSITORY_SHA, ensure_model, ensure_repository
from launcher.run.finish import finish
from launcher.run.record import RecordedJob
from launcher.slurm.client import JobState, Phase
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.recipe import dump, variants
from tests.cli.scenes import never_silent  # noqa: F401
from tests.run.driving import KEY, InProcessUser, LauncherUser, github_environment, one_benchmark, valid_lines
from tests.run.runs import ScriptedScheduler, a_run, services

pytestmark = pytest.mark.usefixtures("never_silent")

NAME = "override_disagg-gb200-1p1d-dep4-tp4-marlin-2n"
SWEEP = ("sweep", "-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D*", "--conc", "4")
QUICK = {"LAUNCHER_REHEARSAL_SECONDS": "0.01"}


@pytest.fixture(scope="module")
def shared_user(tmp_path_factory: pytest.TempPathFactory) -> InProcessUser:
    return InProcessUser(tmp_path_factory.mktemp("user"), extra=QUICK)


@pytest.fixture
def user(shared_user: InProcessUser) -> Iterator[InProcessUser]:
    yield shared_user
    shared_user.forget_runs()


def test_chosen_concurrencies_are_what_runs(user: LauncherUser) -> None:
    user.run("--conc", "4", "16")
    assert [p["concurrency"] for p in user.summary()["points"]] == [4, 16]
    logs = Path(user.record()["job"]["output"]) / "logs"
    assert len(list(logs.glob("sa-bench_*/results_*.json"))) == 2


def test_the_submission_is_clean_and_carries_the_run(user: LauncherUser) -> None:
    user.run(VIRTUAL_ENV="/somebody/elses", SBATCH_PARTITION="other", SLURM_JOB_NAME="outer")
    tree = user.state / "srt-slurm/srt-slurm-r"
    text = (tree / "srtslurm.yaml").read_text()
    assert "minimax-m3-mxfp8" in text and "nginx" not in text
    script = next(tree.glob("outputs/*/sbatch_script.sh")).read_text()
    assert "#SBATCH --comment=r\n" in script
    assert (tree / "configs/minimax-m3-gb200-vllm-fixes.sh").is_file()


@pytest.mark.parametrize(
    ("faults", "message"), [("two-ids", "one job was asked for"), ("fail", "srtctl apply exited with")]
)
def test_a_submission_that_goes_wrong_never_comes_out_green(user: LauncherUser, faults: str, message: str) -> None:
    assert message in user.run(code=5, LAUNCHER_REHEARSAL_FAULTS=faults, LAUNCHER_REHEARSAL_SECONDS="600")
    assert (user.record()["state"], user.record()["exit_code"]) == ("failed", 5)
    deadline = time.monotonic() + 120  # a cancelled job may take a moment to end; uncancelled it would take 600 s
    while (alive := user.alive_jobs()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive == []


@pytest.mark.parametrize(
    ("faults", "code", "message"),
    [
        ("", 0, "good"),
        ("partial-results", 7, "concurrency 16"),
        ("zero-tokens", 7, "invalid"),
        ("truncated-json", 7, "invalid"),
        ("nan", 7, "invalid"),
        ("exit=3", 6, "FAILED, exit code 3"),
        ("worker-death", 6, "FAILED"),
    ],
)
def test_what_goes_wrong_in_a_job_never_comes_out_green(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: str, code: int, message: str
) -> None:
    """The job's body runs in this process, in a tree like srtctl's; its end is judged as the loop has it judged."""
    session = Project.open(InProcessUser(tmp_path).environment(), workspace=str(tmp_path))
    run = a_run(
        tmp_path, session.plan_by_hand(one_benchmark(session), "local", run_id="r"), services(ScriptedScheduler())
    )
    job = SrtctlJob.of(run.plan)
    ensure_model(Path(run.plan.model.path), run.plan.model.precision)
    for image in run.plan.images:
        Path(image.squash).parent.mkdir(parents=True, exist_ok=True)
        Path(image.squash).touch()
    tree = Path(job.srt_slurm.root)
    output = tree / "outputs/1"
    output.mkdir(parents=True)
    (tree / "srtslurm.yaml").write_text(dump(job.srtslurm))
    assert job.recipe.document is not None
    (variant,) = variants(job.recipe.document, job.recipe.selector)
    (output / "config.yaml").write_text(dump(variant.document))
    log = output / "logs/sweep_1.log"
    run.record.update(state="running", job=RecordedJob("1", time.time(), str(output), str(log)))
    monkeypatch.chdir(tree)
    exit_code = run_job(output, "config.yaml", {**QUICK, "SLURM_JOB_ID": "1", "LAUNCHER_REHEARSAL_FAULTS": faults})
    word = "FAILED" if exit_code else "COMPLETED"
    outcome = finish(run, JobState(Phase.TERMINAL, word, exit_code=(exit_code, 0)))
    assert outcome.exit_code == code and outcome.verdict is not None
    assert message in f"{outcome.error}{outcome.verdict}"
    fields = run.record.fields
    assert (fields.state, fields.exit_code) == ("failed" if code else "succeeded", code)


def test_a_submission_that_says_nothing_is_found_by_its_token(user: LauncherUser) -> None:
    said = user.run(LAUNCHER_REHEARSAL_FAULTS="silent")
    assert "srtctl failed, and the job exists" in said
    assert user.record()["stages"]["submit"]["adopted"] is True


def test_a_log_that_never_comes_does_not_matter(user: LauncherUser) -> None:
    user.run(LAUNCHER_REHEARSAL_FAULTS="no-log")


def test_an_image_that_cannot_be_had_ends_the_run_before_a_job(tmp_path: Path) -> None:
    user = InProcessUser(tmp_path)
    said = user.run(code=3, LAUNCHER_REHEARSAL_ENROOT="fail=404")
    assert "404" in said
    assert "job" not in user.record()


def test_a_sweep_that_fails_fast_ends_the_rest(user: LauncherUser) -> None:
    said = user.launcher(*SWEEP, "--max-jobs", "1", "--fail-fast", code=6, LAUNCHER_REHEARSAL_FAULTS="exit=3")
    assert "fail fast: " in said and "1 not started" in said
    states = sorted(user.record(run)["state"] for run in user.run_ids())
    assert states == ["cancelled", "failed"]


def test_a_recipe_that_only_the_checkout_holds_is_read_there_and_checked(tmp_path: Path) -> None:
    user = InProcessUser(tmp_path, extra=QUICK)
    tree = ensure_repository(user.root / "upstream")
    document = variants(Document.read(shipped("recipes") / "vllm/minimax-m3-gb200-fp8/1k1k.yaml").mapping(), NAME)[0]
    (tree / "recipes/only-here.yaml").write_text(dump(document.document))
    for words in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "recipe"]):
        subprocess.run(["git", *words], cwd=tree, check=True, timeout=60)
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, timeout=60).stdout
    text = (shipped("runners") / "local.yaml").read_text().replace(REPOSITORY_SHA, sha.strip())
    runners = user.root / "runners"
    runners.mkdir()
    (runners / "local.yaml").write_text(re.sub(r"rehearsal: .*\.?", f"rehearsal: {tree}", text, count=1))
    environment = {
        **github_environment(user),
        "CONFIG_FILE": "recipes/only-here.yaml",
        "LAUNCHER_RUNNERS": str(runners),
    }
    planned = json.loads(user.launcher("plan", "--from-env", "--json", **environment))
    assert planned["recipe"]["document"] is None
    assert [f["rule"] for f in planned["findings"]] == ["recipe-unread"]
    user.launcher("ci", **environment)
    (run,) = user.run_ids()
    assert json.loads((user.state / "runs" / run / "plan.json").read_text())["recipe"]["origin"] == "checkout"
    assert not (user.state / "srt-slurm" / f"srt-slurm-{run}").exists()  # the workflow has its logs
    assert "Sweep Orchestrator" in user.launcher("logs", run)
    wrong = user.launcher("ci", code=2, **{**environment, "OSL": "512", "GITHUB_RUN_ID": "78"})
    assert "[sequence-length]" in wrong
    assert not any(user.record(run).get("job") for run in user.run_ids() if run.startswith("78-"))


def test_an_id_that_is_taken_is_refused(user: LauncherUser) -> None:
    user.run("--conc", "4")
    assert "exists already" in user.run(code=2)


def test_a_sweep_says_which_run_failed_and_goes_on(user: LauncherUser) -> None:
    said = user.launcher(*SWEEP, "--max-jobs", "2")
    assert "  2/2 ok\n" in said


def test_ci_puts_results_where_the_workflow_looks(user: LauncherUser) -> None:
    environment = github_environment(user)
    said = user.launcher("ci", **environment)
    names = sorted(p.name for p in user.workspace.glob("RESULT_*.json"))
    assert len(names) == 4 and names[0].startswith("RESULT_sa-bench_isl_1024_osl_1024_conc")
    assert (user.workspace / "LOGS").is_dir()
    assert (user.workspace / "multinode_server_logs.tar.gz").is_file()
    assert "state" in (user.root / "output").read_text()
    summary = (user.root / "summary").read_text()
    assert "> **REHEARSAL: the numbers of 4 of 4 points" in summary and "throughput per GPU, tok/s/GPU" in summary
    assert len([line for line in summary.splitlines() if line.startswith("| rehearsal |")]) == 4
    assert "::stop-commands::" in said and "::add-mask::hf_secretsecret" in said
    rest = said.replace("::add-mask::hf_secretsecret", "")
    assert "hf_secretsecret" not in rest
    assert "hf_secretsecret" not in "".join(
        p.read_text(errors="replace") for p in (user.state / "runs").rglob("*.json*")
    )
    assert "no job is left" in user.launcher("cleanup", "--from-env", **environment)


def test_ci_fails_with_an_annotation_and_what_streams_has_its_schema(user: InProcessUser) -> None:
    environment = {**github_environment(user), "LAUNCHER_REHEARSAL_FAULTS": "partial-results"}
    said = user.launcher("ci", "--json", code=7, **environment)
    assert "::error title=launcher: results::" in said.replace("%3A", ":")
    lines = valid_lines(user, "ci")
    assert {"run", "stage", "job", "log", "end", "verdict", "outcome"} <= {line["event"] for line in lines}
    assert lines[0]["runner"] == "local" and lines[-1]["exit_code"] == 7
    assert "hf_secretsecret" not in user.printed
    run = lines[0]["run"]
    for command, code in (("logs", 0), ("collect", 7), ("resume", 7), ("cancel", 0)):
        user.launcher(command, run, "--json", code=code)
        assert valid_lines(user, command), command
