"""Submits a job's script once, with sbatch or to the embedded scheduler, and finds out which job is ours.

No value of a variable is in an argv or in a file: the submitting program runs in the job's environment. That is built
from nothing, so that no other variable of the host's shell reaches the job.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.container.planned import ContainerJob, MultinodeJob, PlannedAllocation
from launcher.core.errors import SubmissionError
from launcher.core.process import CommandRunner, Completed
from launcher.core.slurm_notation import limit_seconds
from launcher.plan.job_environment import KEPT, select_host_variables, variables_left_out
from launcher.plan.plan import Plan
from launcher.slurm.other_jobs import foreign_cluster
from launcher.slurm.submission import (
    LOST_ANSWER,
    LOST_ANSWER_MESSAGE,
    LOST_ANSWER_PAUSES,
    find_job,
    parse_cluster,
    parse_job_ids,
    refusal_hint,
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
"""Further variables for jobs on this host; compute nodes do not have what they name."""


def environment(
    job: ContainerJob | MultinodeJob, environ: Mapping[str, str], tools: Mapping[str, str]
) -> dict[str, str]:
    """The job's whole environment: variables that programs need, the workflow's contract, and the host's variables that
    the containers get, if they are set."""
    kept = KEPT if job.allocation is not None else (*KEPT, *KEPT_HERE)
    if isinstance(job, MultinodeJob):
        passes, contract = {name for c in job.job.containers for name in c.passes}, job.submit.environment
    else:
        passes, contract = set(job.container.passes), job.environment
    passed = select_host_variables(environ, (), passes)
    return {**select_host_variables(environ, kept, ()), **tools, **passed, **contract}


def sbatch_argv(allocation: PlannedAllocation, token: str, root: Path, log: Path, script: Path) -> list[str]:
    """The ``sbatch`` command for a script of one node; the job is held."""
    a = allocation
    own = [f"--gres=gpu:{a.gpu_type}:{a.gpus}" if a.gpu_type else f"--gres=gpu:{a.gpus}"] if a.gpus else []
    own += [f"--cpus-per-task={a.cpus_per_task}"] if a.cpus_per_task else []
    return ["sbatch", *a.options(token, *own), f"--chdir={root}", f"--output={log}", str(script)]


def embedded_argv(plan: Plan, jobs: Path, log: Path, script: Path) -> list[str]:
    """The command that submits to the embedded scheduler: a program, because its environment becomes the job's."""
    limit = limit_seconds(plan.scheduler.time_limit)
    # With the job's PYTHONPYCACHEPREFIX this program would compile every module that it imports.
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
    """Run the submitting program once, with this environment.

    Raises SubmissionError when there is no job, SubmissionUnknown when that is not certain, JobsExist when there are
    jobs that must be cancelled.
    """
    from launcher.run.kind import Submitted

    done = start(argv, timeout=TIMEOUT, env=environment)
    printed = parse_job_ids(done.stdout)
    failed = not done.ok or len(printed) != 1
    problem = _problem(argv, done) if failed else ""
    # Without a refusal by sbatch a job can still appear.
    may_come = done.ok or done.timed_out or (done.returncode or 0) < 0 or LOST_ANSWER.search(done.stderr) is not None
    sleep = run.announced_sleep(LOST_ANSWER_MESSAGE, sum(LOST_ANSWER_PAUSES))
    job = find_job(
        printed, problem, run.id, earlier, run.services.scheduler, LOST_ANSWER_PAUSES if may_come else (), sleep
    )
    if job is None:
        raise SubmissionError(problem, where=f"run {run.id}", hint=refusal_hint(problem))
    job_id, key = job
    output = kind.output_directory(run.plan, job_id)
    return Submitted(
        job_id,
        None if key is None else key.submitted,
        output,
        kind.log_in(output, job_id),
        held=kind.submits_held(run.plan),
        adopted=failed,
        printed="\n".join(text.strip() for text in (done.stdout, done.stderr) if text.strip()),
        notes=(f"the submission failed, and the job exists: {problem}",) if failed else (),
        left_out=variables_left_out(run.services.environ, environment),
        # The cluster where our token was found counts more than the one that sbatch printed.
        cluster=foreign_cluster(parse_cluster(done.stdout), environment, start) if key is None else key.cluster,
    )


def _problem(argv: list[str], done: Completed) -> str:
    name = "the embedded scheduler" if argv[0] == sys.executable else argv[0]
    if done.timed_out:
        return f"{name} did not end within {TIMEOUT:.0f} s and was stopped"
    first = f"{name} exited with {done.returncode}" if not done.ok else f"{name} did not say which job it submitted"
    return "\n".join([first, *(line for line in (done.stdout + done.stderr).splitlines() if line.strip())])
