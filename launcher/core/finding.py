"""What `launcher check` reports: one type for a plan, a recipe, a runner file."""

from __future__ import annotations

from typing import Literal

from launcher.core.yaml_source import Place

Severity = Literal["error", "warning", "note"]


class Finding:
    """What `check` reports: a rule id, how bad it is, what is wrong, and where."""

    __slots__ = ("message", "place", "rule", "severity")

    def __init__(self, rule: str, severity: Severity, message: str, place: Place | str) -> None:
        self.rule = rule
        self.severity = severity
        self.message = message
        self.place = place

    @property
    def where(self) -> str:
        return str(self.place)

    def as_dict(self) -> dict[str, str]:
        return {"rule": self.rule, "severity": self.severity, "message": self.message, "where": self.where}

    def __repr__(self) -> str:
        return f"{self.where}: {self.severity}: {self.message} [{self.rule}]"
