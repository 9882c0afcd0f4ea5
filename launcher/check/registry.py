"""All rules, and the checks that apply them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launcher.benchmark.environment import unknown_settings
from launcher.benchmark.fields import WHERE
from launcher.check import container_rules, plan_rules, recipe_rules, whole_rules
from launcher.check.inputs import CheckInput, Rule, Subject
from launcher.check.srtctl_schema import Schemas
from launcher.container.planned import ContainerResolved
from launcher.core.finding import Finding
from launcher.plan.derive import Resolved
from launcher.srtctl.planned import SrtctlResolved

_ORDER = {"error": 0, "warning": 1, "note": 2}

PLAN = (*recipe_rules.RULES, *plan_rules.RULES, *container_rules.RULES)
"""The rules of one plan."""

BASELINE = (
    Rule("baseline-expired", "warning", "an accepted finding is to be looked at again"),
    Rule("baseline-unused", "warning", "an accepted finding is found no more"),
)
"""Rules that have no function here: the baseline reports by these ids."""

ENVIRONMENT = (Rule("setting-unknown", "warning", "a variable looks like a setting of the row, and is none"),)
"""Rules about the environment of a GitHub job alone: `launcher.project` looks when it plans from one."""

RULES = {one.id: one for one in (*BASELINE, *ENVIRONMENT, *whole_rules.RULES, *PLAN)}
"""Every rule by its id."""


def check_plan(resolved: Resolved, schemas: Schemas) -> tuple[Finding, ...]:
    """All findings of one plan, in the order of the rules."""
    known: dict[Subject, tuple[object, ...]] = {"any plan": (resolved,)}
    if isinstance(resolved, SrtctlResolved):
        known["plan"] = (resolved,)
        if resolved.facts is not None:
            known["recipe"] = (resolved, resolved.facts)
        lane = resolved.rules.lane.rule
        if (schema := schemas.get(lane.ref, lane.sha)) is not None:
            known["version"] = (resolved, schema)
    elif isinstance(resolved, ContainerResolved):
        known["container"] = (resolved,)
    return tuple(rule.finding(one) for rule in PLAN if rule.subject in known for one in rule.look(*known[rule.subject]))


def unknown_settings_of(environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """A finding for each variable of a job that looks like an additional setting of its row, and is passed over."""
    (one,) = ENVIRONMENT
    found = []
    for name, near in unknown_settings(environ):
        hint = f": did you mean {near}?" if near is not None else ""
        found.append(Finding(one.id, one.severity, f"{name} is no known setting, and is passed over{hint}", WHERE))
    return tuple(found)


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
