"""Jobs that must not come out green, and good ones of unusual answers that must: one table each.

The results on disk are good unless a row spoils them. Slurm's programs are stand-ins that print what a row says; all
that reads them, follows the job and ends the run is the launcher's own.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec import structs

from launcher.core.errors import Cancelled
from launcher.core.stop import Stop
from launcher.run import finish
from launcher.run.kind import Run
from launcher.run.loop import run_all
from launcher.run.record import RecordedJob
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.poller import Pace
from launcher.srtctl.planned import SrtctlJob
from tests.commands import Reply, ScriptedCommands
from tests.plans import with_job
from tests.result.documents import age, fixed_1k1k, write
from tests.run.runs import a_run, events, plan_on, services
from tests.slurm.fakes import DOWN, NO_DATABASE, NOT_KNOWN

QUICK = Pace(first=0.01, running=0.05, pending=0.05, tick=0.01, patience=0.5, hopeless=0.4, marker=0.2)
FOLDER = "sa-bench_isl_1024_osl_1024"
T = 1795289084
"""When the job was submitted, and all times of the answers."""

Spoil = Callable[["Job"], object]


@dataclass
class Job:
    """Job 7 of a run, with a good result for each concurrency."""

    root: Path
    run: Run
    spoiled: list[str] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.root / "tree/outputs/7/logs"

    def result(self, concurrency: int = 4, job: str = "7") -> Path:
        path = self.logs.parents[1] / job / "logs" / FOLDER
        return path / f"results_concurrency_{concurrency}_gpus_8_ctx_4_gen_4.json"


def queue(state: str, *, id: str = "7", at: int = T, reason: str = "None", comment: str = "r1") -> str:
    """A line of squeue."""
    return f"{id}|{state}|||{at}|{at + 1}|{at + 60}|node01|{reason}|{comment}\n"


def account(
    state: str, code: str, derived: str = "0:0", *, id: str = "7", at: int = T, reason: str = "None", comment: str = ""
) -> str:
    """A line of sacct: a job, or with a dotted id a step."""
    return f"{id}|{state}|{code}|{derived}|{at}|{at + 1}|{at + 60}|node01|{reason}|{comment}\n"


def shown(state: str, code: str, derived: str, *, at: int = T) -> str:
    """A line of scontrol show job."""
    return (
        f"JobId=7 JobName=x JobState={state} Reason=None ExitCode={code} DerivedExitCode={derived} SubmitTime={at} "
        f"StartTime={at + 1} EndTime={at + 60} NodeList=node01 Comment=r1\n"
    )


def steps(*codes: str, state: str = "COMPLETED") -> str:
    """The batch script's record, and that of a step for each code."""
    batch = account(state, "0:0", "", id="7.batch")
    ends = {"0:0": "COMPLETED", "0:125": "OUT_OF_MEMORY", "0:9": "CANCELLED by 0", "0:15": "CANCELLED by 0"}
    return batch + "".join(account(ends.get(c, "FAILED"), c, "", id=f"7.{i}") for i, c in enumerate(codes))


GOOD = account("COMPLETED", "0:0") + steps("0:0")


@dataclass(frozen=True)
class Answers:
    """What Slurm's programs answer, the exit code of the run, and words that are said."""

    exit_code: int
    says: str
    sacct: Reply = GOOD
    squeue: Reply = ""
    scontrol: Reply = NOT_KNOWN
    spoil: Spoil = lambda job: None


def log(text: str) -> Spoil:
    """The log of srtctl's orchestrator."""
    return lambda job: (job.logs / "sweep_7.log").write_text(text)


def elsewhere(job: Job) -> None:
    """The results lie in the directory of another job, and the record's log leads there."""
    job.logs.parent.rename(job.logs.parents[1] / "8")
    output = job.logs.parents[1] / "8"
    recorded = job.run.record.job
    assert recorded is not None
    log = str(output / "logs/sweep_7.log")
    job.run.record.update(job=dataclasses.replace(recorded, output=str(output), log=log))


