"""Which script of the workspace runs a benchmark, what it asks for, and when there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.container.script import LARGEST
from launcher.core.errors import ConfigError
from tests.container.planner import FIXED, RowPlanner, an_agentic_row

B = "{model}_{precision}_h100"
F1 = f'names: ["{B}_{{framework}}{{spec}}.sh", "{B}{{suffix}}{{spec}}.sh"], suffixes: {{trt: _trt}}'
F2 = F1.replace("trt: _trt", "atom: _atom")
F3 = f'names: ["{B}_{{framework}}{{spec}}.sh", "{B}{{spec}}.sh"]'
T = f'names: ["{B}{{suffix}}{{spec}}.sh"], suffixes: {{trt: _trt}}'
PLAIN = f'names: ["{B}{{spec}}.sh"]'


@pytest.fixture
def planner(tmp_path: Path) -> RowPlanner:
    made = RowPlanner(tmp_path)
    (tmp_path / FIXED / "dsr1_fp8_h100.sh").unlink()
    return made


RULES = [
    # rule, framework, speculation, names in the order in which they are tried
    (F1, "trt", "none", ["dsr1_fp8_h100_trt.sh"]),
    (F1, "trt", "mtp", ["dsr1_fp8_h100_trt_mtp.sh"]),
    (F1, "vllm", "mtp", ["dsr1_fp8_h100_vllm_mtp.sh", "dsr1_fp8_h100_mtp.sh"]),
    (F1, "atom", "none", ["dsr1_fp8_h100_atom.sh", "dsr1_fp8_h100.sh"]),
    (F2, "atom", "mtp", ["dsr1_fp8_h100_atom_mtp.sh"]),
    (F2, "trt", "none", ["dsr1_fp8_h100_trt.sh", "dsr1_fp8_h100.sh"]),
    (F3, "sglang", "none", ["dsr1_fp8_h100_sglang.sh", "dsr1_fp8_h100.sh"]),
    (F3, "trt", "mtp", ["dsr1_fp8_h100_trt_mtp.sh", "dsr1_fp8_h100_mtp.sh"]),
    (T, "trt", "mtp", ["dsr1_fp8_h100_trt_mtp.sh"]),
    (T, "sglang", "none", ["dsr1_fp8_h100.sh"]),
    (PLAIN, "trt", "none", ["dsr1_fp8_h100.sh"]),
    (PLAIN, "sglang", "mtp", ["dsr1_fp8_h100_mtp.sh"]),
    (PLAIN, "sglang", "draft_model", ["dsr1_fp8_h100.sh"]),
]
"""The five rules of the bash launchers (reference/single-node.md §2.5)."""


@pytest.mark.parametrize(("rule", "framework", "spec", "names"), RULES)
def test_the_first_of_the_names_that_is_there(
    planner: RowPlanner, rule: str, framework: str, spec: str, names: list[str]
) -> None:
    planner.edit(PLAIN, rule)
    row = {"framework": framework, "spec_decoding": spec}
    with pytest.raises(ConfigError) as caught:
        planner.plan(**row)
    assert caught.value.message.endswith(": there is no " + " and no ".join(f"{FIXED}/{name}" for name in names))
    for name in reversed(names):  # each one is preferred to those behind it
        planner.script(name)
        script = planner.job(**row).script
        assert (script.path, script.exists) == (f"{FIXED}/{name}", True)
        assert script.tried == tuple(f"{FIXED}/{each}" for each in names)


def test_an_agentic_row_has_a_directory_of_its_own(planner: RowPlanner) -> None:
    planner.script("dsr1_fp8_h100.sh", folder="benchmarks/single_node/agentic")
    assert planner.job_of(an_agentic_row()).script.path == "benchmarks/single_node/agentic/dsr1_fp8_h100.sh"
    with pytest.raises(ConfigError, match=f"there is no {FIXED}/dsr1_fp8_h100.sh"):
        planner.plan()


def test_the_model_is_the_experiment_up_to_its_first_underscore(planner: RowPlanner) -> None:
    planner.script("qwen3.5_fp8_h100.sh")
    assert planner.job(exp_name="qwen3.5_8k1k_x").script.path.endswith("/qwen3.5_fp8_h100.sh")


def test_a_missing_script_says_where_it_was_looked_for(planner: RowPlanner) -> None:
    with pytest.raises(ConfigError) as caught:
        planner.plan()
    assert (caught.value.where, caught.value.exit_code) == (str(planner.root), 2)
    assert "dsr1 fp8 sglang 1024/1024 TP4" in caught.value.message
    assert caught.value.hint is not None and "--workspace" in caught.value.hint


OVERRIDE = f"{PLAIN}, variable: BENCH_SCRIPT_OVERRIDE"


def test_the_host_may_name_another_script(planner: RowPlanner) -> None:
    planner.edit(PLAIN, OVERRIDE).script("own.sh", "check_env_vars MODEL\n", folder="elsewhere")
    planner.host = {"BENCH_SCRIPT_OVERRIDE": "elsewhere/own.sh"}
    script = planner.job().script
    assert (script.path, script.tried, script.asks) == ("elsewhere/own.sh", ("elsewhere/own.sh",), ("MODEL",))
    planner.host = {"BENCH_SCRIPT_OVERRIDE": ""}  # as a workflow sets a variable that it has no value for
    planner.script("dsr1_fp8_h100.sh")
    assert planner.job().script.path == f"{FIXED}/dsr1_fp8_h100.sh"


@pytest.mark.parametrize("text", ["/etc/passwd", "../x.sh", "a/../../x.sh", "a/..", "//x.sh"])
def test_a_script_outside_the_workspace_is_refused(planner: RowPlanner, text: str) -> None:
    planner.edit(PLAIN, OVERRIDE).host = {"BENCH_SCRIPT_OVERRIDE": text}
    with pytest.raises(ConfigError, match="is not a path below the workspace") as caught:
        planner.plan()
    assert (caught.value.where, caught.value.exit_code) == ("BENCH_SCRIPT_OVERRIDE", 2)


@pytest.mark.parametrize("text", [".", "missing.sh", "nul\0.sh", "x" * 300, "line\nend.sh", "a/" * 3000 + "x.sh"])
def test_a_named_script_that_is_no_file_is_refused(planner: RowPlanner, text: str) -> None:
    planner.edit(PLAIN, OVERRIDE).host = {"BENCH_SCRIPT_OVERRIDE": text}
    with pytest.raises(ConfigError, match="there is no"):
        planner.plan()


def test_a_directory_of_the_scripts_name_is_no_script(planner: RowPlanner) -> None:
    planner.edit(PLAIN, F3)
    (planner.root / FIXED / "dsr1_fp8_h100_sglang.sh").mkdir()
    with pytest.raises(ConfigError, match="there is no"):
        planner.plan()
    planner.script("dsr1_fp8_h100.sh")
    assert planner.job().script.path == f"{FIXED}/dsr1_fp8_h100.sh"


def test_neither_a_pipe_nor_a_dangling_link_is_a_script(planner: RowPlanner) -> None:
    path = planner.root / FIXED / "dsr1_fp8_h100.sh"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="there is no"):  # and nothing waits for a writer
        planner.plan()
    path.unlink()
    path.symlink_to("nowhere.sh")
    with pytest.raises(ConfigError, match="there is no"):
        planner.plan()


def test_a_script_that_cannot_be_read_is_refused(planner: RowPlanner) -> None:
    path = planner.root / FIXED / "dsr1_fp8_h100.sh"
    path.symlink_to("/proc/self/mem")  # at offset 0 an error of input and output, also for root
    with pytest.raises(ConfigError, match="the script cannot be read: Input/output error") as caught:
        planner.plan()
    assert caught.value.where == str(path)


def test_of_a_huge_file_only_the_beginning_is_read(planner: RowPlanner) -> None:
    path = planner.script(
        "dsr1_fp8_h100.sh", b"check_env_vars MODEL\n" + b"#" * LARGEST + b"\ncheck_env_vars NOTHING\n"
    )
    os.truncate(path, 100 * 1024 * 1024)
    assert planner.job().script.asks == ("MODEL",)


@pytest.mark.parametrize("start", [b"", b"check_env_vars MODEL\n"])
def test_a_file_that_is_no_text_asks_for_what_can_be_read(planner: RowPlanner, start: bytes) -> None:
    planner.script("dsr1_fp8_h100.sh", start + bytes(range(256)) * 64)
    assert planner.job().script.asks == (("MODEL",) if start else ())


ASKS = [
    ("check_env_vars MODEL TP CONC", ("MODEL", "TP", "CONC")),
    ("check_env_vars \\\n    MODEL \\\n    TP \\\n    CONC\necho NEXT", ("MODEL", "TP", "CONC")),
    ("check_env_vars \\\r\n\tMODEL \\\r\n\tTP\r\n", ("MODEL", "TP")),
    ("  check_env_vars MODEL  # and TP", ("MODEL",)),
    ("check_env_vars MODEL && echo TP", ("MODEL",)),
    ("check_env_vars MODEL; check_env_vars TP", ("MODEL",)),
    ("check_env_vars MODEL TP\ncheck_env_vars TP CONC", ("MODEL", "TP", "CONC")),
    ("# check_env_vars MODEL", ()),
    ("echo check_env_vars MODEL", ()),
    ("check_env_vars() {\n  TP\n}", ()),
    ("check_env_vars_of_mine MODEL", ()),
    ("check_env_vars", ()),
    ("check_env_vars \\", ()),
]


@pytest.mark.parametrize(("text", "asks"), ASKS)
def test_what_a_script_asks_for(planner: RowPlanner, text: str, asks: tuple[str, ...]) -> None:
    planner.script("dsr1_fp8_h100.sh", f"#!/usr/bin/env bash\n{text}\n")
    assert planner.job().script.asks == asks


def test_a_name_that_nothing_passes_is_refused(planner: RowPlanner) -> None:
    path = f"{FIXED}/dsr1_fp8_h100.sh"
    planner.script("dsr1_fp8_h100.sh", "check_env_vars MODEL \\\n  TUNING \\\n  TP\n")
    with pytest.raises(ConfigError) as caught:
        planner.plan()
    assert caught.value.message == "the script asks for TUNING, and nothing passes it"
    assert (caught.value.where, caught.value.exit_code) == (path, 2)
    assert caught.value.hint is not None and "pass-environment" in caught.value.hint
    planner.script("dsr1_fp8_h100.sh", "check_env_vars HF_TOKEN TUNING\n")
    with pytest.raises(ConfigError, match="asks for HF_TOKEN, TUNING, and nothing passes them"):
        planner.plan()


def test_what_is_set_for_the_container_and_what_it_is_passed_are_there(planner: RowPlanner) -> None:
    """By the workflow, by the lane, by an adjustment, by the host, as a secret: a name with an empty value is not."""
    asked = ("MODEL", "RESULT_FILENAME", "GPU_COUNT", "PORT", "FROM_RULE", "FROM_HOST", "HF_TOKEN")
    planner.script("dsr1_fp8_h100.sh", f"check_env_vars {' '.join(asked)}\n")
    planner.runner += 'adjust:\n  - exports: {FROM_RULE: "1"}\npass-environment: [FROM_HOST]\n'
    planner.host = {"FROM_HOST": "x", "HF_TOKEN": "hf_x"}
    script = planner.job().script
    assert (script.asks, script.lacks) == (asked, ())
    planner.host = {"FROM_HOST": "", "HF_TOKEN": "hf_x"}
    with pytest.raises(ConfigError, match="asks for FROM_HOST, and nothing passes it"):
        planner.plan()


@pytest.mark.parametrize("text", ["--result-dir /workspace/", "--result-dir=/workspace"])
def test_a_script_that_names_the_workspace_is_known(planner: RowPlanner, text: str) -> None:
    planner.script("dsr1_fp8_h100.sh", f"run_benchmark_serving \\\n  {text}\n")
    assert planner.job().script.names_workspace
    planner.script("dsr1_fp8_h100.sh", "run_benchmark_serving --result-dir $PWD/\n")
    assert not planner.job().script.names_workspace


@pytest.mark.parametrize(("field", "value"), [("exp_name", "a/b_1k1k"), ("precision", "../fp8"), ("framework", "x/y")])
def test_a_row_cannot_lead_out_of_the_scripts_directory(planner: RowPlanner, field: str, value: str) -> None:
    planner.edit(PLAIN, F3)
    with pytest.raises(ConfigError, match="cannot be"):
        planner.plan(**{field: value}, result_filename="R")


def test_a_script_is_read_once_for_all_rows(planner: RowPlanner) -> None:
    path = planner.script("dsr1_fp8_h100.sh", "check_env_vars MODEL\n")
    for concurrency in (1, 2, 4):
        assert planner.job(concurrencies=(concurrency,)).script.asks == ("MODEL",)
        path.write_text("check_env_vars OTHER\n")  # which a second reading would refuse
