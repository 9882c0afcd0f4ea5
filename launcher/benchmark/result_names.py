"""The names of result files in the workspace: InferenceX's next steps find them by name and read GPU counts out of it.

Each begins with a stem, RESULT_FILENAME, which is `launcher.benchmark.environment.result_filename`.
"""

from __future__ import annotations


def fixed_result_name(stem: str, directory: str, concurrency: int, gpus: int, split: tuple[int, int] | None) -> str:
    """The name of a result of sa-bench, which came from ``directory`` (``sa-bench_isl_I_osl_O``) of the job's logs.

    ``gpus`` are those of all workers; ``split`` are those of prefill and of decode, None for an aggregated topology.
    """
    sides = f"_ctx_{split[0]}_gen_{split[1]}" if split else ""
    return f"{stem}_{directory}_conc{concurrency}_gpus_{gpus}{sides}.json"


def agentic_result_name(stem: str, concurrency: int) -> str:
    """The name of an agentic result. The job itself gives it, so it is the same at its source and in the workspace."""
    return f"{stem}_conc{concurrency}.json"
