"""Decisions: from a benchmark, a runner and a recipe to the plan, and what a plan finds wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Role
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.plan.derive import Context, run_key
from launcher.plan.plan import Plan
from launcher.project import plan_benchmark
from launcher.runner.file import RunnerFile
from launcher.srtctl.locate import RecipeFinder
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.recipe import dump
from tests.benchmarks import IMAGE, a_benchmark, a_recipe
from tests.check.workspaces import Change, put

RUNNER = """\
name: tiny
sku: tiny
runners: [tiny]
scheduler: {partition: p, account: a, partition-variable: SLURM_PARTITION, job-name: "x-{runner}"}
node: {gpus: 4, count: 8}
storage: [{path: /lustre, kind: lustre}, {path: /nvme, kind: node-local, seen-by: [compute]}]
images: {directory: /squash, lock: "{directory}/.locks/{name}.lock", aliases: [dynamo-vllm], helpers: {nginx-sqsh: "nginx:1.27.4"}}
checkout: {directory: "{workspace}", cache: /cache, setup: [[make, setup, "ARCH={arch}"]]}
workspace: {shared: /lustre/runs}
repositories: {nvidia: "https://example.org/srt-slurm.git"}
models:
  - when: {prefix: minimaxm3}
    path: [/lustre/A, /lustre/B]
    alias: minimax-m3-mxfp8
    also: [MiniMaxAI/MiniMax-M3-MXFP8]
    served: "{model}"
    variable: MODEL_PATH
lanes:
  - when: {power: true}
    repository: nvidia
    ref: powered
    sha: "1111111111111111111111111111111111111111"
  - repository: nvidia
    ref: v1
    sha: "2222222222222222222222222222222222222222"
    overlays: [{source: vllm/x}]
    setup-script: fixes.sh
    preflight: false
srtslurm: {network_interface: ""}
adjust:
  - when: {scenario: agentic-coding}
    mounts: {/host: /inside}
  - edits: [{path: [health_check, max_attempts], value: 720}]
    exports: {EXTRA: "1"}
exclude-nodes:
  - {node: bad-01, reason: broken, variable: EXCLUDED}
"""  # noqa: E501


class RecipePlanner:
    """A recipe tree, a runner file and a context; `plan` puts them together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipes = root / "recipes"
        self.recipes.mkdir()
        self.runner = RUNNER
        self.context: dict[str, Any] = {}
        self.write("r.yaml", a_recipe())

    def write(self, name: str, document: dict[str, Any]) -> None:
        path = self.recipes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(document))

    def plan(self, **changes: Any) -> Plan:
        context = Context(
            **{
                "workspace": str(self.root),
                "runner_name": "tiny_1",
                "run_key": "77-1-abc",
                "today": "20260102",
                **self.context,
            }
        )
        finder = RecipeFinder(None, [self.recipes])
        return plan_benchmark(a_benchmark(**changes), RunnerFile(Document("tiny.yaml", self.runner)), finder, context)

    def rules(self, **changes: Any) -> set[str]:
        return {f.rule for f in self.plan(**changes).findings}


@pytest.fixture
def planner(tmp_path: Path) -> RecipePlanner:
    return RecipePlanner(tmp_path)


