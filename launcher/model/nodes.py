"""Staging to node-local storage: one task on each node of an allocation, a verdict from each.

Within an allocation that is there the tasks are a step of it (srun); otherwise node_job.py gets one. They run this
package as it lies here, so it has to lie where compute nodes see it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, LauncherError, ModelError, SubmissionError
from launcher.core.process import CommandRunner, run
from launcher.slurm.client import Scheduler

_MARK = "launcher-node-verdict "
TIMEOUT = 24 * 3600.0
_UNFIT = ("down", "drain", "fail", "*", "maint", "reboot", "power", "unknown", "future")
"""In sinfo's word for a node's state: no job is started there now."""


@dataclass(frozen=True)
class Allocation:
    """Which nodes: those of a running ``job``; or, in an allocation of their own, ``nodes`` (a Slurm host list),
    ``count`` that Slurm picks, or all of a ``partition``. With ``job``, ``nodes`` are some of its nodes.

    ``python`` is the interpreter there (default: this one, by its path); ``cpus`` processors and ``minutes`` the time
    limit of an allocation of our own.
    """

    job: str | None = None
    nodes: str | None = None
    partition: str | None = None
    account: str | None = None
    exclude: tuple[str, ...] = ()
    count: int = 0
    cpus: int | None = None
    minutes: int = 240
    python: str | None = None


@dataclass(frozen=True)
class NodeVerdict:
    """What became of a node's copy: ``how`` as in `launcher.model.stage.Staged`, or ``error``; then ``how`` is
    ``unknown`` when the node said nothing, because it died, was cut off or ran out of time."""

    node: str
    ok: bool
    how: str = ""
    path: str = ""
    copied: int = 0
    seconds: float = 0.0
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def stage_on_nodes(
    source: str,
    destination: str,
    where: Allocation,
    *,
    workers: int = 8,
    run: CommandRunner = run,
    timeout: float = TIMEOUT,
    state: Path | None = None,
    scheduler: Callable[[], Scheduler] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
    environ: Mapping[str, str] = os.environ,
) -> list[NodeVerdict]:
    """Stage ``source`` (as `source_of` takes it) to ``destination`` on every node; ``{node}`` in it is the node's name.

    Gives one verdict a node, in the nodes' order; a node that did not answer has failed. ``state`` (a directory that
    the nodes see) and ``scheduler`` are for an allocation of our own. Raises SubmissionError when the nodes cannot be
    named or had, Cancelled.
    """
    task = {"source": source, "destination": destination, "workers": workers}
    if not where.job and (inside := environ.get("SLURM_JOB_ID")):
        where = dataclasses.replace(where, job=inside)
    if where.job:
        nodes = _without(where, _names(where, run))
        argv = [*_srun(where, nodes), where.python or sys.executable, "-m", "launcher.model.nodes", json.dumps(task)]
        done = run(argv, timeout=timeout)
        answers = {verdict.node: verdict for verdict in _verdicts(done.stdout)}
        silent = f"no answer: {done.tail(3) or done}"
        return [answers.get(node) or NodeVerdict(node, False, "unknown", error=silent) for node in nodes]
    from launcher.model.node_job import stage_in_own_job

    if state is None or scheduler is None:
        raise ConfigError("an allocation of its own needs a scheduler, and a directory that the nodes see")
    nodes = [] if where.count else _without(where, _names(where, run))
    unfit = _unfit(nodes, run) if nodes else {}
    found: dict[str, NodeVerdict] = {}
    if where.count or len(unfit) < len(nodes):
        fit = [node for node in nodes if node not in unfit]
        said = stage_in_own_job(
            task, fit, where, scheduler=scheduler(), state=state, say=say, should_stop=should_stop, run=run
        )
        found = {verdict.node: verdict for verdict in said}
    for node, word in unfit.items():
        found[node] = NodeVerdict(node, False, "unknown", error=f"Slurm says that it is {word}")
    return [found[node] for node in (nodes or found)]


def names_of(listed: str, run: CommandRunner) -> list[str]:
    """The nodes' names in a Slurm host list. Raises SubmissionError."""
    answer = run(["scontrol", "show", "hostnames", listed], timeout=60)
    if not answer.ok:
        raise SubmissionError(f"{listed!r} is no list of nodes: {answer.tail(1)}")
    return answer.stdout.split()


