"""The interface of schedulers: which job is meant (`JobKey`), what state it has (`JobState`), what a scheduler does.

Slurm's words are from squeue(1), sacct(1) and the JOB STATES page of Slurm 20.02 to 25.11, and from the strings of
libslurm 22.05.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from launcher.core.errors import SubmissionError

SUBMIT_TIME_TOLERANCE = 2.0
"""Submit times that differ by at most so many seconds are the same: Slurm keeps whole seconds, and other clocks are
read a moment later."""


class Phase(Enum):
    """The phase of a job. UNKNOWN means that no source knew, and that one has to ask again; never "finished"."""

    ALIVE = "alive"
    TERMINAL = "terminal"
    UNKNOWN = "unknown"


SUCCESS = "COMPLETED"
"""The only word for a success, and only with exit code 0:0."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# COMPLETING hides the state of the job itself: the script has ended, but processes still run, nodes are not free yet,
# and files may still be written. A requeued job keeps its id, and gets a new submit time and a new accounting record;
# the old record keeps the word REQUEUED (seen with 22.05: `scontrol requeue`, then `sacct -D`).
_HELD_WORDS = _words("REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD")
ALIVE = _HELD_WORDS | _words(
    "PENDING CONFIGURING RUNNING COMPLETING STAGE_OUT SUSPENDED STOPPED RESIZING SIGNALING EXPEDITING POWER_UP_NODE"
    " REQUEUED REQUEUE_FED"
)
FAILURE = _words("BOOT_FAIL CANCELLED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT")
# LAUNCH_FAILED, RECONFIG_FAIL and UPDATE_DB are in none of the sets: they are flags that hide the job's state. They are
# UNKNOWN, like a word that a later Slurm may bring, and accounting is asked for the state itself.

LOST = "LOST"
"""Our own word, not one of Slurm's: the job's log says that the job has ended, and Slurm gave no answer about it for
long enough. This is no success, whatever the log says: only Slurm knows of a time limit, a dead node or a cancel."""

BY_USER, BY_ADMIN = "JobHeldUser", "JobHeldAdmin"
"""The reasons why a held job waits."""

MAY_BE_REQUEUED = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED"})
"""Ends after which Slurm itself may put a requeueable job back into the queue.

An accounting record with such an end is the job's end only when the controller, queried at the same time, does not show
the job as pending. While the controller gives no answer the job may come back.
"""

# With "_" for " ": releases differ in that.
_HOPELESS_REASONS = _words(
    "AccountNotAllowed AssociationTimeLimit BadConstraints DependencyNeverSatisfied InvalidAccount InvalidQOS"
    " JobHeldAdmin JobHeldUser MaxMemPerLimit PartitionConfig PartitionNodeLimit PartitionTimeLimit QOSNotAllowed"
    " QOSTimeLimit ReservationDeleted job_requeued_in_held_state launch_failed_requeued_held"
)
# A job that breaks a limit for single jobs (…PerJob, …PerNode, QOSMin…) does so however long it waits; a limit for a
# user, an account or a group (…PerUser, AssocGrp…) is kept again when other jobs end.
_OWN_LIMIT = re.compile(r"(Assoc|QOS)Max\w*Per(Job|Node)(Limit)?|QOSMin\w+")


def bare_word(word: str) -> str:
    """The bare state word: ``CANCELLED by 1000`` and sacct's cut ``CANCELLED+`` are both ``CANCELLED``."""
    words = word.split()
    return words[0].rstrip("+").upper() if words else ""


def phase_of(word: str) -> Phase:
    """The phase that a state word means; a word that is not known here is UNKNOWN."""
    bare = bare_word(word)
    if bare in ALIVE:
        return Phase.ALIVE
    return Phase.TERMINAL if bare == SUCCESS or bare in FAILURE else Phase.UNKNOWN


class SchedulerUnreachable(SubmissionError):
    """No source that knows the jobs gave an answer. This says nothing about any job."""


