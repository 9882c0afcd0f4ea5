from __future__ import annotations

import pytest

from launcher.core.errors import SubmissionError
from launcher.slurm import client
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable, phase_of, unknown_state


@pytest.mark.parametrize("word", ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED"])
def test_alive_words(word: str) -> None:
    assert phase_of(word) is Phase.ALIVE


@pytest.mark.parametrize(
    "word",
    ["COMPLETED", "FAILED", "CANCELLED by 1000", "CANCELLED+", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"],
)
def test_words_of_an_end(word: str) -> None:
    assert phase_of(word) is Phase.TERMINAL


@pytest.mark.parametrize("word", ["", "?", "FINISHED", "DONE", "LAUNCH_FAILED", "OUT_OF_ME+", "error:"])
def test_a_word_that_is_not_known_is_unknown(word: str) -> None:
    assert phase_of(word) is Phase.UNKNOWN


def test_no_word_has_two_meanings() -> None:
    assert not client.ALIVE & client.FAILURE
    assert client.SUCCESS not in client.ALIVE | client.FAILURE
    assert client.MAY_BE_REQUEUED <= client.FAILURE


@pytest.mark.parametrize(
    ("word", "reason", "expected"),
    [
        ("PENDING", "PartitionNodeLimit", True),
        ("PENDING", "DependencyNeverSatisfied", True),
        ("PENDING", "JobHeldUser", True),
        ("PENDING", "(JobHeldAdmin)", True),
        ("PENDING", "AssocMaxWallDurationPerJobLimit", True),
        ("PENDING", "QOSMaxGRESPerNode", True),
        ("PENDING", "QOSMinGRES", True),
        ("PENDING", "job requeued in held state", True),
        ("SPECIAL_EXIT", "", True),
        ("PENDING", "Priority", False),
        ("PENDING", "Resources", False),
        ("PENDING", "QOSMaxNodePerUserLimit", False),
        ("PENDING", "AssocGrpGRES", False),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:node01", False),
        ("PENDING", "", False),
        ("RUNNING", "JobHeldUser", False),
    ],
)
def test_what_waiting_does_not_bring(word: str, reason: str, expected: bool) -> None:
    assert JobState(phase_of(word), word, reason=reason).hopeless is expected


@pytest.mark.parametrize("text", ["", "12_3", "12;cluster", "-1", "1 2", "abc", "12\n"])
def test_a_job_id_is_a_plain_number(text: str) -> None:
    with pytest.raises(SubmissionError):
        JobKey(text)


@pytest.mark.parametrize(
    ("key", "submitted", "comment", "expected"),
    [
        (JobKey("7", 100.0, "tok"), 100.0, "tok", True),
        (JobKey("7", 100.0, "tok"), 250.0, "site=x;tok", True),  # requeued: the token says it is ours
        (JobKey("7", 100.0, "tok"), 101.0, "", True),
        (JobKey("7", 100.0, "tok"), 101.0, "the site's own words", True),
        (JobKey("7", 100.0, "tok"), 250.0, "", False),
        (JobKey("7", 100.0, "tok"), 250.0, "tok2", False),
        (JobKey("7", None, "tok"), 250.0, "", None),
        (JobKey("7", 100.0, ""), None, "", None),
        (JobKey("7"), 250.0, "anything", True),  # nothing but the id is known: it is all there is
    ],
)
def test_a_job_is_more_than_its_id(key: JobKey, submitted: float | None, comment: str, expected: bool | None) -> None:
    assert key.matches(submitted, comment) is expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (JobState(Phase.TERMINAL, "COMPLETED", (0, 0)), True),
        (JobState(Phase.TERMINAL, "COMPLETED"), False),
        (JobState(Phase.TERMINAL, "COMPLETED", (0, 9)), False),
        (JobState(Phase.TERMINAL, "OUT_OF_MEMORY", (0, 0)), False),
        (JobState(Phase.TERMINAL, "CANCELLED", (0, 0)), False),
        (JobState(Phase.UNKNOWN, "COMPLETED", (0, 0)), False),
    ],
)
def test_only_completed_with_exit_code_zero_is_success(state: JobState, expected: bool) -> None:
    assert state.succeeded is expected


def test_a_state_is_described_for_a_person() -> None:
    failed = JobState(
        Phase.TERMINAL, "FAILED", (3, 0), "NonZeroExitCode", "node01", submitted=90.0, started=100.0, ended=112.0
    )
    assert failed.describe() == "FAILED, exit code 3 (NonZeroExitCode) on node01 after 12 s"
    ran = JobState(Phase.TERMINAL, "COMPLETED", (0, 0), reason="JobHeldUser", started=1.0, ended=13.0)
    assert ran.describe() == "COMPLETED after 12 s", "it was held once"
    assert "signal 9" in JobState(Phase.TERMINAL, "FAILED", (0, 9)).describe()
    assert "working directory" in JobState(Phase.TERMINAL, "FAILED", (0, 53)).describe()
    assert unknown_state("squeue: timed out").describe() == "unknown: squeue: timed out"


@pytest.mark.parametrize(
    ("word", "code", "reason", "shown"),
    [
        ("COMPLETED", (0, 0), "JobHeldUser", False),
        ("COMPLETED", (0, 0), "Resources", False),
        ("FAILED", (3, 0), "JobHeldUser", False),
        ("TIMEOUT", (0, 15), "Dependency", False),
        ("FAILED", (3, 0), "NonZeroExitCode", True),
        ("CANCELLED", (0, 0), "JobHeldUser", False),
        ("CANCELLED", (0, 15), "Resources", True),
        ("LOST", (0, 0), "its log says so", True),
    ],
)
def test_why_a_job_waited_is_no_reason_of_its_end(word: str, code: tuple[int, int], reason: str, shown: bool) -> None:
    assert (f"({reason})" in JobState(Phase.TERMINAL, word, code, reason, "node01", started=1.0).describe()) == shown
    assert reason in JobState(Phase.ALIVE, "PENDING", reason=reason).describe()


def test_nobody_to_ask_is_a_submission_error() -> None:
    assert SchedulerUnreachable("x").exit_code == 5


@pytest.mark.parametrize(
    ("derived", "said"),
    [
        (None, ""),
        ((0, 0), ""),
        ((0, 9), ""),
        ((0, 15), ""),
        ((5, 0), "a step of it ended with exit code 5"),
        ((0, 125), "a step of it ran out of memory"),
    ],
)
def test_a_failed_step_is_no_failure_and_is_told(derived: tuple[int, int] | None, said: str) -> None:
    good = JobState(Phase.TERMINAL, "COMPLETED", (0, 0), derived=derived)
    assert good.succeeded and good.failed_step == said and good.describe() == "COMPLETED" + (said and f"; {said}")
    assert "step" not in JobState(Phase.TERMINAL, "FAILED", (3, 0), derived=derived).describe()