def test_a_plan_names_everything(planner: RecipePlanner) -> None:
    plan = planner.plan()
    value = plan.as_dict()
    assert value["findings"] == [f for f in value["findings"] if f["rule"] == "setup-script"]
    assert value["job_name"] == "x-tiny_1"
    assert value["images"][0]["uri"] == "docker://registry-1.docker.io#vllm/vllm-openai:tag"
    assert value["images"][0]["squash"] == "/squash/vllm_vllm-openai_tag.sqsh"
    assert value["images"][0]["lock"] == "/squash/.locks/vllm_vllm-openai_tag.lock"
    assert value["models"] == {"minimax-m3-mxfp8": "/lustre/A"}
    assert value["srtslurm"] == {
        "default_account": "a",
        "default_partition": "p",
        "default_time_limit": "4:00:00",
        "gpus_per_node": 4,
        "network_interface": "",
        "srtctl_root": f"{planner.root}/srt-slurm-77-1-abc",
        "model_paths": {"minimax-m3-mxfp8": "/lustre/A"},
        "containers": {IMAGE: "/squash/vllm_vllm-openai_tag.sqsh"},
    }
    assert value["submit"]["argv"] == [
        *("srtctl", "apply", "-f", "recipes/r.yaml", "--tags", "tiny,minimaxm3,fp8,1024x1024,infmax-20260102"),
        *("--setup-script", "fixes.sh", "--no-preflight"),
    ]
    environment = value["submit"]["environment"]
    assert environment["MODEL_PATH"] == "/lustre/A" and environment["EXTRA"] == "1"
    assert environment["SERVED_MODEL_NAME"] == "MiniMaxAI/MiniMax-M3-MXFP8"
    assert environment["INFMAX_WORKSPACE"] == "/lustre/runs/infmax-workspace-77-1-abc"
    assert value["recipe"]["document"]["health_check"] == {"max_attempts": 720}
    assert value["recipe"]["document"]["sbatch_directives"] == {"exclude": "bad-01", "comment": "77-1-abc"}
    assert value["rules"] == {"model": "tiny.yaml:12", "lane": "tiny.yaml:23"}


def test_a_plan_survives_json(planner: RecipePlanner) -> None:
    plan = planner.plan(concurrencies=(4, 99))
    assert Plan.from_dict(plan.as_dict()).as_dict() == plan.as_dict()
    with pytest.raises(ConfigError, match="schema"):
        Plan.from_dict({**plan.as_dict(), "schema": 99})


def test_the_host_overrides_what_the_runner_file_lets_it(planner: RecipePlanner) -> None:
    planner.context["host"] = {"MODEL_PATH": "/lustre/mine", "SLURM_PARTITION": "other", "EXCLUDED": ""}
    plan = planner.plan()
    assert plan.model.path == "/lustre/mine"
    assert SrtctlJob.of(plan).srtslurm["default_partition"] == "other"
    assert SrtctlJob.of(plan).recipe.document is not None
    assert "exclude" not in SrtctlJob.of(plan).recipe.document["sbatch_directives"]
    planner.context["host"] = {}
    assert (
        planner.plan(settings={"CONFIG_FILE": "recipes/r.yaml", "SLURM_PARTITION": "row"}).scheduler.partition == "row"
    )


def test_the_first_candidate_that_is_there_is_the_model(planner: RecipePlanner) -> None:
    planner.context["is_directory"] = lambda path, holding: path == "/lustre/B"
    assert planner.plan().model.path == "/lustre/B"


def test_a_workspace_that_nodes_see_is_not_copied(planner: RecipePlanner) -> None:
    planner.context["workspace"] = "/lustre/ws"
    assert planner.plan().workspace.shared is None


def test_chosen_concurrencies_narrow_the_recipe(planner: RecipePlanner) -> None:
    planner.context["narrow"] = True
    plan = planner.plan(concurrencies=(16,))
    assert SrtctlJob.of(plan).recipe.document is not None
    assert SrtctlJob.of(plan).recipe.document["benchmark"]["concurrencies"] == "16"
    assert "concurrency-extra" not in {f.rule for f in plan.findings}


def test_a_recipe_of_variants_is_submitted_whole_with_its_selector(planner: RecipePlanner) -> None:
    planner.write("family.yaml", {"base": a_recipe(), "override_a": {"name": "a"}, "override_b": {"name": "b"}})
    plan = planner.plan(settings={"CONFIG_FILE": "recipes/family.yaml:override_a"})
    assert SrtctlJob.of(plan).submit.argv[3] == "recipes/family.yaml:override_a"
    assert SrtctlJob.of(plan).recipe.document is not None
    assert SrtctlJob.of(plan).recipe.document["base"]["sbatch_directives"]["comment"] == "77-1-abc"


