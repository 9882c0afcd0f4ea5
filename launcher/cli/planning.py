"""`launcher plan`: decide, and say what was decided."""

from __future__ import annotations

import argparse
import json

from launcher.cli.common import narrowed, selected, session
from launcher.plan.plan import Plan
from launcher.project import Session


def plan(arguments: argparse.Namespace) -> int:
    """Print the plans of the selected benchmarks. Exit 0, also with findings: they are part of a plan."""
    of = session(arguments)
    plans = _plans(arguments, of)
    if arguments.json:
        values = [p.as_dict() for p in plans]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2, ensure_ascii=False))
        return 0
    from launcher.cli.render import show_plans

    show_plans(plans, of.kind)
    return 0


def _plans(arguments: argparse.Namespace, of: Session) -> list[Plan]:
    if arguments.from_env:
        return [of.plan_from_environment()]
    narrow = narrowed(arguments)
    return [of.plan_by_hand(b, arguments.runner, narrow=narrow) for b in selected(arguments, of)]
