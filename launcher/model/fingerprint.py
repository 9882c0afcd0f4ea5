"""Which model a checkpoint is: architecture, sizes and quantisation, beside what is known of the right one.

A fingerprint is a flat mapping. Its keys are those of `config.json` (a multimodal model's sizes are those of its text
model), ``architecture``, ``quantisation``, and, where the weights were looked at, ``weights`` (a hash of all tensors'
names, dtypes and shapes). One is declared in a runner file, learnt when the checkpoint was staged or adopted (then it
stands in `.complete.json`), or that of the hub's files at a pinned commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from launcher.core.errors import ModelError
from launcher.model.weights import Header, Quantisation, compare_precision, declared_quantisation, text_models

Fingerprint = Mapping[str, str | int | float]

_SIZES = (
    *("hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "moe_intermediate_size", "vocab_size", "num_experts"),
    *("n_routed_experts", "num_local_experts", "n_shared_experts", "num_experts_per_tok"),
    *("kv_lora_rank", "q_lora_rank"),
)


def fingerprint_of(
    config: Mapping[str, Any], found: Quantisation, headers: Mapping[str, Header] | None = None
) -> dict[str, str | int | float]:
    """What the files say of themselves; what they do not say is left out."""
    said: dict[str, str | int | float] = {}
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        said["architecture"] = str(architectures[0])
    if isinstance(config.get("model_type"), str):
        said["model_type"] = config["model_type"]
    for key in _SIZES:
        sizes = (model.get(key) for model in text_models(config))
        if (size := next((s for s in sizes if isinstance(s, int) and not isinstance(s, bool)), None)) is not None:
            said[key] = size
    if found.formats:
        said["quantisation"] = "+".join(sorted(found.formats))
    if headers:
        layouts = sorted(header.layout for header in headers.values())
        said["weights"] = hashlib.sha256("\n".join(layouts).encode()).hexdigest()
    return said


CONFIGS = ("config.json", "hf_quant_config.json")
"""The files that say what a model is."""


def fingerprint_of_files(files: Mapping[str, bytes]) -> dict[str, str | int | float]:
    """The fingerprint by the content of `CONFIGS`, as a repository has them. Raises ModelError."""
    config, beside = read_configs(files)
    return fingerprint_of(config, declared_quantisation(config, beside))


def read_configs(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `CONFIGS` hold, the second where there is one. Raises ModelError."""
    try:
        read = {name: json.loads(content) for name, content in files.items()}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"a file of the repository cannot be parsed: {error}") from None
    config, beside = (read.get(name) for name in CONFIGS)
    if not isinstance(config, dict):
        raise ModelError("the repository has no config.json")
    return config, beside if isinstance(beside, dict) else None


def contradictions(wanted: Fingerprint, found: Fingerprint, source: str) -> list[str]:
    """Where the files say something else than ``source``, which is shown: a field with both values each."""
    said = []
    for key, value in wanted.items():
        there = found.get(key, "not said")
        if key == "quantisation" and there != value and there != "not said":
            formats = frozenset(str(there).split("+"))
            if compare_precision(str(value), Quantisation(formats, str(there)), {})[0] == "match":
                continue
        if key == "weights" and there != value:
            said.append(f"the tensors have other names, types or shapes than by {source}")
        elif there != value:
            said.append(f"{key} is {_shown(there)}, and {_shown(value)} by {source}")
    return said


def _shown(value: object) -> str:
    """A value for a message: short and of one line, since it comes from somebody else's file."""
    return repr(value)[:100].strip("'") if isinstance(value, str) else str(value)
