"""Slurm's words for a job's state, and for why it waits, sorted by what a launcher must do about them.

From squeue(1), sacct(1) and the JOB STATES page of Slurm 20.02 to 25.11, and from the strings of libslurm 22.05.
"""

from __future__ import annotations

import re
from enum import Enum


class Phase(Enum):
    """Where a job stands. UNKNOWN means that nobody could say, and that one has to ask again; never "finished"."""

    ALIVE = "alive"
    TERMINAL = "terminal"
    UNKNOWN = "unknown"


SUCCESS = "COMPLETED"
"""The only word for a success, and only with exit code 0:0."""

ALIVE = frozenset(
    {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        # COMPLETING hides the state of the job itself: the work is over, but processes still run, nodes are not free
        # yet, and files may still be written.
        "COMPLETING",
        "STAGE_OUT",
        "SUSPENDED",
        "STOPPED",
        "RESIZING",
        "SIGNALING",
        "EXPEDITING",
        "POWER_UP_NODE",
        # A requeued job goes on under the same id, with a new submit time and a new accounting record; the old
        # record keeps the word REQUEUED (seen with 22.05: `scontrol requeue`, then `sacct -D`).
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
    }
)

FAILURE = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)

LOST = "LOST"
"""Our own word, not one of Slurm's: the job's log says that it has ended, and Slurm, asked for long enough, does not.
This is no success, whatever the log says: only Slurm can tell a time limit, a dead node or a cancel."""

MAY_BE_REQUEUED = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED"})
"""Ends after which Slurm itself may put a requeueable job back into the queue.

An accounting record with such an end is the job's end only when the controller, asked at the same time, does not show
the job waiting; while the controller gives no answer the job may come back.
"""

# LAUNCH_FAILED, RECONFIG_FAIL and UPDATE_DB are in none of the sets: they are flags that hide the job's state. They are
# UNKNOWN, like a word that a later Slurm may bring, and accounting is asked for the state itself.

_HELD_WORDS = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})

_HOPELESS_REASONS = frozenset(
    {
        "AccountNotAllowed",
        "AssociationTimeLimit",
        "BadConstraints",
        "DependencyNeverSatisfied",
        "InvalidAccount",
        "InvalidQOS",
        "JobHeldAdmin",
        "JobHeldUser",
        "MaxMemPerLimit",
        "PartitionConfig",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSNotAllowed",
        "QOSTimeLimit",
        "ReservationDeleted",
        "job requeued in held state",
        "job_requeued_in_held_state",
        "launch failed requeued held",
        "launch_failed_requeued_held",
    }
)

# A job that breaks a limit for single jobs (…PerJob, …PerNode, QOSMin…) does so however long it waits; a limit for a
# user, an account or a group (…PerUser, AssocGrp…) is kept again when other jobs end.
_OWN_LIMIT = re.compile(r"(Assoc|QOS)Max\w*Per(Job|Node)(Limit)?|QOSMin\w+")


def normal(word: str) -> str:
    """The bare state word: ``CANCELLED by 1000`` and sacct's cut ``CANCELLED+`` are both ``CANCELLED``."""
    words = word.split()
    return words[0].rstrip("+").upper() if words else ""


def phase(word: str) -> Phase:
    """The phase that a state word means; a word that is not known here is UNKNOWN."""
    bare = normal(word)
    if bare in ALIVE:
        return Phase.ALIVE
    if bare == SUCCESS or bare in FAILURE:
        return Phase.TERMINAL
    return Phase.UNKNOWN


def hopeless(word: str, reason: str) -> bool:
    """Whether a job in this state waits for something that waiting does not bring.

    Slurm accepts such jobs and keeps them pending for ever (seen with 22.05: more nodes than the partition has, a
    dependency on a failed job). An administrator may still change it, so a caller acts only after some minutes.
    """
    bare = normal(word)
    if bare in _HELD_WORDS:
        return True
    cause = reason.split(",")[0].strip().strip("()")
    return bare == "PENDING" and (cause in _HOPELESS_REASONS or _OWN_LIMIT.fullmatch(cause) is not None)
