"""SlurmCommands against answers recorded from Slurm 22.05.8, whole and broken."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from launcher.core.errors import JobError
from launcher.slurm.answers import parse_records, parse_scontrol, parse_time
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable
from launcher.slurm.commands import SCONTROL_CALLS_PER_POLL, STEP_REPEATS, SlurmCommands
from tests.commands import Reply, ScriptedCommands
from tests.slurm.fakes import DOWN, NO_DATABASE, NOT_KNOWN, TIMED_OUT

SQUEUE = """\
4|CANCELLED|||1795289084|1795289084|1795289086|node01|None|tok-e
1|COMPLETED|||1795289084|1795289084|1795289085|node[01-02]|None|run-abc token
2|FAILED|||1795289084|1795289084|1795289084|node01|NonZeroExitCode|tok-b|with|pipes
5|PENDING|||1795289084|N/A|N/A||PartitionNodeLimit|(null)
6|PENDING|||1795289084|N/A|N/A||DependencyNeverSatisfied|(null)
3|PENDING|||1795289084|N/A|N/A||JobHeldUser|tok-c
7|COMPLETING|||1795289357|1795289359|1795303759|node01|None|tok-rq
8|PENDING|||1795289359|1795289480|1795303880||BeginTime|tok-rh
"""

SACCT = """\
1|COMPLETED|0:0|0:0|1795289084|1795289084|1795289085|node[01-02]|None|run-abc token
2|FAILED|3:0|0:0|1795289084|1795289084|1795289084|node01|None|tok-b|with|pipes
3|PENDING|0:0|0:0|1795289084|Unknown|Unknown|None assigned|JobHeldUser|
4|CANCELLED by 0|0:0|0:0|1795289084|1795289084|1795289086|node01|None|tok-e
"""

REQUEUED = """\
7|REQUEUED|0:0|0:0|1795289357|1795289357|1795289359|node01|None|tok-rq
7|CANCELLED by 0|0:0|0:0|1795289480|None|1795289490|None assigned|BeginTime|
"""

SCONTROL = (
    "JobId=2 JobName=job3.sh UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901758 Nice=0 "
    "Account=benchmark QOS=normal JobState=FAILED Reason=NonZeroExitCode Dependency=(null) Requeue=1 Restarts=0 "
    "BatchFlag=1 Reboot=0 ExitCode=3:0 DerivedExitCode=5:0 "
    "RunTime=00:00:00 TimeLimit=04:00:00 TimeMin=N/A SubmitTime=1795289084 "
    "EligibleTime=1795289084 AccrueTime=1795289084 StartTime=1795289084 EndTime=1795289084 Deadline=N/A "
    "SuspendTime=None SecsPreSuspend=0 LastSchedEval=1795289084 Scheduler=Main Partition=batch "
    "AllocNode:Sid=localhost:4447 ReqNodeList=(null) ExcNodeList=(null) NodeList=node01 BatchHost=node01 NumNodes=1 "
    "NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=1,node=1,billing=1 Command=../job3.sh "
    "WorkDir=/tmp/out Comment=tok-b|with|pipes  StdErr=/tmp/out/slurm-2.out StdIn=/dev/null "
    "StdOut=/tmp/out/slurm-2.out Power= \n"
)

SUBMITTED = 1795289084.0
FAILED = JobKey("2", SUBMITTED, "tok-b")
DONE = JobKey("1", SUBMITTED, "run-abc")
HELD = JobKey("3", SUBMITTED, "tok-c")
GONE = JobKey("9999", SUBMITTED, "tok-g")


def poll(job: JobKey, **replies: Reply) -> tuple[JobState, ScriptedCommands]:
    runner = ScriptedCommands(**{"squeue": "", "sacct": "", "scontrol": NOT_KNOWN, **replies})
    return SlurmCommands(runner=runner, environ={}).poll([job])[job], runner


def test_reading_squeue() -> None:
    records = {record.id: record for record in parse_records(SQUEUE, "squeue")}
    assert len(records) == 8
    assert records["2"].comment == "tok-b|with|pipes"
    assert records["5"].comment == ""
    assert records["5"].state.hopeless
    assert records["1"].state.nodes == "node[01-02]"
    assert records["1"].state.ended == 1795289085
    assert records["7"].state.ended is None, "the end of a job that is alive is its time limit"
    assert records["8"].state.started is None, "the start of a pending job is a guess"


def test_reading_sacct() -> None:
    records = {record.id: record for record in parse_records(SACCT, "sacct")}
    assert records["2"].state.exit_code == (3, 0)
    assert records["4"].state.word == "CANCELLED"
    assert records["3"].state.nodes == ""
    assert records["3"].state.exit_code is None


def test_reading_scontrol() -> None:
    (record,) = parse_scontrol(SCONTROL)
    assert record.comment == "tok-b|with|pipes"
    assert (record.state.word, record.state.exit_code, record.state.nodes) == ("FAILED", (3, 0), "node01")
    assert record.state.submitted == SUBMITTED


def test_banners_and_torn_lines_are_no_records() -> None:
    banner = "Welcome to the cluster | please read | the | message | of | the | day |\n*** 12 ***\n\n"
    assert parse_records(banner + "3|PENDING|17952\n", "squeue") == []
    assert len(parse_records(banner + SQUEUE, "squeue")) == 8
    assert parse_records(banner + "2|FAILED|3:0", "sacct") == []
    assert parse_scontrol(banner + "slurm_load_jobs error") == []


def test_times_without_the_format_are_local_iso() -> None:
    assert parse_time("1795289084") == 1795289084
    assert parse_time("2026-11-21T19:24:44") is not None
    assert [parse_time(text) for text in ("Unknown", "N/A", "None", "")] == [None] * 4


def test_an_alive_job_costs_one_call() -> None:
    state, runner = poll(HELD, squeue=SQUEUE)
    assert (state.phase, state.word, state.reason) == (Phase.ALIVE, "PENDING", "JobHeldUser")
    assert runner.programs() == ["squeue"]
    assert runner.environments[0] == {"SLURM_TIME_FORMAT": "%s"}


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (1000, 1), (2000, 1), (2001, 2)])
def test_a_thousand_jobs_cost_one_call(count: int, calls: int) -> None:
    jobs = [JobKey(str(n), SUBMITTED, "t") for n in range(1, count + 1)]

    def squeue(argv: Sequence[str]) -> str:
        ids = argv[argv.index("-j") + 1].split(",")
        return "".join(f"{n}|RUNNING|||1795289084|1795289085|1795289999|node01|None|t\n" for n in ids)

    runner = ScriptedCommands(squeue=squeue)
    states = SlurmCommands(runner=runner, environ={}).poll(jobs)
    assert len(states) == count and all(state.phase is Phase.ALIVE for state in states.values())
    assert runner.programs() == ["squeue"] * calls


def test_the_exit_code_of_an_ended_job_is_accountings() -> None:
    state, runner = poll(FAILED, squeue=SQUEUE, sacct=SACCT)
    assert (state.word, state.exit_code, state.source) == ("FAILED", (3, 0), "sacct")
    assert runner.programs() == ["squeue", "sacct"]


STEPS = """\
1.batch|COMPLETED|0:0|||1795289084||||
1.extern|RUNNING|0:0|||1795289084||||
1.0|{}|{}|||1795289084||||
"""


@pytest.mark.parametrize(
    ("step", "derived"),
    [
        (("FAILED", "5:0"), (5, 0)),
        (("OUT_OF_MEMORY", "0:125"), (0, 125)),
        (("CANCELLED by 0", "0:9"), (0, 0)),
        (("COMPLETED", "0:0"), (0, 0)),
    ],
)
def test_a_step_tells_what_the_record_of_its_job_lacks(step: tuple[str, str], derived: tuple[int, int]) -> None:
    state, runner = poll(DONE, squeue=SQUEUE, sacct=SACCT + STEPS.format(*step))
    assert state.succeeded and state.derived == derived
    assert runner.programs() == ["squeue", "sacct"]


@pytest.mark.parametrize(
    ("step", "derived"),
    [
        ("batch|OUT_OF_MEMORY|0:125", (0, 125)),
        ("extern|OUT_OF_MEMORY|0:125", (0, 125)),
        ("1|OUT_OF_MEMORY|0:125", (0, 125)),
        ("1|OUT_OF_MEMORY|137:0", (0, 125)),
        ("1|FAILED|9:0", (3, 0)),
    ],
)
def test_a_step_that_the_memory_limit_ended_is_told_whatever_others_ended_with(
    step: str, derived: tuple[int, int]
) -> None:
    of_job = SACCT.replace("|0:0|", "|3:0|")  # its derived code is the highest one, and 3:0 is above 0:125
    state, runner = poll(
        FAILED, squeue=SQUEUE, sacct=of_job + f"2.0|FAILED|3:0|||1795289084||||\n2.{step}|||1795289084||||\n"
    )
    assert state.word == "FAILED" and state.exit_code == (3, 0) and state.out_of_memory == (derived == (0, 125))
    assert runner.programs() == ["squeue", "sacct"]


def shown_as_done(derived: str) -> str:
    """What scontrol shows of the job `DONE`."""
    text = SCONTROL.replace("JobId=2", "JobId=1").replace("=FAILED", "=COMPLETED").replace(" ExitCode=3", " ExitCode=0")
    return text.replace("DerivedExitCode=5:0", f"DerivedExitCode={derived}")


@pytest.mark.parametrize(
    ("answers", "derived", "calls"),
    [
        # The controller's answer is enough, where no step of the job failed.
        ([SACCT + STEPS.format("RUNNING", "0:0")], "0:0", 1),
        ([SACCT], "0:0", 1),
        # It has a code, which may be a cancelled step's: accounting is waited for.
        ([SACCT + STEPS.format("RUNNING", "0:0")] * 2 + [SACCT + STEPS.format("FAILED", "5:0")], "5:0", 3),
        ([SACCT + STEPS.format("RUNNING", "0:0"), SACCT + STEPS.format("CANCELLED", "143:0")], "143:0", 2),
        ([SACCT, SACCT + STEPS.format("CANCELLED", "143:0")], "143:0", 2),
        ([""], "0:0", 1),
    ],
)
def test_accounting_is_asked_again_only_where_the_controller_does_not_tell(
    answers: list[str], derived: str, calls: int
) -> None:
    replies, pauses = iter(answers), list[float]()
    scontrol = shown_as_done(derived)
    runner = ScriptedCommands(squeue=SQUEUE, sacct=lambda argv: next(replies), scontrol=scontrol)
    (state,) = SlurmCommands(runner=runner, environ={}, sleep=pauses.append).poll([DONE]).values()
    assert state.succeeded and state.derived == ((5, 0) if derived == "5:0" else (0, 0))
    assert runner.programs() == ["squeue", "sacct", "scontrol", *["sacct"] * (calls - 1)] and len(pauses) == calls - 1


def test_a_step_that_seems_to_run_after_its_job_is_waited_for_while_the_controller_is_away() -> None:
    replies = iter([STEPS.format("RUNNING", "0:0"), STEPS.format("RUNNING", "0:0"), STEPS.format("FAILED", "5:0")])
    pauses: list[float] = []
    runner = ScriptedCommands(squeue=DOWN, sacct=lambda argv: SACCT + next(replies))
    (state,) = SlurmCommands(runner=runner, environ={}, sleep=pauses.append).poll([DONE]).values()
    assert state.derived == (5, 0) and len(pauses) == 2


def test_accounting_that_is_asked_again_about_one_job_has_told_enough_of_the_others() -> None:
    """The memory limit of a failed job is in the first answer only."""
    first = SACCT.replace("2|FAILED|3:0|0:0", "2|FAILED|3:0|3:0")
    first += "2.0|OUT_OF_MEMORY|0:125|||1795289084||||\n" + STEPS.format("RUNNING", "0:0")
    replies = iter([first, SACCT.splitlines()[0] + "\n" + STEPS.format("FAILED", "5:0")])
    runner = ScriptedCommands(squeue=SQUEUE, sacct=lambda argv: next(replies), scontrol=shown_as_done("5:0"))
    states = SlurmCommands(runner=runner, environ={}, sleep=lambda seconds: None).poll([DONE, FAILED])
    assert states[DONE].derived == (5, 0) and states[FAILED].out_of_memory


def test_where_no_step_tells_the_controller_does() -> None:
    scontrol = shown_as_done("5:0")
    for steps in ("", NO_DATABASE, STEPS.format("FAILED", "7:0").replace("1795289084", "1795200000")):
        replies = iter([SACCT, *[steps] * STEP_REPEATS])
        runner = ScriptedCommands(squeue=SQUEUE, sacct=lambda argv, replies=replies: next(replies), scontrol=scontrol)
        (state,) = SlurmCommands(runner=runner, environ={}, sleep=lambda seconds: None).poll([DONE]).values()
        assert state.succeeded and state.derived == (5, 0), steps


def test_codes_that_no_call_was_left_for_are_unknown_until_the_next_poll() -> None:
    """Each ends as its job does, for all that accounting tells; the controller knows that a step of the last failed."""
    jobs = [JobKey(str(100 + number), SUBMITTED, "tok") for number in range(SCONTROL_CALLS_PER_POLL + 5)]
    row = "{0}|COMPLETED|0:0|0:0|1795289084|1795289084|1795289085|node01|None|tok\n"
    sacct = "".join((row + row.replace("{0}", "{0}.0")).format(job.id) for job in jobs)
    squeue = "".join(f"{job.id}|COMPLETED|||1795289084|1795289084|1795289085|node01|None|tok\n" for job in jobs)

    def scontrol(argv: Sequence[str]) -> str:
        return shown_as_done("5:0" if argv[-1] == jobs[-1].id else "0:0").replace("JobId=1", f"JobId={argv[-1]}")

    commands = SlurmCommands(
        runner=ScriptedCommands(squeue=squeue, sacct=sacct, scontrol=scontrol), environ={}, sleep=lambda seconds: None
    )
    states = commands.poll(jobs)
    later = [job for job, state in states.items() if state.phase is Phase.UNKNOWN]
    assert later == jobs[SCONTROL_CALLS_PER_POLL:] and all(states[job].succeeded for job in jobs if job not in later)
    states = commands.poll(later)
    assert [state.derived for state in states.values()] == [(0, 0)] * 4 + [(5, 0)]


def test_a_failed_array_task_has_the_exit_code_of_its_script() -> None:
    record = SACCT.replace("2|FAILED|3:0", "2|FAILED|0:0")
    steps = "2.batch|FAILED|3:0|||1795289084||||\n2.extern|COMPLETED|0:0|||1795289084||||\n"
    state, _ = poll(FAILED, squeue=SQUEUE, sacct=record + steps)
    assert (state.word, state.exit_code) == ("FAILED", (3, 0))


def test_scontrol_tells_while_accounting_lags() -> None:
    state, _ = poll(FAILED, squeue=SQUEUE, sacct="2|RUNNING|0:0|0:0|1795289084|1795289084|Unknown|node01|None|\n")
    assert (state.word, state.exit_code, state.source) == ("FAILED", None, "squeue"), "a failure, its code not known"
    state, _ = poll(FAILED, squeue=SQUEUE, sacct=NO_DATABASE, scontrol=SCONTROL)
    assert (state.word, state.exit_code, state.source) == ("FAILED", (3, 0), "scontrol")


def test_an_end_without_its_time_lacks_its_codes_too() -> None:
    """Accounting's record while the job's start has come and its end has not (22.05)."""
    record = SACCT.replace(
        "2|FAILED|3:0|0:0|1795289084|1795289084|1795289084", "2|FAILED|0:0|0:0|1795289084|1795289084|Unknown"
    )
    state, _ = poll(FAILED, squeue=SQUEUE, sacct=record, scontrol=SCONTROL)
    assert (state.word, state.exit_code, state.source) == ("FAILED", (3, 0), "scontrol")
    state, _ = poll(FAILED, sacct=record)
    assert (state.word, state.source) == ("FAILED", "sacct"), "nobody else knows the job"


OF_A_STEP = """\
1|COMPLETED|0:0|0:0|1795289084|1795289084|1795289085|node01|None|run-abc
1.batch|COMPLETED|0:0||1795289084|1795289084|1795289085|node01||
1.0|COMPLETED|0:0||1795289084|1795289084|1795289084|node[01-02]||
"""
"""What accounting made of the script's step, before it had the start of the job, which has node[01-02] (22.05)."""


