"""The placeholders that a runner file may use in the texts of a lane of several nodes, and their values for a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError
from launcher.runner.file import fill_in


@dataclass(frozen=True)
class NodeCounts:
    """The number of nodes of each side, and of GPUs per node."""

    prefill: int
    decode: int
    gpus: int

    @classmethod
    def of(cls, benchmark: Benchmark, gpus: int) -> NodeCounts:
        """The counts by the row's settings. Raises ConfigError for one that is missing or is not a number."""
        return cls(
            _count(benchmark, "PREFILL_NODES", None),
            _count(benchmark, "DECODE_NODES", None),
            _count(benchmark, "GPUS_PER_NODE", gpus),
        )

    @property
    def all(self) -> int:
        return self.prefill + self.decode


def _count(benchmark: Benchmark, setting: str, default: int | None) -> int:
    text = benchmark.settings.get(setting, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1024):
        problem = f"is {text!r}" if text else "is not set"
        raise ConfigError(f"{setting} {problem}; expected a number of at least 1", where=benchmark.source)
    return int(text)


def placeholder_values(benchmark: Benchmark, nodes: NodeCounts) -> dict[str, str]:
    """The value of each placeholder. Raises ConfigError for a benchmark without one of the sides."""
    values = {
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
        workers = _count(benchmark, f"{side.upper()}_WORKERS", max(1, role.workers))
        values |= {
            f"{side}-nodes": str(count),
            f"{side}-workers": str(workers),
            f"{side}-ep": str(role.ep != 1).lower(),
            f"{side}-dp": str(role.dp_attention).lower(),
        }
        # A size that is not a whole number has no value, and `fill_placeholders` refuses texts that use it.
        if count * role.tp % workers == 0:
            values[f"{side}-tp-size"] = str(count * role.tp // workers)
        if count % workers == 0:
            values[f"{side}-dp-size"] = str(count // workers * nodes.gpus)
    return values


def fill_placeholders(text: str, values: Mapping[str, str], benchmark: Benchmark) -> str:
    """A text with its placeholders filled in. Raises ConfigError for one that has no value for this row."""
    if unknown := [name for name in re.findall(r"\{([a-z-]+)\}", text) if name not in values]:
        message = f"{{{unknown[0]}}} has no value for this row: its nodes cannot be shared evenly by its workers"
        raise ConfigError(message, where=benchmark.source, hint=f"it stands in {text!r} of the runner file")
    return fill_in(text, values)
