"""`scripts/faults images [--short] [--only N …]`: the faults that an image store has to survive, counted."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.image import Count, calls, damage, owners, races, registries

TITLES = {
    1: "killed at every system call",
    2: "errors from every write, fsync, rename and link",
    3: "races, with a reader",
    4: "owners of locks",
    5: "registries",
    6: "damaged squash files, and which check sees it",
}


def areas(short: bool) -> dict[int, Callable[[Path], list[Count]]]:
    """The parts by number; ``short`` is the form that CI runs."""
    return {
        1: lambda place: calls.kills(place, 4 if short else None),
        2: lambda place: calls.errors(place, 4 if short else None),
        3: lambda place: races.races(place, 1 if short else 40),
        4: lambda place: owners.owners(place, 1 if short else 10),
        5: lambda place: registries.registries(place),
        6: lambda place: damage.damage(place, 16 if short else 400),
    }


def main(argv: list[str]) -> int:
    """Run the parts; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/faults images")
    parser.add_argument("--short", action="store_true", help="a sample of each, below 40 s together")
    parser.add_argument("--only", type=int, nargs="+", choices=list(TITLES), default=list(TITLES))
    given = parser.parse_args(argv)
    wrong = 0
    for number, part in areas(given.short).items():
        if number not in given.only:
            continue
        place = Path(tempfile.mkdtemp(prefix="launcher-faults-"))
        began = time.monotonic()
        try:
            counts = part(place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        print(f"({number}) {TITLES[number]}: {time.monotonic() - began:.0f} s", flush=True)
        for count in counts:
            print(f"    {count}", flush=True)
            for line in count.wrong[:5]:
                print(f"        wrong: {line}", flush=True)
            wrong += len(count.wrong)
    print(f"{wrong} wrong")
    return 1 if wrong else 0
