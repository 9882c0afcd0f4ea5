"""Slurm's words for a job's state, and for why it waits, sorted by what a launcher must do about them.

From squeue(1), sacct(1) and the JOB STATES page of Slurm 20.02 to 25.11, and from the strings of libslurm 22.05.
"""

from __future__ import annotations

import re
from enum import Enum


class Phase(Enum):
    """Where a job stands. UNKNOWN is an answer too: nobody could say, so ask again; it never means "finished"."""

    ALIVE = "alive"
    TERMINAL = "terminal"
    UNKNOWN = "unknown"


SUCCESS = "COMPLETED"
"""The only word of success, and only with exit code 0:0."""

ALIVE = frozenset(
    {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        # COMPLETING hides the state below it: the work is over, but processes and nodes are not yet given back, and
        # files may still be written.
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
"""No word of Slurm's, but ours: the job has ended by its own word, and Slurm, asked for long enough, knows of no end.
No success, whatever the job says: a limit, a dead node and a cancel are for Slurm to tell."""

MAY_BE_REQUEUED = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED"})
"""Ends after which Slurm itself may put a requeueable job back into the queue.

An accounting record that ends so is only the job's end when the controller, asked in the same round, no longer has it
waiting; while the controller is silent the job may come back.
"""

# LAUNCH_FAILED, RECONFIG_FAIL and UPDATE_DB are in none of the sets: they are flags over a state that they hide, as a
# word that a later Slurm may bring. Both are unknown, and accounting is asked what lies below.

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

# A limit of this one job (…PerJob, …PerNode, QOSMin…) stays broken however long it waits; limits over a user, an
# account or a group (…PerUser, AssocGrp…) end when other jobs do.
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
