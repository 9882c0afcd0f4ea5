"""Which number formats a checkpoint declares for its weights, and whether they are of the precision asked for.

Formats are named ``nvfp4 mxfp4 fp4 mxfp8 fp8 int4 int8 bf16 fp16 fp32``. Where each producer declares them:

==================  =======================================================================================
modelopt            ``quant_algo`` (NVFP4, MXFP8, FP8, W4A16_AWQ, MIXED_PRECISION with ``quantized_layers``), in
                    `config.json` or only in `hf_quant_config.json` (nvidia/DeepSeek-R1-NVFP4)
MiniMax             ``quant_method: mxfp8`` (MiniMaxAI/MiniMax-M3-MXFP8), ``moe_quant_algo`` for the experts
OpenAI              ``quant_method: mxfp4`` (gpt-oss)
DeepSeek            ``quant_method: fp8``; V4 adds ``expert_dtype: fp4 | fp8`` at the top level: one directory holds
                    fp8 linears and fp4 experts, and the matrices call that fp4
compressed-tensors  ``config_groups.*.weights`` with ``num_bits`` and ``type`` (Kimi-K2: int 4; Kimi-K3: float 4,
                    ``mxfp4-pack-quantized``), under ``text_config`` in multimodal models
AMD quark           ``global_quant_config.weight.dtype`` (fp4 is MXFP4)
==================  =======================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Identity = Literal["match", "mismatch", "unknown"]

_MEANT: dict[str, frozenset[str]] = {
    "fp4": frozenset({"fp4", "nvfp4", "mxfp4"}),
    "fp8": frozenset({"fp8", "mxfp8"}),
    **{name: frozenset({name}) for name in ("nvfp4", "mxfp4", "mxfp8", "int4", "int8", "bf16", "fp16", "fp32")},
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_TEXT_MODELS = ("text_config", "llm_config", "language_config")
_UNQUANTISED = frozenset({"bf16", "fp16", "fp32"})
_FLOATS = frozenset({"BF16", "F16", "F32", "F64"})


@dataclass(frozen=True)
class Quantisation:
    """The ``formats`` of the weights (empty: not known), and the same as ``text`` for people.

    ``experts`` is the format of the routed experts, where they have one of their own.
    """

    formats: frozenset[str]
    text: str
    experts: str | None = None


def declared(config: Mapping[str, Any], hf_quant_config: Mapping[str, Any] | None = None) -> Quantisation:
    """What `config.json` declares of the weights, and modelopt's `hf_quant_config.json` where there is one."""
    models = [config, *(part for key in _TEXT_MODELS if isinstance(part := config.get(key), dict))]
    found = next((quant for model in models if isinstance(quant := model.get("quantization_config"), dict)), None)
    beside = hf_quant_config.get("quantization") if hf_quant_config else None
    if not found and isinstance(beside, dict):
        found = beside
    if not found:
        name = next((str(value) for model in models if (value := model.get("torch_dtype") or model.get("dtype"))), None)
        dtype = _DTYPES.get((name or "").removeprefix("torch."))
        return Quantisation(frozenset({dtype}) if dtype else frozenset(), f"not quantised, {name or 'no dtype said'}")
    method, formats = _method_and_formats(found)
    if isinstance(beside, dict) and formats and (other := _method_and_formats(beside)[1]) and not formats & other:
        both = f"config.json says {'/'.join(formats)}, hf_quant_config.json {'/'.join(other)}"
        return Quantisation(frozenset(), both)
    experts = _experts(found, models)
    if not experts and str(config.get("model_type", "")).startswith("deepseek_v4") and "fp8" in formats:
        return Quantisation(frozenset(), "fp8, expert_dtype not said (an engine would take it for fp4)")
    stated = " + ".join(sorted(formats)) or "of a kind not known here"
    by = "" if method in formats else f" by {method}"
    return Quantisation(
        formats | ({experts} if experts else set()),
        f"{stated}{by}" + (f", experts {experts}" if experts else ""),
        experts,
    )


