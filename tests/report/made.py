"""Aggregates and run records that are made up, as many as are asked for, for tests and for scripts/measure_report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "run/records/succeeded"

HARDWARE = (
    ("gb200", "dynamo-vllm", "fp8", "none"),
    ("b200-nv", "dynamo-trt", "fp4", "mtp"),
    ("h200", "vllm", "fp8", "none"),
)
LENGTHS = ((1024, 1024), (8192, 1024))
CONCURRENCIES = (4, 16, 64, 256)

BEGAN = 1_795_700_000.0


def numbers(concurrency: int, speed: float) -> dict[str, float]:
    """What a server of this speed measures, as an aggregate has it: more of one is less of the other."""
    tpot = 0.004 * (1 + concurrency / 48) / speed
    tput = 2 * concurrency / tpot / 12
    ttft = 0.02 + concurrency * 0.002
    found = {"tput_per_gpu": tput, "output_tput_per_gpu": tput * 0.6, "input_tput_per_gpu": tput * 1.3}
    for name, factor in (("median", 1.0), ("p90", 1.3), ("p99", 1.6)):
        found |= {f"{name}_ttft": ttft * factor, f"{name}_tpot": tpot * factor, f"{name}_itl": tpot * factor}
        found |= {f"{name}_intvty": 1 / tpot / factor, f"{name}_e2el": (ttft + tpot * 1024) * factor}
    return found


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Aggregates of several nodes, disaggregated: all different points, in several panels and curves."""
    made = 0
    for workers in range(1, count + 1):
        for config, (isl, osl), tp, concurrency in product(HARDWARE, LENGTHS, (4, 8), CONCURRENCIES):
            if made == count:
                return
            made += 1
            yield row(config, (isl, osl), (workers, tp), concurrency)


