"""Faults on request: LAUNCHER_REHEARSAL_FAULTS lists what goes wrong in the stand-ins for srtctl and the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher.core.errors import ConfigError
from launcher.core.suggest import suggest

VARIABLE = "LAUNCHER_REHEARSAL_FAULTS"

SUBMISSION = {
    "silent": "the job is submitted, srtctl prints nothing about it and exits with 0",
    "two-ids": "the job is submitted twice",
    "fail": "nothing is submitted, as when sbatch refuses",
    "no-json": "an older srtctl, which does not know --json",
    "no-no-preflight": "an older srtctl, which does not know --no-preflight",
    "no-log": "the job's log never appears",
}

JOB = {
    "slow-start": "=SECONDS: the time until the servers are healthy",
    "worker-death": "a decode worker dies after the first concurrency",
    "partial-results": "the last concurrency has no result, and the job exits with 0",
    "zero-tokens": "results with no output token",
    "exit": "=CODE: everything works, but the job ends with this exit code",
    "truncated-json": "the last result is cut in half",
    "nan": "the last result has a NaN",
    "hang": "the job never ends after its first concurrency",
}


def faults(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The faults asked for, name to value ("" without one). Raises ConfigError for one that does not exist."""
    asked = (os.environ if environ is None else environ).get(VARIABLE, "")
    known = SUBMISSION | JOB
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in asked.split(","))):
        name, _, value = item.partition("=")
        if name not in known:
            hint = suggest(name, known, ", ".join(sorted(known)))
            raise ConfigError(f"no such fault {name!r}", where=VARIABLE, hint=hint)
        found[name] = value
    return found
