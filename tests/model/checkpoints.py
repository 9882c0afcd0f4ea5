"""Small real checkpoints, their safetensors files written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I32": 4, "I8": 1}

Tensors = Mapping[str, tuple[str, int]]
"""Tensor name to dtype and number of elements."""


def safetensors(path: Path, tensors: Tensors) -> Path:
    """Write a safetensors file: header length, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, count) in tensors.items():
        begin, end = end, end + count * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * end)
    return path


def checkpoint(
    directory: Path, config: Mapping[str, Any] | None = None, *, dtype: str = "BF16", shards: int = 3
) -> Path:
    """Make a whole checkpoint of ``shards`` shards with an index, its weights stored as ``dtype``."""
    directory.mkdir(parents=True)
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    weight_map = {}
    for number, name in enumerate(names):
        tensors = {f"layers.{number}.weight": (dtype, 64), f"layers.{number}.norm": ("BF16", 8)}
        safetensors(directory / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    total = shards * (64 * WIDTH[dtype] + 16)
    put(directory, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    put(directory, "config.json", {"model_type": "llama", "torch_dtype": "bfloat16", **(config or {})})
    put(directory, "tokenizer.json", {"version": "1.0", "model": {"type": "BPE"}})
    return directory


def put(directory: Path, name: str, document: Any) -> Path:
    path = directory / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path
