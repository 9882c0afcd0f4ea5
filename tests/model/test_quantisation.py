"""What real checkpoints declare, and what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.model.weights import compare_precision, declared_quantisation

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}


def group(bits: int, kind: str, size: int | None, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": bits, "type": kind, "group_size": size}}},
        **more,
    }


# Name, config.json, and by precision asked for what the answer is. The declarations are those of the named checkpoints
# or of their producers, cut to what matters.
KNOWN: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "nvidia/MiniMax-M3-NVFP4",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}},
        {
            "fp4": "match",
            "nvfp4": "match",
            "mxfp4": "mismatch",
            "fp8": "mismatch",
            "bf16": "mismatch",
            "int4": "mismatch",
        },
    ),
    (
        "MiniMaxAI/MiniMax-M3-MXFP8",
        {"quantization_config": {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}},
        {"fp8": "match", "mxfp8": "match", "fp4": "mismatch"},
    ),
    (
        "MiniMax with NVFP4 experts",
        {"quantization_config": {"quant_method": "mxfp8", "moe_quant_algo": "NVFP4"}},
        {"fp4": "match", "fp8": "unknown", "bf16": "mismatch"},
    ),
    (
        "deepseek-ai/DeepSeek-R1-0528",
        {"quantization_config": FP8},
        {"fp8": "match", "fp4": "mismatch", "bf16": "mismatch"},
    ),
    (
        "deepseek-ai/DeepSeek-V4-Pro",
        {"model_type": "deepseek_v4", "expert_dtype": "fp4", "quantization_config": FP8},
        {"fp4": "match", "mxfp4": "match", "nvfp4": "mismatch", "fp8": "unknown"},
    ),
    (
        "DeepSeek-V4 with fp8 experts",
        {"model_type": "deepseek_v4", "expert_dtype": "fp8", "quantization_config": FP8},
        {"fp8": "match", "fp4": "mismatch"},
    ),
    ("DeepSeek-V4 that does not tell", {"model_type": "deepseek_v4", "quantization_config": FP8}, {"fp4": "unknown"}),
    (
        "openai/gpt-oss-120b",
        {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
        {"fp4": "match", "mxfp4": "match", "fp8": "mismatch"},
    ),
    (
        "moonshotai/Kimi-K2.5",
        {"text_config": {"quantization_config": group(4, "int", 32, format="pack-quantized")}},
        {"int4": "match", "fp4": "mismatch"},
    ),
    (
        "moonshotai/Kimi-K3",
        {"text_config": {"quantization_config": group(4, "float", 32, format="mxfp4-pack-quantized")}},
        {"fp4": "match", "mxfp4": "match", "int4": "mismatch"},
    ),
    (
        "a compressed-tensors NVFP4",
        {"quantization_config": group(4, "float", 16, format="nvfp4-pack-quantized")},
        {"fp4": "match", "nvfp4": "match"},
    ),
    (
        "a compressed-tensors of two formats",
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "float"}, "format": "nvfp4-pack-quantized"},
                    "group_1": {"weights": {"num_bits": 8, "type": "float"}, "format": "float-quantized"},
                },
            }
        },
        {"fp4": "match", "nvfp4": "match", "fp8": "unknown", "mxfp8": "mismatch"},
    ),
    (
        "a compressed-tensors whose format is of other groups",
        {"quantization_config": group(8, "float", None, format="nvfp4-pack-quantized")},
        {"fp8": "match", "fp4": "mismatch"},
    ),
    ("a compressed-tensors of a new kind", {"quantization_config": group(6, "float", 32)}, {"fp4": "unknown"}),
    ("a compressed-tensors of another kind", {"quantization_config": group(4, "nf", 32)}, {"fp4": "unknown"}),
    (
        "a modelopt of mixed precision that names no layer",
        {"quantization_config": {"quant_algo": "MIXED_PRECISION"}},
        {"fp4": "unknown"},
    ),
    ("a compressed-tensors FP8", {"quantization_config": group(8, "float", None)}, {"fp8": "match", "fp4": "mismatch"}),
    ("a compressed-tensors INT8", {"quantization_config": group(8, "int", None)}, {"int8": "match", "fp8": "mismatch"}),
    (
        "amd/DeepSeek-R1-0528-MXFP4",
        {"quantization_config": {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}},
        {"fp4": "match", "mxfp4": "match", "nvfp4": "mismatch"},
    ),
    (
        "a quark of fp8 attention",
        {
            "quantization_config": {
                "quant_method": "quark",
                "global_quant_config": {"weight": [{"dtype": "fp4"}]},
                "layer_quant_config": {"*attn*": {"weight": {"dtype": "fp8_e4m3"}}},
            }
        },
        {"fp4": "match", "fp8": "unknown"},
    ),
    (
        "a modelopt of mixed precision",
        {
            "quantization_config": {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"a.experts": {"quant_algo": "NVFP4"}, "a.attn": {"quant_algo": "FP8"}},
            }
        },
        {"fp4": "match", "fp8": "unknown", "int4": "mismatch"},
    ),
    ("an AWQ of modelopt", {"quantization_config": {"quant_algo": "W4A16_AWQ"}}, {"int4": "match", "fp4": "mismatch"}),
    ("an AWQ", {"quantization_config": {"quant_method": "awq", "bits": 4}}, {"int4": "match", "bf16": "mismatch"}),
    ("Qwen/Qwen3.5-397B-A17B", {"torch_dtype": "bfloat16"}, {"bf16": "match", "fp8": "mismatch", "fp4": "mismatch"}),
    ("a multimodal of bf16", {"text_config": {"dtype": "bfloat16"}}, {"bf16": "match"}),
    ("a half", {"torch_dtype": "float16"}, {"bf16": "mismatch", "fp16": "match"}),
    ("one that says nothing", {}, {"bf16": "unknown", "fp4": "unknown"}),
    (
        "a method not known here",
        {"quantization_config": {"quant_method": "exl9"}},
        {"fp4": "unknown", "bf16": "unknown"},
    ),
]


@pytest.mark.parametrize(
    ("config", "asked", "answer"),
    [
        pytest.param(config, asked, answer, id=f"{name}: {asked}")
        for name, config, answers in KNOWN
        for asked, answer in answers.items()
    ],
)
def test_known_checkpoints(config: dict[str, Any], asked: str, answer: str) -> None:
    identity, why = compare_precision(asked, declared_quantisation(config), {})
    assert identity == answer
    assert (why is None) == (identity == "match")


def test_modelopt_may_say_it_beside_the_config_only() -> None:
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    assert compare_precision("fp4", declared_quantisation({"torch_dtype": "bfloat16"}, beside), {})[0] == "match"
    assert declared_quantisation({}, beside).text == "nvfp4 by modelopt"


def test_two_files_that_contradict_each_other_are_unknown() -> None:
    quantisation = declared_quantisation({"quantization_config": FP8}, {"quantization": {"quant_algo": "NVFP4"}})
    assert compare_precision("fp8", quantisation, {})[0] == compare_precision("fp4", quantisation, {})[0] == "unknown"
    assert "fp8" in quantisation.text and "nvfp4" in quantisation.text


@pytest.mark.parametrize("asked", [None, "", "fp3", "w4a8"])
def test_a_precision_that_nobody_knows_is_never_a_match(asked: str | None) -> None:
    assert compare_precision(asked, declared_quantisation({"torch_dtype": "bfloat16"}), {})[0] == "unknown"


def test_the_precision_asked_for_may_be_in_capitals() -> None:
    assert compare_precision("FP8", declared_quantisation({"quantization_config": FP8}), {})[0] == "match"


def test_what_is_stored_overrules_what_is_declared() -> None:
    nvfp4 = declared_quantisation({"quantization_config": {"quant_algo": "NVFP4"}})
    plain = declared_quantisation({"torch_dtype": "bfloat16"})
    assert compare_precision("fp4", nvfp4, {"BF16": 1000, "F32": 4})[0] == "mismatch"
    assert compare_precision("fp4", nvfp4, {"BF16": 1000, "U8": 4})[0] == "match"
    assert compare_precision("bf16", plain, {"BF16": 10, "F8_E4M3": 1000})[0] == "unknown"
    assert compare_precision("bf16", plain, {"BF16": 1000, "I64": 8})[0] == "match"
    assert compare_precision("fp4", nvfp4, {"BF16": 10, "U8": 1000})[0] == "match"


KEYS = [
    *("quant_method", "quant_algo", "quantized_layers", "config_groups", "group_0", "weights", "num_bits", "type"),
    *(
        "format",
        "bits",
        "global_quant_config",
        "layer_quant_config",
        "weight",
        "dtype",
        "expert_dtype",
        "moe_quant_algo",
    ),
]
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["fp4", "NVFP4", "float", "int", "quark", "", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)
QUANTISATION = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=5)


@settings(max_examples=500, deadline=None)
@given(
    quantisation=QUANTISATION, beside=QUANTISATION, more=st.dictionaries(st.sampled_from([*KEYS, "text_config"]), ODD)
)
def test_no_declaration_is_too_odd_for_an_answer(quantisation: Any, beside: Any, more: dict[str, Any]) -> None:
    found = declared_quantisation({**more, "quantization_config": quantisation}, {"quantization": beside})
    for asked in ("fp4", "fp8", "bf16", "int4"):
        assert compare_precision(asked, found, {})[0] in ("match", "mismatch", "unknown")
