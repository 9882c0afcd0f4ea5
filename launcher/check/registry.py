"""The rules of one plan, applied when it is made; the others are for `launcher check` alone (`report`)."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.benchmark.environment import unknown_settings
from launcher.benchmark.fields import WHERE
from launcher.check import plan_rules, recipe_rules
from launcher.check.inputs import Rule, Subject
from launcher.check.srtctl_schema import Schemas
from launcher.core.finding import Finding
from launcher.plan.derive import Resolved
from launcher.srtctl.planned import SrtctlResolved

PLAN = (*recipe_rules.RULES, *plan_rules.RULES)
"""The rules of one plan but for those about a job in a container: no other plan waits for them to be imported."""

ENVIRONMENT = (Rule("setting-unknown", "warning", "a variable looks like a setting of the row, and is none"),)
"""Rules about the environment of a GitHub job alone: `launcher.project` looks when it plans from one."""


def check_plan(resolved: Resolved, schemas: Schemas) -> tuple[Finding, ...]:
    """All findings of one plan, in the order of the rules."""
    rules: tuple[Rule, ...] = PLAN
    known: dict[Subject, tuple[object, ...]] = {"any plan": (resolved,)}
    if isinstance(resolved, SrtctlResolved):
        known["plan"] = (resolved,)
        if resolved.facts is not None:
            known["recipe"] = (resolved, resolved.facts)
        lane = resolved.rules.lane.rule
        if (schema := schemas.get(lane.ref, lane.sha)) is not None:
            known["version"] = (resolved, schema)
    else:
        from launcher.check import container_rules
        from launcher.container.planned import ContainerResolved

        rules = (*PLAN, *container_rules.RULES)
        if isinstance(resolved, ContainerResolved):
            known["container"] = (resolved,)
    return tuple(
        rule.finding(one) for rule in rules if rule.subject in known for one in rule.look(*known[rule.subject])
    )


def unknown_settings_of(environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """A finding for each variable of a job that looks like an additional setting of its row, and is passed over."""
    (one,) = ENVIRONMENT
    found = []
    for name, near in unknown_settings(environ):
        hint = f": did you mean {near}?" if near is not None else ""
        found.append(Finding(one.id, one.severity, f"{name} is no known setting, and is passed over{hint}", WHERE))
    return tuple(found)
