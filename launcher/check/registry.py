"""All rules, and the checks that apply them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.check import files, fleet, image, recipe, result_name_rules, schema, topology
from launcher.check.engine import Rule, apply_rules
from launcher.check.inputs import CheckInput
from launcher.check.schema import VersionCheck
from launcher.check.schema_validation import RecipeValidator
from launcher.core.finding import Finding
from launcher.core.yaml_source import Place
from launcher.plan.derive import Resolved
from launcher.srtctl.planned import SrtctlResolved

_ORDER = {"error": 0, "warning": 1, "note": 2}

EVERY_KIND: Sequence[Rule[Resolved]] = (fleet.known_problem, image.image_replaced, recipe.model_otherwise)
"""The rules of one plan, of whatever kind of job."""

SRTCTL: Sequence[Rule[SrtctlResolved]] = (
    *recipe.RULES,
    *image.RULES,
    *topology.RULES,
    *fleet.RULES,
    *result_name_rules.RULES,
)
"""The rules of one plan of srtctl; what its srt-slurm version refuses, `schema.RULES` tell."""

WHOLE: Sequence[Rule[CheckInput]] = (*fleet.WHOLE, *files.WHOLE, *result_name_rules.WHOLE)
"""The rules of rows, recipe files and runner files side by side."""

BASELINE: Sequence[Rule[Any]] = (
    Rule("baseline-expired", "warning", "an accepted finding is to be looked at again"),
    Rule("baseline-unused", "warning", "an accepted finding is found no more"),
)
"""Rules that have no function here: the baseline reports by these ids."""

RULES: Mapping[str, Rule[Any]] = {one.id: one for one in (*EVERY_KIND, *BASELINE, *WHOLE, *SRTCTL, *schema.RULES)}
"""Every rule by its id."""


def check_plan(resolved: Resolved, validator: RecipeValidator) -> tuple[Finding, ...]:
    """All findings of one plan, in the order of the rules."""
    found = []
    if isinstance(resolved, SrtctlResolved):
        found += [*apply_rules(SRTCTL, resolved), *apply_rules(schema.RULES, VersionCheck(resolved, validator))]
    return (*found, *apply_rules(EVERY_KIND, resolved))


def check_everything(given: CheckInput) -> list[Finding]:
    """All findings of rows, recipe files and runner files side by side, each once."""
    planned = (
        Finding(f.rule, f.severity, f.message, row.place) if f.place == row.benchmark.source else f
        for row in given.rows
        if row.plan is not None
        for f in row.plan.findings
    )
    return merged_findings(planned, apply_rules(WHOLE, given))


def merged_findings(of_rows: Iterable[Finding], others: Iterable[Finding] = ()) -> list[Finding]:
    """Each finding once, the worst first and otherwise in the order given.

    ``of_rows`` has a finding for each row that it is true of, and these are counted; ``others`` are about no row.
    """
    counted: dict[tuple[str, str, object, str], tuple[Finding, int]] = {}
    for findings, one in ((of_rows, 1), (others, 0)):
        for finding in findings:
            key = (finding.rule, finding.severity, _identity(finding.place), finding.message)
            first, count = counted.get(key, (finding, 0))
            counted[key] = (first, count + one)
    found = _merged_by_line(_counted(finding, count) for finding, count in counted.values())
    return sorted(found, key=lambda one: _ORDER[one.severity])


def _merged_by_line(found: Iterable[Finding]) -> list[Finding]:
    """Merge findings that stand on one line under several keys, as those of a YAML anchor and its aliases do."""
    alike: dict[tuple[str, str, str, str], list[Finding]] = {}
    for one in found:
        alike.setdefault((one.rule, one.severity, one.file, one.message), []).append(one)
    merged = []
    for several in alike.values():
        by_line: dict[str, list[Finding]] = {}
        for one in several:
            by_line.setdefault(one.where if len(several) > 1 else "", []).append(one)
        merged += [_counted(first, first.rows + sum(o.rows for o in others)) for first, *others in by_line.values()]
    return merged


def _identity(place: Place | str) -> object:
    return (place.document.path, place.keys) if isinstance(place, Place) else place


def _counted(finding: Finding, rows: int) -> Finding:
    """The finding, true of so many rows."""
    return Finding(finding.rule, finding.severity, finding.message, finding.place, rows)
