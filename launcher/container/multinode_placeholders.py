"""The names that runner files may use in the texts of a lane of several nodes, and what they stand for in a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.core.errors import ConfigError
from launcher.runner.file import fill_in


@dataclass(frozen=True)
class Nodes:
    """How many nodes each side has, and GPUs of each node."""

    prefill: int
    decode: int
    gpus: int

    @classmethod
    def of(cls, benchmark: Benchmark, gpus: int) -> Nodes:
        """By the row's settings. Raises ConfigError for one that is missing, or that is no number."""
        return cls(
            _count(benchmark, "PREFILL_NODES", None),
            _count(benchmark, "DECODE_NODES", None),
            _count(benchmark, "GPUS_PER_NODE", gpus),
        )

    @property
    def all(self) -> int:
        return self.prefill + self.decode


def _count(benchmark: Benchmark, setting: str, otherwise: int | None) -> int:
    text = benchmark.settings.get(setting, "" if otherwise is None else str(otherwise))
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1024):
        said = f"is {text!r}" if text else "is not set"
        raise ConfigError(f"{setting} {said}; expected a number of at least 1", where=benchmark.source)
    return int(text)


def placeholder_values(benchmark: Benchmark, nodes: Nodes) -> dict[str, str]:
    """What each name stands for. Raises ConfigError for a benchmark that lacks a side."""
    words = {
        "model": benchmark.exp_name.partition("_")[0],
        "model-id": benchmark.model,
        "model-name": benchmark.model.rpartition("/")[2],
        "prefix": benchmark.model_prefix,
        "precision": benchmark.precision,
        "framework": benchmark.framework,
        "scenario-directory": "agentic/" if benchmark.agentic else "",
        "image": benchmark.image,
        "isl": str(benchmark.isl or 0),
        "osl": str(benchmark.osl or 0),
        "concurrencies": "x".join(map(str, benchmark.concurrencies)),
        "config-file": (benchmark.config_file or "").partition(":")[0],
        "nodes": str(nodes.all),
        "gpus": str(nodes.gpus),
    }
    sides = (("prefill", benchmark.prefill, nodes.prefill), ("decode", benchmark.decode, nodes.decode))
    for side, role, count in sides:
        if role is None:
            raise ConfigError(f"{benchmark.title} has no {side} side", where=benchmark.source)
        workers = _workers(benchmark, side, role)
        words |= {
            f"{side}-nodes": str(count),
            f"{side}-workers": str(workers),
            f"{side}-ep": str(role.ep != 1).lower(),
            f"{side}-dp": str(role.dp_attention).lower(),
        }
        # Where they are not whole numbers they have no value, and a text that wants one is refused.
        if count * role.tp % workers == 0:
            words[f"{side}-tp-size"] = str(count * role.tp // workers)
        if count % workers == 0:
            words[f"{side}-dp-size"] = str(count // workers * nodes.gpus)
    return words


def _workers(benchmark: Benchmark, side: str, role: Role) -> int:
    return _count(benchmark, f"{side.upper()}_WORKERS", max(1, role.workers))


def fill_placeholders(text: str, words: Mapping[str, str], benchmark: Benchmark) -> str:
    """A text with its names filled in. Raises ConfigError for one that has no value for this row."""
    if left := [name for name in re.findall(r"\{([a-z-]+)\}", text) if name not in words]:
        message = f"{{{left[0]}}} has no value for this row: its nodes cannot be shared evenly by its workers"
        raise ConfigError(message, where=benchmark.source, hint=f"it stands in {text!r} of the runner file")
    return fill_in(text, words)
