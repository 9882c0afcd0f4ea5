"""What the readers of a report bring together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from launcher.report.document import Run
from launcher.report.points import EVALUATION, Identity, Point


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

    def attempts(self) -> list[Point]:
        """The points. An evaluation that failed before anything named its task was a try at each of its tasks that
        another attempt has."""
        tasks: dict[Identity, dict[Identity, None]] = {}
        for point in self.points:
            if point.identity.task:
                tasks.setdefault(replace(point.identity, task=""), {})[point.identity] = None
        return [
            point if identity is point.identity else replace(point, identity=identity)
            for point in self.points
            for identity in (tasks.get(point.identity) if point.identity.scenario == EVALUATION else None)
            or (point.identity,)
        ]
