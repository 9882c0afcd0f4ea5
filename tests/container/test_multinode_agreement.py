"""Benchmarks of several nodes against what the bash launchers were seen to do: every recorded case, and every row that
AMD's, llm-d's and TileRT's lanes serve (reference/single-node.md, §0, §3, §4)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.expand import Selection
from launcher.container.multinode_job_script import render
from launcher.container.planned import MultinodeJob
from launcher.core.errors import ConfigError
from launcher.project import Project
from launcher.runner.container_schema import KINDS
from tests.container.test_agreement import as_printed, compared, judge, shared
from tests.shared import needs_shared

pytestmark = needs_shared

AGREE = 11

ROWS = {
    ("amd-multinode", "sglang-disagg", "fixed-seq-len", False): 34,
    ("amd-multinode", "sglang-disagg", "agentic-coding", False): 12,
    ("amd-multinode", "atom-disagg", "fixed-seq-len", False): 2,
    ("llm-d", "llmd-vllm", "fixed-seq-len", False): 3,
    ("tilert", "tilert", "fixed-seq-len", False): 2,
}
"""Kind, framework, scenario, whether an evaluation → rows of the master files (§0)."""
EVALUATIONS = {"amd-multinode": 27, "llm-d": 2, "tilert": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = judge().make_tree.make(tmp_path_factory.mktemp("agreement") / "InferenceX")
    return made


def cases() -> list[dict[str, Any]]:
    found = judge().load(shared() / "cases-single" / "cases.jsonl.gz")
    return [case for case in found if judge().kind_of(case) in KINDS]


def printed(case: dict[str, Any], tree: Path) -> dict[str, Any]:
    here = {name: str(value).replace("$WORKSPACE", str(tree)) for name, value in case["environment"].items()}
    return as_printed(Project.open({**here, "HOME": "/root-of-nobody"}, workspace=str(tree)).plan_from_environment())


def test_every_recorded_case_agrees(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Root:
        pw_name = "root"  # who the recording ran as

    monkeypatch.setattr("launcher.project.pwd.getpwuid", lambda uid: Root)
    differ = {case["name"]: wrong for case in cases() if (wrong := compared(case, printed(case, tree), tree))}
    assert differ == {} and len(cases()) == AGREE


CHANGES: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("sglang-disagg", ("job", "nodes"), 9),
    ("sglang-disagg", ("job", "checks"), ["model"]),
    ("sglang-disagg", ("job", "containers", 0, "environment", "PREFILL_TP_SIZE"), "16"),
    ("sglang-disagg", ("job", "containers", 0, "environment", "MORI_RDMA_TC"), "104"),
    ("sglang-disagg", ("job", "containers", 0, "environment", "HF_TOKEN"), "SECRET-HF"),
    ("sglang-disagg", ("job", "containers", 0, "passes"), []),
    ("atom-disagg", ("job", "containers", 0, "options", "flags"), ["--privileged"]),
    ("atom-disagg", ("submit", "argv"), ["--nodes=3"]),
    ("tilert", ("job", "containers", 1, "role"), "decode"),
    ("llmd", ("job", "containers", 0, "mounts", "/models"), "/mnt/numa1/models/DeepSeek-V4-Pro"),
    ("llmd", ("results", "required"), ["*.json"]),
]


@pytest.mark.parametrize(("lane", "keys", "value"), CHANGES)
def test_the_judge_would_see_a_difference(tree: Path, lane: str, keys: tuple[str | int, ...], value: Any) -> None:
    case = next(case for case in cases() if f"/{lane}" in case["name"] and "eval" not in case["name"])
    plan = printed(case, tree)
    before = len(compared(case, plan, tree))
    holder: Any = plan
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    assert len(compared(case, plan, tree)) > before


def test_every_row_is_served(tree: Path, tmp_path: Path) -> None:
    """And each one's script can be rendered, for as many nodes as the row says."""
    project, found, evaluations = Project.open({}, workspace=str(tree)), Counter(), Counter()
    matrix = project.matrix([str(tree / "configs" / f"{name}-master.yaml") for name in ("nvidia", "amd")])
    for evals in ("none", "only"):
        for entry in matrix.entries(Selection(nodes="multi", evals=evals)):
            row = entry.benchmark
            if not row.framework.endswith("-disagg") and row.framework not in ("llmd-vllm", "tilert"):
                continue
            (file,) = (file for file in project.fleet.readable() if row.runner in file.runner.labels)
            plan = project.plan_by_hand(row, file.runner.name)
            job = MultinodeJob.of(plan)
            assert plan.errors == ()
            assert job.job.nodes == int(row.settings["PREFILL_NODES"]) + int(row.settings["DECODE_NODES"])
            assert render(plan, tmp_path, str(tree)).count("\nmain ") == 1
            if row.eval_only:
                evaluations[plan.kind] += 1
            else:
                found[plan.kind, row.framework, row.scenario, False] += 1
    assert found == ROWS and evaluations == Counter(EVALUATIONS)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("benchmarks/multi_node/dsr1_fp8_mi355x_sglang-disagg.sh", "dsr1_fp8_mi355x_sglang-disagg.sh"),
        ("benchmarks/multi_node/amd_utils/server.sh", "amd_utils/server.sh"),
        ("benchmarks/multi_node/amd_utils/models.yaml", "the scripts know no model DeepSeek-R1-0528-DI"),
    ],
)
def test_a_row_whose_scripts_are_not_there_is_refused(tmp_path: Path, path: str, said: str) -> None:
    tree = judge().make_tree.make(tmp_path / "InferenceX")
    (tree / path).unlink()
    case = next(case for case in cases() if "dsr1" in case["name"])
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        printed(case, tree)
