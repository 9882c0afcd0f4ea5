"""A stand-in for a checkpoint: whole by every check, a few kilobytes, and marked as nothing to measure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.core.errors import ModelError
from launcher.core.publish import fsync_directory, fsync_file, publishing_directory
from launcher.model.checkpoint import REHEARSAL_KEY, examine

_VOCABULARY = ("[UNK]", "[BOS]", "[EOS]", *(f"word{number}" for number in range(61)))

_DECLARED: Mapping[str, tuple[dict[str, Any], tuple[str, int]]] = {
    "bf16": ({}, ("BF16", 2)),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, ("F8_E4M3", 1)),
    "fp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "launcher"}}, ("U8", 1)),
    "int4": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
        },
        ("I32", 4),
    ),
}
"""By precision: the quantization_config, and how the weights are stored (dtype, bytes an element)."""


def ensure_model(directory: Path, precision: str) -> Path:
    """Have a tiny whole checkpoint of ``precision`` (``bf16 fp8 fp4 int4``) at ``directory``, and return the directory.

    One that is there already is used. Its config.json says that it is for rehearsals, and
    `launcher.model.checkpoint.require` refuses it in other runs. Raises ModelError for another precision, and when
    something else is at ``directory``, which is never touched.
    """
    if precision not in _DECLARED:
        raise ModelError(f"no rehearsal checkpoint of precision {precision!r}: there are {', '.join(_DECLARED)}")

    def usable(path: Path) -> bool:
        verdict = examine(path, precision=precision)
        return verdict.whole and verdict.identity == "match" and verdict.rehearsal

    if usable(directory):
        return directory
    try:
        with publishing_directory(directory, whole=usable) as temporary:
            temporary.mkdir(parents=True)
            _write(temporary, precision)
    except OSError as error:
        raise ModelError(
            f"a rehearsal checkpoint cannot be put here: {error.strerror}",
            where=str(directory),
            hint="name a directory that does not exist yet",
        ) from None
    return directory


def _write(directory: Path, precision: str) -> None:
    quantisation, (dtype, width) = _DECLARED[precision]
    config: dict[str, Any] = {
        REHEARSAL_KEY: True,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(_VOCABULARY),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    if quantisation:
        config["quantization_config"] = quantisation
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(_VOCABULARY)},
            "unk_token": "[UNK]",
        },
    }
    shards = {
        "model-00001-of-00002.safetensors": {"model.embed_tokens.weight": ("BF16", [len(_VOCABULARY), 16], 2)},
        "model-00002-of-00002.safetensors": {"model.layers.0.mlp.down_proj.weight": (dtype, [16, 32], width)},
    }
    documents: dict[str, Any] = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"},
        "model.safetensors.index.json": {
            "metadata": {
                "total_size": sum(_size(*tensor) for tensors in shards.values() for tensor in tensors.values())
            },
            "weight_map": {name: shard for shard, tensors in shards.items() for name in tensors},
        },
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name, tensors in shards.items():
        (directory / name).write_bytes(_safetensors(tensors))
    for file in directory.iterdir():
        fsync_file(file)
    fsync_directory(directory)


def _size(dtype: str, shape: list[int], width: int) -> int:
    return shape[0] * shape[1] * width


def _safetensors(tensors: Mapping[str, tuple[str, list[int], int]]) -> bytes:
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + _size(*tensor)
        header[name] = {"dtype": tensor[0], "shape": tensor[1], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(end)
