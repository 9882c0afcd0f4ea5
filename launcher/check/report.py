"""The findings of all rules, each once; their output as GitHub annotations and SARIF; and the baseline file."""

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
"""How long an entry that `--write-baseline` wrote is valid."""

_ORDER = {"error": 0, "warning": 1, "note": 2}

BASELINE = (
    Rule("baseline-expired", "warning", "an accepted finding is to be looked at again"),
    Rule("baseline-unused", "warning", "an accepted finding is found no more"),
)
"""Rules that have no function: the baseline reports by these ids."""

RULES = {
    rule.id: rule
    for rule in (*BASELINE, plan_rules.SETTING_UNKNOWN, *whole_rules.RULES, *plan_rules.PLAN, *container_rules.RULES)
}
"""Every rule by its id."""


def check_everything(inputs: CheckInput) -> list[Finding]:
    """All findings of rows, recipe files and runner files, each once."""
    of_rows = (
        Finding(f.rule, f.severity, f.message, row.place) if f.place == row.benchmark.source else f
        for row in inputs.rows
        if row.plan is not None
        for f in row.plan.findings
    )
    others = (rule.finding(problem) for rule in whole_rules.RULES for problem in rule.check(inputs))
    return merged_findings(of_rows, others)


def merged_findings(of_rows: Iterable[Finding], others: Iterable[Finding] = ()) -> list[Finding]:
    """Each finding once, errors first, otherwise in the given order.

    ``of_rows`` has a finding for each row that it holds for, and ``rows`` counts them; ``others`` are about no row.
    """
    merged: dict[tuple[str, str, str, str], dict[str, Finding]] = {}
    for findings, rows in ((of_rows, 1), (others, 0)):
        for f in findings:
            by_place = merged.setdefault((f.rule, f.severity, f.file, f.message), {})
            first = by_place.setdefault(f.where, Finding(f.rule, f.severity, f.message, f.place))
            first.rows += rows
    unique = [finding for by_place in merged.values() for finding in by_place.values()]
    return sorted(unique, key=lambda finding: _ORDER[finding.severity])


@dataclass(frozen=True)
class Roots:
    """Directories below which paths are shown relative, so that they are the same on every machine."""

    directories: Sequence[Path]

    def short(self, file: str) -> str:
        """The path relative to the first root that contains it, else unchanged."""
        path = Path(file)
        for root in self.directories:
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.as_posix()


def github_annotations(findings: Iterable[Finding], roots: Roots) -> Iterator[str]:
    """The findings as workflow commands. GitHub shows ten of a kind in a step's summary, and all in its log."""
    from launcher.core.github import annotation

    for finding in findings:
        file = None if finding.line is None else roots.short(finding.file)
        kind = "notice" if finding.severity == "note" else finding.severity
        yield annotation(kind, finding.text, file=file, line=finding.line, title=finding.rule)


def sarif_log(findings: Sequence[Finding], roots: Roots) -> str:
    """A SARIF log of one run, with the rules that found something."""
    from urllib.parse import quote

    ids = list(dict.fromkeys(finding.rule for finding in findings))
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
    for finding in findings:
        result: dict[str, Any] = {"ruleId": finding.rule, "ruleIndex": ids.index(finding.rule)}
        result |= {"level": finding.severity, "message": {"text": finding.text}}
        if finding.line is not None:
            path = roots.short(finding.file)
            uri = ("file://" if path.startswith("/") else "") + quote(path)
            place = {"artifactLocation": {"uri": uri}, "region": {"startLine": finding.line}}
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
    """One entry: ``place`` is a glob for the file's path, ``message`` one for the finding's message."""

    rule: str
    place: str
    reason: str
    expires: date
    message: str = "*"

    def accepts(self, finding: Finding, file: str) -> bool:
        return (
            self.rule == finding.rule
            and fnmatch.fnmatchcase(file, self.place)
            and fnmatch.fnmatchcase(finding.text, self.message)
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accepted: list[Accepted] = []


class Baseline:
    """A baseline file. Raises ConfigError, with file and line, for an invalid one."""

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

    def apply(self, findings: Sequence[Finding], roots: Roots, today: date, *, whole: bool) -> list[Finding]:
        """The findings that are not accepted, and findings about entries that expired or are unused.

        An expired entry accepts nothing. An entry counts as unused only when everything was checked (``whole``).
        """
        kept, used = [], set[int]()
        for finding in findings:
            file = roots.short(finding.file)
            hits = [i for i, entry in enumerate(self.accepted) if entry.accepts(finding, file)]
            used.update(hits)
            if not any(self.accepted[i].expires >= today for i in hits):
                kept.append(finding)
        for i, entry in enumerate(self.accepted):
            if i not in used and whole:
                message = f"{entry.rule} is no longer found at {entry.place}; remove the entry"
                kept.append(RULES["baseline-unused"].finding((message, self._place(i))))
            elif i in used and entry.expires < today:
                until = f"{entry.rule} at {entry.place} was accepted until {entry.expires} ({entry.reason})"
                message = f"{until}; fix it, or give the entry a later day"
                kept.append(RULES["baseline-expired"].finding((message, self._place(i))))
        return kept


def baseline_text(findings: Sequence[Finding], roots: Roots, today: date) -> str:
    """The text of a baseline file that accepts errors and warnings as they are, by rule and file."""
    pairs = sorted({(f.rule, roots.short(f.file)) for f in findings if f.severity != "note"})
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