def row(
    config: tuple[str, str, str, str] = HARDWARE[0],
    lengths: tuple[int, int] = LENGTHS[0],
    shape: tuple[int, int] = (1, 4),
    concurrency: int = 4,
    **changes: Any,
) -> dict[str, Any]:
    """One aggregate; ``shape`` is workers and TP of both roles."""
    hardware, framework, precision, method = config
    workers, tp = shape
    roles = {
        f"{side}_{name}": value
        for side in ("prefill", "decode")
        for name, value in {
            "tp": tp, "pp": 1, "dcp_size": 1, "pcp_size": 1, "ep": tp, "dp_attention": "false", "num_workers": workers,
        }.items()
    }  # fmt: skip
    speed = 1.0 + 0.1 * HARDWARE.index(config) + 0.02 * tp - 0.03 * workers % 0.5 if config in HARDWARE else 1.0
    return {
        "hw": hardware, "conc": concurrency, "image": f"vllm/{framework}:v1", "model": "org/Model-X",
        "infmax_model_prefix": "minimaxm3", "framework": framework, "precision": precision, "spec_decoding": method,
        "disagg": True, "recipe_fingerprint": "", "isl": lengths[0], "osl": lengths[1], "is_multinode": True, **roles,
        "num_prefill_gpu": workers * tp, "num_decode_gpu": workers * tp,
        **numbers(concurrency * (1 + lengths[0] // 4096), speed), **changes,
    }  # fmt: skip


def write_rows(directory: Path, made: Sequence[dict[str, Any]]) -> None:
    """Aggregates as a downloaded artifact tree has them, a directory each."""
    for number, one in enumerate(made):
        place = directory / f"bmk_point{number}"
        place.mkdir(parents=True)
        (place / f"agg_point{number}.json").write_text(json.dumps(one))


def write_runs(state: Path, jobs: int, concurrencies: Sequence[int] = CONCURRENCIES, **changes: Any) -> list[str]:
    """Records of good runs in a state directory, one job after the other; their ids."""
    plan, summary, run = (json.loads((RECORD / f"{name}.json").read_text()) for name in ("plan", "summary", "run"))
    template = next(point for point in summary["points"] if point["state"] == "ok")
    ids = []
    for number in range(jobs):
        config, (isl, osl) = HARDWARE[number % 3], LENGTHS[number // 3 % 2]
        workers, began = 1 + number // 6, BEGAN + 600.0 * number
        name = f"1126-1200-minimaxm3-{workers}p{workers}d-{number:04x}"
        ids.append(name)
        benchmark = {
            **plan["benchmark"], "runner": config[0], "framework": config[1], "precision": config[2],
            "spec_decoding": config[3], "isl": isl, "osl": osl, "concurrencies": list(concurrencies),
        }  # fmt: skip
        benchmark["prefill"] = {**benchmark["prefill"], "workers": workers}
        benchmark["decode"] = {**benchmark["decode"], "workers": workers}
        points = []
        for i, concurrency in enumerate(concurrencies):
            values = numbers(concurrency * (1 + isl // 4096), 1 + 0.1 * (number % 3) - 0.03 * workers % 0.5)
            measured = {
                f"{family}_{statistic}_ms": values[f"{statistic}_{family}"] * 1000
                for family in ("ttft", "tpot", "itl", "e2el")
                for statistic in ("median", "p99")
            }
            ended = began + 400 + 60 * (i + 1)
            points.append(
                {
                    **template, **measured, "concurrency": concurrency, "rehearsal": False, "ended": ended,
                    "duration_s": 50.0, "throughput_per_gpu": values["tput_per_gpu"],
                    "output_throughput_per_gpu": values["output_tput_per_gpu"],
                    "path": str(state / "results.json"),
                }
            )  # fmt: skip
        end = began + 430 + 60 * len(concurrencies)
        job = {
            **run["job"], "id": str(4000 + number), "submitted": began + 20, "started": began + 90 + 37 * (number % 5),
            "ended": end, "nodes": f"node[{number % 9 + 1:02}-{number % 9 + 3:02}]", "state": "COMPLETED", "over": True,
        }  # fmt: skip
        directory = state / "runs" / name
        directory.mkdir(parents=True)
        documents = {
            "run": {**run, "id": name, "commit": "c0" * 20, "created": began, "ended": end + 5, "job": job},
            "plan": {**plan, "run_key": name, "benchmark": benchmark},
            "summary": {**summary, "run_id": name, "rehearsal": False, "points": points},
        }
        for kind, document in documents.items():
            (directory / f"{kind}.json").write_text(json.dumps({**document, **changes.get(kind, {})}))
    (state / "results.json").write_text("{}")
    return ids


def evaluation(concurrency: int, task: str = "gsm8k", **changes: Any) -> dict[str, Any]:
    """A good evaluation as ``summary.json`` has it."""
    return {
        "concurrency": concurrency, "task": task, "state": "ok", "reason": None,
        "score": 0.95, "score_name": "em_strict", "score_se": 0.006,
        "em_strict": 0.95, "em_flexible": 0.96, "n_eff": 1319, "threshold": 0.9, "rehearsal": False, **changes,
    }  # fmt: skip


def write_evaluation(directory: Path, scores: dict[str, float], rehearsal: bool = False, **meta: Any) -> None:
    """An evaluation's artifact: lm-eval's results of these scores by task, none where there are none."""
    directory.mkdir(parents=True)
    values = {"infmax_model_prefix": "minimaxm3", "hw": "h200", "framework": "vllm", "precision": "fp8", "tp": 8,
              "ep": 1, "dp_attention": False, "conc": 64, "isl": 8192, "osl": 1024, "spec_decoding": "none",
              **meta}  # fmt: skip
    (directory / "meta_env.json").write_text(json.dumps(values))
    filters = [{"name": "strict-match"}, {"name": "flexible-extract"}]
    result = {
        "lm_eval_version": "0.4", "model_name": "org/Model-X", **({"rehearsal": True} if rehearsal else {}),
        "results": {task: {f"exact_match,{one['name']}": score for one in filters} for task, score in scores.items()},
        "configs": {task: {"metric_list": [{"metric": "exact_match"}], "filter_list": filters} for task in scores},
        "n-samples": {task: {"original": 1319, "effective": 1319} for task in scores},
    }  # fmt: skip
    if scores:
        (directory / f"results_x_conc{values['conc']}.json").write_text(json.dumps(result))
