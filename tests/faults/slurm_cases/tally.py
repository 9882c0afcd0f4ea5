"""Counting: what was tried, and what came out wrong."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.slurm_cases.fault_cluster import FaultCluster

AT_ONCE = 4
"""Launchers at once: a machine of two cores is then busy, which widens every race."""


@dataclass
class Tally:
    """One line of the report. ``wrong`` holds a sentence for every wrong outcome, ``note`` a figure or a reason."""

    name: str
    trials: int = 0
    wrong: list[str] = field(default_factory=list)
    note: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def trial(self, *complaints: str) -> None:
        """Count one trial; every complaint that is not empty makes it wrong, once."""
        said = "; ".join(c for c in complaints if c)
        with self._lock:
            self.trials += 1
            if said:
                self.wrong.append(said)

    def each(self, count: int, attempt: Callable[[int], Sequence[str]], at_once: int = AT_ONCE) -> Tally:
        """Make ``count`` attempts, some at once; an attempt gives its complaints."""
        with ThreadPoolExecutor(at_once) as pool:
            for complaints in pool.map(lambda n: self._guarded(attempt, n), range(count)):
                self.trial(*complaints)
        return self

    @staticmethod
    def _guarded(attempt: Callable[[int], Sequence[str]], number: int) -> Sequence[str]:
        try:
            return attempt(number)
        except (AssertionError, OSError, ValueError, KeyError, RuntimeError, subprocess.SubprocessError) as error:
            return [f"trial {number}: {type(error).__name__}: {error}"]

    def show(self) -> None:
        """Print the line, and what was wrong below it."""
        note = f"   {self.note}" if self.note else ""
        print(f"{self.name:62} {self.trials:5} trials  {len(self.wrong):3} wrong{note}", flush=True)
        for text in self.wrong[:10]:
            said = " ".join(text.split())
            print(f"    wrong: {said[:160]}{' … ' + said[-400:] if len(said) > 560 else said[160:]}", flush=True)


@dataclass(frozen=True)
class Case:
    """Something to try. ``trials`` in a full run, ``short`` in CI (0: not there); ``cluster`` are options of
    `scripts/cluster up`. ``attempt(fault_cluster, trials)`` gives one line or several. One that is ``alone`` makes
    Slurm fail for everybody, or counts what is asked of it: in CI the others go two at once."""

    name: str
    attempt: Callable[[FaultCluster, int], Sequence[Tally]]
    trials: int
    short: int = 0
    cluster: tuple[str, ...] = ("--nodes", "9")
    alone: bool = True
