"""What the launcher needs of a scheduler, whoever it is: the words, the interface, and the choice of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.core.errors import ConfigError, SubmissionError
from launcher.core.process import CommandRunner, run
from launcher.slurm import states
from launcher.slurm.states import Phase

SAME_SECONDS = 2.0
"""Submit times that differ by no more are one: Slurm keeps whole seconds, other clocks are read a moment later."""


BACKENDS = ("auto", "commands", "pyslurm")
"""How Slurm can be asked."""


class SchedulerUnreachable(SubmissionError):
    """Nobody who knows the jobs could be asked. Says nothing about any job."""


def carries(comment: str, token: str) -> bool:
    """Whether a job's comment has this token as one of its words; the empty token is in none."""
    return token != "" and token in re.split(r"[\s,;|]+", comment)


@dataclass(frozen=True)
class JobKey:
    """Which job is meant: its id, and what tells it from another job that is given the same id.

    ``submitted`` is the submit time in seconds since the epoch, None when not known; ``token`` is what the submission
    carried as its comment, "" when it carried none. Slurm gives ids out again after MaxJobId, and at once after a
    controller crash (seen with 22.05). Raises SubmissionError when ``id`` is not a plain number.
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
        """Whether a record with this submit time and comment is this job; None when neither can tell.

        The token decides when it is there, because a requeue changes the submit time. A comment without it decides
        nothing alone: sacct shows a job's comment only after its end, and only where AccountingStoreFlags has
        ``job_comment``; sites rewrite comments too.
        """
        if carries(comment, self.token):
            return True
        if self.submitted is not None and submitted is not None:
            return abs(self.submitted - submitted) <= SAME_SECONDS
        return None if self.token or self.submitted is not None else True


@dataclass(frozen=True)
class JobState:
    """How a job stands, by whom. ``word`` is Slurm's own and "" when nobody could say; then ``reason`` says why.

    ``exit_code`` is (exit status, signal), None when not known; ``derived`` is the highest of the job's steps: with
    22.05 the controller counts steps that were cancelled, as srtctl ends its servers, with their signal, and
    accounting leaves them out. Times are seconds since the epoch. ``nodes`` is Slurm's host list expression.
    ``source`` names who answered.
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
        """That a step of the job failed, whatever the job made of it; "" when none is known to have. A signal alone
        is how steps are ended on purpose."""
        if self.phase is not Phase.TERMINAL or self.derived is None:
            return ""
        status, signal = self.derived
        if signal == _OUT_OF_MEMORY:
            return "a step of it ran out of memory"
        return f"a step of it ended with exit code {status}" if status else ""

    @property
    def hopeless(self) -> bool:
        """Whether the job waits for what waiting does not bring."""
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
"""With it sacct shows a step that the memory limit ended (OUT_OF_MEMORY, 0:125)."""


def unknown(reason: str, source: str = "") -> JobState:
    """The state of a job about which nobody could say anything, and why."""
    return JobState(Phase.UNKNOWN, reason=reason, source=source)


class Scheduler(Protocol):
    """Where jobs live. Implementations: Slurm's commands, pyslurm, the embedded one."""

    @property
    def name(self) -> str: ...

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """The state of every job given, with one question for all. Never raises for a scheduler that is out of reach:
        those jobs are UNKNOWN, with the reason."""

    def find(self, token: str) -> list[JobKey]:
        """The jobs of this user whose comment carries ``token``, latest last: was it submitted after all?

        An empty list means that somebody who would know says there is none. Raises SchedulerUnreachable otherwise.
        """

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Ask for these jobs to be ended, by id, leaving out those that are positively another's or over already.

        Returns when the request is taken; the end itself is seen by `poll`. Raises SchedulerUnreachable when the
        request could not be made.
        """

    def release(self, job: JobKey) -> None:
        """Let a job start that was submitted held. Returns when the request is taken, or when there is nothing to
        release. Raises JobError when it is refused, SchedulerUnreachable when it could not be made."""

    def describe(self, job: JobKey) -> dict[str, str]:
        """Everything the scheduler says about a job, by who says it, as evidence for the run's record."""


def open_scheduler(
    kind: str,
    *,
    backend: str = "auto",
    directory: Path | None = None,
    runner: CommandRunner = run,
    say: Callable[[str], None] = lambda text: None,
) -> Scheduler:
    """The scheduler of a kind: ``slurm`` or ``local`` (its jobs lie in ``directory``).

    Slurm is asked by its commands (``backend`` ``commands``), or by pyslurm where that can be used (``pyslurm``,
    ``auto``) and by its commands elsewhere; ``say`` is told which and why. All programs are run by ``runner``, which
    must go on when the launcher was asked to stop: scancel is what it then has to run.
    Raises ConfigError for another word, and for ``local`` without a directory.
    """
    if kind == "slurm":
        from launcher.slurm.commands import SlurmCommands

        if backend not in BACKENDS:
            raise ConfigError(f"unknown Slurm backend {backend!r}", hint=" or ".join(BACKENDS))
        why = "as asked for"
        if backend != "commands":
            from launcher.slurm.native import choose

            native, why = choose(runner=runner)
            if native is not None:
                say(f"Slurm is asked by {why}")
                return native
        say(f"Slurm is asked by its commands: {why}")
        return SlurmCommands(runner=runner)
    if kind == "local":
        from launcher.slurm.local import LocalScheduler

        if directory is None:
            raise ConfigError("the embedded scheduler needs a directory for its jobs")
        return LocalScheduler(directory)
    from launcher.core.suggest import suggest

    raise ConfigError(f"unknown scheduler {kind!r}", hint=suggest(kind, ("slurm", "local"), "slurm or local"))