TRAPS: dict[str, Answers] = {
    # Its own end
    "it failed": Answers(6, "FAILED, exit code 3", account("FAILED", "3:0")),
    "it failed after everything was measured": Answers(
        6, "benchmark: FAILED, exit code 1", account("FAILED", "1:0") + steps("0:0", state="FAILED")
    ),
    "completed, and a signal": Answers(6, "COMPLETED, signal 9", account("COMPLETED", "0:9")),
    "completed, and an exit code": Answers(6, "COMPLETED, exit code 2", account("COMPLETED", "2:0")),
    "completed, without an exit code": Answers(6, "the job ended as COMPLETED", account("COMPLETED", "")),
    "out of memory, exit code 0:0": Answers(6, "memory limit of the job was reached", account("OUT_OF_MEMORY", "0:0")),
    "the time limit, exit code 0:0": Answers(6, "the time limit was reached on node01", account("TIMEOUT", "0:0")),
    "cancelled by another": Answers(6, "somebody else cancelled it on node01", account("CANCELLED by 1000", "0:0")),
    "cancelled, a word that was cut": Answers(6, "somebody else cancelled it", account("CANCELLED+", "0:15")),
    "a node failed": Answers(6, "a node failed on node01", account("NODE_FAIL", "0:0")),
    "preempted": Answers(6, "another job took its place", account("PREEMPTED", "0:15")),
    "a deadline": Answers(6, "its deadline was reached", account("DEADLINE", "0:0")),
    "no log could be opened": Answers(6, "could not be opened on node01", account("FAILED", "0:53")),
    "the script's code is in its step alone": Answers(
        6, "FAILED, exit code 5", account("FAILED", "0:0") + account("FAILED", "5:0", "", id="7.batch")
    ),
    # Steps of a job that completed: said, and the job is good
    "a failed step, derived exit code 0:0": Answers(
        0, "a step of it ended with exit code 5", account("COMPLETED", "0:0") + steps("0:0", "5:0")
    ),
    "a failed step that only the controller knows": Answers(
        0,
        "a step of it ended with exit code 5",
        account("COMPLETED", "0:0"),
        scontrol=shown("COMPLETED", "0:0", "5:0"),
    ),
    "a failed step whose end accounting does not have yet": Answers(
        0, "a step of it ended with exit code 5", GOOD, scontrol=shown("COMPLETED", "0:0", "5:0")
    ),
    "a step out of memory": Answers(
        0, "a step of it ran out of memory", account("COMPLETED", "0:0") + steps("0:0", "0:125")
    ),
    # Who is it?
    "another job of our id": Answers(
        6,
        "knows another job with this id",
        account("COMPLETED", "0:0", at=T + 900, comment="theirs"),
        queue("COMPLETED", at=T + 900, comment="theirs"),
        shown("COMPLETED", "0:0", "0:0", at=T + 900).replace("=r1", "=theirs"),
    ),
    "another's job of our name": Answers(
        6,
        "FAILED, exit code 4",
        account("COMPLETED", "0:0", id="70") + account("FAILED", "4:0") + account("COMPLETED", "0:0", id="8"),
        queue("COMPLETED", id="70"),
    ),
    "an array's task and another component": Answers(
        6,
        "squeue: does not know the job",
        account("COMPLETED", "0:0", id="7_1") + account("COMPLETED", "0:0", id="7+1"),
    ),
    "a step that completed is no job": Answers(6, "sacct: does not know the job", steps("0:0")),
    # Hold, requeue
    "held by an administrator": Answers(
        6, "will not start by waiting: PENDING (JobHeldAdmin)", "", queue("PENDING", reason="JobHeldAdmin")
    ),
    "requeued, and held": Answers(
        6,
        "will not start by waiting: REQUEUE_HOLD",
        account("FAILED", "1:0", at=T),
        queue("REQUEUE_HOLD", reason="job requeued in held state"),
    ),
    "launch failed, requeued, held": Answers(
        6, "launch_failed_requeued_held", "", queue("PENDING", reason="launch_failed_requeued_held")
    ),
    "requeued, and the second life failed": Answers(
        6, "FAILED, exit code 2", account("REQUEUED", "0:0") + account("FAILED", "2:0", at=T + 130)
    ),
    "more nodes than there are": Answers(
        6, "will not start by waiting: PENDING (PartitionNodeLimit)", "", queue("PENDING", reason="PartitionNodeLimit")
    ),
    "a node failed, and it may come back": Answers(
        6, "no definite answer from slurm", account("NODE_FAIL", "1:0"), DOWN, DOWN
    ),
    # Nobody knows
    "completed, by squeue alone": Answers(6, "no definite answer from slurm", NO_DATABASE, queue("COMPLETED"), DOWN),
    "a word that nobody knows": Answers(
        6,
        "no definite answer from slurm",
        account("LAUNCH_FAILED", "0:0"),
        scontrol=shown("LAUNCH_FAILED", "0:0", "0:0"),
    ),
    "accounting has it running for ever": Answers(6, "sacct: says RUNNING", account("RUNNING", "0:0"), "", NOT_KNOWN),
    "its log says that it ended well, and Slurm says nothing": Answers(
        6,
        "Slurm lost the job",
        NO_DATABASE,
        DOWN,
        DOWN,
        log("✓ Sweep completed successfully\nEnd: now\n=====\n"),
    ),
    # A good job, and results that are not its own
    "the results of another job": Answers(7, "these are not the logs of job 7", spoil=elsewhere),
    "results from before": Answers(7, "is older than this run", spoil=lambda job: age(job.result(), 9e6)),
    "no results": Answers(7, "concurrency 4: no result below", spoil=lambda job: job.result().unlink()),
    "results of other lengths": Answers(
        7,
        "ISL/OSL 8192/1024, expected 1024/1024",
        spoil=lambda job: job.result().parent.rename(job.logs / "sa-bench_isl_8192_osl_1024"),
    ),
}

