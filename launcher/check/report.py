"""Findings as text, JSON, GitHub annotations and SARIF."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.check.registry import RULES
from launcher.core.finding import Finding

SARIF = "2.1.0"
_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


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


def text(found: Iterable[Finding]) -> Iterator[str]:
    """``rule severity file:line message``, one line a finding."""
    for one in found:
        yield f"{one.rule} {one.severity} {one.where} {' '.join(one.text.split())}"


def as_json(found: Sequence[Finding]) -> str:
    """The four keys that a plan has of a finding, and ``rows``."""
    values = [{**one.as_dict(), "message": one.text, "rows": one.rows} for one in found]
    return json.dumps(values, indent=2, ensure_ascii=False)


def github(found: Iterable[Finding], roots: Roots) -> Iterator[str]:
    """Workflow commands. GitHub shows ten of a kind in a step's summary, and all in its log."""
    from launcher.core.github import annotation

    for one in found:
        file = None if one.line is None else roots.short(one.file)
        kind = "notice" if one.severity == "note" else one.severity
        yield annotation(kind, one.text, file=file, line=one.line, title=one.rule)


def sarif(found: Sequence[Finding], roots: Roots) -> str:
    """A SARIF log of one run, with the rules that found something."""
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
    driver = {"name": "launcher", "version": __version__, "rules": rules}
    results = [_result(one, ids.index(one.rule), roots) for one in found]
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": SARIF,
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(log, indent=2, ensure_ascii=False)


def _result(one: Finding, index: int, roots: Roots) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": one.rule,
        "ruleIndex": index,
        "level": one.severity,
        "message": {"text": one.text},
    }
    if one.line is not None:
        place = {"artifactLocation": {"uri": _uri(roots.short(one.file))}, "region": {"startLine": one.line}}
        result["locations"] = [{"physicalLocation": place}]
    return result


def _uri(path: str) -> str:
    from urllib.parse import quote

    return f"file://{quote(path)}" if path.startswith("/") else quote(path)
