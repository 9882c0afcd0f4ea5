"""Staging in an allocation of its own: submitit ships one function to every node, and brings back what each one said.

    <state>/stagings/<token>/     submitit's: the batch script, the function, a result and logs a node
    <state>/stagings/<token>/owner.json    whose it is

How the job stands is Slurm's word, by our own client; of submitit's the batch script, the shipping and the results are
used. The job carries the token as its comment, so that it is found after whoever asked for it was killed.
"""

from __future__ import annotations

import pickle
import secrets
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import Cancelled, SubmissionError
from launcher.core.process import CommandRunner, run
from launcher.core.process_identity import ProcessIdentity
from launcher.core.publish import write_json
from launcher.model.nodes import Allocation, NodeVerdict, names_of, on_node
from launcher.slurm.client import JobKey, JobState, Scheduler, unknown
from launcher.slurm.end_jobs import end_jobs
from launcher.slurm.poller import JobPoller, Pace
from launcher.slurm.states import Phase

DIRECTORY = "stagings"
_NODES = "nodes"
SUBMISSION = 120.0
"""Seconds that sbatch may take."""

_LATE = 15.0
"""Seconds after the job's end until a result is not waited for: a shared file system shows it late."""

_GONE = 60.0
"""Seconds in which a job that was cancelled has to be seen gone."""

_PACE = Pace(first=0.5, running=10.0, pending=30.0)
_LOOK = 0.5


@dataclass(frozen=True)
class _Owner:
    process: ProcessIdentity
    token: str


def stage_in_own_job(
    task: dict[str, Any],
    nodes: Sequence[str],
    where: Allocation,
    *,
    scheduler: Scheduler,
    state: Path,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
    run: CommandRunner = run,
) -> list[NodeVerdict]:
    """Stage on each of ``nodes``, or on ``where.count`` that Slurm picks; a verdict a node. A node that left no result
    has not staged, whatever became of the job.

    ``task`` is what `launcher.model.nodes.on_node` takes; ``state`` a directory that the nodes see, at the same path.
    Raises SubmissionError when there is no job, Cancelled after the job was ended, JobError when Slurm is silent.
    """
    token = f"launcher-stage-{secrets.token_hex(6)}"
    folder = state / DIRECTORY / token
    folder.mkdir(parents=True, mode=0o700)
    write_json(folder / "owner.json", asdict(_Owner(ProcessIdentity.mine(), token)))
    submission = _Submission(folder, token, task, nodes, where)
    ended = False
    try:
        job = submission.wait(should_stop)
        say(f"{job} stages on {len(nodes) or where.count} nodes")
        final = _follow(scheduler, job, submission, say, should_stop)
        ended = final.phase is Phase.TERMINAL
        if not nodes and not (given := submission.allocated() or final.nodes):
            raise SubmissionError(f"no node was had: {final.describe()}", where=str(job))
        return _verdicts(submission, nodes or names_of(given, run), final)
    finally:
        if not ended:
            ended = end_job(token, scheduler, say)
        if ended:
            shutil.rmtree(folder, ignore_errors=True)


def reap(state: Path, scheduler: Callable[[], Scheduler], say: Callable[[str], None]) -> int:
    """End the jobs of stagings whose launcher on this host is dead; how many there were. Raises SchedulerUnreachable.

    ``scheduler`` is opened only when there is one to ask about.
    """
    found = 0
    for folder in sorted((state / DIRECTORY).glob("launcher-stage-*")):
        try:
            owner = msgspec.json.decode((folder / "owner.json").read_bytes(), type=_Owner)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if owner.process.alive() is False:
            found += 1
            say(f"{owner.token}: pid {owner.process.pid}, which staged on nodes, is dead")
            if end_job(owner.token, scheduler(), say):
                shutil.rmtree(folder, ignore_errors=True)
    return found


def end_job(token: str, scheduler: Scheduler, say: Callable[[str], None]) -> bool:
    """End the job that carries the token, if there is one, and see it gone; False when it was not in time.

    Raises SchedulerUnreachable.
    """
    alive = _not_ended(scheduler.poll(scheduler.find(token)))
    if alive:
        scheduler.cancel(alive)
        alive = _not_ended(end_jobs(scheduler, alive, bound=_GONE))
    if alive:
        say(f"{alive[0]} was cancelled and is not seen to end; `launcher cleanup` looks again")
    return not alive