def has_token(comment: str, token: str) -> bool:
    """Whether this token is one of the words of a job's comment; False for the empty token."""
    return token != "" and token in re.split(r"[\s,;|]+", comment)


@dataclass(frozen=True)
class JobKey:
    """Which job is meant: its id, and what distinguishes it from another job with the same id.

    ``submitted`` is the submit time in seconds since the epoch, None when it is not known; ``token`` is a word in the
    comment that the job was submitted with, "" when it has none. Slurm reuses ids after MaxJobId, and at once after a
    controller crash (seen with 22.05); another ``cluster`` ("" for this host's) has its own jobs under the same ids.
    Raises SubmissionError when ``id`` is not a plain number.
    """

    id: str
    submitted: float | None = None
    token: str = ""
    cluster: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+", self.id):
            raise SubmissionError(f"{self.id!r} is not a job id", hint="a job id is a plain number")

    def __str__(self) -> str:
        return f"job {self.id}" + (f" on cluster {self.cluster}" if self.cluster else "")

    def matches(self, submitted: float | None, comment: str) -> bool | None:
        """Whether a record with this submit time and comment is this job's; None when neither decides it.

        A comment with the token decides, because a requeue changes the submit time. A comment without it does not:
        sacct shows a job's comment only after its end, and only where AccountingStoreFlags has ``job_comment``; and
        sites rewrite comments.
        """
        if has_token(comment, self.token):
            return True
        if self.submitted is not None and submitted is not None:
            return abs(self.submitted - submitted) <= SUBMIT_TIME_TOLERANCE
        return None if self.token or self.submitted is not None else True


@dataclass(frozen=True)
class JobState:
    """The state of a job. ``word`` is Slurm's state word, "" when no source knew it: ``reason`` then says why.

    ``exit_code`` is (exit status, signal), None when it is not known; ``derived`` is the highest exit code of the job's
    steps. For cancelled steps, as srtctl ends its servers, the controller counts the signal, and accounting nothing
    (22.05). Times are seconds since the epoch. ``nodes`` is Slurm's host list expression. ``source`` names the program
    that answered. ``expected`` is the start that the scheduler expects for a pending job.
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
    expected: float | None = None

    @property
    def succeeded(self) -> bool:
        return self.phase is Phase.TERMINAL and self.word == SUCCESS and self.exit_code == (0, 0)

    @property
    def out_of_memory(self) -> bool:
        """Whether Slurm says that the memory limit ended the job, or a step of it."""
        codes = (code for code in (self.exit_code, self.derived) if code is not None)
        return self.word == OUT_OF_MEMORY or any(signal == OUT_OF_MEMORY_CODE[1] for _, signal in codes)

    @property
    def failed_step(self) -> str:
        """How a step of the job failed, also when the job itself did not; "" when no step is known to have failed. A
        signal alone is no failure: jobs end steps by signals on purpose."""
        if self.phase is not Phase.TERMINAL or self.derived is None:
            return ""
        status, signal = self.derived
        if signal == OUT_OF_MEMORY_CODE[1]:
            return "a step of it ran out of memory"
        return f"a step of it ended with exit code {status}" if status else ""

    @property
    def hopeless(self) -> bool:
        """Whether the job is pending for a reason that does not go away by waiting.

        Slurm accepts such jobs and keeps them pending for ever (seen with 22.05: more nodes than the partition has, a
        dependency on a failed job). An administrator may still change that, so a caller acts only after some minutes.
        """
        if self.word in _HELD_WORDS:
            return True
        reason = self._reason_word
        return self.word == "PENDING" and (reason in _HOPELESS_REASONS or _OWN_LIMIT.fullmatch(reason) is not None)

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds the job because no node could start it. After a release Slurm tries again, maybe on other
        nodes."""
        return self.phase is Phase.ALIVE and self._reason_word == "launch_failed_requeued_held"

    @property
    def _reason_word(self) -> str:
        return self.reason.split(",")[0].strip().strip("()").replace(" ", "_")

    @property
    def _reason_explains_state(self) -> bool:
        """Whether the reason is about the state now. For an ended job accounting keeps the last reason why it was
        pending (sacct(1), Reason): most often that is our own hold."""
        if self.phase is not Phase.TERMINAL or self.word == LOST:
            return self.reason not in ("", "None")
        was_pending = self.reason in _PENDING_REASONS or (
            self.started is not None and _OWN_LIMIT.fullmatch(self.reason) is not None
        )
        return self.reason not in ("", "None") and self.word != SUCCESS and not was_pending

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
        if self._reason_explains_state:
            text += f" ({self.reason})"
        if self.expected is not None and self.word == "PENDING":
            text += f", expected to start {time.strftime('%a %H:%M', time.localtime(self.expected))}"
        if self.nodes:
            text += f" on {self.nodes}"
        if self.started is not None and self.ended is not None and self.phase is Phase.TERMINAL:
            text += f" after {self.ended - self.started:.0f} s"
        if self.succeeded and self.failed_step:
            text += f"; {self.failed_step}"
        return text