def identity(asked: str | None, found: Quantisation, bytes_by_dtype: Mapping[str, int]) -> tuple[Identity, str | None]:
    """Whether the weights are of the precision ``asked`` for (``fp4 fp8 bf16 int4``, or a format by its own name).

    Returns the identity and, unless it is a match, the reason. When a checkpoint has several formats, that of the
    experts decides, or else the narrowest. If the precision asked for is another one of them, the identity is unknown.
    ``bytes_by_dtype`` comes from the shards' headers (empty: not known); it overrules what contradicts it.
    """
    meant = _MEANT.get((asked or "").lower())
    if meant is None:
        return "unknown", f"precision {asked!r} is not known here" if asked else "no precision was asked for"
    if not found.formats:
        return "unknown", f"config.json does not tell ({found.text})"
    stored = sum(bytes_by_dtype.values())
    packed = stored - sum(count for dtype, count in bytes_by_dtype.items() if dtype in _FLOATS)
    if stored and not packed and not found.formats & _UNQUANTISED:
        return "mismatch", f"config.json says {found.text}, yet every tensor is stored as {'/'.join(bytes_by_dtype)}"
    if packed > stored / 2 and found.formats <= _UNQUANTISED:
        return "unknown", f"config.json says {found.text}, yet most of the weights are stored in another way"
    decisive = found.experts or min(found.formats, key=lambda name: (_bits(name), name))
    if decisive in meant:
        return "match", None
    if found.formats & meant:
        return "unknown", f"{asked} was asked for, and only a part of the weights is ({found.text})"
    return "mismatch", f"{asked} was asked for, and the weights are {found.text}"


def _method_and_formats(quant: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    method = str(quant.get("quant_method") or "modelopt").lower()
    return method, frozenset(_formats(method, quant))


def _bits(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _formats(method: str, quant: Mapping[str, Any]) -> Iterator[str]:
    algorithm = quant.get("quant_algo")
    if isinstance(algorithm, str) and algorithm:
        layers = quant.get("quantized_layers") if algorithm.upper() == "MIXED_PRECISION" else None
        for layer in layers.values() if isinstance(layers, dict) else [quant]:
            yield from _algorithm(str(layer.get("quant_algo")) if isinstance(layer, dict) else "")
    elif method == "quark":
        layered = quant.get("layer_quant_config")
        for part in (quant.get("global_quant_config"), *(layered.values() if isinstance(layered, dict) else ())):
            yield from _quark(part)
    elif isinstance(quant.get("config_groups"), dict):
        for group in quant["config_groups"].values():
            yield from _group(group, str(quant.get("format") or ""))
    elif (bits := quant.get("bits") or quant.get("w_bit")) in (2, 3, 4, 8):
        yield f"int{bits}"
    else:
        yield from _algorithm(method)


def _algorithm(name: str) -> Iterator[str]:
    """The format of a modelopt algorithm, or of a quant_method with the name of one."""
    upper = name.upper()
    for known in ("NVFP4", "MXFP4", "MXFP8", "INT4", "INT8", "FP4", "FP8"):
        if known in upper:
            yield known.lower()
            return
    if upper.startswith(("W4A16", "W4A8")):
        yield "int4"


def _group(group: Any, overall: str) -> Iterator[str]:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        return
    bits, kind = weights.get("num_bits"), weights.get("type")
    named = list(_algorithm(str(group.get("format") or overall)))
    if kind == "int" and bits in (4, 8):
        yield f"int{bits}"
    elif kind == "float" and bits in (4, 8):
        yield named[0] if named and _bits(named[0]) == bits else f"fp{bits}"


def _quark(part: Any) -> Iterator[str]:
    weights = part.get("weight") if isinstance(part, dict) else None
    for weight in weights if isinstance(weights, list) else [weights]:
        dtype = str(weight.get("dtype")) if isinstance(weight, dict) else ""
        if dtype == "fp4":
            yield "mxfp4"
        else:
            yield from _algorithm(dtype)


def _experts(quant: Mapping[str, Any], models: list[Mapping[str, Any]]) -> str | None:
    for holder in (quant, *models):
        if isinstance(algorithm := holder.get("moe_quant_algo"), str):
            return next(_algorithm(algorithm), None)
    for holder in (quant, *models):
        if isinstance(dtype := holder.get("expert_dtype"), str):
            return {"fp4": "mxfp4", **_DTYPES}.get(dtype) or next(_algorithm(dtype), None)
    return None
