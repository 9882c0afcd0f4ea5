"""Results of a job that runs in the workspace: its own, whole, and nothing of yesterday's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from launcher.container.results import JobFiles, collect, facts
from launcher.core.errors import ResultError
from launcher.result.collect import CollectedResults
from tests.container.plans import RESULT, expected
from tests.result.documents import age, agentic, evaluation, fixed, write


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def collected(
    workspace: Path, into: Path | None = None, sleeps: list[float] | None = None, **changes: Any
) -> CollectedResults:
    place = JobFiles(workspace, into or workspace, time.time() - 60, gpus=8)
    sleep = (sleeps if sleeps is not None else []).append
    return collect(expected(**changes), place, patience=10 if sleeps is not None else 0, sleep=sleep)


def test_a_fixed_result_stays_where_the_workflow_looks(workspace: Path) -> None:
    path = write(workspace / f"{RESULT}.json", fixed(4))
    before = path.stat()
    found = collected(workspace)
    (point,) = found.points
    assert point.concurrency == 4 and point.throughput_per_gpu == 960.0 / 8 and found.problems == ()
    assert list(found.published) == [f"{RESULT}.json"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_everything_is_copied_whole_for_a_run_by_hand(workspace: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    write(workspace / f"{RESULT}.json", fixed(4))
    for name in ("server.log", "gpu_metrics.csv", "results/deep/x.log", "results/aiperf/y", "meta_env.json", "other"):
        write(workspace / name, {} if name.endswith("json") else name)
    age(write(workspace / "results/old", "old"), 3600)
    write(workspace / ".launcher/results/z", "z")
    (workspace / "results/outside").symlink_to("/etc/passwd")
    collected(workspace, into)
    names = {str(p.relative_to(into)) for p in into.rglob("*") if p.is_file()}
    results = {"results/deep/x.log", "results/aiperf/y"}
    assert names == {f"{RESULT}.json", "server.log", "gpu_metrics.csv", "meta_env.json", *results}


def test_an_agentic_result(workspace: Path) -> None:
    write(workspace / f"{RESULT}.json", agentic(4))
    (point,) = collected(workspace, mode="agentic").points
    assert point.completed == 100 and point.ttft_median_ms == 500.0
    write(workspace / f"{RESULT}.json", agentic(8))
    (problem,) = collected(workspace, mode="agentic").problems
    assert "conc is 8, expected 4" in str(problem)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "no RESULT.json in"),
        ('{"model_id": "m", "max_conc', "truncated JSON"),
        ("", "the file is empty"),
        (fixed(8), "max_concurrency is 8, expected 4"),
        (fixed(4, completed=0), "no request was completed"),
    ],
)
def test_a_result_that_is_none(workspace: Path, document: Any, says: str, tmp_path: Path) -> None:
    if document is not None:
        write(workspace / f"{RESULT}.json", document)
    (into := tmp_path / "into").mkdir()
    found = collected(workspace, into)
    assert says in str(found.problems[0]) and found.points == () and list(into.iterdir()) == []
    with pytest.raises(ResultError):
        found.raise_if_bad()


def test_a_result_of_yesterday_is_another_jobs(workspace: Path) -> None:
    age(write(workspace / f"{RESULT}.json", fixed(4)), 3600)
    (problem,) = collected(workspace).problems
    assert "older than this job" in str(problem)


def test_a_result_that_comes_late_is_waited_for(workspace: Path) -> None:
    class Writes(list[float]):
        def append(self, seconds: float) -> None:
            super().append(seconds)
            write(workspace / f"{RESULT}.json", fixed(4))

    sleeps = Writes()
    assert len(collected(workspace, sleeps=sleeps).points) == 1 and len(sleeps) == 1


def test_eval_files(workspace: Path) -> None:
    only: dict[str, Any] = {"mode": "eval", "run_eval": True, "required": ("results*.json",)}
    age(write(workspace / "results_old.json", {}), 3600)
    assert "older than this job" in str(collected(workspace, **only).problems[0])
    write(workspace / "results_1.json", '{"a": ')
    assert any("is not a JSON object" in str(p) for p in collected(workspace, **only).problems)
    write(workspace / "results_1.json", evaluation())
    (problem,) = collected(workspace, **only).problems
    assert "results_old.json is older than this job" in str(problem)
    (workspace / "results_old.json").unlink()
    assert collected(workspace, **only).problems == ()


def test_eval_files_beside_a_result_are_extra(workspace: Path) -> None:
    write(workspace / f"{RESULT}.json", fixed(4))
    found = collected(workspace, run_eval=True)
    assert found.problems == () and "no results*.json" in found.doubts[0]


def test_a_name_that_leads_out_of_the_workspace(workspace: Path) -> None:
    with pytest.raises(ResultError, match="not a name below"):
        collected(workspace, logs=("../x",))
    with pytest.raises(ResultError, match="no such directory"):
        collected(workspace / "nowhere")


def test_facts_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "facts.txt").write_bytes(b"image=a@sha256:0\nnothing\n\xff=\n")
    assert facts(tmp_path / "facts.txt")["image"] == "a@sha256:0"
    assert facts(tmp_path / "none") == {}
