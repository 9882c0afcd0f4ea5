"""`launcher plan` and `launcher check`: decide, and say what was decided."""

from __future__ import annotations

import argparse
import json

from launcher.cli.common import narrowed, selected, session
from launcher.errors import ConfigError
from launcher.plan import Finding, Plan
from launcher.session import Session


def plan(arguments: argparse.Namespace) -> int:
    """Print the plans of the selected benchmarks. Exit 0, also with findings: they are part of a plan."""
    plans = _plans(arguments)
    if arguments.json:
        values = [p.as_dict() for p in plans]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2, ensure_ascii=False))
        return 0
    from launcher.cli.render import show_plans

    show_plans(plans)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Print the findings of the selected benchmarks' plans; exit 1 when there is an error among them."""
    if arguments.from_env:
        plans, unsupported = _plans(arguments), list[Finding]()
    else:
        plans, unsupported = _plans_and_refusals(arguments)
    found = [*unsupported, *(f for p in plans for f in p.findings)]
    findings = list({(f.rule, f.where, f.message): f for f in found}.values())
    if arguments.json:
        print(json.dumps([f.as_dict() for f in findings], indent=2, ensure_ascii=False))
    else:
        for f in findings:
            print(f"{f.rule} {f.severity} {f.where} {f.message}")
        errors = sum(f.severity == "error" for f in findings)
        checked = len(plans) + len(unsupported)
        print(f"{checked} benchmarks: {errors} errors, {len(findings) - errors} warnings")
    return 1 if any(f.severity == "error" for f in findings) else 0


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    of: Session = session(arguments)
    if arguments.from_env:
        return [of.plan_from_environment()]
    narrow = narrowed(arguments)
    return [of.plan_by_hand(b, arguments.runner, narrow=narrow) for b in selected(arguments, of)]


def _plans_and_refusals(arguments: argparse.Namespace) -> tuple[list[Plan], list[Finding]]:
    """The plans of all that can be planned, and a finding for each benchmark that no runner supports."""
    of: Session = session(arguments)
    narrow = narrowed(arguments)
    plans, refused = [], []
    for benchmark in selected(arguments, of):
        try:
            plans.append(of.plan_by_hand(benchmark, arguments.runner, narrow=narrow))
        except ConfigError as error:
            refused.append(Finding("unsupported", "error", error.message, error.where or benchmark.source))
    return plans, refused
