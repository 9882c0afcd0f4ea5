"""From a job's directory into the workspace: names, ownership, and everything that is missing or not ours."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as change

from launcher.core.errors import ResultError
from launcher.result.collect import CollectRequest, collect
from launcher.result.logs import LOGS, TARBALL, keep_logs
from tests.result.documents import age, agentic, evaluation, fixed, make_expected, write
from tests.shared import SHARED, needs_shared

FOLDER = "sa-bench_isl_128_osl_128"


class Job:
    """Our job's directory and the workspace, with two concurrencies asked for."""

    def __init__(self, directory: Path) -> None:
        self.logs, self.workspace = directory / "outputs" / "3" / "logs", directory / "workspace"
        self.logs.mkdir(parents=True)
        self.workspace.mkdir()
        (self.logs / "sweep_3.log").write_text("log\n")
        self.request = CollectRequest(
            logs_dir=self.logs,
            workspace=self.workspace,
            expected=make_expected(128, 128, concurrencies=(4, 16)),
            job_id="3",
            started=time.time() - 60,
        )

    def result(self, concurrency: int, *, gpus: str = "12_ctx_4_gen_8", folder: str = FOLDER, **changes: Any) -> Path:
        path = self.logs / folder / f"results_concurrency_{concurrency}_gpus_{gpus}.json"
        return write(path, fixed(concurrency, **changes))

    def asks(self, **changes: Any) -> CollectRequest:
        return replace(self.request, expected=change(self.request.expected, **changes))

    @property
    def published(self) -> set[str]:
        return {path.name for path in self.workspace.iterdir()} - {LOGS, TARBALL}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_results_come_under_the_names_of_the_workflow(job: Job) -> None:
    job.result(4)
    job.result(16, gpus="8")
    collected = collect(job.request)
    collected.raise_if_bad()
    assert [point.concurrency for point in collected.points] == [4, 16]
    assert (collected.problems, collected.doubts) == ((), ())
    assert job.published == {f"RF_{FOLDER}_conc4_gpus_12_ctx_4_gen_8.json", f"RF_{FOLDER}_conc16_gpus_8.json"}
    for name, digest in collected.published.items():
        assert hashlib.sha256((job.workspace / name).read_bytes()).hexdigest() == digest
    assert kept(job) == []
    assert (job.workspace / LOGS / "sweep_3.log").read_text() == "log\n"
    assert (job.workspace / LOGS / FOLDER / "results_concurrency_16_gpus_8.json").is_file()
    with tarfile.open(job.workspace / TARBALL) as tar:
        assert "sweep_3.log" in tar.getnames()


@needs_shared
def test_a_real_job(tmp_path: Path) -> None:
    assert SHARED is not None
    shutil.copytree(SHARED / "reference/one-machine/samples/srtctl-disagg-job3", tmp_path / "outputs" / "3")
    (tmp_path / "workspace").mkdir()
    logs = tmp_path / "outputs" / "3" / "logs"
    request = CollectRequest(
        logs, tmp_path / "workspace", make_expected(128, 128, concurrencies=(4, 16)), "3", started=0.0
    )
    collected = collect(request)
    collected.raise_if_bad()
    assert collected.published.keys() == {
        f"RF_sa-bench_isl_128_osl_128_conc{at}_gpus_12_ctx_4_gen_8.json" for at in (4, 16)
    }


# What is missing or not believable


def test_every_problem_is_listed_and_only_valid_results_are_published(job: Job) -> None:
    job.result(4)
    job.result(16, completed=0)
    collected = collect(job.asks(concurrencies=(4, 16, 64, 256)))
    with pytest.raises(ResultError) as raised:
        collected.raise_if_bad()
    assert raised.value.exit_code == 7
    assert "3 of the results" in str(raised.value)
    for said in (
        "concurrency 16: ",
        "no request was completed",
        "concurrency 64: no result",
        "concurrency 256: no result",
    ):
        assert said in str(raised.value)
    assert [(problem.concurrency, problem.kind) for problem in collected.problems] == [
        (16, "invalid"),
        (64, "missing"),
        (256, "missing"),
    ]
    assert job.published == {f"RF_{FOLDER}_conc4_gpus_12_ctx_4_gen_8.json"}