def test_the_nodes_of_a_record_that_a_step_made_are_not_the_jobs() -> None:
    state, runner = poll(DONE, squeue=SQUEUE, sacct=OF_A_STEP)
    assert state.describe() == "COMPLETED on node[01-02] after 1 s"
    assert runner.programs() == ["squeue", "sacct"]
    for squeue in (DOWN, NOT_KNOWN, ""):
        state, _ = poll(DONE, squeue=squeue, sacct=OF_A_STEP)
        assert state.describe() == "COMPLETED after 1 s"
    state, _ = poll(DONE, squeue=DOWN, sacct=OF_A_STEP.replace("[01-02]", "01"))
    assert state.nodes == "node01", "a job of one node"
    state, _ = poll(DONE, squeue=DOWN, sacct=OF_A_STEP.replace("|node01|None", "|node[01-02]|None"))
    assert state.nodes == "node[01-02]"
    other = SQUEUE.replace("1|COMPLETED|||1795289084", "1|COMPLETED|||1795289100").replace("node[01-02]", "node07")
    state, _ = poll(DONE, squeue=other, sacct=OF_A_STEP)
    assert state.nodes == "", "another job of this id"


def test_the_nodes_of_a_job_that_completes_are_not_all() -> None:
    (record,) = parse_records("2|COMPLETING|||1795762804|1795762804|1795762804|node02|None|(null)\n", "squeue")
    (shown,) = parse_scontrol(SCONTROL.replace("JobState=FAILED", "JobState=COMPLETING"))
    assert record.state.nodes == shown.state.nodes == ""


