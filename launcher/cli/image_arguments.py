"""The arguments of `launcher image` and `launcher doctor`. Nothing but argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: _Commands, places: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add both commands; ``places`` adds the flags that say where things are."""
    image = commands.add_parser("image", help="container images as squash files: what is there, and having more")
    verbs = image.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, text: str, function: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text)
        of = command.add_argument_group("which directory")
        of.add_argument("--runner", metavar="NAME", help="the image directories of this runner")
        of.add_argument("--directory", metavar="DIR", help="this one")
        places(command)
        command.set_defaults(command=f"image:{function}")
        return command

    listing = verb("list", "images: size, digest, last use, which live runs have them", "list_images")
    listing.add_argument("--json", action="store_true")

    importing = verb("import", "have images there, whole; at no cost if they are", "import_images")
    importing.add_argument("references", nargs="+", metavar="REFERENCE")
    importing.add_argument("--moved-tag", choices=["keep", "refresh", "fail"], help="default: as the runner file says")

    verify = verb("verify", "are the images whole, and what do their tags name now", "verify")
    verify.add_argument("images", nargs="*", metavar="FILE", help="file names or paths (default: all)")
    verify.add_argument("--deep", action="store_true", help="read every byte, against the recorded hash")
    verify.add_argument("--offline", action="store_true", help="ask no registry")

    adopt = verb("adopt", "record what an image is that somebody else made", "adopt")
    adopt.add_argument("image", metavar="FILE")
    adopt.add_argument("reference", metavar="REFERENCE")

    gc = verb("gc", "what nobody needs: unused images, what killed imports left; a dry run unless --apply", "gc")
    gc.add_argument("--apply", action="store_true", help="remove it")
    gc.add_argument("--grace", type=_days, default=30.0, metavar="DAYS", help="unused for so long (default 30)")

    doctor = commands.add_parser("doctor", help="try out what this cluster's file systems promise")
    verbs = doctor.add_subparsers(metavar="VERB", required=True)
    locks = verbs.add_parser("locks", help="do locks hold in a directory, between processes and between nodes")
    locks.add_argument("directory", metavar="DIR")
    locks.add_argument("--partition", metavar="NAME", help="where two nodes are taken for a minute")
    locks.add_argument("--account", metavar="NAME")
    locks.add_argument("--no-nodes", action="store_true", help="processes of this host only")
    locks.add_argument("--json", action="store_true")
    locks.set_defaults(command="doctor:locks")


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return value
