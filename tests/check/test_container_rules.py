"""Each rule about a job in a container: a runner file and a row that it is for, and ones that it is not; and what the
rules find in the tree as given."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.check import container_rules, inputs
from launcher.check.inputs import CheckInput, Row
from launcher.check.plan_rules import check_plan
from launcher.check.report import check_everything
from launcher.check.srtctl_schema import Schemas
from launcher.core.finding import Finding
from launcher.project import Project
from tests.container.planner import RowPlanner, a_row, an_agentic_row
from tests.container.test_agreement import LAUNCHERS, judge
from tests.shared import needs_shared


@pytest.fixture
def planner(tmp_path: Path) -> RowPlanner:
    """With a corpus and its place, so that an agentic row has nothing to be said of it either."""
    made = RowPlanner(tmp_path)
    made.script("dsr1_fp8_h100.sh", folder="benchmarks/single_node/agentic")
    made.runner += CORPUS
    return made


CORPUS = "adjust:\n  - mounts: {/shared/corpus: /corpus}\n    exports: {AIPERF_DATASET_MMAP_CACHE_DIR: /corpus}\n"
NVIDIA, AMD = "node: {gpus: 8, arch: x86_64}", "node: {gpus: 8, arch: x86_64, vendor: amd}"
LIMIT = '"3:00:00"'

Change = Callable[[RowPlanner], object]


def edit(*pairs: tuple[str, str]) -> Change:
    """Texts of the runner file are replaced."""

    def change(planner: RowPlanner) -> None:
        for old, new in pairs:
            planner.edit(old, new)

    return change


def amd(sku: str) -> Change:
    return edit((NVIDIA, AMD), ("sku: h100", f"sku: {sku}"))


def lane(text: str) -> Change:
    return lambda planner: planner.lane(text)


def adjusted(text: str) -> Change:
    """One more adjustment."""

    def change(planner: RowPlanner) -> None:
        planner.runner += f"  - {text}\n"

    return change


def writing(script: str) -> Change:
    """The script, and the checkout elsewhere than at /workspace."""

    def change(planner: RowPlanner) -> None:
        planner.lane("workdir: /ix")
        planner.script("dsr1_fp8_h100.sh", script)

    return change


SHARED_NODES = "allocation: {exclusive: false}"
DOWNLOADS = ("{cache: /shared/hf-hub-cache}", "{path: '/shared/models/{model}', downloads: true}")
HERE, ROW, MODEL = "kind: container", "flags", "models/{model}"

# rule, severity, what its line holds, the world, the row
FIRES: list[tuple[str, str, str, Change, Benchmark]] = [
    ("image-vendor", "error", ROW, edit(), a_row(image="rocm/atom:nightly")),
    ("image-vendor", "error", ROW, edit(), a_row(image="lmsysorg/sglang:v0.5.12-mi300")),
    ("image-vendor", "error", ROW, amd("mi300x"), a_row()),
    ("image-vendor", "error", ROW, amd("mi300x"), a_row(image="nvcr.io#nvidia/tensorrt-llm/release:1.3")),
    ("image-vendor", "error", ROW, amd("mi355x"), a_row(image="lmsysorg/sglang:v0.5.12-rocm700-mi30x")),
    ("image-vendor", "error", ROW, amd("mi300x"), a_row(image="lmsysorg/sglang:v0.5.12-rocm700-mi35x")),
    ("limit-short", "error", HERE, edit((LIMIT, '"1:29:00"')), an_agentic_row()),
    ("limit-short", "error", HERE, edit(), an_agentic_row(duration=9001)),
    ("port-shared", "warning", HERE, lane(SHARED_NODES), a_row()),
    ("port-shared", "warning", HERE, lane(f"{SHARED_NODES}\n      port: {{add: runner-digit}}"), a_row()),
    ("corpus-unmounted", "warning", HERE, edit((CORPUS, "")), an_agentic_row()),
    ("corpus-unmounted", "warning", HERE, edit(("/shared/corpus: /corpus", "/shared/corpus: /corp")), an_agentic_row()),
    ("cache-unmounted", "warning", HERE, adjusted("exports: {VLLM_CACHE_ROOT: /shared/.cache/vllm}"), a_row()),
    ("cache-unmounted", "warning", HERE, adjusted("exports: {HF_HUB_CACHE: $HOME/.cache/huggingface}"), a_row()),
    ("cache-unmounted", "warning", HERE, adjusted("exports: {XDG_CACHE_HOME: /corpus2}"), a_row()),
    ("model-unstaged", "warning", MODEL, edit(DOWNLOADS), a_row()),
    ("result-elsewhere", "error", ROW, writing("bench --result-dir /workspace/\n"), a_row()),
]


def findings(planner: RowPlanner, benchmark: Benchmark) -> list[Finding]:
    return list(check_plan(planner.resolved(benchmark), Schemas()))


@pytest.mark.parametrize(("rule", "severity", "holds", "change", "benchmark"), FIRES)
def test_it_is_found_with_its_line(
    planner: RowPlanner, rule: str, severity: str, holds: str, change: Change, benchmark: Benchmark
) -> None:
    change(planner)
    (found,) = findings(planner, benchmark)
    assert (found.rule, found.severity) == (rule, severity), found.message
    if holds == ROW:
        assert found.where == benchmark.source
    else:
        path, _, line = found.where.rpartition(":")
        assert path == "tiny.yaml" and holds in planner.runner.splitlines()[int(line) - 1]


def test_every_rule_of_the_module_is_tried() -> None:
    assert {case[0] for case in FIRES} == {rule.id for rule in container_rules.RULES}


SILENT: list[tuple[str, Change, Benchmark]] = [
    ("a row and a lane that are right", edit(), a_row()),
    ("an agentic one", edit(), an_agentic_row()),
    ("an image that names no vendor", amd("mi355x"), a_row(image="vllm/vllm-openai:v0.25.0")),
    ("an image that names two", edit(), a_row(image="acme/cuda-and-rocm:v1")),
    ("a word with another inside", edit(), a_row(image="acme/microcm3:mi3")),
    ("AMD's image on AMD's GPUs", amd("mi355x"), a_row(image="lmsysorg/sglang:v0.5.12-rocm700-mi35x")),
    ("one generation is two products", amd("mi325x"), a_row(image="lmsysorg/sglang:v0.5.12-rocm700-mi30x")),
    ("the hour of the trace and half an hour", edit((LIMIT, '"1:30:00"')), an_agentic_row()),
    ("lengths that are fixed in a short job", edit((LIMIT, '"0:10:00"')), a_row()),
    ("a limit of the partition's", edit((LIMIT, "null")), an_agentic_row()),
    ("a job that takes all GPUs of its node", lane(SHARED_NODES), a_row(prefill=Role(1, 8))),
    ("a port of each job's own", lane(f"{SHARED_NODES}\n      port: {{base: 40000, add: job-id}}"), a_row()),
    ("a node of one's own", lane("port: {base: 9000}"), a_row()),
    ("a cache below what is mounted", adjusted("exports: {VLLM_CACHE_ROOT: /corpus/vllm}"), a_row()),
    ("a cache that is to be lost", adjusted("exports: {TRITON_CACHE_DIR: /tmp/triton-$JOB}"), a_row()),
    ("a checkpoint that is staged", edit((DOWNLOADS[0], "{path: '/shared/models/{model}'}")), a_row()),
    ("a script that writes where it runs", writing("bench --result-dir $PWD/\n"), a_row()),
]


@pytest.mark.parametrize(("what", "change", "benchmark"), SILENT, ids=[case[0] for case in SILENT])
def test_what_is_right_is_no_finding(planner: RowPlanner, what: str, change: Change, benchmark: Benchmark) -> None:
    change(planner)
    assert findings(planner, benchmark) == []


def test_jobs_on_the_runners_own_host_have_a_limit_and_share_nothing(planner: RowPlanner) -> None:
    planner.edit("kind: container", "kind: docker").lane("engine: docker").lane(SHARED_NODES)
    planner.edit(f"{{partition: p, account: a, time-limit: {LIMIT}}}", '{kind: local, time-limit: "1:00:00"}')
    assert findings(planner, a_row()) == []
    assert [one.rule for one in findings(planner, an_agentic_row())] == ["limit-short"]


def given(*benchmarks: Benchmark, labels: dict[str, list[str]] | None = None) -> CheckInput:
    rows = [Row(benchmark, f"m.yaml:{i}") for i, benchmark in enumerate(benchmarks, 1)]
    return CheckInput(rows, runners={"tiny-label": ["tiny_00"]} if labels is None else labels)


def found_by(rule: str, world: CheckInput) -> list[tuple[str, str]]:
    return [(one.where, one.message) for one in check_everything(world) if one.rule == rule]


def test_a_label_that_no_runner_has_is_said_once() -> None:
    world = given(a_row(), a_row(runner="tiny-labels"), a_row(runner="tiny-labels", concurrencies=(4,)))
    ((place, message),) = found_by("label-unknown", world)
    assert place == "m.yaml:2"
    assert message == (
        "runners.yaml has no label 'tiny-labels', so that no runner takes the jobs of 2 rows (near: tiny-label)"
    )
    assert "the row's job" in found_by("label-unknown", given(a_row(runner="x")))[0][1]


def test_a_label_is_not_missed_where_no_list_of_runners_is() -> None:
    assert found_by("label-unknown", given(a_row(runner="tiny-labels"), labels={})) == []


def test_a_row_on_several_clusters_is_one_row() -> None:
    benchmark = a_row(runner="x")
    world = CheckInput([Row(benchmark, "m.yaml:1"), Row(benchmark, "m.yaml:1")], runners={"y": ["y_0"]})
    assert found_by("row-twice", world) == []
    assert "the row's job" in found_by("label-unknown", world)[0][1]


def test_a_row_that_stands_twice() -> None:
    world = given(
        a_row(key="one", source="m.yaml (one)", settings={"A": "1", "B": "2"}),
        a_row(key="one", settings={"A": "1"}),
        a_row(key="two", source="m.yaml (two)", settings={"B": "2", "A": "1"}),
        a_row(key="two", settings={"A": "1"}, concurrencies=(4,)),
    )
    ((place, message),) = found_by("row-twice", world)
    assert place == "m.yaml:3" and message.startswith("this is one's row at m.yaml:1 once more")
    # Of the three that share a name two are the same, which is said already.
    assert [where for where, _ in found_by("name-duplicate", world)] == ["m.yaml:2"]


def test_rows_of_one_node_are_left_out_where_only_a_checkout_would_have_their_scripts(tmp_path: Path) -> None:
    """Those whose scripts come with the launcher are looked at everywhere."""
    (tmp_path / "t-master.yaml").write_text(MATRIX)
    project = Project.open({"HOME": "/root"}, workspace=str(tmp_path))
    everything = inputs.gather_everything(project, [str(tmp_path / "t-master.yaml")])
    assert [row.benchmark.runner for row in everything.rows] == ["local"]
    ((what, places),) = everything.outside.items()
    assert what.startswith("rows of one node, whose scripts are not in the workspace") and len(places) == 2


KEY = """\
dsr1-fp8-{label}-sglang:
  image: lmsysorg/sglang:v0.5.12-cu130
  model: deepseek-ai/DeepSeek-R1-0528
  model-prefix: dsr1
  runner: {label}
  precision: fp8
  framework: sglang
  multinode: false
  scenarios:
    fixed-seq-len: [{{isl: 1024, osl: 1024, search-space: [{{tp: 4, conc-list: [{conc}]}}]}}]
