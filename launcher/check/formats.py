"""Findings as text, JSON, GitHub annotations and SARIF."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from launcher import __version__
from launcher.check.registry import RULES
from launcher.check.report import Reported, Roots
from launcher.core.finding import Severity

SARIF = "2.1.0"
_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KINDS: dict[Severity, Literal["error", "warning", "notice"]] = {
    "error": "error",
    "warning": "warning",
    "note": "notice",
}


def text(found: Iterable[Reported]) -> Iterator[str]:
    """``rule severity file:line message``, one line a finding."""
    for one in found:
        yield f"{one.rule} {one.severity} {one.where} {' '.join(one.message.split())}"


def as_json(found: Sequence[Reported]) -> str:
    return json.dumps([one.as_dict() for one in found], indent=2, ensure_ascii=False)


def github(found: Iterable[Reported], roots: Roots) -> Iterator[str]:
    """Workflow commands. GitHub shows ten of a kind in a step's summary, and all in its log."""
    from launcher.core.github import Annotation

    for one in found:
        file = None if one.line is None else roots.short(one.file)
        yield Annotation(one.message, file, one.line, one.rule).command(_KINDS[one.severity])


def sarif(found: Sequence[Reported], roots: Roots) -> str:
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


def _result(one: Reported, index: int, roots: Roots) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": one.rule,
        "ruleIndex": index,
        "level": one.severity,
        "message": {"text": one.message},
    }
    if one.line is not None:
        place = {"artifactLocation": {"uri": _uri(roots.short(one.file))}, "region": {"startLine": one.line}}
        result["locations"] = [{"physicalLocation": place}]
    return result


def _uri(path: str) -> str:
    from urllib.parse import quote

    return f"file://{quote(path)}" if path.startswith("/") else quote(path)
