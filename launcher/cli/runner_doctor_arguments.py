"""The arguments of `launcher runner new` and `launcher runner doctor`. Nothing but argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: _Verbs, places: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add both verbs of `launcher runner`; ``places`` adds the flags that say where things are."""
    new = verbs.add_parser("new", help="draft a runner file from what this cluster says of itself")
    new.add_argument("name", metavar="NAME", help="also of its GitHub runners, up to their first underscore")
    new.add_argument("--partition", metavar="NAME", help="default: Slurm's own default")
    new.add_argument("--account", metavar="NAME", help="default: this user's default account")
    new.add_argument("--directory", metavar="DIR", help="where squash files may go: on a shared file system")
    new.add_argument(
        "--output",
        metavar="FILE",
        help="default: NAME.yaml among the runner files; - prints it; an existing file is never replaced",
    )
    new.set_defaults(command="runner_doctor:new")

    doctor = verbs.add_parser("doctor", help="compare a runner file with the cluster that it describes")
    doctor.add_argument("name", metavar="NAME")
    doctor.add_argument("--json", action="store_true", help="claims and notes as JSON")
    doctor.set_defaults(command="runner_doctor:doctor")

    for command in (new, doctor):
        command.add_argument("--no-node", action="store_true", help="start no job to look from a compute node")
        command.add_argument(
            "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="to wait for a node (default 60)"
        )
        places(command)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 86400")
    return value
