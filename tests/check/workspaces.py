"""A small world that `launcher check` has nothing to say about, to be spoilt in one thing at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from launcher.check import inputs
from launcher.check.inputs import HasCommit
from launcher.check.report import check_everything
from launcher.core.finding import Finding
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.project import Project, plan_benchmark
from launcher.runner.file import RunnerFile
from launcher.srtctl.locate import RecipeFinder
from launcher.srtctl.recipe import dump
from tests.benchmarks import IMAGE, a_benchmark, a_recipe

V50 = "e4019633c9e2bc25f38c44b81edf52bb0504d937"
Q2 = "deb1dfd9934398664f92d194169c183e009da83b"
TODAY = date(2026, 8, 22)

RUNNER = f"""\
name: tiny
sku: gb200
runners: [tiny]
labels: [tiny-rack]
scheduler: {{partition: p, account: a}}
node: {{gpus: 4, count: 8, arch: aarch64}}
storage: [{{path: /lustre, kind: lustre}}, {{path: /nvme, kind: node-local, seen-by: [compute]}}]
images: {{directory: /squash, aliases: [dynamo-vllm], helpers: {{nginx-sqsh: "nginx:1.27.4"}}}}
checkout: {{directory: "{{workspace}}", cache: /cache}}
repositories: {{nvidia: "https://example.org/srt-slurm.git"}}
models:
  - {{when: {{prefix: minimaxm3, precision: fp8}}, path: /lustre/A, alias: minimax-m3-mxfp8, also: [mm3]}}
lanes:
  - repository: nvidia
    ref: v1.0.50
    sha: {V50}
"""

MATRIX = f"""\
minimaxm3-fp8-gb200-dynamo-vllm:
  image: {IMAGE}
  model: MiniMaxAI/MiniMax-M3-MXFP8
  model-prefix: minimaxm3
  runner: tiny-rack
  precision: fp8
  framework: dynamo-vllm
  kv-p2p-transfer: nixl
  multinode: true
  disagg: true
  scenarios:
    fixed-seq-len:
    - isl: 1024
      osl: 1024
      search-space:
      - conc-list: [4, 16]
        prefill:
          {{num-worker: 1, tp: 4, ep: 4, dp-attn: true, additional-settings: ["CONFIG_FILE=recipes/vllm/r.yaml"]}}
        decode: {{num-worker: 1, tp: 4, ep: 1, dp-attn: false}}
"""

Change = Callable[[dict[str, Any]], None]


def put(*path: str, value: Any) -> Change:
    """A change of a recipe: one value."""

    def change(recipe: dict[str, Any]) -> None:
        for key in path[:-1]:
            recipe = recipe.setdefault(key, {})
        recipe[path[-1]] = value

    return change


def a_plan(
    root: Path, change: Change | None = None, *, runner: str = RUNNER, context: Mapping[str, Any] = {}, **row: Any
) -> Plan:
    """The plan of `a_benchmark` with a recipe that was changed, on a runner file."""
    recipe = copy.deepcopy(a_recipe())
    if change is not None:
        change(recipe)
    file = root / "recipes/vllm/r.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump(recipe))
    asked = {"settings": {"CONFIG_FILE": "recipes/vllm/r.yaml"}, **row}
    fields: dict[str, Any] = {"workspace": str(root), "runner_name": "tiny_1", "run_key": "77-1-a", "today": "20260822"}
    where = root / "runners/tiny.yaml"
    where.parent.mkdir(exist_ok=True)
    where.write_text(runner)
    finder = RecipeFinder(None, [root / "recipes"])
    return plan_benchmark(a_benchmark(**asked), RunnerFile.read(where), finder, Context(**{**fields, **context}))


class CheckedWorkspace:
    """A workspace with a matrix, runner files and recipes, checked as a whole."""

    overlay = "benchmarks/multi_node/srt-slurm-recipes/vllm"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("runners/tiny.yaml", RUNNER)
        self.write("configs/t-master.yaml", MATRIX)
        self.recipe("r.yaml")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def recipe(self, name: str, document: Mapping[str, Any] | None = None) -> Path:
        text = dump(a_recipe() if document is None else document)
        return self.write(f"{self.overlay}/{name}", text)

    def check(
        self,
        *,
        today: date = TODAY,
        has_commit: HasCommit = lambda url, sha: None,
        trees: str | None = None,
        recipes: str | None = None,
    ) -> list[Finding]:
        project = Project.open(
            {},
            workspace=str(self.root),
            state=str(self.root / "state"),
            srt_slurm=str(self.root / trees) if trees else None,
            recipes=str(self.root / recipes) if recipes else None,
        )
        given = inputs.gather_everything(project, [str(self.root / "configs/t-master.yaml")])
        found = check_everything(dataclasses.replace(given, today=today, has_commit=has_commit))
        # what is shipped with the launcher is looked at beside the workspace, and is not its subject
        return [one for one in found if one.file.startswith(str(self.root))]

    def rules(self, **how: Any) -> set[str]:
        return {one.rule for one in self.check(**how)}