def _without(where: Allocation, nodes: Sequence[str]) -> list[str]:
    left = [node for node in nodes if node not in where.exclude]
    if not left:
        raise SubmissionError(
            "no nodes are left to stage on", where=where.nodes or where.partition or f"job {where.job}"
        )
    return left


def _names(where: Allocation, run: CommandRunner) -> list[str]:
    """The nodes' names. Raises SubmissionError."""
    if where.nodes is not None:
        return names_of(where.nodes, run)
    if where.job is None:
        answer = run(["sinfo", "-h", "-N", "-p", str(where.partition), "-o", "%N"], timeout=60)
        if not answer.ok or not answer.stdout.strip():
            raise SubmissionError(f"partition {where.partition} has no nodes: {answer.tail(1)}".rstrip(": "))
        return list(dict.fromkeys(answer.stdout.split()))
    answer = run(["squeue", "-h", "-j", str(where.job), "-t", "RUNNING", "-o", "%N"], timeout=60)
    if not answer.ok or not answer.stdout.strip():
        raise SubmissionError(f"job {where.job} holds no nodes: {answer.tail(1)}".rstrip(": "))
    return names_of(answer.stdout.strip(), run)


def _unfit(nodes: Sequence[str], run: CommandRunner) -> dict[str, str]:
    """Nodes on which Slurm starts nothing now, with its word for it: a job that names one would wait for all."""
    answer = run(["sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T"], timeout=60)
    words = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
    return {node: words[node] for node in nodes if any(word in words.get(node, "").lower() for word in _UNFIT)}


def _srun(where: Allocation, nodes: Sequence[str]) -> list[str]:
    """One task a node. A task that fails must not end the others."""
    count = str(len(nodes))
    argv = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}"]
    argv += ["--kill-on-bad-exit=0", "--no-kill", "--wait=0", "--job-name=launcher-stage"]
    return [*argv, f"--jobid={where.job}", "--overlap"]


def _verdicts(output: str) -> list[NodeVerdict]:
    lines = [line.partition(_MARK)[2] for line in output.splitlines() if _MARK in line]
    return [NodeVerdict(**json.loads(line)) for line in lines]


def this_node() -> str:
    """The node's name in Slurm's words; several nodes of a test cluster share one host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def on_this_node(path: str) -> str:
    """A path with ``{node}`` filled in."""
    return path.replace("{node}", this_node())


def stage_here(
    source: str, destination: str, workers: int, should_stop: Callable[[], bool] = lambda: False
) -> NodeVerdict:
    """One node's task. Never raises what a node can do wrong: that is its verdict."""
    from launcher.model.source import source_of
    from launcher.model.stage import stage

    began, path = time.monotonic(), on_this_node(destination)
    try:
        done = stage(source_of(source), Path(path), workers=workers, should_stop=should_stop)
    except LauncherError as error:
        return NodeVerdict(this_node(), False, path=path, seconds=time.monotonic() - began, error=str(error))
    return NodeVerdict(this_node(), True, done.how, path, done.copied, time.monotonic() - began)


def on_node(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a node runs, as one process for this alone. SIGTERM, and SIGUSR2 before the time limit (submitit asks Slurm
    for it), stop the copy at its next piece, so that it is said and the next one goes on from there."""
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: stopped.append(number))
    return stage_here(**task, should_stop=lambda: bool(stopped)).as_dict()


if __name__ == "__main__":
    verdict = on_node(json.loads(sys.argv[1]))
    sys.stdout.write(_MARK + json.dumps(verdict) + "\n")
    sys.exit(0 if verdict["ok"] else ModelError.exit_code)
