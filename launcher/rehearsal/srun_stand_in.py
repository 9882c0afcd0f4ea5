"""A stand-in for srun with pyxis, where there is no Slurm: one task without a real container, or one task on each of
the job's nodes, which are processes of this host.

``python -m launcher.rehearsal.srun_stand_in PROGRAMS OPTIONS… bash SCRIPT`` takes the options that rendered scripts
have (launcher/container/engines.py, multinode_job.sh), and refuses all others. Without a container only the job's own
script is run. As in Slurm, ``--export=ALL`` gives a task the whole environment of the job, and its name and rank; image
and mounts must exist; the step exits with the worst code of its tasks, and forwards signals to them.
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
    """Become the script by execve. Raises SystemExit when it cannot be run, and after tasks on nodes."""
    programs, *words = argv
    try:
        arguments = _parser().parse_args(words)
        if arguments.nodelist:
            environ = {**environ, "SLURMD_NODENAME": arguments.nodelist}
        if arguments.container_image is None:
            raise SystemExit(_run_tasks(arguments, environ))
        if not Path(arguments.container_image).is_file():
            raise Refused(f"slurmstepd: error: pyxis: couldn't open container image {arguments.container_image}")
        mounts = parse_mounts([mount for mount in (arguments.container_mounts or "").split(",") if mount])
        if missing := [source for source in mounts.values() if not Path(source).exists()]:
            raise Refused(f"slurmstepd: error: pyxis: couldn't mount {missing[0]}: No such file or directory")
        container = Container(mounts, arguments.container_workdir, environ, programs)
        command = container.argv(arguments.command)
        os.chdir(container.directory)
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        raise SystemExit(refused.code) from None
    # Replace this process, so that a signal which ends the step ends the script.
    os.execvpe(command[0], command, container.variables)


def _run_tasks(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the job's script once for each task. Raises Refused for anything else."""
    command: list[str] = arguments.command
    if command[:1] != ["bash"] or len(command) < 2 or Path(command[1]).name != SCRIPT or not Path(command[1]).is_file():
        raise Refused(f"a rehearsal runs the job's script on nodes, and nothing else: {' '.join(command)}")
    nodes = [arguments.nodelist] if arguments.nodelist else [f"node{rank}" for rank in range(arguments.ntasks)]
    environments = [{**environ, "SLURMD_NODENAME": name, "SLURM_PROCID": str(rank)} for rank, name in enumerate(nodes)]
    tasks = [subprocess.Popen(command, env=environment) for environment in environments]

    def forward(number: int, frame: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
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
