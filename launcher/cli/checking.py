"""`launcher check`: say what is wrong with rows, recipes and runner files, before a GPU is held."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import sys
from collections.abc import Mapping
from datetime import date, datetime, timezone
from pathlib import Path

from launcher.check import inputs, report
from launcher.check.inputs import CheckInput, Row
from launcher.check.registry import RULES, check_everything
from launcher.check.report import Baseline, Roots, baseline_text
from launcher.cli.common import chosen, open_project
from launcher.core import publish
from launcher.core.errors import ConfigError, suggest
from launcher.core.finding import Finding
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.project import Project
from launcher.srtctl.mirror import Commits


def check(arguments: argparse.Namespace) -> int:
    """Print findings; exit 1 when there is an error among them."""
    # A quarter of the time would go into looking for garbage among documents that all stay until the end.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _check(arguments)
    finally:
        if collecting:
            gc.enable()


def _check(arguments: argparse.Namespace) -> int:
    if arguments.explain is not None:
        return _explain(arguments.explain)
    wanted = {_known(rule) for rule in arguments.rule}
    project = open_project(arguments)
    roots = Roots([*filter(None, (project.workspace, project.srt_slurm)), shipped("runners").parent, Path.cwd()])
    commits = functools.cache(lambda: Commits(project.caches))  # looked for once a row asks, and by no GitHub job
    given = dataclasses.replace(
        _gathered(arguments, project),
        today=datetime.now(timezone.utc).date(),
        has_commit=lambda repository, sha: None if arguments.from_env else commits()(repository, sha),
    )
    found = check_everything(given)
    if arguments.write_baseline:
        accepted = [one for one in found if not wanted or one.rule in wanted]
        return _write(arguments.write_baseline, accepted, roots, given.today)
    if arguments.baseline:
        baseline = Baseline(Document.read(Path(arguments.baseline)))
        found = baseline.apply(found, roots, given.today, whole=given.whole)
    found = [one for one in found if not wanted or one.rule in wanted]
    if arguments.format == "json":
        print(report.as_json(found))
    elif arguments.format == "sarif":
        print(report.sarif(found, roots))
    else:
        lines = report.github(found, roots) if arguments.format == "github" else report.text(found)
        sys.stdout.writelines(f"{line}\n" for line in lines)
    counts = {s: sum(one.severity == s for one in found) for s in ("error", "warning", "note")}
    recipes = len(given.recipes) + len(given.broken_recipes)
    looked = {"row": len(given.rows), "recipe file": recipes, "runner file": len(given.files)}
    print(f"{_counted(looked)}: {_counted(counts)}", file=sys.stderr)
    return 1 if counts["error"] else 0


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in numbers.items())


def _gathered(arguments: argparse.Namespace, project: Project) -> CheckInput:
    """What to look at: this job's benchmark, the selected rows, a runner with all its rows, or everything."""
    if arguments.from_env:
        plan = project.plan_from_environment()
        file = project.fleet.get(plan.runner)
        row = Row(plan.benchmark, plan.benchmark.source, file, plan)
        return CheckInput([row], files=[file], schemas=project.schemas, whole=False)
    names = ("key", "framework", "precision", "seq", "scenario", "conc", "topology", "evals", "recipe")
    if any(getattr(arguments, name) for name in names):
        broken: list[ConfigError] = []
        rows = chosen(arguments, project, broken)
        given = inputs.selected(project, rows, arguments.runner, bool(arguments.conc))
        return dataclasses.replace(given, broken_rows=broken)
    if arguments.runner:
        return inputs.of_runner(project, arguments.runner, arguments.matrix)
    return inputs.everything(project, arguments.matrix)


def _known(rule: str) -> str:
    if rule not in RULES:
        raise ConfigError(f"there is no rule {rule!r}", where="--rule", hint=suggest(rule, RULES, ", ".join(RULES)))
    return rule


def _explain(rule: str) -> int:
    """Print a rule's page, or a line for each rule."""
    if rule:
        print((shipped("docs/rules") / f"{_known(rule)}.md").read_text(encoding="utf-8"), end="")
        return 0
    for one in sorted(RULES.values(), key=lambda one: one.id):
        print(f"{one.id} {one.severity} {one.title}")
    return 0


def _write(path: str, found: list[Finding], roots: Roots, today: date) -> int:
    try:
        publish.write_text(Path(path), baseline_text(found, roots, today))
    except OSError as error:
        raise ConfigError(f"the baseline cannot be written: {error.strerror}", where=path) from None
    print(f"{path}: accepts what is found today; give each entry its reason", file=sys.stderr)
    return 0
