"""What the readers of a report bring together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from launcher.report.document import Run
from launcher.report.points import Point


@dataclass
class Gathered:
    """What was read: points, each attempt one, in the order of time; the runs that they name; what cannot be read."""

    points: list[Point] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    artifacts: dict[Run, str] = field(default_factory=dict)
    """What is known of a job by an artifact, under the artifact's name, and the id that it has among the runs."""

    def add(self, run: Run, points: Iterable[Point]) -> None:
        """Take a run with its points; a run that is there already is passed over."""
        if run.id not in self.runs:
            self.runs[run.id] = run
            self.points += points
