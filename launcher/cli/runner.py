"""`launcher runner list | show | schema`: what the runner files say, which rule applies, what they may say."""

from __future__ import annotations

import argparse
import sys

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark
from launcher.cli.common import session
from launcher.core.errors import ConfigError
from launcher.plan.derive import known, last
from launcher.runner.file import RunnerFile, describe_when


def listing(arguments: argparse.Namespace) -> int:
    """One line for each runner."""
    from launcher.cli.render import table

    fleet = session(arguments).fleet
    rows = []
    for file in fleet.all():
        r = file.runner
        rows.append([r.name, r.sku, f"{r.node.gpus}", r.scheduler.partition or "-", " ".join(r.labels), r.description])
    table(["runner", "sku", "GPUs", "partition", "labels", ""], rows, sys.stdout)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """One runner: its tables, or the rules that apply to a case, each with its line."""
    file = session(arguments).fleet.get(arguments.name)
    if arguments.case:
        _case(file, _benchmark(arguments.case))
        return 0
    r = file.runner
    print(f"{r.name}: {r.description}\n{file.path}")
    print(f"scheduler  {r.scheduler.kind}, partition {r.scheduler.partition}, account {r.scheduler.account}")
    print(f"nodes      {r.node.gpus} GPUs, {r.node.arch or 'any architecture'}")
    print(f"images     {r.images.directory}, imported on the {r.images.import_on} node")
    for title, rules in (("models", r.models), ("lanes", r.lanes)):
        print(title)
        for i, rule in enumerate(rules):
            what = getattr(rule, "path", None) or f"{getattr(rule, 'repository', '')}@{getattr(rule, 'ref', '')}"
            print(f"  {describe_when(rule.when):40} {what}   {file.where(title, i)}")
    for i, node in enumerate(r.exclude_nodes):
        print(f"excluded   {node.node}: {node.reason}   {file.where('exclude-nodes', i)}")
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """The JSON Schema of runner files: ``runners/runner.schema.json`` is this output."""
    from launcher.runner.json_schema import text

    sys.stdout.write(text())
    return 0


_ADJUSTS = ("mounts", "exports", "edits", "srtslurm", "time_limit", "preflight", "setup_script", "tags")


def _case(file: RunnerFile, benchmark: Benchmark) -> None:
    model, lane = file.model(benchmark), file.lane(benchmark)
    r = lane.rule
    print(f"model      {model.rule.path} as {model.rule.alias}   {model.where}")
    if own := file.image(benchmark):
        what = own.rule.image or f"in {own.rule.directory or file.runner.images.directory}"
        print(f"image      {what}   {own.where}")
    print(f"srt-slurm  {file.runner.repositories[r.repository]} {r.ref} ({r.sha or 'not pinned'})   {lane.where}")
    for overlay in r.overlays:
        print(f"overlay    {overlay.source} → {overlay.destination or 'recipes/' + overlay.source}")
    if r.setup_script:
        print(f"set-up     {r.setup_script}")
    limit = last([r.time_limit, *(a.rule.time_limit for a in file.adjustments(benchmark))], None)
    print(f"time limit {limit or file.runner.scheduler.time_limit}, where the recipe says none")
    for applied in file.adjustments(benchmark):
        what = ", ".join(name for name in _ADJUSTS if getattr(applied.rule, name) not in (None, {}, []))
        print(f"adjusts    {what.replace('_', '-')}: {applied.rule.reason or '-'}   {applied.where}")
    for excluded in file.excluded(benchmark):
        print(f"excludes   {excluded.rule.node}: {excluded.rule.reason}   {excluded.where}")
    for finding in known([model, lane, *([own] if own else []), *file.adjustments(benchmark)]):
        print(f"known      {finding.severity}: {finding.message}   {finding.where}")


def _benchmark(case: str) -> Benchmark:
    """A benchmark as far as rules look at it: ``prefix/precision/framework[/agentic]``."""
    parts = case.split("/")
    if len(parts) not in (3, 4) or (len(parts) == 4 and parts[3] not in ("agentic", "fixed")):
        raise ConfigError(f"{case!r} is not PREFIX/PRECISION/FRAMEWORK[/agentic]", where="--for")
    return Benchmark(
        exp_name=parts[0],
        image="any/image:any",
        model="any/model",
        model_prefix=parts[0],
        precision=parts[1],
        framework=parts[2],
        runner="",
        concurrencies=(),
        scenario=AGENTIC if parts[3:] == ["agentic"] else FIXED,
        source="--for",
    )
