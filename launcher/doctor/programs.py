"""The programs that know the cluster: running them in a clean environment, and parsing their output into facts.

Each parser ignores lines of another form, such as banners.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from launcher.core.process import NOT_FOUND, CommandRunner, Completed, clean_environment, run
from launcher.core.slurm_notation import limit_seconds
from launcher.doctor.facts import Fact, Mount, Node, Partition, Unknown
from launcher.slurm.answers import scontrol_pairs

T = TypeVar("T")

TIMEOUT = 20.0
"""Seconds that a program may take to answer."""

_LONGEST = 2000
"""Characters that are quoted of a program's output."""

_ERROR = re.compile(r"error|fatal|unable|denied|cannot", re.IGNORECASE)
_PREFIXES = ("SINFO_", "SACCTMGR_", "SCONTROL_", "SRUN_")
_CONFIG = re.compile(r"^(\w+)\s*= (.*?)\s*$", re.MULTILINE)
_GPUS = re.compile(r"(?:^|,)gpu(?::([^:,(]+))?:(\d+)(?=[,(]|$)")


def clean_runner(environ: Mapping[str, str], runner: CommandRunner = run) -> CommandRunner:
    """``runner`` without variables of the environment that change the answers of the cluster's programs."""
    clean = {name: value for name, value in clean_environment(environ).items() if not name.startswith(_PREFIXES)}
    return partial(runner, env={**clean, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"})


def ask(runner: CommandRunner, argv: Sequence[str], read: Callable[[str], T], *, may_be_empty: bool = False) -> Fact[T]:
    """The program's output as ``read`` parses it; unknown when the program fails, or when it prints nothing useful."""
    answer = runner(argv, timeout=TIMEOUT)
    if not answer.ok:
        return no_answer(answer)
    value = read(answer.stdout)
    if value or may_be_empty:
        return value
    return Unknown(f"`{' '.join(argv[:4])}` printed nothing that could be read: {answer.tail(1)[:_LONGEST]!r}")


def no_answer(answer: Completed) -> Unknown:
    """Why a program gave no answer, in one line."""
    program = answer.argv[0]
    if answer.returncode == NOT_FOUND:
        return Unknown(f"there is no {program} here")
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    errors = [line for line in lines if _ERROR.search(line)][:2] or lines[-2:]
    text = " ".join(" ".join(errors).split())[:_LONGEST]
    slow = f"did not answer within {answer.seconds:.0f} s"
    problem = slow if answer.timed_out else f"failed (exit {answer.returncode})"
    return Unknown(f"{program} {problem}" + (f": {text}" if text else ""))


def config(text: str) -> dict[str, str]:
    """`scontrol show config`: one ``Name = value`` a line (plugins' own sections follow in the same form)."""
    return dict(_CONFIG.findall(text))


def partitions(text: str) -> tuple[Partition, ...]:
    """`scontrol --all show partition -o`."""
    return tuple(
        Partition(
            name=pairs["PartitionName"],
            default=pairs["Default"] == "YES",
            hidden=pairs["Hidden"] == "YES",
            state=pairs["State"],
            max_time=limit_seconds(pairs["MaxTime"]),
            nodes=int(pairs["TotalNodes"]) if pairs["TotalNodes"].isdigit() else 0,
        )
        for pairs in map(scontrol_pairs, text.splitlines())
        if pairs["PartitionName"]
    )


def nodes(text: str) -> tuple[Node, ...]:
    """`scontrol --all show node -o`: ``Arch`` stands only where the node's slurmd has registered."""
    return tuple(
        Node(
            name=pairs["NodeName"],
            arch=pairs["Arch"] or None,
            gres=gpus(pairs["Gres"]),
            state=pairs["State"],
            partitions=tuple(partition for partition in pairs["Partitions"].split(",") if partition),
        )
        for pairs in map(scontrol_pairs, text.splitlines())
        if pairs["NodeName"]
    )


def associations(text: str) -> tuple[tuple[str, str], ...]:
    """`sacctmgr -nP show assoc format=Account,Partition`."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 1]
    return tuple((account, partition) for account, partition in rows if account)


def gpus(text: str) -> tuple[tuple[str, int], ...]:
    """The GPUs in Slurm's list of resources, by type: ``gpu:gb200:4(S:0-1),nvme:1``, ``gpu:4``, ``(null)``."""
    return tuple((kind, int(count)) for kind, count in _GPUS.findall(text))


def mounts(text: str) -> tuple[Mount, ...]:
    """`findmnt -J` with the columns TARGET,SOURCE,FSTYPE, nested or not; empty where it is not JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return ()
    return tuple(_mounts(value.get("filesystems") if isinstance(value, dict) else None))


def _mounts(entries: object) -> Iterator[Mount]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            yield Mount(*(str(entry.get(key) or "") for key in ("target", "source", "fstype")))
            yield from _mounts(entry.get("children"))


def refs(text: str) -> dict[str, str]:
    """`git ls-remote`: ref → commit. An annotated tag has the commit of its second line, which ends in ``^{}``."""
    lines = re.findall(r"^([0-9a-f]{40})\t(.*)$", text, re.MULTILINE)
    return {name.removesuffix("^{}"): commit for commit, name in lines}
