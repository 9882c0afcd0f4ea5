"""Staging to node-local storage: which nodes, what each node does, and what it reports.

In a running job, a step starts `python -m launcher.model.nodes TASK` on each node. For a job of our own, submitit
writes the batch script, ships `stage_on_this_node` to every node and returns the results; the job's state comes from
Slurm, by our own client. Both run this package as it is installed here, so the compute nodes have to see it at the same
path.

    <state>/stagings/<token>/              files of submitit: batch script, function, and per node a result and logs
    <state>/stagings/<token>/owner.json    the process that stages

The job has the token as its comment, so that it can be found and ended after that process was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.core.errors import Cancelled, LauncherError, ModelError, SubmissionError
from launcher.core.lines import count_of
from launcher.core.process import CommandRunner, ProcessIdentity, run
from launcher.core.publish import make_private, write_json
from launcher.core.reading import read_json
from launcher.core.slurm_notation import node_names
from launcher.core.stop import NEVER, Stop, stop_on_signals
from launcher.core.waiting import start_in_thread
from launcher.model.source import source_of
from launcher.model.stage import stage
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler, unknown_state
from launcher.slurm.poller import JobPoller, Pace, await_ends

STEP = 24 * 3600.0
"""Seconds that a step of a running job may take."""

_ANSWER_PREFIX = "launcher-node-verdict "
_UNFIT_STATES = ("down", "drain", "fail", "*", "maint", "reboot", "power", "unknown", "future")
"""Parts of sinfo's state of a node on which Slurm starts no job now."""

DIRECTORY = "stagings"
_NODES = "nodes"
_OWNER = "owner.json"
_RESULTS = "*_result.pkl"
SUBMISSION = 120.0
"""Seconds that sbatch may take."""

_RESULT_TIMEOUT = 15.0
"""Seconds to wait for a result after the job's end: a shared file system may show it late."""

_END_TIMEOUT = 60.0
"""Seconds within which a cancelled job has to end."""

_PACE = Pace(first=0.5, running=10.0, pending=30.0)
_POLL_INTERVAL = 0.5


@dataclass(frozen=True)
class Allocation:
    """The nodes to stage on: those of a running ``job``, or those of a job of our own.

    A job of our own gets ``nodes`` (a Slurm host list), or ``count`` nodes that Slurm picks, or all nodes of a
    ``partition``. With ``job``, ``nodes`` are some of its nodes. ``python`` is the path of the interpreter there.
    ``cpus`` (on each node) and ``minutes`` (time limit) are for a job of our own.
    """

    job: str | None = None
    nodes: str | None = None
    partition: str | None = None
    account: str | None = None
    exclude: tuple[str, ...] = ()
    count: int = 0
    cpus: int | None = None
    minutes: int = 240
    python: str = sys.executable

    def node_names(self, run: CommandRunner) -> list[str]:
        """The names of the nodes, without the excluded ones. Not for ``count``. Raises SubmissionError."""
        where, node_list = f"job {self.job}" if self.job else f"partition {self.partition}", self.nodes
        if node_list is None:
            job_query = ["squeue", "-h", "-j", str(self.job), "-t", "RUNNING", "-o", "%N"]
            answer = run(job_query if self.job else ["sinfo", "-h", "-p", str(self.partition), "-o", "%N"], timeout=60)
            if not answer.ok:
                raise SubmissionError(f"Slurm does not name the nodes: {answer.tail(1)}", where=where)
            node_list = ",".join(answer.stdout.split())
        names = [node for node in dict.fromkeys(node_names(node_list)) if node not in self.exclude]
        if not names:
            raise SubmissionError("no nodes are left to stage on", where=self.nodes or where)
        return names


def unfit_nodes(nodes: Sequence[str], run: CommandRunner) -> dict[str, str]:
    """Nodes on which Slurm starts no job now, with their states. A job that names one of them would wait for it."""
    answer = run(["sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T"], timeout=60)
    states = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
    return {node: states[node] for node in nodes if any(part in states.get(node, "").lower() for part in _UNFIT_STATES)}


