"""summary.json holds everything that is known, and says what is missing."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.core.shipped import shipped
from launcher.model.checkpoint import examine
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.project import plan_benchmark
from launcher.rehearsal.stand_ins import ensure_model
from launcher.result.collect import CollectedResults, Problem
from launcher.result.summary import SCHEMA_VERSION, Provenance, summary
from launcher.result.validate import MeasuredPoint
from launcher.runner.fleet import Fleet
from launcher.srtctl.locate import RecipeFinder
from tests.benchmarks import a_benchmark

BENCHMARK = Benchmark(
    exp_name="minimaxm3_8k1k",
    image="vllm/vllm-openai:v0.23.0",
    model="nvidia/MiniMax-M3-NVFP4",
    model_prefix="minimaxm3",
    precision="fp4",
    framework="dynamo-vllm",
    runner="gb200",
    concurrencies=(4, 16, 64),
    isl=8192,
    osl=1024,
    disagg=True,
    prefill=Role(workers=2, tp=4, ep=4, dp_attention=True),
    decode=Role(workers=1, tp=8),
    settings={"CONFIG_FILE": "recipes/x.yaml"},
)
GOOD = MeasuredPoint(
    concurrency=4, completed=40, path=Path("/out/r4.json"), gpus=16, total_throughput=960.5, ttft_median_ms=84.2
)


@functools.cache
def _plan() -> Plan:
    context = Context("/workspace", "gb200-nv_0", run_key="20261121-1", today="20260101")
    return plan_benchmark(a_benchmark(), Fleet([shipped("runners")]).get("gb200-nv"), RecipeFinder(), context)


def a_plan(**changes: Any) -> Plan:
    return replace(_plan(), **{"benchmark": BENCHMARK, **changes})


COLLECTED = CollectedResults(
    points=(GOOD,),
    problems=(
        Problem("completed is 0", 16, "invalid"),
        Problem("no result below /logs", 64),
        Problem("LOGS in the way"),
    ),
    doubts=("odd",),
)
USED = Provenance(
    srt_slurm_sha="a" * 40,
    images=[{"reference": "vllm/vllm-openai:v0.23.0", "digest": "sha256:ab", "squash": "/sq/v.sqsh", "bytes": 9}],
)


def made(collected: CollectedResults = COLLECTED, *, plan: Plan | None = None, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "state": "COMPLETED",
        "job_id": "4711",
        "used": USED,
        "times": {"started": 1.0, "ended": 2.0},
    }
    return summary(plan or a_plan(), collected, **{**given, **changes})


def test_every_concurrency_asked_for_has_an_entry() -> None:
    points = made()["points"]
    assert [(point["concurrency"], point["state"]) for point in points] == [(4, "ok"), (16, "invalid"), (64, "missing")]
    assert points[0]["total_throughput"] == 960.5
    assert points[0]["path"] == "/out/r4.json"
    assert points[1]["reason"] == "completed is 0"


def test_without_a_collection_all_points_are_missing() -> None:
    document = made(CollectedResults(), used=Provenance(), state="TIMEOUT", job_id=None, times={})
    assert {point["state"] for point in document["points"]} == {"missing"}
    assert document["job"] == {"id": None, "state": "TIMEOUT"}
    assert (document["model"], document["images"], document["times"]) == (None, [], {})


def test_it_is_json_and_says_what_ran(tmp_path: Path) -> None:
    verdict = examine(ensure_model(tmp_path / "model", "fp4"), precision="fp4")
    document = json.loads(
        json.dumps(made(used=replace(USED, model=verdict.as_dict()), problems=("the job was preempted once",)))
    )
    assert document["schema_version"] == SCHEMA_VERSION
    assert (document["run_id"], document["runner"]) == ("20261121-1", "gb200-nv")
    assert document["srt_slurm"] == {"sha": "a" * 40}
    assert document["images"][0]["digest"] == "sha256:ab"
    assert (document["model"]["path"], document["model"]["identity"]) == (str(tmp_path / "model"), "match")
    assert document["benchmark"]["topology"] == "2P1D DEP4/TP8"
    assert document["benchmark"]["recipe"] == "recipes/x.yaml"
    assert document["problems"][0] == "the job was preempted once"
    assert "concurrency 16: completed is 0" in document["problems"]
    assert document["rehearsal"] is False


def test_a_single_rehearsed_point_makes_it_a_rehearsal() -> None:
    assert made(CollectedResults(points=(replace(GOOD, rehearsal=True),)))["rehearsal"] is True
    assert made(used=replace(USED, stand_ins=True))["rehearsal"] is True


def test_a_point_measured_twice_is_not_shown_as_good() -> None:
    collected = CollectedResults(points=(GOOD,), problems=(Problem("measured twice", 4, "invalid"),))
    assert made(collected)["points"][0]["state"] == "invalid"


def test_an_eval_alone_asks_for_no_points() -> None:
    assert made(CollectedResults(), plan=a_plan(benchmark=replace(BENCHMARK, eval_only=True)))["points"] == []
