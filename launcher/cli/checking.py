"""`launcher check`: look at rows, recipes and runner files, and say what is wrong with them."""

from __future__ import annotations

import argparse
import gc
import sys
from datetime import datetime, timezone
from pathlib import Path

from launcher.check import inputs, report
from launcher.check.inputs import CheckInput, Row
from launcher.check.registry import RULES, check_everything
from launcher.cli.common import chosen, narrowed, session
from launcher.core import publish
from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.core.suggest import suggest
from launcher.project import Session


def check(arguments: argparse.Namespace) -> int:
    """Print findings; exit 1 when there is an error among them."""
    # A quarter of the time would go into looking for garbage among documents that all stay until the end.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _explain(arguments.explain) if arguments.explain is not None else _check(arguments)
    finally:
        if collecting:
            gc.enable()


def _explain(rule: str) -> int:
    """Print a rule's page, or a line for each rule."""
    if rule:
        print((shipped("docs/rules") / f"{_known(rule)}.md").read_text(encoding="utf-8"), end="")
        return 0
    for one in sorted(RULES.values(), key=lambda one: one.id):
        print(f"{one.id} {one.severity} {one.title}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    wanted = {_known(rule) for rule in arguments.rule} or RULES.keys()
    project = session(arguments)
    directories = [*filter(None, (project.workspace, project.srt_slurm)), shipped("runners").parent, Path.cwd()]
    roots = report.Roots(directories)
    given = _gathered(arguments, project)
    found = check_everything(given)
    if arguments.write_baseline:
        path = arguments.write_baseline
        accepted = report.baseline_text([one for one in found if one.rule in wanted], roots, given.today)
        try:
            publish.write_text(Path(path), accepted)
        except OSError as error:
            raise ConfigError(f"the baseline cannot be written: {error.strerror}", where=path) from None
        print(f"{path}: accepts what is found today; give each entry its reason", file=sys.stderr)
        return 0
    if arguments.baseline:
        baseline = report.Baseline.read(Path(arguments.baseline))
        found = baseline.apply(found, roots, given.today, whole=given.whole)
    found = [one for one in found if one.rule in wanted]
    if arguments.format == "json":
        print(report.as_json(found))
    elif arguments.format == "sarif":
        print(report.sarif(found, roots))
    else:
        lines = report.github(found, roots) if arguments.format == "github" else report.text(found)
        sys.stdout.writelines(f"{line}\n" for line in lines)
    counts = {s: sum(one.severity == s for one in found) for s in ("error", "warning", "note")}
    looked = {"row": len(given.rows), "recipe file": len(given.recipes), "runner file": len(given.files)}
    said = (", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in of.items()) for of in (looked, counts))
    print(": ".join(said), file=sys.stderr)
    return 1 if counts["error"] else 0


def _known(rule: str) -> str:
    if rule not in RULES:
        raise ConfigError(f"there is no rule {rule!r}", where="--rule", hint=suggest(rule, RULES, ", ".join(RULES)))
    return rule


def _gathered(arguments: argparse.Namespace, project: Session) -> CheckInput:
    """What to look at: this job's benchmark, the selected rows, a runner with all its rows, or everything."""
    today = datetime.now(timezone.utc).date()
    if arguments.from_env:
        plan = project.plan_from_environment()
        file = project.fleet.get(plan.runner)
        row = Row(plan.benchmark, plan.benchmark.source, file, plan)
        return CheckInput([row], files=[file], validator=project.validator, today=today, whole=False)
    from launcher.srtctl.mirror import Commits

    has_commit = Commits(project.caches)
    names = ("key", "framework", "precision", "seq", "scenario", "conc", "topology", "evals", "recipe")
    if any(getattr(arguments, name) for name in names):
        rows = chosen(arguments, project)
        return inputs.selected(project, rows, arguments.runner, today, has_commit, narrowed(arguments))
    if arguments.runner:
        served = inputs.served_by(project, arguments.runner, arguments.matrix)
        return inputs.selected(project, served, arguments.runner, today, has_commit)
    return inputs.everything(project, today, has_commit, arguments.matrix)
