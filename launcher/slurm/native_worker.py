"""The child process of `launcher.slurm.native`: it takes each question as a line of JSON, and answers with one.

Standard input   {"ids": ["1", …]} or {"user": 1000}: which jobs
Standard output  {"version": "22.5.3"} at first, {"error": "…"} when pyslurm cannot be imported; for each question then
                 {"rows": [[…], …]}, fields in the order of `commands.SACCT_FIELDS`, or {"error": "…"}

It ends at the end of its input: after its parent has ended it answers one more question at most.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any


def main() -> int:
    """Answer questions until there are no more; 1 when pyslurm cannot be imported."""
    # libslurm prints messages to stdout. The answers get a descriptor of their own; everything else goes to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def answer(value: Mapping[str, Any]) -> None:
            out.write(json.dumps(value) + "\n")
            out.flush()

        try:
            import pyslurm
        except ImportError as error:
            answer({"error": f"pyslurm cannot be imported: {error}"})
            return 1
        answer({"version": pyslurm.__version__})
        for line in sys.stdin:
            try:
                answer({"rows": rows(pyslurm, json.loads(line))})
            except pyslurm.PyslurmError as error:
                answer({"error": str(error)})
    return 0


def rows(pyslurm: Any, question: Mapping[str, Any]) -> list[list[str]]:
    """The fields of the wanted jobs, from one call to the controller, which returns all jobs that it knows."""
    wanted = set(question.get("ids", ()))
    user = question.get("user")
    jobs = pyslurm.Jobs.load().values()
    return [_row(job) for job in jobs if str(job.id) in wanted or (user is not None and job.user_id == user)]


def _row(job: Any) -> list[str]:
    codes = (f"{job.exit_code}:{job.exit_code_signal}", f"{job.derived_exit_code}:{job.derived_exit_code_signal}")
    fields = (job.state, *codes, job.submit_time, job.start_time, job.end_time)
    texts = (job.allocated_nodes, job.state_reason, job.comment)
    return ["" if value is None else str(value) for value in (job.id, *fields, *texts)]
