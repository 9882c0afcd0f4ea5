"""Each rule about one plan: a recipe, row or runner file that it is for, and one that it must leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import AGENTIC, Role
from launcher.core.errors import ConfigError
from launcher.srtctl.recipe import dump
from tests.benchmarks import IMAGE, a_recipe
from tests.check.workspaces import Q2, RUNNER, V50, Change, a_plan, put

MODEL = "  - {when: {prefix: minimaxm3, precision: fp8}, path: /lustre/A, alias: minimax-m3-mxfp8, also: [mm3]}\n"


def decode(key: str, value: Any) -> Change:
    return put("backend", "vllm_config", "decode", key, value=value)


def lane(text: str) -> str:
    """The runner file with more in its lane, or another lane."""
    return RUNNER.replace(f"    ref: v1.0.50\n    sha: {V50}\n", text)


def aggregated(recipe: dict[str, Any]) -> None:
    recipe["resources"] = {"gpu_type": "gb200", "gpus_per_node": 4, "agg_nodes": 1, "agg_workers": 1}
    engine = recipe["backend"]["vllm_config"]
    recipe["backend"]["vllm_config"] = {"aggregated": engine["decode"]}


def replicas(recipe: dict[str, Any]) -> None:
    """One aggregated worker of two data-parallel replicas."""
    aggregated(recipe)
    recipe["resources"].update(agg_nodes=2, gpus_per_agg=8)
    recipe["backend"]["vllm_config"]["aggregated"].update({"tensor-parallel-size": 4, "data-parallel-size": 2})


def wide_experts(recipe: dict[str, Any]) -> None:
    """A decode worker of four GPUs whose flags leave open how a matrix would write it."""
    recipe["backend"]["vllm_config"]["decode"].update({"tensor-parallel-size": 2, "data-parallel-size": 2})


AGENTIC_ROW = {"scenario": AGENTIC, "isl": None, "osl": None, "max_model_len": None}


def budget(limit: str, attempts: int) -> Change:
    """A time limit, and as many attempts of ten seconds at the servers' health."""

    def change(recipe: dict[str, Any]) -> None:
        recipe["slurm"] = {"time_limit": limit}
        recipe["health_check"] = {"max_attempts": attempts, "interval_seconds": 10}

    return change


ALIASES = RUNNER.replace("[dynamo-vllm]", "[v0.5.11, sglang-v0.5.11-cu130]").replace(
    "helpers: {", 'helpers: {nginx-1.25.0: "nginx:1.27.4", nginx-1.27.4: "nginx:1.27.4", '
)
NVME = RUNNER.replace("path: /lustre/A", "path: /nvme/A")
ON_Q2 = f"    ref: sa-submission-q2-2026\n    sha: {Q2}\n"

