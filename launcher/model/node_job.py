"""Staging on nodes: as a step of a job that runs already, or in a job of our own.

For a job of our own submitit writes the batch script, ships one function to every node and brings the results back; the
job's state comes from Slurm, by our own client.

    <state>/stagings/<token>/              of submitit: batch script, function, and per node a result and logs
    <state>/stagings/<token>/owner.json    which process staged

The job has the token as its comment, so that it can be found and ended after that process was killed.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import Cancelled, ConfigError, SubmissionError
from launcher.core.process import CommandRunner, ProcessIdentity, run
from launcher.core.publish import write_json
from launcher.core.stop import Stop
from launcher.model.nodes import (
    Allocation,
    NodeResult,
    NodeTask,
    answers_of_step,
    names_of,
    on_node,
    step_command,
    unfit_nodes,
)
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler, unknown
from launcher.slurm.poller import JobPoller, Pace, end_jobs

DIRECTORY = "stagings"
_NODES = "nodes"
STEP = 24 * 3600.0
"""Seconds that a step of a running job may take."""

SUBMISSION = 120.0
"""Seconds that sbatch may take."""

_LATE = 15.0
"""Seconds that a result is waited for after the job's end: a shared file system may show it late."""

_GONE = 60.0
"""Seconds within which a job that was cancelled has to be gone."""

_PACE = Pace(first=0.5, running=10.0, pending=30.0)
_LOOK = 0.5


@dataclass(frozen=True)
class _Owner:
    process: ProcessIdentity
    token: str


def stage_on_nodes(
    task: NodeTask,
    where: Allocation,
    *,
    run: CommandRunner = run,
    state: Path | None = None,
    scheduler: Callable[[], Scheduler] | None = None,
    log: Callable[[str], None] = lambda text: None,
    stop: Stop = Stop.never(),
) -> list[NodeResult]:
    """Do the task on every node; one result a node, in the nodes' order. A node that did not answer has failed.

    Within a job (SLURM_JOB_ID) its nodes are meant unless ``where`` names another one. ``state`` (a directory that the
    nodes see, at the same path) and ``scheduler`` are for a job of our own. Raises SubmissionError when the nodes
    cannot be named or had, JobError when Slurm is silent, and Cancelled, after a job of our own was ended.
    """
    where = replace(where, job=where.job or os.environ.get("SLURM_JOB_ID"))
    if where.job:
        nodes = where.node_names(run)
        done = run(step_command(task, where, nodes), timeout=STEP)
        answers, silence = answers_of_step(done.stdout), f"no answer: {done.tail(3) or done}"
        return [answers.get(node) or NodeResult.silent(node, silence) for node in nodes]
    if state is None or scheduler is None:
        raise ConfigError("a job of its own needs a scheduler, and a directory that the nodes see")
    nodes = [] if where.count else where.node_names(run)
    unfit = unfit_nodes(nodes, run) if nodes else {}
    found = {node: NodeResult.silent(node, f"Slurm says that it is {word}") for node, word in unfit.items()}
    fit, silence = [node for node in nodes if node not in unfit], ""
    if fit or where.count:
        answers, silence, had = _stage_in_own_job(scheduler(), _Submission(state, task, fit, where), log, stop)
        found |= answers
        nodes = nodes or names_of(had, run)
    return [found.get(node) or NodeResult.silent(node, silence) for node in nodes]


def _stage_in_own_job(
    scheduler: Scheduler, submission: _Submission, log: Callable[[str], None], stop: Stop
) -> tuple[dict[str, NodeResult], str, str]:
    """Stage in a job that is gone at the end, and its files too.

    Returns what the nodes said, by node; why a node without an answer gave none; and the job's nodes (a host list).
    Raises SubmissionError when there is no job, Cancelled after the job was ended, JobError when Slurm is silent.
    """
    ended = False
    try:
        job = submission.wait(stop)
        log(f"{job} stages on {submission.count} nodes")
        final = _follow(scheduler, job, submission, log, stop)
        ended = final.phase is Phase.TERMINAL
        had = submission.allocated() or final.nodes
        if not submission.nodes and not had:
            raise SubmissionError(f"the job got no nodes: {final.describe()}", where=str(job))
        deadline = time.monotonic() + _LATE
        while not submission.complete and final.succeeded and time.monotonic() < deadline:
            time.sleep(_LOOK)
        reasons = (f"no result of it: the job is {final.describe()}", submission.last_error())
        return submission.results(), "; ".join(filter(None, reasons)), had
    finally:
        if ended or end_job(submission.token, scheduler, log):
            shutil.rmtree(submission.folder, ignore_errors=True)


def reap(state: Path, scheduler: Callable[[], Scheduler], log: Callable[[str], None]) -> int:
    """End the jobs of stagings whose launcher on this host is dead; return how many there were.

    ``scheduler`` is opened only when there is a job to ask about. Raises SchedulerUnreachable.
    """
    found = 0
    for folder in sorted((state / DIRECTORY).glob("launcher-stage-*")):
        try:
            owner = msgspec.json.decode((folder / "owner.json").read_bytes(), type=_Owner)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if owner.process.alive() is False:
            found += 1
            log(f"{owner.token}: pid {owner.process.pid}, which staged on nodes, is dead")
            if end_job(owner.token, scheduler(), log):
                shutil.rmtree(folder, ignore_errors=True)
    return found


