"""Benchmarks and recipes for tests: one that agrees with itself in everything, to be changed field by field."""

from __future__ import annotations

from typing import Any

from launcher.benchmark.benchmark import Benchmark, Role

IMAGE = "vllm/vllm-openai:tag"


def a_benchmark(**changes: Any) -> Benchmark:
    """1P1D DEP4/TP4 at 1k1k, concurrencies 4 and 16."""
    fields: dict[str, Any] = {
        "exp_name": "minimaxm3_1k1k",
        "image": IMAGE,
        "model": "MiniMaxAI/MiniMax-M3-MXFP8",
        "model_prefix": "minimaxm3",
        "precision": "fp8",
        "framework": "dynamo-vllm",
        "runner": "gb200",
        "concurrencies": (4, 16),
        "isl": 1024,
        "osl": 1024,
        "max_model_len": 2304,
        "disagg": True,
        "prefill": Role(1, 4, ep=4, dp_attention=True),
        "decode": Role(1, 4),
        "settings": {"CONFIG_FILE": "recipes/r.yaml"},
        "kv_p2p_transfer": "nixl",
    }
    return Benchmark(**{**fields, **changes})


def a_recipe() -> dict[str, Any]:
    """The recipe of `a_benchmark`."""
    engine = {"max-model-len": 2304}
    return {
        "name": "r",
        "model": {"path": "minimax-m3-mxfp8", "container": IMAGE, "precision": "fp8"},
        "resources": {
            "gpu_type": "gb200",
            "gpus_per_node": 4,
            "prefill_nodes": 1,
            "decode_nodes": 1,
            "prefill_workers": 1,
            "decode_workers": 1,
        },
        "frontend": {"type": "dynamo", "enable_multiple_frontends": False},
        "backend": {
            "type": "vllm",
            "vllm_config": {
                "prefill": {
                    **engine,
                    "tensor-parallel-size": 1,
                    "data-parallel-size": 4,
                    "enable-expert-parallel": True,
                },
                "decode": {**engine, "tensor-parallel-size": 4, "enable-expert-parallel": False},
            },
        },
        "benchmark": {"type": "sa-bench", "isl": 1024, "osl": 1024, "concurrencies": "4x16", "req_rate": "inf"},
    }
