"""What all rules find, each once; that as text, JSON, GitHub annotations, SARIF; and the baseline, which says what of
it a team accepts."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher import __version__
from launcher.check import container_rules, plan_rules, whole_rules
from launcher.check.inputs import CheckInput, Rule
from launcher.core.errors import ConfigError, suggest
from launcher.core.finding import Finding
from launcher.core.yaml_source import Document, SourceLocation, convert

SARIF = "2.1.0"
_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

DAYS = 90
"""How long what `--write-baseline` accepts stays accepted."""


_ORDER = {"error": 0, "warning": 1, "note": 2}

BASELINE = (
    Rule("baseline-expired", "warning", "an accepted finding is to be looked at again"),
    Rule("baseline-unused", "warning", "an accepted finding is found no more"),
)
"""Rules that have no function: the baseline reports by these ids."""

RULES = {
    one.id: one
    for one in (*BASELINE, *plan_rules.ENVIRONMENT, *whole_rules.RULES, *plan_rules.PLAN, *container_rules.RULES)
}
"""Every rule by its id."""


def check_everything(given: CheckInput) -> list[Finding]:
    """All findings of rows, recipe files and runner files side by side, each once."""
    planned = (
        Finding(f.rule, f.severity, f.message, row.place) if f.place == row.benchmark.source else f
        for row in given.rows
        if row.plan is not None
        for f in row.plan.findings
    )
    return merged_findings(planned, (rule.finding(one) for rule in whole_rules.RULES for one in rule.look(given)))


def merged_findings(of_rows: Iterable[Finding], others: Iterable[Finding] = ()) -> list[Finding]:
    """Each finding once, the worst first and otherwise in the order given.

    ``of_rows`` has a finding for each row that it is true of, and these are counted; ``others`` are about no row.
    """
    alike: dict[tuple[str, str, str, str], dict[str, Finding]] = {}
    for findings, rows in ((of_rows, 1), (others, 0)):
        for one in findings:
            by_place = alike.setdefault((one.rule, one.severity, one.file, one.message), {})
            first = by_place.setdefault(one.where, Finding(one.rule, one.severity, one.message, one.place))
            first.rows += rows
    merged = [one for by_place in alike.values() for one in by_place.values()]
    return sorted(merged, key=lambda one: _ORDER[one.severity])


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


def github_annotations(found: Iterable[Finding], roots: Roots) -> Iterator[str]:
    """Workflow commands. GitHub shows ten of a kind in a step's summary, and all in its log."""
    from launcher.core.github import annotation

    for one in found:
        file = None if one.line is None else roots.short(one.file)
        kind = "notice" if one.severity == "note" else one.severity
        yield annotation(kind, one.text, file=file, line=one.line, title=one.rule)


def sarif_log(found: Sequence[Finding], roots: Roots) -> str:
    """A SARIF log of one run, with the rules that found something."""
    from urllib.parse import quote

    ids = list(dict.fromkeys(one.rule for one in found))
    rules = [
        {
            "id": id,
            "shortDescription": {"text": RULES[id].title},
            "defaultConfiguration": {"level": RULES[id].severity},
            "help": {"text": f"launcher check --explain {id}"},
        }
        for id in ids
    ]
    results = []
    for one in found:
        result: dict[str, Any] = {"ruleId": one.rule, "ruleIndex": ids.index(one.rule), "level": one.severity}
        result["message"] = {"text": one.text}
        if one.line is not None:
            path = roots.short(one.file)
            uri = ("file://" if path.startswith("/") else "") + quote(path)
            place = {"artifactLocation": {"uri": uri}, "region": {"startLine": one.line}}
            result["locations"] = [{"physicalLocation": place}]
        results.append(result)
    driver = {"name": "launcher", "version": __version__, "rules": rules}
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": SARIF,
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(log, indent=2, ensure_ascii=False)


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry: ``place`` is a glob over the file's path, ``message`` one over the message."""

    rule: str
    place: str
    reason: str
    expires: date
    message: str = "*"

    def accepts(self, one: Finding, file: str) -> bool:
        return (
            self.rule == one.rule
            and fnmatch.fnmatchcase(file, self.place)
            and fnmatch.fnmatchcase(one.text, self.message)
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accepted: list[Accepted] = []


class Baseline:
    """A baseline file as read. Raises ConfigError, with file and line, for one that is wrong."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.accepted = convert(document, _File).accepted
        for i, entry in enumerate(self.accepted):
            if entry.rule not in RULES:
                raise ConfigError(
                    f"there is no rule {entry.rule!r}",
                    where=str(self._place(i, "rule")),
                    hint=suggest(entry.rule, RULES, "launcher check --explain lists the rules"),
                )

    def _place(self, *keys: str | int) -> SourceLocation:
        return SourceLocation(self.document, "accepted", *keys)

    def apply(self, found: Sequence[Finding], roots: Roots, today: date, *, whole: bool) -> list[Finding]:
        """The findings that are not accepted, and what is wrong with the entries.

        An expired entry accepts nothing. Only when everything was checked (``whole``) can an entry be called unused.
        """
        kept, used = [], set[int]()
        for one in found:
            file = roots.short(one.file)
            hits = [i for i, entry in enumerate(self.accepted) if entry.accepts(one, file)]
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


def baseline_text(found: Sequence[Finding], roots: Roots, today: date) -> str:
    """The text of a baseline file that accepts errors and warnings as they are, by rule and file."""
    pairs = sorted({(one.rule, roots.short(one.file)) for one in found if one.severity != "note"})
    entries: list[dict[str, Any]] = [
        {
            "rule": rule,
            "place": re.sub(r"[*?[]", r"[\g<0>]", file),  # a glob that matches this path alone
            "reason": f"found when the baseline was written, {today.isoformat()}",
            "expires": today + timedelta(days=DAYS),
        }
        for rule, file in pairs
    ]
    return yaml.safe_dump({"accepted": entries}, sort_keys=False, allow_unicode=True, width=2**20)
