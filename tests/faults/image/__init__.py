"""The parts of `scripts/faults images`. Each gives a Count: what was tried, how often, and what was wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Count:
    """``trials`` of one kind of fault; ``wrong`` has a line for each that ended as it must not; ``seen`` what came."""

    what: str
    trials: int = 0
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: str, wrong: str | None = None) -> None:
        self.trials += 1
        self.seen[outcome] += 1
        if wrong:
            self.wrong.append(wrong)

    def __str__(self) -> str:
        seen = ", ".join(f"{number} {outcome}" for outcome, number in sorted(self.seen.items()))
        return f"{self.what}: {self.trials} trials, {len(self.wrong)} wrong" + (f" ({seen})" if seen else "")