@pytest.mark.parametrize(
    ("steps", "shown", "derived"),
    [
        ("COMPLETED|0:0", "5:0", (5, 0)),
        ("COMPLETED|0:0", "0:0", (0, 0)),
        ("COMPLETED|0:0\n1.1|CANCELLED by 0|143:0", "143:0", (0, 0)),
        ("COMPLETED|0:0\n1.1|CANCELLED by 0|0:15", "5:0", (5, 0)),
    ],
)
def test_a_step_that_seems_to_have_ended_as_its_job_is_asked_of_the_controller(
    steps: str, shown: str, derived: tuple[int, int]
) -> None:
    """For 0.4 s after the job's end accounting, unlike scontrol, had 0:0 of a step that FAILED 5:0 (22.05)."""
    lines = f"1.0|{steps}".replace("\n", "||1795289084|1795289084|1795289085|||\n")
    sacct = f"{SACCT}{lines}||1795289084|1795289084|1795289085||||\n"
    scontrol = (
        f"JobId=1 JobState=COMPLETED ExitCode=0:0 DerivedExitCode={shown} SubmitTime=1795289084 NodeList=node01\n"
    )
    state, runner = poll(DONE, squeue=SQUEUE, sacct=sacct, scontrol=scontrol)
    assert state.succeeded and state.derived == derived and state.nodes == "node[01-02]"
    assert runner.programs() == ["squeue", "sacct", "scontrol"]
    _, runner = poll(DONE, squeue=DOWN, sacct=sacct)
    assert runner.programs() == ["squeue", "sacct"], "a controller that is away is asked once"


