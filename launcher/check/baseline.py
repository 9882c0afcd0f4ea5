"""The baseline: findings that a team accepts, by rule and place, each with a reason and a day on which that ends."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher.check.registry import RULES
from launcher.check.report import Roots
from launcher.core.errors import ConfigError, suggest
from launcher.core.finding import Finding
from launcher.core.yaml_source import Document, Place, schema_error

DAYS = 90
"""How long what `--write-baseline` accepts stays accepted."""


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry: ``place`` is a glob over the file's path, ``message`` one over the message."""

    rule: str
    place: str
    reason: str
    expires: date
    message: str = "*"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accepted: list[Accepted] = []


class Baseline:
    """A baseline file as read."""

    def __init__(self, document: Document) -> None:
        self.document = document
        try:
            self.accepted = msgspec.convert(document.mapping(), _File).accepted
        except msgspec.ValidationError as error:
            raise schema_error(document, error, _File) from None
        for i, entry in enumerate(self.accepted):
            if entry.rule not in RULES:
                raise ConfigError(
                    f"there is no rule {entry.rule!r}",
                    where=str(self._place(i, "rule")),
                    hint=suggest(entry.rule, RULES, "launcher check --explain lists the rules"),
                )

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline file. Raises ConfigError with file and line."""
        return cls(Document.read(path))

    def _place(self, *keys: str | int) -> Place:
        return Place(self.document, "accepted", *keys)

    def apply(self, found: Sequence[Finding], roots: Roots, today: date, *, whole: bool) -> list[Finding]:
        """The findings that are not accepted, and what is wrong with the entries.

        An expired entry accepts nothing. Only when everything was checked (``whole``) can an entry be called unused.
        """
        kept, used = [], set[int]()
        for one in found:
            file = roots.short(one.file)
            hits = [i for i, entry in enumerate(self.accepted) if _accepts(entry, one, file)]
            used.update(hits)
            if not any(self.accepted[i].expires >= today for i in hits):
                kept.append(one)
        own = []
        for i, entry in enumerate(self.accepted):
            if i not in used and whole:
                message = f"{entry.rule} is no longer found at {entry.place}; remove the entry"
                own.append(self._finding("baseline-unused", message, i))
            elif i in used and entry.expires < today:
                until = f"{entry.rule} at {entry.place} was accepted until {entry.expires} ({entry.reason})"
                own.append(self._finding("baseline-expired", f"{until}; fix it, or give the entry a later day", i))
        return [*kept, *own]

    def _finding(self, rule: str, message: str, entry: int) -> Finding:
        return Finding(rule, RULES[rule].severity, message, self._place(entry))


def _accepts(entry: Accepted, one: Finding, file: str) -> bool:
    return (
        entry.rule == one.rule
        and fnmatch.fnmatchcase(file, entry.place)
        and fnmatch.fnmatchcase(one.text, entry.message)
    )


def baseline_text(found: Sequence[Finding], roots: Roots, today: date) -> str:
    """The text of a baseline file that accepts errors and warnings as they are, by rule and file."""
    pairs = sorted({(one.rule, roots.short(one.file)) for one in found if one.severity != "note"})
    entries: list[dict[str, Any]] = [
        {
            "rule": rule,
            "place": _literal(file),
            "reason": f"found when the baseline was written, {today.isoformat()}",
            "expires": today + timedelta(days=DAYS),
        }
        for rule, file in pairs
    ]
    return yaml.safe_dump({"accepted": entries}, sort_keys=False, allow_unicode=True, width=2**20)


def _literal(path: str) -> str:
    """A glob that matches this path alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
