"""The runs of one GitHub job, as a later step of it finds them: variables of the launch step alone are not there.

A launch step that set RUNNER_TYPE or RESULT_FILENAME for itself has another run key than its clean-up step computes.
What both have is the job: GITHUB_RUN_ID, GITHUB_RUN_ATTEMPT, GITHUB_JOB and RUNNER_NAME.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from launcher.benchmark.environment import github_job
from launcher.core.errors import ConfigError
from launcher.run.record import RunRecord, records

VARIABLE = "LAUNCHER_RUN_ID"
"""What `launcher ci` leaves for later steps of its job, by GITHUB_ENV."""


def identity(environ: Mapping[str, str]) -> str:
    """The GitHub job that an environment belongs to. Raises ConfigError."""
    job = github_job(environ)
    return "/".join((job.run_id, job.attempt, environ.get("GITHUB_JOB", ""), job.runner_name))


def runs_of_job(runs: Path, environ: Mapping[str, str]) -> list[RunRecord]:
    """The runs that this GitHub job began, oldest first: by their records, or by their ids and their runner's name.

    Records of earlier versions do not say their GitHub job. Raises ConfigError without RUNNER_NAME.
    """
    job, ours = github_job(environ), identity(environ)

    def is_ours(record: RunRecord) -> bool:
        if record.fields.github_job:
            return record.fields.github_job == ours
        with contextlib.suppress(ConfigError):
            begins = record.id.startswith(f"{job.run_id}-{job.attempt}-")
            return begins and record.plan.runner_name == job.runner_name
        return False

    return [record for record in records(runs) if is_ours(record)]