def test_a_member_of_a_family_answers_for_its_old_file_name(planner: RecipePlanner) -> None:
    planner.write("family.yaml", {"base": a_recipe(), "override_a": {"benchmark": {"osl": 512}}})
    plan = planner.plan(settings={"CONFIG_FILE": "recipes/family/a.yaml"})
    assert SrtctlJob.of(plan).submit.argv[3] == "recipes/family/a.yaml"
    assert (
        SrtctlJob.of(plan).recipe.document is not None and SrtctlJob.of(plan).recipe.document["benchmark"]["osl"] == 512
    )
    finding = next(f for f in plan.findings if f.rule == "sequence-length")
    assert finding.where.startswith(f"{planner.recipes}/family.yaml:")


def test_what_a_recipe_asks_for_can_decide_the_lane(planner: RecipePlanner) -> None:
    planner.write("r.yaml", {**a_recipe(), "telemetry": {"provider": "dcgm-power", "enabled": True}})
    assert SrtctlJob.of(planner.plan()).srt_slurm.ref == "powered"


def test_a_recipe_that_is_not_at_hand_is_said_and_the_lanes_own_alias_carried(planner: RecipePlanner) -> None:
    plan = planner.plan(settings={"CONFIG_FILE": "recipes/upstream.yaml"})
    assert SrtctlJob.of(plan).recipe.document is None
    assert SrtctlJob.of(plan).models == {"minimax-m3-mxfp8": "/lustre/A"}
    assert SrtctlJob.of(plan).srtslurm["containers"] == {IMAGE: "/squash/vllm_vllm-openai_tag.sqsh"}
    assert "recipe-unread" in {f.rule for f in plan.findings} and not plan.errors


@pytest.mark.parametrize("path", ["/etc/passwd.yaml", "recipes/../../x.yaml", "recipes/x.sh", "recipes/a$(b).txt"])
def test_a_recipe_path_that_leaves_the_tree_is_refused(planner: RecipePlanner, path: str) -> None:
    with pytest.raises(ConfigError) as error:
        planner.plan(settings={"CONFIG_FILE": path})
    assert error.value.where == "CONFIG_FILE"


def test_a_benchmark_without_a_recipe_is_not_ours(planner: RecipePlanner) -> None:
    with pytest.raises(ConfigError, match="CONFIG_FILE is not set"):
        planner.plan(settings={})


@pytest.mark.parametrize("image", ["vllm/vllm-openai:a;rm -rf ~", "vllm/x:" + "t" * 300, "UPPER/case:1", ""])
def test_an_image_name_that_cannot_be_one(planner: RecipePlanner, image: str) -> None:
    with pytest.raises(ConfigError):
        planner.plan(image=image)


def test_the_copy_of_a_recipe_that_runs_the_rows_image_is_meant(planner: RecipePlanner) -> None:
    overlay = planner.root / "ws/benchmarks/multi_node/srt-slurm-recipes"
    overlay.mkdir(parents=True)
    later = copy.deepcopy(a_recipe())
    later["model"]["container"] = "vllm/vllm-openai:later"
    (overlay / "r.yaml").write_text(dump(later))
    finder = RecipeFinder(planner.root / "ws", [planner.recipes])
    context = Context(workspace=str(planner.root), runner_name="t_1", run_key="k", today="20260102")
    plan = plan_benchmark(a_benchmark(), RunnerFile(Document("tiny.yaml", RUNNER)), finder, context)
    assert SrtctlJob.of(plan).recipe.origin == "this repository"
    assert "recipe-elsewhere" in {f.rule for f in plan.findings} and not plan.errors


def decode(key: str, value: Any) -> Change:
    return put("backend", "vllm_config", "decode", key, value=value)


