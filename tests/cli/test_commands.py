"""The command line: what it costs, what it says, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main

HEAVY = ("asyncio", "msgspec", "paramiko", "rich", "submitit", "tenacity", "yaml")


ONLY_FOR_RUNS = (
    *("launcher.run", "launcher.slurm", "launcher.result", "launcher.model", "launcher.image.store"),
    *("launcher.container.job_script", "launcher.srtctl.mirror", "launcher.core.lease", "launcher.check.report"),
    *("asyncio", "paramiko", "rich", "submitit", "tenacity"),
)
"""What a plan as JSON does without: each of them is a part of the 0.2 s of CPU that it may cost."""

PLAN = ["plan", "-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--seq", "1k1k", "--conc", "4", "--json"]


@pytest.mark.parametrize(("argv", "heavy"), [(["--help"], HEAVY), (PLAN, ONLY_FOR_RUNS)])
def test_a_command_imports_nothing_that_it_does_not_need(argv: list[str], heavy: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from launcher.cli import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        f"sys.exit([m for m in {heavy!r} if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_costs_a_twentieth_of_a_second() -> None:
    """Counted in modules, since no load of the machine changes their number: 92 were 0.05 s of CPU on an idle one."""
    code = "import sys, launcher.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: sys.exit(len(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode < 110


def test_a_plan_as_json_has_the_contracts_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = "minimaxm3-fp8-gb200-dynamo-vllm"
    assert main(["plan", "-k", key, "--seq", "1k1k", "--json", "--state", str(tmp_path)]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert len(plans) > 1
    assert {"runner", "job_name", "run_key", "images", "models", "srt_slurm", "srtslurm", "recipe", "submit",
            "results", "findings"} <= set(plans[0])  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # a dry run writes nothing


def test_check_prints_a_line_a_finding_and_exits_with_1_on_errors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["check", "-k", "minimaxm3*"]) == 0
    assert main(["check", "-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--runner", "b200-dgxc"]) == 1
    out = capsys.readouterr().out
    assert "gpus-per-node error " in out


@pytest.mark.parametrize(
    ("argv", "printed"),
    [
        (["plan"], "no benchmark is selected"),
        (["plan", "-k", "minimaxm3-fp8-gb200-dynamo-vlm"], "near keys: minimaxm3-fp8-gb200-dynamo-vllm"),
        (["plan", "-k", "minimaxm3-fp8-*", "--runner", "gb200"], "did you mean 'gb200-nv'?"),
        (["plan", "-k", "minimaxm3-fp8-*", "--topology", "9P*"], "there are: "),
        (["plan", "-k", "minimaxm3-fp8-*", "--conc", "3"], "there are: "),
        (["plan", "-k", "x", "--matrix", "none.yaml"], "none.yaml"),
        (["plan", "-k", "x", "--workspace", "/no/such/directory"], "is not a directory"),
        (["run", "-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--runner", "local"], "a run measures one of them"),
        (["run", "-k", "minimaxm3-*", "--accept", "moving-red"], "did you mean 'moving-ref'?"),
        (["runner", "show", "local", "--for", "minimaxm3"], "PREFIX/PRECISION/FRAMEWORK"),
        (["runner", "show", "gb200-nv", "--for", "dsr9/fp4/x"], "supported:"),
        (["status", "nothing"], "there is no run nothing"),
        (["cancel"], "which run?"),
        (["plan", "--from-env"], "RUNNER_NAME"),
    ],
)
def test_bad_input_gets_a_clear_error(
    argv: list[str], printed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_STATE", str(tmp_path))
    for name in ("RUNNER_NAME", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert printed in captured.err and "Traceback" not in captured.err
    assert captured.out == ""


def test_a_recipe_alone_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "recipes/vllm/minimax-m3-gb200-fp8/1k1k.yaml:override_disagg-gb200-1p1d-dep4-tep8-3n"
    argv = ["plan", "--recipe", recipe, "--runner", "gb200-nv", "--model", "MiniMaxAI/MiniMax-M3-MXFP8"]
    assert main([*argv, "--model-prefix", "minimaxm3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["benchmark"]["concurrencies"] == [4, 16, 64, 128, 4096]
    assert {f["rule"] for f in plan["findings"]} == {"time-budget"}
    assert main(argv) == 2
    assert "--model-prefix KEY" in capsys.readouterr().err


def test_a_recipe_of_one_node_leads_somewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An aggregated recipe is planned as a matrix has such rows; a script, and a cluster of scripts, lead to rows."""
    recipe = tmp_path / "mine/agg.yaml"
    recipe.parent.mkdir()
    resources = {"gpu_type": "gb200", "gpus_per_node": 4, "agg_nodes": 1, "agg_workers": 1, "gpus_per_agg": 4}
    document = {
        "name": "mine",
        "model": {"path": "minimax-m3-mxfp8", "container": "vllm/vllm-openai:v0.11.0", "precision": "fp8"},
        "resources": resources,
        "backend": {"type": "vllm", "vllm_config": {"aggregated": {"tensor-parallel-size": 4}}},
        "benchmark": {"type": "sa-bench", "isl": 1024, "osl": 1024, "concurrencies": "4x8"},
    }
    recipe.write_text(json.dumps(document))
    who = ["--recipes", str(tmp_path), "--model", "MiniMaxAI/MiniMax-M3-MXFP8", "--model-prefix", "minimaxm3"]
    argv = ["plan", "--recipe", "recipes/mine/agg.yaml", *who, "--runner"]
    assert main([*argv, "gb200-nv", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["scheduler"]["nodes"] == 1 and plan["results"]["concurrencies"] == [4, 8]
    assert plan["benchmark"]["decode"]["workers"] == 0 and not plan["benchmark"]["disagg"]
    assert main([*argv, "h200-cw"]) == 2
    assert "rows of a matrix: -k KEY. Recipes run on" in capsys.readouterr().err
    assert main(["plan", "--recipe", "benchmarks/single_node/x.sh", *who, "--runner", "local"]) == 2
    assert "-k KEY" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"{sys.executable} -m launcher plan -k 'minimaxm3*' | head -1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_runners_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runner", "list"]) == 0
    assert "gb200-nv" in capsys.readouterr().out
    assert main(["runner", "show", "gb200-nv", "--for", "minimaxm3/fp8/dynamo-vllm"]) == 0
    assert "sa-submission-q2-2026" in capsys.readouterr().out