# rule, severity, a text of the line that is named, what is changed
FIRES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("alias-unregistered", "error", "path:", {"change": put("model", "path", value="nvidia/MiniMax-M3-NVFP4")}),
    ("alias-by-accident", "warning", "path:", {"change": put("model", "path", value="mm3")}),
    ("model-from-hub", "warning", "path:", {"change": put("model", "path", value="hf:some/model")}),
    ("preflight-blind", "error", "repository:", {"runner": NVME}),
    ("sequence-length", "error", "isl:", {"change": put("benchmark", "isl", value=2048)}),
    ("max-model-len", "error", "backend:", {"change": decode("max-model-len", 2047)}),
    ("concurrency", "error", "concurrencies:", {"change": put("benchmark", "concurrencies", value="4")}),
    ("concurrency-extra", "warning", "concurrencies:", {"change": put("benchmark", "concurrencies", value="4x16x64")}),
    ("precision", "warning", "precision:", {"change": put("model", "precision", value="fp4")}),
    ("time-budget", "warning", "time_limit:", {"change": put("slurm", "time_limit", value="8:00:00")}),
    (
        "time-budget",
        "warning",
        "health_check:",
        {"change": put("health_check", value={"max_attempts": 2000, "interval_seconds": 10})},
    ),
    ("time-budget", "warning", "health_check:", {"change": budget("4:00:00", 1440)}),
    ("time-budget", "warning", "repository:", {"runner": RUNNER + "    time-limit: '8:00:00'\n"}),
    (
        "alias-version",
        "warning",
        "container:",
        {
            "change": put("model", "container", value="sglang-v0.5.11-cu130"),
            "runner": ALIASES,
            "image": "lmsysorg/sglang:v0.5.11.post1-cu130",
        },
    ),
    (
        "alias-version",
        "warning",
        "container:",
        {
            "change": put("model", "container", value="v0.5.11"),
            "runner": ALIASES,
            "image": "lmsysorg/sglang:nightly-dev-cu13-20260805-211ee642",
        },
    ),
    (
        "alias-version",
        "warning",
        "nginx_container:",
        {"change": put("frontend", "nginx_container", value="nginx-1.25.0"), "runner": ALIASES},
    ),
    ("image-mismatch", "error", "container:", {"change": put("model", "container", value="vllm/vllm-openai:other")}),
    ("container-unresolved", "error", "container:", {"change": put("model", "container", value="some-alias")}),
    (
        "container-unresolved",
        "error",
        "nginx_container:",
        {"change": put("frontend", "nginx_container", value="ngnix-sqsh")},
    ),
    (
        "container-unresolved",
        "error",
        "container_image:",
        {"change": put("benchmark", "container_image", value="nemo")},
    ),
    ("image-spelling", "warning", "container:", {"change": put("model", "container", value=f"docker.io/{IMAGE}")}),
    ("nginx-by-default", "warning", "frontend:", {"change": put("frontend", value={})}),
    (
        "image-architecture",
        "error",
        "container:",
        {"change": put("model", "container", value=f"{IMAGE}-x86_64"), "image": f"{IMAGE}-arm64"},
    ),
    ("disaggregation", "warning", "resources:", {"change": aggregated, "decode": Role(0, 1), "prefill": Role(1, 4)}),
    ("workers", "error", "decode_workers:", {"change": put("resources", "decode_workers", value=2)}),
    ("parallelism", "error", "backend:", {"change": decode("tensor-parallel-size", 8)}),
    ("gpus-counted", "error", "resources:", {"change": wide_experts, "decode": Role(1, 1, ep=4), **AGENTIC_ROW}),
    ("gpus-per-node", "error", "gpus_per_node:", {"change": put("resources", "gpus_per_node", value=8)}),
    ("nodes", "error", "resources:", {"change": put("resources", "decode_nodes", value=20)}),
    ("capacity", "error", "resources:", {"change": put("resources", "gpus_per_decode", value=8)}),
    ("unknown-field", "error", "concurencies:", {"change": put("benchmark", "concurencies", value="4")}),
    ("wrong-type", "error", "NCCL_DEBUG:", {"change": put("environment", "NCCL_DEBUG", value=1)}),
    ("missing-field", "error", "resources:", {"change": lambda r: r["resources"].pop("gpu_type")}),
    ("value-refused", "error", "request_plane:", {"change": put("dynamo", "request_plane", value="ftp")}),
    ("benchmark-type", "error", "type: sa_bench", {"change": put("benchmark", "type", value="sa_bench")}),
    ("directive-lost", "error", "array:", {"change": put("sbatch_directives", value={"array": "0-3"})}),
    ("directive-lost", "error", "clusters:", {"change": put("sbatch_directives", value={"clusters": "east"})}),
    ("directive-lost", "error", "test-only:", {"change": put("sbatch_directives", value={"test-only": ""})}),
    ("directive-lost", "warning", "output:", {"change": put("sbatch_directives", value={"output": "/tmp/x.out"})}),
    ("option-unknown", "error", "repository:", {"runner": lane(f"{ON_Q2}    preflight: false\n")}),
    ("moving-ref", "warning", "repository:", {"runner": lane("    ref: main\n")}),
    (
        "setup-script",
        "warning",
        "repository:",
        {"runner": lane(f"    ref: v1.0.50\n    sha: {V50}\n    setup-script: none.sh\n")},
    ),
    (
        "setup-script",
        "warning",
        "repository:",
        {"runner": lane(f"    ref: mine\n    sha: '{'7' * 40}'\n    setup-script: none.sh\n")},
    ),
    ("workers", "warning", "agg_workers:", {"change": replicas, "decode": Role(0, 1), "prefill": Role(2, 4, ep=8)}),
    (
        "known-problem",
        "warning",
        "path: /lustre/A",
        {"runner": RUNNER.replace("alias: minimax", "known: {message: look}, alias: minimax")},
    ),
    (
        "image-replaced",
        "error",
        "image: x/y",
        {"runner": RUNNER.replace("images: {", "images: {rules: [{image: x/y}],\n ")},
    ),
    (
        "model-otherwise",
        "warning",
        "otherwise:",
        {"runner": RUNNER.replace("path: /lustre/A", 'path: /lustre/A, otherwise: "hf:a/b"')},
    ),
]


@pytest.mark.parametrize(("rule", "severity", "key", "how"), FIRES)
def test_what_would_fail_or_mismeasure_is_found_with_its_line(
    tmp_path: Path, rule: str, severity: str, key: str, how: dict[str, Any]
) -> None:
    found = [f for f in a_plan(tmp_path, **how).findings if f.rule == rule]
    assert len(found) == 1, found
    path, _, line = found[0].where.rpartition(":")
    assert found[0].severity == severity
    assert key in Path(path).read_text().splitlines()[int(line) - 1]