def end_job(token: str, scheduler: Scheduler, log: Callable[[str], None]) -> bool:
    """End the job that carries the token, if there is one, and see it gone; False when it was not in time.

    Raises SchedulerUnreachable.
    """
    alive = _not_ended(scheduler.poll(scheduler.find(token)))
    if alive:
        scheduler.cancel(alive)
        alive = _not_ended(end_jobs(scheduler, alive, bound=_GONE))
    if alive:
        log(f"{alive[0]} was cancelled and is not seen to end; `launcher cleanup` looks again")
    return not alive


def _not_ended(states: Mapping[JobKey, JobState]) -> list[JobKey]:
    return [job for job, state in states.items() if state.phase is not Phase.TERMINAL]


class _Submission:
    """submitit's job on ``nodes``, or on ``where.count`` that Slurm picks. Its ``folder`` has the token as its name.

    It is submitted in a thread, because submitit's sbatch has no time-out and a stop must not wait for it.
    """

    def __init__(self, state: Path, task: NodeTask, nodes: Sequence[str], where: Allocation) -> None:
        self.token = f"launcher-stage-{secrets.token_hex(6)}"
        self.folder = state / DIRECTORY / self.token
        self.nodes, self._task, self._where = nodes, task, where
        self._job: Any = None
        self._error: Exception | None = None
        self.folder.mkdir(parents=True, mode=0o700)
        write_json(self.folder / "owner.json", asdict(_Owner(ProcessIdentity.mine(), self.token)))

    @property
    def count(self) -> int:
        """On how many nodes it stages."""
        return len(self.nodes) or self._where.count

    def wait(self, stop: Stop) -> JobKey:
        """Submit, and return the job. Raises SubmissionError, Cancelled."""
        thread = threading.Thread(target=self._submit, daemon=True, name="submitit")
        deadline = time.monotonic() + SUBMISSION
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if stop.requested():
                thread.join(5.0)  # the job that sbatch is about to create can be found only once it exists
                raise stop.reason()
            if time.monotonic() > deadline:
                raise SubmissionError(f"sbatch did not answer within {SUBMISSION:.0f} s")
        if self._error is not None:
            raise SubmissionError(f"the job that stages cannot be submitted: {self._error}") from self._error
        return JobKey(str(self._job.job_id), None, self.token)

    def _submit(self) -> None:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        where = self._where
        given = {
            "nodelist": ",".join(self.nodes) or None,
            "exclude": ",".join(where.exclude) or None,
            "partition": where.partition,
            "account": where.account,
            "cpus_per_task": where.cpus,
        }
        try:
            executor = submitit.SlurmExecutor(self.folder, python=shlex.quote(where.python))
            executor.update_parameters(
                **{name: value for name, value in given.items() if value},
                job_name="launcher-stage",
                nodes=self.count,
                ntasks_per_node=1,
                time=where.minutes,
                comment=self.token,
                wckey=None,
                setup=[f'printf "%s\\n" "$SLURM_JOB_NODELIST" > {shlex.quote(str(self.folder / _NODES))}'],
                # A node that dies, or a task that fails, must not end the others.
                additional_parameters={"no-kill": True, "no-requeue": True},
                srun_args=["--kill-on-bad-exit=0", "--no-kill", "--wait=0"],
            )
            self._job = executor.submit(on_node, self._task)
        except (FailedJobError, FailedSubmissionError, RuntimeError, OSError) as error:
            self._error = error

    @property
    def complete(self) -> bool:
        """Whether every task has left its result."""
        return self._job is not None and all(task.paths.result_pickle.exists() for task in self._tasks)

    @property
    def _tasks(self) -> list[Any]:
        return [self._job.task(index) for index in range(self._job.num_tasks)]

    def allocated(self) -> str:
        """The job's nodes as a host list, written by the job itself; "" before it runs.

        While a job ends, Slurm names only those of its nodes that are not done yet (22.05).
        """
        named = self.folder / _NODES
        return named.read_text().strip() if named.exists() else ""

    def results(self) -> dict[str, NodeResult]:
        """What the tasks that came to their end said, by node."""
        found = {}
        for task in self._tasks:
            try:
                outcome, value = pickle.loads(task.paths.result_pickle.read_bytes())  # ours: the directory is 0700
            except (OSError, EOFError, pickle.UnpicklingError):
                continue
            if outcome == "success":
                found[value["node"]] = NodeResult(**value)
        return found

    def last_error(self) -> str:
        """The last line in the tasks' logs that speaks of an error; "" without one."""
        logs = "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*_log.err")))
        return next((line.strip() for line in reversed(logs.splitlines()) if "error" in line.lower()), "")


def _follow(
    scheduler: Scheduler, job: JobKey, submission: _Submission, log: Callable[[str], None], stop: Stop
) -> JobState:
    """Watch the job to its end. Raises Cancelled, JobError."""
    done = JobState(Phase.TERMINAL, "COMPLETED", source="its results")
    poller = JobPoller(scheduler, pace=_PACE)
    poller.watch(job)
    state = unknown("not asked yet")
    while poller.watched and not stop.requested():
        answer = poller.poll(markers={job: done} if submission.complete else {})
        if answer is None:
            time.sleep(_LOOK)
            continue
        state = answer.states[job]
        for change in answer.changes:
            log(f"{job}: {change.state.describe()}")
            if change.given_up is not None:
                raise change.given_up
    if stop.requested():
        raise Cancelled("stopped while nodes staged", hint="the same command goes on from there, on each node")
    return state
