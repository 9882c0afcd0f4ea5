"""`launcher plan` and `matrix`: decide, and say what was decided."""

from __future__ import annotations

import argparse
import json
import sys

from launcher.benchmark.matrix import Entry
from launcher.cli.common import filters, open_project, planned, tell_refused
from launcher.cli.render import show_plans, table
from launcher.core.errors import ConfigError


def plan(arguments: argparse.Namespace) -> int:
    """Print the plans of the selected benchmarks. Exit 0, also with findings: they are part of a plan.

    Exit 2 when some of what is selected cannot be planned; the others are.
    """
    project = open_project(arguments)
    refused: list[ConfigError] = []
    plans = [project.plan_from_environment()] if arguments.from_env else planned(arguments, project, refused)
    if arguments.json:
        values = [p.as_dict() for p in plans]
        alone = len(values) == 1 and not refused
        print(json.dumps(values[0] if alone else values, indent=2, ensure_ascii=False))
    else:
        show_plans(plans, project.kind)
    sys.stdout.flush()
    return tell_refused(refused, len(plans))


def matrix(arguments: argparse.Namespace) -> int:
    """Print the selected entries: of the files named, else of the workspace's masters, else of this repository."""
    project = open_project(arguments)
    files = arguments.matrix or [str(path) for path in sorted((project.workspace / "configs").glob("*-master.yaml"))]
    more = {"runners": arguments.runner, "model_prefixes": arguments.model_prefix}
    selection = filters(arguments, nodes=arguments.nodes, evals=arguments.evals, **more)
    refused: list[ConfigError] = []
    found = project.matrix(files).entries(selection, refused)
    if arguments.json:
        print(json.dumps([entry.data for entry in found], ensure_ascii=False))
        return tell_refused(refused, len(found))
    columns = ["key", "runner", "framework", "precision", "measures", "topology", "concurrency", "evaluated"]
    table(columns, map(_row, found))
    print(f"{len(found)} entries of {len({entry.key for entry in found})} keys")
    sys.stdout.flush()
    return tell_refused(refused, len(found))


def _row(entry: Entry) -> list[str]:
    b = entry.benchmark
    concurrencies = " ".join(map(str, b.concurrencies))
    evaluated = str(entry.data.get("eval-conc", "yes")) if entry.data.get("run-eval") else ""
    return [entry.key, b.runner, b.framework, b.precision, b.measures, b.topology, concurrencies, evaluated]
