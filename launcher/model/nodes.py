"""Staging to node-local storage: which nodes, what each of them does, and what it says of the result.

`python -m launcher.model.nodes TASK` is what a step of a running job starts on each node; submitit calls `on_node`.
Both run this package as it is installed here, so the compute nodes have to see it at the same path.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import LauncherError, ModelError, SubmissionError
from launcher.core.process import CommandRunner
from launcher.core.stop import Stop, stop_on_signals
from launcher.model.source import source_of
from launcher.model.stage import stage

_MARK = "launcher-node-verdict "
_UNFIT = ("down", "drain", "fail", "*", "maint", "reboot", "power", "unknown", "future")
"""Parts of sinfo's word for the state of a node on which Slurm starts no job now."""


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
    python: str | None = None

    @property
    def interpreter(self) -> str:
        """The Python that runs on the nodes."""
        return self.python or sys.executable

    def node_names(self, run: CommandRunner) -> list[str]:
        """The names of the nodes, without the excluded ones; for anything but ``count``. Raises SubmissionError."""
        left = [node for node in self._listed(run) if node not in self.exclude]
        if not left:
            where = self.nodes or self.partition or f"job {self.job}"
            raise SubmissionError("no nodes are left to stage on", where=where)
        return left

    def _listed(self, run: CommandRunner) -> list[str]:
        if self.nodes is not None:
            return names_of(self.nodes, run)
        if self.job is None:
            answer = run(["sinfo", "-h", "-N", "-p", str(self.partition), "-o", "%N"], timeout=60)
            if not answer.ok or not answer.stdout.strip():
                raise SubmissionError(f"partition {self.partition} has no nodes: {answer.tail(1)}".rstrip(": "))
            return list(dict.fromkeys(answer.stdout.split()))
        answer = run(["squeue", "-h", "-j", self.job, "-t", "RUNNING", "-o", "%N"], timeout=60)
        if not answer.ok or not answer.stdout.strip():
            raise SubmissionError(f"job {self.job} holds no nodes: {answer.tail(1)}".rstrip(": "))
        return names_of(answer.stdout.strip(), run)


def names_of(listed: str, run: CommandRunner) -> list[str]:
    """The nodes' names in a Slurm host list. Raises SubmissionError."""
    answer = run(["scontrol", "show", "hostnames", listed], timeout=60)
    if not answer.ok:
        raise SubmissionError(f"{listed!r} is not a list of nodes: {answer.tail(1)}")
    return answer.stdout.split()


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

    ``how`` is as in `launcher.model.stage.Staged`; ``unknown`` when the node said nothing, because it died, was cut off
    or ran out of time. ``error`` says what went wrong. ``copied`` is in bytes.
    """

    node: str
    ok: bool
    how: str = ""
    path: str = ""
    copied: int = 0
    seconds: float = 0.0
    error: str | None = None

    @classmethod
    def silent(cls, node: str, why: str) -> NodeResult:
        """Of a node that gave no answer."""
        return cls(node, False, "unknown", error=why)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output, and for the way from the node to the launcher."""
        return dataclasses.asdict(self)


def this_node() -> str:
    """The node's name in Slurm's words; several nodes of a test cluster share one host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def path_on_this_node(path: str) -> str:
    """A path with ``{node}`` filled in."""
    return path.replace("{node}", this_node())


def on_node(task: NodeTask) -> dict[str, Any]:
    """Do a node's task, in a process for this alone; the `NodeResult` as a mapping.

    SIGTERM stops the copy, and so does SIGUSR2, which Slurm sends before the time limit because submitit asks for it.
    The stop is the node's answer then, and the next staging goes on from there.
    """
    with stop_on_signals((signal.SIGTERM, signal.SIGUSR2)) as stop:
        return _stage_here(task, stop).as_dict()


def _stage_here(task: NodeTask, stop: Stop) -> NodeResult:
    """Never raises for what can go wrong on a node: that is the node's answer."""
    began, path = time.monotonic(), path_on_this_node(task.destination)
    try:
        done = stage(source_of(task.source, stop=stop), Path(path), workers=task.workers, stop=stop)
    except LauncherError as error:
        return NodeResult(this_node(), False, path=path, seconds=time.monotonic() - began, error=str(error))
    return NodeResult(this_node(), True, done.how, path, done.copied, time.monotonic() - began)


def step_command(task: NodeTask, where: Allocation, nodes: Sequence[str]) -> list[str]:
    """The srun that does the task on nodes of a running job: one task a node, and one that fails ends no other."""
    count = str(len(nodes))
    argv = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}"]
    argv += ["--kill-on-bad-exit=0", "--no-kill", "--wait=0", "--job-name=launcher-stage"]
    argv += [f"--jobid={where.job}", "--overlap"]
    return [*argv, where.interpreter, "-m", "launcher.model.nodes", json.dumps(dataclasses.asdict(task))]


def answers_of_step(output: str) -> dict[str, NodeResult]:
    """What the nodes said, by node, in the output of `step_command`."""
    lines: list[Mapping[str, Any]]
    lines = [json.loads(line.partition(_MARK)[2]) for line in output.splitlines() if _MARK in line]
    return {result.node: result for result in (NodeResult(**line) for line in lines)}


if __name__ == "__main__":
    answer = on_node(NodeTask(**json.loads(sys.argv[1])))
    sys.stdout.write(_MARK + json.dumps(answer) + "\n")
    sys.exit(0 if answer["ok"] else ModelError.exit_code)