UNUSUAL: dict[str, Answers] = {
    "servers that were cancelled at the end": Answers(0, "", account("COMPLETED", "0:0") + steps("0:0", "0:9", "0:15")),
    "a banner around everything": Answers(
        0, "", f"*** maintenance on Friday | 7|COMPLETED ***\n{GOOD}bye\n", "Welcome to node 7|RUNNING\n"
    ),
    "squeue fails": Answers(0, "", squeue=DOWN),
    "no accounting, and the controller knows": Answers(
        0, "", NO_DATABASE, queue("COMPLETED"), shown("COMPLETED", "0:0", "0:0")
    ),
    "a comment that the site rewrote": Answers(
        0, "", account("COMPLETED", "0:0", comment="cost-centre 12") + steps("0:0"), ""
    ),
    "a second of difference": Answers(0, "", account("COMPLETED", "0:0", at=T + 1) + steps("0:0")),
    "requeued, and then it completed": Answers(
        0,
        "",
        account("REQUEUED", "0:0")
        + account("COMPLETED", "0:0", at=T + 130)
        + account("COMPLETED", "0:0", "", id="7.batch", at=T + 130),
    ),
    "an older job of our id failed": Answers(0, "", account("FAILED", "1:0", at=T - 90000, comment="theirs") + GOOD),
    "the last reason why it waited": Answers(0, "", account("COMPLETED", "0:0", reason="JobHeldUser") + steps("0:0")),
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    (tmp_path / "workspace").mkdir()
    plan = plan_on("local", tmp_path / "workspace")
    tree = structs.replace(SrtctlJob.of(plan).srt_slurm, root=str(tmp_path / "tree"))
    scheduler = dataclasses.replace(plan.scheduler, kind="slurm")
    plan = dataclasses.replace(with_job(plan, srt_slurm=tree), scheduler=scheduler)
    job = Job(tmp_path, a_run(tmp_path, plan))
    for concurrency in plan.results.concurrencies:
        write(job.result(concurrency), fixed_1k1k(concurrency))
    (job.logs / "sweep_7.log").write_text("up\n")
    recorded = RecordedJob("7", float(T), str(job.logs.parent), str(job.logs / "sweep_7.log"))
    job.run.record.update(state="submitted", job=recorded)

    monkeypatch.setattr(finish, "RESULT_PATIENCE", 0.0)
    return job


def drive(job: Job, answers: Answers) -> tuple[int, str]:
    """The exit code, and all that is said of the run."""
    replies: Mapping[str, Reply] = {name: getattr(answers, name) for name in ("squeue", "sacct", "scontrol")}
    slurm = SlurmCommands(runner=ScriptedCommands(scancel="", **replies), environ={}, sleep=lambda seconds: None)
    answers.spoil(job)
    run = Run(job.run.record, job.run.plan, job.run.kind, services(slurm))
    never = Stop(threading.Event().wait, lambda: Cancelled("asked"))
    began = time.monotonic()
    (outcome,) = run_all([run], slurm, never, QUICK)
    assert time.monotonic() - began < 60
    return outcome.exit_code, "\n".join([str(outcome.verdict), str(outcome.error or ""), *events(run.record)])


@pytest.mark.parametrize("name", TRAPS)
def test_a_job_that_is_not_good(job: Job, name: str) -> None:
    code, said = drive(job, TRAPS[name])
    assert code == TRAPS[name].exit_code and TRAPS[name].says in said, f"exit {code}: {said}"
    assert (code == 0) == (job.run.record.fields.state == "succeeded")


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_good_job_of_unusual_answers(job: Job, name: str) -> None:
    code, said = drive(job, UNUSUAL[name])
    assert code == 0 and "good: the job COMPLETED with 0:0" in said, f"exit {code}: {said}"
    assert "step" not in said.replace("no step", ""), said