def test_without_any_logs_everything_is_missing(job: Job) -> None:
    shutil.rmtree(job.logs.parent)
    collected = collect(job.request)
    assert [problem.concurrency for problem in collected.problems] == [4, 16]
    assert list(job.workspace.iterdir()) == []


def test_a_result_of_an_earlier_run_in_the_same_folder_is_refused(job: Job) -> None:
    job.result(4)
    age(job.result(16), 3600)
    collected = collect(job.request)
    (problem,) = collected.problems
    assert str(problem).startswith(
        f"concurrency 16: {FOLDER}/results_concurrency_16_gpus_12_ctx_4_gen_8.json is older than this run: 35"
    )
    assert len(job.published) == 1


def test_an_earlier_result_beside_ours_is_a_doubt(job: Job) -> None:
    job.result(4)
    job.result(16)
    age(job.result(16, gpus="8"), 3600)
    collected = collect(job.request)
    collected.raise_if_bad()
    assert any("older than this run" in doubt for doubt in collected.doubts)
    assert len(job.published) == 2


def test_a_concurrency_measured_twice_is_a_problem(job: Job) -> None:
    job.result(4)
    job.result(4, gpus="12")
    job.result(16)
    collected = collect(job.request)
    assert [problem.concurrency for problem in collected.problems] == [4]
    assert "measured twice" in str(collected.problems[0])
    assert [point.concurrency for point in collected.points] == [16]
    assert job.published == {f"RF_{FOLDER}_conc16_gpus_12_ctx_4_gen_8.json"}


def test_a_result_that_nobody_asked_for_is_kept_and_said(job: Job) -> None:
    for concurrency in (4, 16, 64):
        job.result(concurrency)
    job.result(99, completed=0)
    collected = collect(job.request)
    collected.raise_if_bad()
    assert [point.concurrency for point in collected.points] == [4, 16, 64]
    assert "concurrency 64 was not asked for" in collected.doubts
    assert sum("_99_" in doubt and "no request was completed" in doubt for doubt in collected.doubts) == 1


def test_other_folders_are_not_looked_into(job: Job) -> None:
    job.result(4, folder="power/windows")
    job.result(16, folder="sa-bench_custom_x")
    assert len(collect(job.request).problems) == 2


def test_a_folder_that_leads_to_another_job_is_not_followed(job: Job, tmp_path: Path) -> None:
    other = Job(tmp_path / "other")
    other.result(4)
    other.result(16)
    (job.logs / FOLDER).symlink_to(other.logs / FOLDER)
    assert len(collect(job.request).problems) == 2
    assert job.published == set()


@pytest.mark.parametrize("through", ["another id", "a link"])
def test_the_logs_of_another_job_are_refused(job: Job, tmp_path: Path, through: str) -> None:
    job.result(4)
    if through == "a link":
        (tmp_path / "outputs" / "4").symlink_to(job.logs.parent)
        request = replace(job.request, job_id="4", logs_dir=tmp_path / "outputs" / "4" / "logs")
    else:
        request = replace(job.request, job_id="33")
    with pytest.raises(ResultError, match="not the logs of job"):
        collect(request)
    assert list(job.workspace.iterdir()) == []


def test_the_outputs_may_lie_behind_a_link(job: Job, tmp_path: Path) -> None:
    job.result(4)
    job.result(16)
    (tmp_path / "lustre").symlink_to(tmp_path / "outputs")
    collect(replace(job.request, logs_dir=tmp_path / "lustre" / "3" / "logs")).raise_if_bad()


