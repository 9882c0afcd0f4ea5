"""The results that are expected of a benchmark, and the values that they are compared with."""

from __future__ import annotations

import re
from typing import Any

from msgspec.structs import replace

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import result_filename
from launcher.core.errors import ConfigError
from launcher.plan.plan import Bounds, Expected
from launcher.runner.schema import ModelRule, Results, Runner


def result_stem(benchmark: Benchmark, runner_name: str) -> str:
    """The name of the benchmark's results without what each concurrency adds: the workflow's, else our own."""
    return benchmark.result_filename or result_filename(benchmark, runner_name)


def expected_results(benchmark: Benchmark, stem: str, **more: Any) -> Expected:
    """What the benchmark is to measure, on how many GPUs. ``stem`` is the name of its results, `result_stem`; ``more``
    are further fields of `Expected`."""
    sides = benchmark.prefill, benchmark.decode
    prefill, decode = (side.workers * side.gpus_per_worker if side is not None else 0 for side in sides)
    return Expected(
        concurrencies=benchmark.concurrencies,
        filename=stem,
        mode="eval" if benchmark.eval_only else "agentic" if benchmark.agentic else "fixed",
        run_eval=benchmark.run_eval,
        isl=benchmark.isl,
        osl=benchmark.osl,
        gpus=(prefill, decode) if prefill else None,
        **more,
    )


def with_validation(
    expected: Expected, benchmark: Benchmark, runner: Runner, rule: ModelRule, path: str | None
) -> Expected:
    """The expected results, completed by what row and runner file say of valid ones; ``path`` is the checkpoint's."""
    return replace(
        expected,
        models=tuple(dict.fromkeys((*_model_names(benchmark, rule), *([path] if path else []), *expected.models))),
        row=_repeated(benchmark),
        rehearsal=runner.tools == "rehearsal",
        evaluated=benchmark.eval_concurrencies,
        tasks=tuple(runner.results.tasks),
        part=bool(benchmark.options.get("EVAL_LIMIT")),
        bounds=_bounds(benchmark, runner.results),
    )


def _model_names(benchmark: Benchmark, rule: ModelRule) -> tuple[str, ...]:
    """What a client may call the model: its id, its directory, its alias, the name that it is served by."""
    paths = [rule.path] if isinstance(rule.path, str) else rule.path
    served = [rule.served.format(model=benchmark.model)] if rule.served else []
    names = (benchmark.model, *served, rule.alias, *rule.also, *paths, rule.otherwise or "")
    return tuple(dict.fromkeys(name for name in names if name and not name.endswith("{model}")))


def _repeated(benchmark: Benchmark) -> dict[str, str | int | bool]:
    """The values of the row that documents of agentic runs and of evaluations repeat, by InferenceX's keys."""
    row: dict[str, str | int | bool] = {
        "framework": benchmark.framework,
        "precision": benchmark.precision,
        "infmax_model_prefix": benchmark.model_prefix,
        "spec_decoding": benchmark.spec_decoding,
        "is_multinode": benchmark.multinode,
        "disagg": benchmark.disagg,
        "kv_offloading": benchmark.kv_offloading or "",
        "recipe_fingerprint": benchmark.recipe_fingerprint or "",
    }
    row = {key: value for key, value in row.items() if value != ""}
    if benchmark.isl is not None and benchmark.osl is not None:
        row |= {"isl": benchmark.isl, "osl": benchmark.osl}
    # Of an aggregated topology the other side is 0 in one document and 1 in another.
    for name, side in (("prefill", benchmark.prefill), ("decode", benchmark.decode)):
        if benchmark.multinode and side is not None and side.workers:
            row |= {f"{name}_tp": side.tp, f"{name}_ep": side.ep, f"{name}_num_workers": side.workers}
        elif not benchmark.multinode and name == "prefill" and side is not None:
            row |= {"tp": side.tp, "ep": side.ep}
    return row


def _bounds(benchmark: Benchmark, results: Results) -> Bounds:
    """The row's bounds, else the runner file's. Raises ConfigError for a bound that is not a number."""

    def bound(name: str, otherwise: float) -> float:
        text = benchmark.settings.get(name)
        if text is None:
            return otherwise
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text):
            raise ConfigError(f"{name} is {text!r}; expected a number, like 0.05", where=benchmark.source)
        return float(text)

    threshold = benchmark.options.get("AIPERF_FAILED_REQUEST_THRESHOLD")
    agentic = results.failed_agentic if threshold is None else float(threshold)
    low, high = results.lengths
    return Bounds(
        failed=bound("RESULT_FAILED", agentic if benchmark.agentic else results.failed),
        clock_skew=bound("RESULT_CLOCK_SKEW", results.clock_skew),
        tolerance=bound("RESULT_TOLERANCE", results.tolerance),
        lengths=(bound("RESULT_SHORTEST", low), bound("RESULT_LONGEST", high)),
    )