"""
MATRIX = KEY.format(label="h200", conc="4, 16") + KEY.format(label="local", conc="4")


# ------------------------------------------------------------------------------------------------- the tree as given

OF_THE_TREE = {
    ("cache-unmounted", "warning"): (3, 591),
    ("corpus-unmounted", "warning"): (3, 226),
    ("label-unknown", "warning"): (2, 0),
    ("model-unstaged", "warning"): (2, 18),
    ("port-shared", "warning"): (2, 78),
    ("row-twice", "warning"): (3, 0),
    ("unsupported", "error"): (2, 0),
}
"""Rule, severity → findings, and rows that they are true of, for the rows of one node."""

ARGUED = {
    ("h100-dgxc", "agentic/qwen3.5_fp8_h100.sh"): (
        "15 rows of `cluster:h100-dgxc` say no speculation, and upstream has the script with `_mtp` only: the bash"
        " launcher does not look, and holds a node for a container that finds no file to run"
    )
}
"""(Cluster, script) → why an error of this row is one."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> CheckInput:
    """The rows of one node of a checkout in which file names decide, on every cluster that their label can land on."""
    tree = judge().make_tree.make(tmp_path_factory.mktemp("rules") / "InferenceX")
    project = Project.open({"HOME": "/root"}, workspace=str(tree))
    masters = [str(tree / "configs" / f"{name}-master.yaml") for name in ("nvidia", "amd")]
    everything = inputs.gather_everything(project, masters)
    rows, evaluations = (
        [row for row in rows if not row.benchmark.multinode] for rows in (everything.rows, everything.evaluations)
    )
    return dataclasses.replace(everything, rows=rows, evaluations=evaluations, files=(), recipes=(), outside={})


@needs_shared
def test_every_defect_of_the_tree_is_found_and_nothing_else(world: CheckInput) -> None:
    counts, rows = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for one in check_everything(world):
        counts[one.rule, one.severity] += 1
        rows[one.rule, one.severity] += one.rows
    assert {key: (counts[key], rows[key]) for key in sorted(counts)} == OF_THE_TREE


@needs_shared
def test_a_row_whose_recording_is_good_has_no_error_but_for_those_argued(world: CheckInput) -> None:
    """Every landing, not only the recorded ones: the bash ran each of them but for the missing script."""
    assert {row.file.runner.name for row in world.rows if row.file is not None} == set(LAUNCHERS.values())
    refused = Counter[tuple[str, str]]()
    for row in world.rows:
        assert row.file is not None
        if row.plan is None:
            assert row.refused is not None
            refused[row.file.runner.name, row.refused.message.rpartition("/single_node/")[2]] += 1
        else:
            assert [one for one in row.plan.findings if one.severity == "error"] == [], row.place
    assert refused.keys() == ARGUED.keys() and refused.total() == 15