def _not_ended(states: Mapping[JobKey, JobState]) -> list[JobKey]:
    return [job for job, state in states.items() if state.phase is not Phase.TERMINAL]


class _Submission:
    """submitit's job: submitted in a thread, because its sbatch has no time-out and a stop must not wait for it."""

    def __init__(self, folder: Path, token: str, task: dict[str, Any], nodes: Sequence[str], where: Allocation) -> None:
        self._folder, self._token, self._task, self._nodes, self._where = folder, token, task, nodes, where
        self._job: Any = None
        self._error: Exception | None = None

    def wait(self, should_stop: Callable[[], bool]) -> JobKey:
        """Submit; the job. Raises SubmissionError, Cancelled."""
        thread = threading.Thread(target=self._submit, daemon=True, name="submitit")
        deadline = time.monotonic() + SUBMISSION
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if should_stop():
                thread.join(5.0)  # the job that sbatch is about to make can be found only when it is there
                raise Cancelled("stopped while the nodes were asked for")
            if time.monotonic() > deadline:
                raise SubmissionError(f"sbatch gave no answer in {SUBMISSION:.0f} s")
        if self._error is not None:
            raise SubmissionError(f"no allocation to stage in: {self._error}") from self._error
        return JobKey(str(self._job.job_id), None, self._token)

    def _submit(self) -> None:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        where = self._where
        given = {
            "nodes": len(self._nodes) or where.count,
            "nodelist": ",".join(self._nodes) or None,
            "exclude": ",".join(where.exclude) or None,
            "partition": where.partition,
            "account": where.account,
            "cpus_per_task": where.cpus,
        }
        try:
            executor = submitit.SlurmExecutor(self._folder, python=shlex.quote(where.python or sys.executable))
            executor.update_parameters(
                **{name: value for name, value in given.items() if value},
                job_name="launcher-stage",
                ntasks_per_node=1,
                time=where.minutes,
                comment=self._token,
                wckey=None,
                setup=[f'printf "%s\\n" "$SLURM_JOB_NODELIST" > {shlex.quote(str(self._folder / _NODES))}'],
                # A node that dies, or a task that fails, is that node's verdict and must not end the others.
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
        """The host list that the job was given, by the job itself: while it ends, Slurm names only nodes that are not
        done yet (22.05)."""
        try:
            return (self._folder / _NODES).read_text().strip()
        except FileNotFoundError:
            return ""

    def results(self) -> list[NodeVerdict]:
        """What the tasks said that came to their end, in no order."""
        found = []
        for task in self._tasks:
            try:
                outcome, value = pickle.loads(task.paths.result_pickle.read_bytes())  # ours: the directory is 0700
            except (OSError, EOFError, pickle.UnpicklingError):
                continue
            if outcome == "success":
                found.append(NodeVerdict(**value))
        return found

    def said(self) -> str:
        """The last line of what went wrong, of any task that left no result."""
        lines = [
            line
            for path in sorted(self._folder.glob("*_log.err"))
            for line in path.read_text(errors="replace").splitlines()
            if "error" in line.lower()
        ]
        return lines[-1].strip() if lines else ""


def _follow(
    scheduler: Scheduler,
    job: JobKey,
    submission: _Submission,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> JobState:
    """Watch the job to its end. Raises Cancelled, JobError."""
    done = JobState(Phase.TERMINAL, "COMPLETED", source="its results")
    poller = JobPoller(scheduler, pace=_PACE)
    poller.watch(job)
    state = unknown("not asked yet")
    while poller.watched and not should_stop():
        answer = poller.poll(markers={job: done} if submission.complete else {})
        if answer is None:
            time.sleep(_LOOK)
            continue
        state = answer.states[job]
        for change in answer.changes:
            say(f"{job}: {change.state.describe()}")
            if change.given_up is not None:
                raise change.given_up
    if should_stop():
        raise Cancelled("stopped while nodes staged", hint="the same command goes on from there, on each node")
    return state


def _verdicts(submission: _Submission, nodes: Sequence[str], final: JobState) -> list[NodeVerdict]:
    deadline = time.monotonic() + _LATE
    while not submission.complete and final.succeeded and time.monotonic() < deadline:
        time.sleep(0.5)
    answers = {verdict.node: verdict for verdict in submission.results()}
    why = "; ".join(text for text in (f"no result of it: the job is {final.describe()}", submission.said()) if text)
    return [answers.get(node) or NodeVerdict(node, False, "unknown", error=why) for node in nodes]
