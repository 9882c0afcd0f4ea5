"""Staging to node-local storage: which nodes, what each of them does, and what it says of the result.

`python -m launcher.model.nodes TASK` is what a step of a running job starts on each node. For a job of our own submitit
writes the batch script, ships `stage_on_this_node` to every node and brings the results back; the job's state comes
from Slurm, by our own client. Both run this package as it is installed here, so the compute nodes have to see it at the
same path.

    <state>/stagings/<token>/              of submitit: batch script, function, and per node a result and logs
    <state>/stagings/<token>/owner.json    which process staged

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
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
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
from launcher.model.source import source_of
from launcher.model.stage import stage
from launcher.slurm.client import JobKey, JobState, Phase, Scheduler, unknown_state
from launcher.slurm.poller import JobPoller, Pace, end_jobs

STEP = 24 * 3600.0
"""Seconds that a step of a running job may take."""

_MARK = "launcher-node-verdict "
_UNFIT = ("down", "drain", "fail", "*", "maint", "reboot", "power", "unknown", "future")
"""Parts of sinfo's word for the state of a node on which Slurm starts no job now."""

DIRECTORY = "stagings"
_NODES = "nodes"
_OWNER = "owner.json"
_RESULTS = "*_result.pkl"
SUBMISSION = 120.0
"""Seconds that sbatch may take."""

_LATE = 15.0
"""Seconds that a result is waited for after the job's end: a shared file system may show it late."""

_GONE = 60.0
"""Seconds within which a job that was cancelled has to be gone."""

_PACE = Pace(first=0.5, running=10.0, pending=30.0)
_LOOK = 0.5


