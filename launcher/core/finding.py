"""What `launcher check` reports: one type for a plan, a recipe, a runner file."""

from __future__ import annotations

from typing import Literal

from launcher.core.yaml_source import SourceLocation

Severity = Literal["error", "warning", "note"]


class Finding:
    """What `check` reports: a rule id, how bad it is, what is wrong, where, and of how many rows it is true.

    ``rows`` is 0 for a finding about no row, and for one of a single plan.
    """

    # No Struct and no dataclass: msgspec reads plans, looks into the types of their fields, and refuses a union of a
    # class of ours and text.
    __slots__ = ("message", "place", "rows", "rule", "severity")

    def __init__(self, rule: str, severity: Severity, message: str, place: SourceLocation | str, rows: int = 0) -> None:
        self.rule = rule
        self.severity = severity
        self.message = message
        self.place = place
        self.rows = rows

    @property
    def text(self) -> str:
        """The message, with the number of rows that it is true of when they are several."""
        return self.message + (f" ({self.rows} rows)" if self.rows > 1 else "")

    @property
    def where(self) -> str:
        """``file:line``, looked up when asked."""
        return str(self.place)

    @property
    def file(self) -> str:
        """The file that it is in, found without a look at lines."""
        place = self.place
        return place.document.path if isinstance(place, SourceLocation) else place.rpartition(":")[0] or place

    @property
    def line(self) -> int | None:
        line = self.where.rpartition(":")[2]
        return int(line) if line.isdigit() else None

    def as_dict(self) -> dict[str, str]:
        """The keys that a plan has of it."""
        return {"rule": self.rule, "severity": self.severity, "message": self.message, "where": self.where}

    def __repr__(self) -> str:
        return f"{self.where}: {self.severity}: {self.message} [{self.rule}]"
