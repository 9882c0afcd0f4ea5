"""All rules, and the checks that apply them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.check import files, fleet, image, recipe, result_name_rules, schema, topology
from launcher.check.engine import Rule, Subject, apply
from launcher.check.inputs import Everything
from launcher.check.report import Reported, once
from launcher.core.finding import Finding

PLAN: Sequence[Rule[Subject]] = (
    *recipe.RULES,
    *image.RULES,
    *topology.RULES,
    *schema.RULES,
    *fleet.RULES,
    *result_name_rules.RULES,
)
"""The rules of one plan."""

WHOLE: Sequence[Rule[Everything]] = (*files.WHOLE, *fleet.WHOLE, *result_name_rules.WHOLE)

ELSEWHERE: Sequence[Rule[Any]] = (
    Rule("known-problem", "warning", "the runner file says what is wrong with a rule that applies"),
    Rule("image-replaced", "error", "another image is run than the row's"),
    Rule("model-otherwise", "warning", "the checkpoint is not seen from here, and would be downloaded"),
    Rule("baseline-expired", "warning", "an accepted finding is to be looked at again"),
    Rule("baseline-unused", "warning", "an accepted finding is found no more"),
)
"""Rules that have no function here: `launcher.plan.derive` and the baseline report by these ids."""

RULES: Mapping[str, Rule[Any]] = {one.id: one for one in (*ELSEWHERE, *fleet.CLUSTER, *WHOLE, *PLAN)}
"""Every rule by its id."""


def check(subject: Subject) -> list[Finding]:
    """All findings of one plan, in the order of the rules."""
    return apply(PLAN, subject)


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
