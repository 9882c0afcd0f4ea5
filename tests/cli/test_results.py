"""`launcher results`: the table again, and aggregates of a run, of a job's workspace, of downloaded artifacts."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from launcher.benchmark.benchmark import AGENTIC, Role
from launcher.benchmark.environment import environment_of
from launcher.cli import main
from launcher.result.aggregates import aggregate_run
from tests.report.made import write_runs
from tests.report.test_points import benchmark
from tests.result.test_aggregate_cases import ENVIRONMENT, RAW, evaluation


def test_the_table_is_shown_again_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_runs(tmp_path, 2)
    assert main(["results", first, second, "--state", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert len([line for line in table.splitlines() if line.rstrip().endswith("ok")]) == 8
    assert main(["status", first, "--state", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    head = shown.splitlines().index(next(line for line in table.splitlines() if line.startswith("runner")))
    assert len([line for line in shown.splitlines()[head:] if line.rstrip().endswith("ok")]) == 4
    assert main(["results", first, "--json", "--state", str(tmp_path)]) == 0
    assert [one["run_id"] for one in json.loads(capsys.readouterr().out)] == [
        json.loads((tmp_path / "runs" / first / "summary.json").read_text())["run_id"]
    ]
    assert main(["results", first, second, "--csv", "--state", str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 8 and all(float(row["tput_per_gpu"]) > 0 for row in rows)


def test_one_damaged_summary_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = write_runs(tmp_path, 3)
    (tmp_path / "runs" / third / "summary.json").unlink()
    asked = ["results", first, second, third, "--state", str(tmp_path)]
    assert main(asked) == 0
    capsys.readouterr()
    for damaged in ("{", "[" * 100_000, "[]", '{"points": 3}', '{"points": [{}], "rehearsal": false, "benchmark": {}}'):
        (tmp_path / "runs" / first / "summary.json").write_text(damaged)
        assert main(asked) == 7
        printed = capsys.readouterr()
        assert len([line for line in printed.out.splitlines() if line.rstrip().endswith("  ok")]) == 4
        assert f"{first}: its summary" in printed.err


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_record_that_cannot_be_read_is_told_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    first, _ = write_runs(tmp_path / "state", 2)
    (tmp_path / "state/runs" / first / "run.json").write_text("{")
    assert main(["results", str(tmp_path / "state"), *form, "--state", str(tmp_path)]) == 7
    printed = capsys.readouterr()
    assert f"run {first}: " in printed.err and printed.out


def test_what_there_is_no_result_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["nothing"], ["aggregate"], ["aggregate", "nothing"]):
        assert main(["results", *words, "--state", str(tmp_path)]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["results", "aggregate", str(tmp_path / "empty"), "-o", str(tmp_path)]) == 7
    assert not list(tmp_path.glob("agg_*"))


def test_a_jobs_workspace_is_aggregated_by_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.json").write_text(json.dumps(RAW))
    for name, value in {**ENVIRONMENT, "RESULT_FILENAME": "r", "GITHUB_WORKSPACE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert main(["results", "aggregate", "--from-env"]) == 0
    assert json.loads((tmp_path / "agg_r.json").read_text())["tput_per_gpu"] == 100.0
    monkeypatch.setenv("DISAGG", "true")
    assert main(["results", "aggregate", "--from-env"]) == 2


def test_an_agentic_job_of_one_node_has_its_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = tmp_path / "results" / "aiperf_artifacts"
    exported.mkdir(parents=True)
    record = {
        "metadata": {"request_start_ns": 10**12, "request_end_ns": 10**12 + 10**9, "benchmark_phase": "profiling"},
        "metrics": {"input_sequence_length": {"value": 100}, "output_sequence_length": {"value": 10}},
    }
    (exported / "profile_export.jsonl").write_text(json.dumps(record) + "\n")
    window = {"start_time": "2026-06-01T12:00:00+00:00", "end_time": "2026-06-01T12:00:20+00:00"}
    (exported / "profile_export_aiperf.json").write_text(json.dumps(window))
    lines = [f"{1780315198 + second}, {gpu}, 450.00 W" for second in range(25) for gpu in (0, 1)]
    (tmp_path / "results" / "gpu_metrics.csv").write_text(
        "\n".join(["timestamp, index, power.draw [W]", *lines]) + "\n"
    )
    job = {"SCENARIO_TYPE": AGENTIC, "KV_OFFLOADING": "none", "TP": "2", "REQUIRE_POWER": "1", "IS_MULTINODE": "false"}
    for name, value in {**job, "RESULT_FILENAME": "r", "GITHUB_WORKSPACE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert main(["results", "aggregate", "--from-env"]) == 0
    row = json.loads((tmp_path / "r.json").read_text())
    assert (row["power_valid"], row["avg_total_gpu_power_w"], row["joules_per_output_token"]) == (1, 900.0, 1800.0)
    monkeypatch.setenv("TP", "4")  # samples of two GPUs
    assert main(["results", "aggregate", "--from-env"]) == 7
    assert json.loads((tmp_path / "r.json").read_text())["power_valid"] == 0


def test_artifacts_are_collected_in_two_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    out.mkdir()
    evaluation(tree / "eval_a", 0.9, conc=4)
    for name in ("a", "b"):
        (tree / name).mkdir()
        (tree / name / "r.json").write_text(json.dumps(RAW))
        assert aggregate_run(tree / name, benchmark(), ["r.json"]) == []
    (tree / "broken.json").write_text("{")
    assert main(["results", "aggregate", str(tree), "-o", str(out)]) == 0
    lists = {path.name: json.loads(path.read_text()) for path in out.iterdir()}
    assert {name: len(rows) for name, rows in lists.items()} == {"agg_bmk.json": 2, "agg_eval_all.json": 1}
    assert "broken.json" in capsys.readouterr().err


def test_a_run_is_aggregated_as_the_workflow_would(tmp_path: Path) -> None:
    """By the variables that the workflow exports for the same benchmark."""
    two = benchmark(multinode=True, disagg=True, prefill=Role(1, 4, 4, True), decode=Role(1, 8, 8))
    for name, one, printed in (
        ("r", benchmark(), {}),
        ("r_conc64_gpus_12_ctx_4_gen_8", two, {"PREFILL_GPUS": "4", "DECODE_GPUS": "8"}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(RAW))
        assert aggregate_run(tmp_path, one, [f"{name}.json", "server.log"]) == []
        row = json.loads((tmp_path / f"agg_{name}.json").read_text())
        environ = environment_of(one) | printed
        for key, variable in (("hw", "RUNNER_TYPE"), ("image", "IMAGE"), ("precision", "PRECISION")):
            assert row[key] == environ[variable]
        assert row["tput_per_gpu"] == 800 / (12 if printed else 8)
    alone = benchmark(multinode=True, prefill=Role(2, 4), decode=None)
    (tmp_path / "s_gpus_8.json").write_text(json.dumps({**RAW, "median_tpot_ms": 0, "rehearsal": True}))
    assert "gives no aggregate" in aggregate_run(tmp_path, alone, ["s_gpus_8.json"])[0]
    (tmp_path / "s_gpus_8.json").write_text(json.dumps({**RAW, "rehearsal": True}))
    assert aggregate_run(tmp_path, alone, ["s_gpus_8.json"]) == []
    assert json.loads((tmp_path / "agg_s_gpus_8.json").read_text())["rehearsal"] is True
    assert aggregate_run(tmp_path, benchmark(scenario=AGENTIC), ["r.json"]) == []