def test_no_success_without_its_exit_code() -> None:
    state, _ = poll(DONE, squeue=SQUEUE, sacct=NO_DATABASE, scontrol=TIMED_OUT)
    assert state.phase is Phase.UNKNOWN
    assert "squeue: says COMPLETED" in state.reason
    state, _ = poll(DONE, squeue=SQUEUE, sacct=SACCT)
    assert state.succeeded


@pytest.mark.parametrize("squeue", [NOT_KNOWN, "", "Maintenance on Tuesday\n"])
def test_absence_is_not_an_end(squeue: Reply) -> None:
    state, runner = poll(GONE, squeue=squeue)
    assert state.phase is Phase.UNKNOWN
    assert state.reason == (
        "squeue: does not know the job; sacct: does not know the job; scontrol: does not know the job"
    )
    assert runner.programs() == ["squeue", "sacct", "scontrol"]


@pytest.mark.parametrize("squeue", [DOWN, TIMED_OUT, (127, "squeue: No such file or directory"), (0, "")])
def test_a_silent_controller_leaves_the_end_to_accounting(squeue: Reply) -> None:
    state, _ = poll(FAILED, squeue=squeue, sacct=SACCT, scontrol=DOWN)
    assert (state.phase, state.word) == (Phase.TERMINAL, "FAILED")
    state, _ = poll(HELD, squeue=squeue, sacct=SACCT, scontrol=DOWN)
    assert state.phase is Phase.UNKNOWN, "accounting is believed about ends only"
    assert "sacct: says PENDING" in state.reason