@dataclass(frozen=True)
class Allocation:
    """Which nodes: those of a running ``job``, or those of a job of our own.

    A job of our own gets ``nodes`` (a Slurm host list), or ``count`` that Slurm picks, or all of a ``partition``. With
    ``job``, ``nodes`` are some of its nodes. ``python`` is the interpreter there (default: this one, by its path).
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
        """The names of the nodes, without the excluded ones; for anything but ``count``. Raises SubmissionError."""
        of, listed = f"job {self.job}" if self.job else f"partition {self.partition}", self.nodes
        if listed is None:
            of_job = ["squeue", "-h", "-j", str(self.job), "-t", "RUNNING", "-o", "%N"]
            answer = run(of_job if self.job else ["sinfo", "-h", "-p", str(self.partition), "-o", "%N"], timeout=60)
            if not answer.ok:
                raise SubmissionError(f"Slurm does not name the nodes: {answer.tail(1)}", where=of)
            listed = ",".join(answer.stdout.split())
        left = [node for node in dict.fromkeys(node_names(listed)) if node not in self.exclude]
        if not left:
            raise SubmissionError("no nodes are left to stage on", where=self.nodes or of)
        return left


def unfit_nodes(nodes: Sequence[str], run: CommandRunner) -> dict[str, str]:
    """Nodes on which Slurm starts nothing now, with its word for the state: a job that names one waits for all."""
    answer = run(["sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T"], timeout=60)
    words = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
    return {node: words[node] for node in nodes if any(part in words.get(node, "").lower() for part in _UNFIT)}


@dataclass(frozen=True)
class NodeTask:
    """What every node does: stage ``source`` (as `source_of` takes it) to ``destination`` with so many ``workers``.

    ``{node}`` in the destination stands for the node's name.
    """

    source: str
    destination: str
    workers: int = 8


@dataclass(frozen=True)
class NodeResult:
    """What became of a node's copy.

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
    """The node's name in Slurm's words; several nodes of a test cluster share one host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def path_on_this_node(path: str) -> str:
    """A path with ``{node}`` filled in."""
    return path.replace("{node}", this_node())


def stage_on_this_node(task: NodeTask) -> dict[str, Any]:
    """Do a node's task, in a process for this alone; the `NodeResult` as a mapping. What goes wrong is in it.

    SIGTERM stops the copy, and so does SIGUSR2, which Slurm sends before the time limit because submitit asks for it.
    The stop is the node's answer then, and the next staging goes on from there.
    """
    began, path = time.monotonic(), path_on_this_node(task.destination)
    with stop_on_signals((signal.SIGTERM, signal.SIGUSR2)) as stop:
        try:
            done = stage(source_of(task.source, stop=stop), Path(path), workers=task.workers, stop=stop)
            result = NodeResult(this_node(), True, done.how, path, done.copied, time.monotonic() - began)
        except LauncherError as error:
            result = NodeResult(this_node(), False, "", path, seconds=time.monotonic() - began, error=str(error))
    return asdict(result)


def stage_in_job(task: NodeTask, where: Allocation, nodes: Sequence[str], run: CommandRunner) -> list[NodeResult]:
    """Do the task on nodes of a running job by a step of it: one task a node, and one that fails ends no other."""
    argv = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
    argv += [f"--nodelist={','.join(nodes)}", "--kill-on-bad-exit=0", "--no-kill", "--wait=0"]
    argv += ["--job-name=launcher-stage", f"--jobid={where.job}", "--overlap"]
    done = run([*argv, where.python, "-m", "launcher.model.nodes", json.dumps(asdict(task))], timeout=STEP)
    said = [json.loads(line.partition(_MARK)[2]) for line in done.stdout.splitlines() if _MARK in line]
    answers = {result["node"]: NodeResult(**result) for result in said}
    return [answers.get(node) or NodeResult(node, error=f"no answer: {done.tail(3) or done}") for node in nodes]


@dataclass(frozen=True)
class _Owner:
    process: ProcessIdentity
    token: str


def stage_on_nodes(
    task: NodeTask,
    where: Allocation,
    *,
    state: Path,
    scheduler: Callable[[], Scheduler],
    run: CommandRunner = run,
    log: Callable[[str], None] = lambda text: None,
    stop: Stop = NEVER,
) -> list[NodeResult]:
    """Do the task on every node; one result a node, in the nodes' order. A node that did not answer has failed.

    Within a job (SLURM_JOB_ID) its nodes are meant unless ``where`` names another one. ``state`` (a directory that the
    nodes see, at the same path) and ``scheduler`` are for a job of our own. Raises SubmissionError when the nodes
    cannot be named or had, JobError when Slurm is silent, and Cancelled, after a job of our own was ended.
    """
    where = replace(where, job=where.job or os.environ.get("SLURM_JOB_ID"))
    nodes = [] if where.count and not where.job else where.node_names(run)
    if where.job:
        return stage_in_job(task, where, nodes, run)
    unfit = unfit_nodes(nodes, run) if nodes else {}
    found = {node: NodeResult(node, error=f"Slurm says that it is {word}") for node, word in unfit.items()}
    fit = [node for node in nodes if node not in unfit]
    if fit or where.count:
        own = _OwnJob(state / DIRECTORY / f"launcher-stage-{secrets.token_hex(6)}", task, fit, where)
        found |= {result.node: result for result in own.stage(scheduler(), log, stop)}
    return [found[node] for node in nodes or found]


class _OwnJob:
    """submitit's job on ``nodes``, or on ``where.count`` that Slurm picks. The name of its ``folder`` is its token."""

    def __init__(self, folder: Path, task: NodeTask, nodes: Sequence[str], where: Allocation) -> None:
        self._folder, self._task, self._nodes, self._where = folder, task, nodes, where
        self._count = len(nodes) or where.count

    def stage(self, scheduler: Scheduler, log: Callable[[str], None], stop: Stop) -> list[NodeResult]:
        """Stage in a job that is gone at the end, and its files too; one result for each of its nodes.

        Raises SubmissionError when there is no job, Cancelled after it was ended, JobError when Slurm is silent.
        """
        token, ended = self._folder.name, False
        make_private(self._folder)
        try:
            write_json(self._folder / _OWNER, asdict(_Owner(ProcessIdentity.current(), token)))
            job = JobKey(self._submit_in_thread(stop), None, token)
            log(f"{job} stages on {count_of(self._count, 'node')}")
            final = self._follow(scheduler, job, log, stop)
            ended = final.phase is Phase.TERMINAL
            # While a job ends, Slurm names only those of its nodes that are not done yet (22.05): the job says it.
            named = self._folder / _NODES
            nodes = self._nodes or node_names(named.read_text() if named.exists() else final.nodes)
            if not nodes:
                raise SubmissionError(f"the job got no nodes: {final.describe()}", where=str(job))
            deadline = time.monotonic() + _LATE
            while not self._complete() and final.succeeded and time.monotonic() < deadline:
                time.sleep(_LOOK)
            reasons = (f"no result of it: the job is {final.describe()}", self._last_error())
            answers, silence = self._results(), "; ".join(filter(None, reasons))
            return [answers.get(node) or NodeResult(node, error=silence) for node in nodes]
        finally:
            if ended or end_staging_job(token, scheduler, log):
                shutil.rmtree(self._folder, ignore_errors=True)

    def _submit_in_thread(self, stop: Stop) -> str:
        """Submit, and return the job's id. Raises SubmissionError, Cancelled.

        It is done in a thread, because submitit's sbatch has no time-out and a stop must not wait for it.
        """
        answer: Future[str] = Future()

        def submit() -> None:
            try:
                answer.set_result(self._submit())
            except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
                answer.set_exception(error)

        threading.Thread(target=submit, daemon=True, name="submitit").start()
        deadline = time.monotonic() + SUBMISSION
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

        where, token = self._where, self._folder.name
        try:
            executor = submitit.SlurmExecutor(self._folder, python=shlex.quote(where.python))
            executor.update_parameters(
                job_name="launcher-stage",
                nodes=self._count,
                nodelist=",".join(self._nodes) or None,
                exclude=",".join(where.exclude) or None,
                partition=where.partition,
                account=where.account,
                ntasks_per_node=1,
                cpus_per_task=where.cpus,
                time=where.minutes,
                comment=token,
                wckey=None,
                setup=[f'printf "%s\\n" "$SLURM_JOB_NODELIST" > {shlex.quote(str(self._folder / _NODES))}'],
                # A node that dies, or a task that fails, must not end the others.
                additional_parameters={"no-kill": True, "no-requeue": True},
                srun_args=["--kill-on-bad-exit=0", "--no-kill", "--wait=0"],
            )
            return str(executor.submit(stage_on_this_node, self._task).job_id)
        except (FailedJobError, FailedSubmissionError, RuntimeError, OSError) as error:
            raise SubmissionError(f"the job that stages cannot be submitted: {error}") from error

    def _follow(self, scheduler: Scheduler, job: JobKey, log: Callable[[str], None], stop: Stop) -> JobState:
        """Watch the job to its end. Raises Cancelled, JobError."""
        done = JobState(Phase.TERMINAL, "COMPLETED", source="its results")
        poller = JobPoller(scheduler, pace=_PACE)
        poller.watch(job)
        state = unknown_state("not asked yet")
        while poller.watched and not stop.requested():
            answer = poller.poll(markers={job: done} if self._complete() else {})
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

    def _complete(self) -> bool:
        """Whether every task has left its result."""
        return len(list(self._folder.glob(_RESULTS))) == self._count

    def _results(self) -> dict[str, NodeResult]:
        """What the tasks that came to their end said, by node."""
        found = {}
        for path in self._folder.glob(_RESULTS):
            with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
                outcome, value = pickle.loads(path.read_bytes())  # ours: the directory is 0700
                if outcome == "success":
                    found[value["node"]] = NodeResult(**value)
        return found

    def _last_error(self) -> str:
        """The last line in the tasks' logs that speaks of an error; "" without one."""
        logs = "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*_log.err")))
        return next((line.strip() for line in reversed(logs.splitlines()) if "error" in line.lower()), "")


