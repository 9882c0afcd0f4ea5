"""Which model a checkpoint is: its fingerprint (architecture, sizes, quantisation) beside that of the right one.

A fingerprint is a flat mapping. Its keys are those of `config.json` (the sizes of a multimodal model are those of its
text model), ``architecture``, ``quantisation``, and, if the weights were read, ``weights`` (a hash of all tensors'
names, dtypes and shapes). The right one is declared in a runner file, was recorded when the checkpoint was staged or
adopted (in `.complete.json`), or is that of the hub's files at a pinned commit.
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
    config: Mapping[str, Any], quantisation: Quantisation, headers: Mapping[str, Header] | None = None
) -> dict[str, str | int | float]:
    """The fingerprint that the files state; what they do not state is left out."""
    fields: dict[str, str | int | float] = {}
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        fields["architecture"] = str(architectures[0])
    if isinstance(config.get("model_type"), str):
        fields["model_type"] = config["model_type"]
    for key in _SIZES:
        sizes = (model.get(key) for model in text_models(config))
        if (size := next((s for s in sizes if isinstance(s, int) and not isinstance(s, bool)), None)) is not None:
            fields[key] = size
    if quantisation.formats:
        fields["quantisation"] = "+".join(sorted(quantisation.formats))
    if headers:
        layouts = sorted(header.layout for header in headers.values())
        fields["weights"] = hashlib.sha256("\n".join(layouts).encode()).hexdigest()
    return fields


CONFIGS = ("config.json", "hf_quant_config.json")
"""The files that describe a model."""


def fingerprint_of_files(files: Mapping[str, bytes]) -> dict[str, str | int | float]:
    """The fingerprint by the contents of a repository's `CONFIGS`, by name. Raises ModelError."""
    config, beside = read_configs(files)
    return fingerprint_of(config, declared_quantisation(config, beside))


def read_configs(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The parsed contents of `CONFIGS`; None for a missing second one. Raises ModelError."""
    try:
        documents = {name: json.loads(content) for name, content in files.items()}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"a file of the repository cannot be parsed: {error}") from None
    config, beside = (documents.get(name) for name in CONFIGS)
    if not isinstance(config, dict):
        raise ModelError("the repository has no config.json")
    return config, beside if isinstance(beside, dict) else None


def contradictions(wanted: Fingerprint, actual: Fingerprint, source: str) -> list[str]:
    """Each field whose ``actual`` value differs from the one ``wanted`` by ``source``, with both values, for people."""
    differences = []
    for key, wanted_value in wanted.items():
        value = actual.get(key, "not said")
        if key == "quantisation" and value != wanted_value and value != "not said":
            formats = frozenset(str(value).split("+"))
            if compare_precision(str(wanted_value), Quantisation(formats, str(value)), {})[0] == "match":
                continue
        if key == "weights" and value != wanted_value:
            differences.append(f"the tensors have other names, types or shapes than by {source}")
        elif value != wanted_value:
            differences.append(f"{key} is {_printable(value)}, and {_printable(wanted_value)} by {source}")
    return differences


def _printable(value: object) -> str:
    """A value for a message, short and on one line, since it comes from somebody else's file."""
    return repr(value)[:100].strip("'") if isinstance(value, str) else str(value)