@pytest.mark.parametrize(
    ("change", "rule", "severity", "key"),
    [
        (put("model", "path", value="nvidia/MiniMax-M3-NVFP4"), "alias-unregistered", "error", "path:"),
        (put("model", "container", value="vllm/vllm-openai:other"), "image-mismatch", "error", "container:"),
        (put("model", "container", value="some-alias"), "container-unresolved", "error", "container:"),
        (put("model", "container", value="Odd-Alias"), "container-unresolved", "error", "container:"),
        (put("frontend", "nginx_container", value="ngnix-sqsh"), "container-unresolved", "error", "nginx_container:"),
        (put("benchmark", "container_image", value="nemo"), "container-unresolved", "error", "container_image:"),
        (put("frontend", value={}), "nginx-by-default", "warning", "frontend:"),
        (put("benchmark", "isl", value=2048), "sequence-length", "error", "isl:"),
        (put("benchmark", "concurrencies", value="4"), "concurrency", "error", "concurrencies:"),
        (put("benchmark", "concurrencies", value="4x16x64"), "concurrency-extra", "warning", "concurrencies:"),
        (put("resources", "decode_workers", value=2), "workers", "error", "decode_workers:"),
        (put("resources", "gpus_per_node", value=8), "gpus-per-node", "error", "gpus_per_node:"),
        (put("resources", "decode_nodes", value=20), "nodes", "error", "resources:"),
        (decode("tensor-parallel-size", 8), "parallelism", "error", "backend:"),
        (decode("enable-expert-parallel", True), "parallelism", "error", "backend:"),
        (decode("max-model-len", 2047), "max-model-len", "error", "backend:"),
        (put("model", "precision", value="fp4"), "precision", "warning", "precision:"),
        (put("model", "path", value="hf:some/model"), "model-from-hub", "warning", "path:"),
    ],
)
def test_what_would_fail_or_mismeasure_is_found_with_its_line(
    planner: RecipePlanner, change: Change, rule: str, severity: str, key: str
) -> None:
    clean = planner.rules()
    recipe = copy.deepcopy(a_recipe())
    change(recipe)
    planner.write("r.yaml", recipe)
    new = [f for f in planner.plan().findings if f.rule not in clean]
    assert rule in {f.rule for f in new}, new
    found = next(f for f in new if f.rule == rule)
    path, _, line = found.where.rpartition(":")
    assert found.severity == severity
    assert key in Path(path).read_text().splitlines()[int(line) - 1]


def test_the_users_second_document(planner: RecipePlanner) -> None:
    """The launcher registered minimax-m3-nvfp4, the recipe said nvidia/MiniMax-M3-NVFP4: dormant for ten days."""
    planner.runner = RUNNER.replace("alias: minimax-m3-mxfp8", "alias: minimax-m3-nvfp4").replace(
        "also: [MiniMaxAI/MiniMax-M3-MXFP8]", "also: []"
    )
    recipe = a_recipe()
    recipe["model"]["path"] = "nvidia/MiniMax-M3-NVFP4"
    planner.write("r.yaml", recipe)
    plan = planner.plan(model="nvidia/MiniMax-M3-NVFP4")
    found = next(f for f in plan.findings if f.rule == "alias-unregistered")
    assert "'nvidia/MiniMax-M3-NVFP4' is not registered: runner tiny registers minimax-m3-nvfp4" in found.message
    assert SrtctlJob.of(plan).srtslurm["model_paths"] == {}


def test_aliases_and_helpers_that_are_known_are_no_finding(planner: RecipePlanner) -> None:
    recipe = a_recipe()
    recipe["model"] = {"path": "MiniMaxAI/MiniMax-M3-MXFP8", "container": "dynamo-vllm", "precision": "mxfp8"}
    recipe["frontend"] = {"enable_multiple_frontends": True, "nginx_container": "nginx-sqsh"}
    planner.write("r.yaml", recipe)
    plan = planner.plan()
    assert {f.rule for f in plan.findings} <= {"setup-script", "alias-by-accident"}
    assert [i.reference for i in plan.images] == [IMAGE, "nginx:1.27.4"]
    assert set(SrtctlJob.of(plan).srtslurm["containers"]) == {"dynamo-vllm", "nginx-sqsh"}


@pytest.mark.parametrize(
    ("selector", "rule"),
    [("override_c", "selector-none"), ("*", "selector-several"), ("", "selector-several")],
)
def test_a_selector_that_gives_none_or_several(planner: RecipePlanner, selector: str, rule: str) -> None:
    planner.write("family.yaml", {"base": a_recipe(), "override_a": {"name": "a"}, "override_b": {"name": "b"}})
    name = f"recipes/family.yaml:{selector}" if selector else "recipes/family.yaml"
    assert rule in planner.rules(settings={"CONFIG_FILE": name})


