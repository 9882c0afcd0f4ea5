"""Synthetic speculative acceptance: a throughput row sets how many draft tokens are accepted instead of measuring it.

A matrix row asks for it by ``SYNTHETIC_ACCEPTANCE=true`` and ``SYNTHETIC_ACCEPTANCE_LENGTH=<mean accepted length>``.
InferenceX edits the recipe's text, in another way for each engine; here the parsed recipe is edited. An evaluation
keeps the real draft model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.benchmark.benchmark import Benchmark
from launcher.core.errors import ConfigError
from launcher.runner.schema import Edit

SWITCH, LENGTH = "SYNTHETIC_ACCEPTANCE", "SYNTHETIC_ACCEPTANCE_LENGTH"

_SGLANG = "SGLANG_SIMULATE_ACC_"


def acceptance_edits(benchmark: Benchmark, document: Mapping[str, Any]) -> list[Edit]:
    """The edits that a benchmark's settings ask for; none for an evaluation, and none when they do not ask.

    Raises ConfigError for invalid settings, a framework that cannot do it, and a recipe that simulates acceptance
    already. A recipe with nothing to edit is an error when the edits are made (`apply_edits`): a row that asks for
    synthetic acceptance and runs with the real one would publish wrong numbers.
    """
    said = benchmark.settings.get(SWITCH, "false").strip().lower()
    if said not in ("true", "false"):
        raise ConfigError(f"{SWITCH} is {said!r}; expected 'true' or 'false'", where=benchmark.source)
    if said == "false" or benchmark.eval_only:
        return []
    length = _length(benchmark)
    if benchmark.framework == "dynamo-vllm":
        value = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
        path = ("backend", "vllm_config", "*", "speculative*config")
        return [Edit(path, value, into_json=True, required=True)]
    if benchmark.framework == "dynamo-sglang":
        if present := next((key for key in _keys(document) if key.startswith(_SGLANG)), None):
            raise ConfigError(
                f"the recipe sets {present} itself, and the row asks for {SWITCH}", where=benchmark.source
            )
        variables = {"LEN": f"{length:g}", "METHOD": "match-expected", "TOKEN_MODE": "real-draft-token"}
        return [
            Edit(("backend", "*_environment", _SGLANG + name), value, required=True)
            for name, value in variables.items()
        ]
    raise ConfigError(
        f"{SWITCH} does not work with framework {benchmark.framework}",
        where=benchmark.source,
        hint="it works with dynamo-vllm and dynamo-sglang",
    )


def _length(benchmark: Benchmark) -> float:
    said = benchmark.settings.get(LENGTH, "").strip()
    try:
        length = float(said)
    except ValueError:
        length = 0.0
    if not 0 < length < 1000:
        found = f"is {said!r}" if said else "is not set"
        raise ConfigError(
            f"{LENGTH} {found}; expected the mean accepted length, as in 2.49",
            where=benchmark.source,
            hint="set it in the row: InferenceX would look it up in a table that it does not have",
        )
    return length


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield str(key)
            yield from _keys(below)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)