def test_a_workspace_that_is_not_there(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no such directory"):
        collect(replace(job.request, workspace=tmp_path / "nowhere"))


def test_a_result_that_nfs_shows_late_is_waited_for(job: Job) -> None:
    job.result(4)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            write(job.logs / FOLDER / "results_concurrency_16_gpus_8.json", json.dumps(fixed(16))[:50])
        if len(waits) == 2:
            job.result(16, gpus="8")

    collect(replace(job.request, patience=30), sleep=sleep).raise_if_bad()
    assert len(waits) == 2


def test_patience_ends(job: Job) -> None:
    waits: list[float] = []
    collected = collect(replace(job.request, patience=30), sleep=waits.append)
    assert len(collected.problems) == 2
    assert sum(waits) == 30


# What is in the way


def test_collecting_again_changes_nothing(job: Job) -> None:
    job.result(4)
    job.result(16)
    first = collect(job.request)
    before = {path.name: path.stat().st_mtime_ns for path in job.workspace.glob("RF_*")}
    again = collect(replace(job.request, published=first.published))
    assert again.published == first.published
    assert {path.name: path.stat().st_mtime_ns for path in job.workspace.glob("RF_*")} == before
    assert not (job.workspace / LOGS / "logs").exists()
    assert not (job.workspace / LOGS / LOGS).exists()


def test_a_file_of_another_run_is_never_replaced(job: Job) -> None:
    job.result(4)
    job.result(16)
    theirs = write(job.workspace / f"RF_{FOLDER}_conc16_gpus_12_ctx_4_gen_8.json", "theirs")
    with pytest.raises(ResultError, match="another run is in the way") as raised:
        collect(job.request)
    assert raised.value.where == str(theirs)
    assert [path.name for path in job.workspace.iterdir()] == [theirs.name]
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("kind", ["directory", "link to nothing"])
def test_what_is_no_file_is_in_the_way_too(job: Job, kind: str) -> None:
    job.result(4)
    job.result(16)
    target = job.workspace / f"RF_{FOLDER}_conc4_gpus_12_ctx_4_gen_8.json"
    target.mkdir() if kind == "directory" else target.symlink_to("gone")
    with pytest.raises(ResultError, match="in the way"):
        collect(job.request)
    assert len(list(job.workspace.iterdir())) == 1


def test_a_file_in_the_way_that_cannot_be_read(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.result(4)
    job.result(16)
    theirs = write(job.workspace / f"RF_{FOLDER}_conc16_gpus_12_ctx_4_gen_8.json", "theirs")
    real = os.open

    def forbidden(path: Any, *args: Any, **options: Any) -> Any:
        if path == theirs:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(ResultError, match="cannot be read: Permission denied"):
        collect(job.request)


def test_our_own_earlier_file_is_replaced(job: Job) -> None:
    job.result(4)
    job.result(16)
    first = collect(job.request)
    job.result(16, completed=39)
    again = collect(replace(job.request, published=first.published))
    name = f"RF_{FOLDER}_conc16_gpus_12_ctx_4_gen_8.json"
    assert json.loads((job.workspace / name).read_text())["completed"] == 39
    assert again.published[name] != first.published[name]


def test_two_results_of_one_name_are_an_error_before_anything_is_written(job: Job) -> None:
    job.result(4)
    job.result(16)
    write(job.logs / FOLDER / "retry" / "results_concurrency_4_gpus_12_ctx_4_gen_8.json", fixed(4, completed=39))
    with pytest.raises(ResultError, match="two results would both be"):
        collect(job.request)
    assert list(job.workspace.iterdir()) == []


def test_the_same_result_twice_is_one(job: Job) -> None:
    path = job.result(4)
    job.result(16)
    write(path.parent / "copy" / path.name, path.read_text())
    collect(job.request).raise_if_bad()


def test_a_name_longer_than_a_file_name_may_be(job: Job) -> None:
    job.result(4)
    job.result(16)
    length = 255 - len(f"_{FOLDER}_conc16_gpus_12_ctx_4_gen_8.json")
    collected = collect(job.asks(filename="ü" * (length // 2)))
    assert any("agg_" in doubt and "process_result.py" in doubt for doubt in collected.doubts)
    shutil.rmtree(job.workspace)
    job.workspace.mkdir()
    with pytest.raises(ResultError, match="256 bytes long"):
        collect(job.asks(filename="x" * (length + 1)))
    assert list(job.workspace.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "../RF"])
def test_a_result_filename_that_leaves_the_workspace(job: Job, name: str) -> None:
    with pytest.raises(ResultError, match="cannot begin a file name"):
        collect(job.asks(filename=name))


def test_a_result_that_changes_while_it_is_collected(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.result(4)
    job.result(16)
    real = shutil.copyfile

    def growing(source: Path, target: Path) -> None:
        with source.open("a") as file:
            file.write(" ")
        real(source, target)

    monkeypatch.setattr(shutil, "copyfile", growing)
    with pytest.raises(ResultError, match="changed while"):
        collect(job.request)
    assert list(job.workspace.iterdir()) == []


def test_a_full_disk_publishes_nothing_half(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.result(4)
    job.result(16)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ResultError, match="No space left"):
        collect(job.request)
    assert list(job.workspace.iterdir()) == []


# Logs and stamps


def kept(job: Job) -> list[str]:
    """Keep the logs; what went wrong with them."""
    request = job.request
    _, doubts = keep_logs(request.logs_dir, request.workspace, request.job_id, request.started)
    return doubts


def test_the_logs_of_an_earlier_launcher_are_replaced_and_not_mixed(job: Job) -> None:
    job.result(4)
    job.result(16)
    (job.logs / "early.out").write_text("x")
    kept(job)
    assert (job.workspace / LOGS / "early.out").exists()
    (job.logs / "early.out").unlink()
    kept(job)
    assert not (job.workspace / LOGS / "early.out").exists()
    assert (job.workspace / LOGS / "sweep_3.log").exists()
    assert sorted(path.name for path in job.workspace.iterdir() if not path.name.startswith("RF")) == [LOGS, TARBALL]


def test_a_logs_directory_that_no_launcher_made_is_left_alone(job: Job) -> None:
    job.result(4)
    job.result(16)
    write(job.workspace / LOGS / "precious.txt", "theirs")
    assert any("was not replaced" in doubt for doubt in kept(job))
    assert [path.name for path in (job.workspace / LOGS).iterdir()] == ["precious.txt"]


def test_power_stamps_of_this_run_travel_with_the_logs(job: Job) -> None:
    job.result(4)
    job.result(16)
    write(job.workspace / "exporter-image.sha256", "aa")
    age(write(job.workspace / "power-producer-sha.txt", "an earlier run's"), 3600)
    assert kept(job) == []
    assert (job.workspace / LOGS / "power" / "exporter-image.sha256").read_text() == "aa"
    assert not (job.workspace / LOGS / "power" / "power-producer-sha.txt").exists()
    with tarfile.open(job.workspace / TARBALL) as tar:
        assert "power/exporter-image.sha256" in tar.getnames()
    assert not (job.logs / "power").exists()


# Agentic


def test_agentic_results_are_taken_where_the_job_left_them(job: Job, tmp_path: Path) -> None:
    source = tmp_path / "shared-workspace"
    for concurrency in (4, 16):
        write(source / f"RF_conc{concurrency}.json", agentic(concurrency))
    write(source / "OTHER_conc4.json", agentic(4))
    collected = collect(replace(job.asks(mode="agentic"), agentic_source=source))
    collected.raise_if_bad()
    assert job.published == {"RF_conc4.json", "RF_conc16.json"}


def test_agentic_results_in_the_workspace_itself(job: Job) -> None:
    for concurrency in (4, 16):
        write(job.workspace / f"RF_conc{concurrency}.json", agentic(concurrency))
    collected = collect(job.asks(mode="agentic"))
    collected.raise_if_bad()
    assert collected.published.keys() == {"RF_conc4.json", "RF_conc16.json"} == job.published


def test_agentic_results_of_an_earlier_run_are_refused(job: Job) -> None:
    write(job.workspace / "RF_conc4.json", agentic(4))
    age(write(job.workspace / "RF_conc16.json", agentic(16)), 3600)
    age(write(job.workspace / "RF_conc64.json", agentic(64)), 3600)
    collected = collect(job.asks(mode="agentic"))
    assert [point.concurrency for point in collected.points] == [4]
    old, extra = collected.problems
    assert (old.concurrency, "older than this run" in old.text) == (16, True)
    assert "RF_conc64.json" in extra.text and "count it" in extra.text


def test_an_agentic_result_without_a_successful_request(job: Job) -> None:
    write(job.workspace / "RF_conc4.json", agentic(4, num_requests_successful=0))
    collected = collect(job.asks(mode="agentic"))
    assert [(problem.concurrency, problem.kind) for problem in collected.problems] == [(4, "invalid"), (16, "missing")]


def test_a_result_filename_is_no_pattern(job: Job) -> None:
    name = "RF[x]*"
    for concurrency in (4, 16):
        write(job.workspace / f"{name}_conc{concurrency}.json", agentic(concurrency))
    write(job.workspace / "RFx_conc64.json", agentic(64))
    write(job.workspace / f"{name}_conc128.json", agentic(128))
    collected = collect(job.asks(mode="agentic", filename=name))
    assert [problem.text.split(" is in ")[0] for problem in collected.problems] == [f"{name}_conc128.json"]


# Eval


def eval_files(job: Job) -> None:
    write(job.logs / "eval_results" / "meta_env.json", {"conc": 16})
    write(job.logs / "eval_results" / "results_2026.json", evaluation())
    write(job.logs / "eval_results" / "samples_gsm8k.jsonl", "{}\n{}\n")
    write(job.logs / "eval_results" / "deep" / "results_other.json", {})


@pytest.mark.parametrize("mode", ["eval", "fixed"])
def test_eval_files_come_into_the_root_of_the_workspace(job: Job, mode: Any) -> None:
    eval_files(job)
    job.result(4)
    job.result(16)
    collected = collect(job.asks(mode=mode, run_eval=True))
    collected.raise_if_bad()
    evals = {name for name in job.published if not name.startswith("RF")}
    assert evals == {"meta_env.json", "results_2026.json", "samples_gsm8k.jsonl"}
    (score,) = collected.evaluations
    assert (score.concurrency, score.task, score.state, score.reason) == (16, "gsm8k", "ok", None)
    assert (score.score, score.em_flexible, score.n_eff, score.threshold) == (0.95, 0.956, 1319, 0.9)
    assert bool(collected.points) == (mode == "fixed")


def test_eval_files_are_left_where_no_eval_was_asked_for(job: Job) -> None:
    eval_files(job)
    job.result(4)
    job.result(16)
    assert not {"meta_env.json", "results_2026.json"} & collect(job.request).published.keys()


def test_an_eval_without_results_fails_an_eval_and_not_a_benchmark(job: Job) -> None:
    write(job.logs / "eval_results" / "meta_env.json", {})
    assert ["no results*.json" in str(problem) for problem in collect(job.asks(mode="eval")).problems] == [True]
    job.result(4)
    job.result(16)
    collected = collect(job.asks(run_eval=True))
    collected.raise_if_bad()
    assert any("no results*.json" in doubt for doubt in collected.doubts)
    (score,) = collected.evaluations
    assert score.state == "missing" and "no results*.json" in str(score.reason)


def test_where_a_part_of_an_evaluation_is_wrong_none_of_it_is_a_result(job: Job) -> None:
    meta = {"conc": 4, "eval_concs": [4, 16, 64], "completed_eval_concs": [4, 16]}
    write(job.logs / "eval_results" / "meta_env.json", meta)
    write(job.logs / "eval_results" / "results_a_conc4.json", evaluation())
    bad = evaluation()
    bad["results"]["gsm8k"]["exact_match,strict-match"] = 1.5
    write(job.logs / "eval_results" / "results_a_conc16.json", bad)
    held = job.asks(evaluated=(4, 16, 64), mode="eval")
    found = {one.concurrency: one for one in collect(held).evaluations}
    assert {at: (one.state, one.task) for at, one in found.items()} == {
        4: ("invalid", "gsm8k"), 16: ("invalid", "gsm8k"), 64: ("missing", ""),
    }  # fmt: skip
    assert "a share is from 0 to 1" in str(found[16].reason) and found[16].score == 1.5
    assert "a share is from 0 to 1" in str(found[4].reason), "why nothing of it is published"


def test_an_eval_result_that_is_cut_is_not_published(job: Job) -> None:
    write(job.logs / "eval_results" / "results_2026.json", '{"results": ')
    collected = collect(job.asks(mode="eval"))
    assert str(collected.problems[0]).startswith("eval: results_2026.json is not a JSON object: ")
    assert job.published == set()


def test_an_eval_file_of_an_earlier_job_of_that_id_is_not_taken(job: Job) -> None:
    age(write(job.logs / "eval_results" / "results_2026.json", {}), 3600)
    assert collect(job.asks(mode="eval")).problems
    assert job.published == set()
