"""A workspace with a script, a runner file of one lane and a context; `plan` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.benchmark.benchmark import AGENTIC, Benchmark, Role
from launcher.container.planned import ContainerJob, ContainerResolved
from launcher.container.resolve import ContainerPlanner
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.runner.file import RunnerFile

FIXED = "benchmarks/single_node/fixed_seq_len"

RUNNER = """\
name: tiny
sku: h100
runners: [tiny]
labels: [tiny-label]
scheduler: {partition: p, account: a, time-limit: "3:00:00"}
node: {gpus: 8, arch: x86_64}
storage: [{path: /shared, kind: nfs}]
images: {directory: /shared/squash, lock-wait: 600}
models:
  - {cache: /shared/hf-hub-cache}
lanes:
  - kind: container
    when: {nodes: single}
    container:
      script: {names: ["{model}_{precision}_h100{spec}.sh"]}
"""


def a_row(**changes: Any) -> Benchmark:
    """A benchmark of one node: dsr1 fp8 by sglang on 4 GPUs at 1k1k, one concurrency."""
    fields: dict[str, Any] = {
        "exp_name": "dsr1_1k1k",
        "image": "lmsysorg/sglang:v0.5.12-cu130",
        "model": "deepseek-ai/DeepSeek-R1-0528",
        "model_prefix": "dsr1",
        "precision": "fp8",
        "framework": "sglang",
        "runner": "tiny-label",
        "concurrencies": (16,),
        "isl": 1024,
        "osl": 1024,
        "max_model_len": 2304,
        "multinode": False,
        "prefill": Role(1, 4),
    }
    return Benchmark(**{**fields, **changes})


def an_agentic_row(**changes: Any) -> Benchmark:
    """The same, replaying a trace for an hour."""
    lengths: dict[str, Any] = dict.fromkeys(("isl", "osl", "max_model_len"))
    more = {"scenario": AGENTIC, "duration": 3600, "kv_offloading": "none", "total_cpu_dram_gb": 0}
    return a_row(**{**lengths, **more, **changes})


class RowPlanner:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.runner = RUNNER
        self.context: dict[str, Any] = {}
        self.host: dict[str, str] = {}
        self.script("dsr1_fp8_h100.sh")

    def edit(self, old: str, new: str) -> RowPlanner:
        """Replace a text of the runner file."""
        assert self.runner.count(old) == 1, old
        self.runner = self.runner.replace(old, new)
        return self

    def lane(self, text: str) -> RowPlanner:
        """More lines of `container`."""
        self.runner = self.runner.replace("    container:\n", f"    container:\n      {text}\n")
        return self

    def script(self, name: str, text: str | bytes = "#!/usr/bin/env bash\n", folder: str = FIXED) -> Path:
        """Write a script of the workspace, for a planner that has read none yet."""
        self.planner = ContainerPlanner(shipped("recipes"))
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def resolved(self, benchmark: Benchmark) -> ContainerResolved:
        """The plan, and what the rules of `launcher check` look at."""
        fields: dict[str, Any] = {
            "workspace": str(self.root),
            "runner_name": "tiny_07",
            "run_key": "77-1-abc",
            "today": "20260102",
            "host": self.host,
            **self.context,
        }
        file = RunnerFile(Document("tiny.yaml", self.runner))
        return self.planner.plan(benchmark, file, Context(**fields))

    def plan_of(self, benchmark: Benchmark) -> Plan:
        return self.resolved(benchmark).plan

    def plan(self, **changes: Any) -> Plan:
        return self.plan_of(a_row(**changes))

    def job(self, **changes: Any) -> ContainerJob:
        return ContainerJob.of(self.plan(**changes))

    def job_of(self, benchmark: Benchmark) -> ContainerJob:
        return ContainerJob.of(self.plan_of(benchmark))
