"""Every way in which Slurm says that a job ended or lives on: what is made of it, by each of its programs."""

from __future__ import annotations

import pytest

from launcher.slurm.client import ALIVE, FAILURE, MAY_BE_REQUEUED, JobKey, JobState, Phase
from launcher.slurm.commands import SlurmCommands
from tests.commands import Reply, ScriptedCommands
from tests.slurm.fakes import NO_DATABASE, NOT_KNOWN

JOB = JobKey("7", 1795289084.0, "tok-a")


def poll(**replies: Reply) -> JobState:
    runner = ScriptedCommands(**{"squeue": NOT_KNOWN, "sacct": "", "scontrol": NOT_KNOWN, **replies})
    return SlurmCommands(runner=runner, environ={}).poll([JOB])[JOB]


def squeue(word: str, reason: str = "None", nodes: str = "node01") -> str:
    return f"7|{word}|||1795289084|1795289085|1795289999|{nodes}|{reason}|tok-a\n"


def sacct(word: str, code: str) -> str:
    return f"7|{word}|{code}|0:0|1795289084|1795289085|1795289099|node01|None|tok-a\n"


def scontrol(word: str, code: str) -> str:
    return (
        f"JobId=7 JobName=x JobState={word} Reason=None ExitCode={code} SubmitTime=1795289084 StartTime=1795289085 "
        "EndTime=1795289099 NodeList=node01 Comment=tok-a \n"
    )


@pytest.mark.parametrize("word", sorted(FAILURE))
@pytest.mark.parametrize("code", ["0:0", "1:0", "0:125"])
def test_a_bad_end_is_one_whatever_its_exit_code(word: str, code: str) -> None:
    """OUT_OF_MEMORY, DEADLINE, BOOT_FAIL, CANCELLED and REVOKED come with 0:0."""
    by_accounting = poll(sacct=sacct(word, code))
    by_controller = poll(squeue=squeue(word), sacct=NO_DATABASE, scontrol=scontrol(word, code))
    for state in (by_accounting, by_controller):
        assert (state.phase, state.word, state.succeeded) == (Phase.TERMINAL, word, False)
        assert state.exit_code == tuple(map(int, code.split(":")))
        assert state.nodes == "node01" and state.ended == 1795289099


@pytest.mark.parametrize("word", sorted(FAILURE - MAY_BE_REQUEUED))
def test_squeue_alone_is_enough_for_a_bad_end(word: str) -> None:
    state = poll(squeue=squeue(word), sacct=NO_DATABASE, scontrol=NOT_KNOWN)
    assert (state.phase, state.succeeded) == (Phase.TERMINAL, False)


@pytest.mark.parametrize("word", sorted(ALIVE))
def test_what_lives_is_alive_whatever_accounting_says(word: str) -> None:
    state = poll(squeue=squeue(word), sacct=sacct("COMPLETED", "0:0"))
    assert state.phase is Phase.ALIVE


@pytest.mark.parametrize("code", ["1:0", "0:9", "0:125", ""])
def test_completed_is_a_success_only_with_nothing_but_zeros(code: str) -> None:
    assert not poll(sacct=sacct("COMPLETED", code)).succeeded
    assert poll(sacct=sacct("COMPLETED", "0:0")).succeeded


def test_accounting_that_was_purged_and_a_controller_that_forgot_are_unknown() -> None:
    assert poll().phase is Phase.UNKNOWN


def test_the_tasks_of_an_array_do_not_speak_for_another_job_id() -> None:
    """22.05: %A is a task's own id, and the array's id is that of its last task."""
    tasks = "".join(squeue("COMPLETED").replace("7|", f"{n}|", 1) for n in (8, 9)) + squeue("PENDING", nodes="")
    assert poll(squeue=tasks).word == "PENDING"
    assert poll(squeue=tasks.replace("7|PENDING", "10|PENDING")).phase is Phase.UNKNOWN


def test_the_components_of_a_heterogeneous_job_do_not_speak_for_its_leader() -> None:
    """22.05: the leader's %A is the id that sbatch printed, the others have the ids after it."""
    both = squeue("RUNNING") + squeue("COMPLETED").replace("7|", "8|", 1)
    assert poll(squeue=both).word == "RUNNING"
    assert poll(squeue=both.replace("RUNNING", "x", 1).replace("COMPLETED", "RUNNING")).phase is Phase.UNKNOWN