def test_names_that_no_file_system_takes(planner: RecipePlanner) -> None:
    assert "name-too-long" in planner.rules(result_filename="x" * 200)
    assert "name-too-long" not in planner.rules(result_filename="x" * 100)


def test_a_matrix_may_spell_dep_as_tp1(planner: RecipePlanner) -> None:
    assert "parallelism" not in planner.rules(prefill=Role(1, 1, ep=4, dp_attention=True))
    assert "parallelism" in planner.rules(prefill=Role(1, 1, ep=8, dp_attention=True))


def test_a_run_key_tells_rows_and_runners_apart() -> None:
    keys = {
        run_key(a_benchmark(), "a_1", "7", "1"),
        run_key(a_benchmark(), "a_2", "7", "1"),
        run_key(a_benchmark(eval_only=True), "a_1", "7", "1"),
        run_key(a_benchmark(result_filename="other"), "a_1", "7", "1"),
        run_key(a_benchmark(), "a_1", "7", "2"),
    }
    assert len(keys) == 5
    assert run_key(a_benchmark(), "a_1", "7", "1") in keys


def test_what_results_are_held_against(planner: RecipePlanner) -> None:
    held = planner.plan(recipe_fingerprint="f" * 64).results
    assert (held.gpus, held.tool, held.engine, held.rehearsal) == ((4, 4), "sa-bench", "vllm", False)
    assert {"MiniMaxAI/MiniMax-M3-MXFP8", "/lustre/A", "/lustre/B", "minimax-m3-mxfp8"} <= set(held.models)
    assert held.row["framework"] == "dynamo-vllm" and held.row["decode_tp"] == 4 and held.row["isl"] == 1024
    assert held.row["recipe_fingerprint"] == "f" * 64
    planner.context["host"] = {"MODEL_PATH": "/elsewhere/m3-of-today"}
    assert "/elsewhere/m3-of-today" in planner.plan().results.models


def test_the_recipe_says_on_how_many_gpus_fixed_lengths_are_measured(planner: RecipePlanner) -> None:
    """A row counts data parallelism in several ways: some rows of DEP8 say tp 1."""
    assert planner.plan(prefill=Role(1, 1, ep=4, dp_attention=True)).results.gpus == (4, 4)
    assert planner.plan(settings={"CONFIG_FILE": "recipes/elsewhere.yaml"}).results.gpus is None


@pytest.mark.parametrize(("kind", "gpus"), [("sa-bench", (8, 0)), ("custom", (4, 0))])
def test_gpus_of_an_aggregated_recipe(planner: RecipePlanner, kind: str, gpus: tuple[int, int]) -> None:
    """srtctl tells sa-bench the GPUs of the nodes, also those that no worker has."""
    recipe = a_recipe()
    engine = recipe["backend"]["vllm_config"].pop("decode")
    recipe["backend"]["vllm_config"] = {"aggregated": {**engine, "served-model-name": "m3"}}
    nodes = {"agg_nodes": 2, "agg_workers": 1, "gpus_per_agg": 4}
    recipe["resources"] = {"gpu_type": "gb200", "gpus_per_node": 4, **nodes}
    recipe["benchmark"]["type"] = kind
    planner.write("agg.yaml", recipe)
    row: dict[str, Any] = {"disagg": False, "prefill": Role(1, 4), "decode": Role(0, 4)}
    held = planner.plan(settings={"CONFIG_FILE": "recipes/agg.yaml"}, **row).results
    assert held.gpus == gpus and "m3" in held.models
    assert held.tool == ("sa-bench" if kind == "sa-bench" else None)


def test_the_row_says_on_how_many_gpus_an_agentic_result_counts(planner: RecipePlanner) -> None:
    """As InferenceX's aggregation does, from the job's environment."""
    row: dict[str, Any] = {"scenario": "agentic-coding", "isl": None, "osl": None, "kv_offloading": "none"}
    held = planner.plan(prefill=Role(2, 4), **row).results
    assert (held.gpus, held.held, held.tool) == ((8, 4), 8, None)
    assert held.bounds is not None and held.bounds.failed == 0.1
