"""A stand-in for srun with pyxis, where there is no Slurm: one task in a container that is none, or one on each of the
job's nodes, which are processes of this host.

``python -m launcher.rehearsal.srun_stand_in PROGRAMS OPTIONS… bash SCRIPT`` takes the options that rendered scripts
have (launcher/container/engines.py, multinode_job.sh), and refuses all others. Without a container only the job's own
script is run. Kept: ``--export=ALL`` gives a task the whole environment of the job, and its name and rank; image and
mounts must be there; the step ends with the worst code of its tasks, and hands signals on to them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from launcher.container.planned import SCRIPT
from launcher.rehearsal.containers import Container, Parser, Refused, parse_mounts

VALUES = (
    *("container-image", "container-mounts", "container-workdir", "nodelist"),
    *("cpus-per-task", "mpi", "container-name"),
)
FLAGS = (
    "overlap",
    *("container-mount-home", "no-container-mount-home", "container-entrypoint", "no-container-entrypoint"),
    *("container-remap-root", "container-writable"),
)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become the script. Raises SystemExit where that cannot be."""
    programs, *words = argv
    try:
        given = _parser().parse_args(words)
        if given.nodelist:
            environ = {**environ, "SLURMD_NODENAME": given.nodelist}
        if given.container_image is None:
            raise SystemExit(_on_nodes(given, environ))
        if not Path(given.container_image).is_file():
            raise Refused(f"slurmstepd: error: pyxis: couldn't open container image {given.container_image}")
        mounts = parse_mounts([mount for mount in (given.container_mounts or "").split(",") if mount])
        if missing := [source for source in mounts.values() if not Path(source).exists()]:
            raise Refused(f"slurmstepd: error: pyxis: couldn't mount {missing[0]}: No such file or directory")
        container = Container(mounts, given.container_workdir, environ, programs)
        command = container.argv(given.command)
        os.chdir(container.directory)
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        raise SystemExit(refused.code) from None
    # Not a process beside this one: whoever ends the step by this process ends the script.
    os.execvpe(command[0], command, container.variables)


def _on_nodes(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the job's script once for each task. Raises Refused for anything else."""
    words: list[str] = given.command
    if words[:1] != ["bash"] or len(words) < 2 or Path(words[1]).name != SCRIPT or not Path(words[1]).is_file():
        raise Refused(f"a rehearsal runs the job's script on nodes, and nothing else: {' '.join(words)}")
    names = [given.nodelist] if given.nodelist else [f"node{rank}" for rank in range(given.ntasks)]
    own = [{**environ, "SLURMD_NODENAME": name, "SLURM_PROCID": str(rank)} for rank, name in enumerate(names)]
    tasks = [subprocess.Popen(words, env=environment) for environment in own]

    def hand_on(number: int, frame: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, hand_on)
    codes = [task.wait() for task in tasks]
    return max(128 - code if code < 0 else code for code in codes)


def _parser() -> Parser:
    parser = Parser(prog="srun")
    for name in ("nodes", "ntasks"):
        parser.add_argument(f"--{name}", required=True, type=int)
    parser.add_argument("--export", required=True, choices=["ALL"])
    parser.add_argument("--ntasks-per-node", choices=["1"])
    parser.add_argument("--kill-on-bad-exit", choices=["0"])
    parser.options(values=VALUES, switches=FLAGS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
