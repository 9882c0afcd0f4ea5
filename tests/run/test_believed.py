"""A finished run whose result was changed, and `launcher collect`: what a person is told, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from tests.run.driving import InProcessUser, LauncherUser, github_environment

QUICK = {"LAUNCHER_REHEARSAL_SECONDS": "0.01"}
Change = Callable[[Path, dict[str, Any]], Path | None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> LauncherUser:
    """A user whose run ``r`` of 4+4 GPUs is over, and good."""
    user = LauncherUser(tmp_path_factory.mktemp("user"), extra=QUICK)  # a process has a run until it ends
    user.run("--conc", "4", "16")
    return user


@pytest.fixture
def result(finished: LauncherUser) -> Iterator[Path]:
    """Its result of concurrency 4; what a test makes of it is undone."""
    (path,) = Path(finished.record()["job"]["output"]).glob("logs/sa-bench_*/results_concurrency_4_*.json")
    before = path.read_bytes()
    yield path
    for changed in path.parent.glob("results_concurrency_4_*"):
        changed.unlink()
    path.write_bytes(before)


def renamed(path: Path, document: dict[str, Any]) -> Path:
    return path.rename(path.with_name("results_concurrency_4_gpus_2_ctx_1_gen_1.json"))


CHANGES: dict[str, tuple[Change, str]] = {
    "GPUs of another topology": (renamed, "its file name says 1+1 GPUs, and the plan 4+4: "),
    "one of forty": (lambda p, d: d.update(completed=1), "39 of 40 requests failed (completed is 1): 97.5%"),
    "another model": (
        lambda p, d: d.update(model_id="meta/Llama-3"),
        "model_id is 'meta/Llama-3', and the plan's model",
    ),
    "a rate": (lambda p, d: d.update(output_throughput=9e9), "output_throughput is 9e+09, and total_output_tokens / "),
    "short answers": (lambda p, d: d.update(total_output_tokens=40), "where OSL is 1024 in the plan"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_result_that_was_changed(finished: LauncherUser, result: Path, name: str) -> None:
    change, words = CHANGES[name]
    document = json.loads(result.read_text())
    path = change(result, document) or result
    path.write_text(json.dumps(document))
    said = finished.launcher("collect", "r", code=7)
    assert f"concurrency 4: sa-bench_isl_1024_osl_1024/{path.name}: " in said and words in said


def test_what_was_left_alone_is_good(finished: LauncherUser, result: Path) -> None:
    assert "succeeded" in finished.launcher("collect", "r")


def test_what_another_run_left_is_told_before_a_job_is_submitted(tmp_path: Path) -> None:
    """In a workflow's workspace, where its next step would count it."""
    user = InProcessUser(tmp_path, extra=QUICK)
    environment = github_environment(user)
    (user.workspace / "RESULT_sa-bench_isl_1024_osl_1024_conc64_gpus_8_ctx_4_gen_4.json").write_text("{}")
    said = user.launcher("ci", code=7, **environment)
    assert "conc64_gpus_8_ctx_4_gen_4.json is in the workspace, is no result that this run was asked for" in said
    (run,) = user.run_ids()
    assert "job" not in user.record(run)


# Bounds


def test_bounds_are_shown_in_the_plan(finished: LauncherUser) -> None:
    said = finished.launcher("plan", "-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--runner", "local", "--seq", "1k1k")
    assert "at most 5 % of the requests failed, clocks 60 s apart, numbers 5 % apart, mean lengths 0.5 to 1.5" in said


def planned(user: LauncherUser, *arguments: str, code: int = 0, **more: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(user.launcher("plan", "--from-env", "--json", *arguments, code=code, **more))
    results: dict[str, Any] = value["results"]
    return results


def test_runner_file_and_row_set_bounds(tmp_path: Path) -> None:
    user = InProcessUser(tmp_path)
    environment = github_environment(user)
    assert planned(user, **environment)["gpus"] == [4, 4]
    runners = tmp_path / "runners"
    runners.mkdir()
    text = (shipped("runners") / "local.yaml").read_text()
    (runners / "local.yaml").write_text(f"{text}\nresults: {{failed: 0.02, clock-skew: 5, lengths: [0.2, 1.1]}}\n")
    bounds = planned(user, "--runners", str(runners), **environment)["bounds"]
    assert bounds == {"failed": 0.02, "clock_skew": 5.0, "tolerance": 0.05, "lengths": [0.2, 1.1]}
    row = {"RESULT_FAILED": "0.2", "RESULT_LONGEST": "2"}
    bounds = planned(user, "--runners", str(runners), **environment, **row)["bounds"]
    assert bounds == {"failed": 0.2, "clock_skew": 5.0, "tolerance": 0.05, "lengths": [0.2, 2.0]}
    said = user.launcher("plan", "--from-env", code=2, **environment, RESULT_FAILED="most")
    assert "RESULT_FAILED is 'most'; expected a number" in said


def test_a_bound_that_is_no_share(tmp_path: Path) -> None:
    from launcher.runner.file import RunnerFile

    text = (shipped("runners") / "local.yaml").read_text()
    (tmp_path / "local.yaml").write_text(f"{text}\nresults: {{failed: 5}}\n")
    with pytest.raises(ConfigError, match="failed"):
        RunnerFile.read(tmp_path / "local.yaml")
