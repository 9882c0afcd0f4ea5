"""summary.json holds everything that is known, and says what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.model.checkpoint import examine
from launcher.rehearsal.model import ensure_model
from launcher.result.collect import Collected, Problem
from launcher.result.summary import SCHEMA_VERSION, summary
from launcher.result.validate import Point

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
GOOD = Point(
    concurrency=4, completed=40, path=Path("/out/r4.json"), gpus=16, total_throughput=960.5, ttft_median_ms=84.2
)


def made(**changes: Any) -> dict[str, Any]:
    collected = Collected(
        points=(GOOD,),
        problems=(
            Problem("completed is 0", 16, "invalid"),
            Problem("no result below /logs", 64),
            Problem("LOGS in the way"),
        ),
        doubts=("odd",),
    )
    given: dict[str, Any] = {
        "run_id": "20261121-1",
        "runner": "gb200-nv",
        "benchmark": BENCHMARK,
        "state": "COMPLETED",
        "job_id": "4711",
        "srt_slurm_sha": "a" * 40,
        "images": [
            {"reference": "vllm/vllm-openai:v0.23.0", "digest": "sha256:ab", "squash": "/sq/v.sqsh", "bytes": 9}
        ],
        "collected": collected,
        "times": {"started": 1.0, "ended": 2.0},
    }
    return summary(**{**given, **changes})


def test_every_concurrency_asked_for_has_an_entry() -> None:
    points = made()["points"]
    assert [(point["concurrency"], point["state"]) for point in points] == [(4, "ok"), (16, "invalid"), (64, "missing")]
    assert points[0]["total_throughput"] == 960.5
    assert points[0]["path"] == "/out/r4.json"
    assert points[1]["reason"] == "completed is 0"


def test_without_a_collection_all_points_are_missing() -> None:
    document = made(collected=None, state="TIMEOUT", job_id=None, images=(), model=None, times=None)
    assert {point["state"] for point in document["points"]} == {"missing"}
    assert document["job"] == {"id": None, "state": "TIMEOUT"}
    assert (document["model"], document["images"], document["times"]) == (None, [], {})


def test_it_is_json_and_says_what_ran(tmp_path: Path) -> None:
    verdict = examine(ensure_model(tmp_path / "model", "fp4"), precision="fp4")
    document = json.loads(json.dumps(made(model=verdict.as_dict(), problems=("the job was preempted once",))))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["srt_slurm"] == {"sha": "a" * 40}
    assert document["images"][0]["digest"] == "sha256:ab"
    assert (document["model"]["path"], document["model"]["identity"]) == (str(tmp_path / "model"), "match")
    assert document["benchmark"]["topology"] == "2P1D DEP4/TP8"
    assert document["benchmark"]["recipe"] == "recipes/x.yaml"
    assert document["problems"][0] == "the job was preempted once"
    assert "concurrency 16: completed is 0" in document["problems"]
    assert document["rehearsal"] is False


def test_a_single_rehearsed_point_makes_it_a_rehearsal() -> None:
    assert made(collected=Collected(points=(replace(GOOD, rehearsal=True),)))["rehearsal"] is True
    assert made(rehearsal=True)["rehearsal"] is True


def test_a_point_measured_twice_is_not_shown_as_good() -> None:
    collected = Collected(points=(GOOD,), problems=(Problem("measured twice", 4, "invalid"),))
    assert made(collected=collected)["points"][0]["state"] == "invalid"


def test_an_eval_alone_asks_for_no_points() -> None:
    assert made(benchmark=replace(BENCHMARK, eval_only=True), collected=None)["points"] == []
