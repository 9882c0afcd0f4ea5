"""The steps of an ended job by accounting: they have exit codes that the job's own record may lack.

A job's record in accounting keeps the exit code 0:0 for ever, its own or that of its steps, when a step's end reached
the controller after the job's (22.05, 6 of 25 jobs under load).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from launcher.slurm.client import SAME_SECONDS, SUCCESS, JobState, Phase, bare_word, phase_of

SACCT_FIELDS = "JobIDRaw,State,ExitCode,DerivedExitCode,Submit,Start,End,NodeList,Reason,Comment"
"""What accounting is asked of jobs and of their steps. The comment is last: it is free text, and may hold the
separator."""


def exit_code_of(text: str) -> tuple[int, int] | None:
    """(exit status, signal) from Slurm's form ``3:0``; None for any other text."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def timestamp(text: str) -> float | None:
    """Seconds since the epoch, from that number (the clients are asked for ``%s``) or from Slurm's local ISO form."""
    if text.isdigit():
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


@dataclass(frozen=True)
class StepRecord:
    """A step of a job as accounting shows it. ``name`` is its number, ``batch`` or ``extern``."""

    name: str
    word: str
    exit_code: tuple[int, int]
    started: float | None

    @property
    def ended(self) -> bool:
        return self.name == "extern" or phase_of(self.word) is Phase.TERMINAL


def steps_in(text: str) -> dict[str, list[StepRecord]]:
    """The steps in what ``sacct -n -P -o SACCT_FIELDS`` printed, by their jobs' ids."""
    found: dict[str, list[StepRecord]] = defaultdict(list)
    for line in text.splitlines():
        row = line.strip().split("|", 9)
        job, dot, name = row[0].partition(".")
        if len(row) == 10 and job.isdigit() and dot and (code := exit_code_of(row[2])) is not None:
            found[job].append(StepRecord(name, bare_word(row[1]), code, timestamp(row[5])))
    return dict(found)


def may_lack_codes(state: JobState) -> bool:
    """Whether an ended job's record may lack the exit code of a step, or of its script."""
    if state.word == SUCCESS:
        return state.exit_code == (0, 0) and state.derived in (None, (0, 0))
    return state.word == "FAILED" and state.exit_code in (None, (0, 0))


def of_this_job(steps: Sequence[StepRecord], state: JobState) -> list[StepRecord]:
    """The steps that ran in the time of this job: Slurm gives ids out again, and accounting shows the newest."""
    return [
        step
        for step in steps
        if step.started is None
        or (
            (state.started is None or step.started >= state.started - SAME_SECONDS)
            and (state.ended is None or step.started <= state.ended + SAME_SECONDS)
        )
    ]


def with_codes(state: JobState, steps: Sequence[StepRecord]) -> JobState:
    """A state with what its steps' records add. Steps that were cancelled failed for nobody: jobs end theirs so."""
    codes = {step.name: step.exit_code for step in steps if step.word in ("FAILED", "OUT_OF_MEMORY")}
    script = codes.pop("batch", None)
    if state.word == "FAILED":
        return replace(state, exit_code=script or state.exit_code)
    return replace(state, derived=max([*codes.values(), state.derived or (0, 0)]))
