"""Findings as they are reported: each once, with the number of rows that it is true of, and a path people can use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launcher.core.finding import Finding, Severity
from launcher.core.yaml_source import Place

_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Reported:
    """A finding, and how many rows it is true of (0 when it is about no row)."""

    finding: Finding
    rows: int = 0

    @property
    def rule(self) -> str:
        return self.finding.rule

    @property
    def severity(self) -> Severity:
        return self.finding.severity

    @property
    def message(self) -> str:
        return self.finding.message + (f" ({self.rows} rows)" if self.rows > 1 else "")

    @property
    def file(self) -> str:
        """The file that it is in, found without a look at lines."""
        place = self.finding.place
        return place.document.path if isinstance(place, Place) else place.rpartition(":")[0] or place

    @cached_property
    def where(self) -> str:
        """``file:line``, looked up when asked."""
        return str(self.finding.place)

    @property
    def line(self) -> int | None:
        line = self.where.rpartition(":")[2]
        return int(line) if line.isdigit() else None

    def as_dict(self) -> dict[str, str | int]:
        """As JSON values: the plan's four keys, and ``rows``."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "message": self.message,
            "where": self.where,
            "rows": self.rows,
        }


def once(of_rows: Iterable[Finding], others: Iterable[Finding] = ()) -> list[Reported]:
    """Each finding once, the worst first and otherwise in their order; ``of_rows`` has one for each row."""
    counted: dict[tuple[str, str, object, str], tuple[Finding, int]] = {}
    for findings, one in ((of_rows, 1), (others, 0)):
        for finding in findings:
            key = (finding.rule, finding.severity, _identity(finding.place), finding.message)
            first, count = counted.get(key, (finding, 0))
            counted[key] = (first, count + one)
    found = _merged(Reported(finding, count) for finding, count in counted.values())
    return sorted(found, key=lambda one: _ORDER[one.severity])


def _merged(found: Iterable[Reported]) -> list[Reported]:
    """Findings that a YAML anchor brings to one line by several keys, made one."""
    alike: dict[tuple[str, str, str, str], list[Reported]] = {}
    for one in found:
        alike.setdefault((one.rule, one.severity, one.file, one.finding.message), []).append(one)
    merged = []
    for several in alike.values():
        by_line: dict[str, list[Reported]] = {}
        for one in several:
            by_line.setdefault(one.where if len(several) > 1 else "", []).append(one)
        merged += [
            Reported(first.finding, first.rows + sum(o.rows for o in others)) for first, *others in by_line.values()
        ]
    return merged


def _identity(place: Place | str) -> object:
    return (place.document.path, place.keys) if isinstance(place, Place) else place


@dataclass(frozen=True)
class Roots:
    """Directories below which paths are given relative, so that they mean the same on every machine."""

    directories: Sequence[Path]

    def short(self, file: str) -> str:
        """The path below the first root that holds it, else as it is."""
        path = Path(file)
        for root in self.directories:
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.as_posix()