@dataclass(frozen=True)
class NodeTask:
    """What every node does: stage ``source`` (a name for `source_of`) to ``destination`` with so many ``workers``.

    ``{node}`` in the destination stands for the node's name.
    """

    source: str
    destination: str
    workers: int = 8


@dataclass(frozen=True)
class NodeResult:
    """The result of staging on a node.

    ``how`` is as in `launcher.model.stage.StagingResult`; it is ``unknown`` when the node did not answer, because it
    died, was cut off or ran out of time. ``error`` says what went wrong. ``copied`` is in bytes.
    """

    node: str
    ok: bool = False
    how: str = "unknown"
    path: str = ""
    copied: int = 0
    seconds: float = 0.0
    error: str | None = None


def this_node() -> str:
    """The node's name in Slurm. It may differ from the host name, which all nodes of a test cluster share."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def path_on_this_node(path: str) -> str:
    """A path with ``{node}`` filled in."""
    return path.replace("{node}", this_node())


def stage_on_this_node(task: NodeTask) -> dict[str, Any]:
    """Do a node's task, in a process of its own. Returns the `NodeResult` as a mapping; failures are in it, too.

    SIGTERM stops the copy, and so does SIGUSR2, which Slurm sends before the time limit because submitit requests it.
    The node then reports the stop, and the next staging continues from there.
    """
    began, path = time.monotonic(), path_on_this_node(task.destination)
    with stop_on_signals((signal.SIGTERM, signal.SIGUSR2)) as stop:
        try:
            done = stage(source_of(task.source, stop=stop), Path(path), workers=task.workers, stop=stop)
            result = NodeResult(this_node(), True, done.how, path, done.copied, time.monotonic() - began)
        except LauncherError as error:
            result = NodeResult(this_node(), False, "", path, seconds=time.monotonic() - began, error=str(error))
    return asdict(result)


def stage_in_job(task: NodeTask, allocation: Allocation, nodes: Sequence[str], run: CommandRunner) -> list[NodeResult]:
    """Do the task on nodes of a running job, in a step with one task a node; a failing task does not end the others."""
    argv = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
    argv += [f"--nodelist={','.join(nodes)}", "--kill-on-bad-exit=0", "--no-kill", "--wait=0"]
    argv += ["--job-name=launcher-stage", f"--jobid={allocation.job}", "--overlap"]
    done = run([*argv, allocation.python, "-m", "launcher.model.nodes", json.dumps(asdict(task))], timeout=STEP)
    answers = [
        json.loads(line.partition(_ANSWER_PREFIX)[2]) for line in done.stdout.splitlines() if _ANSWER_PREFIX in line
    ]
    results = {result["node"]: NodeResult(**result) for result in answers}
    return [results.get(node) or NodeResult(node, error=f"no answer: {done.tail(3) or done}") for node in nodes]


@dataclass(frozen=True)
class _Owner:
    process: ProcessIdentity
    token: str


def stage_on_nodes(
    task: NodeTask,
    allocation: Allocation,
    *,
    state: Path,
    scheduler: Callable[[], Scheduler],
    run: CommandRunner = run,
    log: Callable[[str], None] = lambda text: None,
    stop: Stop = NEVER,
) -> list[NodeResult]:
    """Do the task on every node; one result a node, in the nodes' order. A node that did not answer has failed.

    Within a job (SLURM_JOB_ID) its nodes are used, unless ``allocation`` names another job. ``state`` (a directory that
    the nodes see at the same path) and ``scheduler`` are for a job of our own. Raises SubmissionError when nodes are
    not known or not available, JobError when Slurm does not answer, and Cancelled, after a job of our own was ended.
    """
    allocation = replace(allocation, job=allocation.job or os.environ.get("SLURM_JOB_ID"))
    nodes = [] if allocation.count and not allocation.job else allocation.node_names(run)
    if allocation.job:
        return stage_in_job(task, allocation, nodes, run)
    unfit = unfit_nodes(nodes, run) if nodes else {}
    results = {node: NodeResult(node, error=f"Slurm says that it is {reported}") for node, reported in unfit.items()}
    fit = [node for node in nodes if node not in unfit]
    if fit or allocation.count:
        staging = _StagingJob(state / DIRECTORY / f"launcher-stage-{secrets.token_hex(6)}", task, fit, allocation)
        results |= {result.node: result for result in staging.stage(scheduler(), log, stop)}
    return [results[node] for node in nodes or results]


class _StagingJob:
    """A job of submitit on ``nodes``, or on ``allocation.count`` that Slurm picks. Its token is the folder's name."""

    def __init__(self, folder: Path, task: NodeTask, nodes: Sequence[str], allocation: Allocation) -> None:
        self._folder, self._task, self._nodes, self._allocation = folder, task, nodes, allocation
        self._count = len(nodes) or allocation.count

    def stage(self, scheduler: Scheduler, log: Callable[[str], None], stop: Stop) -> list[NodeResult]:
        """Stage in a job, and remove job and files at the end. Returns one result for each of its nodes.

        Raises SubmissionError without a job, Cancelled after the job was ended, JobError when Slurm does not answer.
        """
        token, is_over = self._folder.name, False
        make_private(self._folder)
        try:
            write_json(self._folder / _OWNER, asdict(_Owner(ProcessIdentity.current(), token)))
            job = JobKey(self._submit_in_thread(stop), None, token)
            log(f"{job} stages on {count_of(self._count, 'node')}")
            state = self._follow(scheduler, job, log, stop)
            is_over = state.phase is Phase.TERMINAL
            # While a job ends, Slurm lists only its nodes that have not ended (22.05), so the job itself lists all.
            node_file = self._folder / _NODES
            nodes = self._nodes or node_names(node_file.read_text() if node_file.exists() else state.nodes)
            if not nodes:
                raise SubmissionError(f"the job got no nodes: {state.describe()}", where=str(job))
            deadline = time.monotonic() + _RESULT_TIMEOUT
            while not self._complete() and state.succeeded and time.monotonic() < deadline:
                time.sleep(_POLL_INTERVAL)
            reasons = (f"no result of it: the job is {state.describe()}", self._last_error())
            results, problem = self._results(), "; ".join(filter(None, reasons))
            return [results.get(node) or NodeResult(node, error=problem) for node in nodes]
        finally:
            if is_over or end_staging_job(token, scheduler, log):
                shutil.rmtree(self._folder, ignore_errors=True)

    def _submit_in_thread(self, stop: Stop) -> str:
        """Submit, and return the job's id. Raises SubmissionError, Cancelled.

        A thread does it, because submitit's sbatch has no time-out and a stop must not wait for it.
        """
        answer, deadline = start_in_thread(self._submit, "submitit"), time.monotonic() + SUBMISSION
        while not answer.done():
            if stop.wait(0.1):
                wait([answer], timeout=5.0)  # the job that sbatch is about to create can be found only once it exists
                raise stop.reason()
            if time.monotonic() > deadline:
                raise SubmissionError(f"sbatch did not answer within {SUBMISSION:.0f} s")
        return answer.result()

    def _submit(self) -> str:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        allocation, token = self._allocation, self._folder.name
        try:
            executor = submitit.SlurmExecutor(self._folder, python=shlex.quote(allocation.python))
            executor.update_parameters(
                job_name="launcher-stage",
                nodes=self._count,
                nodelist=",".join(self._nodes) or None,
                exclude=",".join(allocation.exclude) or None,
                partition=allocation.partition,
                account=allocation.account,
                ntasks_per_node=1,
                cpus_per_task=allocation.cpus,
                time=allocation.minutes,
                comment=token,
                wckey=None,
                setup=[f'printf "%s\\n" "$SLURM_JOB_NODELIST" > {shlex.quote(str(self._folder / _NODES))}'],
                # A dead node or a failing task must not end the others.
                additional_parameters={"no-kill": True, "no-requeue": True},
                srun_args=["--kill-on-bad-exit=0", "--no-kill", "--wait=0"],
            )
            return str(executor.submit(stage_on_this_node, self._task).job_id)
        except (FailedJobError, FailedSubmissionError, RuntimeError, OSError) as error:
            raise SubmissionError(f"the job that stages cannot be submitted: {error}") from error

    def _follow(self, scheduler: Scheduler, job: JobKey, log: Callable[[str], None], stop: Stop) -> JobState:
        """Wait for the end of the job. Returns its last state. Raises Cancelled, JobError."""
        completed = JobState(Phase.TERMINAL, "COMPLETED", source="its results")
        poller = JobPoller(scheduler, pace=_PACE)
        poller.watch(job)
        state = unknown_state("not asked yet")
        while poller.watched and not stop.requested():
            answer = poller.poll(markers={job: completed} if self._complete() else {})
            if answer is None:
                time.sleep(_POLL_INTERVAL)
                continue
            state = answer.states[job]
            for change in answer.changes:
                log(f"{job}: {change.state.describe()}")
                if change.given_up is not None:
                    raise change.given_up
        if stop.requested():
            raise Cancelled("stopped while nodes staged", hint="the same command goes on from there, on each node")
        return state

    def _complete(self) -> bool:
        """Whether every task has written its result."""
        return len(list(self._folder.glob(_RESULTS))) == self._count

    def _results(self) -> dict[str, NodeResult]:
        """The results of the finished tasks, by node."""
        results = {}
        for path in self._folder.glob(_RESULTS):
            with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
                outcome, value = pickle.loads(path.read_bytes())  # ours: the directory is 0700
                if outcome == "success":
                    results[value["node"]] = NodeResult(**value)
        return results

    def _last_error(self) -> str:
        """The last line in the tasks' logs with the word error; "" without one."""
        logs = "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*_log.err")))
        return next((line.strip() for line in reversed(logs.splitlines()) if "error" in line.lower()), "")


