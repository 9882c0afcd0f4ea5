"""Submissions: one job, and certainty which one, whatever sbatch answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.container.submit import TIMEOUT, environment, sbatch_argv
from launcher.core.errors import JobsExist, SubmissionError, SubmissionUnknown
from launcher.core.process import Completed
from launcher.run.kind import Submitted
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable
from launcher.slurm.submission import LOST_ANSWER_PAUSES
from tests.container.plans import a_container, a_job, an_allocation
from tests.container.stand_ins import submit_as_stand_in_run

TOKEN = "run-7"


class Slurm:
    """sbatch and the queue of a test: ``jobs`` are those that carry the token, None when nobody answers."""

    name = "scripted"

    def __init__(self, *jobs: Sequence[str] | None, code: int | None = 0, out: str = "", err: str = "") -> None:
        self.jobs, self.answer = list(jobs), (code, out, err)
        self.calls: list[tuple[list[str], dict[str, str]]] = []
        self.slept: list[float] = []

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        assert options["timeout"] == TIMEOUT
        self.calls.append((list(argv), options["env"]))
        return Completed(tuple(argv), *self.answer, 0.1)

    def find(self, token: str) -> list[JobKey]:
        assert token == TOKEN
        jobs = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        if jobs is None:
            raise SchedulerUnreachable("Unable to contact slurm controller")
        return [JobKey(job, 1000.0, token) for job in jobs]

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        return {job: JobState(Phase.ALIVE, "PENDING") for job in jobs}

    def submit(self, earlier: frozenset[str] = frozenset()) -> Submitted:
        submitted = submit_as_stand_in_run(TOKEN, self, self.run, earlier, self.slept.append)
        assert len(self.calls) == 1, "never twice"
        return submitted


@pytest.mark.parametrize("out", ["12\n", "12;cluster\n", "Welcome to the cluster\n12\n", "Submitted batch job 12\n"])
def test_the_id_that_sbatch_prints(out: str) -> None:
    submitted = Slurm(["12"], out=out).submit()
    assert submitted == Submitted(
        "12", 1000.0, Path("/r/12"), Path("/r/12/log"), held=True, printed=out.strip(), left_out=[]
    )


def test_a_scheduler_that_does_not_answer_after_a_good_submission() -> None:
    submitted = Slurm(None, out="12\n").submit()
    assert (submitted.job_id, submitted.submitted, submitted.adopted) == ("12", None, False)


def test_a_job_whose_answer_was_lost_is_found_by_its_token() -> None:
    slurm = Slurm([], ["12"], code=1, err="sbatch: error: Batch job submission failed: Socket timed out")
    answer = slurm.submit(earlier=frozenset({"3"}))
    assert answer.job_id == "12" and answer.adopted and slurm.slept == [LOST_ANSWER_PAUSES[0]]
    assert "Socket timed out" in answer.notes[0]


def test_a_submission_that_was_cut_off_is_looked_for() -> None:
    assert Slurm(["12"], code=None).submit().job_id == "12"
    assert Slurm(["3", "12"], code=0, out="a banner alone\n").submit(frozenset({"3"})).job_id == "12"


def test_a_refusal_is_no_job() -> None:
    slurm = Slurm([], code=1, err="sbatch: error: invalid partition specified: x")
    with pytest.raises(SubmissionError, match="invalid partition") as caught:
        slurm.submit()
    assert not isinstance(caught.value, SubmissionUnknown) and "runner file" in (caught.value.hint or "")
    assert slurm.slept == [], "sbatch said no"


def test_an_unknown_fate_is_said_to_be_unknown() -> None:
    with pytest.raises(SubmissionUnknown, match="unknown"):
        Slurm(None, code=None).submit()


def test_another_launcher_came_first() -> None:
    with pytest.raises(JobsExist, match="another launcher submitted job 11"):
        Slurm(["11", "12"], out="12\n").submit()
    with pytest.raises(JobsExist, match="there are 11, 12"):
        Slurm(["11", "12"], code=None).submit()


def test_the_options_of_sbatch() -> None:
    plain = an_allocation(partition=None, account=None, gpus=8, minutes=None)
    argv = sbatch_argv(plain, TOKEN, Path("/r"), Path("/r/%j/log"), Path("/r/job.sh"))
    assert argv == [
        *(
            "sbatch",
            "--parsable",
            "--hold",
            "--no-requeue",
            "--comment=run-7",
            "--job-name=x_00",
            "--nodes=1",
            "--ntasks=1",
        ),
        *("--gres=gpu:8", "--export=ALL", "--chdir=/r", "--output=/r/%j/log", "/r/job.sh"),
    ]
    full = an_allocation(
        gpu_type="b200", cpus_per_task=128, memory="0", exclusive=True, minutes=480, exclude=("n1", "n2")
    )
    argv = sbatch_argv(full, TOKEN, Path("/r"), Path("/r/log"), Path("/r/job.sh"))
    options = {"--partition=batch", "--account=root", "--gres=gpu:b200:2", "--cpus-per-task=128", "--mem=0"}
    assert options | {"--exclusive", "--time=480", "--exclude=n1,n2"} < set(argv)


def test_the_environment_of_a_job() -> None:
    host = {
        "HOME": "/h",
        "PATH": "/p",
        "SLURM_CONF": "/c",
        "SLURM_JOB_ID": "1",
        "SBATCH_PARTITION": "x",
        "HF_TOKEN": "hf_x",
        "MODEL": "the host's",
        "TMPDIR": "/t",
        "DOCKER_HOST": "d",
        "OTHER": "x",
    }
    job = a_job(container=a_container(passes=("HF_TOKEN", "MODEL", "UNSET")), environment={"MODEL": "org/m"})
    got = environment(job, host, {"PATH": "/stand-ins:/p"})
    kept = {"HOME": "/h", "PATH": "/stand-ins:/p", "SLURM_CONF": "/c"}
    assert got == {**kept, "HF_TOKEN": "hf_x", "MODEL": "org/m"}
    here = environment(a_job(allocation=None), host, {})
    assert here["DOCKER_HOST"] == "d" and here["TMPDIR"] == "/t" and "OTHER" not in here
