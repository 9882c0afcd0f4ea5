"""What a rule is: an id, a severity, and a function from what it looks at to what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from launcher.core.finding import Finding, Severity
from launcher.core.yaml_source import Place

S = TypeVar("S")

Found = tuple[str, Place | str] | tuple[str, Place | str, Severity]
"""A message and its place; a severity when it is not the rule's own."""


@dataclass(frozen=True)
class Rule(Generic[S]):
    """A rule: its id, how bad it is, one line that says what is wrong, and the function that finds it."""

    id: str
    severity: Severity
    title: str
    look: Callable[[S], Iterator[Found]] | None = None

    def findings(self, subject: S) -> Iterator[Finding]:
        """What the rule finds."""
        for message, place, *severity in self.look(subject) if self.look is not None else ():
            yield Finding(self.id, severity[0] if severity else self.severity, message, place)


def rule(id: str, severity: Severity, title: str) -> Callable[[Callable[[S], Iterator[Found]]], Rule[S]]:
    """Make a rule of a function."""
    return lambda look: Rule(id, severity, title, look)


def apply_rules(rules: Iterable[Rule[S]], subject: S) -> list[Finding]:
    """What the rules find, in their order."""
    return [finding for one in rules for finding in one.findings(subject)]