def end_orphaned_jobs(state: Path, scheduler: Callable[[], Scheduler], log: Callable[[str], None]) -> int:
    """End the jobs of stagings whose launcher on this host is dead; return their number.

    ``scheduler`` is called only if there is such a job. Raises SchedulerUnreachable.
    """
    count = 0
    for folder in sorted((state / DIRECTORY).glob("launcher-stage-*")):
        owner = read_json(folder / _OWNER, _Owner)
        if owner is not None and owner.process.alive() is False:
            count += 1
            log(f"{owner.token}: pid {owner.process.pid}, which staged on nodes, is dead")
            if end_staging_job(owner.token, scheduler(), log):
                shutil.rmtree(folder, ignore_errors=True)
    return count


def end_staging_job(token: str, scheduler: Scheduler, log: Callable[[str], None]) -> bool:
    """Cancel the job with the token, if there is one, and wait for its end; False when that takes too long.

    Raises SchedulerUnreachable.
    """
    jobs = scheduler.find(token)
    if jobs:
        scheduler.cancel(jobs)
    states = await_ends(scheduler, jobs, time_limit=_END_TIMEOUT)
    running = [job for job, state in states.items() if state.phase is not Phase.TERMINAL]
    if running:
        log(f"{running[0]} was cancelled and is not seen to end; `launcher cleanup` looks again")
    return not running


if __name__ == "__main__":
    answer = stage_on_this_node(NodeTask(**json.loads(sys.argv[1])))
    sys.stdout.write(_ANSWER_PREFIX + json.dumps(answer) + "\n")
    sys.exit(0 if answer["ok"] else ModelError.exit_code)
