"""Staging to node-local storage: which nodes, what each of them does, and what it says of the result.

`python -m launcher.model.nodes TASK` is what a step of a running job starts on each node; submitit calls `on_node`.
Both run this package as it is installed here, so the compute nodes have to see it at the same path.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import LauncherError, ModelError, SubmissionError
from launcher.core.process import CommandRunner
from launcher.core.slurm_notation import node_names
from launcher.core.stop import stop_on_signals
from launcher.model.source import source_of
from launcher.model.stage import stage

STEP = 24 * 3600.0
"""Seconds that a step of a running job may take."""

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

    ``how`` is as in `launcher.model.stage.Staged`; ``unknown`` when the node said nothing, because it died, was cut off
    or ran out of time. ``error`` says what went wrong. ``copied`` is in bytes.
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


def on_node(task: NodeTask) -> dict[str, Any]:
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


if __name__ == "__main__":
    answer = on_node(NodeTask(**json.loads(sys.argv[1])))
    sys.stdout.write(_MARK + json.dumps(answer) + "\n")
    sys.exit(0 if answer["ok"] else ModelError.exit_code)
