"""Staging to node-local storage: one task on each node of an allocation, a verdict from each.

The tasks run this package as it lies here, so it has to lie where compute nodes see it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, ModelError, SubmissionError
from launcher.process import CommandRunner, run

_MARK = "launcher-node-verdict "
TIMEOUT = 24 * 3600.0


@dataclass(frozen=True)
class Allocation:
    """Which nodes: those of a running ``job``, or ``nodes`` (a Slurm host list) in an allocation of their own."""

    job: str | None = None
    nodes: str | None = None
    partition: str | None = None
    account: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeVerdict:
    """What became of a node's copy: ``how`` as in `launcher.model.stage.Staged`, or ``error``."""

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
) -> list[NodeVerdict]:
    """Stage ``source`` (as `source_of` takes it) to ``destination`` on every node; ``{node}`` in it is the node's name.

    Gives one verdict a node, in the nodes' order; a node that did not answer has failed. Raises SubmissionError when
    the nodes cannot be named, and no more than that.
    """
    nodes = [node for node in _names(where, run) if node not in where.exclude]
    if not nodes:
        raise SubmissionError("no nodes are left to stage on", where=where.nodes or f"job {where.job}")
    task = json.dumps({"source": source, "destination": destination, "workers": workers})
    done = run([*_srun(where, nodes), sys.executable, "-m", "launcher.model.nodes", task], timeout=timeout)
    answers = {verdict.node: verdict for verdict in _verdicts(done.stdout)}
    silent = f"no answer: {done.tail(3) or done}"
    return [answers.get(node) or NodeVerdict(node, False, error=silent) for node in nodes]


def _names(where: Allocation, run: CommandRunner) -> list[str]:
    """The nodes' names. Raises SubmissionError."""
    listed = where.nodes
    if listed is None:
        answer = run(["squeue", "-h", "-j", str(where.job), "-t", "RUNNING", "-o", "%N"], timeout=60)
        listed = answer.stdout.strip()
        if not answer.ok or not listed:
            raise SubmissionError(f"job {where.job} holds no nodes: {answer.tail(1)}".rstrip(": "))
    answer = run(["scontrol", "show", "hostnames", listed], timeout=60)
    if not answer.ok:
        raise SubmissionError(f"{listed!r} is no list of nodes: {answer.tail(1)}")
    return answer.stdout.split()


def _srun(where: Allocation, nodes: Sequence[str]) -> list[str]:
    """One task a node. A task that fails must not end the others."""
    count = str(len(nodes))
    argv = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}"]
    argv += ["--kill-on-bad-exit=0", "--job-name=launcher-stage"]
    if where.job:
        argv += [f"--jobid={where.job}", "--overlap"]
    argv += [f"--partition={where.partition}"] if where.partition else []
    argv += [f"--account={where.account}"] if where.account else []
    return argv


def _verdicts(output: str) -> list[NodeVerdict]:
    lines = [line.partition(_MARK)[2] for line in output.splitlines() if _MARK in line]
    return [NodeVerdict(**json.loads(line)) for line in lines]


def this_node() -> str:
    """The node's name in Slurm's words; several nodes of a test cluster share one host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def on_this_node(path: str) -> str:
    """A path with ``{node}`` filled in."""
    return path.replace("{node}", this_node())


def stage_here(source: str, destination: str, workers: int) -> NodeVerdict:
    """One node's task. Never raises what a node can do wrong: that is its verdict."""
    from launcher.model.source import source_of
    from launcher.model.stage import stage

    began, path = time.monotonic(), on_this_node(destination)
    try:
        done = stage(source_of(source), Path(path), workers=workers)
    except LauncherError as error:
        return NodeVerdict(this_node(), False, path=path, seconds=time.monotonic() - began, error=str(error))
    return NodeVerdict(this_node(), True, done.how, path, done.copied, time.monotonic() - began)


if __name__ == "__main__":
    verdict = stage_here(**json.loads(sys.argv[1]))
    sys.stdout.write(_MARK + json.dumps(verdict.as_dict()) + "\n")
    sys.exit(0 if verdict.ok else ModelError.exit_code)
