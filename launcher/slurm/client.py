"""What the launcher needs of a scheduler, whichever it is: how a job is named, how its state is told, what is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from launcher.core.errors import SubmissionError
from launcher.slurm import states
from launcher.slurm.states import Phase

SAME_SECONDS = 2.0
"""Submit times that differ by no more than this are the same: Slurm keeps whole seconds, and other clocks are read a
moment later."""


class SchedulerUnreachable(SubmissionError):
    """Nobody who knows the jobs could be asked. This says nothing about any job."""


def carries(comment: str, token: str) -> bool:
    """Whether a job's comment has this token as one of its words; no comment carries the empty token."""
    return token != "" and token in re.split(r"[\s,;|]+", comment)


@dataclass(frozen=True)
class JobKey:
    """Which job is meant: its id, and what tells it from another job with the same id.

    ``submitted`` is the submit time in seconds since the epoch, None when it is not known; ``token`` is a word in the
    comment that the job was submitted with, "" when it has none. Slurm gives ids out again after MaxJobId, and at once
    after a controller crash (seen with 22.05). Raises SubmissionError when ``id`` is not a plain number.
    """

    id: str
    submitted: float | None = None
    token: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+", self.id):
            raise SubmissionError(f"{self.id!r} is not a job id", hint="a job id is a plain number")

    def __str__(self) -> str:
        return f"job {self.id}"

    def matches(self, submitted: float | None, comment: str) -> bool | None:
        """Whether a record with this submit time and comment is this job's; None when neither can tell.

        A comment with the token decides, because a requeue changes the submit time. A comment without it decides
        nothing: sacct shows a job's comment only after its end, and only where AccountingStoreFlags has
        ``job_comment``; and sites rewrite comments.
        """
        if carries(comment, self.token):
            return True
        if self.submitted is not None and submitted is not None:
            return abs(self.submitted - submitted) <= SAME_SECONDS
        return None if self.token or self.submitted is not None else True


@dataclass(frozen=True)
class JobState:
    """How a job stands. ``word`` is Slurm's state word, "" when nobody could say: ``reason`` then says why.

    ``exit_code`` is (exit status, signal), None when it is not known; ``derived`` is the highest exit code of the job's
    steps. Of steps that were cancelled, as srtctl ends its servers, the controller counts the signal, and accounting
    nothing (22.05). Times are seconds since the epoch. ``nodes`` is Slurm's host list expression. ``source`` names who
    answered.
    """

    phase: Phase
    word: str = ""
    exit_code: tuple[int, int] | None = None
    reason: str = ""
    nodes: str = ""
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    source: str = ""
    derived: tuple[int, int] | None = None

    @property
    def succeeded(self) -> bool:
        return self.phase is Phase.TERMINAL and self.word == states.SUCCESS and self.exit_code == (0, 0)

    @property
    def failed_step(self) -> str:
        """How a step of the job failed, whether or not the job then failed; "" when no step is known to have failed. A
        signal alone is no failure: steps are ended so on purpose."""
        if self.phase is not Phase.TERMINAL or self.derived is None:
            return ""
        status, signal = self.derived
        if signal == _OUT_OF_MEMORY:
            return "a step of it ran out of memory"
        return f"a step of it ended with exit code {status}" if status else ""

    @property
    def hopeless(self) -> bool:
        """Whether the job waits for something that waiting does not bring (`states.hopeless`)."""
        return self.phase is Phase.ALIVE and states.hopeless(self.word, self.reason)

    def describe(self) -> str:
        """One line for a person: ``FAILED, exit code 3 (NonZeroExitCode) on node01 after 12 s``."""
        if self.phase is Phase.UNKNOWN:
            return f"unknown: {self.reason}" if self.reason else "unknown"
        text = self.word
        if self.phase is Phase.TERMINAL and self.exit_code not in (None, (0, 0)):
            status, signal = self.exit_code
            text += f", signal {signal}" if signal else f", exit code {status}"
            if self.word == "FAILED" and signal == _NO_FILES:
                text += " (the output file or working directory could not be opened on the node)"
        if self.reason and self.reason != "None":
            text += f" ({self.reason})"
        if self.nodes:
            text += f" on {self.nodes}"
        if self.started is not None and self.ended is not None and self.phase is Phase.TERMINAL:
            text += f" after {self.ended - self.started:.0f} s"
        if self.succeeded and self.failed_step:
            text += f"; {self.failed_step}"
        return text


_NO_FILES = 53
"""Slurm's exit code 0:53: seen with 22.05 for an --output that cannot be written and a --chdir that is not there."""

_OUT_OF_MEMORY = 125
"""The signal that sacct shows for a step that the memory limit ended (OUT_OF_MEMORY, 0:125)."""


def unknown(reason: str, source: str = "") -> JobState:
    """The state of a job of which nobody could say how it stands, and why."""
    return JobState(Phase.UNKNOWN, reason=reason, source=source)


class Scheduler(Protocol):
    """Where jobs live. Implementations: Slurm's commands, pyslurm, the embedded one."""

    @property
    def name(self) -> str: ...

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """The state of every job given, by one question for all. A scheduler that is out of reach is no error: the
        jobs are then UNKNOWN, with the reason."""

    def find(self, token: str) -> list[JobKey]:
        """The jobs of this user whose comment carries ``token``, the latest last.

        An empty list means that the scheduler answered, and has none. Raises SchedulerUnreachable otherwise.
        """

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Ask for the end of these jobs, by id. Ids that certainly belong to another job, or whose job has ended, are
        left out.

        Returns when the request is taken; `poll` then shows the end itself. Raises SchedulerUnreachable when the
        request could not be made.
        """

    def release(self, job: JobKey) -> None:
        """Let a job start that was submitted held. Returns when the request is taken, or when there is nothing to
        release. Raises JobError when it is refused, SchedulerUnreachable when it could not be made."""

    def describe(self, job: JobKey) -> dict[str, str]:
        """Everything that the scheduler says about a job, by source, as evidence for the run's record."""
