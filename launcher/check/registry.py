"""All rules, and the checks that apply them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.check import files, fleet, image, recipe, result_name_rules, schema, topology
from launcher.check.engine import Rule, apply
from launcher.check.inputs import Everything
from launcher.check.report import Reported, once
from launcher.check.schema import Judged
from launcher.check.schema_validation import Verdicts
from launcher.core.finding import Finding
from launcher.plan.derive import Resolved
from launcher.srtctl.resolved import SrtctlResolved

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

WHOLE: Sequence[Rule[Everything]] = (*files.WHOLE, *fleet.WHOLE, *result_name_rules.WHOLE)

BASELINE: Sequence[Rule[Any]] = (
    Rule("baseline-expired", "warning", "an accepted finding is to be looked at again"),
    Rule("baseline-unused", "warning", "an accepted finding is found no more"),
)
"""Rules that have no function here: the baseline reports by these ids."""

RULES: Mapping[str, Rule[Any]] = {
    one.id: one for one in (*EVERY_KIND, *BASELINE, *fleet.CLUSTER, *WHOLE, *SRTCTL, *schema.RULES)
}
"""Every rule by its id."""


def check_plan(resolved: Resolved, verdicts: Verdicts) -> tuple[Finding, ...]:
    """All findings of one plan, in the order of the rules."""
    found = []
    if isinstance(resolved, SrtctlResolved):
        found += [*apply(SRTCTL, resolved), *apply(schema.RULES, Judged(resolved, verdicts))]
    return (*found, *apply(EVERY_KIND, resolved))


def check_everything(every: Everything) -> list[Reported]:
    """All findings of rows, recipe files and runner files side by side, each once."""
    planned = (
        Finding(f.rule, f.severity, f.message, row.place) if f.place == row.benchmark.source else f
        for row in every.rows
        if row.plan is not None
        for f in row.plan.findings
    )
    clusters = (
        fleet.Cluster(file, every.verdicts.schemas, every.today, every.has_commit, every.overlays)
        for file in every.files
    )
    found = [finding for cluster in clusters for finding in apply(fleet.CLUSTER, cluster)]
    return once(planned, [*found, *apply(WHOLE, every)])
