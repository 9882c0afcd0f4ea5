"""`launcher check`: look at rows, recipes and runner files, and say what is wrong with them."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping
from datetime import date, datetime, timezone
from pathlib import Path

from launcher.check import inputs, report
from launcher.check.inputs import CheckInput, HasCommit, Row
from launcher.check.registry import RULES, check_everything
from launcher.check.report import Baseline, Roots, baseline_text
from launcher.cli.common import chosen, narrowed, session
from launcher.core import publish
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding
from launcher.core.shipped import shipped
from launcher.core.suggest import suggest
from launcher.project import Session


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
    project = session(arguments)
    roots = Roots([*filter(None, (project.workspace, project.srt_slurm)), shipped("runners").parent, Path.cwd()])
    given = _gathered(arguments, project)
    found = check_everything(given)
    if arguments.write_baseline:
        chosen_ones = [one for one in found if not wanted or one.rule in wanted]
        return _write(arguments.write_baseline, chosen_ones, roots, given.today)
    if arguments.baseline:
        baseline = Baseline.read(Path(arguments.baseline))
        found = baseline.apply(found, roots, given.today, whole=given.whole)
    found = [one for one in found if not wanted or one.rule in wanted]
    _show(found, arguments.format, roots)
    counts = {s: sum(one.severity == s for one in found) for s in ("error", "warning", "note")}
    looked = {"row": len(given.rows), "recipe file": len(given.recipes), "runner file": len(given.files)}
    print(f"{_counted(looked)}: {_counted(counts)}", file=sys.stderr)
    return 1 if counts["error"] else 0


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in numbers.items())


def _gathered(arguments: argparse.Namespace, project: Session) -> CheckInput:
    """What to look at: this job's benchmark, the selected rows, a runner with all its rows, or everything."""
    today = datetime.now(timezone.utc).date()
    has_commit = _commits(project)
    if arguments.from_env:
        plan = project.plan_from_environment()
        row = Row(plan.benchmark, plan.benchmark.source, project.fleet.get(plan.runner), plan)
        return CheckInput(
            [row], files=[project.fleet.get(plan.runner)], validator=project.validator, today=today, whole=False
        )
    if arguments.runner and not _selects(arguments):
        rows = inputs.served_by(project, arguments.runner, arguments.matrix)
        return inputs.selected(project, rows, arguments.runner, today, has_commit)
    if _selects(arguments):
        return inputs.selected(
            project, chosen(arguments, project), arguments.runner, today, has_commit, narrowed(arguments)
        )
    return inputs.everything(project, today, has_commit, arguments.matrix)


def _selects(arguments: argparse.Namespace) -> bool:
    names = ("key", "framework", "precision", "seq", "scenario", "conc", "topology", "evals", "recipe")
    return any(getattr(arguments, name) for name in names)


def _commits(project: Session) -> HasCommit:
    from launcher.srtctl.mirror import Commits

    asked: list[Commits] = []

    def has_commit(repository: str, sha: str) -> bool | None:
        if not asked:
            asked.append(Commits(project.caches))
        return asked[0](repository, sha)

    return has_commit


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


def _show(found: list[Finding], how: str, roots: Roots) -> None:
    if how == "json":
        print(report.as_json(found))
    elif how == "sarif":
        print(report.sarif(found, roots))
    else:
        lines = report.github(found, roots) if how == "github" else report.text(found)
        sys.stdout.writelines(f"{line}\n" for line in lines)
