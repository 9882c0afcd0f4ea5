"""The child process of `launcher.slurm.native`: it reads one query as JSON, and answers it.

Standard input   {"ids": ["1", …]} or {"user": 1000}: which jobs; {}: only whether pyslurm can be used
Standard output  {"version": "22.5.3", "rows": [[…], …]}, fields in the order of `answers.SACCT_FIELDS`; or, with
                 "error" in place of the rows, why the controller gave no answer. Exit code 1, with an error, when
                 pyslurm cannot be imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any


def main() -> int:
    """Answer the question; 1 when pyslurm cannot be imported."""
    # libslurm prints messages to stdout. The answer gets a descriptor of its own; everything else goes to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            import pyslurm
        except ImportError as error:
            json.dump({"error": f"pyslurm cannot be imported: {error}"}, out)
            return 1
        answer: dict[str, Any] = {"version": pyslurm.__version__}
        try:
            if question := json.load(sys.stdin):
                answer["rows"] = rows(pyslurm, question)
        except pyslurm.PyslurmError as error:
            answer["error"] = str(error)
        json.dump(answer, out)
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