def container(name: str, **row: Any) -> dict[str, Any]:
    return {"change": put("model", "container", value=name), **row}


def half_nodes(recipe: dict[str, Any]) -> None:
    recipe["resources"].update(gpus_per_node=2, gpus_per_prefill=2, gpus_per_decode=2)
    recipe["backend"]["vllm_config"]["prefill"]["data-parallel-size"] = 2
    recipe["backend"]["vllm_config"]["decode"]["tensor-parallel-size"] = 2


CONFIG = "recipes/vllm/r.yaml"
BLIND = f"    ref: v1.0.50\n    sha: {V50}\n    preflight: false\n"
UNKNOWN = f"    ref: mine\n    sha: '{'7' * 40}'\n"
SHORT_PREFILL = put("backend", "vllm_config", "prefill", "max-model-len", value=1024)
NGINX = {"enable_multiple_frontends": True, "nginx_container": "nginx-sqsh"}

LEAVES: dict[str, dict[str, Any]] = {
    "nothing is changed": {},
    "the aliases that the runner has": container("dynamo-vllm"),
    "an alias of the row's own version": container(
        "sglang-v0.5.11-cu130", runner=ALIASES, image="lmsysorg/sglang:v0.5.11-cu130-arm64"
    ),
    "an image that does not say its version": container("v0.5.11", runner=ALIASES, image="lmsysorg/sglang:latest"),
    "an image by its digest": container("v0.5.11", runner=ALIASES, image=f"lmsysorg/sglang@sha256:{'1' * 64}"),
    "a helper's alias of its version": {
        "change": put("frontend", value={"enable_multiple_frontends": True, "nginx_container": "nginx-1.27.4"}),
        "runner": ALIASES,
    },
    "a wait that the job's limit contains": {"change": budget("7:59:00", 2873)},
    "settings that mean something": {
        "settings": {"CONFIG_FILE": CONFIG, "SLURM_PARTITION": "q", "SYNTHETIC_ACCEPTANCE": "false"},
        "runner": RUNNER.replace("partition: p", "partition: p, partition-variable: SLURM_PARTITION"),
    },
    "a setting that the recipe uses": {
        "settings": {"CONFIG_FILE": CONFIG, "DECODE_NODES": "2"},
        "change": put("environment", value={"MINE": "of $DECODE_NODES"}),
    },
    "a helper image by its alias": {"change": put("frontend", value=NGINX)},
    "a container that is a file": container("/squash/mine.sqsh"),
    "formats of one family": {"change": put("model", "precision", value="mxfp8")},
    "a preflight that is off": {"runner": lane(BLIND).replace("path: /lustre/A", "path: /nvme/A")},
    "a version that never looks": {"runner": lane(ON_Q2).replace("path: /lustre/A", "path: /nvme/A")},
    "prefill without room for the output": {"change": SHORT_PREFILL},
    "a time limit of days that is short": {"change": put("slurm", "time_limit", value="0-06:30:00")},
    "a time limit that is none to us": {"change": put("slurm", "time_limit", value="UNLIMITED")},
    "the tag of these nodes": container(f"{IMAGE}-arm64", image=f"{IMAGE}-arm64"),
    "a word that is no architecture": container("a/b:farm64", image="a/b:farm64"),
    "workers on a part of each node": {
        "change": half_nodes,
        "prefill": Role(1, 2, ep=2, dp_attention=True),
        "decode": Role(1, 2),
    },
    "a row of fixed lengths that counts as it likes": {"change": wide_experts, "decode": Role(1, 1, ep=4)},
    "DEP spelt as tp 1": {"prefill": Role(1, 1, ep=4, dp_attention=True)},
    "an engine's own flags": {"change": decode("anything-goes", {"deep": [1]})},
    "numbers as text": {"change": put("health_check", "max_attempts", value="360")},
    "a lock that srtctl wrote": {"change": put("lock", value={"anything": 1})},
    "a set-up script that the version has": {
        "runner": lane(f"    ref: v1.0.50\n    sha: {V50}\n    setup-script: install-torchao.sh\n")
    },
    "an option that the version has": {"runner": lane(BLIND)},
    "a version that nobody knows": {
        "runner": lane(UNKNOWN),
        "change": put("benchmark", "concurencies", value="4"),
    },
}


@pytest.mark.parametrize("what", LEAVES)
def test_what_is_right_is_no_finding(tmp_path: Path, what: str) -> None:
    assert a_plan(tmp_path, **LEAVES[what]).findings == ()


