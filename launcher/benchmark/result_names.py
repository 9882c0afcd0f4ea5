"""The names of result files in the workspace: InferenceX's next steps find them by name and read GPU counts out of it.

Each begins with a stem, RESULT_FILENAME, which is `launcher.benchmark.environment.result_filename`.
"""

from __future__ import annotations

import fnmatch
import glob


def fixed_result_name(stem: str, directory: str, concurrency: int, gpus: int, split: tuple[int, int] | None) -> str:
    """The name of a result of sa-bench, which came from ``directory`` (``sa-bench_isl_I_osl_O``) of the job's logs.

    ``gpus`` are those of all workers; ``split`` are those of prefill and of decode, None for an aggregated topology.
    """
    sides = f"_ctx_{split[0]}_gen_{split[1]}" if split else ""
    return f"{stem}_{directory}_conc{concurrency}_gpus_{gpus}{sides}.json"


def agentic_result_name(stem: str, concurrency: int) -> str:
    """The name of an agentic result. The job itself gives it, so it is the same at its source and in the workspace."""
    return f"{stem}_conc{concurrency}.json"


def is_counted(name: str, stem: str, mode: str) -> bool:
    """Whether the next steps of a job of several nodes take a file of the workspace for a result of this stem.

    They take ``<stem>_*.json`` with GPUs in the name, ``<stem>_conc*.json`` of an agentic job, and of an evaluation
    every ``results*.json``, whatever wrote it. ``agg_<stem>_*.json`` is what they make, and upload by that pattern.
    """
    own = glob.escape(stem)
    patterns = {
        "fixed": (f"{own}_*_gpus_[0-9]*.json", f"agg_{own}_*.json"),
        "agentic": (f"{own}_conc*.json",),
        "eval": ("results*.json",),
    }
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns[mode])
