"""`launcher matrix`: the entries that matrix files expand to, as InferenceX's generator gives them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from launcher.benchmark.matrix import Entry
from launcher.cli.common import filters, session


def entries(arguments: argparse.Namespace) -> int:
    """Print the selected entries: of the files named, else of the workspace's masters, else of this repository."""
    of = session(arguments)
    files = arguments.matrix or [str(path) for path in sorted((of.workspace / "configs").glob("*-master.yaml"))]
    selection = dataclasses.replace(
        filters(arguments),
        runners=arguments.runner,
        model_prefixes=arguments.model_prefix,
        nodes=arguments.nodes,
        evals=arguments.evals,
    )
    found = of.matrix(files).entries(selection)
    if arguments.json:
        print(json.dumps([entry.data for entry in found], ensure_ascii=False))
        return 0
    from launcher.cli.render import table

    columns = ["key", "runner", "framework", "precision", "measures", "topology", "concurrency", "evaluated"]
    table(columns, [_row(entry) for entry in found], sys.stdout)
    print(f"{len(found)} entries of {len({entry.key for entry in found})} keys")
    return 0


def _row(entry: Entry) -> list[str]:
    b = entry.benchmark
    measures = b.scenario if b.isl is None else f"{b.isl}/{b.osl}"
    concurrencies = " ".join(map(str, b.concurrencies))
    evaluated = str(entry.data.get("eval-conc", "yes")) if entry.data.get("run-eval") else ""
    return [entry.key, b.runner, b.framework, b.precision, measures, b.topology, concurrencies, evaluated]