_PENDING_REASONS = _words("BeginTime Dependency JobHeldAdmin JobHeldUser Priority")
"""Reasons why a job was pending, which say nothing about its end."""

_NO_FILES = 53
"""Slurm's exit code 0:53: seen with 22.05 for an --output that cannot be written and a --chdir that is not there."""

OUT_OF_MEMORY = "OUT_OF_MEMORY"
OUT_OF_MEMORY_CODE = (0, 125)
"""The exit code that sacct shows for a step that the memory limit ended."""


def unknown_state(reason: str, source: str = "") -> JobState:
    """The state of a job whose state no source knew, and why."""
    return JobState(Phase.UNKNOWN, reason=reason, source=source)


class Scheduler(Protocol):
    """What runs jobs. Implementations: Slurm's commands, pyslurm, the embedded scheduler."""

    @property
    def name(self) -> str: ...

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """The state of each of these jobs, by one query for all. A scheduler that cannot be reached is no error: the
        jobs are then UNKNOWN, with the reason."""

    def find(self, token: str) -> list[JobKey]:
        """The jobs of this user whose comment has ``token``, the latest last.

        An empty list means that the scheduler answered, and has none. Raises SchedulerUnreachable otherwise.
        """

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Request the end of these jobs, by id. Ids that certainly belong to another job, or whose job has ended, are
        left out.

        Returns when the request is taken; `poll` shows the end itself. Raises SchedulerUnreachable when the request
        could not be made.
        """

    def release(self, job: JobKey) -> None:
        """Release a job that was submitted held. Returns when the request is taken, or when there is nothing to
        release. Raises JobError when it is refused, SchedulerUnreachable when it could not be made."""

    def describe(self, job: JobKey) -> dict[str, str]:
        """Everything that the scheduler says about a job, by program, as evidence for the run's record."""


def jobs_with_token(token: str, scheduler: Scheduler) -> list[JobKey]:
    """The jobs that have a token and were not refused. Raises SchedulerUnreachable.

    slurmctld 22.05 keeps a record of a job that it refused ("Requested node configuration is not available"): FAILED,
    without a node, with the comment of the submission. Such a record does not count as a job.
    """
    jobs = scheduler.find(token)
    states = scheduler.poll(jobs) if jobs else {}
    ended = {job: state for job, state in states.items() if state.phase is Phase.TERMINAL}
    refused = {job for job, state in ended.items() if not state.succeeded and not state.nodes}
    return [job for job in jobs if job not in refused]


def may_have_job(token: str, scheduler: Scheduler) -> bool:
    """Whether a job that has the token is alive, or may be because no source knows."""
    try:
        jobs = scheduler.find(token)
        return any(state.phase is not Phase.TERMINAL for state in (scheduler.poll(jobs) if jobs else {}).values())
    except SchedulerUnreachable:
        return True
