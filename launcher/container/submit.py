"""Submitting a job's script: sbatch once, or the embedded scheduler once, and certainty about which job is ours.

No value of a variable is in an argv or in a file: the submitting program has the job's environment as its own, which is
made anew, so that nothing else of the host's shell reaches the job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.container.planned import ContainerJob, PlannedAllocation
from launcher.core.errors import JobsExist, SubmissionError, SubmissionUnknown
from launcher.core.process import CommandRunner, Completed
from launcher.core.slurm_notation import limit_seconds
from launcher.plan.job_environment import KEPT, from_host, left_out
from launcher.plan.plan import Plan
from launcher.slurm.client import Scheduler, SchedulerUnreachable
from launcher.slurm.other_jobs import elsewhere
from launcher.slurm.submission import (
    IN_DOUBT,
    IN_DOUBT_TOLD,
    PAUSES,
    check_first,
    hint_for,
    jobs_of,
    printed_cluster,
    printed_ids,
)

if TYPE_CHECKING:
    from launcher.run.kind import Earlier, JobKind, Run, Submitted

TIMEOUT = 240.0
"""Seconds for the submitting program."""

KEPT_HERE = (
    *("TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "CONTAINER_HOST", "REGISTRY_AUTH_FILE"),
    *("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF"),
)
"""What jobs on this host get as well: what they name is on no compute node."""


@dataclass(frozen=True)
class JobAnswer:
    """The one job of a submission; ``submitted`` is its submit time when the scheduler told it. ``adopted`` says why
    the submitting program counts as failed although the job exists. ``cluster`` is another one that took the job."""

    job_id: str
    submitted: float | None
    said: str
    adopted: str = ""
    cluster: str = ""


def environment(job: ContainerJob, environ: Mapping[str, str], tools: Mapping[str, str]) -> dict[str, str]:
    """The job's whole environment: what programs need, the workflow's contract, and the host's variables that the
    container is passed, where they are set."""
    kept = KEPT if job.allocation is not None else (*KEPT, *KEPT_HERE)
    passed = from_host(environ, (), job.container.passes)
    return {**from_host(environ, kept, ()), **tools, **passed, **job.environment}


def sbatch_argv(allocation: PlannedAllocation, token: str, root: Path, log: Path, script: Path) -> list[str]:
    """``sbatch`` of the script of one node, held."""
    a = allocation
    own = [f"--gres=gpu:{a.gpu_type}:{a.gpus}" if a.gpu_type else f"--gres=gpu:{a.gpus}"] if a.gpus else []
    own += [f"--cpus-per-task={a.cpus_per_task}"] if a.cpus_per_task else []
    return ["sbatch", *a.options(token, *own), f"--chdir={root}", f"--output={log}", str(script)]


def embedded_argv(plan: Plan, jobs: Path, log: Path, script: Path) -> list[str]:
    """The embedded scheduler's submission, as a program of its own: its environment becomes the job's."""
    limit = limit_seconds(plan.scheduler.time_limit)
    # The job's PYTHONPYCACHEPREFIX is not for this program, which would compile all that it imports.
    program = [sys.executable, "-X", "pycache_prefix=", "-m", "launcher.container.embedded"]
    return [*program, str(jobs), plan.job_name, plan.run_key, str(log), str(limit or ""), str(script)]


def submit_job(
    kind: JobKind,
    run: Run,
    argv: list[str],
    environment: Mapping[str, str],
    earlier: Earlier,
    start: CommandRunner,
) -> Submitted:
    """Submit the run's job with this environment. Raises as `submit` does."""
    from launcher.run.kind import Submitted

    answer = submit(
        argv,
        environment,
        token=run.id,
        earlier=earlier,
        scheduler=run.services.scheduler,
        run=start,
        sleep=run.waits(IN_DOUBT_TOLD, sum(PAUSES)),
    )
    output = kind.output_directory(run.plan, answer.job_id)
    return Submitted(
        answer.job_id,
        answer.submitted,
        output,
        kind.log_in(output, answer.job_id),
        held=kind.holds(run.plan),
        adopted=bool(answer.adopted),
        said=answer.said,
        notes=(f"the submission failed, and the job exists: {answer.adopted}",) if answer.adopted else (),
        left_out=left_out(run.services.environ, environment),
        cluster=answer.cluster,
    )


def submit(
    argv: list[str],
    environment: Mapping[str, str],
    *,
    token: str,
    earlier: frozenset[str] | None,
    scheduler: Scheduler,
    run: CommandRunner,
    sleep: Callable[[float], None] = time.sleep,
) -> JobAnswer:
    """Run the submitting program once. ``earlier`` are ids of jobs that carried the token before, None where there
    can be none.

    Raises SubmissionError when there is no job, SubmissionUnknown when that cannot be told, JobsExist when there are
    jobs that have to go.
    """
    done = run(argv, timeout=TIMEOUT, env=environment)
    ids = printed_ids(done.stdout)
    failed = not done.ok or len(ids) != 1
    may_come = done.ok or done.timed_out or (done.returncode or 0) < 0 or IN_DOUBT.search(done.stderr) is not None
    trouble = _trouble(argv, done)
    try:
        pauses = PAUSES if failed and may_come else ()
        found = jobs_of(None if failed else ids[0], token, earlier, scheduler, pauses, sleep)
    except SchedulerUnreachable as error:
        if failed:
            raise SubmissionUnknown(
                f"whether a job was submitted is unknown.\n{trouble}\nThe scheduler: {error.message}",
                where=f"token {token}",
                hint="not submitted again; resume the run when the scheduler answers: it looks for this token first",
            ) from None
        found = {}
    if failed:
        ids = list(dict.fromkeys([*ids, *found]))
    if len(ids) > 1:
        raise JobsExist(f"one job was asked for, and there are {', '.join(ids)}.\n{trouble}", job_ids=tuple(ids))
    check_first(ids, found)
    if not ids:
        raise SubmissionError(trouble, where=f"run {token}", hint=hint_for(trouble))
    said = "\n".join(text.strip() for text in (done.stdout, done.stderr) if text.strip())
    ours = found.get(ids[0])
    # What is found by our token is where it was found; what sbatch alone tells of is where that says.
    cluster = elsewhere(printed_cluster(done.stdout), environment, run) if ours is None else ours.cluster
    submitted = None if ours is None else ours.submitted
    return JobAnswer(ids[0], submitted, said, trouble if failed else "", cluster)


def _trouble(argv: list[str], done: Completed) -> str:
    name = "the embedded scheduler" if argv[0] == sys.executable else argv[0]
    if done.timed_out:
        return f"{name} did not end within {TIMEOUT:.0f} s and was stopped"
    first = f"{name} exited with {done.returncode}" if not done.ok else f"{name} did not say which job it submitted"
    return "\n".join([first, *(line for line in (done.stdout + done.stderr).splitlines() if line.strip())])