@pytest.mark.parametrize(
    ("selector", "rule"),
    [(":override_c", "selector-none"), (":*", "selector-several"), ("", "selector-several"), (":override_a", None)],
)
def test_a_selector_that_gives_none_or_several(tmp_path: Path, selector: str, rule: str | None) -> None:
    family = tmp_path / "recipes/vllm/family.yaml"
    family.parent.mkdir(parents=True)
    family.write_text(dump({"base": a_recipe(), "override_a": {"name": "a"}, "override_b": {"name": "b"}}))
    plan = a_plan(tmp_path, settings={"CONFIG_FILE": f"recipes/vllm/family.yaml{selector}"})
    assert [f.rule for f in plan.findings] == ([rule] if rule else [])


def test_a_recipe_of_nothing_but_a_base(tmp_path: Path) -> None:
    family = tmp_path / "recipes/vllm/family.yaml"
    family.parent.mkdir(parents=True)
    family.write_text(dump({"base": a_recipe()}))
    plan = a_plan(tmp_path, settings={"CONFIG_FILE": "recipes/vllm/family.yaml"})
    assert [f.rule for f in plan.findings] == ["selector-none"]


def test_a_complaint_about_a_variant_names_the_section_that_says_it(tmp_path: Path) -> None:
    family = tmp_path / "recipes/vllm/family.yaml"
    family.parent.mkdir(parents=True)
    base = {**a_recipe(), "bogus": 1}
    family.write_text(dump({"base": base, "override_a": {"benchmark": {"concurencies": "4"}}}))
    plan = a_plan(tmp_path, settings={"CONFIG_FILE": "recipes/vllm/family.yaml:override_a"})
    lines = family.read_text().splitlines()
    said = {lines[int(f.where.rpartition(":")[2]) - 1].strip() for f in plan.findings}
    assert said == {"bogus: 1", 'concurencies: "4"'}


def test_a_recipe_that_is_not_at_hand(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, settings={"CONFIG_FILE": "recipes/gone.yaml"})
    assert [(f.rule, f.severity) for f in plan.findings] == [("recipe-unread", "warning")]


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("TIME_LIMIT", "08:00:00", "slurm.time_limit of the recipe"),
        ("SLURM_EXCLUDE_NODES", "n1", "`exclude-nodes` of the runner file"),
        ("DECODE_MTP_SIZE", "3", "nor the recipe reads it"),
        ("SLURM_PARTITION", "batch_3", "nor the recipe reads it"),
    ],
)
def test_a_setting_for_lanes_of_others_is_said_where_the_row_says_it(
    tmp_path: Path, key: str, value: str, instead: str
) -> None:
    plan = a_plan(tmp_path, settings={"CONFIG_FILE": CONFIG, key: value}, source="m.yaml:7")
    (found,) = plan.findings
    assert (found.rule, found.severity, found.where) == ("setting-ignored", "warning", "m.yaml:7")
    assert f"{key}={value}" in found.message and found.message.endswith(instead)


def test_both_limits_can_be_too_long(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, budget("8:00:00", 2880))
    assert [f.rule for f in plan.findings] == ["time-budget"] * 2


def test_an_agentic_row_has_more_time_and_no_lengths(tmp_path: Path) -> None:
    assert a_plan(tmp_path, put("slurm", "time_limit", value="12:00:00"), **AGENTIC_ROW).findings == ()
    plan = a_plan(tmp_path, put("slurm", "time_limit", value="13:00:00"), **AGENTIC_ROW)
    assert [f.rule for f in plan.findings] == ["time-budget"]


def test_the_runner_files_edits_count_as_the_recipe(tmp_path: Path) -> None:
    edited = RUNNER + "adjust: [{edits: [{path: [health_check, max_attempts], value: 3000}]}]\n"
    assert [f.rule for f in a_plan(tmp_path, runner=edited).findings] == ["time-budget"]


def test_a_workflows_result_is_named_with_its_aggregate(tmp_path: Path) -> None:
    tail = len("_sa-bench_isl_1024_osl_1024_conc16_gpus_8_ctx_4_gen_4.json")
    fits = "x" * (255 - tail - len("agg_"))
    assert a_plan(tmp_path, result_filename=fits).findings == ()
    assert [f.rule for f in a_plan(tmp_path, result_filename=fits + "x").findings] == ["name-too-long"]


def test_what_a_version_knows_is_told(tmp_path: Path) -> None:
    (found,) = a_plan(tmp_path, put("dynamo", value={"wheel": "1.2.0"}), runner=lane(ON_Q2)).findings
    assert "dynamo.wheel is an unknown key" in found.message and "v1.0.0 and later" in found.message
    (found,) = a_plan(tmp_path, put("benchmark", "concurencies", value="4")).findings
    assert "near: concurrencies" in found.message


def test_a_row_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        a_plan(tmp_path, put("benchmark", "concurrencies", value="4xmany"))
