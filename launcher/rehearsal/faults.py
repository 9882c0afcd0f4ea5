"""Faults on request: what LAUNCHER_REHEARSAL_FAULTS makes go wrong, so that the launcher's answer can be rehearsed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher.core.errors import ConfigError
from launcher.core.yaml_source import nearest

VARIABLE = "LAUNCHER_REHEARSAL_FAULTS"

SUBMISSION = {
    "silent": "the job is submitted and srtctl says nothing of it, exit 0",
    "two-ids": "the job is submitted twice",
    "fail": "nothing is submitted, as when sbatch refuses",
    "no-json": "an older srtctl: --json is unknown",
    "no-no-preflight": "an older srtctl: --no-preflight is unknown",
    "no-log": "the job's log never appears",
}

JOB = {
    "slow-start": "=SECONDS: that long until the servers are healthy",
    "worker-death": "a decode worker dies after the first concurrency",
    "partial-results": "the last concurrency has no result, exit 0",
    "zero-tokens": "results with no output token",
    "exit": "=CODE: everything works, and the job ends with this exit code",
    "truncated-json": "the last result is cut in half",
    "nan": "the last result has a NaN",
    "hang": "the job never ends after its first concurrency",
}


def faults(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The faults asked for, name to value ("" without one). Raises ConfigError for one that does not exist."""
    asked = (os.environ if environ is None else environ).get(VARIABLE, "")
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in asked.split(","))):
        name, _, value = item.partition("=")
        if name not in SUBMISSION | JOB:
            near = nearest(name, SUBMISSION | JOB)
            raise ConfigError(
                f"no such fault {name!r}",
                where=VARIABLE,
                hint=f"did you mean {near!r}?" if near else ", ".join(sorted(SUBMISSION | JOB)),
            )
        found[name] = value
    return found