def end_orphaned_jobs(state: Path, scheduler: Callable[[], Scheduler], log: Callable[[str], None]) -> int:
    """End the jobs of stagings whose launcher on this host is dead; return how many there were.

    ``scheduler`` is opened only when there is a job to ask about. Raises SchedulerUnreachable.
    """
    found = 0
    for folder in sorted((state / DIRECTORY).glob("launcher-stage-*")):
        owner = read_json(folder / _OWNER, _Owner)
        if owner is not None and owner.process.alive() is False:
            found += 1
            log(f"{owner.token}: pid {owner.process.pid}, which staged on nodes, is dead")
            if end_staging_job(owner.token, scheduler(), log):
                shutil.rmtree(folder, ignore_errors=True)
    return found


def end_staging_job(token: str, scheduler: Scheduler, log: Callable[[str], None]) -> bool:
    """End the job that carries the token, if there is one, and see it gone; False when it was not in time.

    Raises SchedulerUnreachable.
    """
    jobs = scheduler.find(token)
    if jobs:
        scheduler.cancel(jobs)
    states = end_jobs(scheduler, jobs, bound=_GONE)
    alive = [job for job, state in states.items() if state.phase is not Phase.TERMINAL]
    if alive:
        log(f"{alive[0]} was cancelled and is not seen to end; `launcher cleanup` looks again")
    return not alive


if __name__ == "__main__":
    answer = stage_on_this_node(NodeTask(**json.loads(sys.argv[1])))
    sys.stdout.write(_MARK + json.dumps(answer) + "\n")
    sys.exit(0 if answer["ok"] else ModelError.exit_code)
