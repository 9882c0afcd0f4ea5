"""`scripts/faults slurm`: a real Slurm, and everything that goes wrong with it.

Each line is a count of trials and of wrong outcomes. Clusters are its own, in a directory that it removes.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from launcher.slurm.native import choose_backend
from tests.faults.slurm_cases import daemons, fates, launchers, many, queries, submission
from tests.faults.slurm_cases.fault_cluster import FaultCluster
from tests.faults.slurm_cases.tally import AT_ONCE, Case, Tally

TOGETHER = 3
"""Cases at once in the short form: most of a launcher's time is waiting, and the machine may have two cores."""

CASES = (
    *queries.CASES,
    *(replace(case, alone=case.name not in submission.SAID.values()) for case in submission.CASES),
    *launchers.CASES,
    *many.CASES,
    *fates.CASES,
    *daemons.CASES,
)


def main(argv: list[str]) -> int:
    """Run the cases that are asked for; 1 when any outcome was wrong, 2 where the backend cannot be used."""
    parser = argparse.ArgumentParser(prog="scripts/faults slurm", description=__doc__)
    parser.add_argument("--trials", type=int, metavar="N", help="of each case (default: the case's own)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name has one of these words")
    parser.add_argument("--short", action="store_true", help="what runs in CI, within a minute")
    parser.add_argument("--list", action="store_true", help="name the cases and their trials")
    parser.add_argument(
        "--at-once", type=int, default=AT_ONCE, metavar="N", help=f"launchers that go on together (default: {AT_ONCE})"
    )
    parser.add_argument(
        "--backend",
        choices=("commands", "pyslurm"),
        default="commands",
        help="how Slurm is asked, by launchers and by the watching here (default: commands)",
    )
    arguments = parser.parse_args(argv)
    chosen = select(arguments.only, short=arguments.short)
    if arguments.list:
        for case in chosen:
            print(f"{case.name:62} {case.trials:5}  short {case.short}")
        return 0
    if arguments.backend == "pyslurm" and (why := _not_pyslurm()):
        print(f"scripts/faults slurm: not by pyslurm: {why}", file=sys.stderr)
        return 2
    tallies = run(
        chosen,
        trials=arguments.trials,
        short=arguments.short,
        backend=arguments.backend,
        at_once=arguments.at_once,
    )
    wrong = sum(len(t.wrong) for t in tallies)
    print(f"{sum(t.trials for t in tallies)} trials, {wrong} wrong, asked by {arguments.backend}")
    return 1 if wrong or not tallies else 0


def _not_pyslurm() -> str:
    """Why pyslurm cannot be used here, before a cluster is started for it; "" where it may."""
    return "" if importlib.util.find_spec("pyslurm") else choose_backend()[1]


def select(only: Sequence[str] | None, *, short: bool) -> list[Case]:
    """Cases by words of their names; in the short form those that have one."""
    return [
        case
        for case in CASES
        if (not only or any(word.lower() in case.name.lower() for word in only)) and (case.short or not short)
    ]


def run(
    cases: Sequence[Case],
    *,
    trials: int | None = None,
    short: bool = False,
    backend: str = "commands",
    at_once: int = AT_ONCE,
) -> list[Tally]:
    """Run cases on one cluster as long as they want the same, one after the other, in the short form some together;
    show each line as it is there."""
    tallies: list[Tally] = []
    directory = Path(tempfile.mkdtemp(prefix="faults-"))

    def one(case: Case, fault_cluster: FaultCluster) -> list[Tally]:
        began = time.monotonic()
        found = list(_attempt(case, fault_cluster, trials or (case.short if short else case.trials)))
        seconds = time.monotonic() - began
        for tally in found:
            tally.note = f"{tally.note}{', ' if tally.note else ''}{seconds:.0f} s"
            if len(found) == 1 and tally.trials:
                tally.note += f", {seconds / tally.trials:.1f} s a trial"
            tally.show()
        return found

    try:
        for number, (options, group) in enumerate(groupby(cases, key=lambda case: case.cluster)):
            fault_cluster = FaultCluster(directory / str(number), options, backend, at_once)
            try:
                for batch in _batches(list(group), together=short):
                    with ThreadPoolExecutor(TOGETHER) as pool:
                        for found in pool.map(lambda case: one(case, fault_cluster), batch):  # noqa: B023  # ends in this round
                            tallies.extend(found)
            finally:
                fault_cluster.down()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return tallies


def _batches(cases: Sequence[Case], *, together: bool) -> list[list[Case]]:
    """What goes on at the same time, the longest first; in a full run each case has the cluster to itself."""
    shared = [case for case in cases if together and not case.alone]
    return [*([case] for case in cases if case not in shared), *([shared[::-1]] if shared else [])]


def _attempt(case: Case, fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """The case's lines; one that cannot be tried at all is wrong, and the others go on."""
    try:
        return case.attempt(fault_cluster, trials)
    except (AssertionError, OSError, RuntimeError, ValueError, KeyError, subprocess.SubprocessError) as error:
        broken = Tally(case.name)
        broken.trial(f"it broke off: {type(error).__name__}: {error}")
        return [broken]
