"""`scripts/faults slurm`: a real Slurm, and everything that goes wrong with it.

Each line is a count of trials and of wrong outcomes. Clusters are its own, in a directory that it removes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.slurm_cases import daemons, fates, launchers, many, queries, submission
from tests.faults.slurm_cases.lab import Lab
from tests.faults.slurm_cases.tally import Case, Tally

CASES = (
    *queries.CASES,
    *submission.CASES,
    *launchers.CASES,
    *many.CASES,
    *fates.CASES,
    *daemons.CASES,
)


def main(argv: list[str]) -> int:
    """Run the cases that are asked for; 1 when any outcome was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/faults slurm", description=__doc__)
    parser.add_argument("--trials", type=int, metavar="N", help="of each case (default: the case's own)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name has one of these words")
    parser.add_argument("--short", action="store_true", help="what runs in CI, within a minute")
    parser.add_argument("--list", action="store_true", help="name the cases and their trials")
    arguments = parser.parse_args(argv)
    chosen = select(arguments.only, short=arguments.short)
    if arguments.list:
        for case in chosen:
            print(f"{case.name:62} {case.trials:5}  short {case.short}")
        return 0
    tallies = run(chosen, trials=arguments.trials, short=arguments.short)
    wrong = sum(len(t.wrong) for t in tallies)
    print(f"{sum(t.trials for t in tallies)} trials, {wrong} wrong")
    return 1 if wrong or not tallies else 0


def select(only: Sequence[str] | None, *, short: bool) -> list[Case]:
    """Cases by words of their names; in the short form those that have one."""
    return [
        case
        for case in CASES
        if (not only or any(word.lower() in case.name.lower() for word in only)) and (case.short or not short)
    ]


def run(cases: Sequence[Case], *, trials: int | None = None, short: bool = False) -> list[Tally]:
    """Run cases one after the other, on one cluster as long as they want the same; show each line as it is there."""
    tallies: list[Tally] = []
    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    lab: tuple[tuple[str, ...], Lab] | None = None
    try:
        for number, case in enumerate(cases):
            if lab is None or lab[0] != case.cluster:
                if lab is not None:
                    lab[1].down()
                lab = case.cluster, Lab(directory / str(number), case.cluster)
            began = time.monotonic()
            for tally in _attempt(case, lab[1], trials or (case.short if short else case.trials)):
                tally.note = f"{tally.note}{', ' if tally.note else ''}{time.monotonic() - began:.0f} s"
                tally.show()
                tallies.append(tally)
    finally:
        if lab is not None:
            lab[1].down()
        shutil.rmtree(directory, ignore_errors=True)
    return tallies


def _attempt(case: Case, lab: Lab, trials: int) -> Sequence[Tally]:
    """The case's lines; one that cannot be tried at all is wrong, and the others go on."""
    try:
        return case.attempt(lab, trials)
    except (AssertionError, OSError, RuntimeError, ValueError, KeyError, subprocess.SubprocessError) as error:
        broken = Tally(case.name)
        broken.trial(f"it broke off: {type(error).__name__}: {error}")
        return [broken]