def test_a_job_the_controller_lost_is_not_alive_because_accounting_says_so() -> None:
    lost = "9999|RUNNING|0:0|0:0|1795289084|1795289084|Unknown|node01|None|\n"
    state, _ = poll(GONE, squeue=NOT_KNOWN, sacct=lost)
    assert state.phase is Phase.UNKNOWN


def test_nobody_answers() -> None:
    state, _ = poll(FAILED, squeue=DOWN, sacct=NO_DATABASE, scontrol=DOWN)
    assert state.phase is Phase.UNKNOWN
    for part in ("Unable to contact slurm controller", "Connection refused"):
        assert part in state.reason


def test_a_silent_scontrol_is_asked_once_a_round() -> None:
    runner = ScriptedCommands(squeue=DOWN, sacct="", scontrol=DOWN)
    states = SlurmCommands(runner=runner, environ={}).poll([JobKey(str(n), 1.0, "t") for n in range(1, 51)])
    assert len(states) == 50
    assert runner.programs() == ["squeue", "sacct", "scontrol"]


@pytest.mark.parametrize("word", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_what_may_be_requeued_is_an_end_only_by_the_controllers_leave(word: str) -> None:
    record = f"9999|{word}|0:0|0:0|1795289084|1795289084|1795289090|node01|None|tok-g\n"
    state, _ = poll(GONE, squeue=DOWN, sacct=record, scontrol=DOWN)
    assert state.phase is Phase.UNKNOWN
    state, _ = poll(GONE, squeue=NOT_KNOWN, sacct=record)
    assert (state.phase, state.word) == (Phase.TERMINAL, word)
    state, _ = poll(GONE, squeue="9999|PENDING|||1795289100|N/A|N/A||BeginTime|tok-g\n", sacct=record)
    assert state.phase is Phase.ALIVE


def test_another_job_with_the_same_id_is_not_ours() -> None:
    other = "2|COMPLETED|||1795299999|1795299999|1795299999|node01|None|tok-z\n"
    finished = "2|COMPLETED|0:0|0:0|1795299999|1795299999|1795299999|node01|None|tok-z\n"
    state, _ = poll(FAILED, squeue=other, sacct=finished, scontrol=NOT_KNOWN)
    assert state.phase is Phase.UNKNOWN
    assert "squeue: knows another job with this id" in state.reason
    state, _ = poll(FAILED, squeue=other, sacct=SACCT + finished)
    assert (state.word, state.exit_code) == ("FAILED", (3, 0)), "accounting keeps both; ours is the older one"


def test_a_requeued_job_is_followed_over_its_new_submit_time() -> None:
    job = JobKey("7", 1795289357.0, "tok-rq")
    state, _ = poll(job, squeue=NOT_KNOWN, sacct=REQUEUED)
    assert state.word == "CANCELLED"
    state, _ = poll(job, squeue="7|PENDING|||1795289480|N/A|N/A||BeginTime|tok-rq\n", sacct=REQUEUED)
    assert state.phase is Phase.ALIVE


@pytest.mark.parametrize("word", ["LAUNCH_FAILED", "HIBERNATING", "?"])
def test_a_word_that_is_not_known_is_unknown(word: str) -> None:
    state, _ = poll(FAILED, squeue=f"2|{word}|1795289084|1795289084|N/A|None|node01|tok-b\n")
    assert state.phase is Phase.UNKNOWN


def test_under_faults_no_job_is_ever_called_finished_wrongly() -> None:
    rng = random.Random(5)
    faults: list[Reply] = [DOWN, TIMED_OUT, "", "Welcome!\n", (1, "slurm_load_jobs error: Socket timed out"), (1, "")]
    running = "2|RUNNING|0:0|0:0|1795289084|1795289084|Unknown|node01|None|\n"
    accounts: list[Reply] = [running, "", NO_DATABASE, TIMED_OUT]
    told = 0

    def squeue(argv: Sequence[str]) -> Reply:
        nonlocal told
        if rng.random() < 0.3:
            return rng.choice(faults)
        told += 1
        return "2|RUNNING|||1795289084|1795289085|1795299999|node01|None|tok-b\n"

    def sacct(argv: Sequence[str]) -> Reply:
        return rng.choice(accounts)

    scheduler = SlurmCommands(runner=ScriptedCommands(squeue=squeue, sacct=sacct, scontrol=DOWN), environ={})
    states = [scheduler.poll([FAILED])[FAILED] for _ in range(2000)]
    assert sum(state.phase is Phase.ALIVE for state in states) == told
    assert not any(state.phase is Phase.TERMINAL for state in states)


def test_the_clients_environment_is_cleaned() -> None:
    runner = ScriptedCommands(squeue=SQUEUE)
    environ = {"PATH": "/bin", "SQUEUE_FORMAT": "%i", "SLURM_CLUSTERS": "x", "SLURM_CONF": "/c", "SACCT_FORMAT": "x"}
    SlurmCommands(runner=runner, environ=environ).poll([HELD])
    assert runner.environments == [{"PATH": "/bin", "SLURM_CONF": "/c", "SLURM_TIME_FORMAT": "%s"}]


def test_finding_a_job_by_its_token() -> None:
    runner = ScriptedCommands(squeue=SQUEUE, sacct=SACCT)
    assert SlurmCommands(runner=runner, environ={}).find("tok-b") == [FAILED]
    for token in ("tok", ""):
        assert SlurmCommands(runner=runner, environ={}).find(token) == []
    assert "-j" not in runner.calls[0]


def test_finding_says_none_only_by_somebody_who_knows() -> None:
    with pytest.raises(SchedulerUnreachable, match="Unable to contact"):
        SlurmCommands(runner=ScriptedCommands(squeue=DOWN, sacct=SACCT), environ={}).find("tok-x")
    by_accounting = SlurmCommands(runner=ScriptedCommands(squeue=DOWN, sacct=SACCT), environ={}).find("tok-b")
    assert by_accounting == [FAILED]
    assert SlurmCommands(runner=ScriptedCommands(squeue="", sacct=NO_DATABASE), environ={}).find("tok-x") == []


def test_cancelling_looks_whose_it_is() -> None:
    other = "2|RUNNING|||1795299999|1795299999|1795299999|node01|None|tok-z\n"
    ended = "1|COMPLETED|||1795289084|1795289084|1795289085|node01|None|run-abc\n"
    runner = ScriptedCommands(squeue=other + ended + SQUEUE.splitlines()[5] + "\n", scancel="")
    SlurmCommands(runner=runner, environ={}).cancel([FAILED, DONE, HELD])
    assert runner.calls[-1] == ("scancel", "3")


def test_nothing_to_cancel_is_no_call() -> None:
    runner = ScriptedCommands(squeue=SQUEUE)
    SlurmCommands(runner=runner, environ={}).cancel([FAILED, DONE])
    assert runner.programs() == ["squeue"]


@pytest.mark.parametrize("squeue", [DOWN, TIMED_OUT, "", NOT_KNOWN])
def test_a_bad_answer_does_not_leave_a_job_running(squeue: Reply) -> None:
    runner = ScriptedCommands(squeue=squeue, scancel="")
    SlurmCommands(runner=runner, environ={}).cancel([HELD])
    assert runner.calls[-1] == ("scancel", "3")


def test_cancelling_is_tried_again() -> None:
    answers: list[Reply] = [(8, "scancel: error: Kill job error on job id 3: Unable to contact"), ""]
    slept: list[float] = []
    runner = ScriptedCommands(squeue=SQUEUE, scancel=lambda argv: answers.pop(0))
    SlurmCommands(runner=runner, environ={}, sleep=slept.append).cancel([HELD])
    assert runner.programs() == ["squeue", "scancel", "scancel"]
    assert slept == [0.5]


def test_cancelling_in_vain_is_said() -> None:
    runner = ScriptedCommands(
        squeue=SQUEUE, scancel=(8, "scancel: error: Kill job error on job id 3: Unable to contact")
    )
    with pytest.raises(SchedulerUnreachable, match="did not go through"):
        SlurmCommands(runner=runner, environ={}, sleep=lambda seconds: None).cancel([HELD])
    refused = (210, "scancel: error: Kill job error on job id 3: Access/permission denied")
    runner = ScriptedCommands(squeue=SQUEUE, scancel=refused)
    with pytest.raises(JobError, match="refuses"):
        SlurmCommands(runner=runner, environ={}).cancel([HELD])
    assert runner.programs() == ["squeue", "scancel"]
    over = (1, "scancel: error: Kill job error on job id 3: Job/step already completing or completed")
    SlurmCommands(runner=ScriptedCommands(squeue=SQUEUE, scancel=over), environ={}).cancel([HELD])


def test_evidence_holds_answers_and_silences() -> None:
    runner = ScriptedCommands(squeue="JOBID…\n", scontrol=SCONTROL, sacct=NO_DATABASE)
    said = SlurmCommands(runner=runner, environ={}).describe(FAILED)
    assert said["scontrol"] == SCONTROL
    assert "Connection refused" in said["sacct"]
    assert runner.environments[0] == {}, "for a person: no seconds since the epoch"


def test_a_release_is_tried_again() -> None:
    replies = iter([DOWN, TIMED_OUT, ""])
    slept: list[float] = []
    runner = ScriptedCommands(scontrol=lambda argv: next(replies))
    SlurmCommands(runner=runner, environ={}, sleep=slept.append).release(DONE)
    assert runner.calls == [("scontrol", "release", DONE.id)] * 3
    assert slept == [1.0, 1.0]


def test_a_release_of_what_is_over_is_none() -> None:
    for said in ("Job has already finished for job 1\nslurm_suspend error: Job has already finished", NOT_KNOWN[1]):
        SlurmCommands(runner=ScriptedCommands(scontrol=(1, said)), environ={}).release(DONE)


def test_a_release_that_is_refused_or_never_goes_through() -> None:
    refused = ScriptedCommands(scontrol=(1, "Access/permission denied for job 1"))
    with pytest.raises(JobError, match="refuses"):
        SlurmCommands(runner=refused, environ={}).release(DONE)
    assert len(refused.calls) == 1
    away = ScriptedCommands(scontrol=DOWN)
    with pytest.raises(SchedulerUnreachable, match="did not go through"):
        SlurmCommands(runner=away, environ={}, sleep=lambda seconds: None).release(DONE)
    assert len(away.calls) == 10
