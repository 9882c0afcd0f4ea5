"""A stand-in for srun with pyxis, where there is no Slurm: one task, in a container that is none.

``python -m launcher.rehearsal.srun_stand_in PROGRAMS OPTIONS… bash SCRIPT`` takes the options that rendered scripts
have (launcher/container/engines.py), and refuses all others and every step without a container. Kept: ``--export=ALL``
gives the container the whole environment of the job; image and mounts must be there; the step ends as the script does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from launcher.rehearsal.containers import Container, Parser, Refused, mounts_of

FLAGS = (
    *("container-mount-home", "no-container-mount-home", "container-entrypoint", "no-container-entrypoint"),
    *("container-remap-root", "container-writable"),
)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become the script. Raises SystemExit where that cannot be."""
    programs, *words = argv
    try:
        given = _parser().parse_args(words)
        if not Path(given.container_image).is_file():
            raise Refused(f"slurmstepd: error: pyxis: couldn't open container image {given.container_image}")
        mounts = mounts_of([mount for mount in given.container_mounts.split(",") if mount])
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


def _parser() -> Parser:
    parser = Parser(prog="srun")
    for name in ("nodes", "ntasks"):
        parser.add_argument(f"--{name}", required=True, choices=["1"])
    parser.add_argument("--export", required=True, choices=["ALL"])
    for name in ("container-image", "container-mounts", "container-workdir"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("cpus-per-task", "mpi", "container-name"):
        parser.add_argument(f"--{name}")
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