def test_the_rules_for_a_case_are_those_of_its_kind_of_job(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a cluster that runs one framework on one node and on several, both are shown."""

    def shown(*argv: str) -> str:
        assert main(["runner", "show", *argv]) == 0
        return capsys.readouterr().out

    one = shown("b200-nb", "--for", "qwen3.5/fp4/trt")
    assert "model      cache /mnt/data/gharunners/hf-hub-cache" in one and "time limit the partition's\n" in one
    assert "container  pyxis, {model}_{precision}_b200_{framework}{spec}.sh or " in one and "srt-slurm" not in one
    both = shown("h200-dgxc", "--for", "kimik3/fp4/vllm/agentic")
    several, _, one = both.partition("on one node:")
    assert several.startswith("on several nodes:\n") and "srt-slurm  https" in several and "edits" in several
    assert "container  pyxis" in one and "srt-slurm" not in one and "edits" not in one
    told = shown("gb200-nv", "--for", "dsv4/fp4/dynamo-sglang")
    assert (
        "2 lanes may serve it" in told and "[power=true]" in told.partition("where none")[0] and "nvidia@main" in told
    )
    assert "may serve it" not in one + both
    whole = shown("rtx6000pro-lat")
    assert "None" not in whole and "images " not in whole and "docker, {model}_" in whole
